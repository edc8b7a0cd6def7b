//! On what the numbers were made.

use std::fs;
use std::process::Command;

use serde::Serialize;

/// What a reader must know to compare two runs.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: u64,
    pub(crate) kernel: String,
    pub(crate) rustc: String,
    /// Runnable tasks in the last minute, before the run began: above a few tenths the machine was shared.
    pub(crate) load: String,
}

impl Machine {
    /// Asks the system; what it does not tell is `unknown`.
    pub(crate) fn read() -> Self {
        let field = |path: &str, key: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
            line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
        };
        let word = |path: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.split_whitespace().next().unwrap_or("unknown").to_owned()
        };
        let memory = field("/proc/meminfo", "MemTotal");
        let kib = memory.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
        let rustc = Command::new("rustc").arg("-V").output().ok();
        let rustc = rustc.and_then(|output| String::from_utf8(output.stdout).ok());
        Machine {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, |cores| cores.get()),
            memory_gib: kib.div_ceil(1 << 20),
            kernel: word("/proc/sys/kernel/osrelease"),
            rustc: rustc.map_or("unknown".to_owned(), |text| text.trim().to_owned()),
            load: word("/proc/loadavg"),
        }
    }
}

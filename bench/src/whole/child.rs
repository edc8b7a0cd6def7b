//! A program under measurement.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;

use super::Usage;
use crate::case::Absent;
use crate::clock;

/// A started program; killed when dropped.
pub(super) struct Child {
    child: std::process::Child,
    out: ChildStdout,
    name: String,
}

impl Child {
    /// The binary of this workspace, built beside this program by `cargo xtask bench whole`.
    pub(super) fn ours(arguments: &[&str], directory: &Path) -> Result<Child, Absent> {
        let own = std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
        let program = own.with_file_name("millstream");
        if !program.exists() {
            return Err(format!("{} is not built; use `cargo xtask bench whole`", program.display()));
        }
        Child::start(Command::new(program).args(arguments), directory)
    }

    pub(super) fn start(command: &mut Command, directory: &Path) -> Result<Child, Absent> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{name}: {error}"))?;
        let out = child.stdout.take().expect("it is piped");
        Ok(Child { child, out, name })
    }

    pub(super) fn out(&mut self) -> &mut ChildStdout {
        &mut self.out
    }

    /// Reads what it still writes.
    pub(super) fn drain(&mut self) -> Result<(), Absent> {
        let mut rest = [0; 1 << 16];
        while self.out.read(&mut rest).map_err(|error| format!("{}: {error}", self.name))? > 0 {}
        Ok(())
    }

    /// A line of its `/proc/PID/status`, in MiB.
    pub(super) fn memory(&self, line: &str) -> Result<f64, Absent> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .map_err(|error| format!("{}: its status: {error}", self.name))?;
        status
            .lines()
            .find_map(|found| found.strip_prefix(line)?.strip_prefix(':')?.trim().strip_suffix("kB"))
            .and_then(|kibibytes| kibibytes.trim().parse::<f64>().ok())
            .map(|kibibytes| kibibytes / 1024.0)
            .ok_or_else(|| format!("{}: its status has no {line}", self.name))
    }

    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Waits until it has ended well, looking at its memory meanwhile.
    pub(super) fn finish(mut self) -> Result<Usage, Absent> {
        let before = children_seconds()?;
        let mut peak_mib = 0.0f64;
        loop {
            peak_mib = peak_mib.max(self.memory("VmHWM").unwrap_or(0.0));
            match self.child.try_wait() {
                Ok(None) => clock::pause(Duration::from_millis(2)),
                Ok(Some(status)) if status.success() => break,
                Ok(Some(status)) => return Err(format!("{} ended with {status}", self.name)),
                Err(error) => return Err(format!("{}: {error}", self.name)),
            }
        }
        Ok(Usage { cpu_seconds: children_seconds()? - before, peak_mib })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// Processor time of this process's ended children.
fn children_seconds() -> Result<f64, Absent> {
    let stat = fs::read_to_string("/proc/self/stat").map_err(|error| format!("/proc/self/stat: {error}"))?;
    // Behind the name, which may hold anything: `cutime` and `cstime` are the 14th and 15th, in ticks of 10 ms.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    match (ticks(13), ticks(14)) {
        (Some(user), Some(system)) => Ok((user + system) / 100.0),
        _ => Err("/proc/self/stat has no times".to_owned()),
    }
}

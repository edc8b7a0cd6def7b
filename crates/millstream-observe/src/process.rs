//! What this process itself uses, as Linux tells it.

use std::time::Duration;

/// Memory and CPU of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    pub(crate) resident_bytes: u64,
    pub(crate) cpu: Duration,
}

/// Linux counts CPU time for user space in hundredths of a second on every architecture (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

impl Process {
    /// What it uses now; `None` where there is no `/proc`.
    pub(crate) fn now() -> Option<Process> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        Process::parse(&status, &stat)
    }

    fn parse(status: &str, stat: &str) -> Option<Process> {
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kibibytes: u64 = resident.split_whitespace().next()?.parse().ok()?;
        // The second field is the program's name in brackets and may hold anything, brackets included.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace().skip(11); // from the 3rd field to the 14th
        let mut ticks = || fields.next()?.parse::<u32>().ok();
        Some(Process { resident_bytes: kibibytes * 1024, cpu: TICK * ticks()? + TICK * ticks()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (mill) ) 3) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0";
        let process = Process::parse("Name:\tx\nVmRSS:\t  2048 kB\n", stat).expect("both are well formed");
        assert_eq!(process.resident_bytes, 2048 * 1024);
        assert_eq!(process.cpu, Duration::from_secs(2));
    }
}

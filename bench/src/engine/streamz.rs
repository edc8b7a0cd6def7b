//! The peer in Go: built with `go` if that is installed, else left out.

use std::path::Path;
use std::process::Command;

use crate::case::{Absent, NS, Sample};

/// Runs `workload` in Go over `items` items, and checks its sum.
pub(crate) fn measure(workload: &str, items: u64, expected: u64) -> Result<Sample, Absent> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/streamz");
    let own = std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
    let program = own.with_file_name("millstream-bench-streamz");
    if !program.exists() {
        // Every contestant is a process: another may not find the program half written.
        let fresh = own.with_file_name(format!("millstream-bench-streamz.{}", std::process::id()));
        let built = Command::new("go")
            .args(["build", "-o"])
            .arg(&fresh)
            .arg(".")
            .current_dir(&source)
            .output()
            .map_err(|error| format!("`go` is not here ({error})"))?;
        if !built.status.success() {
            let reason = String::from_utf8_lossy(&built.stderr).lines().last().unwrap_or("").to_owned();
            return Err(format!("`go build` failed: {reason}"));
        }
        std::fs::rename(&fresh, &program).map_err(|error| format!("{}: {error}", program.display()))?;
    }
    let output = Command::new(&program)
        .args([workload, &items.to_string()])
        .output()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut words = text.split_whitespace();
    let nanoseconds = words.next().and_then(|word| word.parse::<f64>().ok());
    let sum = words.next().and_then(|word| word.parse::<u64>().ok());
    match (nanoseconds, sum) {
        (Some(nanoseconds), Some(sum)) if sum == expected => Ok(Sample::new().with(NS, nanoseconds)),
        _ => Err(format!("its answer was not the right sum: {text:?}")),
    }
}

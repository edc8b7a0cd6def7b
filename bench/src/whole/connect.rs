//! Redpanda Connect, built with `go` if that is installed, else left out.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::child::Child;
use super::{Figures, check, place, rows_of, write};
use crate::case::Absent;

const CONFIG: &str = "\
input:
  file: { paths: [ in.ndjson ], scanner: { lines: {} } }
pipeline:
  threads: 2
  processors:
    - mapping: |
        root = if this.delay < 15 { deleted() } else { { \"carrier\": this.carrier, \"flight\": this.flight, \"late\": this.delay } }
output:
  broker:
    outputs:
      - file: { path: out.ndjson, codec: lines }
    batching: { count: 500, period: 1s }
logger: { level: ERROR }
http: { enabled: false }
";

/// The pipeline of [`file_to_file`](super::file_to_file).
pub(super) fn run(rows: u64) -> Figures {
    let program = build()?;
    let place = place()?;
    rows_of(place.path(), rows)?;
    write(place.path(), "config.yaml", CONFIG)?;
    let mut command = Command::new(program);
    // As many threads as ours has.
    command.args(["run", "config.yaml"]).env("GOMAXPROCS", "2");
    let usage = Child::start(&mut command, place.path())?.finish()?;
    check(&place.path().join("out.ndjson"), rows)?;
    Ok(usage.sample(rows))
}

fn build() -> Result<PathBuf, Absent> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/connect");
    let own = std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
    let program = own.with_file_name("millstream-bench-connect");
    if !program.exists() {
        let built =
            Command::new("go").args(["build", "-o"]).arg(&program).arg(".").current_dir(&source).output();
        let built = built.map_err(|error| format!("`go` is not here ({error})"))?;
        if !built.status.success() {
            let reason = String::from_utf8_lossy(&built.stderr).lines().last().unwrap_or("").to_owned();
            return Err(format!("`go build` failed: {reason}"));
        }
    }
    Ok(program)
}

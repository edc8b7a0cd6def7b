//! The quickstart's promises, counted by hand: the ledger adds up to the rows of the data, the output holds
//! what was completed, a second run adds nothing, and the README shows what the run prints.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::steps::command;
use crate::{Outcome, root};

/// Runs the quickstart twice in a copy of the examples and compares what it says with what is there.
pub(crate) fn run() -> Outcome {
    let copy = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
    crate::readme::copy_examples(copy.path())?;
    let rows = lines(&copy.path().join("examples/data/flights-2013-01.csv"))? - 1; // the first names the columns

    let (first, printed) = ledger(copy.path(), "first.json")?;
    in_readme(&printed)?;
    if first["received"] != rows {
        return Err(format!("the data has {rows} rows, the ledger received {}", first["received"]));
    }
    let outputs = outputs(&copy.path().join("examples/out"))?;
    let written: u64 = outputs.values().map(|(lines, _)| lines).sum();
    if written != first["completed"] {
        return Err(format!("{written} rows are written, the ledger completed {}", first["completed"]));
    }

    let (second, _) = ledger(copy.path(), "second.json")?;
    if second["received"] != 0 {
        return Err(format!("a second run received {} items again", second["received"]));
    }
    if self::outputs(&copy.path().join("examples/out"))? != outputs {
        return Err("a second run changed the output".into());
    }
    eprintln!("{rows} rows: {written} written, the ledger adds up, a second run adds nothing");
    Ok(())
}

/// That the ledger which the README shows is the one that was printed, line by line. Its times are another
/// machine's.
fn in_readme(printed: &str) -> Outcome {
    let readme = std::fs::read_to_string(root().join("README.md")).map_err(|e| format!("README.md: {e}"))?;
    let lines = printed.lines().filter(|line| {
        let line = line.trim_start();
        line.starts_with(['+', '=']) || line.ends_with("  completed")
    });
    let mut count = 0;
    for line in lines {
        count += 1;
        if !readme.lines().any(|shown| shown == line) {
            return Err(format!("README.md does not show this line of the quickstart's report: `{line}`"));
        }
    }
    if count < 5 { Err(format!("the quickstart printed no ledger:\n{printed}")) } else { Ok(()) }
}

/// Runs the quickstart once; the ledger of its report, which must add up, and what it printed.
fn ledger(directory: &Path, report: &str) -> Result<(BTreeMap<String, u64>, String), String> {
    let manifest = root().join("Cargo.toml");
    let printed = command("cargo")
        .args(["run", "--quiet", "--release", "--locked", "--manifest-path"])
        .args([manifest.as_os_str()])
        .args(["--", "run", "examples/quickstart.yaml", "--report", report])
        .directory(directory)
        .errors()?;
    let text = std::fs::read(directory.join(report)).map_err(|e| format!("{report}: {e}"))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| format!("{report}: {e}"))?;
    let mut ledger = BTreeMap::new();
    for name in ["received", "completed", "dead", "in_flight"] {
        let number = value["ledger"][name].as_u64().ok_or(format!("{report}: no number ledger.{name}"))?;
        ledger.insert(name.to_owned(), number);
    }
    let dropped =
        value["ledger"]["dropped"].as_object().ok_or(format!("{report}: no object ledger.dropped"))?;
    ledger.insert("dropped".into(), dropped.values().filter_map(Value::as_u64).sum());
    let settled = ledger["completed"] + ledger["dropped"] + ledger["dead"] + ledger["in_flight"];
    if ledger["received"] != settled {
        return Err(format!("{report}: the ledger does not add up: {ledger:?}"));
    }
    Ok((ledger, printed))
}

/// Lines and content of every file under a directory, by path.
fn outputs(directory: &Path) -> Result<BTreeMap<String, (u64, Vec<u8>)>, String> {
    let mut outputs = BTreeMap::new();
    let entries = std::fs::read_dir(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    for entry in entries {
        let path = entry.map_err(|e| format!("{}: {e}", directory.display()))?.path();
        if path.is_dir() {
            outputs.extend(self::outputs(&path)?);
        } else {
            let content = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            outputs.insert(path.display().to_string(), (lines(&path)?, content));
        }
    }
    Ok(outputs)
}

/// How many lines a file has.
fn lines(path: &Path) -> Result<u64, String> {
    let content = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(content.iter().filter(|byte| **byte == b'\n').count() as u64)
}

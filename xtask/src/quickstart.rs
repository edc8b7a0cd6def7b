//! The quickstart's promises, counted by hand: the ledger adds up to the rows of the data, the output holds
//! what was completed, and a second run adds nothing.

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

    let first = ledger(copy.path(), "first.json")?;
    if first["received"] != rows {
        return Err(format!("the data has {rows} rows, the ledger received {}", first["received"]));
    }
    let outputs = outputs(&copy.path().join("examples/out"))?;
    let written: u64 = outputs.values().map(|(lines, _)| lines).sum();
    if written != first["completed"] {
        return Err(format!("{written} rows are written, the ledger completed {}", first["completed"]));
    }

    let second = ledger(copy.path(), "second.json")?;
    if second["received"] != 0 {
        return Err(format!("a second run received {} items again", second["received"]));
    }
    if self::outputs(&copy.path().join("examples/out"))? != outputs {
        return Err("a second run changed the output".into());
    }
    eprintln!("{rows} rows: {written} written, the ledger adds up, a second run adds nothing");
    Ok(())
}

/// Runs the quickstart once; the ledger of its report, which must add up.
fn ledger(directory: &Path, report: &str) -> Result<BTreeMap<String, u64>, String> {
    let manifest = root().join("Cargo.toml");
    command("cargo")
        .args(["run", "--quiet", "--release", "--locked", "--manifest-path"])
        .args([manifest.as_os_str()])
        .args(["--", "run", "--quiet", "examples/quickstart.yaml", "--report", report])
        .directory(directory)
        .run()?;
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
    Ok(ledger)
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

//! Every Rust example of every crate, run to its end.

use crate::steps::command;
use crate::{Outcome, root};

/// The longest an example may take, in seconds, its build aside. An example that hangs is a broken one.
const SECONDS_MAX: &str = "60";

/// Builds all examples, then runs each; an error names those that failed.
pub(crate) fn run() -> Outcome {
    let scratch = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
    let mut failed = Vec::new();
    let examples = examples()?;
    crate::steps::cargo(&["build", "--workspace", "--locked", "--examples"])?;
    for (package, example) in &examples {
        eprintln!("--- {package}: {example}");
        // In a directory of its own, so that an example that writes files leaves none here.
        let manifest = root().join("Cargo.toml");
        let outcome = command("timeout")
            .args(["--kill-after=5", SECONDS_MAX, "cargo", "run", "--quiet", "--locked", "--manifest-path"])
            .args([manifest.as_os_str()])
            .args(["--package", package, "--example", example])
            .directory(scratch.path())
            .run();
        if let Err(problem) = outcome {
            eprintln!("{problem}");
            failed.push(format!("{package}/{example}"));
        }
    }
    eprintln!("{} examples", examples.len());
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
}

/// Package and name of each example, from `cargo metadata`.
fn examples() -> Result<Vec<(String, String)>, String> {
    let metadata =
        command("cargo").args(["metadata", "--format-version", "1", "--no-deps", "--locked"]).output()?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&metadata).map_err(|e| format!("cargo metadata: {e}"))?;
    let mut examples = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for target in package["targets"].as_array().into_iter().flatten() {
            let kinds = target["kind"].as_array();
            if kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "example"))
                && let (Some(package), Some(target)) = (package["name"].as_str(), target["name"].as_str())
            {
                examples.push((package.to_owned(), target.to_owned()));
            }
        }
    }
    Ok(examples)
}

//! What the library brings along: nothing of HTTP, YAML or a command line, by its default features.

use std::collections::BTreeSet;

use crate::Outcome;
use crate::steps::command;

/// Crates that belong to the binary alone. Each must be among the binary's, else this list checks nothing.
const BINARY_ONLY: &[&str] =
    &["axum", "hyper", "reqwest", "tower", "saphyr-parser", "clap", "cel", "jaq-core"];

/// An error that names what of these the library `millstream` depends on.
pub(crate) fn check() -> Outcome {
    let (library, binary) = (dependencies("millstream")?, dependencies("millstream-cli")?);
    let missing: Vec<&str> = BINARY_ONLY.iter().copied().filter(|name| !binary.contains(*name)).collect();
    if !missing.is_empty() {
        return Err(format!(
            "the binary no longer depends on {}; mend the list in xtask",
            missing.join(", ")
        ));
    }
    let heavy: Vec<&str> = BINARY_ONLY.iter().copied().filter(|name| library.contains(*name)).collect();
    if heavy.is_empty() {
        eprintln!("the library has {} dependencies, none of HTTP, YAML or a command line", library.len() - 1);
        return Ok(());
    }
    Err(format!("the library depends on {} by its default features", heavy.join(", ")))
}

/// The names of all packages that this one is built from, its own among them.
fn dependencies(package: &str) -> Result<BTreeSet<String>, String> {
    let arguments = ["tree", "--locked", "--package", package, "--edges", "normal", "--prefix", "none"];
    let tree = String::from_utf8(command("cargo").args(arguments).output()?).map_err(|e| e.to_string())?;
    Ok(tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

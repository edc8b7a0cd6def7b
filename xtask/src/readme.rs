//! The README's commands, run as a reader would run them.
//!
//! Every line of a fenced block marked `sh` is a command and must exit with 0. They run in order, in a copy of
//! the examples, so that neither a reader's earlier run nor this one is in the other's way. `cargo xtask`
//! lines are this program itself: the chore must exist, and is not run again.

use std::path::Path;

use crate::steps::command;
use crate::{Outcome, root};

/// The longest a command of the README may take, in seconds; the release build is done before.
const SECONDS_MAX: &str = "120";

/// Runs them all; an error names the first that failed.
pub(crate) fn run() -> Outcome {
    let text = std::fs::read_to_string(root().join("README.md")).map_err(|e| format!("README.md: {e}"))?;
    let commands = commands(&text);
    if commands.is_empty() {
        return Err("README.md: no command stands in a block marked `sh`".into());
    }
    let copy = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
    copy_examples(copy.path())?;
    for line in commands {
        eprintln!("--- {line}");
        if let Some(chore) = line.strip_prefix("cargo xtask ") {
            let name = chore.split_whitespace().next().unwrap_or_default();
            if !crate::USAGE.lines().any(|usage| usage.trim_start().starts_with(name)) {
                return Err(format!("README.md: `{line}`: there is no such chore"));
            }
            continue;
        }
        // Cargo finds the workspace by its manifest, since the copy holds only the examples.
        let manifest =
            format!("cargo run --locked --manifest-path '{}'", root().join("Cargo.toml").display());
        let line = line.replace("cargo run", &manifest);
        command("timeout")
            .args(["--kill-after=5", SECONDS_MAX, "bash", "-euo", "pipefail", "-c", &line])
            .directory(copy.path())
            .run()?;
    }
    Ok(())
}

/// Copies what git would clone of `examples/`: not the state and outputs of earlier runs.
pub(crate) fn copy_examples(target: &Path) -> Outcome {
    copy(&root().join("examples"), &target.join("examples")).map_err(|e| format!("copying examples/: {e}"))
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == "state" || name == "out" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to.join(name))?;
        } else {
            std::fs::copy(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}

/// The lines of all blocks marked `sh`, without comments and blank lines; a `\` joins a line to the next.
fn commands(text: &str) -> Vec<String> {
    let (mut commands, mut inside, mut open) = (Vec::<String>::new(), false, false);
    for line in text.lines() {
        if let Some(mark) = line.trim_start().strip_prefix("```") {
            inside = !inside && mark.trim() == "sh";
            continue;
        }
        let line = line.split(" #").next().unwrap_or_default().trim();
        if !inside || line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (words, continues) = line.strip_suffix('\\').map_or((line, false), |words| (words, true));
        match commands.last_mut() {
            Some(last) if open => last.push_str(words),
            _ => commands.push(words.to_owned()),
        }
        open = continues;
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::commands;

    #[test]
    fn only_blocks_marked_sh_hold_commands() {
        let text = "```sh\n# why\ncargo run -- a   # what\n\ncargo run \\\n  -- b\n```\n```text\nno\n```\n```\nno\n```\n";
        assert_eq!(commands(text), ["cargo run -- a", "cargo run -- b"]);
    }
}

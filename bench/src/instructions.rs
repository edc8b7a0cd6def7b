//! Instructions an item, which a noisy machine counts as well as a quiet one: `cargo xtask bench instructions`.
//!
//! Every contestant that reports nanoseconds an item runs twice under callgrind, over few items and over more; the
//! difference is what an item costs, without what it takes to start. Callgrind runs some fifty times slower than the processor,
//! so whatever goes by time comes more often: stages take turns after fewer items, and windows hold fewer. What is dear by the
//! turn or by the window (boxes, windows, two tasks) looks dearer than it is.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Command, ExitCode, Stdio};

use crate::case::{Case, Contestant, ITEMS, NS, Role, Scale};
use crate::clock::COUNTING;

/// Prints the table.
pub(crate) fn print(cases: &[Case]) -> Result<ExitCode, String> {
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Err("counting instructions takes `valgrind`: apt-get install valgrind".to_owned());
    }
    let say = |line: &str| {
        writeln!(std::io::stdout(), "{line}").map_err(|error| format!("writing the table: {error}"))
    };
    say("| case | contestant | instructions an item |\n|---|---|---|")?;
    for case in cases {
        for contestant in &case.contestants {
            if let Some(count) = count(case, contestant)? {
                say(&format!("| {} | {} | {count:.1} |", case.name, contestant.name))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What one item costs a contestant; `None` for those that measure something else, or in another program.
fn count(case: &Case, contestant: &Contestant) -> Result<Option<f64>, String> {
    if contestant.role == Role::Peer && contestant.name.starts_with("streamz") {
        return Ok(None);
    }
    let Some((few, less)) = collect(case, contestant, Scale::Tiny)? else { return Ok(None) };
    let Some((many, more)) = collect(case, contestant, Scale::Small)? else { return Ok(None) };
    Ok((many > few).then(|| (more - less) / (many - few)))
}

/// How many items were worked on, and how many instructions that took.
fn collect(case: &Case, contestant: &Contestant, scale: Scale) -> Result<Option<(f64, f64)>, String> {
    let place = format!("{} / {}", case.name, contestant.name);
    let program = std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
    let mut child = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["contestant", "engine", case.name, contestant.name, scale.name()])
        .env(COUNTING, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{place}: starting valgrind: {error}"))?;
    let (mut answer, mut summary) = (String::new(), String::new());
    let read = |pipe: Option<&mut dyn Read>, text: &mut String| match pipe {
        Some(pipe) => pipe.read_to_string(text).map(drop),
        None => Ok(()),
    };
    // An answer is a line, so that nothing blocks while the other pipe is read.
    read(child.stdout.as_mut().map(|pipe| pipe as _), &mut answer)
        .map_err(|error| format!("{place}: {error}"))?;
    read(child.stderr.as_mut().map(|pipe| pipe as _), &mut summary)
        .map_err(|error| format!("{place}: {error}"))?;
    let status = child.wait().map_err(|error| format!("{place}: {error}"))?;
    if !status.success() {
        return Err(format!("{place}: its process ended with {status}: {summary}"));
    }
    let sample: BTreeMap<String, BTreeMap<String, f64>> = serde_json::from_str(&answer).unwrap_or_default();
    let Some(sample) = sample.get("Sample").filter(|sample| sample.contains_key(NS)) else { return Ok(None) };
    let Some(items) = sample.get(ITEMS) else { return Ok(None) };
    let instructions = summary
        .lines()
        .find_map(|line| line.split_once("Collected :"))
        .and_then(|(_, count)| count.trim().parse::<f64>().ok())
        .ok_or_else(|| format!("{place}: valgrind counted nothing: {summary}"))?;
    Ok(Some((*items, instructions)))
}

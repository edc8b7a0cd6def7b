//! Clients in other languages: built from `peers/` if their tools are there, else left out.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::work::{Act, QUEUE, Work, sample};
use crate::case::{Absent, Sample};

#[derive(Debug, Clone, Copy)]
pub(super) enum Foreign {
    /// RabbitMQ's own client in Go, amqp091-go.
    Go,
    /// RabbitMQ's own client in Java.
    Java,
}

/// Does the work in a process of the other language, which measures itself and prints seconds, processor seconds and KiB.
pub(super) fn run(client: Foreign, work: Work) -> Result<Sample, Absent> {
    let mut command = match client {
        Foreign::Go => Command::new(go()?),
        Foreign::Java => java()?,
    };
    let address = work.prepare()?;
    let (act, window) = match work.act {
        Act::Publish { window } => ("publish", window),
        Act::SettleEach => ("settle-each", super::work::WINDOW),
        Act::SettleMany => ("settle-many", super::work::WINDOW),
        Act::Both => ("both", super::work::WINDOW),
    };
    let numbers = [window, work.body as u64, work.warm(), work.count].map(|number| number.to_string());
    let output = command.args([&address, QUEUE, act]).args(numbers).output();
    let output = output.map_err(|error| format!("{client:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match numbers[..] {
        [seconds, cpu_seconds, kib] => Ok(sample(work.count, seconds, cpu_seconds, kib / 1024.0)),
        _ => Err(format!("{client:?} failed: {text}{}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// Beside this program, where it is built once.
fn beside(name: &str) -> Result<PathBuf, Absent> {
    let own = std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
    Ok(own.with_file_name(name))
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)
}

fn built(command: &mut Command) -> Result<(), Absent> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("`{tool}` is not here ({error})"))?;
    let reason = [output.stderr, output.stdout].concat();
    let reason = String::from_utf8_lossy(&reason).lines().next().unwrap_or_default().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("`{tool}` failed: {reason}")) }
}

fn go() -> Result<PathBuf, Absent> {
    let program = beside("millstream-bench-amqp-go")?;
    if !program.exists() {
        built(
            Command::new("go").args(["build", "-o"]).arg(&program).arg(".").current_dir(source("amqp-go")),
        )?;
    }
    Ok(program)
}

fn java() -> Result<Command, Absent> {
    let place = beside("millstream-bench-amqp-java")?;
    if !place.join("Bench.class").exists() {
        let output = format!("-DoutputDirectory={}", place.display());
        let fetch = ["--quiet", "--batch-mode", "dependency:copy-dependencies", &output];
        built(Command::new("mvn").args(fetch).current_dir(source("amqp-java")))?;
        let classes = format!("{}/*", place.display());
        built(
            Command::new("javac")
                .args(["-cp", &classes, "-d"])
                .arg(&place)
                .arg("Bench.java")
                .current_dir(source("amqp-java")),
        )?;
    }
    let mut command = Command::new("java");
    command.arg("-cp").arg(format!("{0}:{0}/*", place.display())).arg("Bench");
    Ok(command)
}

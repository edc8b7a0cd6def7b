//! Running the parts of a chore: each named, timed, and counted when it fails.

use std::ffi::OsStr;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{Outcome, root};

/// The steps of one chore. A failed step does not stop the next ones: one run shows all that is wrong.
pub(crate) struct Steps<'a> {
    only: &'a [String],
    times: Vec<(&'static str, Duration, Outcome)>,
    started: Instant,
}

impl<'a> Steps<'a> {
    /// Steps that run all, or, if `only` names some, only these.
    pub(crate) fn new(only: &'a [String]) -> Self {
        Steps { only, times: Vec::new(), started: now() }
    }

    /// Runs one step and remembers how long it took and how it ended.
    pub(crate) fn run(&mut self, name: &'static str, step: impl FnOnce() -> Outcome) {
        if !self.only.is_empty() && !self.only.iter().any(|wanted| wanted == name) {
            return;
        }
        eprintln!("\n=== {name}");
        let started = now();
        let outcome = step();
        if let Err(problem) = &outcome {
            eprintln!("=== {name}: {problem}");
        }
        self.times.push((name, started.elapsed(), outcome));
    }

    /// Prints the table of steps; an error if one failed or none had a name that was asked for.
    pub(crate) fn finish(self) -> Outcome {
        if self.times.is_empty() {
            return Err(format!("no step is called {}", self.only.join(" or ")));
        }
        eprintln!("\n=== summary");
        for (name, time, outcome) in &self.times {
            let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
            eprintln!("{name:<12} {:>7.1} s  {verdict}", time.as_secs_f64());
        }
        eprintln!("{:<12} {:>7.1} s", "total", self.started.elapsed().as_secs_f64());
        let failed: Vec<&str> =
            self.times.iter().filter(|(_, _, outcome)| outcome.is_err()).map(|(name, ..)| *name).collect();
        if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
    }
}

/// A program to run in the root of the workspace.
pub(crate) struct Program(Command);

/// `program`, to be run in the root of the workspace with this process's output.
pub(crate) fn command(program: &str) -> Program {
    let mut command = Command::new(program);
    command.current_dir(root());
    Program(command)
}

impl Program {
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.0.args(arguments);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    pub(crate) fn directory(mut self, directory: &std::path::Path) -> Self {
        self.0.current_dir(directory);
        self
    }

    /// Runs it to its end; an error unless it exits with 0.
    pub(crate) fn run(mut self) -> Outcome {
        let shown = format!("{:?}", self.0).replace('"', "");
        match self.0.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("`{shown}` ended with {status}")),
            Err(error) => Err(format!("`{shown}` could not be started: {error}")),
        }
    }

    /// Runs it to its end and returns what it wrote to its standard output.
    pub(crate) fn output(mut self) -> Result<Vec<u8>, String> {
        self.0.stderr(std::process::Stdio::inherit());
        Ok(self.captured()?.stdout)
    }

    /// Runs it to its end, shows what it wrote to its standard error, and returns that.
    pub(crate) fn errors(mut self) -> Result<String, String> {
        self.0.stdout(std::process::Stdio::inherit()).stderr(std::process::Stdio::piped());
        let text = String::from_utf8_lossy(&self.captured()?.stderr).into_owned();
        eprint!("{text}");
        Ok(text)
    }

    fn captured(mut self) -> Result<std::process::Output, String> {
        let shown = format!("{:?}", self.0).replace('"', "");
        match self.0.output() {
            Ok(output) if output.status.success() => Ok(output),
            Ok(output) => {
                eprint!("{}", String::from_utf8_lossy(&output.stderr));
                Err(format!("`{shown}` ended with {}", output.status))
            }
            Err(error) => Err(format!("`{shown}` could not be started: {error}")),
        }
    }
}

/// Runs cargo in the root of the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Outcome {
    command("cargo").args(arguments).run()
}

#[expect(clippy::disallowed_methods, reason = "the time a step takes is what is shown")]
fn now() -> Instant {
    Instant::now()
}

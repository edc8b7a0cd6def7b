//! Running the parts of a chore: each named, timed, and counted when it fails.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::{Outcome, root};

/// The longest that one program may run where nobody watches: several times what the tests take on two cores. A
/// test that hangs then fails its step, after libtest has named it, and the next steps still run.
const TIME_MAX: Duration = Duration::from_secs(25 * 60);

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

    /// Whether a step of this name is to run.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == name)
    }

    /// Runs one step and remembers how long it took and how it ended.
    pub(crate) fn run(&mut self, name: &'static str, step: impl FnOnce() -> Outcome) {
        if !self.has(name) {
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

/// A program to run in the root of the workspace, and how long it may take where nobody watches.
pub(crate) struct Program(Command, Option<Duration>);

/// `program`, to be run in the root of the workspace with this process's output.
pub(crate) fn command(program: &str) -> Program {
    let mut command = Command::new(program);
    command.current_dir(root());
    Program(command, Some(TIME_MAX))
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

    /// Lets it run as long as it takes.
    pub(crate) fn unhurried(mut self) -> Self {
        self.1 = None;
        self
    }

    /// Runs it to its end; an error unless it exits with 0.
    pub(crate) fn run(self) -> Outcome {
        self.ended().map(drop)
    }

    /// Runs it to its end and returns what it wrote to its standard output.
    pub(crate) fn output(mut self) -> Result<Vec<u8>, String> {
        self.0.stdout(Stdio::piped());
        Ok(self.ended()?.stdout)
    }

    /// Runs it to its end, shows what it wrote to its standard error, and returns that.
    pub(crate) fn errors(mut self) -> Result<String, String> {
        self.0.stderr(Stdio::piped());
        let text = String::from_utf8_lossy(&self.ended()?.stderr).into_owned();
        eprint!("{text}");
        Ok(text)
    }

    fn ended(mut self) -> Result<Output, String> {
        let shown = format!("{:?}", self.0).replace('"', "");
        // At a terminal its user ends what hangs, and Ctrl-C has to reach all of it.
        let limit = self.1.filter(|_| !std::io::stdin().is_terminal());
        if limit.is_some() {
            self.0.process_group(0);
        }
        let started = self.0.spawn().map_err(|error| format!("`{shown}` could not be started: {error}"))?;
        let (output, cut) = match limit {
            Some(limit) => within(started, limit),
            None => (started.wait_with_output(), false),
        };
        let output = output.map_err(|error| format!("`{shown}` was lost: {error}"))?;
        if output.status.success() {
            return Ok(output);
        }
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        Err(if cut {
            let minutes = TIME_MAX.as_secs() / 60;
            format!(
                "`{shown}` had not ended after {minutes} minutes; its last lines name the test that hangs"
            )
        } else {
            format!("`{shown}` ended with {}", output.status)
        })
    }
}

/// Waits for the leader of a process group, and kills the whole group when its time is over; whether that was so.
fn within(leader: Child, limit: Duration) -> (std::io::Result<Output>, bool) {
    let group = format!("-{}", leader.id());
    let (done, waited) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let over = waited.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
        if over {
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        }
        over
    });
    let output = leader.wait_with_output();
    drop(done);
    (output, watch.join().unwrap_or(false))
}

/// A run of cargo that began before its step, at the lowest priority. Whether it did well is for the step to say, by running the
/// same again: what is built already costs nothing then.
pub(crate) struct Ahead(Option<Child>);

impl Ahead {
    pub(crate) fn cargo(arguments: &[&str]) -> Ahead {
        let mut command = Command::new("nice");
        command.args(["-n", "19", "cargo"]).args(arguments).current_dir(root());
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ahead(quiet.spawn().ok())
    }

    pub(crate) fn join(self) {
        if let Some(mut run) = self.0 {
            let _ = run.wait();
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

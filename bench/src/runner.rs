//! Rounds: every contestant in a process of its own, in turns, so that what disturbs the machine hits all alike.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::case::{Case, Contestant, Role, Scale};
use crate::clock;

/// How the cases of a section are run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) section: &'static str,
    pub(crate) rounds: u32,
    pub(crate) scale: Scale,
}

/// A contestant that takes longer than this hangs.
const TIME_MAX: Duration = Duration::from_secs(120);
const TIME_MAX_FULL: Duration = Duration::from_secs(1_800);

/// What a contestant's process prints.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Sample(BTreeMap<String, f64>),
    Absent(String),
}

/// One contestant's figures, a value a round and metric.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) name: &'static str,
    #[serde(serialize_with = "role")]
    pub(crate) role: Role,
    pub(crate) rounds: Vec<BTreeMap<String, f64>>,
    pub(crate) absent: Option<String>,
}

fn role<S: serde::Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match role {
        Role::Floor => "floor",
        Role::Peer => "peer",
        Role::Ours => "ours",
    })
}

/// A case's figures.
#[derive(Debug, Serialize)]
pub(crate) struct Measurements {
    pub(crate) contestants: Vec<Measured>,
    /// How many cores others kept busy meanwhile, on average.
    pub(crate) foreign_cores: f64,
}

impl Measurements {
    pub(crate) fn of(&self, name: &str) -> Option<&Measured> {
        self.contestants.iter().find(|measured| measured.name == name)
    }
}

/// Measures a case.
pub(crate) fn run(plan: &Plan, case: &Case) -> Result<Measurements, String> {
    let mut contestants: Vec<_> = case
        .contestants
        .iter()
        .map(|contestant| Measured {
            name: contestant.name,
            role: contestant.role,
            rounds: Vec::new(),
            absent: None,
        })
        .collect();
    let load = Load::now();
    for round in 0..plan.rounds {
        // There and back again, so that a drift of the machine favours nobody.
        let order: Vec<usize> = match round % 2 {
            0 => (0..contestants.len()).collect(),
            _ => (0..contestants.len()).rev().collect(),
        };
        for at in order {
            let measured = &mut contestants[at];
            if measured.absent.is_some() {
                continue;
            }
            match start(plan, case.name, measured.name)? {
                Answer::Sample(sample) => measured.rounds.push(sample),
                Answer::Absent(why) => measured.absent = Some(why),
            }
        }
    }
    Ok(Measurements { contestants, foreign_cores: load.foreign_cores() })
}

/// Runs one contestant in a process of its own, so that it neither inherits another's heap nor leaves it its own.
fn start(plan: &Plan, case: &str, contestant: &str) -> Result<Answer, String> {
    let place = format!("{} / {case} / {contestant}", plan.section);
    let program = std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
    let mut child = Command::new(program)
        .args(["contestant", plan.section, case, contestant, plan.scale.name()])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{place}: starting its process: {error}"))?;
    let mut pipe = child.stdout.take().expect("it is piped");
    let child = Mutex::new(child);
    let limit = if plan.scale == Scale::Full { TIME_MAX_FULL } else { TIME_MAX };
    let mut answer = Vec::new();
    // Watched from here and not by a thread of the contestant's own: an allocator takes its locks from the second
    // thread on, and a case for one thread would measure them.
    let (read, late) = std::thread::scope(|scope| {
        let (done, watch) = sync_channel::<()>(1);
        let child = &child;
        let watching = scope.spawn(move || {
            let late = watch.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
            late && child.lock().is_ok_and(|mut child| child.kill().is_ok())
        });
        let read = pipe.read_to_end(&mut answer);
        drop(done);
        (read, watching.join().unwrap_or(false))
    });
    if late {
        return Err(format!("{place}: not done after {} s", limit.as_secs()));
    }
    read.map_err(|error| format!("{place}: reading its answer: {error}"))?;
    let mut child = child.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let status = child.wait().map_err(|error| format!("{place}: waiting for its process: {error}"))?;
    if !status.success() {
        return Err(format!("{place}: its process ended with {status}; what it said is above"));
    }
    serde_json::from_slice(&answer)
        .map_err(|error| format!("{place}: its answer {:?}: {error}", String::from_utf8_lossy(&answer)))
}

/// The other side of [`start`].
pub(crate) fn contest(section: &str, case: &str, contestant: &str, scale: &str) -> Result<ExitCode, String> {
    let place = format!("{section} / {case} / {contestant}");
    let (_, scale) = *Scale::ALL
        .iter()
        .find(|(name, _)| *name == scale)
        .ok_or_else(|| format!("no scale is called `{scale}`"))?;
    let cases = crate::section(section).ok_or_else(|| format!("no section is called `{section}`"))?;
    let found = cases
        .iter()
        .find(|found| found.name == case)
        .and_then(|case| case.contestants.iter().find(|found| found.name == contestant));
    let Some(Contestant { run, .. }) = found else {
        return Err(format!("{place}: no such contestant"));
    };
    let answer = match run(scale) {
        Ok(sample) => Answer::Sample(sample.0),
        Err(why) => Answer::Absent(why),
    };
    let text = serde_json::to_vec(&answer).map_err(|error| error.to_string())?;
    std::io::stdout().write_all(&text).map_err(|error| format!("writing the answer: {error}"))?;
    Ok(ExitCode::SUCCESS)
}

/// What the machine's cores did, to tell how much of it was others' work.
struct Load {
    at: std::time::Instant,
    /// Busy time of all cores, and of our own ended children, in ticks of 10 ms.
    busy: u64,
    own: u64,
}

impl Load {
    fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let cpu: Vec<u64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        // user nice system idle iowait irq softirq steal: all but the two that wait.
        let busy = cpu.iter().take(8).sum::<u64>() - cpu.iter().skip(3).take(2).sum::<u64>();
        let own = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name may hold spaces; the numbers follow its closing bracket, `utime` being the 12th.
        let fields = own.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let own = fields.skip(11).take(4).map(|field| field.parse::<u64>().unwrap_or(0)).sum();
        Load { at: clock::now(), busy, own }
    }

    fn foreign_cores(&self) -> f64 {
        let now = Load::now();
        let ticks = (now.busy - self.busy).saturating_sub(now.own - self.own);
        ticks as f64 / 100.0 / (now.at - self.at).as_secs_f64().max(0.01)
    }
}

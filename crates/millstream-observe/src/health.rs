//! Whether the process is well, and if not, why.

use serde::Serialize;

use crate::{RunSnapshot, RunState};

/// Whether items are accepted, with the reasons if not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Whether every run accepts items.
    pub ready: bool,
    /// A sentence for each run that does not, naming it.
    pub reasons: Vec<String>,
}

impl Health {
    /// The health of a process with these runs. One without any run accepts nothing, so it is not ready.
    ///
    /// ```
    /// use millstream_observe::{Health, RunSnapshot, RunState};
    ///
    /// let run = |state| RunSnapshot { name: "flights".into(), state, ..RunSnapshot::default() };
    /// assert!(Health::of(&[run(RunState::Running)]).ready);
    /// let health = Health::of(&[run(RunState::Draining)]);
    /// assert_eq!(health.reasons, ["flights is draining: it accepts no more items"]);
    /// ```
    pub fn of(runs: &[RunSnapshot]) -> Health {
        let mut reasons: Vec<String> = runs.iter().filter_map(reason).collect();
        if runs.is_empty() {
            reasons.push("no run has been started".into());
        }
        Health { ready: reasons.is_empty(), reasons }
    }
}

fn reason(run: &RunSnapshot) -> Option<String> {
    let name = &run.name;
    match &run.state {
        RunState::Running => None,
        RunState::Starting => Some(format!("{name} is starting")),
        RunState::Draining => Some(format!("{name} is draining: it accepts no more items")),
        RunState::Completed => Some(format!("{name} has completed")),
        RunState::Failed(reason) => Some(format!("{name} has failed: {reason}")),
    }
}

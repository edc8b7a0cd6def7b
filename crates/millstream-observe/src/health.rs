//! Whether the process is well, and if not, why.

use serde::Serialize;

use crate::{BrokerSnapshot, RunSnapshot, RunState};

/// Whether items are accepted, with the reasons if not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Whether every run accepts items, and every broker is there to take and to give them.
    pub ready: bool,
    /// A sentence for each run that does not, and for each broker that is not, naming it.
    pub reasons: Vec<String>,
}

impl Health {
    /// The health of a process with these runs and their brokers. One without any run accepts nothing, so it is not ready;
    /// nor is one with a broker that is away or takes nothing, for which its runs wait.
    ///
    /// ```
    /// use millstream_observe::{BrokerSnapshot, Health, RunSnapshot, RunState};
    ///
    /// let run = |state| RunSnapshot { name: "flights".into(), state, ..RunSnapshot::default() };
    /// assert!(Health::of(&[run(RunState::Running)], &[]).ready);
    /// let health = Health::of(&[run(RunState::Draining)], &[]);
    /// assert_eq!(health.reasons, ["flights is draining: it accepts no more items"]);
    ///
    /// let refusing = RunSnapshot { refusing: Some("the disk is full".into()), ..run(RunState::Running) };
    /// assert_eq!(Health::of(&[refusing], &[]).reasons, ["flights refuses items: the disk is full"]);
    ///
    /// let away = BrokerSnapshot { broker: "amqp://host".into(), away: true, ..BrokerSnapshot::default() };
    /// let health = Health::of(&[run(RunState::Running)], &[away]);
    /// assert_eq!(health.reasons, ["the broker amqp://host is out of reach: what needs it waits"]);
    ///
    /// let full = BrokerSnapshot { broker: "amqp://host".into(), blocked: Some("low on memory".into()), ..Default::default() };
    /// let health = Health::of(&[run(RunState::Running)], &[full]);
    /// assert_eq!(health.reasons, ["the broker amqp://host takes nothing (low on memory): what is published waits"]);
    /// ```
    pub fn of(runs: &[RunSnapshot], brokers: &[BrokerSnapshot]) -> Health {
        let mut reasons: Vec<String> = runs.iter().filter_map(reason).collect();
        let away = brokers.iter().filter(|broker| broker.away);
        reasons.extend(
            away.map(|broker| format!("the broker {} is out of reach: what needs it waits", broker.broker)),
        );
        let blocked = brokers.iter().filter(|broker| !broker.away);
        reasons.extend(blocked.filter_map(|BrokerSnapshot { broker, blocked, .. }| {
            let why = blocked.as_ref()?;
            Some(format!("the broker {broker} takes nothing ({why}): what is published waits"))
        }));
        if runs.is_empty() {
            reasons.push("no run has been started".into());
        }
        Health { ready: reasons.is_empty(), reasons }
    }
}

fn reason(run: &RunSnapshot) -> Option<String> {
    let name = &run.name;
    match &run.state {
        RunState::Running => run.refusing.as_ref().map(|why| format!("{name} refuses items: {why}")),
        RunState::Starting => Some(format!("{name} is starting")),
        RunState::Draining => Some(format!("{name} is draining: it accepts no more items")),
        RunState::Completed => Some(format!("{name} has completed")),
        RunState::Failed(reason) => Some(format!("{name} has failed: {reason}")),
    }
}

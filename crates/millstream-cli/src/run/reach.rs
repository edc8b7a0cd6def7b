//! Brokers that are lost or take nothing while runs wait for them, and come back, and runs that refuse items for a while.

use std::collections::BTreeSet;
use std::time::Duration;

use millstream_observe::{BrokerSnapshot, RunSnapshot, RunState};

/// How often they are looked at. One that is away for less is not told: its connection was made again at once.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// Knows which brokers are out of reach or blocked and which runs refuse items, so that each is told once.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    away: BTreeSet<String>,
    blocked: BTreeSet<String>,
    refusing: BTreeSet<String>,
}

impl Reach {
    /// What is to be told of the brokers and runs as they are now.
    pub(crate) fn look(&mut self, brokers: &[BrokerSnapshot], runs: &[RunSnapshot]) -> Vec<String> {
        let mut told = Vec::new();
        for BrokerSnapshot { broker, away, blocked, .. } in brokers {
            match blocked {
                None if self.blocked.remove(broker) && !away => {
                    told.push(format!("the broker {broker} takes messages again"));
                }
                Some(why) if self.blocked.insert(broker.clone()) => told.push(format!(
                    "warning: the broker {broker} takes nothing for now ({why}); what is published waits"
                )),
                _ => {}
            }
            if !away {
                if self.away.remove(broker) {
                    told.push(format!("the broker {broker} is back"));
                }
            } else if self.away.insert(broker.clone()) {
                told.push(format!(
                    "warning: the broker {broker} is out of reach; what needs it waits, and goes on when it is back"
                ));
            }
        }
        for RunSnapshot { name, refusing, state, .. } in runs {
            match refusing {
                // One that ends accepts nothing any more.
                None if self.refusing.remove(name) && *state == RunState::Running => {
                    told.push(format!("pipeline `{name}` is ready for items again"))
                }
                Some(why) if self.refusing.insert(name.clone()) => {
                    told.push(format!("warning: pipeline `{name}` refuses items: {why}"));
                }
                _ => {}
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_told_once_when_it_is_lost_and_once_when_it_is_back() {
        let with = |away| [BrokerSnapshot { broker: "amqp://h".into(), away, ..BrokerSnapshot::default() }];
        let mut reach = Reach::default();
        let mut look = |away| reach.look(&with(away), &[]);
        assert!(look(false).is_empty() && look(false).is_empty());
        let lost = look(true);
        assert!(lost.len() == 1 && lost[0].contains("amqp://h is out of reach"), "{lost:?}");
        assert!(look(true).is_empty());
        assert_eq!(look(false), ["the broker amqp://h is back"]);
        assert!(look(false).is_empty());
    }

    #[test]
    fn a_broker_that_takes_nothing_is_told_once_and_once_when_it_does() {
        let with = |blocked: Option<&str>| {
            let blocked = blocked.map(str::to_owned);
            [BrokerSnapshot { broker: "amqp://h".into(), blocked, ..BrokerSnapshot::default() }]
        };
        let mut reach = Reach::default();
        let mut look = |blocked| reach.look(&with(blocked), &[]);
        assert!(look(None).is_empty());
        let told = look(Some("low on memory"));
        assert_eq!(
            told,
            ["warning: the broker amqp://h takes nothing for now (low on memory); what is published waits"]
        );
        assert!(look(Some("low on disk")).is_empty());
        assert_eq!(look(None), ["the broker amqp://h takes messages again"]);
        assert!(look(None).is_empty());
    }

    #[test]
    fn a_run_that_refuses_items_is_told_once_and_once_when_it_accepts_them() {
        let with = |refusing: Option<&str>, state| {
            let refusing = refusing.map(str::to_owned);
            [RunSnapshot { name: "p".into(), refusing, state, ..RunSnapshot::default() }]
        };
        let mut reach = Reach::default();
        let mut look = |refusing, state| reach.look(&[], &with(refusing, state));
        assert!(look(None, RunState::Running).is_empty());
        for end in [RunState::Draining, RunState::Failed("x".into()), RunState::Running] {
            let told = look(Some("the disk is full"), RunState::Running);
            assert_eq!(told, ["warning: pipeline `p` refuses items: the disk is full"]);
            assert!(look(Some("the disk is still full"), RunState::Running).is_empty());
            let told = look(None, end.clone());
            let ready: &[&str] = &["pipeline `p` is ready for items again"];
            assert_eq!(told, if end == RunState::Running { ready } else { &[] }, "{end:?}");
            assert!(look(None, RunState::Running).is_empty());
        }
    }
}

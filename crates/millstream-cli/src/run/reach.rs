//! Brokers that are lost and come back while runs wait for them.

use std::collections::BTreeSet;
use std::time::Duration;

use millstream_observe::BrokerSnapshot;

/// How often they are looked at. One that is away for less is not told: its connection was made again at once.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// Knows which brokers are out of reach, so that each is told once.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    away: BTreeSet<String>,
}

impl Reach {
    /// What is to be told of the brokers as they are now.
    pub(crate) fn look(&mut self, brokers: &[BrokerSnapshot]) -> Vec<String> {
        let mut told = Vec::new();
        for BrokerSnapshot { broker, away, .. } in brokers {
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
        assert!(reach.look(&with(false)).is_empty() && reach.look(&with(false)).is_empty());
        let lost = reach.look(&with(true));
        assert!(lost.len() == 1 && lost[0].contains("amqp://h is out of reach"), "{lost:?}");
        assert!(reach.look(&with(true)).is_empty());
        assert_eq!(reach.look(&with(false)), ["the broker amqp://h is back"]);
        assert!(reach.look(&with(false)).is_empty());
    }
}

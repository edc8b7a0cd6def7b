//! Routing a batch: which messages go to which queues, and which are refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_message::{Address, BrokerError, BrokerErrorKind, Publish, PublishOutcome, Refusal, Returned};

use crate::exchange::{Route, Topology};
use crate::queue::Queue;
use crate::run::size_of;
use crate::wire;

/// One queue's part of a batch.
pub(crate) struct Target {
    pub(crate) queue: Arc<Queue>,
    /// Places in the batch, as ranges in order.
    pub(crate) picks: Vec<(u32, u32)>,
    /// Identity of the first picked message; the others follow.
    pub(crate) first_seq: u64,
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    /// Whether room was reserved in the queue.
    reserved: bool,
}

/// What becomes of a batch. Dropping it gives back the room it reserved.
pub(crate) struct Plan {
    pub(crate) targets: Vec<Target>,
    pub(crate) others: BTreeMap<usize, PublishOutcome>,
}

impl Target {
    fn pick(&mut self, at: u32, bytes: u64) {
        match self.picks.last_mut() {
            Some((_, to)) if *to == at => *to += 1,
            _ => self.picks.push((at, at + 1)),
        }
        self.count += 1;
        self.bytes += bytes;
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = u32> + '_ {
        self.picks.iter().flat_map(|&(from, to)| from..to)
    }

    /// The room now belongs to stored messages.
    pub(crate) fn keep(&mut self) {
        self.reserved = false;
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.reserved && self.count > 0 {
            self.queue.unreserve(self.count, self.bytes);
        }
    }
}

/// The plan of a batch.
pub(crate) fn plan(
    topology: &Topology,
    publishes: &[Publish],
    atomic: bool,
    message_bytes_max: usize,
) -> Plan {
    let mut plan = Plan { targets: Vec::new(), others: BTreeMap::new() };
    let mut last: Option<(&Address, Vec<Arc<Queue>>)> = None;
    for (at, publish) in publishes.iter().enumerate() {
        let size = size_of(publish);
        if size as usize > message_bytes_max {
            let refusal = Refusal::TooLarge { len: u64::from(size), max: message_bytes_max as u64 };
            plan.others.insert(at, PublishOutcome::Refused(refusal));
            continue;
        }
        if !publish.message.is_plain() && wire::too_deep(&publish.message.properties().headers) {
            let text = "its headers nest deeper than 63 levels";
            let refusal = Refusal::Broker(BrokerError::new(BrokerErrorKind::Invalid, text));
            plan.others.insert(at, PublishOutcome::Refused(refusal));
            continue;
        }
        let known = last.as_ref().is_some_and(|(to, _)| to.same(&publish.to) || **to == publish.to);
        if !known {
            match topology.route(&publish.to, &publish.message) {
                Route::NoExchange => {
                    let exchange = publish.to.exchange().to_owned();
                    plan.others.insert(at, PublishOutcome::Refused(Refusal::NoExchange { exchange }));
                    continue;
                }
                Route::Internal => {
                    let text = format!(
                        "exchange `{}` is internal: only other exchanges lead to it",
                        publish.to.exchange()
                    );
                    let refusal = Refusal::Broker(BrokerError::new(BrokerErrorKind::Invalid, text));
                    plan.others.insert(at, PublishOutcome::Refused(refusal));
                    continue;
                }
                Route::Queues { queues, .. } if queues.is_empty() => {
                    plan.others.insert(at, unroutable(publish));
                    continue;
                }
                Route::Queues { queues, by_headers: true } => {
                    plan.add(at, u64::from(size), &queues);
                    continue;
                }
                Route::Queues { queues, .. } => last = Some((&publish.to, queues)),
            }
        }
        let (_, queues) = last.as_ref().expect("the address was routed");
        plan.add(at, u64::from(size), queues);
    }
    if atomic && let Some(&index) = plan.others.keys().next() {
        plan.targets.clear();
        for at in 0..publishes.len() {
            plan.others.entry(at).or_insert(PublishOutcome::Refused(Refusal::Atomic { index }));
        }
    }
    plan
}

fn unroutable(publish: &Publish) -> PublishOutcome {
    let reason = match publish.to.exchange() {
        "" => format!("there is no queue `{}`; declare it first", publish.to.key()),
        exchange => format!("no queue is bound to exchange `{exchange}` for key `{}`", publish.to.key()),
    };
    PublishOutcome::Unroutable(Box::new(Returned { publish: publish.clone(), reason }))
}

impl Plan {
    /// Adds a message for all of these queues, or for none when one refuses it.
    fn add(&mut self, at: usize, bytes: u64, queues: &[Arc<Queue>]) {
        for (done, queue) in queues.iter().enumerate() {
            if !queue.may_refuse() {
                continue;
            }
            if let Err(limit) = queue.reserve(bytes) {
                for earlier in queues[..done].iter().filter(|queue| queue.may_refuse()) {
                    earlier.unreserve(1, bytes);
                }
                let refusal = Refusal::Full { queue: queue.name().to_owned(), limit };
                self.others.insert(at, PublishOutcome::Refused(refusal));
                return;
            }
        }
        let at = u32::try_from(at).expect("a batch has fewer than four billion messages");
        for queue in queues {
            let known = self.targets.iter().position(|target| Arc::ptr_eq(&target.queue, queue));
            let target = match known {
                Some(known) => &mut self.targets[known],
                None => {
                    let reserved = queue.may_refuse();
                    let queue = queue.clone();
                    self.targets.push(Target {
                        queue,
                        picks: Vec::new(),
                        first_seq: 0,
                        count: 0,
                        bytes: 0,
                        reserved,
                    });
                    self.targets.last_mut().expect("pushed just now")
                }
            };
            target.pick(at, bytes);
        }
    }

    /// Reserves what needed no checking, and takes the identities of all messages.
    pub(crate) fn commit(&mut self) {
        for target in &mut self.targets {
            target.first_seq = target.queue.begin(target.count, target.bytes, !target.reserved);
            target.reserved = true;
        }
    }
}

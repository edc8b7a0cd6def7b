//! What is asked of a queue as a whole: its figures, its messages, its end.

use std::sync::Arc;
use std::task::Waker;

use millstream_message::{BrokerError, Browsed, Publish, QueueStats};

use super::Queue;
use crate::run::Items;
use crate::state::State;

impl Queue {
    pub(crate) fn stats(&self) -> QueueStats {
        let state = self.lock();
        QueueStats {
            name: self.name().to_owned(),
            ready: state.ready.items,
            ready_bytes: state.ready.bytes,
            unacked: state.unacked.count.items,
            unacked_bytes: state.unacked.count.bytes,
            delayed: state.waiting.items,
            delayed_bytes: state.waiting.bytes,
            consumers: state.sessions.iter().filter(|session| !session.stopped).count() as u64,
        }
    }

    /// Up to `max` ready messages after the first `skip`, in the order of delivery.
    pub(crate) fn browse(&self, mut skip: u64, max: usize) -> Result<Vec<Browsed>, BrokerError> {
        enum Seen {
            Here(Publish),
            Out(u64),
        }
        let mut seen: Vec<(Seen, u32)> = Vec::new();
        let state = self.lock();
        'runs: for run in state.levels.iter().rev().flatten() {
            let count = u64::from(run.count);
            if skip >= count {
                skip -= count;
                continue;
            }
            let from = u32::try_from(std::mem::take(&mut skip)).expect("less than the run's count");
            for i in from..run.count {
                if seen.len() >= max {
                    break 'runs;
                }
                let one = match &run.items {
                    Items::Here { batch, start } => Seen::Here(batch.publishes[(start + i) as usize].clone()),
                    Items::Out { .. } => Seen::Out(run.slot(i).0),
                };
                seen.push((one, run.traits.deliveries));
            }
        }
        drop(state);
        let mut out = Vec::with_capacity(seen.len());
        for (one, deliveries) in seen {
            let publish = match (one, &self.shared.journal) {
                (Seen::Here(publish), _) => Some(publish),
                (Seen::Out(position), Some(journal)) => journal.read(&[position])?.pop().flatten(),
                (Seen::Out(_), None) => None,
            };
            out.extend(publish.map(|Publish { to, message }| Browsed { message, address: to, deliveries }));
        }
        Ok(out)
    }

    /// Takes every ready message off the queue and returns how many.
    pub(crate) fn purge(self: &Arc<Self>) -> u64 {
        let mut gone = Vec::new();
        let mut wakers = Vec::new();
        let mut state = self.lock();
        for level in 0..state.levels.len() {
            while let Some(run) = state.pop_run(level) {
                self.forget(&mut state, &run);
                gone.push(run);
            }
        }
        if state.is_empty() {
            state.wakers(&mut wakers);
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        gone.iter().map(|run| u64::from(run.count)).sum()
    }

    /// Ends the queue: nothing is in it any more and its consumers end. Returns how many messages were ready.
    pub(crate) fn delete(self: &Arc<Self>) -> u64 {
        let mut wakers = Vec::new();
        let mut state = self.lock();
        state.deleted = true;
        state.wakers(&mut wakers);
        let ready = state.ready.items;
        let runs = state.levels.iter().flatten().chain(state.delayed.values());
        let runs: u64 = runs.map(|run| run.weight).sum();
        self.refund(runs + state.unacked.weight);
        let old = std::mem::replace(&mut *state, State::new(&self.spec));
        state.deleted = true;
        state.next_seq = old.next_seq;
        state.reserved = old.reserved;
        drop(state);
        drop(old);
        wakers.into_iter().for_each(Waker::wake);
        self.sent.notify_waiters();
        ready
    }

    /// Wakes every consumer, so that it sees that the broker is closed.
    pub(crate) fn wake_all(&self) {
        let mut wakers = Vec::new();
        self.lock().wakers(&mut wakers);
        wakers.into_iter().for_each(Waker::wake);
        self.sent.notify_waiters();
    }
}

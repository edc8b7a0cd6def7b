//! One queue: its state behind its lock, and what publishers and the upkeep do with it.

mod leaving;
mod loading;
mod looking;

use std::sync::Arc;
use std::task::Waker;

use millstream_message::dead::DeadReason;
use millstream_message::{BrokerError, BrokerErrorKind, Overflow, Queue as Spec};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::clock::NEVER;
use crate::plan::Target;
use crate::run::{Items, Run, Stored, Taken, Traits, size_of, weight_of};
use crate::shared::Shared;
use crate::state::State;

/// One queue.
pub(crate) struct Queue {
    pub(crate) id: u32,
    pub(crate) spec: Spec,
    /// Whether it is in the log: declared durable, in a broker that has one.
    pub(crate) durable: bool,
    pub(crate) shared: Arc<Shared>,
    state: Mutex<State>,
    /// Rung when dead letters have left.
    pub(crate) sent: Notify,
}

impl Queue {
    pub(crate) fn new(id: u32, spec: Spec, shared: Arc<Shared>) -> Queue {
        let durable = spec.durable && shared.journal.is_some();
        let state = Mutex::new(State::new(&spec));
        Queue { id, spec, durable, shared, state, sent: Notify::new() }
    }

    /// The queue with its state as it was recovered.
    pub(crate) fn recovered(id: u32, spec: Spec, shared: Arc<Shared>, state: State) -> Queue {
        Queue { state: Mutex::new(state), ..Queue::new(id, spec, shared) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    pub(crate) fn gone(&self) -> BrokerError {
        BrokerError::new(BrokerErrorKind::NotFound, format!("queue `{}` was deleted", self.name()))
    }

    // --- Publishing -----------------------------------------------------------------------------------------

    /// Whether single publishes may be refused here.
    pub(crate) fn may_refuse(&self) -> bool {
        self.spec.overflow == Overflow::Reject
            && (self.spec.max_items.is_some() || self.spec.max_bytes.is_some())
    }

    /// Reserves room for one message; the limit it would break otherwise.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<(), String> {
        let mut state = self.lock();
        if let Some(limit) = state.over(&self.spec, bytes) {
            return Err(limit);
        }
        state.reserved.add(1, bytes);
        Ok(())
    }

    /// Gives a reservation back.
    pub(crate) fn unreserve(&self, items: u64, bytes: u64) {
        let mut wakers = Vec::new();
        let mut state = self.lock();
        state.reserved.sub(items, bytes);
        if state.is_empty() {
            state.wakers(&mut wakers);
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Identities for messages about to be stored; reserves their room unless that was done.
    pub(crate) fn begin(&self, count: u64, bytes: u64, reserve: bool) -> u64 {
        let mut state = self.lock();
        if reserve {
            state.reserved.add(count, bytes);
        }
        let first = state.next_seq;
        state.next_seq += count;
        first
    }

    /// Stores the target's messages of the batch, for which room was reserved.
    pub(crate) fn store(self: &Arc<Self>, batch: &Arc<Stored>, target: &mut Target, now: u64) {
        let mut wakers = Vec::new();
        let mut due = NEVER;
        let mut seq = target.first_seq;
        let mut weight = 0;
        let mut state = self.lock();
        target.keep();
        for &(from, to) in &target.picks {
            for (run, delay) in self.runs(batch, from, to, seq, now) {
                seq += u64::from(run.count);
                state.reserved.sub(u64::from(run.count), run.bytes);
                if state.deleted {
                    continue;
                }
                weight += run.weight;
                if delay > 0 {
                    due = due.min(now + delay);
                    state.insert_delayed(now + delay, run);
                } else {
                    due = due.min(run.traits.expires);
                    state.insert(run);
                }
            }
        }
        self.charge(weight);
        let dropped = self.drop_overflow(&mut state);
        self.put_out_excess(&mut state);
        state.wakers(&mut wakers);
        drop(state);
        drop(dropped);
        wakers.into_iter().for_each(Waker::wake);
        if due != NEVER {
            self.shared.bell.wake_by(due);
        }
    }

    /// Charges the memory of the broker for messages that came into memory.
    pub(crate) fn charge(&self, bytes: u64) {
        self.shared.budget.charge(bytes, self.durable);
    }

    /// Messages have left the memory.
    pub(crate) fn refund(&self, bytes: u64) {
        self.shared.budget.refund(bytes, self.durable);
    }

    /// Leaves to the log alone what is more than the broker may keep in memory.
    pub(crate) fn put_out_excess(&self, state: &mut State) {
        let excess = if self.durable { self.shared.budget.excess() } else { 0 };
        if excess > 0 {
            self.refund(state.put_out(excess));
        }
    }

    /// The picked messages as runs, each with its delay.
    fn runs(&self, batch: &Arc<Stored>, from: u32, to: u32, seq: u64, now: u64) -> Vec<(Run, u64)> {
        let mut runs: Vec<(Run, u64)> = Vec::new();
        for (at, seq) in (from..to).zip(seq..) {
            let publish = &batch.publishes[at as usize];
            let (traits, delay) = Traits::of(&self.spec, &publish.message, now);
            let (bytes, weight) = (u64::from(size_of(publish)), weight_of(publish));
            match runs.last_mut() {
                Some((run, d))
                    if run.traits == traits && *d == delay && run.is_logged() == batch.is_logged(at) =>
                {
                    run.count += 1;
                    run.bytes += bytes;
                    run.weight += weight;
                }
                _ => {
                    let items = Items::Here { batch: batch.clone(), start: at };
                    runs.push((Run { order: seq, seq, count: 1, bytes, weight, traits, items }, delay));
                }
            }
        }
        runs
    }

    /// Drops from the head what is too much; returns bodies to be freed outside the lock.
    fn drop_overflow(self: &Arc<Self>, state: &mut State) -> Vec<Run> {
        let mut dropped = Vec::new();
        while state.overflows(&self.spec) {
            // The oldest of the lowest priority.
            let Some(level) = state.levels.iter().position(|level| !level.is_empty()) else { break };
            if self.dead_letters() {
                match self.pop_level(state, level) {
                    Ok(taken) => self.bury(state, taken, DeadReason::MaxLen, None, None),
                    // It is only in the log, or cannot be read: the upkeep loads it and comes back here.
                    Err(()) => {
                        self.shared.bell.wake_by(0);
                        break;
                    }
                }
                continue;
            }
            let Some(run) = state.levels[level].front_mut() else { break };
            let one = if run.count > 1 { Some(run.split_front(1)) } else { None };
            let run = match one {
                Some(one) => {
                    state.ready.sub(1, one.bytes);
                    one
                }
                None => state.pop_run(level).expect("the level has a head"),
            };
            self.forget(state, &run);
            dropped.push(run);
        }
        dropped
    }

    fn pop_level(&self, state: &mut State, level: usize) -> Result<Taken, ()> {
        let run = state.levels[level].front_mut().ok_or(())?;
        let taken = run.pop().ok_or(())?;
        if run.count == 0 {
            state.levels[level].pop_front();
        }
        state.ready.sub(1, u64::from(taken.size));
        Ok(taken)
    }
}

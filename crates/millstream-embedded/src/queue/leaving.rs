//! Messages leave a queue: settled, given back, expired, dead.

use std::sync::Arc;
use std::task::Waker;

use millstream_message::dead::DeadReason;

use super::Queue;
use crate::clock::NEVER;
use crate::run::{Run, Taken};
use crate::state::{Dead, State};

/// How many dead letters may be on their way before the queue stops delivering and expiring: their bound.
const OUTBOX_MAX: usize = 8192;

/// How many settled ranges may wait before the upkeep is hurried: each takes 16 bytes.
const SETTLED_MAX: usize = 4096;

impl Queue {
    pub(crate) fn dead_letters(&self) -> bool {
        self.spec.dead_letter_exchange.is_some()
    }

    /// A run leaves for good: its memory is given back and its end noted for the log.
    pub(crate) fn forget(self: &Arc<Self>, state: &mut State, run: &Run) {
        self.refund(run.weight);
        if run.is_logged() {
            self.note_settled(state, run.seq..run.seq + u64::from(run.count));
        }
    }

    /// A single message leaves for good.
    pub(crate) fn forget_one(self: &Arc<Self>, state: &mut State, taken: &Taken) {
        self.refund(taken.weight);
        if taken.position != 0 {
            self.note_settled(state, taken.seq..taken.seq + 1);
        }
    }

    /// Notes the end of messages for the log and calls the upkeep to write it.
    pub(crate) fn note_settled(self: &Arc<Self>, state: &mut State, seqs: std::ops::Range<u64>) {
        if !self.durable {
            return;
        }
        let first = state.settled.is_empty() && state.marks.is_empty();
        state.settle(seqs);
        self.call_upkeep(state, first);
    }

    /// Settlements of these consumers are durable now (or never will be): their prefetch is free again.
    pub(crate) fn settlements_landed(&self, sessions: &[(u64, u64)]) {
        let mut wakers = Vec::new();
        let mut state = self.lock();
        for &(id, count) in sessions {
            if let Some(session) = state.session(id) {
                session.undurable -= count;
                wakers.extend(session.waker.take());
            }
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Notes for the log that a message is being delivered.
    pub(crate) fn mark_delivered(self: &Arc<Self>, state: &mut State, taken: &Taken) {
        if taken.position != 0 {
            let first = state.settled.is_empty() && state.marks.is_empty();
            state.mark(taken.seq, taken.traits.deliveries.saturating_add(1), 0);
            self.call_upkeep(state, first);
        }
    }

    /// Notes for the log how often a message was delivered and when it is due again. A count that is not written in
    /// time is too low after a crash, no worse.
    pub(crate) fn mark(self: &Arc<Self>, state: &mut State, taken: &Taken, due: u64) {
        if !self.durable || taken.position == 0 {
            return;
        }
        let first = state.settled.is_empty() && state.marks.is_empty();
        state.mark(taken.seq, taken.traits.deliveries, due);
        self.call_upkeep(state, first);
    }

    fn call_upkeep(self: &Arc<Self>, state: &State, first: bool) {
        if first {
            self.shared.bell.settled(self);
        } else if state.settled.len() >= SETTLED_MAX || state.marks.len() >= SETTLED_MAX {
            self.shared.bell.hurry();
        }
    }

    /// A message dies: to the outbox, or away when the queue has no dead-letter exchange. Counts it as unacked until
    /// it has arrived; the caller has counted it out of where it was.
    pub(crate) fn bury(
        self: &Arc<Self>,
        state: &mut State,
        taken: Taken,
        reason: DeadReason,
        detail: Option<String>,
        stage: Option<String>,
    ) {
        let circles = reason != DeadReason::Rejected
            && millstream_message::dead::circles(&taken.publish.message, self.name());
        if !self.dead_letters() || circles {
            self.forget_one(state, &taken);
            return;
        }
        state.unacked.add(&taken);
        let first = state.outbox.is_empty();
        state.outbox.push_back(Dead { taken, reason, detail, stage });
        if first {
            self.shared.bell.letters(self);
        }
    }

    pub(crate) fn outbox_is_full(state: &State) -> bool {
        state.outbox.len() >= OUTBOX_MAX
    }

    /// Removes what has expired. `false`: something expired must be read from the log first.
    pub(crate) fn expire(self: &Arc<Self>, state: &mut State, now: u64) -> bool {
        while let Some(level) = state.expired_level(now) {
            if !self.dead_letters() {
                let run = state.pop_run(level).expect("its head has expired");
                self.forget(state, &run);
                continue;
            }
            if Self::outbox_is_full(state) {
                // Comes back when letters have left.
                return true;
            }
            match self.pop_level(state, level) {
                Ok(taken) => self.bury(state, taken, DeadReason::Expired, None, None),
                Err(()) => return false,
            }
        }
        true
    }

    /// Brings the queue up to `now`: due messages ready, expired ones out, ended leases back. Returns when to come
    /// again. Called by the upkeep.
    pub(crate) fn tick(self: &Arc<Self>, now: u64) -> u64 {
        loop {
            let mut wakers = Vec::new();
            let mut state = self.lock();
            let ripened = state.ripen(now);
            let returned = self.end_leases(&mut state, now);
            let complete = self.expire(&mut state, now);
            let dropped = self.drop_overflow(&mut state);
            if ripened || returned || state.is_empty() {
                state.wakers(&mut wakers);
            }
            // With a full outbox the head stays expired: the sending of letters calls the next tick.
            let next = if Self::outbox_is_full(&state) { NEVER } else { state.next_due() };
            let load = !complete || (state.overflows(&self.spec) && !Self::outbox_is_full(&state));
            let wanted = if load { self.loadable(&mut state) } else { None };
            drop(state);
            drop(dropped);
            wakers.into_iter().for_each(Waker::wake);
            match wanted {
                None => return next,
                Some(run) => {
                    if self.load(run).is_err() {
                        // Unreadable heads are skipped by `load`; what is left is a failing disk: try again later.
                        return now + 1000;
                    }
                }
            }
        }
    }

    fn end_leases(self: &Arc<Self>, state: &mut State, now: u64) -> bool {
        let mut ended = Vec::new();
        for session in state.sessions.iter_mut().filter(|session| session.options.lease.is_some()) {
            let (first, count) = (session.first_tag, session.held.len());
            for index in 0..count {
                match &session.held[index] {
                    Some(held) if held.until > now => break,
                    Some(_) => ended.extend(session.release(first + index as u64)),
                    None => {}
                }
            }
            session.trim();
        }
        let any = !ended.is_empty();
        self.give_back(state, ended, None);
        any
    }

    /// Whether a message was given back more often than the queue allows.
    pub(crate) fn is_exhausted(&self, taken: &Taken) -> bool {
        self.spec.delivery_limit.is_some_and(|limit| taken.traits.deliveries > limit.get())
    }

    /// Puts deliveries back, now or at `due`; those delivered too often die. The caller has taken them out of their
    /// session; this takes them out of the unacked count.
    pub(crate) fn give_back(self: &Arc<Self>, state: &mut State, taken: Vec<Taken>, due: Option<u64>) {
        let mut runs: Vec<Run> = Vec::new();
        for mut one in taken {
            state.unacked.sub(&one);
            one.traits.deliveries = one.traits.deliveries.saturating_add(1);
            if self.is_exhausted(&one) {
                self.bury(state, one, DeadReason::DeliveryLimit, None, None);
                continue;
            }
            if let Some(due) = due {
                self.mark(state, &one, due);
            }
            match due {
                Some(due) => {
                    one.order = state.next_seq;
                    state.next_seq += 1;
                    state.insert_delayed(due, one.into_run());
                    self.shared.bell.wake_by(due);
                }
                None => runs.push(one.into_run()),
            }
        }
        for run in runs {
            if run.traits.expires != NEVER {
                self.shared.bell.wake_by(run.traits.expires);
            }
            state.insert(run);
        }
        self.put_out_excess(state);
    }
}

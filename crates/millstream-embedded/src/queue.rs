//! One queue: its state behind its lock, and what publishers and the upkeep do with it.

use std::sync::Arc;
use std::task::Waker;

use millstream_message::dead::DeadReason;
use millstream_message::{
    BrokerError, BrokerErrorKind, Browsed, Overflow, Publish, Queue as Spec, QueueStats,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::clock::NEVER;
use crate::plan::Target;
use crate::run::{Items, Run, Stored, Taken, Traits, size_of, weight_of};
use crate::shared::Shared;
use crate::state::{Dead, State};

/// How many dead letters may be on their way before the queue stops delivering and expiring: their bound.
const OUTBOX_MAX: usize = 8192;

/// How many messages are read from the log at once when a consumer comes to them.
const LOAD_ITEMS: u32 = 256;
/// And how many bytes, at least one message.
const LOAD_BYTES: u64 = 1 << 20;

/// How many settled ranges may wait before the upkeep is hurried: each takes 16 bytes.
const SETTLED_MAX: usize = 4096;

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
        self.shared.budget.charge(weight);
        let dropped = self.drop_overflow(&mut state);
        if self.durable {
            let excess = self.shared.budget.excess();
            if excess > 0 {
                self.shared.budget.refund(state.put_out(excess));
            }
        }
        state.wakers(&mut wakers);
        drop(state);
        drop(dropped);
        wakers.into_iter().for_each(Waker::wake);
        if due != NEVER {
            self.shared.bell.wake_by(due);
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

    // --- Leaving the queue --------------------------------------------------------------------------------------

    pub(crate) fn dead_letters(&self) -> bool {
        self.spec.dead_letter_exchange.is_some()
    }

    /// A run leaves for good: its memory is given back and its end noted for the log.
    pub(crate) fn forget(self: &Arc<Self>, state: &mut State, run: &Run) {
        self.shared.budget.refund(run.weight);
        if run.is_logged() {
            self.note_settled(state, run.seq..run.seq + u64::from(run.count));
        }
    }

    /// A single message leaves for good.
    pub(crate) fn forget_one(self: &Arc<Self>, state: &mut State, taken: &Taken) {
        self.shared.budget.refund(taken.weight);
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
    }

    // --- Messages that are only in the log -----------------------------------------------------------------------

    /// The head run to be loaded, when it is only in the log. At most a load's worth of it, the rest split off.
    pub(crate) fn loadable(&self, state: &mut State) -> Option<Run> {
        let level = state.levels.iter().rposition(|level| level.front().is_some_and(|run| !run.is_here()))?;
        let run = state.levels[level].front_mut()?;
        let count = load_count(run);
        if count < run.count {
            let front = run.split_front(count);
            state.levels[level].push_front(front);
        }
        state.levels[level].front().cloned()
    }

    /// Reads the run's messages and puts them in its place, unless it has gone meanwhile. A message whose bytes are
    /// damaged is taken off the queue and counted; the others go on.
    ///
    /// Reads from the disk on this thread: page-cache speed for what is recent, the disk's for the rest.
    pub(crate) fn load(self: &Arc<Self>, run: Run) -> Result<(), BrokerError> {
        let journal = self.shared.journal.as_ref().expect("only a broker with a log puts messages out");
        let positions: Vec<u64> = (0..run.count).map(|i| run.slot(i).0).collect();
        let read = journal.read(&positions)?;
        let mut state = self.lock();
        let level = &mut state.levels[usize::from(run.traits.level)];
        let Some(at) = level.iter().take(64).position(|known| known.seq == run.seq) else { return Ok(()) };
        if level[at].count != run.count || !level[at].items.same(&run.items) {
            return Ok(());
        }
        let old = level.remove(at).expect("it was found there");
        state.ready.sub(u64::from(old.count), old.bytes);
        let intact = read.iter().all(Option::is_some);
        if intact {
            let publishes: Vec<Publish> = read.into_iter().flatten().collect();
            let bytes = publishes.iter().map(|publish| u64::from(size_of(publish))).sum();
            let weight = publishes.iter().map(weight_of).sum();
            self.shared.budget.charge(weight);
            let items = Items::Here { batch: Arc::new(Stored { publishes, positions }), start: 0 };
            state.insert(Run { bytes, weight, items, ..old });
            return Ok(());
        }
        for (at, (publish, position)) in (0..).zip(read.into_iter().zip(positions)) {
            let (order, seq) = (old.order + at, old.seq + at);
            match publish {
                Some(publish) => {
                    let (size, weight) = (size_of(&publish), weight_of(&publish));
                    self.shared.budget.charge(weight);
                    let one = Taken { order, seq, position, size, weight, traits: old.traits, publish };
                    state.insert(one.into_run());
                }
                None => {
                    journal.count_damaged();
                    self.note_settled(&mut state, seq..seq + 1);
                }
            }
        }
        Ok(())
    }

    /// A ready run, at most a load's worth, that begins before this position of the log.
    pub(crate) fn oldest_run(&self, before: u64) -> Option<Run> {
        let mut state = self.lock();
        let old = |run: &Run| run.is_logged() && run.slot(0).0 < before;
        for level in &mut state.levels {
            let Some(at) = level.iter().position(old) else { continue };
            let count = load_count(&level[at]);
            if count < level[at].count {
                let front = level[at].split_front(count);
                level.insert(at, front);
            }
            return level.get(at).cloned();
        }
        None
    }

    /// The run's messages are at these positions now. False when it has changed or gone meanwhile.
    pub(crate) fn moved(&self, run: &Run, positions: Vec<u64>) -> bool {
        let mut state = self.lock();
        let level = &mut state.levels[usize::from(run.traits.level)];
        let Some(at) = level.iter().position(|known| known.seq == run.seq && known.count == run.count) else {
            return false;
        };
        self.shared.budget.refund(level[at].relocate(positions));
        true
    }

    // --- Looking -----------------------------------------------------------------------------------------------------

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
        self.shared.budget.refund(runs + state.unacked.weight);
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

/// How many messages from the front of a run are read from the log at once.
fn load_count(run: &Run) -> u32 {
    let mut count = 0;
    let mut bytes = 0;
    while count < run.count.min(LOAD_ITEMS)
        && (count == 0 || bytes + u64::from(run.slot(count).1) <= LOAD_BYTES)
    {
        bytes += u64::from(run.slot(count).1);
        count += 1;
    }
    count
}

//! Consumers: taking from a queue and settling what was taken.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use millstream_message::dead::DeadReason;
use millstream_message::{
    Acker, BrokerError, BrokerErrorKind, ConsumeOptions, Consumer, ConsumerSource, Delivery, Nack, Prefetch,
    Settle, Settled, StopWhen, Tag,
};

use crate::clock::{NEVER, millis};
use crate::queue::Queue;
use crate::run::Taken;
use crate::state::{Count, Held, Session, State};

/// Starts to consume a queue.
pub(crate) fn consume(queue: &Arc<Queue>, options: ConsumeOptions) -> Result<Consumer, BrokerError> {
    if options.priority != 0 || options.from.is_some() {
        let text = if options.priority != 0 {
            "consumers have no priorities here; leave `priority` out"
        } else {
            "a queue is consumed from its head; leave `from` out, or read a stream"
        };
        return Err(BrokerError::new(
            BrokerErrorKind::Unsupported,
            format!("queue `{}`: {text}", queue.name()),
        ));
    }
    let mut state = queue.lock();
    if state.deleted {
        return Err(queue.gone());
    }
    let others = state.sessions.iter().filter(|session| !session.stopped);
    for other in others {
        if other.options.exclusive || options.exclusive {
            let (name, how) =
                (&other.options.name, if other.options.exclusive { "an exclusive" } else { "a" });
            let name = if name.is_empty() { String::new() } else { format!(" `{name}`") };
            return Err(BrokerError::new(
                BrokerErrorKind::InUse,
                format!(
                    "queue `{}` has {how} consumer{name}; stop it first, or consume without `exclusive`",
                    queue.name()
                ),
            ));
        }
    }
    let id = state.next_session;
    state.next_session += 1;
    state.sessions.push(Session {
        id,
        stop_when_empty: options.stop_when_empty,
        options,
        held: std::collections::VecDeque::new(),
        first_tag: 1,
        unsettled: Count::default(),
        undurable: 0,
        unwritten: 0,
        waker: None,
        stopped: false,
        paused: false,
    });
    drop(state);
    let acker = Acker::new(Arc::new(Handle { queue: queue.clone(), id }));
    let source = Source { queue: queue.clone(), id, acker: acker.clone() };
    Ok(Consumer::new(Box::new(source), acker))
}

/// Takes from the queue.
struct Source {
    queue: Arc<Queue>,
    id: u64,
    acker: Acker,
}

/// What a look at the queue found.
enum Found {
    Some(usize),
    /// The head must be read from the log first.
    Load(crate::run::Run),
    Nothing,
    End,
}

impl ConsumerSource for Source {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        into: &mut Vec<Delivery>,
    ) -> Poll<Result<usize, BrokerError>> {
        let queue = &self.queue;
        loop {
            let mut wakers = Vec::new();
            let mut state = queue.lock();
            if state.deleted {
                return Poll::Ready(Err(queue.gone()));
            }
            let found = if queue.shared.is_closed() { Found::End } else { self.take(&mut state, max, into) };
            let found = match found {
                Found::Nothing => {
                    let empty = state.is_empty();
                    let session = state.session(self.id).expect("a session lives as long as its consumer");
                    if session.stop_when_empty && empty {
                        session.stopped = true;
                        Found::End
                    } else {
                        match &mut session.waker {
                            Some(waker) => waker.clone_from(cx.waker()),
                            none => *none = Some(cx.waker().clone()),
                        }
                        return Poll::Pending;
                    }
                }
                found => found,
            };
            // Whoever stops when the queue is empty must learn that it is.
            if matches!(found, Found::Some(_)) && state.is_empty() {
                let ending = state.sessions.iter_mut().filter(|session| session.stop_when_empty);
                wakers.extend(ending.filter_map(|session| session.waker.take()));
            }
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
            match found {
                Found::Some(count) => return Poll::Ready(Ok(count)),
                Found::End | Found::Nothing => return Poll::Ready(Ok(0)),
                Found::Load(run) => {
                    if let Err(error) = queue.load(run) {
                        return Poll::Ready(Err(error));
                    }
                }
            }
        }
    }
}

impl Source {
    fn take(&self, state: &mut State, max: usize, into: &mut Vec<Delivery>) -> Found {
        let Some(session) = state.session(self.id) else { return Found::End };
        if session.stopped {
            return Found::End;
        }
        if session.paused {
            return Found::Nothing;
        }
        if self.queue.spec.single_active_consumer {
            // One that has stopped has its turn until nothing of it is in hand: what comes back goes before what comes later.
            let first = state.sessions.iter().find(|session| !session.stopped || session.unsettled.items > 0);
            if first.is_some_and(|first| first.id != self.id) {
                return Found::Nothing;
            }
        }
        let Some(session) = state.session(self.id) else { return Found::End };
        let lease = session.options.lease;
        let (items, mut bytes) = session.credit();
        let mut tag = session.next_tag();
        let max = max.min(items);
        // Only queues and consumers with time limits pay for reading the clock.
        let now = if state.expiring || lease.is_some() || !state.delayed.is_empty() {
            self.queue.shared.clock.now()
        } else {
            0
        };
        if !state.delayed.is_empty() {
            state.ripen(now);
        }
        if !self.queue.expire(state, now) {
            return self.queue.loadable(state).map_or(Found::Nothing, Found::Load);
        }
        if Queue::outbox_is_full(state) {
            return Found::Nothing;
        }
        let until = lease.map_or(NEVER, |lease| now.saturating_add(millis(lease)));
        let mut held: Vec<Held> = Vec::with_capacity(max.min(64));
        let mut load = None;
        let mut size = 0;
        while held.len() < max {
            // The prefetch in bytes is looked at before taking, for the next message.
            match state.head() {
                None => break,
                Some(head) if u64::from(head.slot(0).1) > bytes => break,
                Some(head) if now != 0 && head.traits.expires <= now => break,
                Some(_) => {}
            }
            match state.pop() {
                // A message that crashed its consumers comes back from recovery with its count, not through `give_back`.
                Some(Ok(taken)) if self.queue.is_exhausted(&taken) => {
                    self.queue.bury(state, taken, DeadReason::DeliveryLimit, None, None);
                }
                Some(Ok(taken)) => {
                    let len = u64::from(taken.size);
                    size += len;
                    bytes = if bytes == u64::MAX { self.after_first(state, len) } else { bytes - len };
                    into.push(self.delivery(&taken, tag));
                    tag += 1;
                    held.push(Held { taken, until });
                }
                Some(Err(())) if held.is_empty() => {
                    load = self.queue.loadable(state);
                    break;
                }
                Some(Err(())) | None => break,
            }
        }
        let count = held.len();
        if count == 0 {
            return load.map_or(Found::Nothing, Found::Load);
        }
        if self.queue.durable {
            for Held { taken, .. } in &held {
                self.queue.mark_delivered(state, taken);
            }
        }
        held.iter().for_each(|held| state.unacked.add(&held.taken));
        let session = state.session(self.id).expect("it was there under this lock");
        session.unsettled.add(count as u64, size);
        session.held.extend(held.into_iter().map(Some));
        if until != NEVER {
            self.queue.shared.bell.wake_by(until);
        }
        Found::Some(count)
    }

    /// What is left of the prefetch in bytes behind the first message, which is let through whatever its size.
    fn after_first(&self, state: &mut State, len: u64) -> u64 {
        let limit = state.session(self.id).map_or(0, |session| session.options.prefetch_bytes.get() as u64);
        limit.saturating_sub(len)
    }

    fn delivery(&self, taken: &Taken, tag: Tag) -> Delivery {
        Delivery {
            message: taken.publish.message.clone(),
            address: taken.publish.to.clone(),
            tag,
            redeliveries: taken.traits.deliveries,
            acker: self.acker.clone(),
        }
    }
}

/// Settles; the last one to go returns what is unsettled.
struct Handle {
    queue: Arc<Queue>,
    id: u64,
}

impl Handle {
    /// Takes the deliveries out of their session, hands them to `then`, and wakes the consumer for its new credit.
    fn settle(&self, tags: &[Range<Tag>], then: impl FnOnce(&mut State, &mut Vec<Taken>)) -> Settled {
        let mut settled = Settled::default();
        let mut taken = Vec::new();
        let mut wakers = Vec::new();
        let mut state = self.queue.lock();
        let Some(session) = state.session(self.id) else {
            return Settled { applied: 0, stale: count(tags) };
        };
        for range in tags {
            let from = range.start.max(session.first_tag);
            let to = range.end.min(session.next_tag());
            taken.extend((from..to.max(from)).filter_map(|tag| session.release(tag)));
            session.trim();
        }
        settled.applied = taken.len() as u64;
        settled.stale = count(tags).saturating_sub(settled.applied);
        let turn_ends = session.stopped && session.unsettled.items == 0;
        if settled.applied > 0 {
            wakers.extend(session.waker.take());
            then(&mut state, &mut taken);
            if turn_ends && self.queue.spec.single_active_consumer {
                state.wakers(&mut wakers);
            }
        }
        drop(state);
        drop(taken);
        wakers.into_iter().for_each(Waker::wake);
        settled
    }

    /// Changes the session, and has its consumer look again.
    fn change(&self, change: impl FnOnce(&mut Session)) {
        let mut state = self.queue.lock();
        let Some(session) = state.session(self.id) else { return };
        change(session);
        let waker = session.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// The session's settlements are not durable yet.
    fn owe(&self, state: &mut State, count: u64) {
        if !self.queue.durable || count == 0 {
            return;
        }
        if state.session(self.id).is_some_and(|session| session.owe(count)) {
            self.queue.shared.bell.hurry();
        }
    }

    /// Wakes everybody, because something became ready.
    fn wake_all(&self) {
        let mut wakers = Vec::new();
        self.queue.lock().wakers(&mut wakers);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn give_back(&self, remove: bool) {
        let mut state = self.queue.lock();
        let Some(session) = state.session(self.id) else { return };
        // Tags go on from where they were: what was returned is stale for ever.
        session.first_tag = session.next_tag();
        let taken: Vec<Taken> = session.held.drain(..).flatten().map(|held| held.taken).collect();
        session.unsettled = Count::default();
        if remove {
            let id = self.id;
            state.sessions.retain(|session| session.id != id);
        }
        self.queue.give_back(&mut state, taken, None);
        drop(state);
        self.wake_all();
    }
}

fn count(tags: &[Range<Tag>]) -> u64 {
    tags.iter().fold(0, |sum: u64, range| sum.saturating_add(range.end.saturating_sub(range.start)))
}

impl Settle for Handle {
    fn queue(&self) -> &str {
        self.queue.name()
    }

    fn ack(&self, tags: &[Range<Tag>]) -> Settled {
        self.settle(tags, |state, taken| {
            taken.iter().for_each(|one| state.unacked.sub(one));
            self.queue.refund(taken.iter().map(|one| one.weight).sum());
            let mut owed = 0;
            for one in taken.iter().filter(|one| one.position != 0) {
                self.queue.note_settled(state, one.seq..one.seq + 1);
                owed += 1;
            }
            self.owe(state, owed);
        })
    }

    fn nack(&self, tags: &[Range<Tag>], how: &Nack) -> Settled {
        let settled = self.settle(tags, |state, taken| {
            let taken = std::mem::take(taken);
            match how {
                Nack::Requeue => self.queue.give_back(state, taken, None),
                Nack::RequeueAfter(wait) => {
                    let due = self.queue.shared.clock.now().saturating_add(millis(*wait));
                    self.queue.give_back(state, taken, Some(due));
                }
                Nack::DeadLetter { reason, stage } => {
                    for one in taken {
                        state.unacked.sub(&one);
                        let detail = Some(reason.clone());
                        self.queue.bury(state, one, DeadReason::Rejected, detail, stage.clone());
                    }
                }
                Nack::Discard => {
                    let owed = taken.iter().filter(|one| one.position != 0).count();
                    self.owe(state, owed as u64);
                    for one in taken {
                        state.unacked.sub(&one);
                        self.queue.forget_one(state, &one);
                    }
                }
            }
        });
        if settled.applied > 0 && *how == Nack::Requeue {
            self.wake_all();
        }
        settled
    }

    fn stop(&self, when: StopWhen) {
        self.change(|session| match when {
            StopWhen::Now => session.stopped = true,
            StopWhen::Empty => session.stop_when_empty = true,
        });
        if self.queue.spec.single_active_consumer {
            // It is another's turn, if nothing is in hand.
            self.wake_all();
        }
    }

    fn pause(&self, paused: bool) {
        self.change(|session| session.paused = paused);
    }

    fn release(&self) {
        self.give_back(false);
    }

    fn prefetch(&self) -> Option<Prefetch> {
        let mut state = self.queue.lock();
        let options = &state.session(self.id)?.options;
        Some(Prefetch { items: options.prefetch_items, most: options.prefetch_most })
    }

    fn set_prefetch(&self, items: NonZeroUsize) {
        self.change(|session| session.options.prefetch_items = items);
    }

    fn unsettled(&self) -> usize {
        let mut state = self.queue.lock();
        let held = state.session(self.id).map_or(0, |session| session.unsettled.items);
        usize::try_from(held).unwrap_or(usize::MAX)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.give_back(true);
    }
}

//! What users hold of a consumer: its source of deliveries, and what settles them.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::pin::Pin;
use std::slice;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use millstream_message::{
    Acker, BrokerError, ConsumerSource, Delivery, Nack, Prefetch, Settle, Settled, StopWhen, Tag,
};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{ConsumerCore, Kept, Ready, State};
use crate::hub::Way;
use crate::unsettled::Parked;

/// A delay that is as good as for ever.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 86_400);

/// What deliveries, ackers and the consumer hold: when the last one goes, what is unsettled goes back.
pub(super) struct Handle(pub(super) Arc<ConsumerCore>);

/// Settles of some tags those that somebody has taken. What came and waits has a tag, too, and is nobody's to settle yet.
pub(super) fn settle_taken(
    state: &mut State,
    tags: &[Range<Tag>],
    settle: impl FnOnce(&mut State, &[Range<Tag>]) -> Settled,
) -> Settled {
    let untaken = state.ready.front().map(|first| first.tag);
    let Some(untaken) = untaken.filter(|first| tags.iter().any(|range| range.end > *first)) else {
        return settle(state, tags);
    };
    let taken: Vec<_> = tags.iter().map(|range| range.start..range.end.min(untaken)).collect();
    let mut settled = settle(state, &taken);
    let count = |range: &Range<Tag>| range.end.saturating_sub(range.start);
    let named = tags.iter().map(count).fold(0, u64::saturating_add);
    settled.stale = named.saturating_sub(settled.applied);
    settled
}

fn ack(state: &mut State, tags: &[Range<Tag>]) -> Settled {
    let mut settled = settle_taken(state, tags, |state, tags| {
        let State { unsettled, bytes, .. } = state;
        unsettled.ack(tags, |kept| *bytes -= kept.bytes)
    });
    if state.again.held() > 0 {
        for (tag, _) in take_again(state, tags, &mut settled) {
            state.unsettled.unpark(tag, Parked::Arrived);
        }
    }
    state.acked += settled.applied;
    settled
}

/// Takes what was handed out again from whoever has it, and counts it.
fn take_again(state: &mut State, tags: &[Range<Tag>], settled: &mut Settled) -> Vec<(Tag, Kept)> {
    let taken = state.again.take(tags);
    state.bytes -= taken.iter().map(|(_, kept)| kept.bytes).sum::<u64>();
    settled.applied += taken.len() as u64;
    settled.stale = settled.stale.saturating_sub(taken.len() as u64);
    taken
}

/// Takes deliveries of a stream back, and hands them out again after a delay. It holds their place at the broker until then.
fn give_back(state: &mut State, tags: &[Range<Tag>], delay: Duration) -> Settled {
    let mut back = Vec::new();
    let mut settled = settle_taken(state, tags, |state, tags| {
        let State { unsettled, bytes, .. } = state;
        unsettled.park(tags, |tag, kept| {
            *bytes -= kept.bytes;
            back.push((tag, kept));
        })
    });
    back.extend(take_again(state, tags, &mut settled));
    let now = Instant::now();
    let due = (!delay.is_zero()).then(|| now.checked_add(delay).unwrap_or(now + FOREVER));
    for (tag, kept) in back {
        if state.end.is_some() {
            // It stays in the stream, and nobody gets it here any more.
            state.unsettled.unpark(tag, Parked::Arrived);
        } else {
            state.again.wait(tag, kept, due);
        }
    }
    state.nacked += settled.applied;
    settled
}

fn nack(state: &mut State, tags: &[Range<Tag>], requeue: bool) -> Settled {
    if state.is_stream {
        return if requeue { give_back(state, tags, Duration::ZERO) } else { ack(state, tags) };
    }
    settle_taken(state, tags, |state, tags| {
        let State { unsettled, bytes, .. } = state;
        let settled = unsettled.nack(tags, requeue, |kept| *bytes -= kept.bytes);
        state.nacked += settled.applied;
        settled
    })
}

impl Drop for Handle {
    fn drop(&mut self) {
        let core = &self.0;
        core.change(|state| {
            core.end(state);
            core.abandon(state);
        });
    }
}

impl Settle for Handle {
    fn queue(&self) -> &str {
        &self.0.queue
    }

    fn ack(&self, tags: &[Range<Tag>]) -> Settled {
        self.0.settle(|state| ack(state, tags))
    }

    fn nack(&self, tags: &[Range<Tag>], how: &Nack) -> Settled {
        match how {
            Nack::Requeue => self.0.settle(|state| nack(state, tags, true)),
            Nack::Discard => self.0.settle(|state| ack(state, tags)),
            Nack::RequeueAfter(delay) if self.0.is_of_a_stream() => {
                self.0.settle(|state| give_back(state, tags, *delay))
            }
            Nack::RequeueAfter(delay) => self.0.send_away(tags, &Way::Later(*delay)),
            Nack::DeadLetter { reason, stage } => match self.0.hub.dead_letters_of(&self.0.queue) {
                Some(to) => {
                    let (reason, stage) = (reason.clone(), stage.clone());
                    self.0.send_away(tags, &Way::DeadLetter { to, reason, stage })
                }
                // The queue was declared by somebody else, or has no dead letters: the broker knows.
                None => self.0.settle(|state| nack(state, tags, false)),
            },
        }
    }

    fn stop(&self, when: StopWhen) {
        self.0.stop(when);
    }

    fn pause(&self, paused: bool) {
        self.0.pause(paused);
    }

    fn release(&self) {
        self.0.settle(|state| {
            state.ready.clear();
            state.ready_bytes = 0;
            nack(state, slice::from_ref(&(0..Tag::MAX)), true)
        });
    }

    fn unsettled(&self) -> usize {
        let state = self.0.state.lock();
        state.in_hand()
    }

    fn prefetch(&self) -> Option<Prefetch> {
        let items = self.0.state.lock().prefetch;
        Some(Prefetch { items, most: self.0.options.prefetch_most })
    }

    fn set_prefetch(&self, items: NonZeroUsize) {
        self.0.change(|state| {
            state.prefetch = items;
            state.credit.limit(items);
        });
    }
}

/// Where users' consumers take deliveries from.
pub(super) struct Source {
    pub(super) core: Arc<ConsumerCore>,
    pub(super) acker: Acker,
    /// When what was given back for later is due.
    pub(super) due: Option<Pin<Box<Sleep>>>,
}

impl Source {
    /// Wakes the reader when something is due that was given back for later.
    fn look_again(&mut self, cx: &mut Context<'_>, due: Option<Instant>) {
        let Some(due) = due else { return self.due = None };
        let sleep = self.due.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if sleep.deadline() != due {
            sleep.as_mut().reset(due);
        }
        if sleep.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

impl ConsumerSource for Source {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        into: &mut Vec<Delivery>,
    ) -> Poll<Result<usize, BrokerError>> {
        let mut state = self.core.state.lock();
        let mut count = 0;
        if state.again.due().is_some() {
            state.again.ripen(Instant::now());
        }
        while count < max && state.has_room(&self.core.options) {
            let (tag, kept) = if let Some((tag, kept)) = state.again.hand_out() {
                state.bytes += kept.bytes;
                state.delivered += 1;
                state.redelivered += 1;
                (tag, kept)
            } else {
                let Some(Ready { tag, kept }) = state.ready.pop_front() else { break };
                state.ready_bytes -= kept.bytes;
                (tag, kept)
            };
            let Kept { message, address, redeliveries, .. } = kept;
            into.push(Delivery { message, address, tag, redeliveries, acker: self.acker.clone() });
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        match &state.end {
            Some(Ok(())) => Poll::Ready(Ok(0)),
            Some(Err(error)) => {
                let error = error.clone();
                // It is told once; after that the consumer has ended.
                state.end = Some(Ok(()));
                Poll::Ready(Err(error))
            }
            None => {
                if state.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                    state.waker = Some(cx.waker().clone());
                }
                if state.stop == Some(StopWhen::Empty) {
                    self.core.drained.notify_one();
                }
                let due = state.again.due();
                drop(state);
                self.look_again(cx, due);
                Poll::Pending
            }
        }
    }
}

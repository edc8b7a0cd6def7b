//! What users hold of a consumer: its source of deliveries, and what settles them.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::slice;
use std::sync::Arc;
use std::task::{Context, Poll};

use millstream_message::{
    Acker, BrokerError, ConsumerSource, Delivery, Nack, Prefetch, Settle, Settled, StopWhen, Tag,
};

use super::{ConsumerCore, Kept, Ready, State};
use crate::hub::Way;

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
    settle_taken(state, tags, |state, tags| {
        let State { unsettled, bytes, .. } = state;
        let settled = unsettled.ack(tags, |kept| *bytes -= kept.bytes);
        state.acked += settled.applied;
        settled
    })
}

fn nack(state: &mut State, tags: &[Range<Tag>], requeue: bool) -> Settled {
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
        while count < max && state.has_room(&self.core.options) {
            let Some(Ready { tag, kept }) = state.ready.pop_front() else { break };
            let Kept { message, address, redeliveries, bytes } = kept;
            state.ready_bytes -= bytes;
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
                Poll::Pending
            }
        }
    }
}

//! How a consumer loses its channel, and how it ends.

use std::slice;
use std::sync::Arc;
use std::task::Waker;

use millstream_message::{BrokerError, BrokerErrorKind, StopWhen, Tag};

use super::again::Again;
use super::{Cancel, ConsumerCore, Intake, State};
use crate::proto::Closed;
use crate::unsettled::Parked;

impl ConsumerCore {
    /// The connection is lost: the broker gives what is unsettled to somebody again.
    pub(crate) fn lost(&self) {
        // Asked before this consumer is locked: a link's lock comes first.
        let closing = self.link.is_closing();
        let mut state = self.state.lock();
        self.forget(&mut state);
        if closing {
            state.end.get_or_insert(Ok(()));
        }
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Nothing of the old channel counts any more.
    fn forget(&self, state: &mut State) {
        state.channel = None;
        state.intake = Intake::Opening;
        state.asking = false;
        if state.is_stream {
            // Of what is not settled the oldest; or what comes behind everything that came.
            let live = state.unsettled.iter().find_map(|kept| kept.offset());
            let oldest = live.into_iter().chain(state.again.oldest()).min();
            state.again = Again::default();
            // The last one is taken: lost once more before anything has come, it goes on where it would have gone on.
            let behind = state.last.take().map(|last| last + 1);
            state.resume = oldest.or(behind).or(state.resume);
        }
        state.ready.clear();
        state.unsettled.forget();
        (state.ready_bytes, state.bytes) = (0, 0);
        state.talking = false;
        if matches!(state.cancel, Cancel::Wanted | Cancel::Sent) {
            state.cancel = Cancel::Done;
            self.hub.cancelled(&self.queue);
        }
        self.drained.notify_one();
    }

    /// The channel was closed: by the server, for this reason, or because we asked. Whether another is wanted, and who is to be
    /// woken.
    pub(crate) fn closed(&self, why: Option<&Closed>) -> (bool, Option<Waker>) {
        let mut state = self.state.lock();
        self.forget(&mut state);
        if let Some(why) = why.filter(|why| why.code == 404 && !why.is_down()) {
            let text = format!("queue `{}`: {}; declare it and consume again", self.queue, why.text);
            state.end.get_or_insert(Err(BrokerError::new(BrokerErrorKind::NotFound, text)));
        }
        let goes_on = why.is_some() && state.established && state.end.is_none() && !state.abandoned;
        state.refusals = state.refusals.saturating_add(u32::from(goes_on));
        (goes_on, state.waker.take())
    }

    /// The server ended the consumer: its queue was deleted, or its node is gone. Whether it wants another channel, on which it will be
    /// told which, and who is to be woken.
    pub(crate) fn gone(&self) -> (bool, Option<Waker>) {
        let mut state = self.state.lock();
        let goes_on = state.established && state.goes_on();
        if goes_on {
            self.forget(&mut state);
        } else {
            let text = format!("queue `{}` was deleted; declare it and consume again", self.queue);
            state.end.get_or_insert(Err(BrokerError::new(BrokerErrorKind::NotFound, text)));
            if matches!(state.cancel, Cancel::Wanted | Cancel::Sent) {
                self.hub.cancelled(&self.queue);
            }
            state.cancel = Cancel::Done;
            self.drained.notify_one();
        }
        (goes_on, state.waker.take())
    }

    /// How often the server has closed its channels since it consumed last.
    pub(crate) fn refusals(&self) -> u32 {
        self.state.lock().refusals
    }

    /// The server has cancelled the consumer, as we asked.
    pub(crate) fn cancelled(&self) {
        let mut state = self.state.lock();
        if state.cancel == Cancel::Sent {
            state.cancel = Cancel::Done;
            self.hub.cancelled(&self.queue);
        }
    }

    /// Ends it when it is time.
    pub(super) fn stop(self: &Arc<Self>, when: StopWhen) {
        self.change(|state| match when {
            _ if state.end.is_some() => {}
            StopWhen::Empty => {
                state.stop = Some(StopWhen::Empty);
                self.drained.notify_one();
            }
            StopWhen::Now => self.end(state),
        });
    }

    /// Ends the intake: what came and nobody has taken goes back.
    pub(super) fn end(&self, state: &mut State) {
        if self.one_active || state.is_stream {
            // Given back one by one, it would come again at once, or behind what the next consumer gets; and of a stream nothing can be
            // given back.
            let State { unsettled, again, .. } = &mut *state;
            again.give_up().for_each(|tag| unsettled.unpark(tag, Parked::Arrived));
            state.leaving = true;
            state.end.get_or_insert(Ok(()));
            self.drained.notify_one();
            return self.leave(state);
        }
        if state.cancel == Cancel::No && state.channel.is_some() && state.end.is_none() {
            state.cancel = Cancel::Wanted;
            self.hub.cancelling(&self.queue);
        }
        if let Some(first) = state.ready.front() {
            let untaken = first.tag..state.unsettled.next();
            let State { unsettled, bytes, .. } = &mut *state;
            unsettled.nack(&[untaken], true, |kept| *bytes -= kept.bytes);
            state.ready.clear();
            state.ready_bytes = 0;
        }
        state.end.get_or_insert(Ok(()));
        self.drained.notify_one();
    }

    /// Hands its turn on, if it has ended and nothing is in hand.
    pub(super) fn leave(&self, state: &mut State) {
        if state.leaving && state.in_hand() == 0 && state.unsettled.parked() == 0 {
            self.abandon(state);
        }
    }

    /// Has the channel closed. With it the broker loses the consumer and has all back that nobody has settled, in one step: the
    /// next one finds it in its old place.
    pub(super) fn abandon(&self, state: &mut State) {
        state.abandoned = true;
        for (tag, _) in state.again.take(slice::from_ref(&(0..Tag::MAX))) {
            state.unsettled.unpark(tag, Parked::Arrived);
        }
        if state.cancel == Cancel::No && state.channel.is_some() {
            state.cancel = Cancel::Sent;
            self.hub.cancelling(&self.queue);
        }
    }

    /// Ends it: the handle is closed.
    pub(crate) fn stop_for_good(self: &Arc<Self>) {
        self.stop(StopWhen::Now);
    }

    /// The queue was found empty, if nothing has come since so much had.
    pub(crate) fn ran_dry(self: &Arc<Self>, delivered: u64) {
        self.change(|state| {
            if state.delivered == delivered && state.stop == Some(StopWhen::Empty) {
                self.end(state);
            }
        });
    }

    /// The queue holds messages and hands none to its only consumer: it is a stream.
    pub(crate) fn is_a_stream(self: &Arc<Self>) {
        let text = format!(
            "queue `{}` holds messages and delivers none: it is a stream, which is told where to begin by `from`; by \
             `rabbitmq-stream://` it is read without",
            self.queue
        );
        self.change(|state| {
            if state.end.is_none() {
                self.end(state);
                state.end = Some(Err(BrokerError::new(BrokerErrorKind::Invalid, text)));
            }
        });
    }

    /// What came is not of a stream: the broker passes over from where it was to begin.
    pub(super) fn is_no_stream(&self, state: &mut State) {
        let text = format!("queue `{}` is no stream: leave `from` out", self.queue);
        self.end(state);
        state.end = Some(Err(BrokerError::new(BrokerErrorKind::Invalid, text)));
    }

    /// How many messages have come, if it is to end when the queue is empty, and has nothing left to give.
    pub(crate) fn asks_for_the_end(&self) -> Option<u64> {
        let state = self.state.lock();
        let asks = state.stop == Some(StopWhen::Empty)
            && state.ready.is_empty()
            && state.again.is_empty()
            && state.end.is_none();
        asks.then_some(state.delivered)
    }

    /// Whether it has the broker deliver nothing, which counts it as no consumer then.
    pub(crate) fn is_paused(&self) -> bool {
        self.state.lock().paused
    }

    /// Whether its channel is to go.
    #[cfg(test)]
    pub(super) fn has_left(&self) -> bool {
        self.state.lock().abandoned
    }

    pub(crate) fn has_ended(&self) -> bool {
        let state = self.state.lock();
        state.end.is_some() || state.abandoned
    }
}

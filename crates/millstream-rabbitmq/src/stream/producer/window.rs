//! What is in flight, and who waits for it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use millstream_message::{BrokerError, BrokerErrorKind, Confirm, Outcomes, PublishOutcome, Refusal};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::super::amqp::{self, Mark};
use super::super::command::{Ids, code};
use super::super::counters::{Counters, add};
use super::super::link::{Link, lost, refused};
use super::ProducerOptions;
use super::frame::{Encoder, Frame, Numbered};

/// What the producer shares with its supervisor and with its link.
pub(crate) struct Shared {
    pub(super) stream: String,
    pub(super) options: ProducerOptions,
    pub(super) state: Mutex<State>,
    /// Held while a batch gets its place.
    pub(super) sending: tokio::sync::Mutex<()>,
    /// There may be room in the window now.
    pub(super) room: Notify,
    /// The supervisor has something to look at.
    pub(super) wake: Notify,
}

pub(super) struct State {
    pub(super) next_id: u64,
    pub(super) frames: VecDeque<Frame>,
    pub(super) batches: VecDeque<Batch>,
    /// Number of the first of `batches`.
    pub(super) first_batch: u64,
    pub(super) messages: usize,
    pub(super) bytes: usize,
    pub(super) attached: Option<(Arc<Link>, u8)>,
    pub(super) frame_max: usize,
    /// Why it can be sent nothing at present.
    pub(super) away: Option<BrokerError>,
    /// Why it can be sent nothing any more.
    pub(super) over: Option<BrokerError>,
    pub(super) closing: bool,
    counters: Arc<Counters>,
}

/// What one call of `send` handed over.
pub(super) struct Batch {
    total: usize,
    frames: u32,
    others: Vec<(usize, PublishOutcome)>,
    /// When it got its place; `None` if nothing of it is to be confirmed, or it was given up.
    sent: Option<Instant>,
    confirm: oneshot::Sender<Outcomes>,
}

impl State {
    pub(super) fn check(&self) -> Result<(), BrokerError> {
        if let Some(error) = self.over.as_ref().or(self.away.as_ref()) {
            return Err(error.clone());
        }
        if self.closing {
            return Err(lost("the producer is closed"));
        }
        Ok(())
    }

    pub(super) fn has_room(&self, options: &ProducerOptions, messages: usize, bytes: usize) -> bool {
        self.frames.is_empty()
            || (self.messages + messages <= options.in_flight_max
                && self.bytes + bytes <= options.in_flight_bytes_max)
    }

    /// Settles these ids; `outcome` tells what became of a message that is not confirmed.
    pub(super) fn settle(&mut self, ids: Range<u64>, outcome: Option<&PublishOutcome>) {
        let mut at = self.frames.partition_point(|frame| frame.ids.last() < ids.start);
        while let Some(frame) = self.frames.get_mut(at) {
            let places = frame.ids.places(&ids);
            if places.is_empty() {
                break;
            }
            let was_done = frame.is_done();
            let mut refused = Vec::new();
            frame.settle(places, |place| {
                if outcome.is_some() {
                    refused.push(place);
                }
            });
            let is_done = frame.is_done();
            let batch = &mut self.batches[(frame.batch - self.first_batch) as usize];
            if let Some(outcome) = outcome {
                if matches!(outcome, PublishOutcome::Unconfirmed(_)) {
                    batch.sent = None;
                }
                for place in refused.into_iter().flat_map(|place| frame.messages(place)) {
                    batch.others.push((place as usize, outcome.clone()));
                }
            }
            if is_done && !was_done {
                batch.frames -= 1;
                self.messages -= frame.places.len();
                self.bytes -= frame.bytes.len();
                frame.bytes = Bytes::new();
            }
            at += 1;
        }
        self.resolve();
    }

    /// Takes away what is done, in order.
    pub(super) fn resolve(&mut self) {
        while self.frames.front().is_some_and(Frame::is_done) {
            self.frames.pop_front();
        }
        let mut now = None;
        while self.batches.front().is_some_and(|batch| batch.frames == 0) {
            let Some(mut batch) = self.batches.pop_front() else { break };
            self.first_batch += 1;
            add(&self.counters.settled, batch.total as u64);
            if let Some(sent) = batch.sent {
                self.counters.confirmed(*now.get_or_insert_with(Instant::now) - sent);
            }
            batch.others.sort_by_key(|(place, _)| *place);
            // Nobody may wait any more.
            let _ = batch.confirm.send(Outcomes::with_others(batch.total, batch.others));
        }
    }

    /// Gives up on all that is in flight.
    pub(super) fn give_up(&mut self, error: &BrokerError) {
        let outcome = PublishOutcome::Unconfirmed(error.clone());
        self.settle(0..u64::MAX, Some(&outcome));
    }
}

/// Of what is left nobody will learn any more.
impl Drop for State {
    fn drop(&mut self) {
        add(&self.counters.settled, self.batches.iter().map(|batch| batch.total as u64).sum());
    }
}

impl Shared {
    pub(super) fn new(stream: &str, options: ProducerOptions, counters: Arc<Counters>) -> Shared {
        Shared {
            stream: stream.to_owned(),
            options,
            state: Mutex::new(State {
                next_id: 1,
                frames: VecDeque::new(),
                batches: VecDeque::new(),
                first_batch: 0,
                messages: 0,
                bytes: 0,
                attached: None,
                frame_max: 0,
                away: None,
                over: None,
                closing: false,
                counters,
            }),
            sending: tokio::sync::Mutex::default(),
            room: Notify::new(),
            wake: Notify::new(),
        }
    }

    pub(crate) fn stream(&self) -> &str {
        &self.stream
    }

    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.wake.notify_one();
        self.room.notify_waiters();
    }

    pub(super) async fn send(
        &self,
        messages: Numbered<'_>,
        mark: Option<Mark>,
    ) -> Result<Confirm, BrokerError> {
        let _in_order = self.sending.lock().await;
        let count = messages.len();
        let estimate: usize = (0..count).map(|at| amqp::size_hint(messages.message(at)) + 16).sum();
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            {
                let state = self.state.lock();
                state.check()?;
                if state.has_room(&self.options, count, estimate) {
                    break;
                }
            }
            room.await;
        }
        let (first, publisher, frame_max) = {
            let state = self.state.lock();
            (state.next_id, state.attached.as_ref().map_or(0, |(_, number)| *number), state.frame_max)
        };
        if let Numbered::Given(given) = messages {
            let mut least = first;
            for (id, _) in given {
                if *id < least || *id == u64::MAX {
                    let text = format!("publishing id {id} is not above {}, the last one", least - 1);
                    return Err(BrokerError::new(BrokerErrorKind::Invalid, text));
                }
                least = id + 1;
            }
        }
        // Encoded without the lock, so that confirms go on meanwhile.
        let mut encoder = Encoder { out: Vec::new(), frames: Vec::new(), publisher, frame_max };
        let (next_id, others) = encoder.encode(
            &messages,
            first,
            self.options.entry_messages.get().into(),
            mark.as_ref(),
            estimate,
        );
        let (confirm, outcome) = oneshot::channel();
        let now = Instant::now();
        {
            let mut state = self.state.lock();
            state.next_id = next_id;
            let number = state.first_batch + state.batches.len() as u64;
            let frames = encoder.frames.len() as u32;
            add(&state.counters.published, count as u64);
            for mut frame in encoder.frames {
                frame.batch = number;
                state.messages += frame.places.len();
                state.bytes += frame.bytes.len();
                if let Some((link, publisher)) = &state.attached {
                    link.send(frame.again(*publisher));
                }
                state.frames.push_back(frame);
            }
            let sent = (frames > 0).then_some(now);
            state.batches.push_back(Batch { total: count, frames, others, sent, confirm });
            state.resolve();
        }
        Ok(Confirm::pending(async move {
            let gone = || PublishOutcome::Unconfirmed(lost("the runtime of the producer is gone"));
            outcome.await.unwrap_or_else(|_| Outcomes::all(count, &gone()))
        }))
    }

    /// The broker has stored these.
    pub(crate) fn confirmed(&self, ids: Ids<'_>) {
        let mut state = self.state.lock();
        let mut run = 0..0;
        for id in ids.iter() {
            // They come in order, up or down, with few gaps.
            if id == run.end && !run.is_empty() {
                run.end = id.saturating_add(1);
            } else if id.saturating_add(1) == run.start {
                run.start = id;
            } else {
                if !run.is_empty() {
                    state.settle(run, None);
                }
                run = id..id.saturating_add(1);
            }
        }
        if !run.is_empty() {
            state.settle(run, None);
        }
        let is_last = state.closing && state.frames.is_empty();
        drop(state);
        self.room.notify_waiters();
        if is_last {
            self.wake.notify_one();
        }
    }

    /// The broker has not stored these. Whether the publisher is unknown there, and is now detached.
    pub(crate) fn refused(&self, errors: &[(u64, u16)]) -> bool {
        let mut unknown = false;
        let mut state = self.state.lock();
        for (id, why) in errors {
            if matches!(*why, code::NO_PUBLISHER | code::NO_STREAM | code::STREAM_NOT_AVAILABLE) {
                unknown = true;
            } else {
                let error = refused(*why, &self.stream);
                let outcome = PublishOutcome::Refused(Refusal::Broker(error));
                state.settle(*id..id.saturating_add(1), Some(&outcome));
            }
        }
        if unknown {
            state.attached = None;
        }
        drop(state);
        self.room.notify_waiters();
        self.wake.notify_one();
        unknown
    }

    /// The link is lost, or the stream is not there any more.
    pub(crate) fn detached(&self, error: &BrokerError) {
        tracing::debug!(stream = self.stream, %error, "a producer is detached");
        self.state.lock().attached = None;
        self.wake.notify_one();
    }
}

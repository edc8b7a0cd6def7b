//! One consumer of a stream: what it has in hand, and how far everything before is settled.

use super::QUIET;
use millstream_message::{
    Acker, Address, Broker, BrokerError, ConsumeOptions, ConsumerSource, Delivery, Nack, Settle, Settled,
    StopWhen, StreamItem, StreamReader, Tag,
};
use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

/// The time between two saves of an offset: a consumer that is killed reads again what it settled since.
const SAVE_EVERY: Duration = Duration::from_millis(200);

/// What a consumer has in hand, and its place in the stream.
pub(super) struct Place {
    streams: Arc<dyn Broker>,
    stream: String,
    name: String,
    items_max: usize,
    bytes_max: usize,
    state: Mutex<State>,
    changed: Notify,
    /// One save at a time, so that no older offset overtakes a newer one.
    saving: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// The tag of the first in `handed`.
    first: Tag,
    /// What was handed out, from the first that is unsettled.
    handed: VecDeque<Handed>,
    bytes: usize,
    /// The offset behind which nothing is unsettled, and the one that the broker knows.
    reached: Option<u64>,
    stored: Option<u64>,
    stopped: bool,
    stop_when_quiet: bool,
    paused: bool,
    waker: Option<Waker>,
}

struct Handed {
    offset: u64,
    size: usize,
    settled: bool,
}

impl Place {
    /// The place of the consumer `name`.
    pub(super) fn new(
        streams: Arc<dyn Broker>,
        stream: &str,
        name: &str,
        stored: Option<u64>,
        options: &ConsumeOptions,
    ) -> Arc<Place> {
        Arc::new(Place {
            streams,
            stream: stream.to_owned(),
            name: name.to_owned(),
            items_max: options.prefetch_items.get(),
            bytes_max: options.prefetch_bytes.get(),
            state: Mutex::new(State { reached: stored, stored, ..State::default() }),
            changed: Notify::new(),
            saving: tokio::sync::Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the offset that is reached, if the broker does not know it yet.
    pub(super) async fn store(&self) -> Result<(), BrokerError> {
        let _saving = self.saving.lock().await;
        let (reached, stored) = {
            let state = self.state();
            (state.reached, state.stored)
        };
        let Some(offset) = reached.filter(|reached| Some(*reached) != stored) else { return Ok(()) };
        self.streams.store_offset(&self.stream, &self.name, offset).await?;
        self.state().stored = Some(offset);
        Ok(())
    }

    /// Whether the broker knows the offset that is reached.
    pub(super) fn is_stored(&self) -> bool {
        let state = self.state();
        state.reached == state.stored
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let waker = {
            let mut state = self.state();
            change(&mut state);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Saves a place whenever it has changed, until nobody has it any more. A broker that is out of reach is tried again.
pub(super) async fn keep(place: Weak<Place>) {
    while let Some(place) = place.upgrade() {
        // Woken now and then, so that it ends with the place.
        let _ = tokio::time::timeout(Duration::from_secs(5), place.changed.notified()).await;
        let _ = place.store().await;
        drop(place);
        sleep(SAVE_EVERY).await;
    }
}

impl Settle for Place {
    fn queue(&self) -> &str {
        &self.stream
    }

    fn ack(&self, tags: &[Range<Tag>]) -> Settled {
        let mut settled = Settled::default();
        self.change(|state| {
            for tag in tags.iter().cloned().flatten() {
                let handed = tag.checked_sub(state.first).and_then(|at| state.handed.get_mut(at as usize));
                match handed {
                    Some(handed) if !handed.settled => {
                        handed.settled = true;
                        settled.applied += 1;
                    }
                    _ => settled.stale += 1,
                }
            }
            while state.handed.front().is_some_and(|first| first.settled)
                && let Some(done) = state.handed.pop_front()
            {
                state.first += 1;
                state.bytes -= done.size;
                state.reached = Some(done.offset + 1);
            }
        });
        self.changed.notify_one();
        settled
    }

    /// What is given back holds the place back: the next consumer of this name reads it again. Everything else takes
    /// it off; a stream has no dead letters of its own.
    fn nack(&self, tags: &[Range<Tag>], how: &Nack) -> Settled {
        match how {
            Nack::Requeue | Nack::RequeueAfter(_) => Settled::default(),
            Nack::DeadLetter { .. } | Nack::Discard => self.ack(tags),
        }
    }

    fn stop(&self, when: StopWhen) {
        self.change(|state| match when {
            StopWhen::Now => state.stopped = true,
            StopWhen::Empty => state.stop_when_quiet = true,
        });
    }

    fn pause(&self, paused: bool) {
        self.change(|state| state.paused = paused);
    }

    fn release(&self) {}

    fn unsettled(&self) -> usize {
        self.state().handed.iter().filter(|handed| !handed.settled).count()
    }
}

/// Hands out what a reader gives, as long as there is room in the prefetch.
pub(super) struct Reading {
    reader: StreamReader,
    place: Arc<Place>,
    acker: Acker,
    address: Address,
    /// Where the stream ended when its end was to be the consumer's end.
    end: Option<u64>,
    /// The offset behind what was handed out.
    next: u64,
    /// Since when nothing came.
    quiet: Option<Pin<Box<Sleep>>>,
    scratch: Vec<StreamItem>,
}

impl Reading {
    pub(super) fn new(
        reader: StreamReader,
        place: Arc<Place>,
        acker: Acker,
        end: Option<u64>,
        stored: Option<u64>,
    ) -> Self {
        let address = Address::queue(place.stream.as_str());
        Reading {
            reader,
            place,
            acker,
            address,
            end,
            next: stored.unwrap_or(0),
            quiet: None,
            scratch: Vec::new(),
        }
    }

    /// How many more may be handed out; `None` when it is to stop.
    fn room(&self, cx: &Context<'_>) -> Option<(usize, bool)> {
        let mut state = self.place.state();
        state.waker = Some(cx.waker().clone());
        if state.stopped || self.end.is_some_and(|end| self.next >= end) {
            return None;
        }
        let full = state.paused || state.bytes >= self.place.bytes_max;
        let room = if full { 0 } else { self.place.items_max.saturating_sub(state.handed.len()) };
        Some((room, state.stop_when_quiet || self.end.is_some()))
    }
}

impl ConsumerSource for Reading {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        into: &mut Vec<Delivery>,
    ) -> Poll<Result<usize, BrokerError>> {
        let Some((room, ends)) = self.room(cx) else { return Poll::Ready(Ok(0)) };
        if room == 0 {
            return Poll::Pending;
        }
        match self.reader.poll_chunk(cx, max.min(room), &mut self.scratch) {
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending if ends => {
                ready!(self.quiet.get_or_insert_with(|| Box::pin(sleep(QUIET))).as_mut().poll(cx));
                return Poll::Ready(Ok(0));
            }
            Poll::Pending => return Poll::Pending,
        }
        self.quiet = None;
        let mut state = self.place.state();
        let count = self.scratch.len();
        for item in self.scratch.drain(..) {
            let tag = state.first + state.handed.len() as Tag;
            let size = item.message.size();
            state.handed.push_back(Handed { offset: item.offset, size, settled: false });
            state.bytes += size;
            self.next = item.offset + 1;
            let (address, acker) = (self.address.clone(), self.acker.clone());
            into.push(Delivery { message: item.message, address, tag, redeliveries: 0, acker });
        }
        Poll::Ready(Ok(count))
    }
}

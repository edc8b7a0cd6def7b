//! One consumer of a stream: what it has in hand, and how far everything before is settled.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::pin::Pin;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::Claim;
use crate::consume::{
    Acker, ConsumeOptions, ConsumerSource, Delivery, Nack, Prefetch, Settle, Settled, StopWhen, Tag,
};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::message::Message;
use crate::offset::{StreamOffset, keep_saving};
use crate::publish::Address;
use crate::stream::{StreamItem, StreamReader};

/// How long nothing may come before a consumer ends that is told to end with its stream while it waits for more.
const QUIET: Duration = Duration::from_secs(1);

/// A delay that is as good as for ever.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 86_400);

/// How far a consumer came, of which the broker does not know yet. It outlives the consumer until it does.
pub(super) struct Kept {
    offset: StreamOffset,
    unsaved: Mutex<Option<u64>>,
    changed: Notify,
}

impl Kept {
    pub(super) fn new(offset: StreamOffset) -> Arc<Kept> {
        Arc::new(Kept { offset, unsaved: Mutex::default(), changed: Notify::new() })
    }

    fn unsaved(&self) -> MutexGuard<'_, Option<u64>> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reach(&self, offset: u64) {
        *self.unsaved() = Some(offset);
        self.changed.notify_one();
    }

    /// Whether the broker knows all.
    pub(super) fn is_saved(&self) -> bool {
        self.unsaved().is_none()
    }

    /// Whether it is that of this consumer of this stream.
    pub(super) fn is_of(&self, stream: &str, name: &str) -> bool {
        self.offset.is_of(stream, name)
    }

    /// Tells the broker.
    pub(super) async fn save(&self) -> Result<(), BrokerError> {
        let Some(offset) = *self.unsaved() else { return Ok(()) };
        match self.offset.store(offset).await {
            // With a stream its places go.
            Err(error) if error.kind() != BrokerErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut unsaved = self.unsaved();
        if *unsaved == Some(offset) {
            *unsaved = None;
        }
        Ok(())
    }

    /// Tells the broker now and then, until dropped. What it does not take stays for [`save`](Self::save).
    pub(super) async fn keep(self: Arc<Self>) {
        let _ = keep_saving(&self.changed, async || Ok(self.save().await?)).await;
    }
}

/// What a consumer has in hand.
pub(super) struct Place {
    claim: Arc<Claim>,
    kept: Arc<Kept>,
    items_most: Option<NonZeroUsize>,
    bytes_max: usize,
    state: Mutex<State>,
}

struct State {
    items_max: NonZeroUsize,
    /// The number of the first of `slots`.
    first: u64,
    /// What was handed out, in the order of the stream, from the first that is unsettled.
    slots: VecDeque<Slot>,
    /// The bytes of all of it: messages of a stream share memory, and one that is unsettled may keep that of its neighbours.
    bytes: usize,
    next_tag: Tag,
    /// The numbers of those that are in somebody's hands.
    held: BTreeMap<Tag, u64>,
    /// The numbers of those that were given back: to be handed out again at once, and from a time on.
    again: BTreeSet<u64>,
    later: BTreeSet<(Instant, u64)>,
    stopped: bool,
    stop_when_quiet: bool,
    paused: bool,
    waker: Option<Waker>,
}

struct Slot {
    offset: u64,
    size: usize,
    /// `None` once it is settled.
    message: Option<Message>,
    redeliveries: u32,
}

impl State {
    fn slot(&mut self, number: u64) -> &mut Slot {
        &mut self.slots[(number - self.first) as usize]
    }

    fn hand_out(&mut self, number: u64, address: &Address, acker: &Acker) -> Option<Delivery> {
        let Slot { message, redeliveries, .. } = self.slot(number);
        let (message, redeliveries) = (message.clone()?, *redeliveries);
        let tag = self.next_tag;
        self.next_tag += 1;
        self.held.insert(tag, number);
        Some(Delivery { message, address: address.clone(), tag, redeliveries, acker: acker.clone() })
    }

    /// The offset behind which nothing is unsettled, if it has changed.
    fn settle(&mut self, number: u64) -> Option<u64> {
        self.slot(number).message = None;
        let mut reached = None;
        while let Some(Slot { offset, size, message: None, .. }) = self.slots.front() {
            reached = Some(offset + 1);
            self.bytes -= size;
            self.slots.pop_front();
            self.first += 1;
        }
        reached
    }

    fn give_back(&mut self, number: u64, delay: Duration) {
        self.slot(number).redeliveries += 1;
        if delay.is_zero() {
            self.again.insert(number);
        } else {
            let now = Instant::now();
            self.later.insert((now.checked_add(delay).unwrap_or(now + FOREVER), number));
        }
    }

    /// Whether something was given back and not handed out again.
    fn has_more(&self) -> bool {
        !self.again.is_empty() || !self.later.is_empty()
    }
}

impl Place {
    pub(super) fn new(claim: Arc<Claim>, kept: Arc<Kept>, options: &ConsumeOptions) -> Arc<Place> {
        Arc::new(Place {
            claim,
            kept,
            items_most: options.prefetch_most,
            bytes_max: options.prefetch_bytes.get(),
            state: Mutex::new(State {
                items_max: options.prefetch_items,
                first: 0,
                slots: VecDeque::new(),
                bytes: 0,
                next_tag: 1,
                held: BTreeMap::new(),
                again: BTreeSet::new(),
                later: BTreeSet::new(),
                stopped: false,
                stop_when_quiet: false,
                paused: false,
                waker: None,
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Does this with what is in somebody's hands by these tags.
    fn take_back(&self, tags: &[Range<Tag>], mut each: impl FnMut(&mut State, u64)) -> Settled {
        let mut settled = Settled::default();
        self.change(|state| {
            for tags in tags.iter().filter(|tags| !tags.is_empty()) {
                let mut applied = 0;
                while let Some((&tag, &number)) = state.held.range(tags.clone()).next() {
                    state.held.remove(&tag);
                    each(state, number);
                    applied += 1;
                }
                settled.applied += applied;
                settled.stale = settled.stale.saturating_add(tags.end - tags.start - applied);
            }
        });
        settled
    }
}

impl Settle for Place {
    fn queue(&self) -> &str {
        &self.claim.stream
    }

    fn ack(&self, tags: &[Range<Tag>]) -> Settled {
        self.take_back(tags, |state, number| {
            if let Some(reached) = state.settle(number) {
                self.kept.reach(reached);
            }
        })
    }

    /// What is given back is handed out again, and holds the place back until it is settled. Everything else takes it
    /// off; a stream has no dead letters of its own.
    fn nack(&self, tags: &[Range<Tag>], how: &Nack) -> Settled {
        let delay = match how {
            Nack::DeadLetter { .. } | Nack::Discard => return self.ack(tags),
            Nack::Requeue => Duration::ZERO,
            Nack::RequeueAfter(delay) => *delay,
        };
        self.take_back(tags, |state, number| state.give_back(number, delay))
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

    fn release(&self) {
        self.nack(slice::from_ref(&(0..Tag::MAX)), &Nack::Requeue);
    }

    fn unsettled(&self) -> usize {
        self.state().held.len()
    }

    fn prefetch(&self) -> Option<Prefetch> {
        Some(Prefetch { items: self.state().items_max, most: self.items_most })
    }

    fn set_prefetch(&self, items: NonZeroUsize) {
        self.change(|state| state.items_max = items);
    }
}

/// Hands out what was given back, and what a reader gives, as long as there is room in the prefetch.
pub(super) struct Reading {
    reader: StreamReader,
    /// The reader ends at what the stream held when the consumer began.
    drains: bool,
    place: Arc<Place>,
    acker: Acker,
    address: Address,
    /// What was read and has no room yet.
    next: Option<StreamItem>,
    /// How reading ended.
    end: Option<Result<(), BrokerError>>,
    /// Since when nothing came.
    quiet: Option<Pin<Box<Sleep>>>,
    /// When what was given back for later is due.
    due: Option<Pin<Box<Sleep>>>,
    scratch: Vec<StreamItem>,
}

impl Reading {
    pub(super) fn new(reader: StreamReader, drains: bool, place: Arc<Place>, acker: Acker) -> Self {
        let address = Address::queue(place.claim.stream.as_str());
        Reading {
            reader,
            drains,
            place,
            acker,
            address,
            next: None,
            end: None,
            quiet: None,
            due: None,
            scratch: Vec::new(),
        }
    }

    /// Reads up to `room` messages, of which `bytes` are in hand before.
    fn read(&mut self, cx: &mut Context<'_>, room: usize, mut bytes: usize) -> Vec<StreamItem> {
        let mut read = Vec::new();
        while read.len() < room && self.end.is_none() {
            let Some(item) = self.next.take() else {
                // One by one, so that none is here for which there is no room.
                match self.reader.poll_chunk(cx, 1, &mut self.scratch) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(0)) => self.end = Some(Ok(())),
                    Poll::Ready(Ok(_)) => self.next = self.scratch.pop(),
                    Poll::Ready(Err(error)) => self.end = Some(Err(error)),
                }
                continue;
            };
            let with_it = bytes.saturating_add(item.message.size());
            if bytes > 0 && with_it > self.place.bytes_max {
                self.next = Some(item);
                break;
            }
            bytes = with_it;
            read.push(item);
        }
        read
    }

    /// Waits until what was given back for later is due, if anything was. Ready when something is.
    fn poll_due(&mut self, cx: &mut Context<'_>, first: Option<Instant>) -> Poll<()> {
        let Some(first) = first else { return Poll::Pending };
        let due = self.due.get_or_insert_with(|| Box::pin(sleep_until(first)));
        if due.deadline() != first {
            due.as_mut().reset(first);
        }
        due.as_mut().poll(cx)
    }
}

impl ConsumerSource for Reading {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        into: &mut Vec<Delivery>,
    ) -> Poll<Result<usize, BrokerError>> {
        let before = into.len();
        let place = self.place.clone();
        let mut state = place.state();
        state.waker = Some(cx.waker().clone());
        if state.stopped {
            return Poll::Ready(Ok(0));
        }
        let first = state.later.first().map(|(time, _)| *time);
        if self.poll_due(cx, first).is_ready() {
            let now = Instant::now();
            while let Some((time, number)) = state.later.first().copied()
                && time <= now
            {
                state.later.pop_first();
                state.again.insert(number);
            }
        }
        if state.paused {
            return Poll::Pending;
        }
        while into.len() - before < max
            && let Some(number) = state.again.pop_first()
        {
            into.extend(state.hand_out(number, &self.address, &self.acker));
        }
        let room = state.items_max.get().saturating_sub(state.slots.len()).min(max - (into.len() - before));
        let bytes = state.bytes;
        drop(state);
        // Without the lock: reading may take a while, and what is settled meanwhile makes room only.
        let read = self.read(cx, room, bytes);
        let mut state = place.state();
        for item in read {
            let StreamItem { offset, message, .. } = item;
            let (number, size) = (state.first + state.slots.len() as u64, message.size());
            state.bytes += size;
            state.slots.push_back(Slot { offset, size, message: Some(message), redeliveries: 0 });
            into.extend(state.hand_out(number, &self.address, &self.acker));
        }
        if into.len() > before {
            self.quiet = None;
            return Poll::Ready(Ok(into.len() - before));
        }
        match &self.end {
            // What was given back is still to come.
            Some(Ok(())) if self.drains && state.has_more() => Poll::Pending,
            Some(end) => Poll::Ready(end.clone().map(|()| 0)),
            None if state.stop_when_quiet && room > 0 && self.next.is_none() && !state.has_more() => {
                ready!(self.quiet.get_or_insert_with(|| Box::pin(sleep(QUIET))).as_mut().poll(cx));
                Poll::Ready(Ok(0))
            }
            None => Poll::Pending,
        }
    }
}

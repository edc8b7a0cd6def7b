//! The buffer between a stream's task and its reader, with water marks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use millstream_resilience::later;
use tokio::time::Instant;

use super::waiting::Waiting;
use super::{Pressure, Strategy};
use crate::memory::Reserved;
use crate::stream::StreamError;

/// How it is set: what does not change while a stream flows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    pub(crate) capacity: usize,
    pub(crate) high: usize,
    pub(crate) low: usize,
    /// The same in bytes; the most there are if they do not matter.
    pub(crate) bytes_max: usize,
    pub(crate) bytes_high: usize,
    pub(crate) bytes_low: usize,
}

impl Marks {
    /// Whether it is bounded in bytes, too.
    fn counts_bytes(&self) -> bool {
        self.bytes_max < usize::MAX
    }
}

/// Items on their way, under a lock that both sides take once a chunk.
pub(crate) struct Shelf<T> {
    state: Mutex<State<T>>,
    opened: Instant,
    /// When the reader asked for items last, in nanoseconds from then on, if anybody wants to know.
    asked: AtomicU64,
}

pub(crate) struct State<T> {
    items: Waiting<T>,
    /// Since when it is under pressure.
    pub(crate) pressed: Option<Instant>,
    pub(crate) dropped: u64,
    /// How long it was under pressure before.
    pressed_before: Duration,
    /// Items that the reader has taken.
    delivered: u64,
    /// Items that were taken since the pressure began, and let in since then: what throttling goes by.
    taken: u64,
    entered: u64,
    /// Counted while it is thinned out.
    sampled: u64,
    /// The pressure has lasted so long that another strategy is in force.
    fell_back: bool,
    /// Nobody reads any more: no pressure begins.
    over: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    writer_gone: bool,
    reserved: Option<Reserved>,
}

/// Items that one side moves with one look at the lock.
pub(crate) const CHUNK: usize = 64;

/// What may enter now.
pub(crate) enum Room {
    /// So many items.
    Items(usize),
    /// None before the reader has taken some.
    None,
}

impl<T> Shelf<T> {
    pub(crate) fn new(items: Waiting<T>, reserved: Option<Reserved>) -> Self {
        let state = Mutex::new(State {
            items,
            pressed: None,
            dropped: 0,
            pressed_before: Duration::ZERO,
            delivered: 0,
            taken: 0,
            entered: 0,
            sampled: 0,
            fell_back: false,
            over: false,
            reader: None,
            writer: None,
            writer_gone: false,
            reserved,
        });
        Shelf { state, opened: Instant::now(), asked: AtomicU64::new(0) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The reader asks for items.
    pub(crate) fn asks(&self) {
        let since = u64::try_from(self.opened.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.asked.store(since, Ordering::Relaxed);
    }

    /// When the reader asked for items last.
    pub(crate) fn asked(&self) -> Instant {
        later(self.opened, Duration::from_nanos(self.asked.load(Ordering::Relaxed)))
    }

    /// How many items the writer may bring. Registers it if there is no room.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>, marks: &Marks, strategy: &Strategy) -> Poll<usize> {
        let mut state = self.state();
        match state.room(marks, strategy) {
            Room::Items(items) => Poll::Ready(items),
            Room::None => {
                state.writer = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Ready when it is down to the low mark. Registers the writer if it is not.
    pub(crate) fn poll_low(&self, cx: &mut Context<'_>, marks: &Marks) -> Poll<()> {
        let mut state = self.state();
        if state.is_low(marks) {
            return Poll::Ready(());
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Puts items on the shelf, by the strategy; wakes the reader. What it gives back are items that are dropped, to be counted first:
    /// a user's `Drop` may do anything.
    #[must_use]
    pub(crate) fn put(
        &self,
        chunk: &mut Vec<Result<T, StreamError>>,
        marks: &Marks,
        strategy: &Strategy,
    ) -> Vec<Result<T, StreamError>> {
        let mut shed = Vec::new();
        let mut state = self.state();
        if strategy.waits() {
            // Nothing is dropped for those that there was room for.
            state.entered += chunk.len() as u64;
            state.items.append(chunk);
        } else {
            for item in chunk.drain(..) {
                // What tells the end is never dropped.
                if item.as_ref().is_err_and(StreamError::is_last) {
                    state.items.push_back(item);
                } else {
                    state.enter(item, marks, strategy, &mut shed);
                }
            }
        }
        state.dropped += shed.len() as u64;
        state.hold();
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        shed
    }

    /// Takes up to `max` items. `None` at the end. `strategies` are the first one, and what it falls back to.
    pub(crate) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        max: usize,
        marks: &Marks,
        strategies: [Strategy; 2],
        into: &mut VecDeque<Result<T, StreamError>>,
    ) -> Poll<Option<()>> {
        let mut state = self.state();
        if state.items.is_empty() {
            if state.writer_gone {
                return Poll::Ready(None);
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = state.items.len().min(max);
        state.items.take(count, into);
        state.taken += count as u64;
        state.delivered += count as u64;
        state.hold();
        // Not for every item: an eighth of the buffer is worth a wake-up.
        let enough = if marks.counts_bytes() { 1 } else { (marks.capacity / 8).clamp(1, CHUNK) };
        let strategy = strategies[usize::from(state.fell_back)];
        let wakes = matches!(state.room(marks, &strategy), Room::Items(room) if room >= enough)
            || state.is_low(marks);
        let writer = if wakes { state.writer.take() } else { None };
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
        Poll::Ready(Some(()))
    }

    /// Nothing more comes.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.writer_gone = true;
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl<T> State<T> {
    /// Begins or ends the pressure. True if that changed.
    pub(crate) fn press(&mut self, marks: &Marks, triggered: bool) -> bool {
        match self.pressed {
            None if self.over => false,
            None if self.is_high(marks) || triggered => {
                (self.pressed, self.taken, self.entered, self.sampled) = (Some(Instant::now()), 0, 0, 0);
                true
            }
            Some(_) if self.is_low(marks) && !triggered => {
                self.relieve();
                self.fell_back = false;
                true
            }
            _ => false,
        }
    }

    /// The reader has all that it will have, and ends the pressure. True if there was any.
    pub(crate) fn leave(&mut self) -> bool {
        self.over = true;
        self.relieve()
    }

    /// Ends the pressure, if there is any.
    fn relieve(&mut self) -> bool {
        let since = self.pressed.take();
        self.pressed_before += since.map_or(Duration::ZERO, |since| since.elapsed());
        since.is_some()
    }

    /// Whether the reader has left.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    fn is_high(&self, marks: &Marks) -> bool {
        self.items.len() >= marks.high || marks.counts_bytes() && self.items.bytes() >= marks.bytes_high
    }

    fn is_low(&self, marks: &Marks) -> bool {
        self.items.len() <= marks.low && (!marks.counts_bytes() || self.items.bytes() <= marks.bytes_low)
    }

    /// Items that wait.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn pressure(&self, capacity: usize) -> Pressure {
        let lasting = self.pressed.map_or(Duration::ZERO, |since| since.elapsed());
        Pressure {
            len: self.items.len(),
            capacity,
            bytes: self.items.bytes(),
            dropped: self.dropped,
            delivered: self.delivered,
            lasting,
            total: self.pressed_before + lasting,
        }
    }

    /// Whether another strategy was in force already; from now on it is.
    pub(crate) fn falls_back(&mut self) -> bool {
        std::mem::replace(&mut self.fell_back, true)
    }

    /// When another strategy follows, if one is still to.
    pub(crate) fn falls_back_at(&self, after: Duration) -> Option<Instant> {
        self.pressed.filter(|_| !self.fell_back).map(|since| later(since, after))
    }

    fn room(&self, marks: &Marks, strategy: &Strategy) -> Room {
        let free = marks.capacity.saturating_sub(self.items.len());
        // Down at the low mark one item passes whatever a trigger says, so that it is asked again.
        let least = usize::from(self.is_low(marks));
        let room = match strategy {
            Strategy::Buffer => free,
            Strategy::Block if self.pressed.is_some() => least,
            // Up to the mark at which it blocks.
            Strategy::Block => marks.high - self.items.len().min(marks.high),
            // Nine for ten that leave, so that it comes down to the low mark.
            Strategy::Throttle if self.pressed.is_some() => {
                ((self.taken * 9 / 10).saturating_sub(self.entered) as usize).max(least).min(free)
            }
            Strategy::Throttle => free,
            _ => usize::MAX,
        };
        // How large the next item is, nobody knows: one at a time, as long as there is room for any.
        let room = match strategy {
            _ if !strategy.waits() || !marks.counts_bytes() => room,
            Strategy::Block if self.items.bytes() >= marks.bytes_high => room.min(least),
            _ if self.items.bytes() >= marks.bytes_max => 0,
            _ => room.min(1),
        };
        if room == 0 { Room::None } else { Room::Items(room) }
    }

    /// Lets an item in, or not, by the strategy; `shed` is what is dropped for it.
    fn enter(
        &mut self,
        mut item: Result<T, StreamError>,
        marks: &Marks,
        strategy: &Strategy,
        shed: &mut Vec<Result<T, StreamError>>,
    ) {
        let full = |items: &Waiting<T>, item: &_| {
            items.len() >= marks.capacity
                || marks.counts_bytes()
                    && !items.is_empty()
                    && items.bytes().saturating_add(items.size(item)) > marks.bytes_max
        };
        let thin = self.pressed.is_some() || self.is_high(marks);
        let lets_in = match strategy {
            Strategy::Buffer | Strategy::Block | Strategy::Throttle => true,
            Strategy::DropNewest => !full(&self.items, &item),
            Strategy::DropOldest | Strategy::Latest => {
                if thin && *strategy == Strategy::Latest {
                    match self.items.replace(item) {
                        Ok(older) => {
                            shed.push(older);
                            return;
                        }
                        Err(other) => item = other,
                    }
                }
                while full(&self.items, &item)
                    && let Some(oldest) = self.items.pop_front()
                {
                    shed.push(oldest);
                }
                true
            }
            Strategy::DropLowest => {
                while full(&self.items, &item)
                    && let Some(lower) = self.items.take_lower(&item)
                {
                    shed.push(lower);
                }
                !full(&self.items, &item)
            }
            Strategy::Sample(one_in) => {
                let turn = !thin || self.sampled % *one_in == 0;
                self.sampled += u64::from(thin);
                turn && !full(&self.items, &item)
            }
            Strategy::SampleRandom(one_in) => {
                (!thin || fastrand::u64(..one_in.get()) == 0) && !full(&self.items, &item)
            }
        };
        if lets_in {
            self.items.push_back(item);
            self.entered += 1;
        } else {
            shed.push(item);
        }
    }

    /// Says how much memory waits.
    fn hold(&mut self) {
        if let Some(reserved) = &mut self.reserved {
            reserved.set(self.items.bytes() as u64);
        }
    }
}

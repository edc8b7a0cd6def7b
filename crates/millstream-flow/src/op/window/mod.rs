//! Windows: many items as one value, by time or number, for each key.
//!
//! Times are nanoseconds since the epoch in here, so that windows are found by arithmetic.

use std::hash::Hash;
use std::ops::ControlFlow;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) mod aggregate;
mod course;
mod groups;
mod keys;
mod moving;
mod opens;
mod panes;
mod spec;
mod timed;

use spec::{Spec, common_divisor, span};

use crate::flow::{Flow, Step};
use crate::timer::bounded;

pub(crate) use course::Windows;
pub(crate) use groups::Groups;
pub(crate) use moving::Moving;
pub(crate) use timed::Timed;

/// How items are gathered by [`Pipe::window`](crate::Pipe::window).
///
/// ```
/// use millstream_flow::{EventTime, Window};
/// use std::time::{Duration, SystemTime};
///
/// let each_minute = Window::tumbling(Duration::from_secs(60));
/// let last_minute = Window::sliding(Duration::from_secs(60), Duration::from_secs(5));
/// let visit = Window::session(Duration::from_secs(30 * 60));
/// let by_their_own_time = each_minute.event_time(
///     EventTime::new(|(at, _): &(SystemTime, f64)| *at).delay(Duration::from_secs(2)),
/// );
/// # let _ = (last_minute, visit, by_their_own_time);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Window<C = Arrival> {
    pub(crate) kind: Kind,
    pub(crate) keys_max: usize,
    pub(crate) time: C,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Timed(Spec),
    Groups(Limits),
    Moving { items: u64, every: u64 },
}

/// When a group of items is complete.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    gap: Option<i64>,
    age: Option<i64>,
    items: Option<u64>,
}

/// How many keys may be open when nothing else is said.
const KEYS_MAX: usize = 1 << 16;
/// How many panes a window may have.
const PANES_MAX: i64 = 1 << 20;

impl Window {
    /// Windows of one length that follow each other without gaps, cut at multiples of `size` since the epoch: of an hour
    /// at each full hour UTC.
    ///
    /// # Panics
    /// If `size` is zero.
    pub fn tumbling(size: Duration) -> Self {
        Window::sliding(size, size)
    }

    /// Windows of the length `size` that begin each `slide`. An item is in each window that covers it, and in none
    /// if `slide` is longer than `size` and it comes between two; such items are dropped.
    ///
    /// Items are added once, to a pane that all windows share, and the panes of a window are put together by two stacks
    /// (Tangwongsan, Hirzel, Schneider: *Low-Latency Sliding-Window Aggregation in Worst-Case Constant Time*, 2017, and what
    /// it cites), so that an item costs the same however many windows it is in.
    ///
    /// # Panics
    /// If `size` or `slide` is zero, or if they have so little in common that a window is of more than 2^20 panes.
    pub fn sliding(size: Duration, slide: Duration) -> Self {
        assert!(!size.is_zero() && !slide.is_zero(), "a window of no time holds nothing");
        let (size, slide) = (span(size), span(slide));
        let pane = common_divisor(size, slide);
        assert!(
            size / pane <= PANES_MAX,
            "a window of {} panes: let its slide be a simple part of its size",
            size / pane
        );
        Window::new(Kind::Timed(Spec { size, slide, offset: 0, pane }))
    }

    /// Windows that last until nothing has come for `gap`. See [`max_age`](Self::max_age) and
    /// [`max_items`](Self::max_items) for those that would never end.
    ///
    /// # Panics
    /// If `gap` is zero.
    pub fn session(gap: Duration) -> Self {
        assert!(!gap.is_zero(), "a session needs time between its items");
        Window::new(Kind::Groups(Limits { gap: Some(span(gap)), ..Limits::default() }))
    }

    /// Windows of `items` items.
    ///
    /// # Panics
    /// If `items` is 0.
    pub fn count(items: u64) -> Self {
        assert!(items > 0, "a window of no items holds nothing");
        Window::new(Kind::Groups(Limits { items: Some(items), ..Limits::default() }))
    }

    /// The last `items` items, after each `every` items: a moving average, for example. The first windows hold what has
    /// come so far.
    ///
    /// # Panics
    /// If either is 0, if `every` is more than `items`, or if they have so little in common that a window is of more than 2^20 panes.
    pub fn sliding_count(items: u64, every: u64) -> Self {
        assert!(items > 0 && every > 0, "a window of no items holds nothing");
        assert!(
            every <= items,
            "items between two windows would be in none: use `sample` and a smaller window"
        );
        let (size, slide) = (items as i64, every as i64);
        assert!(
            size / common_divisor(size, slide) <= PANES_MAX,
            "let the step be a simple part of the window"
        );
        Window::new(Kind::Moving { items, every })
    }

    fn new(kind: Kind) -> Self {
        Window { kind, keys_max: KEYS_MAX, time: Arrival }
    }
}

impl<C> Window<C> {
    /// Cuts time windows so much later than at multiples of their length: days that begin at six in the morning.
    ///
    /// # Panics
    /// For windows that are not cut by time.
    pub fn offset(mut self, offset: Duration) -> Self {
        match &mut self.kind {
            Kind::Timed(spec) => spec.offset = span(offset).rem_euclid(spec.slide),
            _ => panic!("only tumbling and sliding windows are cut at moments that could be moved"),
        }
        self
    }

    /// Ends sessions, and windows of a count, so long after their first item.
    ///
    /// # Panics
    /// If `age` is zero, and for other windows, which end by time as it is.
    pub fn max_age(mut self, age: Duration) -> Self {
        assert!(!age.is_zero(), "a window of no time holds nothing");
        self.limits("an age").age = Some(span(age));
        self
    }

    /// Ends sessions at so many items.
    ///
    /// # Panics
    /// If `items` is 0, and for windows that are not sessions or of a count.
    pub fn max_items(mut self, items: u64) -> Self {
        assert!(items > 0, "a window of no items holds nothing");
        self.limits("a number of items").items = Some(items);
        self
    }

    fn limits(&mut self, what: &str) -> &mut Limits {
        match &mut self.kind {
            Kind::Groups(limits) => limits,
            _ => panic!("{what} ends sessions and windows of a count; others end by what they are"),
        }
    }

    /// How many keys may have open windows. One more closes those of the key that has been there for longest:
    /// [`Closed::Evicted`]. 65,536 by default.
    ///
    /// # Panics
    /// If `keys` is 0.
    pub fn max_keys(mut self, keys: usize) -> Self {
        assert!(keys > 0, "windows of no keys hold nothing");
        self.keys_max = keys;
        self
    }

    /// Goes by the time that items carry instead of that of their arrival.
    pub fn event_time<N>(self, time: EventTime<N>) -> Window<EventTime<N>> {
        Window { kind: self.kind, keys_max: self.keys_max, time }
    }
}

/// By which time windows are cut: [`Arrival`], or [`EventTime`].
pub trait TimeOf<T>: Send + 'static {
    /// Whether items carry their time.
    const EVENT: bool;
    /// The time that `item` carries.
    fn time(&self, item: &T) -> SystemTime;
    /// How far items may be out of order, and how late they may be then, in nanoseconds.
    fn patience(&self) -> Patience;
}

/// See [`TimeOf::patience`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience {
    delay: i64,
    lateness: i64,
    idle: Option<Duration>,
}

/// An item's time is that of its arrival, by the flow's clock; a quantum of work, some 10 µs, is one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arrival;

impl<T> TimeOf<T> for Arrival {
    const EVENT: bool = false;
    fn time(&self, _: &T) -> SystemTime {
        UNIX_EPOCH
    }
    fn patience(&self) -> Patience {
        Patience::default()
    }
}

/// Items carry their time. A window is complete when the *watermark* has passed its end: the newest time seen, less the
/// [`delay`](Self::delay) (Akidau et al., *The Dataflow Model*, 2015).
#[derive(Debug, Clone, Copy)]
pub struct EventTime<N> {
    time: N,
    patience: Patience,
}

impl<N> EventTime<N> {
    /// Times as `time` finds them in items, which must come in order unless a [`delay`](Self::delay) is given.
    pub fn new<T>(time: N) -> Self
    where
        N: Fn(&T) -> SystemTime,
    {
        EventTime { time, patience: Patience::default() }
    }

    /// How much older than the newest an item may be and still be in time. Windows are complete so much later.
    ///
    /// An item whose clock is ahead makes those behind it late by as much: filter out times that cannot be.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.patience.delay = span(delay);
        self
    }

    /// An item whose window was complete less than this ago gives another result for it, of itself alone:
    /// [`Closed::Late`]. What comes later is dropped, counted by the operator's name, or handed on by
    /// [`window_or_late`](crate::Pipe::window_or_late).
    pub fn lateness(mut self, lateness: Duration) -> Self {
        self.patience.lateness = span(lateness);
        self
    }

    /// Completes all open windows when nothing has come for so long, which otherwise would wait for the next item.
    ///
    /// # Panics
    /// If `idle` is zero.
    pub fn idle(mut self, idle: Duration) -> Self {
        assert!(!idle.is_zero(), "no flow is never idle");
        self.patience.idle = Some(bounded(idle));
        self
    }
}

impl<T, N: Fn(&T) -> SystemTime + Send + 'static> TimeOf<T> for EventTime<N> {
    const EVENT: bool = true;
    #[inline]
    fn time(&self, item: &T) -> SystemTime {
        (self.time)(item)
    }
    fn patience(&self) -> Patience {
        self.patience
    }
}

/// The value of one window of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Windowed<Q, V> {
    /// The key of its items.
    pub key: Q,
    /// When it began: of windows that are not cut by time, the time of the first item.
    pub start: SystemTime,
    /// When it ended, exclusive. Of sessions, the gap after the last item; of windows of a count, the last item's time.
    pub end: SystemTime,
    /// How many items it holds.
    pub items: u64,
    /// What the aggregate made of them.
    pub value: V,
    /// Why it is complete, or is not.
    pub closed: Closed,
}

/// Why a window was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Closed {
    /// Its time was over.
    Time,
    /// It had all its items.
    Count,
    /// It had been closed before, and an item came that is within the lateness: the value is of that item alone.
    Late,
    /// More keys were open than may be. Items that come later give another result for the same window.
    Evicted,
    /// The flow ended.
    End,
}

/// What a window operator hands on: values of windows, and late items or not.
pub(crate) trait Emit<T, Q, V>: Send + 'static {
    /// What flows on.
    type Item;
    /// The value of a window.
    fn window(window: Windowed<Q, V>) -> Self::Item;
    /// An item that came too late; the item itself if it is to be dropped.
    fn late(item: T) -> Result<Self::Item, T>;
}

/// Late items are dropped.
#[derive(Debug)]
pub(crate) struct DropLate;

impl<T, Q, V> Emit<T, Q, V> for DropLate {
    type Item = Windowed<Q, V>;
    #[inline]
    fn window(window: Windowed<Q, V>) -> Self::Item {
        window
    }
    fn late(item: T) -> Result<Self::Item, T> {
        Err(item)
    }
}

/// Late items are errors.
#[derive(Debug)]
pub(crate) struct KeepLate;

impl<T, Q, V> Emit<T, Q, V> for KeepLate {
    type Item = Result<Windowed<Q, V>, T>;
    #[inline]
    fn window(window: Windowed<Q, V>) -> Self::Item {
        Ok(window)
    }
    fn late(item: T) -> Result<Self::Item, T> {
        Ok(Err(item))
    }
}

/// What keys must be able to do.
pub trait Key: Hash + Eq + Clone + Send + 'static {}

impl<Q: Hash + Eq + Clone + Send + 'static> Key for Q {}

/// Items that are taken from upstream at least, where one that is handed on stands for many.
const INTAKE: usize = 64;

/// A window operator of any kind.
pub(crate) enum AnyWindow<T, G, M> {
    Timed(T),
    Groups(G),
    Moving(M),
}

impl<T, G, M> Flow for AnyWindow<T, G, M>
where
    T: Flow,
    G: Flow<Item = T::Item, Token = T::Token>,
    M: Flow<Item = T::Item, Token = T::Token>,
{
    type Item = T::Item;
    type Token = T::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(T::Item, T::Token) -> ControlFlow<()>,
    {
        match self {
            AnyWindow::Timed(flow) => flow.poll_drive(cx, max, sink),
            AnyWindow::Groups(flow) => flow.poll_drive(cx, max, sink),
            AnyWindow::Moving(flow) => flow.poll_drive(cx, max, sink),
        }
    }
}

//! A bounded buffer behind a handler, and what happens at its water marks.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use millstream_flow::{Flow, Pipe, Step};

use super::shelf::{CHUNK, Marks, Shelf};
use crate::behaviours::Memory;
use crate::call::Call;
use crate::error::Error;
use crate::message::{About, StreamRequest};
use crate::metrics::{Counter, stream_dropped};
use crate::stream::progress::{LeftOut, Task};
use crate::stream::{ItemFlow, StreamBehaviour, StreamError, StreamNext};

mod pump;
mod shown;

use pump::Pump;
use shown::{Buffers, Place};

/// What happens while a stream's buffer is under pressure: from its high mark on until it is down to the low one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// The handler goes on until the buffer is full, then it waits until an eighth of it is free. Nothing is lost.
    Buffer,
    /// The handler waits from the high mark until the low mark. Nothing is lost.
    Block,
    /// The handler goes on with nine items for ten that the reader takes, until the low mark. Nothing is lost.
    Throttle,
    /// A full buffer drops the item that has waited longest.
    DropOldest,
    /// A full buffer drops the item that has just come.
    DropNewest,
    /// Under pressure one item in so many is kept; a full buffer drops what comes.
    Sample(NonZeroU64),
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Strategy::Buffer => f.write_str("buffer"),
            Strategy::Block => f.write_str("block"),
            Strategy::Throttle => f.write_str("throttle"),
            Strategy::DropOldest => f.write_str("drop oldest"),
            Strategy::DropNewest => f.write_str("drop newest"),
            Strategy::Sample(one_in) => write!(f, "sample 1 in {one_in}"),
        }
    }
}

/// How full a buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pressure {
    /// Items that wait.
    pub len: usize,
    /// How many may.
    pub capacity: usize,
    /// Items that this stream has dropped so far.
    pub dropped: u64,
    /// How long it has been under pressure; zero if it is not.
    pub lasting: Duration,
}

/// What a buffer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PressureEvent {
    /// The pressure begins.
    Entered(Pressure),
    /// It is over.
    Left(Pressure),
    /// It has lasted so long that another strategy follows.
    FellBack(Strategy, Pressure),
}

type Trigger = dyn Fn(&Pressure) -> bool + Send + Sync;
type Tell = dyn Fn(&About, &PressureEvent) + Send + Sync;

/// Runs the handler of a stream in a task of its own, ahead of who reads, with a bounded buffer between them.
///
/// Without it a stream is driven by demand alone and needs none of this: it is for handlers that must not wait for their
/// readers, or that work while their readers do. All else between handler and reader is driven by demand, so that what
/// is held is this buffer, and a chunk of up to 64 items on either side of it.
///
/// ```
/// use millstream_mediator::{Backpressure, Mediator, Strategy};
/// use std::time::Duration;
///
/// let newest = Backpressure::new(Strategy::DropOldest, 5_000).marks(0.6, 0.2);
/// let patient = Backpressure::new(Strategy::Throttle, 10_000).fallback(Duration::from_secs(10), Strategy::DropNewest);
/// let builder = Mediator::builder().stream_behaviour(newest);
/// # let _ = (builder, patient);
/// ```
#[derive(Clone)]
pub struct Backpressure {
    strategy: Strategy,
    fallback: Option<(Duration, Strategy)>,
    marks: Marks,
    parts: (f64, f64),
    memory: Option<Memory>,
    trigger: Option<Arc<Trigger>>,
    tell: Option<Arc<Tell>>,
    stats: Option<Stats>,
}

#[derive(Clone)]
struct Stats {
    buffers: Buffers,
    events: Counter,
    dropped: Counter,
}

impl Backpressure {
    /// This strategy for a buffer of so many items, with marks at 80 % and 50 %.
    ///
    /// # Panics
    /// If `capacity` is 0.
    pub fn new(strategy: Strategy, capacity: usize) -> Self {
        assert!(capacity > 0, "a buffer of no items holds none");
        let marks = Marks { capacity, high: 0, low: 0 };
        let plain = Backpressure {
            strategy,
            fallback: None,
            marks,
            parts: (0.0, 0.0),
            memory: None,
            trigger: None,
            tell: None,
            stats: None,
        };
        plain.marks(0.8, 0.5)
    }

    /// From which part of the buffer on it is under pressure, and down to which.
    ///
    /// # Panics
    /// If they are not in order within 0 and 1.
    #[must_use]
    pub fn marks(mut self, high: f64, low: f64) -> Self {
        assert!(
            0.0 <= low && low < high && high <= 1.0,
            "marks are 0 <= low < high <= 1, not {low} and {high}"
        );
        let capacity = self.marks.capacity;
        let high_items = ((capacity as f64 * high).ceil() as usize).clamp(1, capacity);
        let low_items = ((capacity as f64 * low).floor() as usize).min(high_items - 1);
        self.marks = Marks { capacity, high: high_items, low: low_items };
        self.parts = (high, low);
        self
    }

    /// Another strategy once the pressure has lasted so long, until it is over.
    #[must_use]
    pub fn fallback(mut self, after: Duration, strategy: Strategy) -> Self {
        self.fallback = Some((after, strategy));
        self
    }

    /// Counts what waits as held in this budget, at the size of an item without what it points to.
    #[must_use]
    pub fn memory(mut self, memory: Memory) -> Self {
        self.memory = Some(memory);
        self
    }

    /// There is pressure also while this says so, beside the marks. It is asked as items come.
    #[must_use]
    pub fn trigger(mut self, trigger: impl Fn(&Pressure) -> bool + Send + Sync + 'static) -> Self {
        self.trigger = Some(Arc::new(trigger));
        self
    }

    /// Told of the beginning and the end of pressure, and of a fallback. It is called in the handler's task, and where the stream
    /// ends under pressure in its reader's; it must not block.
    #[must_use]
    pub fn on_event(mut self, tell: impl Fn(&About, &PressureEvent) + Send + Sync + 'static) -> Self {
        self.tell = Some(Arc::new(tell));
        self
    }

    fn tell(&self, about: &About, event: PressureEvent) {
        tracing::debug!(target: "millstream_mediator::stream", stream = %about.name, ?event, "backpressure");
        if let Some(tell) = &self.tell {
            tell(about, &event);
        }
    }
}

impl StreamBehaviour for Backpressure {
    type Flow<R: StreamRequest, N: StreamNext<R>> = Pressed<R::Item, N::Flow>;

    fn name(&self) -> Cow<'static, str> {
        let (high, low) = self.parts;
        let (high, low) = ((high * 100.0).round(), (low * 100.0).round());
        let fallback = self.fallback.map(|(after, strategy)| format!(", after {after:?} {strategy}"));
        let fallback = fallback.unwrap_or_default();
        format!("backpressure {} {} {high}%/{low}%{fallback}", self.strategy, self.marks.capacity).into()
    }

    fn of(&self, about: &About) -> Self {
        let stats = Stats {
            buffers: Buffers::of(about, self.marks.capacity),
            events: about.metrics().counter(
                "mediator_stream_backpressure_events",
                "How often streams came under pressure.",
                &[("type", about.label())],
            ),
            dropped: stream_dropped(about, "backpressure"),
        };
        Backpressure { stats: Some(stats), ..self.clone() }
    }

    fn problem(&self) -> Option<String> {
        self.memory.as_ref().and_then(Memory::problem)
    }

    fn fills(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        // What is left out behind the buffer says nothing of what comes out of it now.
        let behind = LeftOut::default().beside(call);
        let pipe = next.open(&behind.call(), request).await?;
        let reserved = self.memory.as_ref().map(|memory| memory.reserve(0));
        let shelf = Arc::new(Shelf::new(reserved));
        let (rule, about) = (self.clone(), call.about().clone());
        let place = self.stats.as_ref().map(|stats| stats.buffers.add(&shelf));
        Ok(pipe.via("backpressure", |upstream| Pressed {
            shelf,
            rule,
            about,
            upstream: Some(upstream),
            pump: None,
            taken: VecDeque::new(),
            _place: place,
        }))
    }
}

/// The reader's side of the buffer. Its task begins with the first item that is asked for, and ends with it.
pub struct Pressed<T, F> {
    shelf: Arc<Shelf<T>>,
    rule: Backpressure,
    about: Arc<About>,
    upstream: Option<F>,
    pump: Option<Task>,
    taken: VecDeque<Result<T, StreamError>>,
    /// Shows what waits as long as this is there.
    _place: Option<Place>,
}

impl<T, F> Pressed<T, F> {
    /// Nothing more is read, so that there is no pressure either.
    fn leave(&self) {
        let mut state = self.shelf.state();
        let pressure = state.pressure(self.rule.marks.capacity);
        let left = state.leave();
        drop(state);
        if left {
            self.rule.tell(&self.about, PressureEvent::Left(pressure));
        }
    }
}

impl<T, F> Drop for Pressed<T, F> {
    fn drop(&mut self) {
        // While a panic unwinds another one would end the process.
        let _ = catch_unwind(AssertUnwindSafe(|| self.leave()));
    }
}

impl<T, F> Flow for Pressed<T, F>
where
    T: Send + 'static,
    F: ItemFlow<T>,
{
    type Item = Result<T, StreamError>;
    type Token = ();

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Self::Item, ()) -> ControlFlow<()>,
    {
        if let Some(flow) = self.upstream.take() {
            let (rule, about) = (self.rule.clone(), self.about.clone());
            self.pump = Some(Pump::spawn(flow, self.shelf.clone(), rule, about));
        }
        let mut room = max;
        loop {
            while let Some(item) = self.taken.pop_front() {
                room -= 1;
                if sink(item, ()).is_break() || room == 0 {
                    return Poll::Ready(Step::More);
                }
            }
            let Backpressure { marks, strategy, fallback, .. } = &self.rule;
            let strategies = [*strategy, fallback.map_or(*strategy, |(_, other)| other)];
            match self.shelf.poll_take(cx, room.min(CHUNK), marks, strategies, &mut self.taken) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) => {
                    self.leave();
                    return Poll::Ready(Step::End);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl fmt::Debug for Backpressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

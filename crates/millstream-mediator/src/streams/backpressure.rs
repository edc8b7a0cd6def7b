//! A bounded buffer behind a handler, and what happens at its water marks.

use std::any::Any;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use millstream_flow::{Flow, Pipe, Step};

use crate::call::Call;
use crate::error::Error;
use crate::memory::Memory;
use crate::message::{About, StreamRequest};
use crate::metrics::{Counter, stream_dropped};
use crate::stream::progress::{LeftOut, Task};
use crate::stream::{ItemFlow, StreamBehaviour, StreamError, StreamNext};

mod pump;
mod shelf;
mod shown;
mod strategy;
mod waiting;

use pump::Pump;
use shelf::{CHUNK, Marks, Shelf};
use shown::{Buffers, Place};
pub use strategy::{Pressure, PressureEvent, Strategy};
use waiting::{Says, Waiting};

type Trigger = dyn Fn(&Pressure) -> bool + Send + Sync;
type Tell = dyn Fn(&About, &PressureEvent) + Send + Sync;
type TellDropped = dyn Fn(&About, &dyn Any) + Send + Sync;

/// Runs the handler of a stream in a task of its own, ahead of who reads, with a bounded buffer between them.
///
/// Without it a stream is driven by demand alone and needs none of this: it is for handlers that must not wait for their
/// readers, or that work while their readers do. All else between handler and reader is driven by demand, so that what
/// is held is this buffer, and a chunk of up to 64 items on either side of it.
///
/// It adapts by events and not by itself: a [trigger](Backpressure::trigger) sees what it holds, drops and delivers, and a
/// [fallback](Backpressure::fallback) is another strategy for as long as the pressure lasts.
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
    wait_max: Option<Duration>,
    marks: Marks,
    parts: (f64, f64),
    memory: Option<Memory>,
    trigger: Option<Arc<Trigger>>,
    tell: Option<Arc<Tell>>,
    tell_dropped: Option<(u64, Arc<TellDropped>)>,
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
        let bytes = usize::MAX;
        let marks =
            Marks { capacity, high: 0, low: 0, bytes_max: bytes, bytes_high: bytes, bytes_low: bytes };
        let plain = Backpressure {
            strategy,
            fallback: None,
            wait_max: None,
            marks,
            parts: (0.0, 0.0),
            memory: None,
            trigger: None,
            tell: None,
            tell_dropped: None,
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
        let part = |of: usize| {
            let high = ((of as f64 * high).ceil() as usize).clamp(1, of);
            (high, ((of as f64 * low).floor() as usize).min(high - 1))
        };
        let Marks { capacity, bytes_max, .. } = self.marks;
        let ((high_items, low_items), (bytes_high, bytes_low)) = (part(capacity), part(bytes_max));
        self.marks = Marks { capacity, high: high_items, low: low_items, bytes_max, bytes_high, bytes_low };
        self.parts = (high, low);
        self
    }

    /// Bounds the buffer in bytes, too: those of the items, with what they [point to](crate::StreamRequest::heap_bytes). The marks hold
    /// for both. A handler that waits brings one item at a time then, by which what waits may be more.
    ///
    /// # Panics
    /// If it is 0.
    #[must_use]
    pub fn bytes_max(mut self, bytes: usize) -> Self {
        assert!(bytes > 0, "a buffer of no bytes holds no items");
        self.marks.bytes_max = bytes;
        let (high, low) = self.parts;
        self.marks(high, low)
    }

    /// How long a handler may wait for room, while its reader takes nothing; as long as its reader if it is not said. After that the
    /// stream ends with [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut), behind what waits.
    #[must_use]
    pub fn wait_max(mut self, wait: Duration) -> Self {
        self.wait_max = Some(wait);
        self
    }

    /// Another strategy once the pressure has lasted so long, until it is over.
    #[must_use]
    pub fn fallback(mut self, after: Duration, strategy: Strategy) -> Self {
        self.fallback = Some((after, strategy));
        self
    }

    /// Counts what waits as held in this budget, with what items [point to](crate::StreamRequest::heap_bytes).
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

    /// Told of the beginning and the end of pressure, of a fallback, and how it was when the stream has ended. It is called in the handler's task, and where the stream
    /// ends under pressure in its reader's; it must not block.
    #[must_use]
    pub fn on_event(mut self, tell: impl Fn(&About, &PressureEvent) + Send + Sync + 'static) -> Self {
        self.tell = Some(Arc::new(tell));
        self
    }

    /// Told of one in so many of the items that are dropped, to put them aside or to see what they were: an item of the stream's type,
    /// or the [`StreamError`] of one that failed. It is called in the handler's task, and must not block.
    ///
    /// # Panics
    /// If `one_in` is 0.
    #[must_use]
    pub fn on_dropped(
        mut self,
        one_in: u64,
        tell: impl Fn(&About, &dyn Any) + Send + Sync + 'static,
    ) -> Self {
        assert!(one_in > 0, "one in none is none");
        self.tell_dropped = Some((one_in, Arc::new(tell)));
        self
    }

    /// The first one, and what it falls back to.
    fn strategies(&self) -> [Strategy; 2] {
        [self.strategy, self.fallback.map_or(self.strategy, |(_, other)| other)]
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
        let Marks { capacity, bytes_max, .. } = self.marks;
        let bytes = if bytes_max < usize::MAX { format!(", {bytes_max} bytes") } else { String::new() };
        let wait = self.wait_max.map(|wait| format!(", waiting up to {wait:?}")).unwrap_or_default();
        format!("backpressure {} {capacity}{bytes} {high}%/{low}%{wait}{fallback}", self.strategy).into()
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
        let (strategy, waiting) = (self.strategy, self.strategies().map(Strategy::waits));
        if self.wait_max.is_some() && waiting == [false; 2] {
            return Some(format!("`wait_max` has no effect: {strategy} makes no handler wait; remove it"));
        }
        if self.tell_dropped.is_some() && waiting == [true; 2] {
            return Some(format!("`on_dropped` has no effect: {strategy} drops nothing; remove it"));
        }
        if self.fallback.is_some_and(|(_, other)| other == strategy) {
            return Some(format!(
                "`fallback` to {strategy} has no effect: it is the strategy already; remove it"
            ));
        }
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
        let measured = reserved.is_some() || self.marks.bytes_max < usize::MAX;
        let items = Waiting::new(Says::of::<R>(), measured, self.strategies());
        let shelf = Arc::new(Shelf::new(items, reserved));
        let (rule, about) = (self.clone(), call.about().clone());
        let place = self.stats.as_ref().map(|stats| stats.buffers.add(&shelf));
        Ok(pipe.via("backpressure", |upstream| Pressed {
            shelf,
            rule,
            about,
            upstream: Some(upstream),
            pump: None,
            taken: VecDeque::new(),
            given: 0,
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
    /// Items that the reader has got: others were dropped, or wait.
    given: u64,
    /// Shows what waits as long as this is there.
    _place: Option<Place>,
}

impl<T, F> Pressed<T, F> {
    /// Nothing more is read, so that there is no pressure either.
    fn leave(&self) {
        let mut state = self.shelf.state();
        if state.is_over() {
            return;
        }
        let pressure = state.pressure(self.rule.marks.capacity);
        let left = state.leave();
        drop(state);
        if left {
            self.rule.tell(&self.about, PressureEvent::Left(pressure));
        }
        self.rule.tell(&self.about, PressureEvent::Ended(Pressure { lasting: Duration::ZERO, ..pressure }));
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
        if self.rule.wait_max.is_some() {
            self.shelf.asks();
        }
        let mut room = max;
        loop {
            while let Some(item) = self.taken.pop_front() {
                room -= 1;
                let item = match item {
                    Ok(item) => {
                        self.given += 1;
                        Ok(item)
                    }
                    Err(error) => Err(error.delivered_in_all(self.given)),
                };
                if sink(item, ()).is_break() || room == 0 {
                    return Poll::Ready(Step::More);
                }
            }
            let (marks, strategies) = (&self.rule.marks, self.rule.strategies());
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

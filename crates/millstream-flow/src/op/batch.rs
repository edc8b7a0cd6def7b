//! Many items as one: by count, bytes and age.

use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::chunk::VecFilling;
use crate::flow::{Flow, Step};
use crate::held::Held;
use crate::knob::{Knob, Setting};
use crate::measure::{Measure, Unmeasured};
use crate::op::Tally;
use crate::scope::Scope;
use crate::timer::{Timer, bounded, later};
use crate::token::Settle;

/// When a batch is complete: at so many items, so many bytes, or at an age, whichever comes first.
///
/// Each of the three is a [knob](Knob) of the flow: `batch count`, `batch bytes`, and `batch age ms`, in whole milliseconds, for
/// timers are no more exact. A number that was given is frozen; one that was left to the tuner may be moved while the flow runs.
///
/// ```
/// use millstream_flow::Batch;
/// use std::time::Duration;
/// let batch = Batch::count(500).bytes(1 << 20, |line: &String| line.len()).age(Duration::from_millis(50));
/// # let _ = batch;
/// ```
#[derive(Debug, Clone)]
pub struct Batch<W = Unmeasured> {
    count: Setting,
    bytes: Option<Limit<usize>>,
    age: Option<Limit<Duration>>,
    measure: W,
}

/// A limit that the user gave.
#[derive(Debug, Clone, Copy)]
struct Limit<T> {
    first: T,
    /// How far the tuner may move it; `None` if it is fixed.
    most: Option<T>,
}

impl<T: PartialOrd + Copy> Limit<T> {
    fn fixed(limit: T) -> Self {
        Limit { first: limit, most: None }
    }

    fn auto(first: T, most: T) -> Self {
        Limit { first, most: Some(if most < first { first } else { most }) }
    }

    /// A knob of this limit, as a `number`.
    fn knob(self, name: String, number: impl Fn(T) -> usize) -> Knob {
        let first = number(self.first);
        let setting = self.most.map_or(Setting::Fixed(first), |_| Setting::Auto);
        Knob::new(name, setting, first, 1..=self.most.map_or(first, number))
    }
}

/// An automatic batch begins with as many items as fill this, within these bounds: what is copied costs little against a
/// call, and what waits is soon complete.
const AUTO_BYTES: usize = 16 << 10;
const AUTO_MIN: usize = 10;
const AUTO_MAX: usize = 500;
/// The highest count that the tuner may try.
const COUNT_MAX: usize = 1 << 16;

impl Batch {
    /// Batches of `count` items, fixed.
    ///
    /// # Panics
    /// If `count` is 0 or above 2^24.
    pub fn count(count: usize) -> Self {
        assert!(count > 0, "a batch of no items is never complete");
        assert!(count <= 1 << 24, "a batch of more than 2^24 items is a file; write it as one");
        Batch { count: count.into(), bytes: None, age: None, measure: Unmeasured }
    }

    /// Batches of a count that is left to the tuner. It begins with as many items as fill 16 KiB, but at least 10 and at most
    /// 500.
    pub fn auto() -> Self {
        Batch { count: Setting::Auto, bytes: None, age: None, measure: Unmeasured }
    }

    /// Also complete at `bytes`, as `measure` counts them, and before it would exceed them. A single larger item is a
    /// batch of its own.
    ///
    /// # Panics
    /// If `bytes` is 0.
    pub fn bytes<W>(self, bytes: usize, measure: W) -> Batch<W> {
        self.bytes_within(Limit::fixed(bytes), measure)
    }

    /// As [`bytes`](Batch::bytes), of a number that is left to the tuner, which begins at `first` and goes up to `most`, or to `first`
    /// if that is more. The memory bound counts `most`.
    ///
    /// # Panics
    /// If `first` is 0.
    pub fn bytes_auto<W>(self, first: usize, most: usize, measure: W) -> Batch<W> {
        self.bytes_within(Limit::auto(first, most), measure)
    }

    fn bytes_within<W>(self, bytes: Limit<usize>, measure: W) -> Batch<W> {
        assert!(bytes.first > 0, "a batch of no bytes is never complete");
        let Batch { count, age, .. } = self;
        Batch { count, bytes: Some(bytes), age, measure }
    }
}

impl<W> Batch<W> {
    /// Also complete when its oldest item has waited for `age`. Without it a batch waits for its items for ever,
    /// until the flow ends.
    pub fn age(mut self, age: Duration) -> Self {
        self.age = Some(Limit::fixed(bounded(age)));
        self
    }

    /// As [`age`](Batch::age), of a time that is left to the tuner, which begins at `first` and goes up to `most`, or to `first` if
    /// that is more, in whole milliseconds. Where nothing comes, a batch that waits already goes at the age that was in force when
    /// it began to wait, or at a longer one.
    ///
    /// ```
    /// # use millstream_flow::{Batch, Pipe};
    /// # use std::time::Duration;
    /// let rule = Batch::auto().age_auto(Duration::from_millis(50), Duration::from_secs(1));
    /// let age = Pipe::from_iter(0..10).batch(rule).monitor().knobs().remove(1);
    /// assert_eq!((age.name(), age.value(), age.bounds()), ("batch age ms", 50, (1, 1000)));
    /// ```
    pub fn age_auto(mut self, first: Duration, most: Duration) -> Self {
        self.age = Some(Limit::auto(bounded(first), bounded(most)));
        self
    }

    pub(crate) fn knobs<T>(&self, name: &str) -> Knobs {
        let max = match self.count {
            Setting::Fixed(count) => count,
            Setting::Auto => COUNT_MAX,
        };
        let first = (AUTO_BYTES / size_of::<T>().max(1)).clamp(AUTO_MIN, AUTO_MAX);
        Knobs {
            count: Knob::new(format!("{name} count"), self.count, first, 1..=max),
            bytes: self.bytes.map(|bytes| bytes.knob(format!("{name} bytes"), |bytes| bytes)),
            age: self.age.map(|age| age.knob(format!("{name} age ms"), milliseconds)),
        }
    }
}

/// Whole milliseconds, no fewer; no knob stands at none.
fn milliseconds(time: Duration) -> usize {
    let whole = time.as_nanos().div_ceil(1_000_000).max(1);
    usize::try_from(whole).unwrap_or(usize::MAX)
}

/// The knobs of a batch, of what it is complete by.
pub(crate) struct Knobs {
    count: Knob,
    bytes: Option<Knob>,
    age: Option<Knob>,
}

impl Knobs {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Knob> {
        [Some(&self.count), self.bytes.as_ref(), self.age.as_ref()].into_iter().flatten()
    }

    /// The most that a batch may hold of items of `size` in its slots, with what they measure.
    pub(crate) fn memory(&self, size: usize) -> usize {
        let most = |knob: &Knob| knob.bounds().1;
        let slots = most(&self.count).saturating_mul(size);
        slots.saturating_add(self.bytes.as_ref().map_or(0, most))
    }

    /// The bytes in force.
    #[inline]
    fn bytes(&self) -> usize {
        self.bytes.as_ref().map_or(usize::MAX, Knob::value)
    }
}

/// See [`Pipe::batch`](crate::Pipe::batch).
pub struct Batched<F: Flow, W> {
    upstream: F,
    rule: Batch<W>,
    knobs: Knobs,
    scope: Arc<Scope>,
    open: Open<F::Item, F::Token>,
    /// Armed only while upstream has nothing more and a batch is open, so that a busy flow never touches it.
    timer: Timer,
    /// Since when the open batch waits. Only while the timer is armed.
    since: Option<Instant>,
    ended: bool,
}

/// The batch that is being filled.
struct Open<T, K: Settle> {
    items: Vec<T>,
    tokens: K::Group,
    bytes: usize,
}

impl<T, K: Settle> Open<T, K> {
    /// Takes the batch out, leaving room for one of the same size.
    #[inline]
    fn close(&mut self, count: usize) -> (Vec<T>, K::Group) {
        self.bytes = 0;
        (mem::replace(&mut self.items, Vec::with_capacity(count)), mem::take(&mut self.tokens))
    }

    /// Complete by its count or its bytes.
    #[inline]
    fn is_full<W: Measure<T>>(&self, count: usize, bytes_max: usize) -> bool {
        self.items.len() >= count || (W::MEASURES && self.bytes >= bytes_max)
    }

    fn add(&mut self, item: T, token: K, bytes: usize) {
        self.items.push(item);
        token.join(&mut self.tokens);
        self.bytes = bytes;
    }

    /// Adds up to `room` items. Nothing but a vector's end is in hand meanwhile: looking for the end of the batch at
    /// every item costs twice what the item does.
    #[inline]
    fn fill<F>(&mut self, upstream: &mut F, cx: &mut Context<'_>, room: usize) -> Poll<Step>
    where
        F: Flow<Item = T, Token = K>,
    {
        let Open { items, tokens, .. } = self;
        let mut items = VecFilling::new(items, room);
        let mut tokens = Held::new(tokens);
        upstream.poll_drive(cx, room, &mut |item, token| {
            items.push(item);
            token.join(&mut tokens);
            ControlFlow::Continue(())
        })
    }

    /// As [`fill`](Self::fill), until the batch has all of its bytes, or an item does not fit into them: that goes to `over`.
    #[inline]
    fn fill_measured<F, W>(
        &mut self,
        upstream: &mut F,
        cx: &mut Context<'_>,
        room: usize,
        measure: &W,
        bytes_max: usize,
        over: &mut Option<(T, K, usize)>,
    ) -> Poll<Step>
    where
        F: Flow<Item = T, Token = K>,
        W: Measure<T>,
    {
        let Open { items, tokens, bytes } = self;
        upstream.poll_drive(cx, room, &mut |item, token| {
            let size = measure.measure(&item);
            let sum = bytes.saturating_add(size);
            if sum > bytes_max && !items.is_empty() {
                *over = Some((item, token, size));
                return ControlFlow::Break(());
            }
            *bytes = sum;
            items.push(item);
            token.join(tokens);
            if sum < bytes_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
    }
}

impl<F: Flow, W> Batched<F, W> {
    pub(crate) fn new(upstream: F, rule: Batch<W>, knobs: Knobs, scope: Arc<Scope>) -> Self {
        let open = Open { items: Vec::new(), tokens: Default::default(), bytes: 0 };
        Batched { upstream, rule, knobs, scope, open, timer: Timer::default(), since: None, ended: false }
    }

    /// The age in force. A fixed one is as it was given: to the nanosecond, and none at all if it is none.
    fn age(&self) -> Option<Duration> {
        let (limit, knob) = (self.rule.age?, self.knobs.age.as_ref()?);
        Some(if knob.is_frozen() { limit.first } else { Duration::from_millis(knob.value() as u64) })
    }

    /// True if the open batch has reached its age. Arms the timer if it is not.
    fn poll_age(&mut self, cx: &mut Context<'_>, age: Duration) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.timer.poll_until(cx, later(since, age)).is_ready()
    }
}

impl<F: Flow, W: Measure<F::Item>> Flow for Batched<F, W> {
    type Item = Vec<F::Item>;
    type Token = <F::Token as Settle>::Group;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Vec<F::Item>, Self::Token) -> ControlFlow<()>,
    {
        let (count, bytes_max) = (self.knobs.count.value(), self.knobs.bytes());
        let scope = self.scope.clone();
        let mut merged = Tally::new::<F::Token>(&scope.counts.merged);
        let mut emit = |(items, tokens): (Vec<F::Item>, Self::Token)| {
            merged.add(items.len() as u64 - 1);
            sink(items, tokens)
        };
        let mut emitted = 0;
        let step = loop {
            // Full, also because the tuner has lowered the count or the bytes meanwhile.
            if self.open.is_full::<W>(count, bytes_max) {
                emitted += 1;
                let broke = emit(self.open.close(count)).is_break();
                if broke || emitted == max {
                    self.since = None;
                    return Poll::Ready(Step::More);
                }
            }
            if self.ended {
                // A run that has failed gives a part of a batch back, by its tokens.
                if !self.open.items.is_empty() && !scope.has_failed() {
                    let _ = emit(self.open.close(0));
                }
                return Poll::Ready(Step::End);
            }
            if self.open.items.capacity() == 0 {
                self.open.items = Vec::with_capacity(count);
            }
            let room = count - self.open.items.len();
            let step = if W::MEASURES {
                let mut over = None;
                let measure = &self.rule.measure;
                let step =
                    self.open.fill_measured(&mut self.upstream, cx, room, measure, bytes_max, &mut over);
                if let Some((item, token, bytes)) = over {
                    // Too large for the batch, so the batch goes, and this item begins the next one. Kept before the batch
                    // goes on: a panic further down costs that batch and not this item too.
                    let full = self.open.close(count);
                    self.open.add(item, token, bytes);
                    emitted += 1;
                    if emit(full).is_break() || emitted == max {
                        self.since = None;
                        self.ended = step == Poll::Ready(Step::End);
                        return Poll::Ready(Step::More);
                    }
                }
                step
            } else {
                self.open.fill(&mut self.upstream, cx, room)
            };
            self.ended = step == Poll::Ready(Step::End);
            if !self.ended && !self.open.is_full::<W>(count, bytes_max) {
                break step;
            }
        };
        if emitted > 0 {
            self.since = None;
        }
        // A flow that keeps closing batches needs no timer; one that waits, or that filters everything, does.
        if !self.open.items.is_empty()
            && (step.is_pending() || emitted == 0)
            && let Some(age) = self.age()
            && self.poll_age(cx, age)
            && emitted < max
        {
            self.since = None;
            let flow = emit(self.open.close(count));
            if flow.is_break() {
                return Poll::Ready(Step::More);
            }
        }
        step
    }
}

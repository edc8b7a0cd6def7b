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
use crate::timer::{Timer, bounded};
use crate::token::Settle;

/// When a batch is complete: at so many items, so many bytes, or at an age, whichever comes first.
///
/// ```
/// use millstream_flow::Batch;
/// use std::time::Duration;
/// let batch = Batch::count(500).bytes(1 << 20, |line: &String| line.len()).age(Duration::from_millis(50));
/// # let _ = batch;
/// ```
#[derive(Debug, Clone)]
pub struct Batch<W = Unmeasured> {
    pub(crate) count: Setting,
    bytes_max: usize,
    age_max: Option<Duration>,
    measure: W,
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
        Batch { count: count.into(), bytes_max: usize::MAX, age_max: None, measure: Unmeasured }
    }

    /// Batches of a count that is left to the tuner. It begins with as many items as fill 16 KiB, but at least 10 and at most
    /// 500.
    pub fn auto() -> Self {
        Batch { count: Setting::Auto, bytes_max: usize::MAX, age_max: None, measure: Unmeasured }
    }

    /// Also complete at `bytes`, as `measure` counts them, and before it would exceed them. A single larger item is a
    /// batch of its own.
    ///
    /// # Panics
    /// If `bytes` is 0.
    pub fn bytes<W>(self, bytes: usize, measure: W) -> Batch<W> {
        assert!(bytes > 0, "a batch of no bytes is never complete");
        let Batch { count, age_max, .. } = self;
        Batch { count, bytes_max: bytes, age_max, measure }
    }
}

impl<W> Batch<W> {
    /// Also complete when its oldest item has waited for `age`. Without it a batch waits for its items for ever,
    /// until the flow ends.
    pub fn age(mut self, age: Duration) -> Self {
        self.age_max = Some(bounded(age));
        self
    }

    pub(crate) fn knob<T>(&self, name: String) -> Knob {
        let max = match self.count {
            Setting::Fixed(count) => count,
            Setting::Auto => COUNT_MAX,
        };
        let first = (AUTO_BYTES / size_of::<T>().max(1)).clamp(AUTO_MIN, AUTO_MAX);
        Knob::new(name, self.count, first, 1..=max)
    }

    pub(crate) fn bytes_max(&self) -> Option<usize> {
        (self.bytes_max != usize::MAX).then_some(self.bytes_max)
    }
}

/// See [`Pipe::batch`](crate::Pipe::batch).
pub struct Batched<F: Flow, W> {
    upstream: F,
    rule: Batch<W>,
    count: Knob,
    scope: Arc<Scope>,
    open: Open<F::Item, F::Token>,
    /// Armed only while upstream has nothing more and a batch is open, so that a busy flow never touches it.
    timer: Timer,
    /// When the open batch is of age. Only while the timer is armed.
    due: Option<Instant>,
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
    fn is_full<W: Measure<T>>(&self, count: usize, rule: &Batch<W>) -> bool {
        self.items.len() >= count || (W::MEASURES && self.bytes >= rule.bytes_max)
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
        rule: &Batch<W>,
        over: &mut Option<(T, K, usize)>,
    ) -> Poll<Step>
    where
        F: Flow<Item = T, Token = K>,
        W: Measure<T>,
    {
        let Open { items, tokens, bytes } = self;
        upstream.poll_drive(cx, room, &mut |item, token| {
            let size = rule.measure.measure(&item);
            let sum = bytes.saturating_add(size);
            if sum > rule.bytes_max && !items.is_empty() {
                *over = Some((item, token, size));
                return ControlFlow::Break(());
            }
            *bytes = sum;
            items.push(item);
            token.join(tokens);
            if sum < rule.bytes_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
    }
}

impl<F: Flow, W> Batched<F, W> {
    pub(crate) fn new(upstream: F, rule: Batch<W>, count: Knob, scope: Arc<Scope>) -> Self {
        let open = Open { items: Vec::new(), tokens: Default::default(), bytes: 0 };
        Batched { upstream, rule, count, scope, open, timer: Timer::default(), due: None, ended: false }
    }

    /// True if the open batch has reached its age. Arms the timer if it is not.
    fn poll_age(&mut self, cx: &mut Context<'_>, age: Duration) -> bool {
        let due = *self.due.get_or_insert_with(|| Instant::now() + age);
        self.timer.poll_until(cx, due).is_ready()
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
        let count = self.count.value();
        let scope = self.scope.clone();
        let mut merged = Tally::new::<F::Token>(&scope.counts.merged);
        let mut emit = |(items, tokens): (Vec<F::Item>, Self::Token)| {
            merged.add(items.len() as u64 - 1);
            sink(items, tokens)
        };
        let mut emitted = 0;
        let step = loop {
            // Full, also because the tuner has lowered the count meanwhile.
            if self.open.is_full(count, &self.rule) {
                emitted += 1;
                let broke = emit(self.open.close(count)).is_break();
                if broke || emitted == max {
                    self.due = None;
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
                let step = self.open.fill_measured(&mut self.upstream, cx, room, &self.rule, &mut over);
                if let Some((item, token, bytes)) = over {
                    // Too large for the batch, so the batch goes, and this item begins the next one. Kept before the batch
                    // goes on: a panic further down costs that batch and not this item too.
                    let full = self.open.close(count);
                    self.open.add(item, token, bytes);
                    emitted += 1;
                    if emit(full).is_break() || emitted == max {
                        self.due = None;
                        self.ended = step == Poll::Ready(Step::End);
                        return Poll::Ready(Step::More);
                    }
                }
                step
            } else {
                self.open.fill(&mut self.upstream, cx, room)
            };
            self.ended = step == Poll::Ready(Step::End);
            if !self.ended && !self.open.is_full(count, &self.rule) {
                break step;
            }
        };
        if emitted > 0 {
            self.due = None;
        }
        // A flow that keeps closing batches needs no timer; one that waits, or that filters everything, does.
        if !self.open.items.is_empty()
            && (step.is_pending() || emitted == 0)
            && let Some(age) = self.rule.age_max
            && self.poll_age(cx, age)
            && emitted < max
        {
            self.due = None;
            let flow = emit(self.open.close(count));
            if flow.is_break() {
                return Poll::Ready(Step::More);
            }
        }
        step
    }
}

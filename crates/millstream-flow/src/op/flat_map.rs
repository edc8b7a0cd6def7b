//! One item in, any number out: `flat_map` and `unbatch`.
//!
//! What does not fit into a quantum stays in the operator, in place, so that a panic further down costs the one
//! part that was in hand and not those behind it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::flow::{Flow, Step};
use crate::held::Held;
use crate::op::{Discard, Tally};
use crate::scope::Scope;
use crate::stats::OpStats;
use crate::token::{Settle, Shares};

/// The parts of one item that are still to be pushed.
trait Parts<K> {
    type Item;
    /// The next part with its handle.
    fn next_part(&mut self) -> Option<(Self::Item, K)>;
    /// True if there is none.
    fn is_empty(&self) -> bool;
    /// How many there are at most.
    fn len_max(&self) -> usize;
}

/// Counts parts that are pushed; told when this goes, also by unwinding.
struct Made<'a> {
    parts: usize,
    room: &'a mut usize,
    pushed: &'a mut u64,
}

impl Drop for Made<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        *self.room = self.room.saturating_sub(self.parts);
        *self.pushed += self.parts as u64;
    }
}

/// Pushes parts until they, the room or the sink's patience end. Counts each before it is made: a panic while the
/// iterator goes on costs the part in hand, which the driver counts as dead.
#[inline]
fn push_parts<P: Parts<K>, K>(
    parts: &mut Option<P>,
    room: &mut usize,
    pushed: &mut u64,
    sink: &mut impl FnMut(P::Item, K) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut parts = Held::new(parts);
    let parts = &mut *parts;
    let flow = match parts {
        None => ControlFlow::Continue(()),
        // Where all parts have room, the loop need not look for its end at each.
        Some(rest) if rest.len_max() <= *room => push_rest::<P, K, false>(rest, room, pushed, sink),
        Some(rest) => push_rest::<P, K, true>(rest, room, pushed, sink),
    };
    if parts.as_ref().is_some_and(P::is_empty) {
        *parts = None;
    }
    if *room == 0 { ControlFlow::Break(()) } else { flow }
}

#[inline(always)]
fn push_rest<P: Parts<K>, K, const BOUNDED: bool>(
    rest: &mut P,
    room: &mut usize,
    pushed: &mut u64,
    sink: &mut impl FnMut(P::Item, K) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let max = *room;
    let mut made = Made { parts: 0, room, pushed };
    while !BOUNDED || made.parts < max {
        made.parts += 1;
        let Some((item, token)) = rest.next_part() else {
            made.parts -= 1;
            break;
        };
        sink(item, token)?;
    }
    ControlFlow::Continue(())
}

/// What to answer after upstream's step, when parts may be left over from it.
fn after<P>(step: Poll<Step>, rest: &Option<P>, ended: &mut bool) -> Poll<Step> {
    match step {
        Poll::Ready(Step::End) if rest.is_some() => {
            *ended = true;
            Poll::Ready(Step::More)
        }
        step => step,
    }
}

/// The parts of a `flat_map`ped item. How many there are is not known, so the one after next is always looked
/// up before the next is pushed: the last part takes the token itself.
pub(crate) struct Rest<I: IntoIterator, K> {
    next: Option<I::Item>,
    after: I::IntoIter,
    token: Option<K>,
}

impl<I: IntoIterator, K: Settle> Parts<K> for Rest<I, K> {
    type Item = I::Item;

    #[inline]
    fn next_part(&mut self) -> Option<(I::Item, K)> {
        let part = self.next.take()?;
        // On the stack while the iterator works: if it panics, unwinding hands the token to the driver.
        let token = self.token.take()?;
        self.next = self.after.next();
        if self.next.is_none() {
            return Some((part, token));
        }
        let share = token.share();
        self.token = Some(token);
        Some((part, share))
    }

    fn is_empty(&self) -> bool {
        self.next.is_none()
    }

    fn len_max(&self) -> usize {
        usize::MAX
    }
}

/// See [`Pipe::flat_map`](crate::Pipe::flat_map).
pub struct FlatMap<F: Flow, I: IntoIterator, M> {
    upstream: F,
    map: M,
    op: Arc<OpStats>,
    scope: Arc<Scope>,
    rest: Option<Rest<I, F::Token>>,
    ended: bool,
}

impl<F: Flow, I: IntoIterator, M> FlatMap<F, I, M> {
    pub(crate) fn new(upstream: F, map: M, op: Arc<OpStats>, scope: Arc<Scope>) -> Self {
        FlatMap { upstream, map, op, scope, rest: None, ended: false }
    }
}

impl<F, I, M> Flow for FlatMap<F, I, M>
where
    F: Flow,
    I: IntoIterator,
    M: FnMut(F::Item) -> I,
{
    type Item = I::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(I::Item, F::Token) -> ControlFlow<()>,
    {
        let mut room = max;
        // Parts pushed less items that entered is what splitting added; entries are counted as they are split.
        let mut split = Tally::new::<F::Token>(&self.scope.counts.split);
        if push_parts(&mut self.rest, &mut room, split.count(), sink).is_break() {
            return Poll::Ready(Step::More);
        }
        if self.ended {
            return Poll::Ready(Step::End);
        }
        let mut entered = Tally::new::<F::Token>(&self.scope.counts.merged);
        let mut dropped = Discard::<F::Token>::new(&self.op);
        let (map, rest) = (&mut self.map, &mut self.rest);
        let step = self.upstream.poll_drive(cx, room, &mut |item, token| {
            let mut after = map(item).into_iter();
            let next = after.next();
            if next.is_none() {
                dropped.add(token);
                return ControlFlow::Continue(());
            }
            entered.add(1);
            *rest = Some(Rest { next, after, token: Some(token) });
            push_parts(rest, &mut room, split.count(), sink)
        });
        after(step, &self.rest, &mut self.ended)
    }
}

/// The items of a batch that are still to be pushed.
pub(crate) struct BatchRest<T, K> {
    items: std::vec::IntoIter<T>,
    tokens: Shares<K>,
}

impl<T, K: Settle> Parts<K> for BatchRest<T, K> {
    type Item = T;

    #[inline]
    fn next_part(&mut self) -> Option<(T, K)> {
        let item = self.items.next()?;
        let apart = K::TRACKED || K::CARRIES;
        let token = if apart { self.tokens.next_share() } else { self.tokens.untracked_share() };
        Some((item, token?))
    }

    fn is_empty(&self) -> bool {
        self.items.len() == 0
    }

    fn len_max(&self) -> usize {
        self.items.len()
    }
}

/// See [`Pipe::unbatch`](crate::Pipe::unbatch).
pub struct Unbatch<F: Flow, T> {
    upstream: F,
    op: Arc<OpStats>,
    scope: Arc<Scope>,
    rest: Option<BatchRest<T, F::Token>>,
    ended: bool,
}

impl<F: Flow, T> Unbatch<F, T> {
    pub(crate) fn new(upstream: F, op: Arc<OpStats>, scope: Arc<Scope>) -> Self {
        Unbatch { upstream, op, scope, rest: None, ended: false }
    }
}

impl<F: Flow<Item = Vec<T>>, T> Flow for Unbatch<F, T> {
    type Item = T;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(T, F::Token) -> ControlFlow<()>,
    {
        let mut room = max;
        // Counted when the batch was opened, all at once.
        let mut pushed = 0;
        if push_parts(&mut self.rest, &mut room, &mut pushed, sink).is_break() {
            return Poll::Ready(Step::More);
        }
        if self.ended {
            return Poll::Ready(Step::End);
        }
        let mut dropped = Discard::<F::Token>::new(&self.op);
        let mut split = Tally::new::<F::Token>(&self.scope.counts.split);
        let rest = &mut self.rest;
        let step = self.upstream.poll_drive(cx, room, &mut |items, token| {
            if items.is_empty() {
                dropped.add(token);
                return ControlFlow::Continue(());
            }
            split.add(items.len() as u64 - 1);
            let tokens = token.shares(items.len());
            *rest = Some(BatchRest { items: items.into_iter(), tokens });
            push_parts(rest, &mut room, &mut pushed, sink)
        });
        after(step, &self.rest, &mut self.ended)
    }
}

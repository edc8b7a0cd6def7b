//! The last so many items, after each so many.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::aggregate::Aggregate;
use super::keys::{Entry, Keys};
use super::panes::Panes;
use super::{Closed, Emit, INTAKE, Key, TimeOf, common_divisor, nanos};
use crate::flow::{Flow, Step};
use crate::op::Tally;
use crate::scope::Scope;
use crate::stats::OpStats;
use crate::token::{Outcome, Settle};

/// See [`Pipe::window`](crate::Pipe::window): windows that move on by a number of items.
pub(crate) struct Moving<F: Flow, C, Q, N, A: Aggregate<F::Item>, O: Emit<F::Item, Q, A::Output>> {
    upstream: F,
    book: Book<F::Item, F::Token, C, Q, N, A, O>,
    scope: Arc<Scope>,
}

/// The newest items of one key.
struct Last<S, G> {
    panes: Panes<S, G>,
    seen: i64,
}

struct Book<T, K: Settle, C, Q, N, A: Aggregate<T>, O: Emit<T, Q, A::Output>> {
    key: N,
    aggregate: A,
    time: C,
    items: i64,
    every: i64,
    /// Items of a pane.
    pane: i64,
    keys_max: usize,
    keys: Keys<Q, Last<A::State, K::Group>>,
    leaving: VecDeque<(O::Item, K::Group)>,
    op: Arc<OpStats>,
    ended: bool,
    /// Where the end of the flow has come to.
    flushed: usize,
    emits: PhantomData<fn() -> O>,
}

impl<T, K, C, Q, N, A, O> Book<T, K, C, Q, N, A, O>
where
    K: Settle,
    C: TimeOf<T>,
    Q: Key,
    N: FnMut(&T) -> Q,
    A: Aggregate<T>,
    O: Emit<T, Q, A::Output>,
{
    #[inline]
    fn accept(&mut self, item: T, token: K, now: i64, entered: &mut Tally<'_>) -> ControlFlow<()> {
        let time = if C::EVENT { nanos(self.time.time(&item)) } else { now };
        let key = (self.key)(&item);
        let (slot, new) = self.keys.slot(key, || Last { panes: Panes::new(), seen: 0 });
        if new && let Some(entry) = self.keys.evict(slot, self.keys_max) {
            self.give_up(entry, Closed::Evicted);
        }
        let Some(Entry { key, state: last, .. }) = self.keys.get(slot) else {
            unreachable!("the slot was looked up just now")
        };
        let (part, tokens) = last.panes.pane(last.seen / self.pane, &self.aggregate);
        part.add(&self.aggregate, time, item);
        token.join(tokens);
        entered.add(1);
        last.seen += 1;
        if last.seen % self.every == 0 {
            let end = last.seen / self.pane;
            let next = end + (self.every - self.items) / self.pane;
            if let Some((part, tokens)) = last.panes.fire(end, next, &self.aggregate) {
                let times = (part.from, part.to);
                let window = part.finish(&self.aggregate, key.clone(), times, Closed::Count);
                self.leaving.push_back((O::window(window), tokens));
            }
        }
        if self.leaving.is_empty() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// The last window of a key, if items have come that are in none yet. The others have been in theirs.
    fn give_up(&mut self, entry: Entry<Q, Last<A::State, K::Group>>, closed: Closed) {
        let Entry { key, state: Last { mut panes, seen }, .. } = entry;
        if seen % self.every != 0 {
            let end = (seen - 1) / self.pane + 1;
            if let Some((part, tokens)) = panes.fire(end, end, &self.aggregate) {
                let times = (part.from, part.to);
                let window = part.finish(&self.aggregate, key, times, closed);
                self.leaving.push_back((O::window(window), tokens));
            }
        }
        if K::TRACKED {
            panes.into_tokens().settle(&Outcome::Dropped(self.op.name()));
        }
    }

    /// Hands on what is complete. Break: there is no more room, or the sink broke off.
    fn hand_on(
        &mut self,
        room: &mut usize,
        made: &mut Tally<'_>,
        sink: &mut impl FnMut(O::Item, K::Group) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        loop {
            while !self.leaving.is_empty() {
                if *room == 0 {
                    return ControlFlow::Break(());
                }
                let Some((item, tokens)) = self.leaving.pop_front() else { break };
                made.add(1);
                *room -= 1;
                sink(item, tokens)?;
            }
            if !self.ended || self.flushed >= self.keys.slots() {
                return ControlFlow::Continue(());
            }
            let slot = self.flushed;
            self.flushed += 1;
            if let Some(entry) = self.keys.remove(slot) {
                self.give_up(entry, Closed::End);
            }
        }
    }
}

impl<F, C, Q, N, A, O> Moving<F, C, Q, N, A, O>
where
    F: Flow,
    C: TimeOf<F::Item>,
    Q: Key,
    N: FnMut(&F::Item) -> Q,
    A: Aggregate<F::Item>,
    O: Emit<F::Item, Q, A::Output>,
{
    pub(crate) fn new(
        upstream: F,
        (items, every): (u64, u64),
        (time, keys_max): (C, usize),
        key: N,
        aggregate: A,
        (op, scope): (Arc<OpStats>, Arc<Scope>),
    ) -> Self {
        let (items, every) = (items as i64, every as i64);
        let book = Book {
            key,
            aggregate,
            time,
            items,
            every,
            pane: common_divisor(items, every),
            keys_max,
            keys: Keys::new(),
            leaving: VecDeque::new(),
            op,
            ended: false,
            flushed: 0,
            emits: PhantomData,
        };
        Moving { upstream, book, scope }
    }

    /// What one key may take.
    pub(crate) fn key_bytes(items: u64, every: u64) -> usize {
        let panes = items as i64 / common_divisor(items as i64, every as i64) + 1;
        let panes =
            (panes as usize).saturating_mul(Panes::<A::State, <F::Token as Settle>::Group>::PANE_BYTES);
        Keys::<Q, Last<A::State, <F::Token as Settle>::Group>>::ENTRY_BYTES.saturating_add(panes)
    }
}

impl<F, C, Q, N, A, O> Flow for Moving<F, C, Q, N, A, O>
where
    F: Flow,
    C: TimeOf<F::Item>,
    Q: Key,
    N: FnMut(&F::Item) -> Q,
    A: Aggregate<F::Item>,
    O: Emit<F::Item, Q, A::Output>,
{
    type Item = O::Item;
    type Token = <F::Token as Settle>::Group;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(O::Item, Self::Token) -> ControlFlow<()>,
    {
        let now = if C::EVENT { 0 } else { nanos(self.scope.clock().now()) };
        let Moving { upstream, book, scope } = self;
        let mut room = max;
        let mut made = Tally::new::<F::Token>(&scope.counts.split);
        if book.hand_on(&mut room, &mut made, sink).is_break() {
            return Poll::Ready(Step::More);
        }
        if book.ended {
            return Poll::Ready(Step::End);
        }
        let mut entered = Tally::new::<F::Token>(&scope.counts.merged);
        let step = upstream
            .poll_drive(cx, room.max(INTAKE), &mut |item, token| book.accept(item, token, now, &mut entered));
        drop(entered);
        book.ended = step == Poll::Ready(Step::End);
        if book.hand_on(&mut room, &mut made, sink).is_break() {
            return Poll::Ready(Step::More);
        }
        if book.ended { Poll::Ready(Step::End) } else { step }
    }
}

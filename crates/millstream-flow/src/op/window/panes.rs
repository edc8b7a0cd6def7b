//! Pieces of overlapping windows, and the value of the newest window at the cost of two merges.

use std::collections::VecDeque;
use std::mem;

use super::aggregate::Aggregate;
use super::spec::moment;
use super::{Closed, Windowed};
use crate::token::Settle;

/// A value under way, how many items are in it, and when the first and the last of them was.
pub(super) struct Part<S> {
    pub(super) state: S,
    pub(super) items: u64,
    pub(super) from: i64,
    pub(super) to: i64,
}

impl<S> Part<S> {
    pub(super) fn new<T>(aggregate: &impl Aggregate<T, State = S>) -> Self {
        Part { state: aggregate.start(), items: 0, from: i64::MAX, to: i64::MIN }
    }

    #[inline]
    pub(super) fn add<T>(&mut self, aggregate: &impl Aggregate<T, State = S>, time: i64, item: T) {
        aggregate.add(&mut self.state, item);
        self.items += 1;
        self.from = self.from.min(time);
        self.to = self.to.max(time);
    }

    pub(super) fn merge<T>(&mut self, aggregate: &impl Aggregate<T, State = S>, later: &Part<S>) {
        aggregate.merge(&mut self.state, &later.state);
        self.items += later.items;
        self.from = self.from.min(later.from);
        self.to = self.to.max(later.to);
    }

    /// The window's value, with its key and its times.
    pub(super) fn finish<T, Q, A: Aggregate<T, State = S>>(
        self,
        aggregate: &A,
        key: Q,
        (start, end): (i64, i64),
        closed: Closed,
    ) -> Windowed<Q, A::Output> {
        let Part { state, items, .. } = self;
        let value = aggregate.finish(state);
        Windowed { key, start: moment(start), end: moment(end), items, value, closed }
    }
}

struct Pane<S, G> {
    number: i64,
    part: Part<S>,
    tokens: G,
}

/// The panes of one key, oldest first.
///
/// # Invariants
///
/// `front.len() + behind <= panes.len()`. `front[i]`, counted from its end, is the value of the panes from the `i`-th on to the
/// last of the first `front.len()`; `back` is that of the `behind` panes that follow.
pub(super) struct Panes<S, G> {
    panes: VecDeque<Pane<S, G>>,
    front: Vec<Part<S>>,
    back: Option<Part<S>>,
    behind: usize,
}

impl<S, G: Settle<Group = G> + Default> Panes<S, G> {
    pub(super) fn new() -> Self {
        Panes { panes: VecDeque::new(), front: Vec::new(), back: None, behind: 0 }
    }

    pub(super) const PANE_BYTES: usize = 2 * (size_of::<Pane<S, G>>() + size_of::<Part<S>>());

    pub(super) fn is_empty(&self) -> bool {
        self.panes.is_empty()
    }

    /// The tokens of all panes that are left, which are in no window any more.
    pub(super) fn into_tokens(self) -> G {
        let mut tokens = G::default();
        self.panes.into_iter().for_each(|pane| pane.tokens.join(&mut tokens));
        tokens
    }

    /// The number of the oldest pane.
    pub(super) fn first(&self) -> Option<i64> {
        self.panes.front().map(|pane| pane.number)
    }

    /// The pane of this number, for something to be added.
    #[inline]
    pub(super) fn pane<T>(
        &mut self,
        number: i64,
        aggregate: &impl Aggregate<T, State = S>,
    ) -> (&mut Part<S>, &mut G) {
        let mut at = self.panes.len();
        while at > 0 && self.panes[at - 1].number > number {
            at -= 1;
        }
        let known = at > 0 && self.panes[at - 1].number == number;
        if known {
            at -= 1;
        }
        if at < self.front.len() + self.behind {
            // It is part of a value that was kept: that is made anew when it is next needed.
            self.front.clear();
            self.back = None;
            self.behind = 0;
        }
        if !known {
            let part = Part::new(aggregate);
            self.panes.insert(at, Pane { number, part, tokens: G::default() });
        }
        let pane = &mut self.panes[at];
        (&mut pane.part, &mut pane.tokens)
    }

    /// The value of the panes before number `end`, none of which the window is too short for, and its tokens. Panes before
    /// number `next` are in no later window. `None` if there is no pane in the window.
    pub(super) fn fire<T>(
        &mut self,
        end: i64,
        next: i64,
        aggregate: &impl Aggregate<T, State = S>,
    ) -> Option<(Part<S>, G)> {
        if self.panes.front().is_none_or(|pane| pane.number >= end) {
            return None;
        }
        let alone = self.panes.get(1).is_none_or(|pane| pane.number >= end);
        if alone && self.front.is_empty() && self.panes[0].number < next {
            // All of the window, and in no other: nothing to put together.
            (self.back, self.behind) = (None, 0);
            let pane = self.panes.pop_front()?;
            return (pane.part.items > 0).then_some((pane.part, pane.tokens));
        }
        let known = self.front.len() + self.behind;
        for pane in self.panes.iter().skip(known).take_while(|pane| pane.number < end) {
            self.back.get_or_insert_with(|| Part::new(aggregate)).merge(aggregate, &pane.part);
            self.behind += 1;
        }
        let mut value = Part::new(aggregate);
        for part in self.front.last().into_iter().chain(&self.back) {
            value.merge(aggregate, part);
        }
        let mut tokens = G::default();
        while self.panes.front().is_some_and(|pane| pane.number < next && pane.number < end) {
            if self.front.is_empty() {
                self.turn(aggregate);
            }
            self.front.pop();
            if let Some(pane) = self.panes.pop_front() {
                pane.tokens.join(&mut tokens);
            }
        }
        if G::TRACKED || G::CARRIES {
            for pane in self.panes.iter().take_while(|pane| pane.number < end) {
                pane.tokens.share().join(&mut tokens);
            }
        }
        // A pane is without items if the aggregate panicked over its first.
        (value.items > 0).then_some((value, tokens))
    }

    /// Turns what was put together from its beginning into what can be taken off its beginning.
    fn turn<T>(&mut self, aggregate: &impl Aggregate<T, State = S>) {
        let count = mem::take(&mut self.behind);
        self.back = None;
        // In hand until it is whole: if `aggregate` panics, nothing is kept.
        let mut front = mem::take(&mut self.front);
        for pane in self.panes.iter().take(count).rev() {
            let mut part = Part::new(aggregate);
            part.merge(aggregate, &pane.part);
            if let Some(later) = front.last() {
                part.merge(aggregate, later);
            }
            front.push(part);
        }
        self.front = front;
    }
}

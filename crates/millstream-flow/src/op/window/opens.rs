//! The open windows of one key.

use std::mem;

use super::Limits;
use super::aggregate::Aggregate;
use super::panes::Part;
use crate::token::Settle;

/// One open window.
pub(super) struct Open<S, G> {
    pub(super) part: Part<S>,
    pub(super) tokens: G,
    /// It was made by an item whose window would have been complete.
    pub(super) late: bool,
}

/// The open windows of one key: by arrival there is never more than one.
pub(super) struct Opens<S, G> {
    pub(super) newest: Open<S, G>,
    pub(super) others: Vec<Open<S, G>>,
    /// Tells it from others that had its slot.
    pub(super) id: u64,
}

impl<S, G: Settle<Group = G> + Default> Opens<S, G> {
    pub(super) fn len(&self) -> usize {
        self.others.len() + 1
    }

    pub(super) fn get(&mut self, at: usize) -> &mut Open<S, G> {
        if at < self.others.len() { &mut self.others[at] } else { &mut self.newest }
    }

    pub(super) fn part(&self, at: usize) -> &Part<S> {
        &self.others.get(at).unwrap_or(&self.newest).part
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = &Part<S>> {
        self.others.iter().chain([&self.newest]).map(|open| &open.part)
    }

    /// Takes one out, if another is left.
    pub(super) fn take(&mut self, at: usize) -> Option<Open<S, G>> {
        if at < self.others.len() {
            return Some(self.others.remove(at));
        }
        let next = self.others.pop()?;
        Some(mem::replace(&mut self.newest, next))
    }

    /// The window that an item of this time belongs to: the first in time that it fits. One that it joins to others takes
    /// them in, as far as the limits go; where there is none, one is made.
    pub(super) fn place<T>(
        &mut self,
        time: i64,
        limits: Limits,
        late: bool,
        aggregate: &impl Aggregate<T, State = S>,
    ) -> usize {
        let fitting = self.parts().zip(0..).filter(|(part, _)| limits.fits(part, time));
        let Some((_, mut first)) = fitting.map(|(part, at)| (part.from, at)).min() else {
            let before = mem::replace(&mut self.newest, Open::new(late, aggregate));
            self.others.push(before);
            return self.others.len();
        };
        while limits.gap.is_some() {
            let one = self.part(first);
            let others = self.parts().zip(0..).filter(|(part, at)| *at != first && limits.fits(part, time));
            let joins = others.filter(|(part, _)| limits.join(one, part, time));
            let Some((_, at)) = joins.map(|(part, at)| (part.from, at)).min() else { break };
            let Some(open) = self.take(at) else { break };
            // In place of the newest comes the last of the others, whose number stays.
            first -= usize::from(first > at);
            self.get(first).join(open, aggregate);
        }
        first
    }
}

impl<S, G: Settle<Group = G> + Default> Open<S, G> {
    pub(super) fn new<T>(late: bool, aggregate: &impl Aggregate<T, State = S>) -> Self {
        Open { part: Part::new(aggregate), tokens: G::default(), late }
    }

    pub(super) fn join<T>(&mut self, mut other: Self, aggregate: &impl Aggregate<T, State = S>) {
        if other.part.from < self.part.from {
            mem::swap(self, &mut other);
        }
        self.part.merge(aggregate, &other.part);
        other.tokens.join(&mut self.tokens);
    }
}

impl Limits {
    /// When a window is over by time.
    #[inline]
    pub(super) fn end<S>(&self, part: &Part<S>) -> i64 {
        let gap = self.gap.map_or(i64::MAX, |gap| part.to.saturating_add(gap));
        let age = self.age.map_or(i64::MAX, |age| part.from.saturating_add(age));
        gap.min(age)
    }

    /// When a window would be over that holds nothing but an item of this time.
    #[inline]
    pub(super) fn alone(&self, time: i64) -> i64 {
        time.saturating_add(self.gap.unwrap_or(i64::MAX).min(self.age.unwrap_or(i64::MAX)))
    }

    /// Whether two windows and an item between them may be one.
    pub(super) fn join<S>(&self, one: &Part<S>, other: &Part<S>, time: i64) -> bool {
        let (from, to) = (one.from.min(other.from).min(time), one.to.max(other.to).max(time));
        self.age.is_none_or(|age| to < from.saturating_add(age))
            && self.items.is_none_or(|most| one.items + other.items < most)
    }

    pub(super) fn is_timed(&self) -> bool {
        self.gap.is_some() || self.age.is_some()
    }

    /// Whether an item of this time belongs to the window.
    #[inline]
    pub(super) fn fits<S>(&self, part: &Part<S>, time: i64) -> bool {
        self.gap.is_none_or(|gap| time < part.to.saturating_add(gap) && part.from < time.saturating_add(gap))
            && self
                .age
                .is_none_or(|age| time < part.from.saturating_add(age) && part.to < time.saturating_add(age))
    }
}

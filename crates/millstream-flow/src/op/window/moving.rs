//! The last so many items, after each so many.

use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::aggregate::Aggregate;
use super::course::{Book, Course, Told};
use super::keys::{Entry, Keys};
use super::panes::Panes;
use super::spec::common_divisor;
use super::{Closed, Emit, Key, TimeOf};
use crate::op::Tally;
use crate::stats::OpStats;
use crate::token::{Outcome, Settle};

/// The newest items of one key.
struct Last<S, G> {
    panes: Panes<S, G>,
    seen: i64,
}

/// Windows that move on by a number of items.
pub(crate) struct Moving<T, K: Settle, C, Q, N, A: Aggregate<T>, O: Emit<T, Q, A::Output>> {
    key: N,
    aggregate: A,
    items: i64,
    every: i64,
    /// Items of a pane.
    pane: i64,
    keys_max: usize,
    keys: Keys<Q, Last<A::State, K::Group>>,
    course: Course<C, O::Item, K::Group>,
    op: Arc<OpStats>,
    /// Where the end of the flow has come to.
    flushed: usize,
    emits: PhantomData<fn() -> O>,
}

impl<T, K, C, Q, N, A, O> Moving<T, K, C, Q, N, A, O>
where
    K: Settle,
    C: TimeOf<T>,
    Q: Key,
    N: FnMut(&T) -> Q,
    A: Aggregate<T>,
    O: Emit<T, Q, A::Output>,
{
    pub(crate) fn new(
        (items, every): (u64, u64),
        time: C,
        keys_max: usize,
        key: N,
        aggregate: A,
        op: Arc<OpStats>,
    ) -> Self {
        let (items, every) = (items as i64, every as i64);
        Moving {
            key,
            aggregate,
            items,
            every,
            pane: common_divisor(items, every),
            keys_max,
            keys: Keys::new(),
            course: Course::new(time),
            op,
            flushed: 0,
            emits: PhantomData,
        }
    }

    /// What one key may take.
    pub(crate) fn key_bytes(items: u64, every: u64) -> usize {
        let panes = items as i64 / common_divisor(items as i64, every as i64) + 1;
        let panes = (panes as usize).saturating_mul(Panes::<A::State, K::Group>::PANE_BYTES);
        Keys::<Q, Last<A::State, K::Group>>::ENTRY_BYTES.saturating_add(panes)
    }

    /// The last window of a key, if items have come that are in none yet. The others have been in theirs.
    fn give_up(&mut self, entry: Entry<Q, Last<A::State, K::Group>>, closed: Closed) {
        let Entry { key, state: Last { mut panes, seen }, .. } = entry;
        if seen % self.every != 0 {
            let end = (seen - 1) / self.pane + 1;
            if let Some((part, tokens)) = panes.fire(end, end, &self.aggregate) {
                let times = (part.from, part.to);
                let window = part.finish(&self.aggregate, key, times, closed);
                self.course.leave(O::window(window), tokens);
            }
        }
        if K::TRACKED {
            panes.into_tokens().settle(&Outcome::Dropped(self.op.name()));
        }
    }
}

impl<T, K, C, Q, N, A, O> Book<T, K> for Moving<T, K, C, Q, N, A, O>
where
    K: Settle,
    C: TimeOf<T>,
    Q: Key,
    N: FnMut(&T) -> Q,
    A: Aggregate<T>,
    O: Emit<T, Q, A::Output>,
{
    type Time = C;
    type Value = O::Item;

    fn course(&mut self) -> &mut Course<C, O::Item, K::Group> {
        &mut self.course
    }

    #[inline]
    fn accept(&mut self, item: T, token: K, now: i64, told: &mut Told<'_, K>) -> ControlFlow<()> {
        let (time, _) = self.course.see(&item, now);
        let key = (self.key)(&item);
        let (slot, new) = self.keys.slot(key, || Last { panes: Panes::new(), seen: 0 });
        if new && let Some(entry) = self.keys.evict(self.keys_max) {
            self.give_up(entry, Closed::Evicted);
        }
        let Some(Entry { key, state: last, .. }) = self.keys.get(slot) else {
            unreachable!("the slot was looked up just now")
        };
        let (part, tokens) = last.panes.pane(last.seen / self.pane, &self.aggregate);
        part.add(&self.aggregate, time, item);
        token.join(tokens);
        told.entered.add(1);
        last.seen += 1;
        if last.seen % self.every == 0 {
            let end = last.seen / self.pane;
            let next = end + (self.every - self.items) / self.pane;
            if let Some((part, tokens)) = last.panes.fire(end, next, &self.aggregate) {
                let times = (part.from, part.to);
                let window = part.finish(&self.aggregate, key.clone(), times, Closed::Count);
                self.course.leave(O::window(window), tokens);
            }
        }
        if self.course.is_clear() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    fn hand_on(
        &mut self,
        room: &mut usize,
        made: &mut Tally<'_>,
        sink: &mut impl FnMut(O::Item, K::Group) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        loop {
            self.course.hand_on(room, made, sink)?;
            if !self.course.ended || self.flushed >= self.keys.slots() {
                return ControlFlow::Continue(());
            }
            let slot = self.flushed;
            self.flushed += 1;
            if let Some(entry) = self.keys.remove(slot) {
                self.give_up(entry, Closed::End);
            }
        }
    }

    fn next_end(&self) -> Option<i64> {
        None
    }

    fn last_end(&self) -> i64 {
        i64::MIN
    }
}

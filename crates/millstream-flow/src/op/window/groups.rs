//! Sessions, and windows of a count.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::marker::PhantomData;
use std::mem;
use std::ops::ControlFlow;

use super::aggregate::Aggregate;
use super::course::{Book, Course, Told, alone};
use super::keys::{Entry, Keys};
use super::opens::{Open, Opens};
use super::{Closed, Emit, Key, Limits, TimeOf};
use crate::op::Tally;
use crate::token::Settle;

/// As many entries as this of `due`, and twice as many as there are keys, may be of windows that are closed.
const DUE_SPARE: usize = 64;

/// Sessions, and windows of a count: what is open, and what of it is complete.
pub(crate) struct Groups<T, K: Settle, C, Q, N, A: Aggregate<T>, O: Emit<T, Q, A::Output>> {
    key: N,
    aggregate: A,
    limits: Limits,
    keys_max: usize,
    keys: Keys<Q, Opens<A::State, K::Group>>,
    /// No later than the end of a window, its slot, and its key's id: one at least for each key.
    due: BinaryHeap<Reverse<(i64, usize, u64)>>,
    ids: u64,
    course: Course<C, O::Item, K::Group>,
    /// Where the end of the flow has come to.
    flushed: usize,
    emits: PhantomData<fn() -> O>,
}

impl<T, K, C, Q, N, A, O> Groups<T, K, C, Q, N, A, O>
where
    K: Settle,
    C: TimeOf<T>,
    Q: Key,
    N: FnMut(&T) -> Q,
    A: Aggregate<T>,
    O: Emit<T, Q, A::Output>,
{
    pub(crate) fn new(limits: Limits, time: C, keys_max: usize, key: N, aggregate: A) -> Self {
        Groups {
            key,
            aggregate,
            limits,
            keys_max,
            keys: Keys::new(),
            due: BinaryHeap::new(),
            ids: 0,
            course: Course::new(time),
            flushed: 0,
            emits: PhantomData,
        }
    }

    /// What one key may take: its window, and others that are ahead of the watermark.
    pub(crate) fn key_bytes(limits: Limits, time: &C) -> usize {
        let apart = limits.gap.unwrap_or(i64::MAX).min(limits.age.unwrap_or(i64::MAX));
        let others = (time.patience().delay / apart) as usize;
        let others = others.saturating_mul(2 * size_of::<Open<A::State, K::Group>>());
        let own =
            Keys::<Q, Opens<A::State, K::Group>>::ENTRY_BYTES + 2 * size_of::<Reverse<(i64, usize, u64)>>();
        own.saturating_add(others)
    }

    /// Leaves one entry for each key in `due`: windows that were closed by their count leave theirs behind.
    #[cold]
    fn forget_closed(&mut self) {
        let mut due = mem::take(&mut self.due).into_vec();
        due.clear();
        for slot in 0..self.keys.slots() {
            let Some(Entry { state, .. }) = self.keys.get(slot) else { continue };
            let ends = state.parts().filter(|part| part.items > 0).map(|part| self.limits.end(part));
            due.extend(ends.min().map(|end| Reverse((end, slot, state.id))));
        }
        self.due = due.into();
    }

    /// Whether windows may be complete that were not handed on.
    fn is_due(&self) -> bool {
        self.due.peek().is_some_and(|Reverse((end, ..))| *end <= self.course.watermark)
    }

    fn interrupt(&self) -> ControlFlow<()> {
        if self.course.is_clear() && !self.is_due() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    }

    /// Gives up a key if there is one too many. Its windows are not complete.
    fn evict(&mut self) {
        if let Some(entry) = self.keys.evict(self.keys_max) {
            self.give_up(entry.key, entry.state);
        }
    }

    /// Whether a late item is later than may be, and no open window is left that it fits.
    #[cold]
    fn is_too_late(&mut self, key: &Q, time: i64) -> bool {
        let limits = self.limits;
        if limits.alone(time) > self.course.too_late() {
            return false;
        }
        let Some(slot) = self.keys.find(key) else { return true };
        self.keys.get(slot).is_none_or(|entry| !entry.state.parts().any(|part| limits.fits(part, time)))
    }

    /// What a window that is closed hands on.
    fn leave(&mut self, key: Q, open: Open<A::State, K::Group>, closed: Closed) {
        let Open { part, tokens, late } = open;
        if part.items == 0 {
            // The aggregate panicked over its first.
            return;
        }
        let end = match closed {
            Closed::Count | Closed::Evicted => part.to,
            _ if self.limits.is_timed() => self.limits.end(&part),
            _ => part.to,
        };
        let closed = if late && closed == Closed::Time { Closed::Late } else { closed };
        let times = (part.from, end);
        let window = part.finish(&self.aggregate, key, times, closed);
        self.course.leave(O::window(window), tokens);
    }

    fn close(&mut self, slot: usize, at: usize, closed: Closed) {
        let Some(entry) = self.keys.get(slot) else { return };
        match entry.state.take(at) {
            Some(open) => {
                let key = entry.key.clone();
                self.leave(key, open, closed);
            }
            None => {
                let Some(Entry { key, state, .. }) = self.keys.remove(slot) else { return };
                self.leave(key, state.newest, closed);
            }
        }
    }

    #[cold]
    fn give_up(&mut self, key: Q, opens: Opens<A::State, K::Group>) {
        for open in opens.others.into_iter().chain([opens.newest]) {
            self.leave(key.clone(), open, Closed::Evicted);
        }
    }

    /// Closes the window that ends first of those whose time is over, or of all once upstream has ended. False if there is
    /// none.
    fn close_due(&mut self) -> bool {
        while let Some(&Reverse((end, slot, id))) = self.due.peek() {
            let over = end <= self.course.watermark;
            if !over && !self.course.ended {
                break;
            }
            self.due.pop();
            let limits = self.limits;
            let Some(entry) = self.keys.get(slot).filter(|entry| entry.state.id == id) else { continue };
            let ends = entry.state.parts().zip(0..).filter(|(part, _)| part.items > 0);
            let Some((first, at)) = ends.map(|(part, at)| (limits.end(part), at)).min() else { continue };
            let several = entry.state.len() > 1;
            if first > end || several {
                // It has been extended meanwhile, so others may end before it; or others of its key are left.
                self.due.push(Reverse((first, slot, id)));
            }
            if first <= end {
                self.close(slot, at, if over { Closed::Time } else { Closed::End });
                return true;
            }
        }
        if !self.course.ended {
            return false;
        }
        while self.flushed < self.keys.slots() {
            if self.keys.get(self.flushed).is_none() {
                self.flushed += 1;
                continue;
            }
            self.close(self.flushed, 0, Closed::End);
            return true;
        }
        false
    }
}

impl<T, K, C, Q, N, A, O> Book<T, K> for Groups<T, K, C, Q, N, A, O>
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
        let (time, in_order) = self.course.see(&item, now);
        let limits = self.limits;
        let key = (self.key)(&item);
        // A window for this item alone would be complete already.
        let late = !in_order && limits.alone(time) <= self.course.watermark;
        if late && self.is_too_late(&key, time) {
            match O::late(item) {
                Ok(item) => {
                    told.entered.add(1);
                    self.course.leave(item, alone(token));
                }
                Err(_) => told.dropped.add(token),
            }
            return self.interrupt();
        }
        let Groups { keys, aggregate, ids, .. } = self;
        let (slot, new) = keys.slot(key, || {
            *ids += 1;
            Opens { newest: Open::new(late, aggregate), others: Vec::new(), id: *ids }
        });
        // An item that completes windows, be it its own, leaves one key too many, until they are handed on.
        if new && !late && !self.is_due() {
            self.evict();
        }
        let Groups { keys, aggregate, .. } = self;
        let Some(Entry { state: opens, .. }) = keys.get(slot) else {
            unreachable!("the slot was looked up just now")
        };
        let newest = &opens.newest.part;
        // It has no item only if it is new, or if `aggregate` panicked over its first.
        let at = if newest.items == 0 || (opens.others.is_empty() && limits.fits(newest, time)) {
            opens.others.len()
        } else {
            opens.place(time, limits, late, aggregate)
        };
        let open = opens.get(at);
        let before = open.part.from;
        open.part.add(aggregate, time, item);
        token.join(&mut open.tokens);
        told.entered.add(1);
        let (items, end) = (open.part.items, limits.end(&open.part));
        // An item from before its first lets a window be of age earlier.
        let earlier = time < before && limits.age.is_some();
        if (items == 1 && limits.is_timed()) || earlier {
            let id = opens.id;
            self.due.push(Reverse((end, slot, id)));
            if self.due.len() > 2 * self.keys.len() + DUE_SPARE {
                self.forget_closed();
            }
        }
        if limits.items.is_some_and(|most| items >= most) {
            self.close(slot, at, Closed::Count);
            return ControlFlow::Break(());
        }
        self.interrupt()
    }

    fn hand_on(
        &mut self,
        room: &mut usize,
        made: &mut Tally<'_>,
        sink: &mut impl FnMut(O::Item, K::Group) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        loop {
            self.course.hand_on(room, made, sink)?;
            if self.close_due() {
                continue;
            }
            if self.keys.len() <= self.keys_max {
                return ControlFlow::Continue(());
            }
            self.evict();
        }
    }

    fn next_end(&self) -> Option<i64> {
        self.due.peek().map(|Reverse((end, ..))| *end)
    }

    fn last_end(&self) -> i64 {
        // No window ends later than one that began with the newest item.
        self.limits.alone(self.course.newest)
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use super::super::aggregate::Count;
    use super::super::course::Windows;
    use super::super::{Arrival, DropLate, Kind, Window};
    use super::*;
    use crate::flow::{Flow, Step};
    use crate::scope::Scope;
    use crate::source::FromIter;
    use crate::stats::OpStats;

    const ITEMS: u32 = if cfg!(miri) { 1_000 } else { 100_000 };

    #[tokio::test]
    async fn windows_that_were_closed_by_their_count_are_forgotten() {
        let scope = Scope::new();
        let Kind::Groups(limits) = Window::count(2).max_age(Duration::from_secs(3600)).kind else {
            unreachable!()
        };
        let upstream = FromIter::new(0..ITEMS, &scope);
        let book = Groups::<u32, (), _, _, _, _, DropLate>::new(limits, Arrival, 100, |n| n % 10, Count);
        let mut flow = Windows::new(upstream, book, OpStats::new("window"), scope);
        let mut context = Context::from_waker(Waker::noop());
        let (mut windows, mut most) = (0, 0);
        while flow.poll_drive(&mut context, 100, &mut |_, ()| {
            windows += 1;
            ControlFlow::Continue(())
        }) != Poll::Ready(Step::End)
        {
            most = most.max(flow.book().due.len());
        }
        assert_eq!(windows, ITEMS / 2);
        assert!(most <= 2 * 10 + DUE_SPARE, "{most} entries for ten keys");
    }
}

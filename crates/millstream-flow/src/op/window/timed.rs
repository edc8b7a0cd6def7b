//! Tumbling and sliding windows.

use std::marker::PhantomData;
use std::ops::ControlFlow;

use super::aggregate::Aggregate;
use super::course::{Book, Course, Told, alone};
use super::keys::{Entry, Keys};
use super::panes::{Panes, Part};
use super::spec::{Place, Spec};
use super::{Closed, Emit, Key, TimeOf};
use crate::op::Tally;
use crate::token::Settle;

/// Windows that are cut by time: what is open, and what of it is complete.
pub(crate) struct Timed<T, K: Settle, C, Q, N, A: Aggregate<T>, O: Emit<T, Q, A::Output>> {
    key: N,
    aggregate: A,
    spec: Spec,
    /// Where the last item was: the next is nearly always there too, and is spared four divisions.
    place: Place,
    keys_max: usize,
    keys: Keys<Q, Panes<A::State, K::Group>>,
    /// Empty ones, whose memory the next keys use.
    spare: Vec<Panes<A::State, K::Group>>,
    /// The earliest end of a window that holds something.
    next_end: Option<i64>,
    firing: Option<Firing>,
    course: Course<C, O::Item, K::Group>,
    emits: PhantomData<fn() -> O>,
}

/// Windows of one end are handed on, key after key.
#[derive(Clone, Copy)]
struct Firing {
    end: i64,
    slot: usize,
    /// The earliest end that is left behind it.
    next: Option<i64>,
}

fn sooner(end: Option<i64>, other: i64) -> Option<i64> {
    Some(end.map_or(other, |end| end.min(other)))
}

impl<T, K, C, Q, N, A, O> Timed<T, K, C, Q, N, A, O>
where
    K: Settle,
    C: TimeOf<T>,
    Q: Key,
    N: FnMut(&T) -> Q,
    A: Aggregate<T>,
    O: Emit<T, Q, A::Output>,
{
    pub(crate) fn new(spec: Spec, time: C, keys_max: usize, key: N, aggregate: A) -> Self {
        Timed {
            key,
            aggregate,
            spec,
            place: spec.place(0),
            keys_max,
            keys: Keys::new(),
            spare: Vec::new(),
            next_end: None,
            firing: None,
            course: Course::new(time),
            emits: PhantomData,
        }
    }

    /// What one key may take: the panes of a window, and those that are ahead of the watermark.
    pub(crate) fn key_bytes(spec: &Spec, time: &C) -> usize {
        let panes = (spec.size.saturating_add(time.patience().delay) / spec.pane) as usize + 2;
        let panes = panes.saturating_mul(Panes::<A::State, K::Group>::PANE_BYTES);
        Keys::<Q, Panes<A::State, K::Group>>::ENTRY_BYTES.saturating_add(panes)
    }

    fn interrupt(&self) -> ControlFlow<()> {
        if self.course.is_clear() && !self.is_due() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    }

    /// Whether windows are complete that were not handed on.
    fn is_due(&self) -> bool {
        self.next_end.is_some_and(|end| end <= self.course.watermark)
    }

    /// The slot of a key; a new one may cost another key its windows.
    #[inline]
    fn slot(&mut self, key: Q) -> usize {
        let spare = &mut self.spare;
        let (slot, new) = self.keys.slot(key, || spare.pop().unwrap_or_else(Panes::new));
        // An item that completes windows leaves one key too many, until they are handed on.
        if new && !self.is_due() {
            self.evict();
        }
        slot
    }

    /// Gives up a key if there is one too many.
    fn evict(&mut self) {
        if let Some(entry) = self.keys.evict(self.keys_max) {
            self.give_up(entry.key, entry.state);
        }
    }

    /// Gives up a key's windows, of which none is complete.
    #[cold]
    fn give_up(&mut self, key: Q, mut panes: Panes<A::State, K::Group>) {
        let mut end = self.first_open_end(&panes);
        while let Some(at) = end {
            if let Some((part, tokens)) = self.spec.fire(&mut panes, at, &self.aggregate) {
                let times = (at - self.spec.size, at);
                let window = part.finish(&self.aggregate, key.clone(), times, Closed::Evicted);
                self.course.leave(O::window(window), tokens);
            }
            end = self.spec.next_end(&panes, at);
        }
    }

    fn first_open_end(&self, panes: &Panes<A::State, K::Group>) -> Option<i64> {
        let first = panes.first()?;
        let end = self.spec.first_end(self.spec.pane_start(first));
        Some(end.max(self.spec.first_end_after(self.course.watermark)))
    }

    /// Takes in an item that comes after the end of one of its windows, or of all.
    #[cold]
    fn accept_late(&mut self, item: T, token: K, time: i64, told: &mut Told<'_, K>) -> ControlFlow<()> {
        let (first_end, last_end) = (self.spec.first_end(time), self.spec.last_end(time));
        let slide = self.spec.slide;
        let too_late = self.course.too_late();
        if last_end <= too_late {
            match O::late(item) {
                Ok(item) => {
                    told.entered.add(1);
                    self.course.leave(item, alone(token));
                }
                Err(_) => told.dropped.add(token),
            }
            return self.interrupt();
        }
        let key = (self.key)(&item);
        let mut value = Part::new(&self.aggregate);
        value.add(&self.aggregate, time, item);
        // One handle for each window that is told again, and one for those to come.
        let mut late = Vec::new();
        let mut end = first_end;
        while end <= last_end && end <= self.course.watermark {
            if end > too_late {
                let mut again = Part::new(&self.aggregate);
                again.merge(&self.aggregate, &value);
                late.push(again.finish(
                    &self.aggregate,
                    key.clone(),
                    (end - self.spec.size, end),
                    Closed::Late,
                ));
            }
            end += slide;
        }
        let in_time = end <= last_end;
        told.entered.add(1);
        let mut shares = token.shares(late.len() + usize::from(in_time));
        for window in late {
            if let Some(token) = shares.next_share() {
                self.course.leave(O::window(window), alone(token));
            }
        }
        if in_time && let Some(token) = shares.next_share() {
            let slot = self.slot(key);
            let Some(entry) = self.keys.get(slot) else { unreachable!("the slot was looked up just now") };
            let (part, tokens) = entry.state.pane(self.spec.pane_of(time), &self.aggregate);
            part.merge(&self.aggregate, &value);
            token.join(tokens);
            self.next_end = sooner(self.next_end, end);
        }
        self.interrupt()
    }
}

impl<T, K, C, Q, N, A, O> Book<T, K> for Timed<T, K, C, Q, N, A, O>
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
        if !self.place.holds(time) {
            self.place = self.spec.place(time);
        }
        let Place { pane, first_end, last_end, .. } = self.place;
        if last_end <= time {
            // Between two windows; it may have completed others.
            told.dropped.add(token);
            return self.interrupt();
        }
        if first_end <= self.course.watermark {
            return self.accept_late(item, token, time, told);
        }
        let key = (self.key)(&item);
        let slot = self.slot(key);
        let Some(entry) = self.keys.get(slot) else { unreachable!("the slot was looked up just now") };
        let (part, tokens) = entry.state.pane(pane, &self.aggregate);
        part.add(&self.aggregate, time, item);
        token.join(tokens);
        told.entered.add(1);
        self.next_end = sooner(self.next_end, first_end);
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
            let mut firing = match (self.firing, self.next_end) {
                (Some(firing), _) => firing,
                (None, Some(end)) if end <= self.course.watermark || self.course.ended => {
                    Firing { end, slot: 0, next: None }
                }
                _ if self.keys.len() > self.keys_max => {
                    self.evict();
                    continue;
                }
                _ => return ControlFlow::Continue(()),
            };
            let end = firing.end;
            let closed = if end <= self.course.watermark { Closed::Time } else { Closed::End };
            while firing.slot < self.keys.slots() {
                if *room == 0 {
                    self.firing = Some(firing);
                    return ControlFlow::Break(());
                }
                let slot = firing.slot;
                firing.slot += 1;
                let Some(entry) = self.keys.get(slot) else { continue };
                // Before what may panic: one key's trouble must neither keep the others waiting, nor be forgotten.
                self.firing = Some(Firing { next: sooner(firing.next, end + self.spec.slide), ..firing });
                let fired = self.spec.fire(&mut entry.state, end, &self.aggregate);
                if let Some(next) = self.spec.next_end(&entry.state, end) {
                    firing.next = sooner(firing.next, next);
                }
                self.firing = Some(firing);
                let key = if entry.state.is_empty() {
                    let Some(Entry { key, state, .. }) = self.keys.remove(slot) else { continue };
                    self.spare.push(state);
                    key
                } else if fired.is_some() {
                    entry.key.clone()
                } else {
                    continue;
                };
                let Some((part, tokens)) = fired else { continue };
                made.add(1);
                *room -= 1;
                let window = part.finish(&self.aggregate, key, (end - self.spec.size, end), closed);
                sink(O::window(window), tokens)?;
            }
            (self.next_end, self.firing) = (firing.next, None);
        }
    }

    fn next_end(&self) -> Option<i64> {
        self.next_end
    }

    fn last_end(&self) -> i64 {
        self.spec.last_end(self.course.newest)
    }
}

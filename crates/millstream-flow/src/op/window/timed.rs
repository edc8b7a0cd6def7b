//! Tumbling and sliding windows.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::aggregate::Aggregate;
use super::keys::{Entry, Keys};
use super::panes::{Panes, Part};
use super::{Closed, Emit, INTAKE, Key, Patience, Place, Spec, TimeOf, moment, nanos};
use crate::flow::{Flow, Step};
use crate::op::{Discard, Tally};
use crate::scope::Scope;
use crate::stats::OpStats;
use crate::timer::Timer;
use crate::token::Settle;

/// See [`Pipe::window`](crate::Pipe::window): windows that are cut by time.
pub(crate) struct Timed<F: Flow, C, Q, N, A: Aggregate<F::Item>, O: Emit<F::Item, Q, A::Output>> {
    upstream: F,
    book: Book<F::Item, F::Token, C, Q, N, A, O>,
    op: Arc<OpStats>,
    scope: Arc<Scope>,
    timer: Timer,
    /// When upstream fell silent.
    silent: Option<Instant>,
}

/// What is open, and what of it is complete.
struct Book<T, K: Settle, C, Q, N, A: Aggregate<T>, O: Emit<T, Q, A::Output>> {
    key: N,
    aggregate: A,
    time: C,
    spec: Spec,
    /// Where the last item was: the next is nearly always there too, and is spared four divisions.
    place: Place,
    patience: Patience,
    keys_max: usize,
    keys: Keys<Q, Panes<A::State, K::Group>>,
    /// Empty ones, whose memory the next keys use.
    spare: Vec<Panes<A::State, K::Group>>,
    /// The earliest end of a window that holds something.
    next_end: Option<i64>,
    /// Windows that ended by then are complete.
    watermark: i64,
    /// The newest time seen.
    newest: i64,
    firing: Option<Firing>,
    /// What goes on before anything else: late items, and windows of keys that were given up.
    leaving: VecDeque<(O::Item, K::Group)>,
    ended: bool,
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

/// A group of one.
fn alone<K: Settle>(token: K) -> K::Group {
    let mut tokens = K::Group::default();
    token.join(&mut tokens);
    tokens
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
    /// Takes an item in. Break: something is to be handed on.
    #[inline]
    fn accept(
        &mut self,
        item: T,
        token: K,
        now: i64,
        entered: &mut Tally<'_>,
        dropped: &mut Discard<'_, K>,
    ) -> ControlFlow<()> {
        let time = if C::EVENT { nanos(self.time.time(&item)) } else { now };
        if C::EVENT && time > self.newest {
            self.newest = time;
            self.watermark = self.watermark.max(time.saturating_sub(self.patience.delay));
        }
        if !self.place.holds(time) {
            self.place = self.spec.place(time);
        }
        let Place { pane, first_end, last_end, .. } = self.place;
        if last_end <= time {
            // Between two windows.
            dropped.add(token);
            return ControlFlow::Continue(());
        }
        if first_end <= self.watermark {
            return self.accept_late(item, token, time, entered, dropped);
        }
        let key = (self.key)(&item);
        let slot = self.slot(key);
        let Some(entry) = self.keys.get(slot) else { unreachable!("the slot was looked up just now") };
        let (part, tokens) = entry.state.pane(pane, &self.aggregate);
        part.add(&self.aggregate, time, item);
        token.join(tokens);
        entered.add(1);
        self.next_end = sooner(self.next_end, first_end);
        self.interrupt()
    }

    fn interrupt(&self) -> ControlFlow<()> {
        if self.leaving.is_empty() && self.next_end.is_none_or(|end| end > self.watermark) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    }

    /// The slot of a key; a new one may cost another key its windows.
    #[inline]
    fn slot(&mut self, key: Q) -> usize {
        let spare = &mut self.spare;
        let (slot, new) = self.keys.slot(key, || spare.pop().unwrap_or_else(Panes::new));
        if new && let Some(entry) = self.keys.evict(slot, self.keys_max) {
            self.give_up(entry.key, entry.state);
        }
        slot
    }

    #[cold]
    fn give_up(&mut self, key: Q, mut panes: Panes<A::State, K::Group>) {
        let mut end = self.first_open_end(&panes);
        while let Some(at) = end {
            if let Some((part, tokens)) = self.spec.fire(&mut panes, at, &self.aggregate) {
                let times = (at - self.spec.size, at);
                let window = part.finish(&self.aggregate, key.clone(), times, Closed::Evicted);
                self.leaving.push_back((O::window(window), tokens));
            }
            end = self.spec.next_end(&panes, at);
        }
    }

    fn first_open_end(&self, panes: &Panes<A::State, K::Group>) -> Option<i64> {
        let first = panes.first()?;
        let end = self.spec.first_end(self.spec.pane_start(first));
        Some(end.max(self.spec.first_end_after(self.watermark)))
    }

    /// Takes in an item that comes after the end of one of its windows, or of all.
    #[cold]
    fn accept_late(
        &mut self,
        item: T,
        token: K,
        time: i64,
        entered: &mut Tally<'_>,
        dropped: &mut Discard<'_, K>,
    ) -> ControlFlow<()> {
        let (first_end, last_end) = (self.spec.first_end(time), self.spec.last_end(time));
        let slide = self.spec.slide;
        let too_late = self.watermark.saturating_sub(self.patience.lateness);
        if last_end <= too_late {
            match O::late(item) {
                Ok(item) => {
                    entered.add(1);
                    self.leaving.push_back((item, alone(token)));
                }
                Err(_) => dropped.add(token),
            }
            return self.interrupt();
        }
        let key = (self.key)(&item);
        let mut value = Part::new(&self.aggregate);
        value.add(&self.aggregate, time, item);
        // One handle for each window that is told again, and one for those to come.
        let mut late = Vec::new();
        let mut end = first_end;
        while end <= last_end && end <= self.watermark {
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
        entered.add(1);
        let mut shares = token.shares(late.len() + usize::from(in_time));
        for window in late {
            if let Some(token) = shares.next_share() {
                self.leaving.push_back((O::window(window), alone(token)));
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

    /// Hands on what is to leave, and the windows that are complete. Break: there is no more room, or the sink broke off.
    fn hand_on(
        &mut self,
        room: &mut usize,
        made: &mut Tally<'_>,
        sink: &mut impl FnMut(O::Item, K::Group) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        while !self.leaving.is_empty() {
            if *room == 0 {
                return ControlFlow::Break(());
            }
            let Some((item, tokens)) = self.leaving.pop_front() else { break };
            made.add(1);
            *room -= 1;
            sink(item, tokens)?;
        }
        loop {
            let mut firing = match (self.firing, self.next_end) {
                (Some(firing), _) => firing,
                (None, Some(end)) if end <= self.watermark || self.ended => {
                    Firing { end, slot: 0, next: None }
                }
                _ => return ControlFlow::Continue(()),
            };
            let end = firing.end;
            let closed = if end <= self.watermark { Closed::Time } else { Closed::End };
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
}

impl<F, C, Q, N, A, O> Timed<F, C, Q, N, A, O>
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
        spec: Spec,
        (time, keys_max): (C, usize),
        key: N,
        aggregate: A,
        (op, scope): (Arc<OpStats>, Arc<Scope>),
    ) -> Self {
        let book = Book {
            key,
            aggregate,
            patience: time.patience(),
            time,
            spec,
            place: spec.place(0),
            keys_max,
            keys: Keys::new(),
            spare: Vec::new(),
            next_end: None,
            watermark: i64::MIN,
            newest: i64::MIN,
            firing: None,
            leaving: VecDeque::new(),
            ended: false,
            emits: PhantomData,
        };
        Timed { upstream, book, op, scope, timer: Timer::default(), silent: None }
    }

    /// What one key may take.
    pub(crate) fn key_bytes(spec: &Spec) -> usize {
        let panes = (spec.size / spec.pane) as usize + 1;
        let panes = panes.saturating_mul(Panes::<A::State, <F::Token as Settle>::Group>::PANE_BYTES);
        Keys::<Q, Panes<A::State, <F::Token as Settle>::Group>>::ENTRY_BYTES.saturating_add(panes)
    }

    /// Waits for the end of the next window, or for as long as silence may last. Ready: there is something to hand on.
    fn poll_time(&mut self, cx: &mut Context<'_>, now: i64) -> Poll<()> {
        let Some(end) = self.book.next_end else { return Poll::Pending };
        if !C::EVENT {
            let wait = moment(end).duration_since(moment(now)).unwrap_or_default();
            return self.timer.poll_until(cx, Instant::now() + wait);
        }
        let Some(idle) = self.book.patience.idle else { return Poll::Pending };
        let since = *self.silent.get_or_insert_with(Instant::now);
        if self.timer.poll_until(cx, since + idle).is_pending() {
            return Poll::Pending;
        }
        self.silent = None;
        let Book { spec, newest, watermark, .. } = &mut self.book;
        *watermark = spec.last_end(*newest).max(*watermark);
        Poll::Ready(())
    }
}

impl<F, C, Q, N, A, O> Flow for Timed<F, C, Q, N, A, O>
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
        let Timed { upstream, book, op, scope, .. } = self;
        if !C::EVENT {
            book.watermark = now;
        }
        let mut room = max;
        let counts = &scope.counts;
        let mut made = Tally::new::<F::Token>(&counts.split);
        if book.hand_on(&mut room, &mut made, sink).is_break() {
            return Poll::Ready(Step::More);
        }
        if book.ended {
            return Poll::Ready(Step::End);
        }
        let mut entered = Tally::new::<F::Token>(&counts.merged);
        let mut dropped = Discard::<F::Token>::new(op);
        let mut came = false;
        let step = upstream.poll_drive(cx, room.max(INTAKE), &mut |item, token| {
            came = true;
            book.accept(item, token, now, &mut entered, &mut dropped)
        });
        drop((entered, dropped));
        book.ended = step == Poll::Ready(Step::End);
        let handed = book.hand_on(&mut room, &mut made, sink);
        let ended = book.ended;
        drop(made);
        if came || !step.is_pending() {
            self.silent = None;
        }
        if handed.is_break() {
            return Poll::Ready(Step::More);
        }
        if ended {
            return Poll::Ready(Step::End);
        }
        if step.is_pending() && self.poll_time(cx, now).is_ready() {
            return Poll::Ready(Step::More);
        }
        step
    }
}

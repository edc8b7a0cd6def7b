//! What all window operators have in common: the course of time, what is to leave, and the loop around them.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::spec::{moment, nanos};
use super::{INTAKE, Patience, TimeOf};
use crate::flow::{Flow, Step};
use crate::op::{Discard, Tally};
use crate::scope::Scope;
use crate::stats::OpStats;
use crate::timer::Timer;
use crate::token::Settle;

/// How far time has come, and what is to be handed on before anything else is taken.
pub(crate) struct Course<C, V, G> {
    time: C,
    pub(super) patience: Patience,
    /// Windows that ended by then are complete.
    pub(super) watermark: i64,
    /// The newest time seen.
    pub(super) newest: i64,
    leaving: VecDeque<(V, G)>,
    /// Whether upstream has ended.
    pub(super) ended: bool,
}

impl<C, V, G> Course<C, V, G> {
    pub(super) fn new<T>(time: C) -> Self
    where
        C: TimeOf<T>,
    {
        let patience = time.patience();
        let (watermark, newest) = (i64::MIN, i64::MIN);
        Course { time, patience, watermark, newest, leaving: VecDeque::new(), ended: false }
    }

    /// The time of an item, which may move the watermark. Whether it is in order.
    #[inline]
    pub(super) fn see<T>(&mut self, item: &T, now: i64) -> (i64, bool)
    where
        C: TimeOf<T>,
    {
        if !C::EVENT {
            return (now, true);
        }
        let time = nanos(self.time.time(item));
        let in_order = time >= self.newest;
        if in_order {
            self.newest = time;
            self.watermark = self.watermark.max(time.saturating_sub(self.patience.delay));
        }
        (time, in_order)
    }

    /// What ended by then has ended for late items too.
    pub(super) fn too_late(&self) -> i64 {
        self.watermark.saturating_sub(self.patience.lateness)
    }

    pub(super) fn leave(&mut self, value: V, tokens: G) {
        self.leaving.push_back((value, tokens));
    }

    /// Whether nothing waits to leave.
    #[inline]
    pub(super) fn is_clear(&self) -> bool {
        self.leaving.is_empty()
    }

    /// Hands on what is to leave. Break: there is no more room, or the sink broke off.
    #[inline]
    pub(super) fn hand_on(
        &mut self,
        room: &mut usize,
        made: &mut Tally<'_>,
        sink: &mut impl FnMut(V, G) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        while !self.leaving.is_empty() {
            if *room == 0 {
                return ControlFlow::Break(());
            }
            let Some((value, tokens)) = self.leaving.pop_front() else { break };
            made.add(1);
            *room -= 1;
            sink(value, tokens)?;
        }
        ControlFlow::Continue(())
    }
}

/// Where a quantum counts what it takes in.
pub(crate) struct Told<'a, K: Settle> {
    pub(super) entered: Tally<'a>,
    pub(super) dropped: Discard<'a, K>,
}

/// A group of one.
pub(super) fn alone<K: Settle>(token: K) -> K::Group {
    let mut tokens = K::Group::default();
    token.join(&mut tokens);
    tokens
}

/// What a window operator keeps of its items.
pub(crate) trait Book<T, K: Settle> {
    /// By which time its windows go.
    type Time: TimeOf<T>;
    /// What it hands on.
    type Value;

    fn course(&mut self) -> &mut Course<Self::Time, Self::Value, K::Group>;

    /// Takes an item in. Break: something is to be handed on.
    fn accept(&mut self, item: T, token: K, now: i64, told: &mut Told<'_, K>) -> ControlFlow<()>;

    /// Hands on what is complete; when upstream has ended, everything. Break: there is no more room, or the sink broke off.
    fn hand_on(
        &mut self,
        room: &mut usize,
        made: &mut Tally<'_>,
        sink: &mut impl FnMut(Self::Value, K::Group) -> ControlFlow<()>,
    ) -> ControlFlow<()>;

    /// When the next window is over that holds something, if windows go by time.
    fn next_end(&self) -> Option<i64>;

    /// By when all windows are over that hold something now.
    fn last_end(&self) -> i64;
}

/// A window operator: a book and what drives it.
pub(crate) struct Windows<F, B> {
    upstream: F,
    book: B,
    op: Arc<OpStats>,
    scope: Arc<Scope>,
    timer: Timer,
    /// When upstream fell silent.
    silent: Option<Instant>,
}

impl<F: Flow, B: Book<F::Item, F::Token>> Windows<F, B> {
    pub(crate) fn new(upstream: F, book: B, op: Arc<OpStats>, scope: Arc<Scope>) -> Self {
        Windows { upstream, book, op, scope, timer: Timer::default(), silent: None }
    }

    #[cfg(test)]
    pub(super) fn book(&self) -> &B {
        &self.book
    }

    /// Waits for the end of the next window, or for as long as silence may last. Ready: there is something to hand on.
    fn poll_time(&mut self, cx: &mut Context<'_>, now: i64) -> Poll<()> {
        let Some(end) = self.book.next_end() else { return Poll::Pending };
        if !B::Time::EVENT {
            let wait = moment(end).duration_since(moment(now)).unwrap_or_default();
            return self.timer.poll_until(cx, Instant::now() + wait);
        }
        let Some(idle) = self.book.course().patience.idle else { return Poll::Pending };
        let since = *self.silent.get_or_insert_with(Instant::now);
        if self.timer.poll_until(cx, since + idle).is_pending() {
            return Poll::Pending;
        }
        self.silent = None;
        let end = self.book.last_end();
        let course = self.book.course();
        course.watermark = course.watermark.max(end);
        Poll::Ready(())
    }
}

impl<F: Flow, B: Book<F::Item, F::Token>> Flow for Windows<F, B> {
    type Item = B::Value;
    type Token = <F::Token as Settle>::Group;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(B::Value, Self::Token) -> ControlFlow<()>,
    {
        let Windows { upstream, book, op, scope, silent, .. } = self;
        let mut now = 0;
        if !B::Time::EVENT {
            now = nanos(scope.clock().now());
            book.course().watermark = now;
        }
        let mut room = max;
        let counts = &scope.counts;
        let mut made = Tally::new::<F::Token>(&counts.split);
        // What is due by the clock goes before anything new is taken.
        if book.hand_on(&mut room, &mut made, sink).is_break() {
            return Poll::Ready(Step::More);
        }
        if book.course().ended {
            return Poll::Ready(Step::End);
        }
        let mut told =
            Told { entered: Tally::new::<F::Token>(&counts.merged), dropped: Discard::<F::Token>::new(op) };
        let mut came = false;
        let step = upstream.poll_drive(cx, room.max(INTAKE), &mut |item, token| {
            came = true;
            book.accept(item, token, now, &mut told)
        });
        drop(told);
        if came || !step.is_pending() {
            *silent = None;
        }
        let ended = step == Poll::Ready(Step::End);
        if ended && scope.has_failed() {
            // No end of the flow: what is open is given back by its tokens.
            return step;
        }
        book.course().ended = ended;
        if book.hand_on(&mut room, &mut made, sink).is_break() {
            return Poll::Ready(Step::More);
        }
        drop(made);
        if ended {
            return Poll::Ready(Step::End);
        }
        if step.is_pending() && self.poll_time(cx, now).is_ready() {
            return Poll::Ready(Step::More);
        }
        step
    }
}

//! `debounce` and `throttle`: of items that come close together, the first, the last, or both.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::flow::{Flow, Step};
use crate::op::Discard;
use crate::stats::OpStats;
use crate::timer::{Timer, bounded};

/// Which items of a burst pass, as [`Pipe::debounce`](crate::Pipe::debounce) does it: a burst lasts until nothing has
/// come for a while.
#[derive(Debug, Clone, Copy)]
pub struct Debounce(Rule);

/// Which items of a period pass, as [`Pipe::throttle`](crate::Pipe::throttle) does it: a period begins with the first item
/// outside of another.
#[derive(Debug, Clone, Copy)]
pub struct Throttle(Rule);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    span: Duration,
    /// Each item lets the span begin anew, but not beyond this after the first.
    extends: Option<Duration>,
    first: bool,
    last: bool,
}

impl Rule {
    fn new(span: Duration, extends: Option<Duration>, first: bool, last: bool) -> Self {
        assert!(!span.is_zero(), "a span of no time lets every item pass; leave the operator out instead");
        Rule { span: bounded(span), extends: extends.map(bounded), first, last }
    }

    fn until(&self, first: Instant, now: Instant) -> Instant {
        match self.extends {
            Some(most) if first + most < now + self.span => first + most,
            _ => now + self.span,
        }
    }
}

impl Debounce {
    /// The newest item, once nothing has come for `quiet`.
    ///
    /// # Panics
    /// If `quiet` is zero, as with the other two.
    pub fn trailing(quiet: Duration) -> Self {
        Debounce(Rule::new(quiet, Some(Duration::MAX), false, true))
    }

    /// The first item, at once; the others are dropped until nothing has come for `quiet`.
    pub fn leading(quiet: Duration) -> Self {
        Debounce(Rule::new(quiet, Some(Duration::MAX), true, false))
    }

    /// The first item at once and, if others follow, the newest in the end.
    pub fn both(quiet: Duration) -> Self {
        Debounce(Rule::new(quiet, Some(Duration::MAX), true, true))
    }

    /// Ends a burst this long after its first item, so that items that never cease still give one now and then.
    ///
    /// # Panics
    /// If `wait` is zero.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        assert!(!wait.is_zero(), "a longest wait of no time lets every item pass");
        self.0.extends = Some(bounded(wait));
        self
    }

    pub(crate) fn rule(self) -> Rule {
        self.0
    }
}

impl Throttle {
    /// The first item of each period, at once; the others are dropped.
    ///
    /// # Panics
    /// If `period` is zero, as with the other two.
    pub fn leading(period: Duration) -> Self {
        Throttle(Rule::new(period, None, true, false))
    }

    /// The newest item of each period, at its end, which begins the next period.
    pub fn trailing(period: Duration) -> Self {
        Throttle(Rule::new(period, None, false, true))
    }

    /// The first item at once and, if others follow in its period, the newest at the end, which begins the next
    /// period.
    pub fn both(period: Duration) -> Self {
        Throttle(Rule::new(period, None, true, true))
    }

    pub(crate) fn rule(self) -> Rule {
        self.0
    }
}

/// See [`Pipe::debounce`](crate::Pipe::debounce) and [`Pipe::throttle`](crate::Pipe::throttle).
pub struct Bursts<F: Flow> {
    upstream: F,
    rule: Rule,
    op: Arc<OpStats>,
    burst: Option<Burst>,
    /// The newest item, if it is to pass in the end. Only while there is a burst.
    held: Option<(F::Item, F::Token)>,
    timer: Timer,
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
struct Burst {
    began: Instant,
    until: Instant,
}

impl<F: Flow> Bursts<F> {
    pub(crate) fn new(upstream: F, rule: Rule, op: Arc<OpStats>) -> Self {
        Bursts { upstream, rule, op, burst: None, held: None, timer: Timer::default(), ended: false }
    }

    /// Ends the burst if its time has come. The item that passes by that.
    fn close(&mut self, now: Instant) -> Option<(F::Item, F::Token)> {
        let burst = self.burst.filter(|burst| burst.until <= now)?;
        let held = self.held.take();
        let begins = held.is_some() && self.rule.extends.is_none();
        // What passes at the end of a throttled period begins the next one, else two items could follow closely.
        self.burst = begins.then(|| Burst { began: burst.until, until: burst.until + self.rule.span });
        held
    }
}

impl<F: Flow> Flow for Bursts<F> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        let now = Instant::now();
        let mut room = max;
        if self.ended {
            if let Some((item, token)) = self.held.take() {
                let _ = sink(item, token);
            }
            return Poll::Ready(Step::End);
        }
        if let Some((item, token)) = self.close(now) {
            room -= 1;
            if sink(item, token).is_break() || room == 0 {
                return Poll::Ready(Step::More);
            }
        }
        let Bursts { upstream, rule, op, burst, held, ended, .. } = self;
        let mut dropped = Discard::<F::Token>::new(op);
        let mut broke = false;
        let step = upstream.poll_drive(cx, room, &mut |item, token| {
            let Some(open) = burst else {
                *burst = Some(Burst { began: now, until: rule.until(now, now) });
                if rule.first {
                    let flow = sink(item, token);
                    broke = flow.is_break();
                    return flow;
                }
                *held = Some((item, token));
                return ControlFlow::Continue(());
            };
            if rule.extends.is_some() {
                open.until = rule.until(open.began, now);
            }
            if !rule.last {
                dropped.add(token);
            } else if let Some((_, older)) = held.replace((item, token)) {
                dropped.add(older);
            }
            ControlFlow::Continue(())
        });
        drop(dropped);
        *ended = step == Poll::Ready(Step::End);
        if broke {
            return Poll::Ready(if *ended && self.held.is_none() { Step::End } else { Step::More });
        }
        if *ended {
            // Whoever comes last passes last: a burst ends with the flow.
            if let Some((item, token)) = self.held.take() {
                let _ = sink(item, token);
            }
            return Poll::Ready(Step::End);
        }
        if step.is_pending()
            && let (Some(burst), true) = (self.burst, self.held.is_some())
            && self.timer.poll_until(cx, burst.until).is_ready()
        {
            // The next call finds it due.
            return Poll::Ready(Step::More);
        }
        step
    }
}

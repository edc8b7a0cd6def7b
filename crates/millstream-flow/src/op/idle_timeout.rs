//! A flow that must not fall silent.

use std::error::Error;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::flow::{Flow, Step};
use crate::scope::{RunErrorKind, Scope};
use crate::stats::OpStats;
use crate::timer::{Timer, bounded};

/// Nothing came for longer than was allowed: the error of a run that [`Pipe::idle_timeout`](crate::Pipe::idle_timeout)
/// ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    /// The operator that waited.
    pub stage: Arc<str>,
    /// How long.
    pub waited: Duration,
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: nothing came for {:?}", self.stage, self.waited)
    }
}

impl Error for Silent {}

/// See [`Pipe::idle_timeout`](crate::Pipe::idle_timeout).
pub struct IdleTimeout<F> {
    upstream: F,
    limit: Duration,
    op: Arc<OpStats>,
    scope: Arc<Scope>,
    /// When the silence began. Only while upstream waits.
    since: Option<Instant>,
    timer: Timer,
    ended: bool,
}

impl<F> IdleTimeout<F> {
    pub(crate) fn new(upstream: F, limit: Duration, op: Arc<OpStats>, scope: Arc<Scope>) -> Self {
        IdleTimeout {
            upstream,
            limit: bounded(limit),
            op,
            scope,
            since: None,
            timer: Timer::default(),
            ended: false,
        }
    }
}

impl<F: Flow> Flow for IdleTimeout<F> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        if self.ended {
            return Poll::Ready(Step::End);
        }
        let mut came = false;
        let step = self.upstream.poll_drive(cx, max, &mut |item, token| {
            came = true;
            sink(item, token)
        });
        if came || !step.is_pending() {
            self.since = None;
        }
        if step.is_pending() {
            let since = *self.since.get_or_insert_with(Instant::now);
            if self.timer.poll_until(cx, since + self.limit).is_ready() {
                self.ended = true;
                let silent = Silent { stage: self.op.name(), waited: self.limit };
                self.scope.fail(RunErrorKind::Stage(silent.into()));
                return Poll::Ready(Step::End);
            }
        }
        step
    }
}

//! Functions that may fail, and how often they are tried.

use std::future::Future;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use millstream_resilience::Attempts;
use tokio::time::{Instant, Sleep, sleep};

use crate::TimedOut;
use crate::failure::{BoxError, Failed, History, Panicked};
use crate::flow::{Flow, Step};
use crate::retry::Retry;
use crate::scope::Scope;
use crate::stats::OpStats;
use crate::timer::later;

/// Calls a user's function for an item; a panic is the item's error like any other.
#[inline]
fn attempt<T, U, E: Into<BoxError>>(
    function: &mut impl FnMut(&T) -> Result<U, E>,
    input: &T,
    limit: Option<Duration>,
) -> Result<U, BoxError> {
    if let Some(limit) = limit {
        let began = Instant::now();
        let ended = attempt(function, input, None);
        return if began.elapsed() > limit { Err(TimedOut { limit }.into()) } else { ended };
    }
    match catch_unwind(AssertUnwindSafe(|| function(input))) {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => Err(error.into()),
        Err(payload) => Err(Panicked::new(payload).into()),
    }
}

/// An item whose next attempt is due later.
struct Waiting<T, K> {
    input: T,
    token: K,
    position: u64,
    attempts: Attempts,
    history: History,
    due: Pin<Box<Sleep>>,
}

/// See [`Pipe::try_map`](crate::Pipe::try_map) and [`Pipe::try_map_retry`](crate::Pipe::try_map_retry).
pub struct TryMap<F: Flow, M> {
    upstream: F,
    map: M,
    retry: Retry,
    op: Arc<OpStats>,
    scope: Arc<Scope>,
    position: u64,
    waiting: Option<Waiting<F::Item, F::Token>>,
    ended: bool,
}

impl<F: Flow, M> TryMap<F, M> {
    pub(crate) fn new(upstream: F, map: M, retry: Retry, op: Arc<OpStats>, scope: Arc<Scope>) -> Self {
        TryMap { upstream, map, retry, op, scope, position: 0, waiting: None, ended: false }
    }
}

impl<F, U, E, M> Flow for TryMap<F, M>
where
    F: Flow,
    M: FnMut(&F::Item) -> Result<U, E>,
    E: Into<BoxError>,
{
    type Item = Result<U, Failed<F::Item>>;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Self::Item, F::Token) -> ControlFlow<()>,
    {
        let TryMap { upstream, map, retry, op, scope, position, waiting, ended } = self;
        let limit = retry.limit();
        let failed = |error: BoxError, position, attempts| {
            Failed::new((), error, op.name(), scope.clock().now()).counted(position, attempts)
        };
        let mut room = max;
        // Items behind a retried one wait for it: the order is kept.
        while let Some(mut item) = waiting.take() {
            if item.due.as_mut().poll(cx).is_pending() {
                *waiting = Some(item);
                return Poll::Pending;
            }
            let result = match attempt(map, &item.input, limit) {
                Ok(output) => {
                    retry.succeeded();
                    Ok(output)
                }
                Err(error) => match retry.failed(&mut item.attempts, &*error) {
                    Some(delay) => {
                        item.history.add(failed(error, item.position, item.attempts.made()).failure());
                        item.due.as_mut().reset(later(Instant::now(), delay));
                        *waiting = Some(item);
                        continue;
                    }
                    None => {
                        op.add_failed(1);
                        let failed = failed(error, item.position, item.attempts.made());
                        Err(failed.map_input(|()| item.input).with_history(item.history))
                    }
                },
            };
            room -= 1;
            let flow = sink(result, item.token);
            if flow.is_break() || room == 0 {
                return if *ended { Poll::Ready(Step::End) } else { Poll::Ready(Step::More) };
            }
        }
        if *ended {
            return Poll::Ready(Step::End);
        }
        let step = upstream.poll_drive(cx, room, &mut |input, token| {
            let at = *position;
            *position += 1;
            match attempt(map, &input, limit) {
                Ok(output) => {
                    retry.succeeded();
                    sink(Ok(output), token)
                }
                Err(error) => {
                    let mut begun = retry.begin(None);
                    let delay = begun.as_mut().and_then(|attempts| retry.failed(attempts, &*error));
                    let Some((attempts, delay)) = begun.zip(delay) else {
                        op.add_failed(1);
                        return sink(Err(failed(error, at, 1).map_input(|()| input)), token);
                    };
                    let due = Box::pin(sleep(delay));
                    let mut history = History::default();
                    history.add(failed(error, at, 1).failure());
                    *waiting = Some(Waiting { input, token, position: at, attempts, history, due });
                    ControlFlow::Break(())
                }
            }
        });
        if waiting.is_some() {
            *ended = step == Poll::Ready(Step::End);
            return Poll::Ready(Step::More); // the next call polls the timer
        }
        step
    }
}

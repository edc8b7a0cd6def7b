//! What happens to failed items: the declared policies fail, skip, fallback and dead letter.

use std::future::{Future, ready};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::failure::{BoxError, Failed, Failure, Panicked};
use crate::flow::{Flow, Step};
use crate::op::Discard;
use crate::scope::{RunErrorKind, Scope};
use crate::stats::OpStats;
use crate::token::{Outcome, Settle};

/// See [`Pipe::fallback`](crate::Pipe::fallback).
pub struct Fallback<F, M> {
    pub(crate) upstream: F,
    pub(crate) instead: M,
}

impl<F, T, I, M> Flow for Fallback<F, M>
where
    F: Flow<Item = Result<T, Failed<I>>>,
    M: FnMut(Failed<I>) -> T,
{
    type Item = T;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(T, F::Token) -> ControlFlow<()>,
    {
        let instead = &mut self.instead;
        self.upstream.poll_drive(cx, max, &mut |item, token| match item {
            Ok(item) => sink(item, token),
            Err(failed) => sink(instead(failed), token),
        })
    }
}

/// See [`Pipe::skip_errors`](crate::Pipe::skip_errors).
pub struct SkipErrors<F> {
    pub(crate) upstream: F,
    pub(crate) op: Arc<OpStats>,
}

impl<F, T, I> Flow for SkipErrors<F>
where
    F: Flow<Item = Result<T, Failed<I>>>,
{
    type Item = T;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(T, F::Token) -> ControlFlow<()>,
    {
        let mut dropped = Discard::<F::Token>::new(&self.op);
        self.upstream.poll_drive(cx, max, &mut |item, token| match item {
            Ok(item) => sink(item, token),
            Err(_) => {
                dropped.add(token);
                ControlFlow::Continue(())
            }
        })
    }
}

/// See [`Pipe::fail_fast`](crate::Pipe::fail_fast).
pub struct FailFast<F> {
    pub(crate) upstream: F,
    pub(crate) scope: Arc<Scope>,
    pub(crate) failed: bool,
}

impl<F, T, I> Flow for FailFast<F>
where
    F: Flow<Item = Result<T, Failed<I>>>,
{
    type Item = T;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(T, F::Token) -> ControlFlow<()>,
    {
        if self.failed {
            return Poll::Ready(Step::End);
        }
        let (scope, failed) = (&self.scope, &mut self.failed);
        let step = self.upstream.poll_drive(cx, max, &mut |item, token| match item {
            Ok(item) => sink(item, token),
            Err(error) => {
                // The token is dropped: the item is not done, it is to be delivered again.
                drop(token);
                *failed = true;
                scope.fail(RunErrorKind::Item(error.failure()));
                ControlFlow::Break(())
            }
        });
        if self.failed { Poll::Ready(Step::End) } else { step }
    }
}

/// See [`Pipe::reject`](crate::Pipe::reject).
pub struct Reject<F> {
    pub(crate) upstream: F,
    pub(crate) scope: Arc<Scope>,
}

/// Counts a dead item of a flow without tokens, or settles it with its reason.
pub(crate) fn settle_dead<K: Settle>(token: K, failure: Failure, scope: &Scope) {
    if K::TRACKED {
        token.settle(&Outcome::Dead(Arc::new(failure)));
    } else {
        scope.counts.dead.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl<F, T, I> Flow for Reject<F>
where
    F: Flow<Item = Result<T, Failed<I>>>,
{
    type Item = T;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(T, F::Token) -> ControlFlow<()>,
    {
        let scope = &self.scope;
        self.upstream.poll_drive(cx, max, &mut |item, token| match item {
            Ok(item) => sink(item, token),
            Err(error) => {
                settle_dead(token, error.failure(), scope);
                ControlFlow::Continue(())
            }
        })
    }
}

type HandOver = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

/// See [`Pipe::dead_letter`](crate::Pipe::dead_letter).
pub struct DeadLetter<F: Flow, D> {
    pub(crate) upstream: F,
    pub(crate) send: D,
    pub(crate) scope: Arc<Scope>,
    /// The item that is being handed over. Those behind it wait: the destination's pace is felt upstream.
    pub(crate) sending: Option<(HandOver, Failure, F::Token)>,
    pub(crate) ended: bool,
}

impl<F, T, I, D, Fut> Flow for DeadLetter<F, D>
where
    F: Flow<Item = Result<T, Failed<I>>>,
    D: FnMut(Failed<I>) -> Fut,
    Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    type Item = T;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(T, F::Token) -> ControlFlow<()>,
    {
        let mut room = max;
        loop {
            if let Some((future, ..)) = &mut self.sending {
                let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
                let result = match polled {
                    Ok(Poll::Pending) => return Poll::Pending,
                    Ok(Poll::Ready(result)) => result,
                    Err(payload) => Err(Panicked::new(payload).into()),
                };
                let Some((_, failure, token)) = self.sending.take() else {
                    unreachable!("it was there just now")
                };
                match result {
                    Ok(()) => settle_dead(token, failure, &self.scope),
                    Err(error) => {
                        // An item that can be neither processed nor put aside must not be lost: the run ends,
                        // and the dropped token gives the item back.
                        drop(token);
                        self.ended = true;
                        self.scope.fail(RunErrorKind::Sink(error));
                    }
                }
            }
            if self.ended {
                return Poll::Ready(Step::End);
            }
            if room == 0 {
                return Poll::Ready(Step::More);
            }
            let (send, sending) = (&mut self.send, &mut self.sending);
            let mut broke = false;
            let step = self.upstream.poll_drive(cx, room, &mut |item, token| {
                room -= 1;
                match item {
                    Ok(item) => {
                        let flow = sink(item, token);
                        broke |= flow.is_break();
                        flow
                    }
                    Err(error) => {
                        let failure = error.failure();
                        let handing: HandOver = match catch_unwind(AssertUnwindSafe(|| send(error))) {
                            Ok(future) => Box::pin(future),
                            Err(payload) => Box::pin(ready(Err(Panicked::new(payload).into()))),
                        };
                        *sending = Some((handing, failure, token));
                        ControlFlow::Break(())
                    }
                }
            });
            if self.sending.is_none() || broke {
                return step;
            }
            self.ended = step == Poll::Ready(Step::End);
        }
    }
}

//! The end of the chain of a stream: the handler's flow, its errors and panics as the stream's.

use std::any::Any;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use millstream_flow::flows::{Either, Hop, MapAsync};
use millstream_flow::{BoxError, Flow, Panicked, Pipe, Step, Unmeasured};

use super::options::{Each, ItemErrors, Policy, StreamOptions};
use super::{ItemFlow, StreamError, StreamHandler, StreamStage, opening_failed};
use crate::call::{Call, Detached};
use crate::error::{Error, ErrorKind};
use crate::handler::{Catching, panicked};
use crate::message::StreamRequest;
use crate::metrics::Counter;

/// A handler of streams with what is declared of its type.
pub(crate) struct Source<H, T> {
    pub(crate) handler: H,
    pub(crate) options: StreamOptions<T>,
    pub(crate) dropped: Counter,
}

/// A handler's flow, in a task of its own or not, its panics and its items' failures as errors.
pub type Guarded<T, E, F> = Failing<T, Eaches<T, Either<Hop<Result<T, E>, (), Unmeasured>, F>, E>>;

type EachFn<T, E> = Box<dyn FnMut(Result<T, E>) -> EachFuture<T> + Send>;
type EachFuture<T> = futures_util::future::BoxFuture<'static, Result<T, BoxError>>;
type Eaches<T, F, E> = Either<
    MapAsync<F, EachFn<T, E>, EachFuture<T>>,
    millstream_flow::flows::Map<F, fn(Result<T, E>) -> Result<T, BoxError>>,
>;

impl<R, H> StreamStage<R> for Source<H, R::Item>
where
    R: StreamRequest,
    H: StreamHandler<R>,
    H::ItemError: Send,
{
    type Flow = Guarded<R::Item, H::ItemError, H::Flow>;

    async fn open(&self, call: &Call<'_>, request: R) -> Result<Pipe<Self::Flow>, Error> {
        let opening = pin!(async { self.handler.open(request, call).await });
        let pipe = match Catching(opening).await {
            Ok(opened) => opened.map_err(|error| opening_failed(call, error))?,
            Err(payload) => return Err(panicked(call, payload)),
        };
        let StreamOptions { buffer, each, errors } = &self.options;
        let pipe = match buffer {
            Some(capacity) => pipe.buffer(*capacity).via("buffer", Either::Left),
            None => pipe.via("direct", Either::Right),
        };
        let pipe = match each {
            Some((concurrency, each)) => {
                let each: Arc<Each<R::Item>> = each.clone();
                let call: EachFn<R::Item, H::ItemError> = Box::new(move |item| match item {
                    Ok(item) => each(item),
                    Err(error) => {
                        let error = error.into();
                        Box::pin(async { Err(error) })
                    }
                });
                pipe.map_async(*concurrency, call).named("each").via("each", Either::Left)
            }
            None => pipe.map(boxed_error as fn(_) -> _).via("all", Either::Right),
        };
        let (errors, call, dropped) = (errors.clone(), call.detach(), self.dropped.clone());
        Ok(pipe.via("handler", |upstream| Failing {
            upstream: Some(upstream),
            errors,
            call,
            dropped,
            position: 0,
            delivered: 0,
        }))
    }
}

fn boxed_error<T, E: Into<BoxError>>(item: Result<T, E>) -> Result<T, BoxError> {
    item.map_err(Into::into)
}

/// Gives the failures of a handler's flow the stream's form, by the policy that is declared, and ends with the first that
/// ends the stream.
pub struct Failing<T, F> {
    /// `None` once it has ended.
    upstream: Option<F>,
    errors: ItemErrors<T>,
    call: Detached,
    dropped: Counter,
    position: u64,
    delivered: u64,
}

impl<T, F> Failing<T, F> {
    #[cold]
    fn broken(&self, kind: ErrorKind, error: BoxError, last: bool) -> StreamError {
        let error = Error::new(self.call.call().about(), kind).because(error);
        StreamError::new(error, self.position, last).delivered_in_all(self.delivered)
    }
}

impl<T, F> Flow for Failing<T, F>
where
    T: Send + 'static,
    F: Flow<Item = Result<T, BoxError>, Token = ()>,
{
    type Item = Result<T, StreamError>;
    type Token = ();

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Self::Item, ()) -> ControlFlow<()>,
    {
        let Some(mut upstream) = self.upstream.take() else { return Poll::Ready(Step::End) };
        let (mut position, mut delivered) = (self.position, self.delivered);
        let mut failed = None;
        // A panic further down is not this flow's to catch.
        let mut below = false;
        let driven = catch_unwind(AssertUnwindSafe(|| {
            upstream.poll_drive(cx, max, &mut |item: Result<T, BoxError>, ()| {
                let item = match item {
                    Ok(item) => item,
                    Err(error) => match &self.errors.0 {
                        Policy::Instead(instead) => instead(error, position),
                        Policy::Fail | Policy::Pass => {
                            failed = Some(error);
                            return ControlFlow::Break(());
                        }
                        Policy::Skip => {
                            position += 1;
                            self.dropped.add(1);
                            return ControlFlow::Continue(());
                        }
                        Policy::Dead(tell) => {
                            tell(error, position);
                            position += 1;
                            self.dropped.add(1);
                            return ControlFlow::Continue(());
                        }
                    },
                };
                position += 1;
                delivered += 1;
                below = true;
                let flow = sink(Ok(item), ());
                below = false;
                flow
            })
        }));
        (self.position, self.delivered) = (position, delivered);
        let step = match driven {
            Ok(step) => step,
            Err(payload) if below => {
                self.upstream = Some(upstream);
                resume_unwind(payload)
            }
            Err(payload) => {
                let payload: Box<dyn Any + Send> = payload;
                let broken = self.broken(ErrorKind::Panicked, Panicked::new(payload).into(), true);
                let _ = sink(Err(broken), ());
                return Poll::Ready(Step::End);
            }
        };
        if let Some(error) = failed {
            let last = matches!(self.errors.0, Policy::Fail);
            let broken = self.broken(ErrorKind::Failed, error, last);
            let over = last || step == Poll::Ready(Step::End);
            if !over {
                self.position += 1;
                self.upstream = Some(upstream);
            }
            let _ = sink(Err(broken), ());
            return Poll::Ready(if over { Step::End } else { Step::More });
        }
        if step != Poll::Ready(Step::End) {
            self.upstream = Some(upstream);
        }
        step
    }
}

const _: fn() = || {
    fn is<T, F: ItemFlow<T>>() {}
    is::<u8, Guarded<u8, BoxError, millstream_flow::flows::BoxFlow<Result<u8, BoxError>>>>();
};

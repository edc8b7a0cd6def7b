//! The end of the chain of a stream: the handler's flow, its errors and panics as the stream's.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use millstream_flow::flows::{Either, Hop, Map, MapAsync};
use millstream_flow::{BoxError, Flow, Panicked, Pipe, Step, Unmeasured};
use millstream_resilience::Timeout;

use super::options::{Each, ItemErrors, Policy, StreamOptions};
use super::progress::LeftOut;
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
pub type Guarded<T, E, F> = Failing<T, Eaches<T, Either<Buffered<T>, Direct<T, E, F>>>>;

type Buffered<T> = Hop<Result<T, BoxError>, (), Unmeasured>;
type Direct<T, E, F> = Map<F, fn(Result<T, E>) -> Result<T, BoxError>>;
type EachFn<T> = Box<dyn FnMut(Result<T, BoxError>) -> EachFuture<T> + Send>;
type EachFuture<T> = futures_util::future::BoxFuture<'static, Result<T, BoxError>>;
type Eaches<T, F> = Either<MapAsync<F, EachFn<T>, EachFuture<T>>, F>;

/// The last error of a flow that panicked in a task of its own. Nobody else can make one, so that it is no item's.
#[derive(Debug)]
struct Fallen(Panicked);

impl fmt::Display for Fallen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Fallen {}

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
        let StreamOptions { buffer, each, errors, .. } = &self.options;
        let pipe = match buffer {
            Some(capacity) => {
                let pipe = pipe.via("handler", |flow| Caught { flow: Some(flow), panicked: None });
                pipe.buffer(*capacity).via("buffer", Either::Left)
            }
            None => pipe.map(boxed_error as fn(_) -> _).via("direct", Either::Right),
        };
        let pipe = match each {
            Some((concurrency, each)) => {
                let each: Arc<Each<R::Item>> = each.clone();
                // A late call is an item that failed, not the end of a run, which the reader would take for the stream's.
                let timeout = concurrency.time_limit_used().map(Timeout::new);
                let call: EachFn<R::Item> = Box::new(move |item| match (item, timeout) {
                    (Ok(item), None) => each(item),
                    (Ok(item), Some(timeout)) => Box::pin(timeout.wrap(each(item))),
                    (Err(error), _) => Box::pin(std::future::ready(Err(error))),
                });
                pipe.map_async(concurrency.time_limit(None), call).named("each").via("each", Either::Left)
            }
            None => pipe.via("all", Either::Right),
        };
        let left_out = LeftOut::of(call);
        left_out.set(0);
        let (errors, call, dropped) = (errors.clone(), call.detach(), self.dropped.clone());
        Ok(pipe.via("handler", |upstream| Failing {
            upstream: Some(upstream),
            errors,
            call,
            dropped,
            base: left_out.base(),
            left_out,
            position: 0,
            delivered: 0,
            panicked: None,
        }))
    }

    fn is_bare(&self) -> bool {
        true
    }
}

#[inline]
fn boxed_error<T, E: Into<BoxError>>(item: Result<T, E>) -> Result<T, BoxError> {
    item.map_err(Into::into)
}

/// A flow whose panic is its last item: what a task that reads it for others could only end at, as if it were complete.
struct Caught<F> {
    /// `None` once it has ended.
    flow: Option<F>,
    /// What it panicked with, while there was no room to say so.
    panicked: Option<Panicked>,
}

impl<T, E, F> Flow for Caught<F>
where
    E: Into<BoxError>,
    F: Flow<Item = Result<T, E>, Token = ()>,
{
    type Item = Result<T, BoxError>;
    type Token = ();

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Self::Item, ()) -> ControlFlow<()>,
    {
        let mut room = max;
        if let Some(flow) = &mut self.flow {
            let driven = catch_unwind(AssertUnwindSafe(|| {
                flow.poll_drive(cx, max, &mut |item, ()| {
                    room -= 1;
                    sink(boxed_error(item), ())
                })
            }));
            match driven {
                Ok(step) => return step,
                Err(payload) => (self.flow, self.panicked) = (None, Some(Panicked::new(payload))),
            }
        }
        if room == 0 {
            return Poll::Ready(Step::More);
        }
        if let Some(panicked) = self.panicked.take() {
            let _ = sink(Err(Fallen(panicked).into()), ());
        }
        Poll::Ready(Step::End)
    }
}

/// Gives the failures of a handler's flow the stream's form, by the policy that is declared, and ends with the first that
/// ends the stream.
pub struct Failing<T, F> {
    /// `None` once it has ended.
    upstream: Option<F>,
    errors: ItemErrors<T>,
    call: Detached,
    dropped: Counter,
    left_out: LeftOut,
    /// The position at which this try of the stream began, for those who are told of items.
    base: u64,
    position: u64,
    delivered: u64,
    /// What it ends with, while there was no room to say so.
    panicked: Option<StreamError>,
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
        let Some(mut upstream) = self.upstream.take() else {
            if let Some(panicked) = self.panicked.take() {
                let _ = sink(Err(panicked), ());
            }
            return Poll::Ready(Step::End);
        };
        let mut position = self.position;
        let before = self.left_out.items();
        let mut left_out = before;
        let (mut failed, mut enough) = (None, false);
        // A panic further down is not this flow's to catch.
        let mut below = false;
        let driven = catch_unwind(AssertUnwindSafe(|| {
            upstream.poll_drive(cx, max, &mut |item: Result<T, BoxError>, ()| {
                let item = match item {
                    Ok(item) => item,
                    Err(fallen) if fallen.is::<Fallen>() => {
                        failed = Some(fallen);
                        return ControlFlow::Break(());
                    }
                    Err(error) => match &self.errors.0 {
                        Policy::Instead(instead) => instead(error, self.base + position),
                        Policy::Fail | Policy::Pass => {
                            failed = Some(error);
                            return ControlFlow::Break(());
                        }
                        Policy::Skip | Policy::Dead(_) => {
                            if let Policy::Dead(tell) = &self.errors.0 {
                                tell(error, self.base + position);
                            }
                            position += 1;
                            left_out += 1;
                            self.left_out.set(left_out);
                            self.dropped.add(1);
                            return ControlFlow::Continue(());
                        }
                    },
                };
                position += 1;
                below = true;
                let flow = sink(Ok(item), ());
                below = false;
                if flow.is_break() {
                    enough = true;
                }
                flow
            })
        }));
        let delivered = position - self.position - left_out.wrapping_sub(before);
        self.position = position;
        self.delivered += delivered;
        let step = match driven {
            Ok(step) => step,
            Err(payload) if below => {
                self.upstream = Some(upstream);
                resume_unwind(payload)
            }
            Err(payload) => {
                let payload: Box<dyn Any + Send> = payload;
                let broken = self.broken(ErrorKind::Panicked, Panicked::new(payload).into(), true);
                if enough || delivered >= max as u64 {
                    self.panicked = Some(broken);
                    return Poll::Ready(Step::More);
                }
                let _ = sink(Err(broken), ());
                return Poll::Ready(Step::End);
            }
        };
        if let Some(error) = failed {
            let (kind, error, last) = match error.downcast::<Fallen>() {
                Ok(fallen) => (ErrorKind::Panicked, fallen.0.into(), true),
                Err(error) => (ErrorKind::Failed, error, matches!(self.errors.0, Policy::Fail)),
            };
            let broken = self.broken(kind, error, last);
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

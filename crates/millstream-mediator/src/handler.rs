//! Handlers, and the end of every chain of behaviours: the call of a handler, with its panics caught.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use millstream_flow::{BoxError, Panicked};

use crate::behaviour::Stage;
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::message::{Kind, Notification, Request};

/// Handles one type of request, for handlers that are types. Async functions and closures need no more than
/// [`Builder::request`](crate::Builder::request).
///
/// # Cancel safety
/// The caller may drop the call at any await: what must not be left half done belongs into a task of its own.
///
/// # Panics
/// A panic is that call's error, with [`ErrorKind::Panicked`].
pub trait Handler<R: Request>: Send + Sync + 'static {
    /// What it fails with.
    type Error: Into<BoxError>;

    /// Answers the request.
    fn handle(
        &self,
        request: R,
        call: &Call<'_>,
    ) -> impl Future<Output = Result<R::Response, Self::Error>> + Send;
}

/// An async function as a handler.
pub(crate) struct Function<F>(pub(crate) F);

impl<R, F, Fut, E> Handler<R> for Function<F>
where
    R: Request,
    F: Fn(R) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R::Response, E>> + Send,
    E: Into<BoxError>,
{
    type Error = E;

    #[inline]
    fn handle(&self, request: R, _: &Call<'_>) -> impl Future<Output = Result<R::Response, E>> + Send {
        (self.0)(request)
    }
}

/// An async function with a state that is cloned for each call.
pub(crate) struct Stateful<S, F>(pub(crate) S, pub(crate) F);

impl<R, S, F, Fut, E> Handler<R> for Stateful<S, F>
where
    R: Request,
    S: Clone + Send + Sync + 'static,
    F: Fn(S, R) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R::Response, E>> + Send,
    E: Into<BoxError>,
{
    type Error = E;

    #[inline]
    fn handle(&self, request: R, _: &Call<'_>) -> impl Future<Output = Result<R::Response, E>> + Send {
        (self.1)(self.0.clone(), request)
    }
}

/// A notification on its way to one handler: to behaviours a request like any other, which may always be repeated.
pub struct Notified<N>(pub Arc<N>);

impl<N: Notification> Request for Notified<N> {
    type Response = ();
    const KIND: Kind = Kind::Notification;

    fn name() -> std::borrow::Cow<'static, str> {
        N::name()
    }
    fn repeat(&self) -> Option<Self> {
        Some(Notified(self.0.clone()))
    }
}

/// The end of the chain.
pub(crate) struct End<H>(pub(crate) H);

impl<R: Request, H: Handler<R>> Stage<R> for End<H> {
    #[expect(
        clippy::manual_async_fn,
        reason = "an async function's future moves all that it is given once more"
    )]
    #[inline]
    fn run(&self, call: &Call<'_>, request: R) -> impl Future<Output = Result<R::Response, Error>> + Send {
        async move {
            // The call of the function is inside too: it may panic before it gives a future.
            let handling = pin!(async { self.0.handle(request, call).await });
            match Catching(handling).await {
                Ok(Ok(response)) => Ok(response),
                Ok(Err(error)) => Err(Error::new(call.about(), ErrorKind::Failed).because(error)),
                Err(payload) => Err(panicked(call, payload)),
            }
        }
    }
}

#[cold]
pub(crate) fn panicked(call: &Call<'_>, payload: Box<dyn Any + Send>) -> Error {
    Error::new(call.about(), ErrorKind::Panicked).because(Panicked::new(payload))
}

/// A future whose panic is its output.
pub(crate) struct Catching<F>(pub(crate) F);

impl<F: Future + Unpin> Future for Catching<F> {
    type Output = Result<F::Output, Box<dyn Any + Send>>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        // Whoever is unwound is not polled again: the caller gives it up on this answer.
        match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.0).poll(cx))) {
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(payload) => Poll::Ready(Err(payload)),
        }
    }
}

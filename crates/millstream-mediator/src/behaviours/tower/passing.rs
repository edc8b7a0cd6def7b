//! What passes layers of tower in place of a request.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::behaviour::Next;
use crate::call::Detached;
use crate::error::Error;
use crate::message::{About, Request};

/// What a handler has answered, whatever its type.
type Answer = Result<Box<dyn Any + Send>, Error>;

/// A request that passes layers of tower: it brings along what answers it.
pub struct Passing(Pin<Box<dyn Passenger>>);

/// What answers a request, once it is asked.
trait Passenger: Future<Output = Answer> + Send {
    fn about(&self) -> Option<&About>;
    fn request(&self) -> Option<&dyn Any>;
    fn repeat(&self) -> Option<Passing>;
}

pin_project! {
    /// Request and answer in one box: as long as nobody has asked, there is nothing under way.
    struct Rider<R, N, G, F> {
        start: Option<(N, Detached, R)>,
        go: G,
        #[pin]
        under_way: Option<F>,
    }
}

async fn go<R: Request, N: Next<R>>(next: N, detached: Detached, request: R) -> Answer {
    let response = next.call(&detached.call(), request).await?;
    Ok(Box::new(response) as Box<dyn Any + Send>)
}

impl Passing {
    pub(super) fn new<R: Request, N: Next<R>>(next: N, detached: Detached, request: R) -> Self {
        Passing::ridden(next, detached, request, go::<R, N>)
    }

    fn ridden<R, N, G, F>(next: N, detached: Detached, request: R, go: G) -> Self
    where
        R: Request,
        N: Next<R>,
        G: Fn(N, Detached, R) -> F + Copy + Send + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        Passing(Box::pin(Rider { start: Some((next, detached, request)), go, under_way: None }))
    }

    /// Which request it is, and whose.
    pub fn about(&self) -> &About {
        self.0.about().expect("it has not been called")
    }

    /// The request, if it is of this type.
    pub fn request<R: Request>(&self) -> Option<&R> {
        self.0.request().and_then(|request| request.downcast_ref())
    }

    /// The same once more, if the request [may be repeated](Request::repeat): for tower's
    /// `retry::Policy::clone_request`, and its like.
    pub fn repeat(&self) -> Option<Passing> {
        self.0.repeat()
    }
}

impl<R, N, G, F> Passenger for Rider<R, N, G, F>
where
    R: Request,
    N: Next<R>,
    G: Fn(N, Detached, R) -> F + Copy + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    fn about(&self) -> Option<&About> {
        self.start.as_ref().map(|(_, detached, _)| detached.about())
    }

    fn request(&self) -> Option<&dyn Any> {
        self.start.as_ref().map(|(_, _, request)| request as &dyn Any)
    }

    fn repeat(&self) -> Option<Passing> {
        let (next, detached, request) = self.start.as_ref()?;
        Some(Passing::ridden(next.clone(), detached.clone(), request.repeat()?, self.go))
    }
}

impl<R, N, G, F> Future for Rider<R, N, G, F>
where
    G: Fn(N, Detached, R) -> F,
    F: Future<Output = Answer>,
{
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let mut rider = self.project();
        if let Some((next, detached, request)) = rider.start.take() {
            rider.under_way.set(Some((rider.go)(next, detached, request)));
        }
        rider.under_way.as_pin_mut().expect("it is started by its first poll").poll(cx)
    }
}

impl fmt::Debug for Passing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Passing").field(self.about()).finish()
    }
}

/// The service inside a layer of tower: what comes next.
#[derive(Debug, Clone)]
pub struct TowerNext(());

impl TowerNext {
    pub(super) fn new() -> Self {
        TowerNext(())
    }
}

impl Service<Passing> for TowerNext {
    type Response = Box<dyn Any + Send>;
    type Error = Error;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Passing) -> Answering {
        Answering(request.0)
    }
}

/// The answer to a [`Passing`], under way.
#[must_use = "futures do nothing unless they are polled"]
pub struct Answering(Pin<Box<dyn Passenger>>);

impl Future for Answering {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answering").finish_non_exhaustive()
    }
}

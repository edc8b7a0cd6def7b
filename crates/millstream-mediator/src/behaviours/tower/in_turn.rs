//! Services that cannot be cloned, shared.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;
use tower_layer::Layer;
use tower_service::Service;

/// A layer whose services cannot be cloned, such as tower's `RateLimitLayer`, made one whose services can: the clones share one
/// service, and take turns in waiting until it is ready, in the order in which they came.
///
/// So who waits for its readiness holds up those behind it, as with tower's `Buffer`, but nothing is called by another
/// task. Whoever goes away before its call gives up its turn.
#[derive(Debug, Clone)]
pub struct InTurn<L>(L);

impl<L> InTurn<L> {
    /// This layer, with services that are shared.
    pub fn new(layer: L) -> Self {
        InTurn(layer)
    }
}

impl<S, L: Layer<S>> Layer<S> for InTurn<L> {
    type Service = InTurnService<L::Service>;

    fn layer(&self, inner: S) -> Self::Service {
        let turns = PollSemaphore::new(Arc::new(Semaphore::new(1)));
        InTurnService { shared: Arc::new(Mutex::new(self.0.layer(inner))), turns, turn: None }
    }
}

/// A service whose clones are one. See [`InTurn`].
pub struct InTurnService<S> {
    shared: Arc<Mutex<S>>,
    turns: PollSemaphore,
    /// This clone's turn to wait until the service is ready, and to call it.
    turn: Option<OwnedSemaphorePermit>,
}

impl<S> InTurnService<S> {
    fn with<T>(&self, act: impl FnOnce(&mut S) -> T) -> T {
        // A call that panicked is its caller's; the service is what it left.
        act(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S> Clone for InTurnService<S> {
    fn clone(&self) -> Self {
        InTurnService { shared: self.shared.clone(), turns: self.turns.clone(), turn: None }
    }
}

impl<S> fmt::Debug for InTurnService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InTurnService").field("turn", &self.turn.is_some()).finish_non_exhaustive()
    }
}

impl<R, S: Service<R>> Service<R> for InTurnService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if self.turn.is_none() {
            self.turn = ready!(self.turns.poll_acquire(cx));
        }
        let polled = self.with(|service| service.poll_ready(cx));
        if let Poll::Ready(Err(_)) = polled {
            self.turn = None;
        }
        polled
    }

    fn call(&mut self, request: R) -> S::Future {
        assert!(self.turn.is_some(), "a service is called when it was found ready");
        let future = self.with(|service| service.call(request));
        self.turn = None;
        future
    }
}

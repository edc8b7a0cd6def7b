//! Calls that may take only so long.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

use crate::{Class, Classify};

/// A limit for how long a call may take. A call that takes longer is dropped, and fails with [`TimedOut`].
///
/// The time runs from when the call first waits: one that is ready at once costs no look at the clock, and one that blocks its
/// thread cannot be interrupted by anybody.
///
/// # Cancel safety
/// The call is dropped when its time is over: what it had done by then remains done.
///
/// ```
/// use millstream_resilience::{BoxError, TimedOut, Timeout};
/// use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let timeout = Timeout::new(Duration::from_secs(1));
/// let result: Result<(), BoxError> = timeout.call(async || std::future::pending().await).await;
/// assert_eq!(result.unwrap_err().downcast_ref(), Some(&TimedOut { limit: Duration::from_secs(1) }));
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeout {
    limit: Duration,
}

impl Timeout {
    /// A limit for each call.
    ///
    /// # Panics
    /// If `limit` is zero.
    pub fn new(limit: Duration) -> Self {
        assert!(!limit.is_zero(), "nothing can be done in no time");
        Timeout { limit }
    }

    /// How long a call may take.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Calls, for so long.
    ///
    /// # Errors
    /// Those of `call`; [`TimedOut`], as an `E`, if it takes longer.
    pub async fn call<T, E, F>(&self, call: impl FnOnce() -> F) -> Result<T, E>
    where
        E: From<TimedOut>,
        F: Future<Output = Result<T, E>>,
    {
        self.wrap(call()).await
    }

    /// The same for a future.
    pub fn wrap<F>(&self, future: F) -> Timed<F> {
        Timed { future: Some(future), limit: self.limit, sleep: None }
    }
}

pin_project! {
    /// See [`Timeout::wrap`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless they are polled"]
    pub struct Timed<F> {
        // `None` once it has ended, or its time is over.
        #[pin]
        future: Option<F>,
        limit: Duration,
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl<T, E: From<TimedOut>, F: Future<Output = Result<T, E>>> Future for Timed<F> {
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, E>> {
        let mut this = self.project();
        let future = this.future.as_mut().as_pin_mut().expect("what has ended is not polled again");
        if let Poll::Ready(result) = future.poll(cx) {
            this.future.set(None);
            return Poll::Ready(result);
        }
        if this.sleep.is_none() {
            this.sleep.set(Some(sleep(*this.limit)));
        }
        let sleep = this.sleep.as_pin_mut().expect("it was just made");
        ready!(sleep.poll(cx));
        // At once, not when whoever waits lets go of this: the call may hold what another one needs.
        this.future.set(None);
        Poll::Ready(Err(TimedOut { limit: *this.limit }.into()))
    }
}

/// The error of a call that took longer than it was allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimedOut {
    /// What was allowed.
    pub limit: Duration,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it took longer than {:?}", self.limit)
    }
}

impl Error for TimedOut {}

impl Classify for TimedOut {
    fn class(&self) -> Class {
        Class::Transient
    }
}

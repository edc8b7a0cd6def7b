//! A limit on how long a call may take.

use std::borrow::Cow;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::poll_fn;
use std::future::Future;
use std::task::Poll;
use tokio::time::sleep;

use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::message::{About, Request};

/// Fails a call with [`ErrorKind::TimedOut`] that takes longer than its limit, and drops its handler at that moment.
///
/// The time begins when the handler first waits: what it does before cannot be interrupted anyway, and a handler that
/// never waits costs no timer.
///
/// ```
/// use millstream_mediator::{Error, ErrorKind, Mediator, Request, Timeout};
/// use std::time::Duration;
///
/// struct Never;
/// impl Request for Never { type Response = (); }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), millstream_flow::BoxError> {
/// let limit = Duration::from_secs(5);
/// let mediator = Mediator::builder()
///     .behaviour(Timeout::new(limit))
///     .request(async |_: Never| std::future::pending::<Result<(), Error>>().await)
///     .build()?;
/// assert_eq!(*mediator.send(Never).await.unwrap_err().kind(), ErrorKind::TimedOut { limit });
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Timeout {
    limit: Duration,
}

impl Timeout {
    /// So long and no longer.
    ///
    /// # Panics
    /// If `limit` is zero.
    pub const fn new(limit: Duration) -> Self {
        assert!(!limit.is_zero(), "nothing can be done in no time");
        Timeout { limit }
    }
}

impl Behaviour for Timeout {
    fn name(&self) -> Cow<'static, str> {
        format!("timeout {:?}", self.limit).into()
    }

    fn of(&self, _: &About) -> Self {
        *self
    }

    #[inline]
    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        let mut calling = pin!(next.call(call, request));
        if let Poll::Ready(ended) = poll_fn(|cx| Poll::Ready(calling.as_mut().poll(cx))).await {
            return ended;
        }
        let limit = self.limit;
        tokio::select! {
            biased;
            ended = calling => ended,
            () = sleep(limit) => Err(Error::new(call.about(), ErrorKind::TimedOut { limit })),
        }
    }
}

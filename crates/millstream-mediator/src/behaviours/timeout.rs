//! A limit on how long a call may take.

use std::borrow::Cow;
use std::time::Duration;

use millstream_resilience::Error as Behind;

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
    timeout: millstream_resilience::Timeout,
}

impl Timeout {
    /// So long and no longer.
    ///
    /// # Panics
    /// If `limit` is zero.
    pub fn new(limit: Duration) -> Self {
        Timeout { timeout: millstream_resilience::Timeout::new(limit) }
    }
}

impl Behaviour for Timeout {
    fn name(&self) -> Cow<'static, str> {
        format!("timeout {:?}", self.timeout.limit()).into()
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
        let calling = next.call(call, request);
        match self.timeout.wrap(async { calling.await.map_err(Behind::Failed) }).await {
            Ok(response) => Ok(response),
            Err(Behind::Failed(error)) => Err(error),
            Err(_) => Err(Error::new(call.about(), ErrorKind::TimedOut { limit: self.timeout.limit() })),
        }
    }
}

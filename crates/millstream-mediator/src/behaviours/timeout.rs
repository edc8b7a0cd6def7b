//! A limit on how long a call may take.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
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
#[derive(Debug, Clone)]
pub struct Timeout {
    timeout: millstream_resilience::Timeout,
    /// Of single types, by their names.
    others: BTreeMap<Cow<'static, str>, millstream_resilience::Timeout>,
}

impl Timeout {
    /// So long and no longer.
    ///
    /// # Panics
    /// If `limit` is zero.
    pub fn new(limit: Duration) -> Self {
        Timeout { timeout: millstream_resilience::Timeout::new(limit), others: BTreeMap::new() }
    }

    /// Another limit for messages of this name. If it stands around no handler of such, the mediator is not built.
    ///
    /// # Panics
    /// If `limit` is zero.
    #[must_use]
    pub fn limit_of(mut self, message: impl Into<Cow<'static, str>>, limit: Duration) -> Self {
        self.others.insert(message.into(), millstream_resilience::Timeout::new(limit));
        self
    }
}

impl Behaviour for Timeout {
    fn name(&self) -> Cow<'static, str> {
        let others = self.others.iter().map(|(name, other)| format!(", {name} {:?}", other.limit()));
        format!("timeout {:?}{}", self.timeout.limit(), others.collect::<String>()).into()
    }

    fn of(&self, about: &About) -> Self {
        let timeout = *self.others.get(&*about.name).unwrap_or(&self.timeout);
        Timeout { timeout, others: BTreeMap::new() }
    }

    fn meant_for(&self) -> Vec<Cow<'static, str>> {
        self.others.keys().cloned().collect()
    }

    #[inline]
    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        let mut calling = pin!(next.call(call, request));
        let called = poll_fn(|cx| calling.as_mut().poll(cx).map_err(Behind::Failed));
        match self.timeout.wrap(called).await {
            Ok(response) => Ok(response),
            Err(Behind::Failed(error)) => Err(error),
            Err(_) => Err(Error::new(call.about(), ErrorKind::TimedOut { limit: self.timeout.limit() })),
        }
    }
}

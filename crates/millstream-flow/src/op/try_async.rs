//! One call of an async function that may fail, with its retries.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::time::sleep;

use crate::failure::{BoxError, Failed, Panicked};
use crate::retry::Retry;
use crate::scope::Scope;
use crate::stats::OpStats;

/// Calls until it succeeds or `retry` gives up.
pub(crate) async fn call<T, U, E, M>(
    shared: Arc<(M, Retry, Arc<OpStats>)>,
    scope: Arc<Scope>,
    input: T,
    position: u64,
) -> Result<U, Failed<T>>
where
    M: AsyncFn(&T) -> Result<U, E>,
    E: Into<BoxError>,
{
    let (map, retry, op) = &*shared;
    let mut attempts = 1;
    let error = loop {
        let error = match catching(map(&input)).await {
            Ok(Ok(output)) => return Ok(output),
            Ok(Err(error)) => error.into(),
            Err(panicked) => panicked.into(),
        };
        match retry.next_delay(attempts, &*error) {
            Some(delay) => sleep(delay).await,
            None => break error,
        }
        attempts += 1;
    };
    op.add_failed(1);
    Err(Failed { input, error, stage: op.name(), position, attempts, at: scope.clock.now() })
}

/// A future whose panic is an error.
async fn catching<F: Future>(future: F) -> Result<F::Output, Panicked> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Ok(Poll::Pending) => Poll::Pending,
        Err(payload) => Poll::Ready(Err(Panicked::new(payload))),
    })
    .await
}

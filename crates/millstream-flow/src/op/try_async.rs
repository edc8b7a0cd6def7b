//! One call of an async function that may fail, with its retries.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::time::{sleep, timeout};

use crate::failure::{BoxError, Failed, History, Panicked, TimedOut};
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
    let mut history = History::default();
    let failed = |error: BoxError, attempts| {
        Failed::new((), error, op.name(), scope.clock().now()).counted(position, attempts)
    };
    let error = loop {
        let calling = catching(map(&input));
        let ended = match retry.limit() {
            None => calling.await.map_err(BoxError::from),
            Some(limit) => match timeout(limit, calling).await {
                Ok(ended) => ended.map_err(BoxError::from),
                Err(_) => Err(TimedOut { limit }.into()),
            },
        };
        let error = match ended {
            Ok(Ok(output)) => return Ok(output),
            Ok(Err(error)) => error.into(),
            Err(error) => error,
        };
        let Some(delay) = retry.next_delay(attempts, &*error) else { break error };
        history.add(failed(error, attempts).failure());
        sleep(delay).await;
        attempts += 1;
    };
    op.add_failed(1);
    Err(failed(error, attempts).map_input(|()| input).with_history(history))
}

/// A future whose panic is an error.
pub(crate) async fn catching<F: Future>(future: F) -> Result<F::Output, Panicked> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Ok(Poll::Pending) => Poll::Pending,
        Err(payload) => Poll::Ready(Err(Panicked::new(payload))),
    })
    .await
}

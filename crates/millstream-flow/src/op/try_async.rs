//! One call of an async function that may fail, with its retries.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread;

use millstream_resilience::noting;
use tokio::time::{Instant, sleep};

use crate::failure::{BoxError, Failed, History, Panicked};
use crate::op::map_async::limit::{Limit, Limits, within};
use crate::retry::Retry;
use crate::scope::Scope;
use crate::stats::OpStats;

/// What all calls of an operator share.
pub(crate) type Shared<M> = Arc<(M, Retry, Arc<OpStats>, Limits)>;

/// Calls until it succeeds or `retry` gives up, or its time is over.
pub(crate) async fn call<T, U, E, M>(
    shared: Shared<M>,
    scope: Arc<Scope>,
    input: T,
    position: u64,
) -> Result<U, Failed<T>>
where
    M: AsyncFn(&T) -> Result<U, E>,
    E: Into<BoxError>,
{
    let (map, retry, op, limits) = &*shared;
    let mut history = History::default();
    let mut made = 0;
    let failed = |error: BoxError, attempts| {
        Failed::new((), error, op.name(), scope.clock().now()).counted(position, attempts)
    };
    let tried = {
        let trying = pin!(async {
            let mut began = None;
            let mut attempts = None;
            loop {
                made += 1;
                let limit = limits.attempt.as_deref();
                let error = match attempt(async || map(&input).await, retry, limit, &mut began).await {
                    Ok(output) => {
                        retry.succeeded();
                        return Ok(output);
                    }
                    Err(error) => error,
                };
                if attempts.is_none() {
                    attempts = retry.begin(began);
                }
                let delay = attempts.as_mut().and_then(|attempts| retry.failed(attempts, &*error));
                let Some(delay) = delay else { return Err(error) };
                history.add(failed(error, made).failure());
                sleep(delay).await;
            }
        });
        within(limits.call.as_deref(), trying).await
    };
    let error = match tried {
        Ok(Ok(output)) => return Ok(output),
        Ok(Err(error)) => error,
        Err(late) => late.into(),
    };
    op.add_failed(1);
    Err(failed(error, made).map_input(|()| input).with_history(history))
}

/// One attempt; notes when it first waits, if there may be another.
async fn attempt<U, E: Into<BoxError>>(
    call: impl AsyncFnOnce() -> Result<U, E>,
    retry: &Retry,
    limit: Option<&Limit>,
    began: &mut Option<Instant>,
) -> Result<U, BoxError> {
    // Called in there: what comes before its first wait may panic too, and is part of its time.
    let calling = async { catching(async { call().await }).await?.map_err(Into::into) };
    let timed = pin!(async { within(limit, pin!(calling)).await? });
    if retry.repeats() { noting(began, timed).await } else { timed.await }
}

/// A future whose panic is an error.
pub(crate) async fn catching<F: Future>(future: F) -> Result<F::Output, Panicked> {
    caught(future).await.map_err(Panicked::new)
}

/// A future whose panic is caught.
pub(crate) async fn caught<F: Future>(future: F) -> thread::Result<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(payload) => Poll::Ready(Err(payload)),
    })
    .await
}

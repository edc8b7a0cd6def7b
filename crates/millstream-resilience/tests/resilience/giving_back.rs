//! A call that has ended holds nothing while others are made for it: places, locks, connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use millstream_resilience::{Backoff, BoxError, Bulkhead, Hedge, Retry, Timeout};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tower_layer::Layer;
use tower_service::Service;

const SECOND: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(60);

/// Fails once, each time after a second.
#[derive(Clone, Default)]
struct FailsOnce(Arc<AtomicUsize>);

impl Service<u32> for FailsOnce {
    type Response = u32;
    type Error = BoxError;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<u32, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u32) -> Self::Future {
        let first = self.0.fetch_add(1, Ordering::Relaxed) == 0;
        Box::pin(async move {
            sleep(SECOND).await;
            if first { Err("not yet".into()) } else { Ok(2 * request) }
        })
    }
}

fn retry() -> Retry {
    Retry::new(3).backoff(Backoff::fixed(SECOND))
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_gives_its_place_back_before_the_next() {
    let service = Bulkhead::new(1).queue(1).layer(FailsOnce::default());
    let retry = retry();
    let call = retry.call(|| service.clone().call(21));
    assert_eq!(timeout(SOON, call).await.expect("it does not wait for itself").unwrap(), 42);
}

#[tokio::test(start_paused = true)]
async fn a_failed_call_gives_its_place_to_the_extra_one_that_waits_for_it() {
    let service = Bulkhead::new(1).queue(1).layer(FailsOnce::default());
    let hedge = Hedge::after(Duration::from_millis(100));
    let call = hedge.call(|| service.clone().call(21));
    assert_eq!(timeout(SOON, call).await.expect("it does not wait for itself").unwrap(), 42);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_took_too_long_lets_go_of_what_it_held() {
    let (lock, calls) = (Mutex::new(()), AtomicUsize::new(0));
    let limit = Timeout::new(SECOND);
    let work = async || {
        let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
        let _held = lock.lock().await;
        if first {
            std::future::pending::<()>().await;
        }
        Ok::<_, BoxError>(17)
    };
    let result = retry().call(|| limit.wrap(work())).await;
    assert_eq!((result.unwrap(), calls.load(Ordering::Relaxed)), (17, 2));
    // Whoever keeps the future keeps nothing of the call.
    let mut kept = Box::pin(limit.wrap(async {
        let _held = lock.lock().await;
        std::future::pending::<Result<(), BoxError>>().await
    }));
    kept.as_mut().await.unwrap_err();
    assert!(lock.try_lock().is_ok());
}

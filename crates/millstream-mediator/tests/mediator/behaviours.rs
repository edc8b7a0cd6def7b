//! The behaviours of requests.

mod answers;
mod attempts;
mod faults;
mod layers;
mod limits;
mod seen;
mod shown;

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use millstream_flow::{BoxError, Memo};
use millstream_mediator::metrics::Value;
use millstream_mediator::{
    About, Admission, Authorize, Backpressure, Behaviour, Breaker, Bulkhead, Cache, Call, Check, Context,
    Dedupe, Error, ErrorKind, Fallback, Health, Hedging, Intercept, InterceptAll, Interceptor, InterceptorOf,
    Kind, Mediator, Memory, Next, RateLimit, Request, Retries, Scope, Strategy, StreamAdmission, Timeout,
    Timing,
};
use millstream_resilience::{
    Backoff, BreakerSettings, CircuitBreaker, Class, Classified, Classify, Hedge, Retry,
};
use tokio::time::{Instant, sleep};

use crate::support::{logged, number};
use crate::{Ask, Do};

const SECOND: Duration = Duration::from_secs(1);

/// A handler that fails so many times, each after so long.
fn failing(
    times: u32,
    seconds: u64,
) -> (Arc<AtomicU32>, impl Fn(Ask) -> futures_util::future::BoxFuture<'static, Result<u64, BoxError>> + Clone)
{
    let calls = Arc::new(AtomicU32::new(0));
    let count = calls.clone();
    (calls, move |ask: Ask| {
        let count = count.clone();
        Box::pin(async move {
            if seconds > 0 {
                sleep(Duration::from_secs(seconds)).await;
            }
            if count.fetch_add(1, Ordering::SeqCst) < times { Err("busy".into()) } else { Ok(ask.0) }
        })
    })
}

fn retry(attempts: u32) -> Retries {
    Retries::new(Retry::new(attempts).backoff(Backoff::fixed(SECOND)))
}

/// May be repeated once.
struct Once(bool);

impl Request for Once {
    type Response = u64;
    fn repeat(&self) -> Option<Self> {
        self.0.then_some(Once(false))
    }
}

fn settings() -> BreakerSettings {
    BreakerSettings::default().calls_min(2).probes(1).pause(10 * SECOND)
}

//! The behaviours of stream requests.

mod attempts;
mod breakers;
mod health;
mod limits;
mod options;
mod pressure;
mod seen;
mod shedding;
mod together;

use std::any::Any;
use std::borrow::Cow;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{self, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use millstream_flow::flows::BoxFlow;
use millstream_flow::{BoxError, Flow, Pipe, Step};
use millstream_mediator::{
    About, Backpressure, Call, Context, Error, ErrorKind, Health, HealthBoard, ItemErrors, Mediator, Memory,
    PressureEvent, Resume, Scope, Severity, Strategy, StreamAdmission, StreamBehaviour, StreamBreaker,
    StreamBulkhead, StreamError, StreamHealth, StreamIntercept, StreamInterceptor, StreamLogging, StreamNext,
    StreamOptions, StreamRateLimit, StreamRequest, StreamRetries, StreamTimeout, StreamTiming, Streaming,
};
use millstream_resilience::{Backoff, BreakerSettings, CircuitBreaker, Class, Classified, Retry};
use tokio::time::{Instant, sleep};

use crate::streams::Count;
use crate::support::{logged, number};

const SECOND: Duration = Duration::from_secs(1);

type Items = Pipe<BoxFlow<Result<u64, BoxError>>>;

/// A mediator with one behaviour around streams that this makes, each from the number of its opening, from 0 on.
fn mediator(
    behaviour: impl StreamBehaviour,
    make: impl Fn(u64, u64) -> Items + Send + Sync + 'static,
) -> Mediator {
    let opened = AtomicU64::new(0);
    Mediator::builder()
        .stream_behaviour(behaviour)
        .stream(move |to: Count| {
            std::future::ready(Ok::<_, Error>(make(opened.fetch_add(1, Ordering::SeqCst), to.0)))
        })
        .build()
        .unwrap()
}

fn at_once(to: u64) -> Items {
    Pipe::from_iter(0..to).map(Ok::<_, BoxError>).boxed()
}

/// An item each so long, from the first on.
fn each(time: Duration, to: u64) -> Items {
    let items = stream::unfold(0, move |n| async move {
        if n == to {
            return None;
        }
        sleep(time).await;
        Some((Ok(n), n + 1))
    });
    Pipe::from_stream(items).boxed()
}

/// Items from `from` up to where it breaks.
fn breaks_at(from: u64, at: u64) -> Items {
    Pipe::from_iter(from..=at).map(move |n| if n < at { Ok(n) } else { Err("broken".into()) }).boxed()
}

async fn all(stream: Streaming<u64>) -> (Vec<u64>, Option<StreamError>) {
    let (items, _) = stream.collect().await.unwrap();
    let mut error = None;
    let items = items.into_iter().filter_map(|item| match item {
        Ok(item) => Some(item),
        Err(last) => {
            assert!(error.is_none(), "nothing comes after the last");
            error = Some(last);
            None
        }
    });
    (items.collect(), error)
}

fn retry(attempts: u32) -> Retry {
    Retry::new(attempts).backoff(Backoff::fixed(SECOND))
}

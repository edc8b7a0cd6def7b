//! What a mediator says of all streams that do not say otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use millstream_flow::{BoxError, Concurrency, Pipe};
use millstream_mediator::{Error, Mediator, StreamOptions, StreamRequest};
use tokio::time::{Instant, sleep};

use crate::streams::Count;

struct Other(u64);
impl StreamRequest for Other {
    type Item = u64;
}

/// How many items the handler has made while its reader has taken one.
async fn made_ahead(default: Option<usize>, options: Option<StreamOptions<u64>>) -> u64 {
    let made = Arc::new(AtomicU64::new(0));
    let counter = made.clone();
    let mut builder = Mediator::builder();
    if let Some(default) = default {
        builder = builder.stream_buffer(default);
    }
    if let Some(options) = options {
        builder = builder.stream_options::<Count>(options);
    }
    let count = move |to: Count| {
        let counter = counter.clone();
        std::future::ready(Ok::<_, Error>(Pipe::from_iter(0..to.0).map(move |n| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Error>(n)
        })))
    };
    // One that takes the default, so that it is not without effect.
    let other = async |to: Other| Ok::<_, Error>(Pipe::from_iter(0..to.0).map(Ok::<_, Error>));
    let mediator = builder.stream(count).stream(other).build().unwrap();
    let mut stream = mediator.stream(Count(1000)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    sleep(Duration::from_secs(1)).await;
    made.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn a_buffer_for_all_streams_holds_unless_a_type_says_otherwise() {
    assert_eq!(made_ahead(None, None).await, 1);
    let ahead = made_ahead(Some(10), None).await;
    assert!((10..=1 + 10 + 64).contains(&ahead), "{ahead} items, of ten and a chunk");
    let own = made_ahead(Some(10), Some(StreamOptions::new().buffer(300))).await;
    assert!(own >= 300, "{own} items");
    assert_eq!(made_ahead(Some(10), Some(StreamOptions::new().unbuffered())).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_concurrency_for_all_streams_holds_where_each_item_is_not_said_another() {
    let second = Duration::from_secs(1);
    let work = move |n: u64| async move {
        sleep(second).await;
        Ok::<_, BoxError>(n)
    };
    let elapsed = async |default: Option<usize>, options: StreamOptions<u64>| {
        let mut builder = Mediator::builder();
        if let Some(default) = default {
            builder = builder.stream_concurrency(Concurrency::unordered(default));
        }
        let mediator = builder
            .stream_options::<Count>(options)
            .stream(async |to: Count| Ok::<_, Error>(Pipe::from_iter(0..to.0).map(Ok::<_, Error>)))
            .stream_options::<Other>(StreamOptions::new().each_item(work))
            .stream(async |to: Other| Ok::<_, Error>(Pipe::from_iter(0..to.0).map(Ok::<_, Error>)))
            .build()
            .unwrap();
        let began = Instant::now();
        assert_eq!(mediator.stream(Count(12)).await.unwrap().collect().await.unwrap().0.len(), 12);
        began.elapsed().as_secs()
    };
    assert_eq!(elapsed(None, StreamOptions::new().each_item(work)).await, 12, "one after the other");
    assert_eq!(elapsed(Some(4), StreamOptions::new().each_item(work)).await, 3);
    let own = StreamOptions::new().each(Concurrency::ordered(6), work);
    assert_eq!(elapsed(Some(4), own).await, 2);
}

#[test]
fn defaults_that_no_stream_takes_are_refused() {
    let count = async |to: Count| Ok::<_, Error>(Pipe::from_iter(0..to.0).map(Ok::<_, Error>));
    let own = StreamOptions::new().buffer(1);
    let error = Mediator::builder()
        .stream_buffer(10)
        .stream_concurrency(4)
        .stream_options::<Count>(own)
        .stream(count)
        .build()
        .unwrap_err();
    assert_eq!(error.problems().len(), 2, "{error}");
    assert!(error.problems()[0].starts_with("`stream_buffer` has no effect"), "{error}");
    assert!(error.problems()[1].starts_with("`stream_concurrency` has no effect"), "{error}");
    let late = Mediator::builder().stream(count).stream_buffer(10).build().unwrap_err();
    assert_eq!(
        late.problems()[0],
        "`stream_buffer` comes after the handler of Count; give it before all streams"
    );
}

#[test]
fn a_declared_stream_needs_a_handler() {
    let error = Mediator::builder().declare_stream::<Count>().build().unwrap_err();
    assert_eq!(error.problems(), ["the stream Count is declared and has no handler; register one"]);
    let count = async |to: Count| Ok::<_, Error>(Pipe::from_iter(0..to.0).map(Ok::<_, Error>));
    assert!(Mediator::builder().declare_stream::<Count>().stream(count).build().is_ok());
}

#[tokio::test]
async fn of_what_is_done_with_each_item_the_last_said_is_done() {
    for (options, item) in [
        (
            StreamOptions::new()
                .each(Concurrency::ordered(2), async |n| Ok(n + 10))
                .each_item(async |n| Ok(n + 20)),
            20,
        ),
        (
            StreamOptions::new()
                .each_item(async |n| Ok(n + 20))
                .each(Concurrency::ordered(2), async |n| Ok(n + 10)),
            10,
        ),
    ] {
        let mediator = Mediator::builder()
            .stream_options::<Count>(options)
            .stream(async |_: Count| Ok::<_, Error>(Pipe::from_iter([0]).map(Ok::<_, Error>)))
            .build()
            .unwrap();
        let (items, _) = mediator.stream(Count(1)).await.unwrap().collect().await.unwrap();
        assert_eq!(items.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [item]);
    }
}

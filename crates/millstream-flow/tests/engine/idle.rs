//! An idle flow moves each item at once: what is fed alone comes out without another item, a timer or an end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream_flow::{Batch, Capacity, Concurrency, Flow, Overflow, Pipe, Retry, Sink, SinkError, Workers};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;

/// A sink that tells of each item.
struct Tell(mpsc::Sender<u64>);

impl Sink for Tell {
    type Item = u64;
    async fn write(&mut self, items: &mut Vec<u64>) -> Result<(), SinkError> {
        for item in items.drain(..) {
            self.0.send(item).await?;
        }
        Ok(())
    }
}

/// Feeds items one by one; each must come out alone, and at once, before the next is fed.
async fn passes_alone<F: Flow<Item = u64> + Send + 'static>(
    name: &str,
    build: impl FnOnce(Pipe<millstream_flow::flows::FromStream<ReceiverStream<u64>>>) -> Pipe<F>,
) {
    let (feed, fed) = mpsc::channel(8);
    let (tell, mut told) = mpsc::channel(8);
    let run = build(Pipe::from_stream(ReceiverStream::new(fed))).into_sink(Tell(tell)).start();
    let began = Instant::now();
    for item in 1..=20 {
        feed.send(item).await.unwrap();
        let came = timeout(Duration::from_secs(60), told.recv()).await;
        assert_eq!(came.ok().flatten(), Some(item), "item {item} lingers in {name}");
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "{name} waited for a timer");
    drop(run);
}

#[tokio::test(start_paused = true)]
async fn an_item_fed_alone_comes_out_of_every_operator_alone() {
    passes_alone("nothing", |p| p).await;
    passes_alone("map", |p| p.map(|n| n)).await;
    passes_alone("inspect", |p| p.inspect(|_| ())).await;
    passes_alone("filter", |p| p.filter(|_| true)).await;
    passes_alone("filter_map", |p| p.filter_map(Some)).await;
    passes_alone("flat_map", |p| p.flat_map(|n| [n])).await;
    passes_alone("skip", |p| p.skip(0)).await;
    passes_alone("take", |p| p.take(100)).await;
    passes_alone("batch by count", |p| p.batch(Batch::count(1)).unbatch()).await;
    passes_alone("map_async ready", |p| p.map_async(4, async |n| n)).await;
    passes_alone("map_async", |p| p.map_async(4, yielding)).await;
    passes_alone("map_async of one", |p| p.map_async(1, yielding)).await;
    passes_alone("map_async unordered", |p| p.map_async(Concurrency::unordered(4), yielding)).await;
    passes_alone("map_async auto", |p| p.map_async(Concurrency::auto(), yielding)).await;
    passes_alone("try_map", |p| p.try_map(|n| Ok::<_, String>(*n)).fail_fast()).await;
    passes_alone("try_map_async", |p| {
        p.try_map_async(2, Retry::never(), async |n: &u64| Ok::<_, String>(yielding(*n).await)).reject()
    })
    .await;
    passes_alone("fallback", |p| p.try_map(|n| Err::<u64, _>(n.to_string())).fallback(|failed| failed.input))
        .await;
    passes_alone("skip_errors", |p| p.try_map(|n| Ok::<_, String>(*n)).skip_errors()).await;
    passes_alone("dead_letter", |p| p.try_map(|n| Ok::<_, String>(*n)).dead_letter(async |_| Ok(()))).await;
    passes_alone("boxed", |p| p.boxed()).await;
    passes_alone("buffer", |p| p.buffer(4)).await;
    passes_alone("buffer of one", |p| p.buffer(1)).await;
    passes_alone("automatic buffer", |p| p.buffer(Capacity::auto())).await;
    passes_alone("buffer of bytes", |p| p.buffer_measured(Capacity::items(9).bytes(1, |_: &u64| 8))).await;
    passes_alone("dropping oldest", |p| p.buffer_with(Capacity::items(4), Overflow::DropOldest)).await;
    passes_alone("dropping newest", |p| p.buffer_with(Capacity::items(4), Overflow::DropNewest)).await;
    passes_alone("waiting", |p| p.buffer_with(Capacity::items(4), Overflow::Wait)).await;
    passes_alone("parallel", |p| p.parallel(3, |n| n)).await;
    passes_alone("parallel unordered", |p| p.parallel(Workers::unordered(3), |n| n)).await;
    passes_alone("parallel auto", |p| p.parallel(Workers::auto(), |n| n)).await;
    passes_alone("merge", |p| p.merge(Pipe::from_stream(futures_util::stream::pending()))).await;
    passes_alone("merged last", |p| Pipe::from_stream(futures_util::stream::pending()).merge(p)).await;
    passes_alone("partition", |p| Pipe::merge_all(p.partition(3, 2, |n| *n))).await;
    passes_alone("per_key", |p| p.per_key(3, 2, |n| *n, |lane| lane.map(|n| n))).await;
    passes_alone("ten hops", |p| {
        let hops = p.buffer(2).buffer(2).buffer(2).buffer(2).buffer(2);
        hops.buffer(2).buffer(2).buffer(2).buffer(2).buffer(2)
    })
    .await;
}

async fn yielding(n: u64) -> u64 {
    tokio::task::yield_now().await;
    n
}

#[tokio::test(start_paused = true)]
async fn what_is_pushed_before_a_wait_is_handed_on_before_the_wait() {
    // Two items, then nothing: both must be seen although no chunk is full, nothing ends, and nobody asks again.
    let (feed, fed) = mpsc::channel(8);
    feed.send(1).await.unwrap();
    feed.send(2).await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let out = seen.clone();
    let pipe =
        Pipe::from_stream(ReceiverStream::new(fed)).flat_map(|n: u64| [n, n]).boxed().buffer(64).boxed();
    let run = pipe.map_async(8, yielding).for_each(move |n| out.lock().unwrap().push(n)).start();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(*seen.lock().unwrap(), [1, 1, 2, 2]);
    drop((run, feed));
}

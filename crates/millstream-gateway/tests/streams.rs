//! Streams without a gateway, on a clock that stands.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body::Body as _;
use millstream_gateway::{
    Body, BodyError, BufferPool, CHUNK_MAX, Direction, PoolSettings, StreamOutcome, StreamSink,
    stream_request, stream_response,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf, duplex, sink};
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);

/// Gives so many bytes, and remembers the most that it was asked for at once.
struct Ones {
    left: usize,
    most: Arc<AtomicUsize>,
}

impl AsyncRead for Ones {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.most.fetch_max(buffer.remaining(), Ordering::Relaxed);
        let count = self.left.min(buffer.remaining());
        buffer.put_slice(&vec![1; count]);
        self.left -= count;
        Poll::Ready(Ok(()))
    }
}

fn ones(left: usize) -> (Ones, Arc<AtomicUsize>) {
    let most = Arc::new(AtomicUsize::new(0));
    (Ones { left, most: most.clone() }, most)
}

#[tokio::test]
async fn every_byte_arrives_and_the_sink_is_shut_down() {
    let (mut near, far) = duplex(100);
    let sent: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
    let streaming = tokio::spawn(stream_request(io::Cursor::new(sent.clone()), far).into_future());
    let mut got = Vec::new();
    near.read_to_end(&mut got).await.expect("an end");
    assert_eq!(got, sent);
    let report = streaming.await.expect("no panic").expect("whole");
    assert_eq!((report.direction, report.outcome), (Direction::Request, StreamOutcome::Complete));
    assert_eq!((report.bytes, report.chunks, report.chunk_bytes_average), (10_000, 1, 10_000.0));
    assert!(report.backpressure_events > 0, "{report:?}");
    let report = stream_response(Body::empty(), sink()).await.expect("whole");
    assert_eq!((report.direction, report.bytes), (Direction::Response, 0));
}

#[tokio::test]
async fn a_read_is_as_large_as_was_asked_for_once_the_sink_has_shown_to_be_fast() {
    for (chunk, expected) in [(512, 512), (4096, 4096), (CHUNK_MAX, CHUNK_MAX)] {
        let (from, most) = ones(8 << 20);
        let report = stream_request(from, sink()).chunk(chunk).await.expect("whole");
        assert_eq!((report.bytes, most.load(Ordering::Relaxed)), (8 << 20, expected));
    }
    let (from, most) = ones(8 << 20);
    stream_request(from, sink()).await.expect("whole");
    assert_eq!(most.load(Ordering::Relaxed), 512 << 10);
    assert!(std::panic::catch_unwind(|| stream_request(Body::empty(), sink()).chunk(511)).is_err());
}

#[tokio::test]
async fn buffers_are_of_the_pool_that_was_given() {
    for enabled in [true, false] {
        let pool = BufferPool::new(PoolSettings { enabled, ..PoolSettings::default() });
        stream_request(ones(100 << 10).0, sink()).chunk(4096).pool(&pool).await.expect("whole");
        let snapshot = pool.snapshot();
        let tier = &snapshot.tiers[0];
        assert_eq!(
            (tier.hits + tier.misses, snapshot.in_use),
            (26, 0),
            "one for each read, the end's among them"
        );
        assert_eq!(tier.misses, if enabled { 1 } else { 26 });
    }
    let leased =
        || BufferPool::global().snapshot().tiers.iter().map(|tier| tier.hits + tier.misses).sum::<u64>();
    let before = leased();
    stream_request(ones(1).0, sink()).await.expect("whole");
    assert!(leased() > before);
}

#[tokio::test(start_paused = true)]
async fn what_is_counted_is_seen_while_it_moves() {
    let ((mut source, from), (to, mut taken)) = (duplex(64), duplex(1 << 20));
    let streaming = stream_response(from, to);
    let progress = streaming.progress();
    let streaming = tokio::spawn(streaming.into_future());
    sleep(SECOND).await;
    assert_eq!((progress.bytes(), progress.first_byte(), progress.outcome()), (0, None, None));
    source.write_all(b"first").await.expect("written");
    let mut word = [0; 5];
    taken.read_exact(&mut word).await.expect("the first byte comes before the last is read");
    sleep(SECOND).await;
    assert_eq!((progress.bytes(), progress.chunks(), progress.chunk_bytes_average()), (5, 1, 5.0));
    assert_eq!((progress.first_byte(), progress.source_wait()), (Some(SECOND), SECOND));
    assert_eq!((progress.duration(), progress.bytes_per_second()), (2 * SECOND, 2.5));
    drop(source);
    let report = streaming.await.expect("no panic").expect("whole");
    sleep(SECOND).await;
    assert_eq!((progress.outcome(), progress.duration()), (Some(StreamOutcome::Complete), 2 * SECOND));
    assert_eq!(
        (report.duration, report.source_wait, report.first_byte),
        (2 * SECOND, 2 * SECOND, Some(SECOND))
    );
    assert_eq!((report.bytes_per_second, report.backpressure_events), (2.5, 0));
}

#[tokio::test(start_paused = true)]
async fn a_slow_sink_holds_the_source_and_the_time_is_counted() {
    let (mut source, from) = duplex(1000);
    let (to, mut taken) = duplex(1000);
    let streaming = stream_request(from, to).chunk(512);
    let progress = streaming.progress();
    let streaming = tokio::spawn(streaming.into_future());
    let written = tokio::spawn(async move { source.write_all(&[1; 10_000]).await });
    sleep(SECOND).await;
    assert!(!written.is_finished() && progress.bytes() <= 1512, "{} bytes", progress.bytes());
    let mut all = Vec::new();
    taken.read_to_end(&mut all).await.expect("an end");
    let report = streaming.await.expect("no panic").expect("whole");
    assert_eq!((all.len(), report.bytes), (10_000, 10_000));
    assert!(report.backpressure_time >= SECOND && report.backpressure_events > 0, "{report:?}");
    assert_eq!(progress.backpressure_time(), report.backpressure_time);
    assert_eq!(progress.backpressure_events(), report.backpressure_events);
}

#[tokio::test(start_paused = true)]
async fn a_side_that_stands_still_for_too_long_ends_the_stream() {
    let (_source, from) = duplex(10);
    let error = stream_request(from, sink()).idle(SECOND).await.expect_err("idle");
    assert_eq!((error.report().outcome, error.report().duration), (StreamOutcome::TimedOut, SECOND));
    assert_eq!(error.source().expect("a cause").to_string(), "nothing came for 1s");
    let (to, _taken) = duplex(10);
    let error = stream_request(ones(100).0, to).idle(SECOND).await.expect_err("idle");
    assert_eq!(error.report().outcome, StreamOutcome::TimedOut);
    assert_eq!(error.source().expect("a cause").to_string(), "nothing was taken for 1s");
    let (sink, _body) = StreamSink::body();
    let pieces = stream::iter([Ok(Bytes::from("a")), Ok("b".into())]);
    let error = stream_request(Body::from_stream(pieces), sink).idle(SECOND).await.expect_err("idle");
    assert_eq!(error.source().expect("a cause").to_string(), "nothing was taken for 1s");
    // By default it may for a minute.
    let (_source, from) = duplex(10);
    let error = stream_request(from, tokio::io::sink()).await.expect_err("idle");
    assert_eq!(error.report().duration, 60 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_moves_ends_all_the_same_when_its_time_is_over() {
    let ticks = stream::unfold((), async |()| {
        sleep(SECOND).await;
        Some((Ok(Bytes::from("tick")), ()))
    });
    let error =
        stream_request(Body::from_stream(ticks), sink()).total(SECOND * 5 / 2).await.expect_err("late");
    assert_eq!((error.report().outcome, error.report().bytes), (StreamOutcome::TimedOut, 8));
    assert_eq!(error.to_string(), "the stream broke off after 8 bytes");
    assert_eq!(error.source().expect("a cause").to_string(), "it was not done after 2.5s");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_lets_go_of_both_sides_and_says_that_it_was_cancelled() {
    let ((mut source, from), (to, mut taken)) = (duplex(10), duplex(10));
    let pool = BufferPool::new(PoolSettings::default());
    let streaming = stream_request(from, to).pool(&pool);
    let progress = streaming.progress();
    let mut streaming = streaming.into_future();
    source.write_all(&[1; 10]).await.expect("written");
    tokio::select! {
        biased;
        ended = &mut streaming => panic!("{ended:?}"),
        () = sleep(SECOND) => {}
    }
    drop(streaming);
    assert_eq!((progress.outcome(), progress.bytes()), (Some(StreamOutcome::Cancelled), 10));
    assert_eq!(pool.snapshot().in_use, 0);
    assert!(source.write_all(b"x").await.is_err(), "nobody reads any more");
    let mut rest = Vec::new();
    assert_eq!(taken.read_to_end(&mut rest).await.expect("an end"), 10);
}

#[tokio::test]
async fn which_side_failed_is_told_with_its_error() {
    let broken = || Body::from_stream(stream::iter([Ok("ab".into()), Err(BodyError::new("gone"))]));
    let error = stream_request(broken(), sink()).await.expect_err("broken");
    assert_eq!((error.report().outcome, error.report().bytes), (StreamOutcome::SourceFailed, 2));
    let (to, taken) = duplex(10);
    drop(taken);
    let error = stream_request(ones(100).0, to).await.expect_err("broken");
    assert_eq!(error.report().outcome, StreamOutcome::SinkFailed);
    let cause = error.source().expect("a cause").source().expect("the connection's error");
    assert_eq!(cause.downcast_ref::<io::Error>().map(io::Error::kind), Some(io::ErrorKind::BrokenPipe));
    let error = stream_request(ones(100).0, sink()).bytes_max(99).await.expect_err("too large");
    assert_eq!(error.report().outcome, StreamOutcome::TooLarge);
    stream_request(ones(100).0, sink()).bytes_max(100).await.expect("as large as it may be");

    // A body that comes of a stream which broke off is broken off.
    let (sink, body) = StreamSink::body();
    let streaming = tokio::spawn(stream_response(broken(), sink).into_future());
    assert!(body.collect(10).await.is_err());
    assert!(streaming.await.expect("no panic").is_err());
    let (sink, body) = StreamSink::body();
    drop(body);
    let error = stream_response(ones(100).0, sink).await.expect_err("nobody reads");
    assert_eq!(error.report().outcome, StreamOutcome::SinkFailed);
}

#[tokio::test]
async fn trailers_go_from_body_to_body() {
    let frames = |trailers: http::HeaderMap| {
        let frames = [http_body::Frame::data(Bytes::from("ab")), http_body::Frame::trailers(trailers)];
        Body::new(http_body_util::StreamBody::new(stream::iter(frames.map(Ok::<_, io::Error>))))
    };
    let trailers = http::HeaderMap::from_iter([(
        http::HeaderName::from_static("checksum"),
        http::HeaderValue::from_static("7"),
    )]);
    let (sink, mut body) = StreamSink::body();
    let streaming = tokio::spawn(stream_response(frames(trailers.clone()), sink).into_future());
    assert_eq!(body.next().await.expect("bytes").expect("no error"), "ab");
    let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
    let got = frame.expect("a frame").expect("no error").into_trailers().expect("trailers");
    assert_eq!(got, trailers);
    assert_eq!(streaming.await.expect("no panic").expect("whole").bytes, 2);
}

//! Streams.

use std::time::{Duration, SystemTime};

use super::{Bench, claims, within};
use crate::error::BrokerErrorKind;
use crate::message::Message;
use crate::stream::{StreamFrom, StreamItem, StreamReader, StreamSpec};

claims![
    a_stream_is_read_from_anywhere_and_again needs streams,
    a_reader_waits_at_the_end_for_more needs streams,
    a_stream_forgets_its_oldest_beyond_its_size needs streams,
    readers_remember_their_offset needs streams,
    a_deleted_stream_ends_its_readers needs streams,
    streams_survive_a_restart needs streams durable,
];

async fn stream(bench: &Bench) -> String {
    let name = bench.name("stream");
    bench.broker().declare_stream(StreamSpec::new(&name)).await.expect("declared");
    name
}

async fn append(bench: &Bench, stream: &str, bodies: std::ops::Range<u64>) -> u64 {
    let messages = bodies.map(|i| Message::new(i.to_string())).collect();
    bench.broker().append(stream, messages).await.expect("appended")
}

async fn open(bench: &Bench, stream: &str, from: StreamFrom) -> StreamReader {
    bench.broker().read(stream, from).await.expect("the stream can be read")
}

async fn take(bench: &Bench, reader: &mut StreamReader, count: usize) -> Vec<StreamItem> {
    let mut out = Vec::new();
    while out.len() < count {
        let chunk = within(bench.claim, reader.next_chunk(count - out.len())).await.expect("read");
        assert!(!chunk.is_empty(), "the reader goes on");
        out.extend(chunk);
    }
    out
}

/// Offsets and bodies must agree.
fn offsets(items: &[StreamItem]) -> Vec<u64> {
    for item in items {
        assert_eq!(item.message.body().as_ref(), item.offset.to_string().as_bytes());
    }
    items.iter().map(|item| item.offset).collect()
}

async fn a_stream_is_read_from_anywhere_and_again(bench: &mut Bench) {
    let name = stream(bench).await;
    assert_eq!(append(bench, &name, 0..5).await, 0);
    assert_eq!(append(bench, &name, 5..10).await, 5);
    for (from, expected) in [
        (StreamFrom::First, 0..10),
        (StreamFrom::Offset(3), 3..10),
        (StreamFrom::Offset(7), 7..10),
        (StreamFrom::Last, 9..10),
        (StreamFrom::Timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(1)), 0..10),
    ] {
        let mut reader = open(bench, &name, from).await;
        let items = take(bench, &mut reader, (expected.end - expected.start) as usize).await;
        assert_eq!(offsets(&items), expected.collect::<Vec<_>>(), "{from:?}");
    }
    let stats = bench.broker().stream_stats(&name).await.expect("stats");
    assert_eq!((stats.first, stats.next), (0, 10));

    let mut reader = open(bench, &name, StreamFrom::First).await;
    let sixth = take(bench, &mut reader, 6).await[5].time;
    let mut later = open(bench, &name, StreamFrom::Timestamp(sixth)).await;
    assert!(take(bench, &mut later, 1).await[0].time >= sixth);
    let differing = bench.broker().declare_stream(StreamSpec::new(&name).max_bytes(1)).await;
    assert_eq!(differing.expect_err("differs").kind(), BrokerErrorKind::Mismatch);
}

async fn a_reader_waits_at_the_end_for_more(bench: &mut Bench) {
    let name = stream(bench).await;
    append(bench, &name, 0..2).await;
    let mut from_next = open(bench, &name, StreamFrom::Next).await;
    let mut from_first = open(bench, &name, StreamFrom::First).await;
    assert_eq!(offsets(&take(bench, &mut from_first, 2).await), [0, 1]);
    let waiting = tokio::time::timeout(Duration::from_millis(20), from_first.next_chunk(1)).await;
    assert!(waiting.is_err(), "there is nothing yet");
    append(bench, &name, 2..4).await;
    assert_eq!(offsets(&take(bench, &mut from_first, 2).await), [2, 3]);
    assert_eq!(offsets(&take(bench, &mut from_next, 2).await), [2, 3]);
}

async fn a_stream_forgets_its_oldest_beyond_its_size(bench: &mut Bench) {
    let name = bench.name("stream");
    bench.broker().declare_stream(StreamSpec::new(&name).max_bytes(1 << 20)).await.expect("declared");
    let total = 16 * 1024;
    for _ in 0..total / 256 {
        let messages = (0..256).map(|_| Message::new(vec![7; 1024])).collect();
        bench.broker().append(&name, messages).await.expect("appended");
    }
    let stats = bench.broker().stream_stats(&name).await.expect("stats");
    assert_eq!(stats.next, total);
    assert!(stats.first > 0, "{stats:?}");
    if bench.broker().features().stream_bytes {
        assert!(stats.bytes < total * 1024, "{stats:?}");
        assert!(stats.bytes >= 1 << 20, "never less than asked for: {stats:?}");
    }
    let mut reader = open(bench, &name, StreamFrom::Offset(0)).await;
    assert_eq!(take(bench, &mut reader, 1).await[0].offset, stats.first);
}

async fn readers_remember_their_offset(bench: &mut Bench) {
    let (one, two) = (stream(bench).await, stream(bench).await);
    let broker = bench.broker();
    assert_eq!(broker.stored_offset(&one, "reader").await.expect("looked up"), None);
    broker.store_offset(&one, "reader", 5).await.expect("stored");
    broker.store_offset(&one, "other", 7).await.expect("stored");
    broker.store_offset(&two, "reader", 9).await.expect("stored");
    assert_eq!(broker.stored_offset(&one, "reader").await.expect("looked up"), Some(5));
    assert_eq!(broker.stored_offset(&one, "other").await.expect("looked up"), Some(7));
}

async fn a_deleted_stream_ends_its_readers(bench: &mut Bench) {
    let name = stream(bench).await;
    append(bench, &name, 0..2).await;
    bench.broker().store_offset(&name, "reader", 2).await.expect("stored");
    let mut reader = open(bench, &name, StreamFrom::Next).await;
    bench.broker().delete_stream(&name).await.expect("deleted");
    bench.broker().delete_stream(&name).await.expect("again is fine");
    let end = within(bench.claim, reader.next_chunk(1)).await;
    assert_eq!(end.expect_err("it is gone").kind(), BrokerErrorKind::NotFound);
    let missing = bench.broker().append(&name, vec![Message::new("x")]).await;
    assert_eq!(missing.expect_err("it is gone").kind(), BrokerErrorKind::NotFound);
    bench.broker().declare_stream(StreamSpec::new(&name)).await.expect("declared anew");
    assert_eq!(bench.broker().stream_stats(&name).await.expect("stats").next, 0, "it begins anew");
    let stored = bench.broker().stored_offset(&name, "reader").await;
    assert_eq!(stored.expect("looked up"), None, "so do its readers");
}

async fn streams_survive_a_restart(bench: &mut Bench) {
    let name = stream(bench).await;
    append(bench, &name, 0..5).await;
    bench.broker().store_offset(&name, "reader", 3).await.expect("stored");
    bench.restart().await;
    assert_eq!(bench.broker().stored_offset(&name, "reader").await.expect("looked up"), Some(3));
    let sixth = append(bench, &name, 5..6).await;
    assert!(if bench.broker().features().dense_offsets { sixth == 5 } else { sixth >= 5 }, "{sixth}");
    let mut reader = open(bench, &name, StreamFrom::Offset(3)).await;
    let items = take(bench, &mut reader, 3).await;
    assert_eq!(offsets(&items[..2]), [3, 4]);
    assert_eq!((items[2].offset, items[2].message.body().as_ref()), (sixth, &b"5"[..]));
}

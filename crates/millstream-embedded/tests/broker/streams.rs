//! Streams: what they forget, what of them is damaged, and when their readers hear of what is appended.

use std::time::Duration;

use millstream_embedded::log::SimDisk;
use millstream_embedded::{EmbeddedBroker, Settings, open};
use millstream_message::{Broker, Message, StreamFrom, StreamSpec, stream_extent};

use crate::support::{ProcessDisk, on};

#[tokio::test(start_paused = true)]
async fn a_stream_forgets_what_is_older_than_its_age_and_nothing_younger() {
    let on_disk = on(&ProcessDisk::new(&SimDisk::new())).await;
    let in_memory = EmbeddedBroker::memory(Settings::memory()).expect("opens");
    for (broker, by_segments) in [(&in_memory, false), (&on_disk, true)] {
        let hour = StreamSpec::new("s").max_age(Duration::from_secs(3600));
        broker.declare_stream(hour).await.expect("declared");
        let append = async |count: usize| {
            for _ in 0..count {
                broker.append("s", vec![Message::new(vec![7; 4096])]).await.expect("appended");
            }
        };
        // 1.6 MB, hence several segments of 256 KiB.
        append(400).await;
        tokio::time::sleep(Duration::from_secs(1800)).await;
        append(400).await;
        assert_eq!(broker.stream_stats("s").await.expect("stats").first, 0, "nothing is an hour old");
        tokio::time::sleep(Duration::from_secs(1860)).await;
        append(1).await;
        let stats = broker.stream_stats("s").await.expect("stats");
        assert_eq!(stats.next, 801);
        if by_segments {
            assert!((200..=400).contains(&stats.first), "whole segments, and no younger message: {stats:?}");
        } else {
            assert_eq!(stats.first, 400);
        }
        let mut reader = broker.read("s", StreamFrom::First).await.expect("reads");
        let first = reader.next_chunk(1).await.expect("reads");
        assert_eq!(first[0].offset, stats.first);
    }
}

/// Readers pass over what is damaged in a stream, and somebody must hear of it: it counts once, whoever reads and how often.
#[tokio::test(start_paused = true)]
async fn damage_in_a_stream_is_counted_by_place_and_told_and_the_rest_is_read() {
    for closes in [true, false] {
        let sim = SimDisk::new();
        let broker = on(&ProcessDisk::new(&sim)).await;
        for name in ["s", "sound"] {
            broker.declare_stream(StreamSpec::new(name)).await.expect("declared");
            for body in 1..=6u8 {
                broker.append(name, vec![Message::new(vec![body; 4000])]).await.expect("appended");
            }
        }
        if closes {
            // A checkpoint covers the records: the next opening does not read them.
            broker.close().await.expect("closes");
        }
        drop(broker);
        let (segment, _) = sim
            .files()
            .into_iter()
            .filter(|(path, _)| path.extension().is_some_and(|e| e == "log"))
            .find(|(path, _)| path.to_string_lossy().contains("streams"))
            .expect("the first stream's");
        let flip = |bytes: &mut Vec<u8>| {
            for body in [2, 5] {
                let at = bytes.windows(9).position(|window| window == [body; 9]).expect("the body");
                bytes[at + 1000] ^= 1;
            }
        };
        sim.tamper(&segment, flip).expect("the segment is there");
        let broker = on(&ProcessDisk::new(&sim)).await;
        for _ in 0..3 {
            let held = stream_extent(&broker, "s", StreamFrom::First).await.expect("known");
            let mut reader = broker.read("s", StreamFrom::First).await.expect("readable").until(held);
            let mut got = Vec::new();
            loop {
                let chunk = reader.next_chunk(100).await.expect("reads");
                if chunk.is_empty() {
                    break;
                }
                got.extend(chunk.iter().map(|item| (item.offset, item.message.body()[0])));
            }
            assert_eq!(got, [(0, 1), (2, 3), (3, 4), (5, 6)], "closed: {closes}");
        }
        assert_eq!(broker.damaged_streams(), [("s".to_owned(), 2)].into(), "closed: {closes}");
        let told = broker.damage();
        assert!(
            matches!(&told[..], [one] if one.contains("the stream `s` of ") && one.contains("damaged in 2 places")),
            "{told:?}"
        );
    }
}

/// An append that the disk refuses has taken its offsets: whoever reads everything there is must not wait for them.
#[tokio::test(start_paused = true)]
async fn a_stream_is_drained_though_its_last_append_was_refused() {
    let sim = SimDisk::new();
    let broker = on(&ProcessDisk::new(&sim)).await;
    broker.declare_stream(StreamSpec::new("s")).await.expect("declared");
    let messages = |count: usize| (0..count).map(|_| Message::new(vec![7; 4000])).collect::<Vec<_>>();
    broker.append("s", messages(3)).await.expect("appended");
    sim.set_capacity(sim.used_bytes());
    let mut taken = 0;
    // What was reserved before is still there.
    while broker.append("s", messages(1)).await.is_ok() {
        taken += 1;
        assert!(taken < 1000, "the disk is full at last");
    }
    let drained = async |broker: &EmbeddedBroker| {
        let held = stream_extent(broker, "s", StreamFrom::First).await.expect("known");
        let mut reader = broker.read("s", StreamFrom::First).await.expect("readable").until(held.clone());
        let mut count = 0;
        loop {
            let chunk = tokio::time::timeout(Duration::from_secs(60), reader.next_chunk(100)).await;
            match chunk.expect("it ends").expect("reads").len() {
                0 => break (count, held.end),
                some => count += some as u64,
            }
        }
    };
    let (count, end) = drained(&broker).await;
    assert!((3..end).contains(&count), "{count} of {end}");
    // The next life of the broker knows of the offsets, too.
    sim.set_capacity(u64::MAX);
    let _ = broker.close().await;
    drop(broker);
    let broker = on(&ProcessDisk::new(&sim)).await;
    assert_eq!(drained(&broker).await.0, count);
    broker.append("s", messages(2)).await.expect("appended");
    assert_eq!(drained(&broker).await.0, count + 2);
}

/// What is appended may become durable between a reader's look at the log and its look at how far that is durable: whoever waits
/// then waits for an append that has been.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_reader_that_waits_at_the_end_of_a_stream_hears_of_every_append() {
    let appends = if std::env::var_os("MILLSTREAM_SOAK").is_some() { 50_000 } else { 8000 };
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("embedded:{}", directory.path().display()).parse().expect("a URL");
    let broker = open(&url).await.expect("opened");
    broker.declare_stream(StreamSpec::new("s")).await.expect("declared");
    let (heard, mut each) = tokio::sync::mpsc::channel(8);
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (broker, heard) = (broker.clone(), heard.clone());
            tokio::spawn(async move {
                let mut reader = broker.read("s", StreamFrom::First).await.expect("read");
                loop {
                    for item in reader.next_chunk(8).await.expect("a chunk") {
                        if heard.send(item.offset).await.is_err() {
                            return;
                        }
                    }
                }
            })
        })
        .collect();
    for offset in 0..appends {
        assert_eq!(broker.append("s", vec![Message::new("x")]).await.expect("stored"), offset);
        for _ in 0..3 {
            let next = tokio::time::timeout(Duration::from_secs(60), each.recv()).await;
            assert_eq!(next.unwrap_or_else(|_| panic!("append {offset} is not heard of")), Some(offset));
        }
    }
    drop(each);
    readers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_reader_that_begins_while_the_first_append_is_under_way_reads_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("embedded:{}", directory.path().display()).parse().expect("a URL");
    let broker = open(&url).await.expect("opened");
    broker.declare_stream(StreamSpec::new("s")).await.expect("declared");
    let mut append = broker.append("s", vec![Message::new("x")]);
    let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(append.as_mut().poll(cx))).await;
    assert!(polled.is_pending(), "it is accepted, and not on the disk");
    let mut reader = broker.read("s", StreamFrom::First).await.expect("read");
    append.await.expect("stored");
    let chunk = tokio::time::timeout(Duration::from_secs(60), reader.next_chunk(8)).await;
    assert_eq!(chunk.expect("it comes").expect("a chunk")[0].offset, 0);
}

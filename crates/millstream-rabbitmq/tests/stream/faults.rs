//! Connections that are cut, and a broker that goes away.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use millstream_message::{Broker, BrokerErrorKind, StreamFrom, StreamSpec};
use millstream_rabbitmq::stream::{Producer, ProducerOptions, StreamBroker, StreamClient};
use tokio::time::timeout;

use crate::support::{
    Down, TURN, all, around, client, number, numbers, open, proxy, restart, stream, take, url,
};

/// Publishes numbers from 0 in batches of ten until told to stop; returns how many. All must be confirmed.
async fn publish(producer: &Producer, batches: u64, pause: Duration) -> u64 {
    let mut confirms = VecDeque::new();
    for batch in 0..batches {
        confirms.push_back(producer.send(&numbers(10 * batch..10 * batch + 10)).await.expect("sent"));
        if confirms.len() > 50 {
            let confirm = confirms.pop_front().expect("some");
            assert!(confirm.await.all_confirmed());
        }
        tokio::time::sleep(pause).await;
    }
    for confirm in confirms {
        let outcomes = confirm.await;
        assert!(outcomes.all_confirmed(), "{:?}", outcomes.others());
    }
    10 * batches
}

/// Every number is there, and the first time it is, it comes after all that were before it. Returns how often each is.
async fn check(client: &StreamClient, stream: &str, total: u64) -> BTreeMap<u64, u32> {
    let mut times = BTreeMap::new();
    let mut next = 0;
    for item in all(client, stream).await {
        let number = number(&item);
        if !times.contains_key(&number) {
            assert_eq!(number, next, "in order");
            next += 1;
        }
        *times.entry(number).or_insert(0) += 1;
    }
    assert_eq!(next, total, "every confirmed message is there");
    times
}

#[tokio::test]
async fn what_a_named_producer_publishes_through_cuts_is_there_once_and_in_order() {
    let _turn = TURN.read().await;
    let proxy = proxy().await;
    let through = client(&around(&proxy, "")).await;
    let direct = client(&url("").await).await;
    for (name, options) in [
        ("cut-named", ProducerOptions::default().name("cutter")),
        ("cut-named-entries", ProducerOptions::default().name("cutter").entry_messages(4)),
    ] {
        let stream = stream(&direct, name).await;
        let producer = through.producer(&stream, options).await.expect("a producer");
        let cutting = async {
            for cut in 0..12_u64 {
                tokio::time::sleep(Duration::from_millis(60 + 23 * (cut % 4))).await;
                proxy.cut();
            }
        };
        let (total, ()) = tokio::join!(publish(&producer, 1000, Duration::from_millis(1)), cutting);
        let times = check(&direct, &stream, total).await;
        assert!(times.values().all(|times| *times == 1), "none is there twice");
    }
}

#[tokio::test]
async fn what_a_nameless_producer_publishes_through_cuts_is_there_at_least_once() {
    let _turn = TURN.read().await;
    let proxy = proxy().await;
    let (through, direct) = (client(&around(&proxy, "")).await, client(&url("").await).await);
    let stream = stream(&direct, "cut-nameless").await;
    let producer = through.producer(&stream, ProducerOptions::default()).await.expect("a producer");
    let cutting = async {
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(70)).await;
            proxy.cut();
        }
    };
    let (total, ()) = tokio::join!(publish(&producer, 800, Duration::from_millis(1)), cutting);
    check(&direct, &stream, total).await;
}

#[tokio::test]
async fn a_reader_goes_on_through_cuts_without_a_gap_and_without_a_repetition() {
    let _turn = TURN.read().await;
    let proxy = proxy().await;
    let (through, direct) = (client(&around(&proxy, "")).await, client(&url("").await).await);
    let stream = stream(&direct, "cut-read").await;
    let producer = direct.producer(&stream, ProducerOptions::default()).await.expect("a producer");
    // Nothing is there yet: `Next` must not move while the connection is away.
    let mut next = open(&through, &stream, StreamFrom::Next).await;
    proxy.cut();
    let cutting = async {
        for cut in 0..12_u64 {
            tokio::time::sleep(Duration::from_millis(50 + 31 * (cut % 3))).await;
            proxy.cut();
        }
    };
    let reading = async {
        let items = take(&mut next, 10_000).await;
        let seen: Vec<u64> = items.iter().map(number).collect();
        assert_eq!(seen, (0..10_000).collect::<Vec<_>>());
        assert!(items.is_sorted_by(|a, b| a.offset < b.offset));
    };
    tokio::join!(publish(&producer, 1000, Duration::from_millis(1)), cutting, reading);
    let mut first = open(&through, &stream, StreamFrom::First).await;
    let mut seen = Vec::new();
    for _ in 0..100 {
        seen.extend(take(&mut first, 100).await.iter().map(number));
        if seen.len() % 1000 == 0 {
            proxy.cut();
        }
    }
    assert_eq!(seen, (0..10_000).collect::<Vec<_>>());
}

/// Publishes and reads while the node goes away in this way and comes back.
async fn through(name: &str, down: Down) {
    let _alone = TURN.write().await;
    let client = client(&url("").await).await;
    let stream = stream(&client, name).await;
    let producer =
        client.producer(&stream, ProducerOptions::default().name("through")).await.expect("a producer");
    let mut reader = open(&client, &stream, StreamFrom::First).await;
    let reading = async {
        let seen: Vec<u64> = take(&mut reader, 5000).await.iter().map(number).collect();
        assert_eq!(seen, (0..5000).collect::<Vec<_>>());
    };
    let restarting = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        restart(down).await;
    };
    let (total, (), ()) =
        tokio::join!(publish(&producer, 500, Duration::from_millis(2)), restarting, reading);
    let times = check(&client, &stream, total).await;
    assert!(times.values().all(|times| *times == 1), "none is there twice");
}

#[tokio::test]
async fn a_restart_of_the_broker_loses_nothing() {
    through("restarted", Down::Stopped).await;
}

#[tokio::test]
async fn a_broker_that_is_killed_loses_nothing() {
    {
        // Killed within minutes of its first stream, RabbitMQ 3.10 does not start its stream coordinator again, and no
        // stream has a leader. Stopped properly once, it does.
        let _alone = TURN.write().await;
        stream(&client(&url("").await).await, "first").await;
        restart(Down::Stopped).await;
    }
    through("killed", Down::Killed).await;
}

#[tokio::test]
async fn patience_ends() {
    let _turn = TURN.read().await;
    let proxy = proxy().await;
    let (through, direct) =
        (client(&around(&proxy, "patience=1&timeout=1")).await, client(&url("").await).await);
    let stream = stream(&direct, "patience").await;
    let producer = through.producer(&stream, ProducerOptions::default().name("p")).await.expect("a producer");
    assert!(producer.send(&numbers(0..1)).await.expect("sent").await.all_confirmed());
    proxy.refuse(true);
    proxy.cut();
    let lost = producer.send(&numbers(1..3)).await.expect("sent").await;
    assert_eq!(lost.confirmed_count(), 0);
    let error = producer.send(&numbers(3..4)).await.expect_err("away");
    assert_eq!(error.kind(), BrokerErrorKind::Unavailable);
    assert_eq!(through.stats(&stream).await.expect_err("away").kind(), BrokerErrorKind::Unavailable);
    proxy.refuse(false);
    let back = async {
        loop {
            if let Ok(confirm) = producer.send(&numbers(1..2)).await {
                return confirm.await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(Duration::from_secs(60), back).await.expect("it comes back").all_confirmed());
}

#[tokio::test]
async fn a_stream_that_is_deleted_ends_its_producers_and_readers() {
    let _turn = TURN.read().await;
    let client = client(&url("").await).await;
    let stream = stream(&client, "doomed").await;
    let producer = client.producer(&stream, ProducerOptions::default()).await.expect("a producer");
    assert!(producer.send(&numbers(0..10)).await.expect("sent").await.all_confirmed());
    let mut reader = open(&client, &stream, StreamFrom::First).await;
    take(&mut reader, 10).await;
    client.delete_stream(&stream).await.expect("deleted");
    let end = timeout(Duration::from_secs(60), reader.next_chunk(1)).await.expect("ends");
    assert_eq!(end.expect_err("gone").kind(), BrokerErrorKind::NotFound);
    let end = async {
        loop {
            match producer.send(&numbers(0..1)).await {
                Err(error) => return error,
                Ok(confirm) => _ = confirm.await,
            }
        }
    };
    let end = timeout(Duration::from_secs(60), end).await.expect("ends");
    assert_eq!(end.kind(), BrokerErrorKind::NotFound);
}

/// How large this process is, in KiB.
fn size() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test]
async fn memory_is_bounded_whatever_the_other_side_does() {
    let _alone = TURN.write().await;
    let client = client(&url("").await).await;
    let stream = stream(&client, "memory").await;
    let producer = client.producer(&stream, ProducerOptions::default()).await.expect("a producer");
    let batch = vec![millstream_message::Message::new(vec![7; 1024]); 100];
    let before = size();
    // Nobody looks at the confirms, and nobody reads: 300 MB through a window of 4 MB.
    for _ in 0..1500 {
        let confirm = producer.send(&batch).await.expect("sent");
        drop(confirm);
    }
    let reader = open(&client, &stream, StreamFrom::First).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let grown = size().saturating_sub(before);
    assert!(grown < 24 << 10, "{grown} KiB more");
    drop(reader);
}

/// In a runtime of one thread, which a task that never waits would keep to itself; hence on a thread of its own.
#[tokio::test]
async fn a_broker_that_is_closed_while_appends_are_under_way_ends() {
    let _turn = TURN.read().await;
    let url = url("").await;
    let (ended, end) = std::sync::mpsc::channel();
    let closing = async move {
        for moment in 0..60 {
            let broker = Arc::new(StreamBroker::connect(&url).await.expect("connects"));
            broker.declare_stream(StreamSpec::new("closed-early")).await.expect("declared");
            broker.append("closed-early", numbers(0..1)).await.expect("appended");
            let appends: Vec<_> = (0..8)
                .map(|number| {
                    let broker = broker.clone();
                    tokio::spawn(async move {
                        broker.append("closed-early", numbers(number..number + 1)).await.is_ok()
                    })
                })
                .collect();
            tokio::time::sleep(Duration::from_micros(50 * moment)).await;
            broker.close().await.expect("closed");
            for append in appends {
                let _ = append.await.expect("no panic");
            }
        }
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(closing);
        let _ = ended.send(());
    });
    let waited = tokio::task::spawn_blocking(move || end.recv_timeout(Duration::from_secs(120)));
    waited.await.expect("no panic").expect("it ends");
}

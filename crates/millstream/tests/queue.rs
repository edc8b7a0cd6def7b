//! A queue as source and sink of a flow.

use std::sync::Arc;
use std::time::Duration;

use millstream::message::Overflow;
use millstream::prelude::*;
use millstream::queue;

async fn broker(spec: Queue) -> Arc<dyn Broker> {
    let broker = millstream::open("memory:").await.unwrap();
    broker.declare_queue(spec).await.unwrap();
    broker
}

fn numbers(range: std::ops::Range<u32>) -> impl Iterator<Item = Message> {
    range.map(|n| Message::new(n.to_string()))
}

async fn publish(broker: &Arc<dyn Broker>, range: std::ops::Range<u32>) {
    let sink = queue::Publisher::new(broker.clone(), Address::queue("q"));
    Pipe::from_iter(numbers(range)).into_sink(sink).await.unwrap();
}

#[tokio::test]
async fn messages_are_acknowledged_when_their_items_complete_or_are_dropped() {
    let broker = broker(Queue::transient("q")).await;
    publish(&broker, 0..1000).await;
    let consumer =
        broker.consume("q", ConsumeOptions::default().prefetch(10).stop_when_empty()).await.unwrap();
    let (_, report) = queue::messages(consumer)
        .filter(|message| message.body().len() > 2)
        .batch(Batch::count(5).age(Duration::from_millis(1)))
        .unbatch()
        .map_async(Concurrency::unordered(3), async |message| {
            tokio::task::yield_now().await;
            message
        })
        .for_each(drop)
        .await
        .unwrap();
    assert_eq!((report.ledger.received, report.ledger.completed), (1000, 900));
    assert_eq!(broker.stats("q").await.unwrap().total(), 0);
}

#[tokio::test]
async fn a_flow_shows_its_prefetch_as_a_knob_that_is_frozen_if_it_was_fixed() {
    let broker = broker(Queue::transient("q")).await;
    let knob = async |options| {
        let consumer = broker.consume("q", options).await.unwrap();
        queue::messages(consumer).monitor().knobs().remove(0)
    };
    let auto = knob(ConsumeOptions::default()).await;
    assert_eq!((auto.name(), auto.value(), auto.bounds()), ("q prefetch", 1000, (1, 65_535)));
    let fixed = knob(ConsumeOptions::default().prefetch(7)).await;
    assert!(fixed.is_frozen() && fixed.set(8).is_err());
    assert_eq!(fixed.value(), 7);
}

#[tokio::test]
async fn a_moved_prefetch_holds_from_the_next_settlement_on() {
    let broker = broker(Queue::transient("q")).await;
    publish(&broker, 0..100).await;
    let options = ConsumeOptions::default().prefetch_auto(2, 10).stop_when_empty();
    let pipe = queue::messages(broker.consume("q", options).await.unwrap());
    let monitor = pipe.monitor();
    let prefetch = monitor.knobs().remove(0);
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let run = pipe
        .map_async(Concurrency::unordered(100), {
            let gate = gate.clone();
            move |_| {
                let gate = gate.clone();
                async move { gate.acquire_owned().await.unwrap().forget() }
            }
        })
        .for_each(drop)
        .start();
    // The gate lets so many through, and then as many are under way again.
    let pass = async |count: usize, under_way: u64| {
        let done = monitor.report().ledger.completed + count as u64;
        gate.add_permits(count);
        tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                let ledger = monitor.report().ledger;
                if (ledger.completed, ledger.in_flight) == (done, under_way) {
                    break;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{under_way} under way: {:?}", monitor.report().ledger));
        for _ in 0..100 {
            tokio::task::yield_now().await; // no more come
        }
        assert_eq!(monitor.report().ledger.in_flight, under_way);
    };
    pass(1, 2).await;
    assert_eq!(prefetch.set(5).unwrap(), 5);
    pass(1, 5).await;
    assert_eq!(prefetch.set(1000).unwrap(), 10, "within its bounds");
    pass(1, 10).await;
    prefetch.set(1).unwrap();
    pass(9, 1).await;
    gate.add_permits(100);
    assert_eq!(run.join().await.unwrap().1.ledger.completed, 100);
}

#[tokio::test]
async fn what_is_under_way_when_a_run_is_dropped_returns_to_the_queue_in_order() {
    let broker = broker(Queue::transient("q")).await;
    publish(&broker, 0..20).await;
    let consumer = broker.consume("q", ConsumeOptions::default().prefetch(7)).await.unwrap();
    let (seen, mut arrived) = tokio::sync::mpsc::channel(1);
    let run = queue::messages(consumer)
        .map_async(4, move |message| {
            let seen = seen.clone();
            async move {
                seen.send(()).await.unwrap();
                std::future::pending::<()>().await;
                drop(message);
            }
        })
        .for_each(drop)
        .start();
    arrived.recv().await.unwrap();
    assert!(broker.stats("q").await.unwrap().unacked > 0);
    assert!(run.shutdown(Duration::from_millis(1)).await.is_err(), "calls that never end pass any deadline");
    let stats = broker.stats("q").await.unwrap();
    assert_eq!((stats.ready, stats.unacked), (20, 0));

    let consumer = broker.consume("q", ConsumeOptions::default().stop_when_empty()).await.unwrap();
    let (order, _) = queue::messages(consumer).collect().await.unwrap();
    let order: Vec<_> =
        order.iter().map(|message| String::from_utf8_lossy(message.body()).into_owned()).collect();
    assert_eq!(order, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_failed_item_reaches_the_dead_letter_queue_with_reason_and_stage() {
    let broker = broker(Queue::transient("q").dead_letter("", "dead")).await;
    broker.declare_queue(Queue::transient("dead")).await.unwrap();
    publish(&broker, 0..3).await;
    let consumer = broker.consume("q", ConsumeOptions::default().stop_when_empty()).await.unwrap();
    let (_, report) = queue::messages(consumer)
        .try_map(|message| if message.body() == "1" { Err("odd") } else { Ok(()) })
        .named("parity")
        .reject()
        .for_each(drop)
        .await
        .unwrap();
    assert_eq!((report.ledger.completed, report.ledger.dead), (2, 1));

    let mut dead = broker.consume("dead", ConsumeOptions::default()).await.unwrap();
    let letter = dead.next_chunk(1).await.unwrap().remove(0).message;
    assert_eq!(letter.body(), "1");
    let headers = format!("{:?}", letter.properties().headers);
    assert!(headers.contains("odd") && headers.contains("parity"), "{headers}");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_makes_the_publisher_wait_and_loses_nothing() {
    let broker = broker(Queue::transient("q").max_items(10).overflow(Overflow::Reject)).await;
    let sink = queue::Publisher::new(broker.clone(), Address::queue("q")).chunk(8);
    let publishing = Pipe::from_iter(numbers(0..100)).into_sink(sink).start();
    let consumer = broker.consume("q", ConsumeOptions::default()).await.unwrap();
    let (got, _) = queue::messages(consumer).take(100).collect().await.unwrap();
    assert_eq!(got.len(), 100);
    let (_, report) = publishing.join().await.unwrap();
    assert_eq!(report.ledger.completed, 100);
}

#[tokio::test]
async fn a_message_without_a_route_is_dead_and_the_others_are_stored() {
    let broker = broker(Queue::transient("q")).await;
    let sink = queue::Publisher::new(broker.clone(), Address::queue("nowhere"));
    let (_, report) = Pipe::from_iter(numbers(0..3)).into_sink(sink).await.unwrap();
    assert_eq!((report.ledger.completed, report.ledger.dead), (0, 3));
}

/// A hundred thousand numbers through a buffer of a hundred, whose reader only begins when all have come.
async fn spills_through(url: &str) {
    let broker = millstream::open(url).await.unwrap();
    for round in 0..2 {
        if round == 0 {
            // What another run left.
            broker.declare_queue(Queue::durable("spill")).await.unwrap();
            let left = Pipe::from_iter(numbers(0..10));
            left.into_sink(queue::Publisher::new(broker.clone(), Address::queue("spill"))).await.unwrap();
        }
        let spill = queue::QueueSpill::open(broker.clone(), "spill", Json).await.unwrap();
        let (begin, begun) = tokio::sync::watch::channel(false);
        let all = Pipe::from_iter(0..100_000u32).inspect(move |n| {
            if *n == 99_999 {
                begin.send_replace(true);
            }
        });
        let slow = all.buffer_spilling(100, 200_000, spill).map_async(Concurrency::ordered(1), move |n| {
            let mut begun = begun.clone();
            async move {
                begun.wait_for(|begun| *begun).await.unwrap();
                n
            }
        });
        let (items, _) = slow.collect().await.unwrap();
        assert_eq!(items.len(), 100_000);
        assert!(items.into_iter().eq(0..100_000), "round {round}: in order, and nothing of another run");
        let stats = broker.stats("spill").await.unwrap();
        assert_eq!((stats.ready, stats.unacked), (0, 0));
    }
    broker.close().await.unwrap();
}

#[tokio::test]
async fn a_buffer_spills_into_a_queue_in_memory() {
    spills_through("memory:").await;
}

#[tokio::test]
async fn a_buffer_spills_into_the_embedded_log() {
    let directory = tempfile::tempdir().unwrap();
    spills_through(&format!("embedded:{}", directory.path().display())).await;
}

#[tokio::test]
async fn a_queue_that_somebody_reads_is_not_spilled_into() {
    let broker = broker(Queue::durable("q")).await;
    publish(&broker, 0..3).await;
    let _reader = broker.consume("q", ConsumeOptions::default()).await.unwrap();
    assert!(queue::QueueSpill::open(broker.clone(), "q", Json).await.is_err());
    let stats = broker.stats("q").await.unwrap();
    assert_eq!(stats.ready + stats.unacked, 3, "its messages are not thrown away");
}

//! Settings that bound or order what is under way, each shown by what it changes.

mod common;

use common::{Bench, Failed};
use millstream_message::{Address, Message, Overflow, Queue, QueueStats};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// An output that takes one item and then waits for ever.
const STUCK: &str = "output: { queue: { broker: \"embedded:s\", name: stuck } }";

async fn stuck() -> Bench {
    let bench = Bench::new().await;
    let queue = Queue::durable("stuck").max_items(1).overflow(Overflow::Reject);
    bench.broker.declare_queue(queue).await.expect("a queue");
    bench
}

/// The queue once everything has come to rest, with nothing going out.
async fn at_rest(bench: &Bench, yaml: &str, queue: &str) -> QueueStats {
    let run = bench.pipeline(yaml).start(&bench.brokers()).await.expect("a run");
    sleep(Duration::from_secs(600)).await;
    let stats = bench.broker.stats(queue).await.expect("a queue");
    drop(run);
    stats
}

#[tokio::test(start_paused = true)]
async fn no_more_of_a_queue_is_under_way_than_its_prefetch() {
    let prefetches = [("prefetch: 4", "count: 1"), ("prefetch_bytes: 4KiB", "count: 1, bytes: 2KiB")];
    for (prefetch, batch) in prefetches {
        let bench = stuck().await;
        bench.broker.declare_queue(Queue::durable("in")).await.expect("a queue");
        for _ in 0..50 {
            let message = Message::new(format!("\"{}\"", "x".repeat(1022)));
            assert!(bench.broker.publish(&Address::queue("in"), message).await.expect("told").is_confirmed());
        }
        let source = format!("source: {{ queue: {{ broker: \"embedded:s\", name: in, {prefetch} }} }}");
        let stats = at_rest(&bench, &format!("{source}\nbatch: {{ {batch} }}\n{STUCK}"), "in").await;
        assert!((3..=5).contains(&stats.unacked), "{prefetch}: {stats:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_of_a_buffer_is_under_way_than_its_prefetch_and_no_more_in_it_than_its_limit() {
    let bench = stuck().await;
    bench.write("in.ndjson", format!("\"{}\"\n", "x".repeat(1022)).repeat(12_000));
    let yaml = format!(
        "source: {{ file: {{ path: in.ndjson }} }}\nbatch: {{ count: 1, bytes: 2KiB }}\n{STUCK}\n\
         buffer: {{ queue: {{ broker: \"embedded:s\", name: q, max_bytes: 8MiB, prefetch_bytes: 16KiB }} }}"
    );
    let stats = at_rest(&bench, &yaml, "q").await;
    assert!((15..=17).contains(&stats.unacked), "{stats:?}");
    let held = stats.ready_bytes + stats.unacked_bytes;
    assert!(held > 7 << 20 && held <= 8 << 20, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_written_is_tried_again() {
    let bench = Bench::new().await;
    // A file where a directory is to be.
    bench.write("out/x", "in the way");
    let yaml = |more: &str| {
        format!(
            "source: {{ generate: {{ count: 1, template: '{{k: \"x\"}}' }} }}\noutput: {{ file: {{ path: 'out/{{k}}/f.ndjson' }} }}\n{more}"
        )
    };
    let failed = |error: Failed| assert!(error.to_string().contains("move it"), "{error}");
    failed(bench.try_run(&yaml("")).await.expect_err("it is in the way"));
    let retry = "on_error: { retry: { attempts: 3, backoff: 1h, then: fail } }";
    let began = Instant::now();
    failed(bench.try_run(&yaml(retry)).await.expect_err("it stays in the way"));
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());

    let (path, began) = (bench.path("out/x"), Instant::now());
    let freed = tokio::spawn(async move {
        sleep(Duration::from_millis(100)).await;
        std::fs::remove_file(path).expect("removed");
    });
    bench.run(&yaml(retry)).await;
    freed.await.expect("freed");
    assert!(began.elapsed() > Duration::from_millis(100));
    assert_eq!(bench.read("out/x/f.ndjson"), "{\"k\":\"x\"}\n");
}

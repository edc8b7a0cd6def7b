//! Settings that bound or order what is under way, each shown by what it changes.

mod common;

use common::{Bench, Failed, LONG};
use millstream_message::{Address, Batch, Message, Overflow, Queue, QueueStats};
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

#[tokio::test]
async fn what_the_file_says_of_a_batch_is_frozen_and_the_rest_may_be_lowered() {
    let bench = Bench::new().await;
    bench.broker.declare_queue(Queue::durable("in")).await.expect("declared");
    for (batch, expected) in [
        ("", ["= 500 in 1..=500", "= 1048576 in 1..=1048576", "= 1000 in 1..=1000"]),
        ("batch: { count: 7 }", ["= 7 in 1..=7 (fixed)", "= 1048576 in 1..=1048576", "= 1000 in 1..=1000"]),
        (
            "batch: { bytes: 8KiB, age: 0.5ms }",
            ["= 500 in 1..=500", "= 8192 in 1..=8192 (fixed)", "= 1 in 1..=1 (fixed)"],
        ),
    ] {
        let yaml = format!(
            "source: {{ queue: {{ broker: \"embedded:s\", name: in }} }}\n{batch}\noutput: {{ file: {{ path: out.ndjson }} }}"
        );
        let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("started");
        let knobs = run.monitor().knobs();
        for (name, expected) in ["count", "bytes", "age ms"].iter().zip(expected) {
            let name = format!("batch {name}");
            let knob = knobs.iter().find(|knob| knob.name() == name).expect("a knob");
            assert_eq!(format!("{knob:?}"), format!("{name} {expected}"));
            let told = run.report().knobs.into_iter().find(|told| told.name == name).expect("told");
            assert_eq!((told.value, told.fixed), (knob.value(), knob.is_frozen()));
            assert_eq!((told.min, told.max), knob.bounds());
        }
        run.shutdown(LONG).await.expect("it ends");
    }
}

#[tokio::test(start_paused = true)]
async fn the_batches_of_a_running_pipeline_can_be_made_smaller_and_younger() {
    for (knob, to, items) in [("batch count", 2, 4), ("batch bytes", 4, 4), ("batch age ms", 40, 1)] {
        let bench = Bench::new().await;
        for queue in ["in", "out"] {
            bench.broker.declare_queue(Queue::durable(queue)).await.expect("declared");
        }
        let yaml = "source: { queue: { broker: \"embedded:s\", name: in } }\n\
                    output: { queue: { broker: \"embedded:s\", name: out } }";
        let run = bench.pipeline(yaml).start(&bench.brokers()).await.expect("started");
        let knobs = run.monitor().knobs();
        let knob = knobs.iter().find(|each| each.name() == knob).expect("a knob");
        assert_eq!(knob.set(to), Ok(to));
        let began = Instant::now();
        let messages = (0..items).map(|_| Message::new("1"));
        let batch = Batch::to(&Address::queue("in"), messages);
        assert!(bench.broker.publish_batch(batch).await.expect("told").all_confirmed());
        while bench.broker.stats("out").await.expect("there").ready < items {
            sleep(Duration::from_millis(1)).await;
        }
        // A batch that is not full goes after a second.
        assert!(began.elapsed() < Duration::from_millis(100), "{knob:?}: after {:?}", began.elapsed());
        run.shutdown(LONG).await.expect("it ends");
    }
}

//! The durable buffer, queues as source and output, and what a run leaves for the next.

mod common;

use common::{BUFFERED, Bench, Failed, LONG};
use millstream_embedded::log::SimDisk;
use millstream_embedded::{EmbeddedBroker, Settings};
use millstream_message::{Address, Message, Queue};
use millstream_pipeline::Run;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

fn numbers(count: u64) -> String {
    (0..count).map(|n| format!("{{\"n\":{n}}}\n")).collect()
}

#[tokio::test]
async fn a_second_run_adds_nothing_and_more_rows_are_added_once() {
    let bench = Bench::new().await;
    bench.write("in.ndjson", numbers(3000));
    let yaml = format!(
        "source: {{ file: {{ path: in.ndjson }} }}\n{BUFFERED}\noutput: {{ file: {{ path: out/n.ndjson }} }}"
    );
    assert_eq!(bench.run(&yaml).await.ledger.completed, 3000);
    let second = bench.run(&yaml).await;
    assert_eq!((second.ledger.received, second.found), (0, 0));
    assert_eq!(bench.list("out"), ["n.ndjson"]);
    bench.write("in.ndjson", numbers(3007));
    assert_eq!(bench.run(&yaml).await.ledger.completed, 7);
    assert_eq!(bench.read("out/n.ndjson") + &bench.read("out/n-2.ndjson"), numbers(3007));
}

#[tokio::test]
async fn a_prefetch_that_the_file_gives_is_frozen_and_another_may_be_moved_within_the_printed_bound() {
    let bench = Bench::new().await;
    bench.broker.declare_queue(Queue::durable("in")).await.expect("declared");
    for (given, expected) in [("", (8192, false)), (", prefetch: 600", (600, true))] {
        let yaml = format!(
            "source: {{ queue: {{ broker: \"embedded:s\", name: in{given} }} }}\noutput: {{ file: {{ path: out.ndjson }} }}"
        );
        let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("started");
        let knobs = run.monitor().knobs();
        let prefetch = knobs.iter().find(|knob| knob.name() == "in prefetch").expect("a knob");
        let most = prefetch.bounds().1 as u64;
        assert_eq!(
            (most, prefetch.value() as u64, prefetch.is_frozen()),
            (expected.0, expected.0, expected.1)
        );
        run.shutdown(LONG).await.expect("it ends");
    }
}

#[tokio::test]
async fn an_item_that_is_no_message_of_its_broker_is_an_error_of_that_item() {
    let settings = Settings { message_bytes_max: 50_000, ..Settings::default() };
    let broker =
        EmbeddedBroker::open_on("/broker", settings, Arc::new(SimDisk::new())).await.expect("opened");
    let bench = Bench { broker: Arc::new(broker), ..Bench::new().await };
    // With its content type and its place, `in.ndjson:2`, the second is one byte too many.
    let line = |len: usize| format!("\"{}\"\n", "x".repeat(len - 2));
    let beside = "application/jsonin.ndjson:2".len();
    let most = 50_000 - beside;
    bench.write("in.ndjson", line(most) + &line(most + 1) + &line(1000));
    for to in ["queue", "stream"] {
        let report = bench
            .run(&format!(
                "source: {{ file: {{ path: in.ndjson }} }}\n\
                 output: {{ {to}: {{ broker: \"embedded:s\", name: out-{to} }} }}\non_error: skip"
            ))
            .await;
        assert_eq!((report.ledger.completed, report.dropped()["errors"]), (2, 1), "{report:?}");
        let why = format!("{:?}", report.errors);
        assert!(why.contains("as a message more than the 50000 that its broker takes"), "{why}");
    }
}

/// A run, once one that was dropped has let go of the files, which it may still write on another thread.
async fn started(bench: &Bench, yaml: &str) -> Run {
    let trying = async {
        loop {
            match bench.pipeline(yaml).start(&bench.brokers()).await.map_err(Failed::Start) {
                Ok(run) => return run,
                Err(error) => assert!(error.to_string().contains("another process is writing it"), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, trying).await.expect("the files are let go")
}

#[tokio::test]
async fn a_run_that_is_dropped_in_the_middle_loses_nothing() {
    let bench = Bench::new().await;
    // Where the disk is slow, all that a run has under way completes at once: enough is left for the last all the same.
    let count = 40_000;
    bench.write("in.ndjson", numbers(count));
    let yaml = format!(
        "source: {{ file: {{ path: in.ndjson }} }}\n{BUFFERED}\nbatch: {{ count: 100 }}\noutput: {{ file: {{ path: out/n.ndjson }} }}"
    );
    for stop_after in [1, 500, 3000, 9000] {
        let run = started(&bench, &yaml).await;
        while run.report().ledger.completed < stop_after {
            tokio::task::yield_now().await;
        }
        let report = run.report();
        assert!(report.ledger.balances(), "{:?}", report.ledger);
        drop(run);
    }
    let last = started(&bench, &yaml).await.join().await.expect("a run");
    assert!(last.ledger.balances() && last.ledger.in_flight == 0, "{last:#?}");
    assert!(last.found > 0 || last.ledger.received > 0);
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for name in bench.list("out") {
        for line in bench.read(&format!("out/{name}")).lines() {
            *seen.entry(line.to_owned()).or_default() += 1;
        }
    }
    assert_eq!(seen.len() as u64, count, "every row arrived");
    let twice: u32 = seen.values().map(|times| times - 1).sum();
    assert!(twice <= 4 * 8192, "only what was under way came twice: {twice}");
}

#[tokio::test]
async fn shutdown_leaves_the_rest_in_the_queue_and_the_ledger_says_so() {
    let bench = Bench::new().await;
    bench.write("in.ndjson", numbers(50_000));
    let yaml = format!(
        "source: {{ file: {{ path: in.ndjson }} }}\n{BUFFERED}\nbatch: {{ count: 10 }}\noutput: {{ file: {{ path: out/n.ndjson }} }}"
    );
    let run = bench.pipeline(&yaml).start(&bench.brokers()).await.expect("a run");
    while run.report().ledger.completed < 100 {
        tokio::task::yield_now().await;
    }
    let first = run.shutdown(LONG).await.expect("a clean end");
    assert!(first.ledger.balances(), "{:?}", first.ledger);
    assert_eq!(first.ledger.in_flight, bench.broker.stats("q").await.expect("the queue").total());
    let second = bench.run(&yaml).await;
    assert_eq!(second.found, first.ledger.in_flight);
    assert_eq!(first.ledger.completed + second.ledger.completed, 50_000, "nothing came twice");
}

#[tokio::test]
async fn a_bounded_buffer_makes_the_source_wait() {
    let bench = Bench::new().await;
    bench.write("in.ndjson", numbers(5000));
    let report = bench
        .run(
            "source: { file: { path: in.ndjson } }\nbuffer: { queue: { broker: \"embedded:s\", name: q, max_items: 50, prefetch: 20 } }\n\
             batch: { count: 10 }\noutput: { file: { path: out.ndjson } }",
        )
        .await;
    assert_eq!(report.ledger.completed, 5000);
    assert_eq!(bench.read("out.ndjson"), numbers(5000));
}

#[tokio::test]
async fn a_queue_is_drained_into_another() {
    let bench = Bench::new().await;
    bench.broker.declare_queue(Queue::durable("in")).await.expect("a queue");
    let bodies = [
        Message::new("{\"n\":1}"),
        Message::new("{\"n\":2}").with_content_type("application/json").with_message_id("two"),
        Message::new("hello").with_content_type("text/plain"),
        Message::new("{oops"),
        // As clients in Python declare it, and others.
        Message::new("{\"n\":3}")
            .with_content_type("Application/JSON; charset=utf-8")
            .with_content_encoding("utf-8"),
        Message::new("{\"n\":4}")
            .with_content_type("application/x.y+json ; a=b")
            .with_content_encoding("Identity"),
        Message::new("{\"n\":5}").with_content_encoding("gzip"),
    ];
    for body in bodies {
        assert!(bench.broker.publish(&Address::queue("in"), body).await.expect("published").is_confirmed());
    }
    let report = bench
        .run(
            "source: { queue: { broker: \"embedded:s\", name: in, until: drained } }\n\
             output: { queue: { broker: \"embedded:s\", name: out } }\non_error: skip",
        )
        .await;
    assert_eq!((report.ledger.completed, report.dropped()["errors"]), (4, 3));
    assert!(report.errors[0].reason.contains("`text/plain`"), "{:?}", report.errors);
    assert!(report.errors[2].reason.contains("`gzip`"), "{:?}", report.errors);
    let numbers = ["{\"n\":1}", "{\"n\":2}", "{\"n\":3}", "{\"n\":4}"];
    assert_eq!(bench.bodies("out").await, numbers);
    let out = bench.browse("out").await;
    assert_eq!(out[1].message.properties().message_id.as_deref(), Some("two"), "an item keeps its name");
    assert_eq!(bench.broker.stats("in").await.expect("the queue").total(), 0, "everything was acknowledged");
}

#[tokio::test]
async fn a_queue_with_other_dead_letters_is_refused_before_anything_starts() {
    let bench = Bench::new().await;
    bench.broker.declare_queue(Queue::durable("in").dead_letter("", "elsewhere")).await.expect("a queue");
    let error = bench
        .try_run(
            "source: { queue: { broker: \"embedded:s\", name: in } }\noutput: { stdout: }\non_error: { dead_letter: { queue: dead } }",
        )
        .await
        .expect_err("the queue's own dead letters go elsewhere")
        .to_string();
    assert!(error.contains("dead letters of queue `in` go to elsewhere"), "{error}");
}

#[tokio::test]
async fn a_queue_whose_dead_letters_go_to_another_exchange_is_refused() {
    let bench = Bench::new().await;
    bench.broker.declare_queue(Queue::durable("in").dead_letter("other", "dead")).await.expect("a queue");
    let error = bench
        .try_run(
            "source: { queue: { broker: \"embedded:s\", name: in } }\noutput: { stdout: }\non_error: { dead_letter: { queue: dead } }",
        )
        .await
        .expect_err("letters would not reach `dead`")
        .to_string();
    assert!(error.contains("dead letters of queue `in` go to exchange `other` under key `dead`"), "{error}");
}

#[tokio::test]
async fn routes_send_each_item_to_its_output() {
    let bench = Bench::new().await;
    let report = bench
        .run(
            "source: { generate: { count: 100 } }\n\
             process:\n  - route:\n      cases:\n        - { when: 'item.n % 10 == 0', to: tens }\n        - { when: 'item.n < 50', to: low }\n      else: drop\n\
             output:\n  named:\n    tens: { file: { path: tens.ndjson } }\n    low: { queue: { broker: \"embedded:s\", name: low } }",
        )
        .await;
    assert_eq!((report.ledger.completed, report.dropped()["route"]), (10 + 45, 45));
    assert_eq!(bench.read("tens.ndjson").lines().count(), 10);
    assert_eq!(bench.bodies("low").await.len(), 45);
}

#[tokio::test]
async fn parallel_steps_keep_the_order_and_count_by_name() {
    let bench = Bench::new().await;
    let report = bench
        .run(
            "source: { generate: { count: 5000 } }\n\
             process:\n  - parallel:\n      workers: 3\n      steps:\n        - filter: { name: odd, keep: 'item.n % 2 == 0' }\n        - map: '{n, square: (.n * .n)}'\n        - map: { name: three, jq: 'if .n % 3 == 0 then empty else . end' }\n\
             output: { file: { path: out.ndjson } }",
        )
        .await;
    let expected: String = (0..5000u64)
        .filter(|n| n % 2 == 0 && n % 3 != 0)
        .map(|n| format!("{{\"n\":{n},\"square\":{}}}\n", n * n))
        .collect();
    assert_eq!(bench.read("out.ndjson"), expected);
    assert_eq!((report.dropped()["odd"], report.dropped()["three"]), (2500, 834));
}

#[tokio::test(start_paused = true)]
async fn generated_items_keep_their_rate() {
    let bench = Bench::new().await;
    let start = tokio::time::Instant::now();
    let report = bench
        .run("source: { generate: { count: 50, rate: 10, template: '{square: (. * .)}' } }\noutput: { file: { path: out.ndjson } }")
        .await;
    assert_eq!(report.ledger.completed, 50);
    assert!(bench.read("out.ndjson").ends_with("{\"square\":2401}\n"));
    let took = start.elapsed();
    assert!((Duration::from_millis(4900)..Duration::from_millis(7000)).contains(&took), "{took:?}");
}

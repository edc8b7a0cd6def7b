//! Items keep the trace of the message they came in.

mod common;

use common::{BUFFERED, Bench};
use millstream_message::dead::DETAIL;
use millstream_message::{Address, Message, Queue, StreamFrom, StreamSpec, TraceContext, Value};

/// The trace of the message with this number; every third has none.
fn trace(n: u64) -> Option<TraceContext> {
    let trace_id = (u128::from(n) << 64 | 1).try_into().expect("not 0");
    let trace = TraceContext::new(trace_id, (n + 1).try_into().expect("not 0"));
    match n % 3 {
        0 => None,
        1 => Some(trace),
        _ => Some(trace.with_sampled(true).with_state("a=1")),
    }
}

fn message(n: u64, body: String) -> Message {
    let message = Message::new(body);
    trace(n).map_or(message.clone(), |trace| message.with_trace(&trace))
}

fn messages(count: u64) -> Vec<Message> {
    (0..count).map(|n| message(n, format!("{{\"n\":{n}}}"))).collect()
}

async fn with_queue(messages: Vec<Message>) -> Bench {
    let bench = Bench::new().await;
    bench.broker.declare_queue(Queue::durable("in")).await.expect("a queue");
    for message in messages {
        let stored = bench.broker.publish(&Address::queue("in"), message).await.expect("published");
        assert!(stored.is_confirmed());
    }
    bench
}

async fn with_stream(messages: Vec<Message>) -> Bench {
    let bench = Bench::new().await;
    bench.broker.declare_stream(StreamSpec::new("in")).await.expect("a stream");
    bench.broker.append("in", messages).await.expect("appended");
    bench
}

const QUEUE: &str = "source: { queue: { broker: \"embedded:s\", name: in, until: drained } }";
const STREAM: &str = "source: { stream: { broker: \"embedded:s\", name: in, until: drained } }";
const OUT: &str = "output: { queue: { broker: \"embedded:s\", name: out } }";

/// That each message of a queue has the trace of the number that it tells.
async fn each_has_its_trace(bench: &Bench, queue: &str, count: usize) {
    let all = bench.browse(queue).await;
    assert_eq!(all.len(), count);
    for browsed in all {
        assert_eq!(browsed.message.trace(), trace(number(&browsed.message)), "{:?}", browsed.message);
    }
}

/// The first number in a body.
fn number(message: &Message) -> u64 {
    let body = String::from_utf8_lossy(message.body()).into_owned();
    let digits: String =
        body.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

#[tokio::test]
async fn an_item_keeps_its_trace_from_queue_to_queue() {
    let bench = with_queue(messages(1000)).await;
    let steps = "process:\n  - filter: { name: even, keep: 'item.n % 2 == 0' }\n\
                 \x20 - parallel: { ordered: false, steps: [ { map: '.n += 0' } ] }\n";
    let report = bench.run(&format!("{QUEUE}\n{steps}{OUT}")).await;
    assert_eq!(report.ledger.completed, 500);
    each_has_its_trace(&bench, "out", 500).await;
}

#[tokio::test]
async fn an_item_keeps_its_trace_from_stream_to_stream_through_a_buffer() {
    let bench = with_stream(messages(100)).await;
    let yaml = format!("{STREAM}\n{BUFFERED}\noutput: {{ stream: {{ broker: \"embedded:s\", name: out }} }}");
    assert_eq!(bench.run(&yaml).await.ledger.completed, 100);
    let mut reader = bench.broker.read("out", StreamFrom::First).await.expect("a reader");
    let mut count = 0;
    while count < 100 {
        for item in reader.next_chunk(100).await.expect("a chunk") {
            assert_eq!(item.message.trace(), trace(number(&item.message)));
            count += 1;
        }
    }
}

#[tokio::test]
async fn a_dead_letter_keeps_the_trace_of_its_item() {
    let odd = |count| {
        let mut odd = messages(count);
        odd.extend([
            message(count, format!("{{oops {count}")),
            message(count + 1, format!("{{oops {}", count + 1)),
        ]);
        odd
    };
    let rest = format!(
        "process:\n  - map: 'error(\"no\")'\n{OUT}\non_error: {{ dead_letter: {{ broker: \"embedded:s\", queue: dead }} }}"
    );
    // Published by the pipeline, and by the queue that the items came from.
    let streamed = with_stream(odd(9)).await;
    assert_eq!(streamed.run(&format!("{STREAM}\n{rest}")).await.ledger.dead, 11);
    each_has_its_trace(&streamed, "dead", 11).await;
    let queued = with_stream(odd(9)).await;
    assert_eq!(queued.run(&format!("{STREAM}\n{BUFFERED}\n{rest}")).await.ledger.dead, 11);
    each_has_its_trace(&queued, "dead", 11).await;
}

#[cfg(feature = "http")]
#[tokio::test]
async fn what_an_output_refuses_keeps_its_trace() {
    let (url, _server) = refusing().await;
    let bench = with_stream(messages(9)).await;
    let yaml = format!(
        "{STREAM}\noutput: {{ http: {{ url: \"{url}\" }} }}\non_error: {{ dead_letter: {{ broker: \"embedded:s\", queue: dead }} }}"
    );
    assert_eq!(bench.run(&yaml).await.ledger.dead, 9);
    each_has_its_trace(&bench, "dead", 9).await;
    let dead = bench.browse("dead").await;
    let why = dead[0].message.header(DETAIL).and_then(Value::as_text).unwrap_or_default();
    assert!(why.contains("400"), "{why}");
}

/// A server that wants nothing.
#[cfg(feature = "http")]
async fn refusing() -> (String, tokio::task::JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let app = axum::Router::new().fallback(async || axum::http::StatusCode::BAD_REQUEST);
    let mut server = tokio::task::JoinSet::new();
    server.spawn(async move { axum::serve(listener, app).await.expect("it serves") });
    (url, server)
}

#[cfg(feature = "http")]
#[tokio::test]
async fn what_is_posted_keeps_the_trace_of_its_request() {
    for buffer in ["", BUFFERED] {
        let bench = Bench::new().await;
        let yaml = |port| {
            format!(
                "source: {{ http: {{ listen: \"127.0.0.1:{port}\" }} }}\n{buffer}\nbatch: {{ count: 1 }}\n\
                 process:\n  - map: 'if .n < 3 then error(\"no\") else . end'\n{OUT}\n\
                 on_error: {{ dead_letter: {{ broker: \"embedded:s\", queue: dead }} }}"
            )
        };
        let (port, run) = bench.listening(yaml).await;
        for n in 0..9 {
            let mut head = "application/json".to_owned();
            if let Some(trace) = trace(n) {
                head += &format!("\r\nTraceparent: {trace}");
                head.extend(trace.state().map(|state| format!("\r\nTracestate: {state}")));
            }
            let answer =
                common::asked(port, "POST /", &head, &format!("[{{\"n\":{n}}},{{\"n\":{n}}}]")).await;
            assert!(answer.contains("{\"accepted\":2}"), "{answer}");
        }
        if !buffer.is_empty() {
            common::until(&run, 12).await;
        }
        run.shutdown(common::LONG).await.expect("a clean end");
        each_has_its_trace(&bench, "out", 12).await;
        each_has_its_trace(&bench, "dead", 6).await;
    }
}

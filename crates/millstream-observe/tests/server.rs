//! What a peer sees of the server, over a real socket.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream_observe::{
    BrokerSnapshot, CONNECTIONS_MAX, HopSnapshot, KnobSnapshot, LatencySnapshot, LedgerSnapshot, RunSnapshot,
    RunState, Server, Snapshot, StageSnapshot,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn run(state: RunState) -> RunSnapshot {
    RunSnapshot {
        name: "flights".into(),
        state,
        refusing: None,
        elapsed: Duration::from_secs(2),
        ledger: LedgerSnapshot {
            received: 27_004,
            completed: 12_000,
            dropped: vec![("short delays".into(), 14_500)],
            dead: 500,
            in_flight: 4,
        },
        stages: vec![StageSnapshot {
            name: "read".into(),
            items_out: 27_004,
            busy: Duration::from_millis(1500),
            stalls: 3,
            working: Duration::from_millis(250),
            ..Default::default()
        }],
        hops: vec![HopSnapshot { items: 4, items_max: 512, bytes: 4096, bytes_max: Some(1 << 20) }],
        knobs: vec![
            KnobSnapshot { name: "batch count".into(), value: 300, min: 1, max: 5000, fixed: false },
            KnobSnapshot { name: "batch bytes".into(), value: 8192, min: 1, max: 8192, fixed: true },
        ],
        memory_bound_bytes: Some(1 << 20),
        errors: Vec::new(),
    }
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("the server listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("the request is sent");
    let mut answer = String::new();
    // Every answer closes its connection, so this ends.
    stream.read_to_string(&mut answer).await.expect("the answer is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a head has a status");
    (status, body.to_owned())
}

async fn serve<S: Into<Snapshot>>(look: impl Fn() -> S + Send + Sync + 'static) -> Server {
    Server::bind("127.0.0.1:0".parse().expect("an address"), look).await.expect("a free port")
}

fn broker() -> BrokerSnapshot {
    const BOUNDS: &[Duration] = &[Duration::from_millis(500)];
    BrokerSnapshot {
        broker: "amqp://***@host".into(),
        blocked: None,
        away: false,
        connections: 2,
        connects: 5,
        failed_connects: 3,
        bytes_in: 1000,
        bytes_out: 2000,
        published: 70,
        unconfirmed: 7,
        consumers: 1,
        confirms: LatencySnapshot { bounds: BOUNDS, counts: vec![2, 1], sum: Duration::from_secs(3) },
    }
}

/// The documented metrics and the exposed ones are the same, in both directions.
#[tokio::test]
async fn the_exposition_lists_exactly_the_documented_metrics() {
    let server = serve(|| Snapshot { runs: vec![run(RunState::Running)], brokers: vec![broker()] }).await;
    let (status, text) = get(server.local_addr(), "/metrics").await;
    assert_eq!(status, 200);
    let exposed: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect();
    let document = include_str!("../../../docs/metrics.md");
    let documented: Vec<(String, String)> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| {
            let mut cells = line.split(" | ");
            Some((cells.next()?.trim_end_matches('`').to_owned(), cells.next()?.to_owned()))
        })
        .collect();
    assert_eq!(exposed, documented);
    // The labels too: every series has those of its row.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().expect("a series has a name");
        // A histogram is several.
        let part = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        let name = part.unwrap_or(name);
        let labels: Vec<&str> = line
            .split_once('{')
            .map(|(_, labels)| {
                labels.split("=\"").filter_map(|part| part.rsplit([',', '"']).next()).collect()
            })
            .unwrap_or_default();
        let row = document.lines().find(|row| row.starts_with(&format!("| `{name}` "))).expect("documented");
        let labels = labels.iter().filter(|label| **label != "le");
        for label in labels.filter(|label| label.bytes().all(|byte| byte.is_ascii_lowercase())) {
            assert!(row.contains(&format!("`{label}`")), "{line}: {row}");
        }
    }
}

#[tokio::test]
async fn metrics_show_what_the_snapshot_says() {
    let server = serve(|| Snapshot { runs: vec![run(RunState::Draining)], brokers: vec![broker()] }).await;
    let (_, text) = get(server.local_addr(), "/metrics").await;
    for line in [
        "millstream_run_state{pipeline=\"flights\",state=\"draining\"} 1",
        "millstream_run_state{pipeline=\"flights\",state=\"running\"} 0",
        "millstream_run_refusing{pipeline=\"flights\"} 0",
        "millstream_run_elapsed_seconds{pipeline=\"flights\"} 2",
        "millstream_items_received_total{pipeline=\"flights\"} 27004",
        "millstream_items_completed_total{pipeline=\"flights\"} 12000",
        "millstream_items_dropped_total{pipeline=\"flights\",step=\"short delays\"} 14500",
        "millstream_items_dead_total{pipeline=\"flights\"} 500",
        "millstream_items_in_flight{pipeline=\"flights\"} 4",
        "millstream_memory_bound_bytes{pipeline=\"flights\"} 1048576",
        "millstream_stage_items_out_total{pipeline=\"flights\",stage=\"read\"} 27004",
        "millstream_stage_busy_seconds_total{pipeline=\"flights\",stage=\"read\"} 1.5",
        "millstream_stage_blocked_seconds_total{pipeline=\"flights\",stage=\"read\"} 0",
        "millstream_stage_starved_seconds_total{pipeline=\"flights\",stage=\"read\"} 0",
        "millstream_stage_stalls_total{pipeline=\"flights\",stage=\"read\"} 3",
        "millstream_stage_working_seconds{pipeline=\"flights\",stage=\"read\"} 0.25",
        "millstream_hop_items{pipeline=\"flights\",hop=\"1\"} 4",
        "millstream_hop_items_max{pipeline=\"flights\",hop=\"1\"} 512",
        "millstream_hop_bytes{pipeline=\"flights\",hop=\"1\"} 4096",
        "millstream_hop_bytes_max{pipeline=\"flights\",hop=\"1\"} 1048576",
        "millstream_knob_value{pipeline=\"flights\",knob=\"batch count\"} 300",
        "millstream_knob_min{pipeline=\"flights\",knob=\"batch count\"} 1",
        "millstream_knob_max{pipeline=\"flights\",knob=\"batch count\"} 5000",
        "millstream_knob_fixed{pipeline=\"flights\",knob=\"batch count\"} 0",
        "millstream_knob_fixed{pipeline=\"flights\",knob=\"batch bytes\"} 1",
        "millstream_broker_connections{broker=\"amqp://***@host\"} 2",
        "millstream_broker_connects_total{broker=\"amqp://***@host\"} 5",
        "millstream_broker_connect_failures_total{broker=\"amqp://***@host\"} 3",
        "millstream_broker_received_bytes_total{broker=\"amqp://***@host\"} 1000",
        "millstream_broker_sent_bytes_total{broker=\"amqp://***@host\"} 2000",
        "millstream_broker_published_total{broker=\"amqp://***@host\"} 70",
        "millstream_broker_unconfirmed{broker=\"amqp://***@host\"} 7",
        "millstream_broker_consumers{broker=\"amqp://***@host\"} 1",
        "millstream_broker_confirm_seconds_bucket{broker=\"amqp://***@host\",le=\"0.5\"} 2",
        "millstream_broker_confirm_seconds_bucket{broker=\"amqp://***@host\",le=\"+Inf\"} 3",
        "millstream_broker_confirm_seconds_sum{broker=\"amqp://***@host\"} 3",
        "millstream_broker_confirm_seconds_count{broker=\"amqp://***@host\"} 3",
        "millstream_metrics_series_omitted 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nin\n{text}");
    }
}

#[tokio::test]
async fn ready_follows_the_run_and_says_why_not_while_live_stays() {
    let state = Arc::new(Mutex::new(RunState::Starting));
    let seen = state.clone();
    let server = serve(move || vec![run(seen.lock().expect("no panic").clone())]).await;
    for (next, status, word) in [
        (RunState::Starting, 503, "flights is starting"),
        (RunState::Running, 200, "\"reasons\": []"),
        (RunState::Draining, 503, "flights is draining"),
        (RunState::Completed, 503, "flights has completed"),
        (RunState::Failed("disk full".into()), 503, "flights has failed: disk full"),
    ] {
        *state.lock().expect("no panic") = next;
        let (found, body) = get(server.local_addr(), "/health/ready").await;
        assert_eq!(found, status, "{body}");
        assert!(body.contains(word), "{body}");
        assert_eq!(get(server.local_addr(), "/health/live").await.0, 200);
    }
}

#[tokio::test]
async fn a_run_that_refuses_items_says_so_wherever_it_is_looked_at() {
    let why = Some("the disk is <full>".to_owned());
    let server = serve(move || vec![RunSnapshot { refusing: why.clone(), ..run(RunState::Running) }]).await;
    for (path, status, told) in [
        ("/metrics", 200, "millstream_run_refusing{pipeline=\"flights\"} 1\n"),
        ("/", 200, "It refuses items: the disk is &lt;full&gt;"),
        ("/health/ready", 503, "flights refuses items: the disk is <full>"),
        ("/status.json", 200, "\"refusing\": \"the disk is <full>\""),
    ] {
        let (found, text) = get(server.local_addr(), path).await;
        assert_eq!(found, status, "{path}");
        assert!(text.contains(told), "{path}: {text}");
    }
}

#[tokio::test]
async fn the_page_shows_the_run_and_reloads_itself() {
    let server = serve(|| vec![run(RunState::Running)]).await;
    let (status, page) = get(server.local_addr(), "/").await;
    assert_eq!(status, 200);
    for part in
        ["flights", "running", "short delays", "http-equiv=\"refresh\"", "width=device-width", "1.0 MiB"]
    {
        assert!(page.contains(part), "{part}");
    }
    let (status, json) = get(server.local_addr(), "/status.json").await;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((status, &json[0]["ledger"]["received"]), (200, &27_004.into()));
    assert_eq!(json[0]["knobs"][0]["value"], 300);
    for row in [
        "300</td><td>batch count</td><td class=\"dim\">of 1 to 5\u{202f}000",
        "batch bytes</td><td class=\"dim\">fixed",
    ] {
        assert!(page.contains(row), "{row}\nin\n{page}");
    }
    assert_eq!(get(server.local_addr(), "/nowhere").await.0, 404);
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_says_what_to_do() {
    let server = serve(Vec::new).await;
    let error = Server::bind(server.local_addr(), Snapshot::default).await.expect_err("the port is taken");
    let text = error.to_string();
    assert!(text.contains(&server.local_addr().to_string()) && text.contains("port 0"), "{text}");
}

/// Connections that send nothing fill the server, and lose their place when their time is over. Tokio's
/// paused clock moves only when nothing else can, so that the test takes no time.
#[tokio::test(start_paused = true)]
async fn silent_connections_cannot_keep_others_out_for_good() {
    let server = serve(Vec::new).await;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        silent.push(TcpStream::connect(server.local_addr()).await.expect("the server listens"));
    }
    assert_eq!(get(server.local_addr(), "/health/live").await.0, 200);
}

#[tokio::test]
async fn shutdown_frees_the_port_and_stops_asking_for_snapshots() {
    let dropped = Arc::new(AtomicBool::new(false));
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let flag = Flag(dropped.clone());
    let server = serve(move || {
        let _held = &flag;
        Vec::new()
    })
    .await;
    let address = server.local_addr();
    server.shutdown(Duration::from_secs(5)).await;
    // The aborted task is dropped when the runtime comes to it.
    while !dropped.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    assert!(TcpStream::connect(address).await.is_err());
}

//! A server with two made-up runs: `cargo run -p millstream-observe --example status_page -- 60` shows its page
//! for a minute. Without a number of seconds it ends at once.

use std::time::Duration;

use millstream_observe::{
    BrokerSnapshot, ErrorSnapshot, HopSnapshot, KnobSnapshot, LedgerSnapshot, RunSnapshot, RunState, Server,
    Snapshot, StageSnapshot,
};
use tokio::time::Instant;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seconds = std::env::args().nth(1).map_or(Ok(0), |word| word.parse())?;
    let start = Instant::now();
    let server = Server::bind("127.0.0.1:0".parse()?, move || Snapshot {
        runs: vec![flights(start.elapsed()), RunSnapshot { name: "orders".into(), ..RunSnapshot::default() }],
        brokers: ["north", "south"].map(|host| broker(host, start.elapsed())).into(),
    })
    .await?;
    eprintln!("http://{}", server.local_addr());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    server.shutdown(Duration::from_secs(1)).await;
    Ok(())
}

/// A broker that is there, or in the south one that nobody reaches.
fn broker(host: &str, elapsed: Duration) -> BrokerSnapshot {
    BrokerSnapshot {
        broker: format!("amqp://***@{host}"),
        away: host == "south",
        connections: if host == "south" { 0 } else { 2 },
        failed_connects: elapsed.as_secs() / 2,
        unconfirmed: 128,
        ..BrokerSnapshot::default()
    }
}

/// A run that has read 20,000 items a second for this long, and whose output is the slow stage.
fn flights(elapsed: Duration) -> RunSnapshot {
    let received = elapsed.as_millis() as u64 * 20;
    let dead = received / 52;
    let dropped = received / 3;
    let in_flight = 480.min(received);
    let completed = received.saturating_sub(dead + dropped + in_flight);
    let stage = |name: &str, items_out, [busy, blocked, starved]: [u32; 3]| StageSnapshot {
        name: name.into(),
        items_out,
        busy: elapsed * busy / 100,
        blocked: elapsed * blocked / 100,
        starved: elapsed * starved / 100,
        ..StageSnapshot::default()
    };
    let hop = |items| HopSnapshot { items, items_max: 512, bytes: items * 180, bytes_max: Some(1 << 20) };
    RunSnapshot {
        name: "flights".into(),
        state: RunState::Running,
        refusing: None,
        elapsed,
        ledger: LedgerSnapshot {
            received: completed + dropped + dead + in_flight,
            completed,
            dropped: vec![("short delays".into(), dropped)],
            dead,
            in_flight,
        },
        stages: vec![
            stage("read data/flights-2013-01.csv", received, [12, 83, 5]),
            stage("queue flights", received - in_flight, [20, 75, 5]),
            stage("map, filter", completed, [45, 40, 15]),
            stage("write out/{carrier}.ndjson", completed, [91, 0, 9]),
        ],
        hops: [470, 300, 12].map(hop).into(),
        knobs: vec![
            KnobSnapshot { name: "flights prefetch".into(), value: 512, min: 1, max: 1024, fixed: false },
            KnobSnapshot { name: "batch count".into(), value: 500, min: 1, max: 500, fixed: true },
        ],
        memory_bound_bytes: Some(9_437_184),
        errors: vec![ErrorSnapshot {
            at_millis: 1_357_034_400_000,
            stage: "map".into(),
            origin: "data/flights-2013-01.csv:840:17".into(),
            message: "`NA` is no number: the flight was cancelled".into(),
        }],
    }
}

//! The quickstart in Rust: flights from a CSV file through a durable queue, typed, filtered, counted by carrier;
//! cancelled flights go to a dead-letter queue with their reason.
//!
//! `cargo run --release -p millstream --example flights`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use millstream::prelude::*;
use millstream::queue;
use serde::{Deserialize, Serialize};

/// A row as the file has it: `NA` where a cancelled flight has no time.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    carrier: String,
    flight: u32,
    origin: String,
    dest: String,
    dep_delay: String,
    distance: u32,
}

#[derive(Debug)]
struct Flight {
    carrier: String,
    delay_minutes: i32,
}

impl Flight {
    fn of(message: &Message) -> Result<Flight, BoxError> {
        let row: Row = Json.decode(message)?;
        if row.dep_delay == "NA" {
            return Err("cancelled".into());
        }
        Ok(Flight { carrier: row.carrier, delay_minutes: row.dep_delay.parse()? })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let directory = tempfile::tempdir()?;
    let broker = millstream::open(&format!("embedded:{}", directory.path().display())).await?;
    broker.declare_queue(Queue::durable("flights").dead_letter("", "flights.dead")).await?;
    broker.declare_queue(Queue::durable("flights.dead")).await?;

    let csv = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/flights-2013-01.csv");
    let rows = csv::Reader::from_path(csv)?.into_deserialize::<Row>();
    let (_, stored) = Pipe::from_iter(rows)
        .try_map(|row| match row {
            Ok(row) => Json.encode(row).map_err(BoxError::from),
            Err(error) => Err(error.to_string().into()),
        })
        .named("encode")
        .fail_fast()
        .into_sink(queue::Publisher::new(broker.clone(), Address::queue("flights")))
        .await?;

    let flights =
        broker.consume("flights", ConsumeOptions::default().prefetch(4000).stop_when_empty()).await?;
    let (late, report) = queue::messages(flights)
        .try_map(Flight::of)
        .named("type")
        .reject()
        .filter(|flight| flight.delay_minutes >= 15)
        .named("on time")
        .fold(BTreeMap::<String, u32>::new(), |late, flight| *late.entry(flight.carrier).or_default() += 1)
        .await?;

    // Dead letters travel by themselves; they are off the queue once they have arrived.
    while broker.stats("flights").await?.total() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let dead = broker.stats("flights.dead").await?.ready;
    println!("stored {} flights in {:.0?}", stored.ledger.completed, stored.elapsed());
    println!("late by carrier: {late:?}");
    println!("{:?} in {:.0?}; {dead} in flights.dead", report.ledger, report.elapsed());
    assert!(report.ledger.balances());
    assert_eq!(report.ledger.dead, dead);
    broker.close().await?;
    Ok(())
}

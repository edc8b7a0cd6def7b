//! Publishing from a service: one value, several at once, and a stream of them, each with what became of it.
//!
//!     cargo run -p millstream --example producer                       # in memory
//!     cargo run -p millstream --features rabbitmq --example producer amqp://localhost

use std::time::Duration;

use millstream::message::PublishOutcome;
use millstream::prelude::*;
use millstream::queue::Producer;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Order {
    id: u64,
    pieces: u32,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let broker = millstream::open(&url).await?;
    broker.declare_queue(Queue::durable("orders").max_priority(9)).await?;

    // What is said of every message is said once.
    let orders: Producer<Order> = Producer::new(broker.clone(), Address::queue("orders"), Json)
        .ttl(Duration::from_secs(3600))
        .header("tenant", "north");

    // One. Confirmed means stored: durably, in every queue that it was routed to.
    let outcome = orders.publish(&Order { id: 1, pieces: 3 }).await?;
    assert!(outcome.is_confirmed());

    // One that says more of itself.
    let urgent = orders.message(&Order { id: 2, pieces: 1 })?.with_priority(9).with_correlation_id("call 17");
    assert!(orders.publish_message(urgent).await?.is_confirmed());

    // Several in one go: one wait for all of them.
    let several: Vec<Order> = (3..100).map(|id| Order { id, pieces: 1 }).collect();
    let outcomes = orders.publish_all(&several).await?;
    eprintln!("several: {} of {} confirmed", outcomes.confirmed_count(), several.len());

    // A stream: up to 1,000 on their way before the first is known to be stored.
    let mut sending = orders.sending(1000);
    for id in 100..10_000 {
        sending.send(&Order { id, pieces: 1 }).await?;
    }
    assert!(sending.finish().await.all_confirmed());

    // One that no queue wants comes back, with the reason.
    let nowhere: Producer<Order> = Producer::new(broker.clone(), Address::queue("odrers"), Json);
    let outcome = nowhere.publish(&Order { id: 0, pieces: 0 }).await?;
    let PublishOutcome::Unroutable(returned) = outcome else { return Err("somebody took it".into()) };
    eprintln!("nowhere: {}", returned.reason);

    let stored = broker.stats("orders").await?.ready;
    eprintln!("{stored} orders are in the queue");
    assert_eq!(stored, 9_999);
    broker.delete_queue("orders").await?;
    broker.close().await?;
    Ok(())
}

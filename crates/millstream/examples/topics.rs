//! Publish and subscribe: one exchange, and subscribers that want a part of what is published there.
//!
//!     cargo run -p millstream --example topics                         # in memory
//!     cargo run -p millstream --features rabbitmq --example topics amqp://localhost

use millstream::message::{Binding, Exchange, ExchangeKind, PublishOutcome};
use millstream::prelude::*;
use millstream::queue;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let broker = millstream::open(&url).await?;
    broker.declare_exchange(Exchange::durable("weather", ExchangeKind::Topic)).await?;
    // Gone with this process: a subscriber that was away does not want yesterday's weather.
    for (subscriber, pattern) in [("vienna", "*.vienna"), ("storms", "storm.#"), ("archive", "#")] {
        broker.declare_queue(Queue::exclusive(subscriber)).await?;
        broker.bind(Binding::new("weather", pattern, subscriber)).await?;
    }
    for key in ["rain.vienna", "storm.oslo", "storm.vienna", "sun.rome"] {
        let outcome = broker.publish(&Address::new("weather", key), Message::new(key)).await?;
        assert!(outcome.is_confirmed());
    }
    for (subscriber, expected) in [("vienna", 2), ("storms", 2), ("archive", 4)] {
        let consumer = broker.consume(subscriber, ConsumeOptions::default().stop_when_empty()).await?;
        let text = |message: Message| String::from_utf8_lossy(message.body()).into_owned();
        let (seen, _) = queue::messages(consumer).map(text).collect().await?;
        eprintln!("{subscriber}: {}", seen.join(", "));
        assert_eq!(seen.len(), expected);
    }
    // Nobody wants it any more, and the publisher hears of it.
    for subscriber in ["vienna", "storms", "archive"] {
        broker.delete_queue(subscriber).await?;
    }
    let outcome = broker.publish(&Address::new("weather", "fog.london"), Message::new("fog")).await?;
    let PublishOutcome::Unroutable(returned) = outcome else { return Err("somebody took it".into()) };
    eprintln!("came back: {}", returned.reason);
    broker.delete_exchange("weather").await?;
    broker.close().await?;
    Ok(())
}

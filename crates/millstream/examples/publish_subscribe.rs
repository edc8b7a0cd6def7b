//! Publish and subscribe: every subscriber gets everything, at its own pace. (A part of it by keys: see `topics`.)
//!
//!     cargo run -p millstream --example publish_subscribe              # in memory
//!     cargo run -p millstream --features rabbitmq --example publish_subscribe amqp://localhost

use millstream::message::{Binding, Exchange, ExchangeKind};
use millstream::prelude::*;
use millstream::queue;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let broker = millstream::open(&url).await?;
    broker.declare_exchange(Exchange::durable("news", ExchangeKind::Fanout)).await?;
    let subscribers = ["mail", "search", "audit"];
    for subscriber in subscribers {
        // Durable: what is published while the subscriber is away waits for it.
        broker.declare_queue(Queue::durable(subscriber)).await?;
        broker.bind(Binding::new("news", "", subscriber)).await?;
    }

    // Confirmed once every queue has it.
    let news = Pipe::from_iter(0..1000).map(|n| Message::new(format!("news {n}")));
    let publisher = queue::Publisher::new(broker.clone(), Address::new("news", ""));
    let (_, report) = news.into_sink(publisher).await?;
    eprintln!("published {}", report.ledger.completed);

    for subscriber in subscribers {
        let consumer = broker.consume(subscriber, ConsumeOptions::default().stop_when_empty()).await?;
        let (count, _) = queue::messages(consumer).fold(0, |count, _| *count += 1).await?;
        eprintln!("{subscriber} received {count}");
        assert_eq!(count, 1000);
        broker.delete_queue(subscriber).await?;
    }
    broker.delete_exchange("news").await?;
    broker.close().await?;
    Ok(())
}

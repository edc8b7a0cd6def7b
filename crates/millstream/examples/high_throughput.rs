//! As many messages a second as go: publishing in batches that are stored together, and acknowledging in ranges.
//!
//!     cargo run --release -p millstream --example high_throughput                      # in memory
//!     cargo run --release -p millstream --example high_throughput embedded:state       # on disk, durable
//!     cargo run --release -p millstream --features rabbitmq --example high_throughput amqp://localhost 1000000
//!
//! For millions a second through RabbitMQ there are its streams: `stream_throughput` of the crate `millstream-rabbitmq`.

use millstream::prelude::*;
use millstream::queue;
use tokio::time::Instant;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "memory:".to_owned());
    let count: u64 = arguments.next().map_or(Ok(100_000), |count| count.parse())?;
    let broker = millstream::open(&url).await?;
    broker.declare_queue(Queue::durable("throughput")).await?;
    let rate = |begun: Instant| (count as f64 / begun.elapsed().as_secs_f64()) as u64;

    // One body for all of them: a message shares the bytes it is made of.
    let body = Message::new(vec![b'x'; 1024]);
    let begun = Instant::now();
    let messages = Pipe::from_iter(0..count).map(move |_| body.clone());
    messages.into_sink(queue::Publisher::new(broker.clone(), Address::queue("throughput"))).await?;
    eprintln!("published and confirmed: {} messages/s", rate(begun));

    let begun = Instant::now();
    let options = ConsumeOptions::default().prefetch(10_000).stop_when_empty();
    let consumer = broker.consume("throughput", options).await?;
    let (bytes, report) =
        queue::messages(consumer).fold(0, |bytes, message| *bytes += message.body().len()).await?;
    eprintln!("consumed and acknowledged: {} messages/s, {bytes} bytes", rate(begun));
    assert_eq!(report.ledger.completed, count);
    broker.delete_queue("throughput").await?;
    broker.close().await?;
    Ok(())
}

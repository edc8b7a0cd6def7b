//! How fast messages go through one queue: publish, consume, ack, in one process.
//!
//! `cargo run --release -p millstream-embedded --example speed -- memory: 2000000`
//! `cargo run --release -p millstream-embedded --example speed -- embedded:/tmp/speed 2000000`

use std::error::Error;

use millstream_embedded::open;
use millstream_message::{Address, Batch, ConsumeOptions, Message, Queue};
use tokio::time::Instant;

const BATCH: u64 = 500;
const WINDOW: usize = 4;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let url = args.next().unwrap_or_else(|| "memory:".to_owned());
    let count: u64 = args.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let broker = open(&url.parse()?).await?;
    broker.declare_queue(Queue::durable("speed")).await?;
    broker.purge("speed").await?;

    let start = Instant::now();
    let publisher = broker.clone();
    let publishing = tokio::spawn(async move {
        let to = Address::queue("speed");
        let body = bytes::Bytes::from(vec![7_u8; 1024]);
        let mut window = std::collections::VecDeque::new();
        for _ in 0..count / BATCH {
            let batch = Batch::to(&to, (0..BATCH).map(|_| Message::new(body.clone())));
            window.push_back(publisher.submit(batch).await.map_err(|error| error.to_string())?);
            if window.len() >= WINDOW
                && let Some(confirm) = window.pop_front()
                && !confirm.await.all_confirmed()
            {
                return Err("a message was not confirmed".to_owned());
            }
        }
        for confirm in window {
            if !confirm.await.all_confirmed() {
                return Err("a message was not confirmed".to_owned());
            }
        }
        Ok(())
    });

    let mut consumer = broker.consume("speed", ConsumeOptions::default().prefetch(5000)).await?;
    let acker = consumer.acker();
    let mut received = 0;
    while received < count / BATCH * BATCH {
        let chunk = consumer.next_chunk(500).await?;
        let (Some(first), Some(last)) = (chunk.first(), chunk.last()) else {
            return Err("the consumer ended".into());
        };
        received += acker.ack_range(first.tag..last.tag + 1).applied;
    }
    publishing.await??;
    let elapsed = start.elapsed();
    drop(consumer);
    broker.close().await?;
    let mut out = std::io::stdout();
    std::io::Write::write_all(
        &mut out,
        format!(
            "{url}: {received} messages of 1 KiB in {elapsed:.2?}, {:.0} a second\n",
            received as f64 / elapsed.as_secs_f64()
        )
        .as_bytes(),
    )?;
    Ok(())
}

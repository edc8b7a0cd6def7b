//! Working on a queue: typed values, several at once and each customer's in order, attempts with delays, and dead letters.
//!
//!     cargo run -p millstream --example consumer                       # in memory
//!     cargo run -p millstream --features rabbitmq --example consumer amqp://localhost

use std::time::Duration;

use millstream::prelude::*;
use millstream::queue::{ATTEMPTS, Failure, Job, Producer, Work};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Payment {
    customer: u32,
    cents: i64,
}

/// Pays, on the second attempt if the customer's number ends with 7.
async fn pay(job: &Job<Payment>) -> Result<i64, Failure> {
    let Payment { customer, cents } = job.value;
    if cents < 0 {
        return Err(Failure::permanent("nobody is paid by us"));
    }
    if customer % 10 == 7 && job.attempt == 1 {
        return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the bank does not answer").into());
    }
    Ok(cents)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let broker = millstream::open(&url).await?;
    broker.declare_queue(Queue::durable("payments.dead")).await?;
    broker.declare_queue(Queue::durable("payments").dead_letter("", "payments.dead")).await?;

    let payments: Producer<Payment> = Producer::new(broker.clone(), Address::queue("payments"), Json);
    let made: Vec<_> =
        (0..1000).map(|n| Payment { customer: n % 50, cents: if n == 500 { -1 } else { 100 } }).collect();
    assert!(payments.publish_all(&made).await?.all_confirmed());

    // At most 64 are on their way to this process; a payment is acknowledged when it is made. Of one customer there is never
    // more than one under way, in the order of the queue; what is tried again goes back to it and loses its place.
    let consumer = broker.consume("payments", ConsumeOptions::default().prefetch(64).name("payer")).await?;
    let retry = Retry::attempts(3)
        .ok_or("at least one attempt")?
        .first_delay(Duration::from_millis(100))
        .timeout(Duration::from_secs(5));
    let (paid, report) = Work::new(Json)
        .concurrency(Concurrency::unordered(16))
        .retry(retry)
        .start_by_key(broker.clone(), consumer, |job| job.value.customer, pay)
        .take(999)
        .fold(0, |sum, cents| *sum += cents)
        .await?;
    eprintln!("paid {paid} cents; {:?}", report.ledger);
    assert_eq!(paid, 99_900);

    let dead = broker.browse("payments.dead", 0, 10).await?;
    for letter in &dead {
        let body = String::from_utf8_lossy(letter.message.body()).into_owned();
        eprintln!("dead: {body} because {:?}", letter.message.header(millstream::message::dead::DETAIL));
        assert_eq!(letter.message.header(ATTEMPTS), None, "it was not tried again");
    }
    assert_eq!(dead.len(), 1);
    for queue in ["payments", "payments.dead"] {
        broker.delete_queue(queue).await?;
    }
    broker.close().await?;
    Ok(())
}

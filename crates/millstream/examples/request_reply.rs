//! Questions and answers over a queue: many under way at once, errors that come back as errors, and a limit of time.
//!
//!     cargo run -p millstream --example request_reply                  # in memory
//!     cargo run -p millstream --features rabbitmq --example request_reply amqp://localhost

use std::time::Duration;

use millstream::prelude::*;
use millstream::queue::{RequestError, Requester, respond};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let broker = millstream::open(&url).await?;
    broker.declare_queue(Queue::durable("roots")).await?;

    // The side that answers; any number of processes may share the queue.
    let requests = broker.consume("roots", ConsumeOptions::default()).await?;
    let root = async |request: Message| {
        let n: f64 = std::str::from_utf8(request.body())?.parse()?;
        if n < 0.0 {
            return Err(format!("{n} has no root").into());
        }
        Ok(Message::new(n.sqrt().to_string()))
    };
    let answering = respond(broker.clone(), requests, 8, root).for_each(drop).start();

    // The side that asks.
    let requester = Requester::open(broker.clone()).await?;
    let (to, limit) = (Address::queue("roots"), Duration::from_secs(5));
    let asked = (0..100).map(|n| requester.request(&to, Message::new((n * n).to_string()), limit));
    for (n, reply) in futures_util::future::try_join_all(asked).await?.into_iter().enumerate() {
        assert_eq!(reply.body(), &n.to_string());
    }
    match requester.request(&to, Message::new("-1"), limit).await {
        Err(RequestError::Failed { reason }) => eprintln!("as it should: {reason}"),
        other => return Err(format!("{other:?}").into()),
    }
    // Nobody answers there, and that is known at once.
    let nowhere = requester.request(&Address::queue("rots"), Message::new("4"), limit).await;
    eprintln!("as it should: {}", nowhere.expect_err("nobody is there"));

    answering.shutdown(Duration::from_secs(5)).await?;
    broker.delete_queue("roots").await?;
    broker.close().await?;
    Ok(())
}

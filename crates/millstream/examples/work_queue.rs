//! Several workers share one queue; what a worker cannot do goes to the dead letters with its reason.
//!
//!     cargo run -p millstream --example work_queue                     # in memory
//!     cargo run -p millstream --example work_queue embedded:state      # in a directory
//!     cargo run -p millstream --features rabbitmq --example work_queue amqp://localhost

use millstream::prelude::*;
use millstream::queue;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let broker = millstream::open(&url).await?;
    broker.declare_queue(Queue::durable("jobs.dead")).await?;
    broker.declare_queue(Queue::durable("jobs").dead_letter("", "jobs.dead")).await?;

    // Each message is confirmed before the run ends.
    let jobs = Pipe::from_iter(0..1000).map(|n| Message::new(format!("{n}")));
    jobs.into_sink(queue::Publisher::new(broker.clone(), Address::queue("jobs"))).await?;

    let mut workers = Vec::new();
    for worker in 1..=3 {
        // A worker takes few at once, so that a slow one does not sit on what others could do.
        let options =
            ConsumeOptions::default().prefetch(20).stop_when_empty().name(format!("worker {worker}"));
        let consumer = broker.consume("jobs", options).await?;
        let work = queue::messages(consumer)
            .try_map(|job| match std::str::from_utf8(job.body())?.parse::<u64>()? {
                n if n % 100 == 13 => Err(BoxError::from(format!("job {n} brings bad luck"))),
                n => Ok(n * n),
            })
            .named("square")
            .reject();
        workers.push((worker, work.fold(0_u64, |sum, square| *sum += square).start()));
    }
    let (mut done, mut dead) = (0, 0);
    for (worker, run) in workers {
        let (sum, report) = run.join().await?;
        eprintln!("worker {worker}: {} done, sum {sum}", report.ledger.completed);
        done += report.ledger.completed;
        dead += report.ledger.dead;
    }
    assert_eq!((done, dead), (990, 10));

    let letters = broker.consume("jobs.dead", ConsumeOptions::default().stop_when_empty()).await?;
    let reason = |letter: Message| letter.header(millstream::message::dead::DETAIL).cloned();
    let (reasons, _) = queue::messages(letters).map(reason).collect().await?;
    eprintln!("{} dead letters, the first because {:?}", reasons.len(), reasons[0]);
    assert_eq!(reasons.len(), 10);
    broker.close().await?;
    Ok(())
}

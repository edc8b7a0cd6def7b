//! Acknowledgements out of order.

use millstream_message::ConsumeOptions;

use super::disk::directory;
use super::queue::{QUEUE, broker, publish, runtime};
use super::with_peers;
use crate::case::{Absent, Bound, Case, Sample, Scale};
use crate::clock;

pub(crate) const ACK: &str = "µs an ack";
const COUNT: u64 = 100_000;
pub(crate) const TOGETHER: usize = 100;

pub(crate) fn cases() -> Vec<Case> {
    let case = Case::new("out-of-order ack, 100 at a time, until durable").ours("ours", ours);
    let case = with_peers!(case, "fjall", |scale: Scale| super::peers::fjall_acks(scale.of(COUNT)));
    vec![
        case.goal_on(ACK, Bound::AtMost(1.5), "")
            .goal_on(ACK, Bound::TimesAtMost(0.54, "fjall"), "1.5 µs at its 2.8")
            .remark(
                "fjall syncs each hundred; our broker writes acks within `ack_delay` (3 ms), and the time runs until \
                 the last is durable.",
            ),
    ]
}

/// `0..count`, each number once, neighbours far apart.
pub(crate) fn shuffled(count: u64) -> impl Iterator<Item = u64> {
    // A step without a common factor visits every number once.
    let step = (1..).map(|more| count * 5 / 8 + more).find(|step| coprime(*step, count)).unwrap_or(1);
    (0..count).map(move |at| at * step % count)
}

fn coprime(mut a: u64, mut b: u64) -> bool {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

fn ours(scale: Scale) -> Result<Sample, Absent> {
    let directory = directory()?;
    let url = format!("embedded:{}", directory.path().join("broker").display());
    let count = scale.of(COUNT);
    runtime()?.block_on(async {
        let broker = broker(&url).await?;
        publish(&*broker, count).await?;
        let all = usize::try_from(count).unwrap_or(usize::MAX);
        let options = ConsumeOptions::default().prefetch(all).prefetch_bytes(usize::MAX);
        let mut consumer = broker.consume(QUEUE, options).await.map_err(|error| error.to_string())?;
        let mut tags = Vec::with_capacity(all);
        while tags.len() < all {
            let chunk = consumer.next_chunk(all - tags.len()).await.map_err(|error| error.to_string())?;
            if chunk.is_empty() {
                return Err(format!("the consumer ended after {} of {count} messages", tags.len()));
            }
            tags.extend(chunk.iter().map(|delivery| delivery.tag));
        }
        let order: Vec<_> = shuffled(count).map(|at| tags[at as usize]).collect();
        let acker = consumer.acker();
        let began = clock::now();
        for together in order.chunks(TOGETHER) {
            acker.ack_many(together.iter().copied());
            tokio::task::yield_now().await;
        }
        drop(consumer);
        broker.close().await.map_err(|error| error.to_string())?;
        let microseconds = (clock::now() - began).as_secs_f64() * 1e6;
        Ok(Sample::new().with(ACK, microseconds / count as f64))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn shuffling_visits_every_number_once() {
        for count in [1, 2, 7, 100, 1_000] {
            let mut all: Vec<_> = super::shuffled(count).collect();
            assert!(count < 7 || !all.is_sorted());
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
    }
}

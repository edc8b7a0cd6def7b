//! Many producers that each wait until their own record is durable.

use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use millstream_embedded::log::Entry;
use tokio::runtime::Builder;

use super::append::open;
use super::disk::{RATE, RECORD, directory, duration, noise};
use super::with_peers;
use crate::case::{Absent, Bound, Case, Sample, Scale};
use crate::clock;

pub(crate) const PRODUCERS: usize = 64;
pub(crate) const P50: &str = "p50 ms";
pub(crate) const P99: &str = "p99 ms";

pub(crate) fn cases() -> Vec<Case> {
    let case = Case::new("64 producers, each waits until durable").ours("ours", ours);
    let case = with_peers!(case, "fjall behind a batcher", super::peers::fjall_producers);
    vec![
        case.goal_on(RATE, Bound::AtLeast(150_000.0), "")
            .goal_on(RATE, Bound::RateOf(1.39, "fjall behind a batcher"), "150 k at its 108 k")
            .goal_on(P50, Bound::AtMost(0.4), "")
            .goal_on(P99, Bound::AtMost(1.0), ""),
    ]
}

/// How long each append took, in nanoseconds.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("a nanosecond to a minute, to three digits")
}

pub(crate) fn record(latencies: &mut Histogram<u64>, took: Duration) {
    latencies.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
}

pub(crate) fn sample(latencies: &Histogram<u64>, elapsed: Duration) -> Sample {
    let milliseconds = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e6;
    Sample::new()
        .with(RATE, latencies.len() as f64 / elapsed.as_secs_f64())
        .with(P50, milliseconds(0.5))
        .with(P99, milliseconds(0.99))
}

/// Runs `append`, which returns when its record is durable, in 64 tasks for the time that `scale` allows.
pub(crate) fn measure<A, F>(scale: Scale, append: A) -> Result<Sample, Absent>
where
    A: Fn(Arc<[u8]>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), Absent>> + Send + 'static,
{
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| format!("a runtime: {error}"))?;
    runtime.block_on(async move {
        let (append, body): (_, Arc<[u8]>) = (Arc::new(append), noise(RECORD).into());
        let began = clock::now();
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|_| {
                let (append, body) = (append.clone(), body.clone());
                tokio::spawn(async move {
                    let mut latencies = histogram();
                    while clock::now() - began < duration(scale) {
                        let sent = clock::now();
                        append(body.clone()).await?;
                        record(&mut latencies, clock::now() - sent);
                    }
                    Ok::<_, Absent>(latencies)
                })
            })
            .collect();
        let mut all = histogram();
        for producer in producers {
            let latencies = producer.await.map_err(|error| error.to_string())??;
            all.add(&latencies).map_err(|error| error.to_string())?;
        }
        Ok(sample(&all, clock::now() - began))
    })
}

fn ours(scale: Scale) -> Result<Sample, Absent> {
    let directory = directory()?;
    let log = Arc::new(open(directory.path())?);
    measure(scale, move |body: Arc<[u8]>| {
        let log = log.clone();
        async move {
            let appended = log.append(Entry { kind: 1, time: 0, head: b"", body: &body }).await;
            let appended = appended.map_err(|error| error.to_string())?;
            appended.commit.await.map_err(|error| error.to_string())
        }
    })
}

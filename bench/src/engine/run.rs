//! How a contestant is run: the runtime, the clock, the checksum.

use std::future::Future;

use millstream_flow::Plan;
use tokio::runtime::{Builder, Runtime};

use crate::case::{NS, Sample};
use crate::clock::{By, Watch};

/// On how many threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// tokio's current-thread runtime: `ct` in the tables.
    One,
    /// tokio's multi-thread runtime with two workers: `mt`.
    Two,
}

impl Threads {
    pub(crate) fn runtime(self) -> Runtime {
        let mut builder = match self {
            Threads::One => Builder::new_current_thread(),
            Threads::Two => Builder::new_multi_thread(),
        };
        builder.worker_threads(2).enable_all().build().expect("a runtime starts")
    }

    /// One thread that never waits is measured by its processor time, two by the clock on the wall.
    fn clock(self) -> By {
        match self {
            Threads::One => By::Cpu,
            Threads::Two => By::Wall,
        }
    }
}

/// Measures a plain loop.
pub(crate) fn floor(items: u64, expected: u64, work: impl FnOnce() -> u64) -> Sample {
    let watch = Watch::start(By::Cpu);
    let sum = work();
    Sample::per_item(watch.elapsed(), items, sum, expected)
}

/// Measures a future that gives the checksum, in a task of its own as an application would run it.
pub(crate) fn future<F>(threads: Threads, items: u64, expected: u64, make: impl FnOnce() -> F) -> Sample
where
    F: Future<Output = u64> + Send + 'static,
{
    let runtime = threads.runtime();
    let (elapsed, sum) = runtime.block_on(async {
        let watch = Watch::start(threads.clock());
        let sum = tokio::spawn(make()).await.expect("the contestant does not panic");
        (watch.elapsed(), sum)
    });
    Sample::per_item(elapsed, items, sum, expected)
}

/// Measures a flow that ends in the checksum.
pub(crate) fn plan(threads: Threads, items: u64, expected: u64, make: impl FnOnce() -> Plan<u64>) -> Sample {
    let runtime = threads.runtime();
    let (elapsed, sum) = runtime.block_on(async {
        let watch = Watch::start(threads.clock());
        let (sum, _) = make().await.expect("the run succeeds");
        (watch.elapsed(), sum)
    });
    Sample::per_item(elapsed, items, sum, expected)
}

/// `sample`'s nanoseconds an item.
pub(crate) fn nanoseconds(sample: &Sample) -> f64 {
    sample.0.get(NS).copied().expect("a timed sample has nanoseconds")
}

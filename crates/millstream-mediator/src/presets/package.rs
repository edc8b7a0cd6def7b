//! What stands around streams.

use std::fmt;

use millstream_resilience::{Backoff, BreakerSettings, Retry};

use super::{BackpressurePreset, HealthPreset, s};
use crate::behaviour::{Bare, Behaviours, Inside};
use crate::builder::Builder;
use crate::memory::Memory;
use crate::stream::{StreamBehaviour, StreamBehaviours};
use crate::streams::{
    Backpressure, Health, Resume, StreamAdmission, StreamBreaker, StreamLogging, StreamRetries, StreamTiming,
};

/// What stands around streams. Outermost first: logging, timing, then the breaker and inside of it retries, which so see
/// what the handler failed with.
///
/// It prints itself, a behaviour a line.
///
/// ```
/// use millstream_mediator::presets::{BackpressurePreset, StreamPackage};
/// use millstream_mediator::{Mediator, Memory, Resume};
///
/// let resilience = StreamPackage::resilience(Resume::Position);
/// let builder = Mediator::builder().stream_package(&resilience);
///
/// let platinum = StreamPackage::platinum(Resume::Position);
/// println!("{platinum}");
/// let builder = Mediator::builder().platinum_package(&platinum, BackpressurePreset::NoDataLoss, &Memory::new(1 << 30));
/// # let _ = builder;
/// ```
#[derive(Debug, Clone)]
pub struct StreamPackage {
    logging: StreamLogging,
    timing: StreamTiming,
    breaker: BreakerSettings,
    retry: Retry,
    resume: Resume,
}

impl StreamPackage {
    /// Progress each 1,000 items and 30 s; warnings of 5 s to the first item, of fewer than 10 items/s in 30 s, of 5 min
    /// in all; a breaker at 60 % of 3 streams in 5 min, for 2 min, with 2 probes; two more tries from 2 s on, doubling, within
    /// 5 min. How a stream goes on that broke must be said, since it says what its reader may rely on.
    pub fn resilience(resume: Resume) -> Self {
        StreamPackage {
            logging: StreamLogging::new().every_items(1000).every(s(30)),
            timing: StreamTiming::new().first_item(s(5)).throughput(10.0).interval(s(30)).total(s(300)),
            breaker: breaker(0.6, 300, 120),
            retry: retry(2, 300),
            resume,
        }
    }

    /// Progress each 2,500 items and 45 s; warnings of 3 s to the first item and of fewer than 50 items/s in 20 s; a breaker at
    /// 50 % of 3 streams in 3 min, for 1 min, with 2 probes; two more tries from 1 s on, doubling, within 3 min.
    pub fn platinum(resume: Resume) -> Self {
        StreamPackage {
            logging: StreamLogging::new().every_items(2500).every(s(45)),
            timing: StreamTiming::new().first_item(s(3)).throughput(50.0).interval(s(20)),
            breaker: breaker(0.5, 180, 60),
            retry: retry(1, 180),
            resume,
        }
    }

    fn breaker(&self) -> StreamBreaker {
        StreamBreaker::new(self.breaker.clone())
    }

    fn retries(&self) -> StreamRetries {
        StreamRetries::new(self.retry.clone(), self.resume)
    }
}

fn breaker(rate: f64, window: u64, pause: u64) -> BreakerSettings {
    let settings = BreakerSettings::default().failure_rate(rate).calls_min(3).probes(2);
    settings.time_window(s(window)).pause(s(pause))
}

fn retry(first: u64, within: u64) -> Retry {
    Retry::new(3).backoff(Backoff::exponential(s(first))).elapsed_max(s(within))
}

impl fmt::Display for StreamPackage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (breaker, retries) = (self.breaker(), self.retries());
        for name in [self.logging.name(), self.timing.name(), breaker.name(), retries.name()] {
            writeln!(f, "{name}")?;
        }
        Ok(())
    }
}

/// What a package adds.
pub type Packaged<S = Bare> =
    Inside<Inside<Inside<Inside<S, StreamLogging>, StreamTiming>, StreamBreaker>, StreamRetries>;

type Watched<S> = Inside<Inside<Inside<Inside<S, StreamLogging>, StreamTiming>, Health>, Backpressure>;

/// What the platinum package adds.
pub type Platinum<S = Bare> =
    Inside<Inside<Inside<Watched<S>, StreamAdmission>, StreamBreaker>, StreamRetries>;

impl<B: Behaviours, S: StreamBehaviours> Builder<B, S> {
    /// Stands a package's behaviours around all streams, which stay driven by demand.
    pub fn stream_package(self, package: &StreamPackage) -> Builder<B, Packaged<S>> {
        self.stream_behaviour(package.logging.clone())
            .stream_behaviour(package.timing.clone())
            .stream_behaviour(package.breaker())
            .stream_behaviour(package.retries())
    }

    /// As [`stream_package`](Builder::stream_package), with [`HealthPreset::DataProcessing`], with a buffer behind which nothing
    /// else waits, and with handlers held back while memory is short: what a stream holds is bounded by both.
    ///
    /// Outermost first: logging, timing, health, backpressure, admission, breaker, retries. Admission is inside of the buffer,
    /// whose items count as memory: a reader may always take what waits there, and so make room again.
    pub fn platinum_package(
        self,
        package: &StreamPackage,
        backpressure: BackpressurePreset,
        memory: &Memory,
    ) -> Builder<B, Platinum<S>> {
        self.stream_behaviour(package.logging.clone())
            .stream_behaviour(package.timing.clone())
            .stream_behaviour(HealthPreset::DataProcessing.behaviour(memory))
            .stream_behaviour(backpressure.behaviour().memory(memory.clone()))
            .stream_behaviour(StreamAdmission::new(memory.clone()))
            .stream_behaviour(package.breaker())
            .stream_behaviour(package.retries())
    }
}

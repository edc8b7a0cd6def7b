//! Settings that fit together, by name: plain values that print themselves.
//!
//! Each preset is a starting point with the numbers of its table, and each says by [`Display`](std::fmt::Display) what it sets.
//! [`Profile`] stands them around requests, [`StreamPackage`] around streams.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use millstream_resilience::{Backoff, BreakerSettings, Retry};

use crate::behaviour::Behaviour;
use crate::behaviours::{Breaker, Retries};
use crate::memory::Memory;
use crate::stream::StreamBehaviour;
use crate::streams::{Backpressure, Health, Strategy};

mod package;
mod profile;

pub use package::{Packaged, Platinum, StreamPackage};
pub use profile::{Environment, Profile, Profiled, Service};

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const MIB: u64 = 1 << 20;

/// How often, and with which delays, a call is made again. What is tried again at all is a matter of an error's
/// [class](millstream_resilience::Class), not of the preset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryPreset {
    /// Two more tries, half a second apart, within 10 s.
    Conservative,
    /// Five more tries from 0.2 s on, doubling, with jitter, within two minutes.
    Aggressive,
    /// Three more tries from 1 s on, doubling, within 30 s.
    Database,
    /// Four more tries from 0.75 s on, doubling, with jitter, within 45 s.
    HttpApi,
}

impl RetryPreset {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Conservative, Self::Aggressive, Self::Database, Self::HttpApi];

    /// What it sets.
    pub fn retry(self) -> Retry {
        let (attempts, backoff, within) = match self {
            Self::Conservative => (3, Backoff::fixed(ms(500)), s(10)),
            Self::Aggressive => (6, Backoff::exponential(ms(200)).full_jitter(), s(120)),
            Self::Database => (4, Backoff::exponential(s(1)), s(30)),
            Self::HttpApi => (5, Backoff::exponential(ms(750)).full_jitter(), s(45)),
        };
        Retry::new(attempts).backoff(backoff).elapsed_max(within)
    }

    /// The same as a behaviour.
    pub fn behaviour(self) -> Retries {
        Retries::new(self.retry())
    }
}

impl fmt::Display for RetryPreset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}: {}", self.behaviour().name())
    }
}

/// When a circuit breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerPreset {
    /// At 30 % of 3 calls in 30 s; 15 s, then 2 probes.
    Sensitive,
    /// At 50 % of 5 calls in a minute; 30 s, then 3 probes.
    Balanced,
    /// At 70 % of 10 calls in two minutes; a minute, then 5 probes.
    Resilient,
    /// At 40 % of 5 calls in a minute; 45 s, then 2 probes.
    Database,
    /// At 60 % of 8 calls in three minutes; a minute, then 3 probes.
    ExternalApi,
}

impl BreakerPreset {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Sensitive, Self::Balanced, Self::Resilient, Self::Database, Self::ExternalApi];

    /// What it sets.
    pub fn settings(self) -> BreakerSettings {
        let (rate, calls, window, pause, probes) = match self {
            Self::Sensitive => (0.3, 3, 30, 15, 2),
            Self::Balanced => (0.5, 5, 60, 30, 3),
            Self::Resilient => (0.7, 10, 120, 60, 5),
            Self::Database => (0.4, 5, 60, 45, 2),
            Self::ExternalApi => (0.6, 8, 180, 60, 3),
        };
        let settings = BreakerSettings::default().failure_rate(rate).calls_min(calls).time_window(s(window));
        settings.pause(s(pause)).probes(probes)
    }

    /// The same as a behaviour.
    pub fn behaviour(self) -> Breaker {
        Breaker::new(self.settings())
    }
}

impl fmt::Display for BreakerPreset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}: {}", self.behaviour().name())
    }
}

/// How much memory there is, when it counts as short, and how often a probe looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourcePreset {
    /// 256 MiB, growing by at most 5 MiB/s, looked at each 15 s; short from 70 % to 50 %.
    MemoryConstrained,
    /// 1 GiB, growing by at most 50 MiB/s, looked at each 10 s; short from 90 % to 80 %.
    HighPerformance,
    /// 512 MiB, growing by at most 10 MiB/s, looked at each 30 s; short from 80 % to 60 %.
    Balanced,
    /// 2 GiB, growing by at most 100 MiB/s, looked at each 10 s; short from 90 % to 80 %.
    Development,
}

impl ResourcePreset {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::MemoryConstrained, Self::HighPerformance, Self::Balanced, Self::Development];

    /// The one of a [`Profile`].
    pub fn of(service: Service, environment: Environment) -> Self {
        match (service, environment) {
            (_, Environment::Development) => Self::Development,
            (Service::Web, _) => Self::Balanced,
            (Service::Microservice | Service::Background, _) => Self::MemoryConstrained,
        }
    }

    /// MiB, MiB/s, seconds between two probes, marks. Probes are so close together that growth tells before the high mark
    /// does: from one to the next, no more may come than about half of the budget.
    fn numbers(self) -> (u64, u64, u64, f64, f64) {
        match self {
            Self::MemoryConstrained => (256, 5, 15, 0.7, 0.5),
            Self::HighPerformance => (1024, 50, 10, 0.9, 0.8),
            Self::Balanced => (512, 10, 30, 0.8, 0.6),
            Self::Development => (2048, 100, 10, 0.9, 0.8),
        }
    }

    /// What it sets, for bytes that are [reserved](Memory::reserve).
    pub fn memory(self) -> Memory {
        let (limit, _, _, high, low) = self.numbers();
        Memory::new(limit * MIB).marks(high, low)
    }

    /// The same, for what the process uses too, as `read` finds it.
    pub fn memory_probed(self, read: impl Fn() -> Option<u64> + Send + Sync + 'static) -> Memory {
        let (_, growth, every, ..) = self.numbers();
        self.memory().probe(s(every), read).growth_max(growth * MIB)
    }
}

impl fmt::Display for ResourcePreset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (limit, growth, every, high, low) = self.numbers();
        let (high, low) = (high * 100.0, low * 100.0);
        write!(
            f,
            "{self:?}: {limit} MiB, short from {high}% to {low}% or above {growth} MiB/s, probed each {every} s"
        )
    }
}

/// What a stream's buffer holds, and what happens when its reader is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackpressurePreset {
    /// Throttles at 90 % of 50,000 items, down to 30 %.
    NoDataLoss,
    /// Drops the oldest of 10,000; marks at 70 % and 30 %.
    HighThroughput,
    /// Keeps every second item from 50 % of 1,000 on, down to 20 %.
    MemoryConstrained,
    /// Drops the oldest of 5,000; marks at 60 % and 20 %.
    RealTime,
    /// Keeps every tenth item from 80 % of 25,000 on, down to 40 %.
    Analytics,
    /// Waits when 10,000 wait; marks at 80 % and 50 %.
    Balanced,
}

impl BackpressurePreset {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::NoDataLoss,
        Self::HighThroughput,
        Self::MemoryConstrained,
        Self::RealTime,
        Self::Analytics,
        Self::Balanced,
    ];

    /// What it sets, as a behaviour.
    pub fn behaviour(self) -> Backpressure {
        let sample = |one_in| Strategy::Sample(NonZeroU64::new(one_in).unwrap_or(NonZeroU64::MIN));
        let (strategy, capacity, high, low) = match self {
            Self::NoDataLoss => (Strategy::Throttle, 50_000, 0.9, 0.3),
            Self::HighThroughput => (Strategy::DropOldest, 10_000, 0.7, 0.3),
            Self::MemoryConstrained => (sample(2), 1_000, 0.5, 0.2),
            Self::RealTime => (Strategy::DropOldest, 5_000, 0.6, 0.2),
            Self::Analytics => (sample(10), 25_000, 0.8, 0.4),
            Self::Balanced => (Strategy::Buffer, 10_000, 0.8, 0.5),
        };
        Backpressure::new(strategy, capacity).marks(high, low)
    }
}

impl fmt::Display for BackpressurePreset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}: {}", self.behaviour().name())
    }
}

/// How often streams are checked, and what counts as not well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthPreset {
    /// Each 5 s: 10 s without an item, fewer than 1,000 items/s, 1 % errors, 50 MiB more memory.
    HighPerformance,
    /// Each 30 s: 2 min without an item, fewer than 50 items/s, 5 % errors, 200 MiB more memory.
    DataProcessing,
    /// Each minute: 5 min without an item, fewer than 10 items/s, 10 % errors, 500 MiB more memory.
    LongRunning,
    /// Each 2 s: 5 s without an item, fewer than 100 items/s, 0.1 % errors, 25 MiB more memory.
    RealTime,
    /// Each 10 s: 30 s without an item, fewer than 1 item/s, 20 % errors, 100 MiB more memory.
    Development,
}

impl HealthPreset {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::HighPerformance, Self::DataProcessing, Self::LongRunning, Self::RealTime, Self::Development];

    /// What it sets, as a behaviour; memory is that of the budget.
    pub fn behaviour(self, memory: &Memory) -> Health {
        let (interval, stall, rate, growth, errors) = match self {
            Self::HighPerformance => (5, 10, 1000.0, 50, 0.01),
            Self::DataProcessing => (30, 120, 50.0, 200, 0.05),
            Self::LongRunning => (60, 300, 10.0, 500, 0.1),
            Self::RealTime => (2, 5, 100.0, 25, 0.001),
            Self::Development => (10, 30, 1.0, 100, 0.2),
        };
        let health = Health::new(s(interval)).stall(s(stall)).throughput(rate).error_rate(errors);
        health.memory_growth(memory, growth * MIB)
    }
}

impl fmt::Display for HealthPreset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}: {}", self.behaviour(&Memory::new(u64::MAX)).name())
    }
}

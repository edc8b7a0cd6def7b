//! The task beside a stream that looks at it.

use std::any::Any;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream_flow::Panicked;
use millstream_resilience::bounded;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::{Health, HealthBoard, Severity, StreamHealth, Warning};
use crate::call::Correlation;
use crate::handler::Catching;
use crate::stream::progress::{Progress, per_second};

/// What a check finds of the time since the one before.
struct Seen {
    came: u64,
    failed: u64,
    /// Time in which somebody waited for an item.
    asked: Duration,
    interval: Duration,
}

#[derive(Clone)]
pub(super) struct Check {
    pub(super) rule: Health,
    pub(super) stream: Arc<str>,
    pub(super) correlation: Correlation,
    pub(super) progress: Arc<Progress>,
    /// What the last check found, for the end.
    pub(super) found: Arc<Mutex<Found>>,
}

/// What checks have found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) last: Option<StreamHealth>,
    rate_max: f64,
    /// The most of the time in which somebody asked.
    asked_max: f64,
}

impl Check {
    pub(super) async fn run(self, place: Option<(HealthBoard, u64)>) {
        let Check { rule, progress, .. } = &self;
        let every = bounded(rule.interval);
        let mut ticks = interval_at(progress.opened() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let held = rule.growth.as_ref().map_or(0, |(memory, _)| memory.used());
        let (mut before, mut waited) = ((0, 0), Duration::ZERO);
        let mut checked = progress.opened();
        let (mut severity, mut better) = (Severity::Healthy, 0);
        loop {
            ticks.tick().await;
            let (items, errors) = (progress.items(), progress.errors());
            let now = Instant::now();
            let (came, failed) = (items - before.0, errors - before.1);
            before = (items, errors);
            // An interval, or more if the check before took long or the process stood still.
            let interval = now - std::mem::replace(&mut checked, now);
            let rate = per_second(came, interval);
            let all = progress.waited_until(now);
            let asked = all.saturating_sub(std::mem::replace(&mut waited, all));
            let seen = Seen { came, failed, asked, interval };
            let warnings = self.warnings(&seen, now, held);
            let found = match warnings.len() {
                0 => Severity::Healthy,
                1 if !warnings[0].is_critical() => Severity::Degraded,
                _ => Severity::Unhealthy,
            };
            better = if found < severity { better + 1 } else { 0 };
            let was = severity;
            if found > severity || better >= rule.recover {
                (severity, better) = (found, 0);
            }
            let health = self.health(severity, warnings, rate, None);
            if let Some((board, place)) = &place {
                board.set(*place, health.clone());
            }
            if severity != was {
                self.tell(health).await;
            }
        }
    }

    fn warnings(
        &self,
        &Seen { came, failed, asked, interval }: &Seen,
        now: Instant,
        held: u64,
    ) -> Vec<Warning> {
        let Health { stall, throughput, error_rate, slowdown, growth, memory, .. } = &self.rule;
        let mut warnings = Vec::new();
        let since = self.progress.waiting_since();
        let still = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if stall.is_some_and(|stall| since.is_some() && still >= stall) {
            warnings.push(Warning::Stalled { seconds: still.as_secs_f64() });
        }
        // Time in which nobody asks is not the stream's, and of a short time nothing is known.
        let rate = Some(per_second(came, asked)).filter(|_| since.is_some() && 2 * asked >= interval);
        if let Some((rate, least)) = rate.zip(*throughput).filter(|(rate, least)| rate < least) {
            warnings.push(Warning::LowThroughput { rate, least });
        }
        let part = failed as f64 / (came + failed).max(1) as f64;
        if let Some(most) = error_rate.filter(|most| part > *most) {
            warnings.push(Warning::HighErrorRate { rate: part, most });
        }
        if let Some((memory, most)) = growth {
            let bytes = memory.used().saturating_sub(held);
            if bytes > *most {
                warnings.push(Warning::MemoryGrowth { bytes, most: *most });
            }
        }
        if let Some((rate, part)) = rate.zip(*slowdown) {
            let mut found = self.found.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let rate_max = found.asked_max;
            found.asked_max = rate_max.max(rate);
            drop(found);
            if rate < part * rate_max {
                warnings.push(Warning::Slowdown { rate, rate_max });
            }
        }
        if let Some(memory) = memory.as_ref().filter(|memory| memory.is_short()) {
            warnings.push(Warning::ShortMemory { used: memory.used(), limit: memory.limit() });
        }
        warnings
    }

    pub(super) fn health(
        &self,
        severity: Severity,
        warnings: Vec<Warning>,
        rate: f64,
        ended: Option<&'static str>,
    ) -> StreamHealth {
        let mut found = self.found.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        found.rate_max = found.rate_max.max(rate);
        let health = StreamHealth {
            stream: self.stream.clone(),
            correlation: self.correlation.to_string(),
            severity,
            warnings,
            items: self.progress.items(),
            errors: self.progress.errors(),
            rate,
            rate_max: found.rate_max,
            seconds: self.progress.elapsed().as_secs_f64(),
            ended,
        };
        found.last = Some(health.clone());
        health
    }

    async fn tell(&self, health: StreamHealth) {
        log(&health);
        let Some(report) = &self.rule.report else { return };
        // One that panics has told nobody; who watches lives on.
        let report = pin!(async { report(health).await });
        let stream = &self.stream;
        match timeout(self.rule.interval, Catching(report)).await {
            Ok(Ok(())) => {}
            Ok(Err(payload)) => panicked(stream, payload),
            Err(_) => {
                tracing::warn!(target: "millstream_mediator::stream", %stream, "a health reporter took longer than an interval");
            }
        }
    }
}

pub(super) fn panicked(stream: &str, payload: Box<dyn Any + Send>) {
    let panic = Panicked::new(payload);
    tracing::warn!(target: "millstream_mediator::stream", %stream, %panic, "a health reporter panicked");
}

fn log(health: &StreamHealth) {
    let StreamHealth { stream, correlation, severity, warnings, items, .. } = health;
    let what: Vec<_> = warnings.iter().map(Warning::to_string).collect();
    let what = what.join("; ");
    match severity {
        Severity::Healthy => {
            tracing::info!(target: "millstream_mediator::stream", %stream, correlation, items, "a stream is well again");
        }
        severity => {
            tracing::warn!(target: "millstream_mediator::stream", %stream, correlation, ?severity, items, what, "a stream is not well");
        }
    }
}

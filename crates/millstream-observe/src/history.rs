//! The last minute of every run, from which rates come.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::RunSnapshot;

/// How often the server looks.
pub(crate) const PERIOD: Duration = Duration::from_secs(1);
/// How many looks are kept: a minute of them, and the one it is counted from.
const LOOKS_MAX: usize = 61;
/// The time that rates are averaged over: long enough to be calm, short enough to show a change.
const WINDOW: Duration = Duration::from_secs(5);

/// Looks at all runs, oldest first.
#[derive(Debug, Default)]
pub(crate) struct History {
    looks: VecDeque<(Instant, Vec<RunSnapshot>)>,
}

/// What a run did lately.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// Items received a second.
    pub(crate) received: f64,
    /// Items settled in any way a second.
    pub(crate) settled: f64,
    /// What each stage did, in the order of the stages.
    pub(crate) stages: Vec<StageRates>,
    /// Items settled a second, second by second, oldest first.
    pub(crate) line: Vec<f64>,
}

/// What a stage did lately.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct StageRates {
    /// Items that left it a second.
    pub(crate) out: f64,
    /// Share of its time that it worked, from 0 to 1.
    pub(crate) busy: f64,
    /// Share that it waited for the next stage.
    pub(crate) blocked: f64,
    /// Share that it waited for the one before.
    pub(crate) starved: f64,
}

impl History {
    /// Remembers a look, and forgets what is older than a minute.
    pub(crate) fn look(&mut self, now: Instant, mut runs: Vec<RunSnapshot>) {
        for run in &mut runs {
            run.errors.clear(); // only the newest are ever shown
        }
        if self.looks.len() == LOOKS_MAX {
            self.looks.pop_front();
        }
        self.looks.push_back((now, runs));
    }

    /// What `run` did between the look of some seconds ago and `now`. A run younger than that is averaged
    /// over its whole life.
    pub(crate) fn rates(&self, now: Instant, run: &RunSnapshot) -> Rates {
        let earlier = self.looks.iter().rev().find(|(at, _)| now - *at >= WINDOW).or(self.looks.front());
        let before = earlier.and_then(|(at, runs)| Some((now - *at, named(runs, &run.name)?)));
        let nothing = RunSnapshot::default();
        let (time, before) = match before {
            // The same name with a shorter life is a run that was started anew.
            Some((time, before)) if before.elapsed <= run.elapsed && !time.is_zero() => (time, before),
            _ => (run.elapsed, &nothing),
        };
        let stages = run.stages.iter().map(|stage| {
            let default = Default::default();
            let old = before.stages.iter().find(|old| old.name == stage.name).unwrap_or(&default);
            let busy = stage.busy.saturating_sub(old.busy).as_secs_f64();
            let blocked = stage.blocked.saturating_sub(old.blocked).as_secs_f64();
            let starved = stage.starved.saturating_sub(old.starved).as_secs_f64();
            // A stage may be several tasks: shares are of the time they had together.
            let total = (busy + blocked + starved).max(time.as_secs_f64()).max(f64::MIN_POSITIVE);
            StageRates {
                out: rate(old.items_out, stage.items_out, time),
                busy: busy / total,
                blocked: blocked / total,
                starved: starved / total,
            }
        });
        Rates {
            received: rate(before.ledger.received, run.ledger.received, time),
            settled: rate(settled(before), settled(run), time),
            stages: stages.collect(),
            line: self.line(&run.name),
        }
    }

    /// Items settled a second between each two looks at the run of this name.
    fn line(&self, name: &str) -> Vec<f64> {
        let looks = self.looks.iter().filter_map(|(at, runs)| Some((*at, settled(named(runs, name)?))));
        let looks: Vec<(Instant, u64)> = looks.collect();
        looks.windows(2).map(|pair| rate(pair[0].1, pair[1].1, pair[1].0 - pair[0].0)).collect()
    }
}

fn named<'a>(runs: &'a [RunSnapshot], name: &str) -> Option<&'a RunSnapshot> {
    runs.iter().find(|run| run.name == name)
}

fn settled(run: &RunSnapshot) -> u64 {
    run.ledger.completed + run.ledger.dropped_total() + run.ledger.dead
}

fn rate(before: u64, after: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { after.saturating_sub(before) as f64 / time.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LedgerSnapshot, StageSnapshot};

    fn run(seconds: u64, items: u64, busy: u64) -> RunSnapshot {
        RunSnapshot {
            name: "flights".into(),
            elapsed: Duration::from_secs(seconds),
            ledger: LedgerSnapshot { received: items * 2, completed: items, ..Default::default() },
            stages: vec![StageSnapshot {
                name: "map".into(),
                items_out: items,
                busy: Duration::from_secs(busy),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rates_are_those_of_the_last_five_seconds() {
        let mut history = History::default();
        for second in 0..20 {
            // 10 items a second at first, 100 a second and always busy from the tenth on.
            let (items, busy) =
                if second < 10 { (second * 10, 0) } else { (100 + (second - 10) * 100, second - 10) };
            history.look(Instant::now(), vec![run(second, items, busy)]);
            tokio::time::advance(PERIOD).await;
        }
        let rates = history.rates(Instant::now(), &run(20, 1100, 10));
        assert_eq!((rates.settled, rates.received), (100.0, 200.0));
        assert_eq!(rates.stages[0], StageRates { out: 100.0, busy: 1.0, blocked: 0.0, starved: 0.0 });
        assert_eq!(rates.line.len(), 19);
        assert_eq!((rates.line[0], rates.line[18]), (10.0, 100.0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_nobody_looked_at_yet_is_averaged_over_its_life() {
        let rates = History::default().rates(Instant::now(), &run(2, 10, 1));
        assert_eq!(rates.settled, 5.0);
        assert_eq!(rates.stages[0].busy, 0.5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_minute_is_kept_and_no_more() {
        let mut history = History::default();
        for second in 0..200 {
            history.look(Instant::now(), vec![run(second, second, 0)]);
            tokio::time::advance(PERIOD).await;
        }
        assert_eq!(history.looks.len(), LOOKS_MAX);
    }
}

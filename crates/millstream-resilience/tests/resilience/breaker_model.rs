//! The breaker against a model that remembers everything: random calls, results, pauses and words by hand.

use std::collections::VecDeque;
use std::time::Duration;

use fastrand::Rng;
use millstream_resilience::{BreakerSettings, BreakerState, CircuitBreaker, Permit};
use proptest::prelude::*;
use tokio::time::{Instant, sleep};

const PAUSE: u64 = 50;
const PROBES: usize = 3;
const PROBE_TIME: u64 = 40;

/// Milliseconds. A window of time is forgotten in tenths from the breaker's beginning, so the model's times are their tenths.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Time(u64),
    Count(usize),
}

#[derive(Debug)]
struct Model {
    kind: Kind,
    calls_min: usize,
    rate: f64,
    state: State,
    era: u64,
    calls: VecDeque<(u64, bool)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Closed,
    Open(u64),
    HalfOpen { running: usize, good: usize, until: u64 },
}

impl Model {
    fn turn(&mut self, state: State) {
        (self.state, self.era) = (state, self.era + 1);
        self.calls.clear();
    }

    fn admit(&mut self, now: u64) -> bool {
        match self.state {
            State::Open(until) if until <= now => {
                self.turn(State::HalfOpen { running: 0, good: 0, until: now });
            }
            State::HalfOpen { running, until, .. } if running > 0 && until <= now => {
                self.turn(State::Open(now + PAUSE));
            }
            _ => {}
        }
        match &mut self.state {
            State::Closed => true,
            State::HalfOpen { running, good, until } if *running + *good < PROBES => {
                if *running == 0 {
                    *until = now + PROBE_TIME;
                }
                *running += 1;
                true
            }
            _ => false,
        }
    }

    fn forget(&mut self, now: u64) {
        match self.kind {
            Kind::Time(window) => {
                let tenth = window / 10;
                self.calls.retain(|(at, _)| now / tenth - at / tenth < 10);
            }
            Kind::Count(most) => {
                while self.calls.len() > most {
                    self.calls.pop_front();
                }
            }
        }
    }

    fn end(&mut self, era: u64, ended: Option<bool>, now: u64) {
        if era != self.era {
            return;
        }
        match (&mut self.state, ended) {
            (State::Closed, Some(ok)) => {
                self.calls.push_back((now, ok));
                self.forget(now);
                let bad = self.calls.iter().filter(|(_, ok)| !ok).count();
                if bad > 0
                    && self.calls.len() >= self.calls_min
                    && bad as f64 >= self.rate * self.calls.len() as f64
                {
                    self.turn(State::Open(now + PAUSE));
                }
            }
            (State::HalfOpen { .. }, Some(false)) => self.turn(State::Open(now + PAUSE)),
            (State::HalfOpen { running, good, .. }, ended) => {
                *running -= 1;
                *good += usize::from(ended.is_some());
                if *good == PROBES {
                    self.turn(State::Closed);
                }
            }
            _ => {}
        }
    }
}

async fn compare(kind: Kind, calls_min: usize, rate: f64, seed: u64) {
    let mut dice = Rng::with_seed(seed);
    let settings = BreakerSettings::default()
        .calls_min(calls_min as u32)
        .failure_rate(rate)
        .pause(Duration::from_millis(PAUSE))
        .probe_time(Duration::from_millis(PROBE_TIME))
        .probes(PROBES as u32);
    let settings = match kind {
        Kind::Time(window) => settings.time_window(Duration::from_millis(window)),
        Kind::Count(calls) => settings.count_window(calls as u32),
    };
    let breaker = CircuitBreaker::new(settings);
    let began = Instant::now();
    let mut model = Model { kind, calls_min, rate, state: State::Closed, era: 0, calls: VecDeque::new() };
    let mut under_way: Vec<(Permit, u64)> = Vec::new();
    for _ in 0..400 {
        let now = began.elapsed().as_millis() as u64;
        match dice.u8(..20) {
            0..8 => {
                let permit = breaker.try_acquire_owned().ok();
                assert_eq!(permit.is_some(), model.admit(now), "{model:?} at {now}");
                under_way.extend(permit.map(|permit| (permit, model.era)));
            }
            8..17 if !under_way.is_empty() => {
                let (permit, era) = under_way.swap_remove(dice.usize(..under_way.len()));
                let ended = [None, Some(true), Some(true), Some(false)][dice.usize(..4)];
                match ended {
                    None => drop(permit),
                    Some(true) => permit.succeed(),
                    Some(false) => permit.fail(),
                }
                model.end(era, ended, now);
            }
            17 if dice.u8(..10) == 0 => {
                breaker.reset();
                model.turn(State::Closed);
            }
            _ => sleep(Duration::from_millis(dice.u64(..30))).await,
        }
        let now = began.elapsed().as_millis() as u64;
        let state = match model.state {
            State::Closed => BreakerState::Closed,
            State::Open(_) => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        };
        assert_eq!(breaker.state(), state, "{model:?} at {now}");
        model.forget(now);
        let snapshot = breaker.snapshot();
        let failures = model.calls.iter().filter(|(_, ok)| !ok).count();
        assert_eq!(
            (snapshot.calls, snapshot.failures),
            (model.calls.len() as u64, failures as u64),
            "{model:?} at {now}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_breaker_decides_as_one_that_remembers_everything(
        kind in prop_oneof![(1u64..30).prop_map(|n| Kind::Time(10 * n)), (1usize..30).prop_map(Kind::Count)],
        calls_min in 1usize..12,
        rate in 1u32..=10,
        seed: u64,
    ) {
        // A count window that is smaller is enough, so the model need not know of more.
        let calls_min = match kind { Kind::Count(calls) => calls_min.min(calls), Kind::Time(_) => calls_min };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(compare(kind, calls_min, f64::from(rate) / 10.0, seed));
    }
}

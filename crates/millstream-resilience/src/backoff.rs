//! How long to wait between attempts.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

/// The delays between attempts: how they grow, how far, and how much of them is left to chance.
///
/// Chance matters when many clients lose one server at the same moment: without it they come back at the same moment
/// too. What *full* and *decorrelated* jitter do for that is measured in Marc Brooker's "Exponential Backoff And Jitter" (AWS
/// Architecture Blog, 2015), where the formulas are from.
///
/// ```
/// use millstream_resilience::Backoff;
/// use std::time::Duration;
/// let (ms, s) = (Duration::from_millis, Duration::from_secs);
///
/// let backoff = Backoff::exponential(ms(100)).max(s(1));
/// let delays: Vec<_> = backoff.delays().take(6).collect();
/// assert_eq!(delays, [ms(100), ms(200), ms(400), ms(800), s(1), s(1)]);
/// assert!(backoff.full_jitter().delays().take(100).all(|delay| delay <= s(1)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    first: Duration,
    growth: Growth,
    max: Duration,
    jitter: Jitter,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Growth {
    None,
    Linear,
    Exponential(f64),
}

/// What of a delay is left to chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Jitter {
    /// Nothing.
    #[default]
    None,
    /// All of it: anything from nothing to the delay, evenly.
    Full,
    /// The upper half: from half of the delay to all of it.
    Equal,
    /// Anything from the first delay to three times the *previous* one; how the backoff grows does not matter then.
    Decorrelated,
}

impl Backoff {
    /// The longest delay, if nothing else is said.
    pub const MAX: Duration = Duration::from_secs(30);

    /// The same delay each time.
    pub const fn fixed(delay: Duration) -> Self {
        // No longer than itself, whatever the default.
        Backoff { first: delay, growth: Growth::None, max: Duration::MAX, jitter: Jitter::None }
    }

    /// One step, two steps, three steps ... up to [`MAX`](Self::MAX).
    pub const fn linear(step: Duration) -> Self {
        Backoff { first: step, growth: Growth::Linear, max: Self::MAX, jitter: Jitter::None }
    }

    /// Twice as long each time, up to [`MAX`](Self::MAX).
    pub const fn exponential(first: Duration) -> Self {
        Backoff { first, growth: Growth::Exponential(2.0), max: Self::MAX, jitter: Jitter::None }
    }

    /// Anything from `first` to three times the previous delay, up to [`MAX`](Self::MAX).
    pub const fn decorrelated(first: Duration) -> Self {
        Backoff { jitter: Jitter::Decorrelated, ..Backoff::exponential(first) }
    }

    /// So many times as long each time, instead of twice.
    ///
    /// # Panics
    /// If `factor` is below 1, or no number.
    #[must_use]
    pub fn factor(mut self, factor: f64) -> Self {
        assert!(factor >= 1.0, "delays grow by a factor of 1 or more, not {factor}");
        self.growth = Growth::Exponential(factor);
        self
    }

    /// The longest delay.
    #[must_use]
    pub const fn max(mut self, max: Duration) -> Self {
        self.max = max;
        self
    }

    /// Leaves a part of each delay to chance.
    #[must_use]
    pub const fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// Leaves all of each delay to chance: short for `jitter(Jitter::Full)`.
    #[must_use]
    pub const fn full_jitter(self) -> Self {
        self.jitter(Jitter::Full)
    }

    /// The delay number `n`, counted from 1, if nothing were left to chance.
    pub fn nominal(&self, n: u32) -> Duration {
        let earlier = n.max(1) - 1;
        let delay = match self.growth {
            Growth::None => self.first,
            Growth::Linear => self.first.saturating_mul(earlier.saturating_add(1)),
            Growth::Exponential(factor) => {
                times(self.first, factor.powi(i32::try_from(earlier).unwrap_or(i32::MAX)))
            }
        };
        delay.min(self.max)
    }

    /// The delays, one after the other, without end.
    pub fn delays(&self) -> Delays {
        Delays { backoff: *self, made: 0, previous: self.first, dice: None }
    }

    /// The same with the same delays for the same seed.
    pub fn delays_seeded(&self, seed: u64) -> Delays {
        Delays { dice: Some(Rng::with_seed(seed)), ..self.delays() }
    }
}

/// A time so many times as long, or the longest there is.
fn times(time: Duration, factor: f64) -> Duration {
    if time.is_zero() {
        return time;
    }
    Duration::try_from_secs_f64(time.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

/// `exponential from 100ms to 30s, full jitter`
impl fmt::Display for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Backoff { first, growth, max, jitter } = self;
        match (growth, jitter) {
            (_, Jitter::Decorrelated) => return write!(f, "decorrelated jitter from {first:?} to {max:?}"),
            (Growth::None, _) => write!(f, "{:?} each time", first.min(max))?,
            (Growth::Linear, _) => write!(f, "linear from {first:?} to {max:?}")?,
            (Growth::Exponential(2.0), _) => write!(f, "exponential from {first:?} to {max:?}")?,
            (Growth::Exponential(factor), _) => {
                write!(f, "exponential by {factor} from {first:?} to {max:?}")?;
            }
        }
        match jitter {
            Jitter::Full => f.write_str(", full jitter"),
            Jitter::Equal => f.write_str(", equal jitter"),
            Jitter::None | Jitter::Decorrelated => Ok(()),
        }
    }
}

/// The delays of one call or connection, in turn. Made by [`Backoff::delays`]; it never ends.
#[derive(Debug, Clone)]
pub struct Delays {
    backoff: Backoff,
    made: u32,
    previous: Duration,
    /// The thread's own if there are none.
    dice: Option<Rng>,
}

impl Delays {
    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        self.made = self.made.saturating_add(1);
        let Backoff { first, max, jitter, .. } = self.backoff;
        let nominal = self.backoff.nominal(self.made);
        let delay = match jitter {
            Jitter::None => nominal,
            Jitter::Full => self.between(Duration::ZERO, nominal),
            Jitter::Equal => self.between(nominal / 2, nominal),
            Jitter::Decorrelated => {
                self.between(first.min(max), self.previous.saturating_mul(3).clamp(first.min(max), max))
            }
        };
        self.previous = delay;
        delay
    }

    /// Begins again with the first delay, and goes on with the same dice.
    pub fn reset(&mut self) {
        (self.made, self.previous) = (0, self.backoff.first);
    }

    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let part = match &mut self.dice {
            Some(dice) => dice.f64(),
            None => fastrand::f64(),
        };
        least + times(most - least, part).min(most - least)
    }
}

impl Iterator for Delays {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.next_delay())
    }
}

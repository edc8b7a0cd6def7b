//! No more than so many calls in a time.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use crate::clock::later;
use crate::{Class, Classify, Idle};

/// How often something may happen, and how often at once after a pause: a token bucket, kept as the time that one token takes to
/// come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In nanoseconds of 2^-32, exact for odd rates too.
    each: u128,
    burst: u64,
}

/// A nanosecond as [`Rate`] counts.
const NANOSECOND: u128 = 1 << 32;

impl Rate {
    /// `count` in each `period`, evenly spread: one at a time.
    ///
    /// # Panics
    /// If `count` or `period` is zero.
    pub fn new(count: u64, period: Duration) -> Self {
        assert!(count > 0, "a rate of nothing is for ever");
        assert!(!period.is_zero(), "a rate needs a time");
        // A period of 2^64 ns is 584 years.
        let period = period.as_nanos().min(u128::from(u64::MAX));
        Rate { each: (period * NANOSECOND / u128::from(count)).max(1), burst: 1 }
    }

    /// So many may happen at once when none has for a while; 1 by default.
    ///
    /// # Panics
    /// If `burst` is 0.
    #[must_use]
    pub fn burst(mut self, burst: u64) -> Self {
        assert!(burst > 0, "a bucket of nothing never lets anything pass");
        self.burst = burst;
        self
    }

    /// The time that so many take to come.
    #[inline]
    fn time(&self, tokens: u64) -> u128 {
        if tokens == 1 { self.each } else { self.each.saturating_mul(u128::from(tokens)) }
    }
}

/// The bucket of a [`Rate`], kept as one moment, at which it will be full again (the *generic cell rate algorithm*, ITU-T I.371): no
/// time passes uncounted, and nothing ticks.
#[derive(Debug, Clone)]
pub struct Bucket {
    rate: Rate,
    /// The time in which it fills up.
    size: u128,
    /// When the clock of `full` began.
    began: Instant,
    full: u128,
    /// Until then nothing is forfeited of what comes beyond the burst; [`WAITS`] while somebody waits.
    grace: u128,
}

/// A timer is late by up to a millisecond, and a scheduler by some more: a limiter that waited has what came by then, else it would
/// never pass more than its burst in one go of the timer.
const LATE: u128 = 2_000_000 * NANOSECOND;
const WAITS: u128 = u128::MAX;

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate) -> Self {
        Bucket { rate, size: rate.time(rate.burst), began: Instant::now(), full: 0, grace: 0 }
    }

    /// How many tokens there are now, if at least `needed`, of which a bucket need not hold more than its burst.
    ///
    /// # Errors
    /// When there will be as many.
    pub fn tokens(&mut self, needed: u64) -> Result<u64, Instant> {
        let Rate { each, burst } = self.rate;
        self.held(self.rate.time(needed.min(burst))).map(|held| clamped(held / each))
    }

    /// The same if there is anything in the bucket, be it the smallest part of a token, for what may leave it in debt.
    ///
    /// # Errors
    /// When there will be something in it.
    pub fn any(&mut self) -> Result<u64, Instant> {
        let each = self.rate.each;
        self.held(1).map(|held| clamped(held / each))
    }

    /// Whether there are so many, or as many as it holds.
    ///
    /// # Errors
    /// When there will be.
    #[inline]
    fn has(&mut self, needed: u64) -> Result<(), Instant> {
        self.held(self.rate.time(needed.min(self.rate.burst))).map(|_| ())
    }

    #[inline]
    fn held(&mut self, needed: u128) -> Result<u128, Instant> {
        let now = self.began.elapsed().as_nanos() * NANOSECOND;
        if now >= self.grace {
            self.full = self.full.max(now);
        } else if self.grace == WAITS {
            self.full = self.full.max(now.saturating_sub(LATE));
            self.grace = now + LATE;
        }
        let held = now.saturating_add(self.size).saturating_sub(self.full);
        if held >= needed { Ok(held) } else { Err(self.when(needed)) }
    }

    #[cold]
    fn when(&self, needed: u128) -> Instant {
        let wait = self.full.saturating_add(needed).saturating_sub(self.size).div_ceil(NANOSECOND);
        later(self.began, Duration::from_nanos(clamped(wait)))
    }

    /// Says that somebody waits for what the bucket does not hold yet, and comes back then: what comes while the timer is late, up
    /// to two milliseconds' worth, is not lost, nor what comes in the two after that.
    #[inline]
    pub fn wait(&mut self) {
        self.grace = WAITS;
    }

    /// Says that nobody waits any more, who would come back.
    fn leave(&mut self) {
        if self.grace == WAITS {
            self.grace = 0;
        }
    }

    /// Takes so many tokens, also such that are not there: they are owed.
    #[inline]
    pub fn take(&mut self, tokens: u64) {
        self.full = self.full.saturating_add(self.rate.time(tokens));
    }
}

fn clamped(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// A limit for how often calls are made, shared by all clones. Calls that come too soon wait in the order in which they came, or fail.
///
/// ```
/// use millstream_resilience::{Limited, Rate, RateLimiter};
/// use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let limiter = RateLimiter::new(Rate::new(10, Duration::from_secs(1)).burst(2));
/// let began = tokio::time::Instant::now();
/// for _ in 0..5 {
///     limiter.acquire(1).await.unwrap();
/// }
/// assert_eq!(began.elapsed().as_millis(), 300, "two at once, and three by the rate");
/// assert_eq!(limiter.try_acquire(1).unwrap_err().retry_after, Duration::from_millis(100));
/// # }
/// ```
#[derive(Clone)]
pub struct RateLimiter(Arc<Shared>);

struct Shared {
    rate: Rate,
    wait_max: Option<Duration>,
    book: Mutex<Book>,
    /// Whose turn it is to wait for the bucket: one at a time, the others in line behind it.
    turn: Semaphore,
}

struct Book {
    bucket: Bucket,
    /// Tokens that are wanted by those in line.
    wanted: u64,
    rejected: u64,
}

impl RateLimiter {
    /// Calls wait for as long as it takes, and as many as there are; [`wait_max`](Self::wait_max) bounds both.
    pub fn new(rate: Rate) -> Self {
        RateLimiter::make(rate, None)
    }

    /// Calls that would have to wait longer than this fail at once, so that no more wait than the rate lets through in this time; with
    /// zero, all that would have to wait fail. To be said before it is cloned.
    #[must_use]
    pub fn wait_max(self, wait: Duration) -> Self {
        RateLimiter::make(self.0.rate, Some(wait))
    }

    fn make(rate: Rate, wait_max: Option<Duration>) -> Self {
        let book = Mutex::new(Book { bucket: Bucket::new(rate), wanted: 0, rejected: 0 });
        RateLimiter(Arc::new(Shared { rate, wait_max, book, turn: Semaphore::new(1) }))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().expect("nothing panics while the book is held")
    }

    /// Calls, when it is time.
    ///
    /// # Errors
    /// Those of `call`; [`Limited`], as an `E`, if that would be too late.
    ///
    /// # Cancel safety
    /// Dropping it while it waits leaves its turn to the next.
    pub async fn call<T, E, F>(&self, call: impl FnOnce() -> F) -> Result<T, E>
    where
        E: From<Limited>,
        F: Future<Output = Result<T, E>>,
    {
        self.acquire(1).await?;
        call().await
    }

    /// Takes `tokens` if they are there, and nobody waits for them. More than the bucket can hold are there when it is full, and
    /// are owed then.
    ///
    /// # Errors
    /// If they are not, with the time when they will be.
    pub fn try_acquire(&self, tokens: u64) -> Result<(), Limited> {
        if self.enter(tokens) {
            return Ok(());
        }
        let mut book = self.book();
        let until = book.in_line(tokens);
        Err(book.reject(until))
    }

    /// True if they were there and nobody waits for them.
    #[inline]
    pub(crate) fn enter(&self, tokens: u64) -> bool {
        let mut book = self.book();
        let free = book.wanted == 0 && book.bucket.has(tokens).is_ok();
        if free {
            book.bucket.take(tokens);
        }
        free
    }

    /// Takes `tokens` when they are there.
    ///
    /// # Errors
    /// If that would be later than calls may wait, at once.
    pub async fn acquire(&self, tokens: u64) -> Result<(), Limited> {
        if self.enter(tokens) {
            return Ok(());
        }
        {
            let mut book = self.book();
            if let Some(wait) = self.0.wait_max {
                // Others can only give up, so it will not be later than this.
                let until = book.in_line(tokens);
                if until > later(Instant::now(), wait) {
                    return Err(book.reject(until));
                }
            }
            book.wanted = book.wanted.saturating_add(tokens);
        }
        let mut leave = Leave { limiter: self, tokens };
        let _turn = self.0.turn.acquire().await.expect("nobody closes the semaphore");
        loop {
            let until = {
                let mut book = self.book();
                match book.bucket.has(tokens) {
                    Ok(()) => {
                        book.bucket.take(tokens);
                        book.wanted = book.wanted.saturating_sub(std::mem::take(&mut leave.tokens));
                        return Ok(());
                    }
                    Err(until) => {
                        book.bucket.wait();
                        until
                    }
                }
            };
            sleep_until(until).await;
        }
    }

    /// How many calls were not let through.
    pub fn rejected(&self) -> u64 {
        self.book().rejected
    }
}

impl Book {
    /// When so many would be there behind all that wait.
    fn in_line(&mut self, tokens: u64) -> Instant {
        let mut bucket = self.bucket.clone();
        bucket.take(self.wanted);
        bucket.has(tokens).err().unwrap_or_else(Instant::now)
    }

    fn reject(&mut self, until: Instant) -> Limited {
        self.rejected += 1;
        Limited { retry_after: until.saturating_duration_since(Instant::now()) }
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter")
            .field("rate", &self.0.rate)
            .field("wait_max", &self.0.wait_max)
            .finish_non_exhaustive()
    }
}

/// The bucket is full, and there are no clones.
impl Idle for RateLimiter {
    fn is_idle(&self) -> bool {
        if Arc::strong_count(&self.0) > 1 {
            return false;
        }
        let mut book = self.book();
        let burst = self.0.rate.burst;
        book.wanted == 0 && book.bucket.has(burst).is_ok()
    }
}

/// Whoever leaves the line wants nothing any more.
struct Leave<'a> {
    limiter: &'a RateLimiter,
    tokens: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.tokens == 0 {
            return;
        }
        let mut book = self.limiter.book();
        book.wanted = book.wanted.saturating_sub(self.tokens);
        if book.wanted == 0 {
            book.bucket.leave();
        }
    }
}

/// The error of a call that came too soon after others.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limited {
    /// When it would not be too soon.
    pub retry_after: Duration,
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "too many calls: the next may be made in {:?}", self.retry_after)
    }
}

impl Error for Limited {}

impl Classify for Limited {
    fn class(&self) -> Class {
        Class::Throttled { retry_after: Some(self.retry_after) }
    }
}

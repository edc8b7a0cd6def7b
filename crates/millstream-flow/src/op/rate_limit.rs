//! No more than so many items or bytes a second.

use std::ops::ControlFlow;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::flow::{Flow, Step};
use crate::measure::{Measure, Unmeasured};
use crate::timer::{Timer, bounded};

/// A token bucket: how fast items may flow, and how many at once after a pause.
///
/// Kept as one moment, at which the bucket will be full again (the *generic cell rate algorithm*, ITU-T I.371), so
/// that no time passes uncounted and nothing ticks.
///
/// ```
/// use millstream_flow::RateLimit;
/// use std::time::Duration;
/// let calls = RateLimit::new(600, Duration::from_secs(60)).burst(20); // 10 a second, 20 at once
/// let bytes = RateLimit::new(1 << 20, Duration::from_secs(1)).bytes(|line: &String| line.len());
/// # let _ = (calls, bytes);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct RateLimit<W = Unmeasured> {
    /// Time for one item, or one byte, in nanoseconds of 2^-32.
    each: u128,
    burst: u64,
    measure: W,
}

/// Nanoseconds as [`RateLimit`] counts them, exact for odd rates too.
const NANOSECOND: u128 = 1 << 32;

impl RateLimit {
    /// `count` items in each `period`, evenly spread: one at a time.
    ///
    /// # Panics
    /// If `count` or `period` is zero.
    pub fn new(count: u64, period: Duration) -> Self {
        assert!(count > 0, "a rate of nothing stops the flow for ever");
        assert!(!period.is_zero(), "a rate needs a time");
        let each = (bounded(period).as_nanos() * NANOSECOND / u128::from(count)).max(1);
        RateLimit { each, burst: 1, measure: Unmeasured }
    }

    /// Counts bytes, as `measure` finds them, instead of items. An item passes as long as the bucket is not empty and
    /// may leave it in debt, so that one larger than the whole bucket passes too, and is paid for afterwards.
    pub fn bytes<W>(self, measure: W) -> RateLimit<W> {
        let RateLimit { each, burst, .. } = self;
        RateLimit { each, burst, measure }
    }
}

impl<W> RateLimit<W> {
    /// So many items, or bytes, may pass at once when none has for a while. 1 by default.
    ///
    /// # Panics
    /// If `burst` is 0.
    pub fn burst(mut self, burst: u64) -> Self {
        assert!(burst > 0, "a bucket of nothing never lets anything pass");
        self.burst = burst;
        self
    }
}

/// See [`Pipe::rate_limit`](crate::Pipe::rate_limit).
pub struct RateLimited<F, W> {
    upstream: F,
    limit: RateLimit<W>,
    /// When the clock below began.
    began: Instant,
    /// When the bucket will be full again.
    full: u128,
    timer: Timer,
}

impl<F, W> RateLimited<F, W> {
    pub(crate) fn new(upstream: F, limit: RateLimit<W>) -> Self {
        RateLimited { upstream, limit, began: Instant::now(), full: 0, timer: Timer::default() }
    }

    /// How many items may pass now; when the next one may, if none.
    fn allowance(&mut self, measures: bool) -> Result<usize, Instant> {
        let now = self.began.elapsed().as_nanos() * NANOSECOND;
        self.full = self.full.max(now);
        let RateLimit { each, burst, .. } = self.limit;
        // What the bucket holds, and how much of it the next item needs: all of itself, or anything if it may owe.
        let bucket = each.saturating_mul(u128::from(burst));
        let held = now.saturating_add(bucket).saturating_sub(self.full);
        let needed = if measures { 1 } else { each };
        if held >= needed {
            return Ok(usize::try_from(held / each).unwrap_or(usize::MAX).max(1));
        }
        let wait = self.full.saturating_add(needed).saturating_sub(bucket).div_ceil(NANOSECOND);
        let wait = Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX));
        Err(self.began + bounded(wait))
    }
}

impl<F: Flow, W: Measure<F::Item>> Flow for RateLimited<F, W> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        let allowed = loop {
            match self.allowance(W::MEASURES) {
                Ok(allowed) => break allowed,
                Err(until) if self.timer.poll_until(cx, until).is_pending() => return Poll::Pending,
                Err(_) => {}
            }
        };
        let RateLimited { upstream, limit, full, .. } = self;
        let each = limit.each;
        if !W::MEASURES {
            return upstream.poll_drive(cx, max.min(allowed), &mut |item, token| {
                *full = full.saturating_add(each);
                sink(item, token)
            });
        }
        let most = full.saturating_add(each.saturating_mul(allowed as u128));
        upstream.poll_drive(cx, max, &mut |item, token| {
            let bytes = limit.measure.measure(&item) as u128;
            *full = full.saturating_add(each.saturating_mul(bytes));
            let flow = sink(item, token);
            if *full >= most { ControlFlow::Break(()) } else { flow }
        })
    }
}

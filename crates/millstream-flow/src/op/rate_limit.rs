//! No more than so many items or bytes a second.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use millstream_resilience::{Bucket, Rate};

use crate::flow::{Flow, Step};
use crate::measure::{Measure, Unmeasured};
use crate::scope::{Scope, StopSignal};
use crate::timer::Timer;

/// A token bucket: how fast items may flow, and how many at once after a pause.
///
/// Its bucket is [`millstream_resilience::Bucket`]'s.
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
    rate: Rate,
    measure: W,
}

impl RateLimit {
    /// `count` items in each `period`, evenly spread: one at a time.
    ///
    /// # Panics
    /// If `count` or `period` is zero.
    pub fn new(count: u64, period: Duration) -> Self {
        RateLimit { rate: Rate::new(count, period), measure: Unmeasured }
    }

    /// Counts bytes, as `measure` finds them, instead of items. An item passes as long as the bucket is not empty and
    /// may leave it in debt, so that one larger than the whole bucket passes too, and is paid for afterwards.
    pub fn bytes<W>(self, measure: W) -> RateLimit<W> {
        RateLimit { rate: self.rate, measure }
    }
}

impl<W> RateLimit<W> {
    /// So many items, or bytes, may pass at once when none has for a while. 1 by default.
    ///
    /// # Panics
    /// If `burst` is 0.
    pub fn burst(mut self, burst: u64) -> Self {
        self.rate = self.rate.burst(burst);
        self
    }
}

/// See [`Pipe::rate_limit`](crate::Pipe::rate_limit).
pub struct RateLimited<F: Flow, W> {
    upstream: F,
    measure: W,
    bucket: Bucket,
    timer: Timer,
    stop: Arc<StopSignal>,
    /// What upstream had still accepted when the run was told to stop, and waits for its turn.
    held: Option<(F::Item, F::Token)>,
    ended: bool,
}

impl<F: Flow, W> RateLimited<F, W> {
    pub(crate) fn new(upstream: F, limit: RateLimit<W>, scope: &Scope) -> Self {
        let RateLimit { rate, measure } = limit;
        let (bucket, timer, stop) = (Bucket::new(rate), Timer::default(), scope.stop_signal());
        RateLimited { upstream, measure, bucket, timer, stop, held: None, ended: false }
    }

    /// While nothing may pass: whether the run is told to stop and upstream has ended, as it does then without another item.
    #[cold]
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.stop.register(cx.waker());
        if !self.stop.is_raised() || self.held.is_some() {
            return false;
        }
        let RateLimited { upstream, held, ended, .. } = self;
        if !*ended {
            let step = upstream.poll_drive(cx, 1, &mut |item, token| {
                *held = Some((item, token));
                ControlFlow::Break(())
            });
            *ended = step == Poll::Ready(Step::End);
            if held.is_none() && step == Poll::Ready(Step::More) {
                // It has dropped what it had, and nobody else will ask it again.
                cx.waker().wake_by_ref();
            }
        }
        *ended && held.is_none()
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
        // How many items may pass now, or bytes: the last item may be larger than that.
        let allowed = loop {
            let RateLimited { bucket, timer, .. } = self;
            match if W::MEASURES { bucket.any() } else { bucket.tokens(1) } {
                Ok(allowed) => break allowed.max(1),
                Err(until) if timer.poll_until(cx, until).is_pending() => {
                    bucket.wait();
                    return if self.is_over(cx) { Poll::Ready(Step::End) } else { Poll::Pending };
                }
                Err(_) => {}
            }
        };
        let RateLimited { upstream, measure, bucket, held, ended, .. } = self;
        if max > 0
            && let Some((item, token)) = held.take()
        {
            bucket.take(if W::MEASURES { measure.measure(&item) as u64 } else { 1 });
            let _ = sink(item, token);
            return Poll::Ready(Step::More);
        }
        if *ended {
            return Poll::Ready(Step::End);
        }
        if !W::MEASURES {
            let allowed = usize::try_from(allowed).unwrap_or(usize::MAX);
            return upstream.poll_drive(cx, max.min(allowed), &mut |item, token| {
                bucket.take(1);
                sink(item, token)
            });
        }
        let mut left = allowed;
        upstream.poll_drive(cx, max, &mut |item, token| {
            let bytes = measure.measure(&item) as u64;
            bucket.take(bytes);
            left = left.saturating_sub(bytes);
            let flow = sink(item, token);
            if left == 0 { ControlFlow::Break(()) } else { flow }
        })
    }
}

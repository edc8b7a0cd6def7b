//! A second call when the first is slow.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Budget;
use crate::clock::later;
use latencies::Latencies;

mod latencies;

/// Makes a call a second time when the first has not ended after a while, and takes whichever succeeds first: the answer to
/// calls that are mostly fast and sometimes very slow (Dean and Barroso, "The Tail at Scale", 2013). For calls that may be
/// made twice.
///
/// By default one extra call, and in the long run at most one for ten calls ([`budget`](Self::budget)). Those that are no longer
/// needed are dropped. A call that fails before its hedge begins is not hedged: that is a retry's business. Clones share what they
/// have measured.
///
/// ```
/// use millstream_resilience::Hedge;
/// use std::{convert::Infallible, time::Duration};
/// use tokio::time::{Instant, sleep};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let hedge = Hedge::after(Duration::from_millis(50));
/// let (mut slow, began) = (std::cell::Cell::new(true), Instant::now());
/// let answer = hedge.call(async || {
///     sleep(Duration::from_millis(if slow.replace(false) { 3000 } else { 10 })).await;
///     Ok::<_, Infallible>(17)
/// });
/// assert_eq!((answer.await, began.elapsed().as_millis()), (Ok(17), 60));
/// # }
/// ```
#[derive(Clone)]
pub struct Hedge(Arc<Settings>);

#[derive(Clone)]
struct Settings {
    delay: Duration,
    percentile: Option<(f64, Arc<Mutex<Latencies>>)>,
    extra: u32,
    budget: Budget,
    made: Arc<AtomicU64>,
    won: Arc<AtomicU64>,
}

impl Hedge {
    /// The extra call is made after `delay`.
    pub fn after(delay: Duration) -> Self {
        Hedge(Arc::new(Settings {
            delay,
            percentile: None,
            extra: 1,
            budget: Budget::new(10, 0.1),
            made: Arc::default(),
            won: Arc::default(),
        }))
    }

    /// The extra call is made when the call takes longer than this part of the latest ones took, found to an eighth; `first` is the
    /// delay until twenty have ended.
    ///
    /// # Panics
    /// If `part` is not between 0 and 1.
    pub fn at_percentile(part: f64, first: Duration) -> Self {
        assert!(part > 0.0 && part < 1.0, "a percentile is between 0 and 1 (0.95), not {part}");
        Hedge::after(first).with(|settings| settings.percentile = Some((part, Arc::default())))
    }

    fn with(self, set: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Arc::unwrap_or_clone(self.0);
        set(&mut settings);
        Hedge(Arc::new(settings))
    }

    /// Up to so many extra calls, each after another delay; 1 by default.
    ///
    /// # Panics
    /// If `extra` is 0.
    #[must_use]
    pub fn extra(self, extra: u32) -> Self {
        assert!(extra > 0, "without extra calls nothing is hedged");
        self.with(|settings| settings.extra = extra)
    }

    /// Extra calls are paid from this budget, which each call that succeeds fills a little; ten at once, and one for ten calls by
    /// default.
    #[must_use]
    pub fn budget(self, budget: Budget) -> Self {
        self.with(|settings| settings.budget = budget)
    }

    /// How long a call may take now before an extra one is made.
    pub fn delay(&self) -> Duration {
        match &self.0.percentile {
            None => self.0.delay,
            Some((part, latencies)) => {
                let latencies = latencies.lock().expect("nothing panics while latencies are held");
                latencies.quantile(*part).unwrap_or(self.0.delay)
            }
        }
    }

    /// How many extra calls were made.
    pub fn made(&self) -> u64 {
        self.0.made.load(Ordering::Relaxed)
    }

    /// How many of them succeeded first.
    pub fn won(&self) -> u64 {
        self.0.won.load(Ordering::Relaxed)
    }

    /// Calls, and calls again when that takes too long.
    ///
    /// # Errors
    /// The error of the last call that ended, when all have failed.
    ///
    /// # Cancel safety
    /// Dropping it drops all calls.
    pub async fn call<T, E, F>(&self, mut call: impl FnMut() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        self.call_while(|| Some(call())).await.expect("there is always another call")
    }

    /// The same for what cannot be repeated at will: extra calls are made as long as `call` has one. `None` if there is not even a
    /// first.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    ///
    /// # Cancel safety
    /// As [`call`](Self::call).
    pub async fn call_while<T, E, F>(&self, mut call: impl FnMut() -> Option<F>) -> Option<Result<T, E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut first = pin!(Some(call()?));
        // Most calls end here, or before their delay has passed.
        let result = poll_fn(|cx| Poll::Ready(poll_call(first.as_mut(), cx))).await;
        if let Poll::Ready(result) = result {
            return Some(self.ended(Duration::ZERO, result));
        }
        let (began, delay) = (Instant::now(), self.delay());
        let mut timer = pin!(sleep(delay));
        let mut race = Race { first, extra: Vec::new() };
        let mut hedges = self.0.extra;
        let (result, extra) = poll_fn(|cx| {
            if let Poll::Ready(ended) = race.poll(cx) {
                return Poll::Ready(ended);
            }
            while hedges > 0 && timer.as_mut().poll(cx).is_ready() {
                if !self.0.budget.spend() {
                    hedges = 0;
                    break;
                }
                let Some(extra) = call() else {
                    hedges = 0;
                    break;
                };
                hedges -= 1;
                self.0.made.fetch_add(1, Ordering::Relaxed);
                race.extra.push(Box::pin(extra));
                timer.as_mut().reset(later(Instant::now(), delay));
                if let Poll::Ready(ended) = race.poll(cx) {
                    return Poll::Ready(ended);
                }
            }
            Poll::Pending
        })
        .await;
        self.0.won.fetch_add(u64::from(extra && result.is_ok()), Ordering::Relaxed);
        Some(self.ended(began.elapsed(), result))
    }

    fn ended<T, E>(&self, took: Duration, result: Result<T, E>) -> Result<T, E> {
        if result.is_ok() {
            self.0.budget.earn();
            if let Some((_, latencies)) = &self.0.percentile {
                latencies.lock().expect("nothing panics while latencies are held").add(took);
            }
        }
        result
    }
}

/// The first call and its extra ones, under way.
struct Race<'a, F> {
    /// `None` once it has failed.
    first: Pin<&'a mut Option<F>>,
    extra: Vec<Pin<Box<F>>>,
}

/// Polls a call, and drops it when it has ended: another may wait for what it holds. One that is gone is pending.
fn poll_call<F: Future>(mut call: Pin<&mut Option<F>>, cx: &mut Context<'_>) -> Poll<F::Output> {
    let Some(polled) = call.as_mut().as_pin_mut() else { return Poll::Pending };
    let poll = polled.poll(cx);
    if poll.is_ready() {
        call.set(None);
    }
    poll
}

impl<T, E, F: Future<Output = Result<T, E>>> Race<'_, F> {
    /// The first success, or the last failure; and whether it is an extra call's.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(Result<T, E>, bool)> {
        if let Poll::Ready(result) = poll_call(self.first.as_mut(), cx)
            && (result.is_ok() || self.extra.is_empty())
        {
            return Poll::Ready((result, false));
        }
        let mut next = 0;
        while next < self.extra.len() {
            match self.extra[next].as_mut().poll(cx) {
                Poll::Pending => next += 1,
                Poll::Ready(result) => {
                    self.extra.swap_remove(next);
                    if result.is_ok() || (self.first.is_none() && self.extra.is_empty()) {
                        return Poll::Ready((result, true));
                    }
                }
            }
        }
        Poll::Pending
    }
}

impl fmt::Debug for Hedge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { delay, percentile, extra, budget, .. } = &*self.0;
        f.debug_struct("Hedge")
            .field("delay", delay)
            .field("percentile", &percentile.as_ref().map(|(part, _)| part))
            .field("extra", extra)
            .field("budget", budget)
            .finish_non_exhaustive()
    }
}

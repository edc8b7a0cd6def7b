//! How long a stream may take for an item and in all, and how many items it may deliver in a time.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use millstream_flow::flows::RateLimited;
use millstream_flow::{Flow, Pipe, RateLimit, Step, Unmeasured};
use millstream_resilience::{bounded, later};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::call::{Call, Detached};
use crate::error::{Error, ErrorKind};
use crate::message::{About, StreamRequest};
use crate::stream::progress::LeftOut;
use crate::stream::{StreamBehaviour, StreamError, StreamNext};

/// Ends a stream with [`ErrorKind::TimedOut`] whose first or next item takes too long, or all of it. Time in which nobody
/// asks for an item counts for all of it only; that of the opening for the first item, too, and an opening that takes longer than either
/// has failed with it.
///
/// ```
/// use millstream_mediator::{Mediator, StreamTimeout};
/// use std::time::Duration;
///
/// let timeout = StreamTimeout::new().first(Duration::from_secs(10)).next(Duration::from_secs(60));
/// let builder = Mediator::builder().stream_behaviour(timeout);
/// # let _ = builder;
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamTimeout {
    first: Option<Duration>,
    next: Option<Duration>,
    total: Option<Duration>,
}

impl StreamTimeout {
    /// No limits yet.
    pub const fn new() -> Self {
        StreamTimeout { first: None, next: None, total: None }
    }

    /// How long the first item may take.
    #[must_use]
    pub const fn first(mut self, limit: Duration) -> Self {
        self.first = Some(limit);
        self
    }

    /// How long each further item may take.
    #[must_use]
    pub const fn next(mut self, limit: Duration) -> Self {
        self.next = Some(limit);
        self
    }

    /// How long all of it may take.
    #[must_use]
    pub const fn total(mut self, limit: Duration) -> Self {
        self.total = Some(limit);
        self
    }
}

impl StreamBehaviour for StreamTimeout {
    type Flow<R: StreamRequest, N: StreamNext<R>> = Timed<N::Flow>;

    fn name(&self) -> Cow<'static, str> {
        let limits = [("first", self.first), ("next", self.next), ("total", self.total)];
        let limits = limits.iter().filter_map(|(what, limit)| Some(format!(" {what} {:?}", (*limit)?)));
        format!("timeout{}", limits.collect::<String>()).into()
    }

    fn of(&self, _: &About) -> Self {
        *self
    }

    fn problem(&self) -> Option<String> {
        let none = self.first.is_none() && self.next.is_none() && self.total.is_none();
        none.then(|| "it has no limit: give it `first`, `next` or `total`, or leave it out".into())
    }

    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        let opened = Instant::now();
        let left_out = LeftOut::of(call);
        let call = left_out.beside(call);
        // Nothing comes before it is open.
        let limit = self.first.into_iter().chain(self.total).min();
        let pipe = {
            let beside = call.call();
            let mut opening = pin!(next.open(&beside, request));
            match limit {
                None => opening.await?,
                Some(limit) => timeout(bounded(limit), opening.as_mut())
                    .await
                    .map_err(|_| Error::new(call.call().about(), ErrorKind::TimedOut { limit }))??,
            }
        };
        let (rule, opening) = (*self, opened.elapsed());
        Ok(pipe.via("timeout", |upstream| Timed {
            upstream: Some(upstream),
            rule,
            call,
            opened,
            opening,
            asked: None,
            left_out,
            items: 0,
            failed: 0,
            over: None,
            limit: Duration::ZERO,
            timer: None,
        }))
    }
}

/// A flow with limits of time.
pub struct Timed<F> {
    /// `None` once it has ended.
    upstream: Option<F>,
    rule: StreamTimeout,
    call: Detached,
    opened: Instant,
    /// How long the opening took, and when the first item was asked for.
    opening: Duration,
    asked: Option<Instant>,
    left_out: LeftOut,
    items: u64,
    /// Of those, such that have failed.
    failed: u64,
    /// What it took too long for, while there was no room to say so.
    over: Option<Duration>,
    /// What the timer stands for.
    limit: Duration,
    /// Set while an item is waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<F> Timed<F> {
    /// Begins to wait for an item.
    fn set(&mut self) {
        let StreamTimeout { first, next, total } = self.rule;
        let now = Instant::now();
        let item = if self.items == 0 {
            let asked = self.asked.unwrap_or(now);
            first.map(|limit| (later(asked, limit.saturating_sub(self.opening)), limit))
        } else {
            next.map(|limit| (later(now, limit), limit))
        };
        let total = total.map(|limit| (later(self.opened, limit), limit));
        let Some((due, limit)) = item.into_iter().chain(total).min() else { return };
        self.limit = limit;
        self.timer = Some(Box::pin(sleep_until(due)));
    }

    #[cold]
    fn late(&self, limit: Duration) -> StreamError {
        let error = Error::new(self.call.call().about(), ErrorKind::TimedOut { limit });
        let position = self.items.wrapping_add(self.left_out.items());
        StreamError::new(error, position, true).delivered_in_all(self.items - self.failed)
    }
}

impl<T, F: Flow<Item = Result<T, StreamError>, Token = ()>> Flow for Timed<F> {
    type Item = F::Item;
    type Token = ();

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, ()) -> ControlFlow<()>,
    {
        let Some(upstream) = &mut self.upstream else { return Poll::Ready(Step::End) };
        if self.asked.is_none() {
            self.asked = Some(Instant::now());
        }
        if let Some(limit) = self.over.filter(|_| max > 0) {
            self.upstream = None;
            let _ = sink(Err(self.late(limit)), ());
            return Poll::Ready(Step::End);
        }
        let (mut items, mut failed) = (0, 0);
        // Whoever has had enough takes no error either.
        let mut enough = false;
        let step = upstream.poll_drive(cx, max, &mut |item, ()| {
            items += 1;
            failed += u64::from(item.is_err());
            let flow = sink(item, ());
            enough = flow.is_break();
            flow
        });
        enough |= items == max as u64;
        self.items += items;
        self.failed += failed;
        if step.is_ready() {
            self.timer = None;
            let over = self
                .rule
                .total
                .filter(|total| step != Poll::Ready(Step::End) && self.opened.elapsed() > *total);
            let Some(limit) = over else { return step };
            // Busy all the time, so that no timer was ever polled.
            if enough {
                self.over = over;
                return step;
            }
            self.upstream = None;
            let _ = sink(Err(self.late(limit)), ());
            return Poll::Ready(Step::End);
        }
        if items > 0 {
            self.timer = None;
        }
        if self.timer.is_none() {
            self.set();
        }
        let due = self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
        if !due {
            return Poll::Pending;
        }
        if enough {
            cx.waker().wake_by_ref(); // no room for it now
            return Poll::Pending;
        }
        self.upstream = None;
        let _ = sink(Err(self.late(self.limit)), ());
        Poll::Ready(Step::End)
    }
}

/// Delivers no more than so many items a second: the handler is asked for no more.
#[derive(Debug, Clone)]
pub struct StreamRateLimit {
    items: u64,
    period: Duration,
    burst: u64,
}

impl StreamRateLimit {
    /// So many items in so long, evenly, of each stream.
    ///
    /// # Panics
    /// If `items` or `period` is 0.
    pub fn new(items: u64, period: Duration) -> Self {
        assert!(items > 0 && !period.is_zero(), "a rate of nothing is for ever");
        StreamRateLimit { items, period, burst: 1 }
    }

    /// How many may pass at once after a time without any; 1 if it is not said.
    ///
    /// # Panics
    /// If it is 0.
    #[must_use]
    pub fn burst(mut self, items: u64) -> Self {
        assert!(items > 0, "a bucket of nothing never lets anything pass");
        self.burst = items;
        self
    }
}

impl StreamBehaviour for StreamRateLimit {
    type Flow<R: StreamRequest, N: StreamNext<R>> = RateLimited<N::Flow, Unmeasured>;

    fn name(&self) -> Cow<'static, str> {
        format!("rate limit {} items in {:?}, burst {}", self.items, self.period, self.burst).into()
    }

    fn of(&self, _: &About) -> Self {
        self.clone()
    }

    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        let limit = RateLimit::new(self.items, self.period).burst(self.burst);
        Ok(next.open(call, request).await?.rate_limit(limit))
    }
}

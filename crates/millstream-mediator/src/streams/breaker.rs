//! No streams from what fails too often.

use std::borrow::Cow;
use std::fmt;
use std::future::poll_fn;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use millstream_flow::{Flow, Pipe, Step};
use millstream_resilience::{BreakerSettings, BreakerState, CircuitBreaker, Class, Permit};

use crate::behaviours::Judge;
use crate::call::Call;
use crate::error::Error;
use crate::message::{About, StreamRequest};
use crate::stream::{StreamBehaviour, StreamError, StreamNext};

/// Opens no stream while too many have failed: one stream is one call, which has succeeded when it ends well. One that is
/// dropped says nothing. Streams that are [slow](BreakerSettings::slow_rate) are those that flow for longer. While the breaker is half-open, a
/// stream has succeeded as soon as it has given [enough items](StreamBreaker::success_after), one if nothing is said: others need not wait
/// for the end of a healthy one.
///
/// ```
/// use millstream_mediator::{Mediator, StreamBreaker};
/// use millstream_resilience::BreakerSettings;
///
/// let breaker = StreamBreaker::new(BreakerSettings::default()).success_after(1_000).item_failures(0.1);
/// let by_tenant = StreamBreaker::by_key(1000, BreakerSettings::default(), |call| {
///     call.context().get::<String>().cloned().unwrap_or_default()
/// });
/// let builder = Mediator::builder().stream_behaviour(breaker).stream_behaviour(by_tenant);
/// # let _ = builder;
/// ```
#[derive(Clone)]
pub struct StreamBreaker(Rule);

/// What a stream is judged by.
#[derive(Clone)]
struct Rule {
    judge: Arc<Judge>,
    enough: Option<u64>,
    failed_max: Option<f64>,
}

impl StreamBreaker {
    /// One for each handler.
    pub fn new(settings: BreakerSettings) -> Self {
        StreamBreaker::with(Judge::each(settings))
    }

    /// This one for all.
    pub fn shared(breaker: CircuitBreaker) -> Self {
        StreamBreaker::with(Judge::shared(breaker))
    }

    /// One for each of at most `keys_max` keys, which `key` tells of a stream's call. Metrics show the worst of them.
    pub fn by_key(
        keys_max: usize,
        settings: BreakerSettings,
        key: impl Fn(&Call<'_>) -> String + Send + Sync + 'static,
    ) -> Self {
        StreamBreaker::with(Judge::by_key(keys_max, settings, key))
    }

    fn with(judge: Judge) -> Self {
        StreamBreaker(Rule { judge: Arc::new(judge), enough: None, failed_max: None })
    }

    /// A stream that has given so many items has succeeded, whatever becomes of it. Without it, one that fails has failed.
    ///
    /// # Panics
    /// If `items` is 0.
    #[must_use]
    pub fn success_after(mut self, items: u64) -> Self {
        assert!(items > 0, "a stream that has given nothing has not succeeded");
        self.0.enough = Some(items);
        self
    }

    /// A stream that ends well has still failed if more than this part of its items has, of those that are
    /// [passed on](crate::ItemErrors::pass) as errors. Without it that does not matter. Where a stream has succeeded by its
    /// [number of items](Self::success_after), or as a probe by its first, what comes later is not looked at.
    ///
    /// # Panics
    /// If `part` is not between 0 and 1.
    #[must_use]
    pub fn item_failures(mut self, part: f64) -> Self {
        assert!((0.0..=1.0).contains(&part), "a part of the items is between 0 and 1, not {part}");
        self.0.failed_max = Some(part);
        self
    }

    /// Errors are of the class that this function says, instead of their own.
    #[must_use]
    pub fn classify(mut self, classify: impl Fn(&Error) -> Class + Send + Sync + 'static) -> Self {
        self.0.judge = Arc::new(Arc::unwrap_or_clone(self.0.judge).classify(classify));
        self
    }
}

impl StreamBehaviour for StreamBreaker {
    type Flow<R: StreamRequest, N: StreamNext<R>> = Judged<N::Flow>;

    fn name(&self) -> Cow<'static, str> {
        let mut more = String::new();
        if let Some(items) = self.0.enough {
            more += &format!(", success after {items} items");
        }
        if let Some(part) = self.0.failed_max {
            more += &format!(", failure above {}% of the items", part * 100.0);
        }
        self.0.judge.name(&more)
    }

    fn of(&self, about: &About) -> Self {
        StreamBreaker(Rule { judge: Arc::new(self.0.judge.of(about)), ..self.0.clone() })
    }

    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        let judge = &self.0.judge;
        let breaker = judge.get(call);
        let mut permit = match breaker.try_acquire_owned() {
            Ok(permit) => permit,
            Err(open) => return Err(judge.rejected(call.about(), open)),
        };
        let probes = breaker.state() == BreakerState::HalfOpen;
        let enough = self.0.enough.unwrap_or(if probes { 1 } else { u64::MAX });
        let mut opening = pin!(permit.work(|| next.open(call, request)));
        match poll_fn(|cx| permit.poll(opening.as_mut(), cx)).await {
            Ok(pipe) => {
                let (permit, rule) = (Some(permit), self.0.clone());
                Ok(pipe.via("breaker", |upstream| Judged {
                    upstream,
                    permit,
                    rule,
                    enough,
                    items: 0,
                    failed: 0,
                }))
            }
            Err(error) => {
                judge.ended(permit, Some(judge.class(&error)));
                Err(error)
            }
        }
    }
}

impl fmt::Debug for StreamBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// A flow whose end a breaker hears of.
pub struct Judged<F> {
    upstream: F,
    /// Given back, without a word, when the stream is dropped.
    permit: Option<Permit>,
    rule: Rule,
    /// So many items are a success.
    enough: u64,
    items: u64,
    failed: u64,
}

impl<T, F: Flow<Item = Result<T, StreamError>, Token = ()>> Flow for Judged<F> {
    type Item = F::Item;
    type Token = ();

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, ()) -> ControlFlow<()>,
    {
        let Judged { upstream, permit, rule, enough, items, failed } = self;
        // A panic of the stream is its failure, one of whoever takes its items is not.
        permit.iter_mut().for_each(Permit::begin_work);
        let step = upstream.poll_drive(cx, max, &mut |item, ()| {
            permit.iter_mut().for_each(Permit::end_work);
            match &item {
                Ok(_) => *items += 1,
                Err(error) if error.is_last() => {
                    rule.ended(permit, (*items < *enough).then(|| rule.judge.class(error.error())))
                }
                Err(_) => *failed += 1,
            }
            let more = sink(item, ());
            permit.iter_mut().for_each(Permit::begin_work);
            more
        });
        permit.iter_mut().for_each(Permit::end_work);
        if step == Poll::Ready(Step::End) || (*items >= *enough && permit.is_some()) {
            let all = (*items + *failed) as f64;
            let too_many = rule.failed_max.is_some_and(|most| *failed as f64 > most * all);
            rule.ended(permit, too_many.then_some(Class::Transient));
        }
        step
    }
}

impl Rule {
    /// Tells how the stream ended, once.
    fn ended(&self, permit: &mut Option<Permit>, failed: Option<Class>) {
        if let Some(permit) = permit.take() {
            self.judge.ended(permit, failed);
        }
    }
}

//! No streams from what fails too often.

use std::borrow::Cow;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use millstream_flow::{Flow, Pipe, Step};
use millstream_resilience::{BreakerSettings, CircuitBreaker, Class, Permit};

use crate::behaviours::{
    BreakerCounted, REJECTED, Sharing, breaker_counted, breaker_of, register_breakers, register_own,
};
use crate::call::Call;
use crate::error::{ClassOf, Error};
use crate::message::{About, StreamRequest};
use crate::stream::{StreamBehaviour, StreamError, StreamNext};

/// Opens no stream while too many have failed: one stream is one call, which has succeeded when it ends well. One that is
/// dropped says nothing. Streams that are [slow](BreakerSettings::slow_rate) are those that flow for longer.
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
pub struct StreamBreaker {
    sharing: Sharing<CircuitBreaker>,
    settings: BreakerSettings,
    rule: Rule,
    counted: BreakerCounted,
}

/// What a stream is judged by.
#[derive(Clone)]
struct Rule {
    enough: u64,
    failed_max: Option<f64>,
    classify: Option<Arc<ClassOf>>,
}

impl Rule {
    #[cold]
    fn class(&self, error: &Error) -> Class {
        self.classify.as_ref().map_or_else(|| error.class_for_breakers(), |classify| classify(error))
    }
}

impl StreamBreaker {
    /// One for each handler.
    pub fn new(settings: BreakerSettings) -> Self {
        let each = settings.clone();
        let make = move |about: &About| CircuitBreaker::new(each.clone().name(about.name.clone()));
        StreamBreaker::with(Sharing::each(make), settings)
    }

    /// This one for all.
    pub fn shared(breaker: CircuitBreaker) -> Self {
        let settings = breaker.settings();
        StreamBreaker::with(Sharing::One(breaker), settings)
    }

    /// One for each of at most `keys_max` keys, which `key` tells of a stream's call. Metrics show the worst of them.
    pub fn by_key(
        keys_max: usize,
        settings: BreakerSettings,
        key: impl Fn(&Call<'_>) -> String + Send + Sync + 'static,
    ) -> Self {
        let each = settings.clone();
        let make = move |key: Option<&str>| CircuitBreaker::new(each.clone().name(key.unwrap_or("others")));
        StreamBreaker::with(Sharing::by_key(keys_max, make, key), settings)
    }

    fn with(sharing: Sharing<CircuitBreaker>, settings: BreakerSettings) -> Self {
        let rule = Rule { enough: u64::MAX, failed_max: None, classify: None };
        StreamBreaker { sharing, settings, rule, counted: BreakerCounted::default() }
    }

    /// A stream that fails after so many items has still succeeded. Without it none has.
    #[must_use]
    pub fn success_after(mut self, items: u64) -> Self {
        self.rule.enough = items;
        self
    }

    /// A stream that ends well has still failed if more than this part of its items has, of those that are
    /// [passed on](crate::ItemErrors::pass) as errors. Without it that does not matter.
    ///
    /// # Panics
    /// If `part` is not between 0 and 1.
    #[must_use]
    pub fn item_failures(mut self, part: f64) -> Self {
        assert!((0.0..=1.0).contains(&part), "a part of the items is between 0 and 1, not {part}");
        self.rule.failed_max = Some(part);
        self
    }

    /// Errors are of the class that this function says, instead of their own.
    #[must_use]
    pub fn classify(mut self, classify: impl Fn(&Error) -> Class + Send + Sync + 'static) -> Self {
        self.rule.classify = Some(Arc::new(classify));
        self
    }
}

impl StreamBehaviour for StreamBreaker {
    type Flow<R: StreamRequest, N: StreamNext<R>> = Judged<N::Flow>;

    fn name(&self) -> Cow<'static, str> {
        let mut name = format!("breaker {}", self.settings);
        if self.rule.enough < u64::MAX {
            name += &format!(", success after {} items", self.rule.enough);
        }
        if let Some(part) = self.rule.failed_max {
            name += &format!(", failure above {}% of the items", part * 100.0);
        }
        (name + self.sharing.words()).into()
    }

    fn of(&self, about: &About) -> Self {
        let sharing = self.sharing.of(about);
        let breakers = sharing.clone();
        register_breakers(about, move || breakers.list());
        if let (true, [breaker]) = (self.sharing.is_each(), &*sharing.list()) {
            register_own(about, breaker);
        }
        StreamBreaker { sharing, counted: breaker_counted(about), ..self.clone() }
    }

    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        let permit = match self.sharing.get(call).try_acquire_owned() {
            Ok(permit) => permit,
            Err(open) => {
                self.counted.add(REJECTED, 1);
                return Err(breaker_of(call.about(), open));
            }
        };
        match next.open(call, request).await {
            Ok(pipe) => {
                let (permit, rule) = (Some(permit), self.rule.clone());
                Ok(pipe.via("breaker", |upstream| Judged { upstream, permit, rule, items: 0, failed: 0 }))
            }
            Err(error) => {
                permit.end(Some(self.rule.class(&error)));
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
        let Judged { upstream, permit, rule, items, failed } = self;
        let step = upstream.poll_drive(cx, max, &mut |item, ()| {
            match &item {
                Ok(_) => *items += 1,
                Err(error) if error.is_last() => {
                    judge(permit, (*items < rule.enough).then(|| rule.class(error.error())))
                }
                Err(_) => *failed += 1,
            }
            sink(item, ())
        });
        if step == Poll::Ready(Step::End) {
            let all = (*items + *failed) as f64;
            let too_many = rule.failed_max.is_some_and(|most| *failed as f64 > most * all);
            judge(permit, too_many.then_some(Class::Transient));
        }
        step
    }
}

fn judge(permit: &mut Option<Permit>, failed: Option<Class>) {
    if let Some(permit) = permit.take() {
        permit.end(failed);
    }
}

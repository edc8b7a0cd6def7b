//! No calls to what fails too often.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use millstream_resilience::{BreakerSettings, BreakerState, CircuitBreaker, Class, Open, Permit};

use super::sharing::Sharing;
use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::{ClassOf, Error, ErrorKind};
use crate::message::{About, Request};
use crate::metrics::{Combine, MetricKind, Rare};

/// Fails calls with [`ErrorKind::CircuitOpen`] without making them, while too many have failed.
///
/// Transient and throttled errors count, and panics, though they are not retried; other permanent ones are answers, and dropped
/// calls say nothing; see [`CircuitBreaker`]. Put it around [`Retries`](super::Retries), and it counts what they could not save.
///
/// ```
/// use millstream_mediator::{Breaker, Mediator};
/// use millstream_resilience::BreakerSettings;
///
/// let each_its_own = Breaker::new(BreakerSettings::default().failure_rate(0.5).calls_min(5));
/// let by_tenant = Breaker::by_key(1000, BreakerSettings::default(), |call| {
///     call.context().get::<String>().cloned().unwrap_or_default()
/// });
/// let builder = Mediator::builder().behaviour(each_its_own).behaviour(by_tenant);
/// # let _ = builder;
/// ```
#[derive(Clone)]
pub struct Breaker(Judge);

impl Breaker {
    /// One for each handler.
    pub fn new(settings: BreakerSettings) -> Self {
        Breaker(Judge::each(settings))
    }

    /// This one for all: for handlers that call the same thing, and for control by hand.
    pub fn shared(breaker: CircuitBreaker) -> Self {
        Breaker(Judge::shared(breaker))
    }

    /// One for each of at most `keys_max` keys, which `key` tells of a call: a tenant, a host. Metrics show the worst of them, since
    /// labels of keys would have no bound.
    pub fn by_key(
        keys_max: usize,
        settings: BreakerSettings,
        key: impl Fn(&Call<'_>) -> String + Send + Sync + 'static,
    ) -> Self {
        Breaker(Judge::by_key(keys_max, settings, key))
    }

    /// Errors are of the class that this function says, instead of their own.
    #[must_use]
    pub fn classify(self, classify: impl Fn(&Error) -> Class + Send + Sync + 'static) -> Self {
        Breaker(self.0.classify(classify))
    }
}

/// What breakers of calls and of streams have in common: who shares them, what fails, and what is counted of it.
#[derive(Clone)]
pub(crate) struct Judge {
    sharing: Sharing<CircuitBreaker>,
    settings: BreakerSettings,
    classify: Option<Arc<ClassOf>>,
    /// Beside the breakers' own books, which say no types.
    counted: Rare<2>,
    /// The handler's alone, whose book says what it counted.
    own: bool,
}

const OPERATIONS: (&str, &str) = (
    "mediator_circuit_operations",
    "What circuit breakers counted of calls, and calls that they did not let through.",
);
const REJECTED: usize = 0;
const FAILED: usize = 1;

impl Judge {
    pub(crate) fn each(settings: BreakerSettings) -> Self {
        let each = settings.clone();
        let make = move |about: &About| CircuitBreaker::new(each.clone().name(about.name.clone()));
        Judge::new(Sharing::each(make), settings)
    }

    pub(crate) fn shared(breaker: CircuitBreaker) -> Self {
        let settings = breaker.settings();
        Judge::new(Sharing::One(breaker), settings)
    }

    pub(crate) fn by_key(
        keys_max: usize,
        settings: BreakerSettings,
        key: impl Fn(&Call<'_>) -> String + Send + Sync + 'static,
    ) -> Self {
        let each = settings.clone();
        let make = move |key: Option<&str>| CircuitBreaker::new(each.clone().name(key.unwrap_or("others")));
        Judge::new(Sharing::by_key(keys_max, make, key), settings)
    }

    fn new(sharing: Sharing<CircuitBreaker>, settings: BreakerSettings) -> Self {
        Judge { sharing, settings, classify: None, counted: Rare::default(), own: false }
    }

    pub(crate) fn classify(mut self, classify: impl Fn(&Error) -> Class + Send + Sync + 'static) -> Self {
        self.classify = Some(Arc::new(classify));
        self
    }

    /// What it is, with what else is to be said of it.
    pub(crate) fn name(&self, more: &str) -> Cow<'static, str> {
        format!("breaker {}{more}{}", self.settings, self.sharing.words()).into()
    }

    /// The one for a handler, which metrics show.
    pub(crate) fn of(&self, about: &About) -> Self {
        let sharing = self.sharing.of(about);
        register(about, sharing.clone());
        let own = self.sharing.is_each();
        if let (true, [breaker]) = (own, &*sharing.list()) {
            register_own(about, breaker);
        }
        let ((name, help), labels) = (OPERATIONS, [("type", about.label()), ("outcome", "")]);
        let counted = about.metrics().rare(name, help, &labels, "outcome", ["rejected", "failed"]);
        Judge { sharing, counted, own, ..self.clone() }
    }

    /// The breaker for a call.
    #[inline]
    pub(crate) fn get(&self, call: &Call<'_>) -> Cow<'_, CircuitBreaker> {
        self.sharing.get(call)
    }

    /// A call that was not let through.
    #[cold]
    pub(crate) fn rejected(&self, about: &About, open: Open) -> Error {
        self.counted.add(REJECTED, 1);
        Error::new(about, ErrorKind::CircuitOpen { retry_after: open.retry_after }).because(open)
    }

    /// What an error is to the breaker.
    #[cold]
    pub(crate) fn class(&self, error: &Error) -> Class {
        self.classify.as_ref().map_or_else(|| error.class_for_breakers(), |classify| classify(error))
    }

    /// A call has ended: well, or with an error of this class.
    #[inline]
    pub(crate) fn ended<B: Borrow<CircuitBreaker>>(&self, permit: Permit<B>, error: Option<Class>) {
        if error.is_some_and(Class::is_retryable) && !self.own {
            self.counted.add(FAILED, 1);
        }
        permit.end(error);
    }
}

/// Shows what breakers do: of several, the state that lets fewest calls through, and the highest rate. Several around one type
/// show as one in the same way.
fn register(about: &About, breakers: Sharing<CircuitBreaker>) {
    let (metrics, labels) = (about.metrics(), [("type", about.label())]);
    let states = breakers.clone();
    let help = "What the circuit breaker does: 0 closed, 1 half-open, 2 open.";
    let (gauge, most) = (MetricKind::Gauge, Combine::Most);
    metrics.read_combined("mediator_circuit_state", help, gauge, &labels, most, move || {
        let state = |breaker: &CircuitBreaker| match breaker.state() {
            BreakerState::Closed => 0.0,
            BreakerState::HalfOpen => 1.0,
            BreakerState::Open => 2.0,
        };
        states.list().iter().map(state).fold(0.0, f64::max)
    });
    let help = "The part of the calls in the circuit breaker's window that failed.";
    metrics.read_combined("mediator_circuit_failure_rate", help, gauge, &labels, most, move || {
        breakers.list().iter().map(|breaker| breaker.snapshot().failure_rate()).fold(0.0, f64::max)
    });
}

/// Shows how many calls a breaker that is one handler's own has counted: it keeps that itself, which costs calls nothing.
fn register_own(about: &About, breaker: &CircuitBreaker) {
    let (metrics, (name, help), sum) = (about.metrics(), OPERATIONS, Combine::Sum);
    let (labels, book) = ([("type", about.label()), ("outcome", "succeeded")], breaker.clone());
    metrics.read_combined(name, help, MetricKind::Counter, &labels, sum, move || {
        let snapshot = book.snapshot();
        (snapshot.calls_total - snapshot.failures_total) as f64
    });
    let (labels, book) = ([("type", about.label()), ("outcome", "failed")], breaker.clone());
    metrics.read_combined(name, help, MetricKind::Counter, &labels, sum, move || {
        book.snapshot().failures_total as f64
    });
}

impl Behaviour for Breaker {
    fn name(&self) -> Cow<'static, str> {
        self.0.name("")
    }

    fn of(&self, about: &About) -> Self {
        Breaker(self.0.of(about))
    }

    #[inline]
    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        let judge = &self.0;
        let breaker = judge.get(call);
        let mut permit = match breaker.try_acquire() {
            Ok(permit) => permit,
            Err(open) => return Err(judge.rejected(call.about(), open)),
        };
        let mut calling = pin!(permit.work(|| next.call(call, request)));
        let ended = poll_fn(|cx| permit.poll(calling.as_mut(), cx)).await;
        judge.ended(permit, ended.as_ref().err().map(|error| judge.class(error)));
        ended
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

//! No calls to what fails too often.

use std::borrow::Cow;
use std::fmt;

use millstream_resilience::{BreakerSettings, BreakerState, CircuitBreaker, Class, Open};
use std::sync::Arc;

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
pub struct Breaker {
    sharing: Sharing<CircuitBreaker>,
    settings: BreakerSettings,
    counted: BreakerCounted,
    classify: Option<Arc<ClassOf>>,
    /// The handler's alone, whose book says what it counted.
    own: bool,
}

impl Breaker {
    /// One for each handler.
    pub fn new(settings: BreakerSettings) -> Self {
        let each = settings.clone();
        let make = move |about: &About| CircuitBreaker::new(each.clone().name(about.name.clone()));
        Breaker {
            sharing: Sharing::each(make),
            settings,
            counted: Rare::default(),
            classify: None,
            own: false,
        }
    }

    /// This one for all: for handlers that call the same thing, and for control by hand.
    pub fn shared(breaker: CircuitBreaker) -> Self {
        let settings = breaker.settings();
        Breaker {
            sharing: Sharing::One(breaker),
            settings,
            counted: Rare::default(),
            classify: None,
            own: false,
        }
    }

    /// One for each of at most `keys_max` keys, which `key` tells of a call: a tenant, a host. Metrics show the worst of them, since
    /// labels of keys would have no bound.
    pub fn by_key(
        keys_max: usize,
        settings: BreakerSettings,
        key: impl Fn(&Call<'_>) -> String + Send + Sync + 'static,
    ) -> Self {
        let each = settings.clone();
        let make = move |key: Option<&str>| CircuitBreaker::new(each.clone().name(key.unwrap_or("others")));
        let sharing = Sharing::by_key(keys_max, make, key);
        Breaker { sharing, settings, counted: Rare::default(), classify: None, own: false }
    }

    /// Errors are of the class that this function says, instead of their own.
    #[must_use]
    pub fn classify(mut self, classify: impl Fn(&Error) -> Class + Send + Sync + 'static) -> Self {
        self.classify = Some(Arc::new(classify));
        self
    }

    fn class(&self, error: &Error) -> Class {
        self.classify.as_ref().map_or_else(|| error.class_for_breakers(), |classify| classify(error))
    }
}

/// A call that a breaker did not let through.
#[cold]
pub(crate) fn breaker_of(about: &About, open: Open) -> Error {
    Error::new(about, ErrorKind::CircuitOpen { retry_after: open.retry_after }).because(open)
}

/// Shows in the metrics what breakers do: of several, the state that lets fewest calls through, and the highest rate. Several
/// around one type show as one in the same way.
pub(crate) fn register_breakers(
    about: &About,
    breakers: impl Fn() -> Vec<CircuitBreaker> + Clone + Send + Sync + 'static,
) {
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
        states().iter().map(state).fold(0.0, f64::max)
    });
    let help = "The part of the calls in the circuit breaker's window that failed.";
    metrics.read_combined("mediator_circuit_failure_rate", help, gauge, &labels, most, move || {
        breakers().iter().map(|breaker| breaker.snapshot().failure_rate()).fold(0.0, f64::max)
    });
}

const OPERATIONS: (&str, &str) = (
    "mediator_circuit_operations",
    "What circuit breakers counted of calls, and calls that they did not let through.",
);

/// What is counted beside the breakers' own books, which say no types.
pub(crate) type BreakerCounted = Rare<2>;
pub(crate) const REJECTED: usize = 0;
const FAILED: usize = 1;

pub(crate) fn breaker_counted(about: &About) -> BreakerCounted {
    let labels = [("type", about.label()), ("outcome", "")];
    about.metrics().rare(OPERATIONS.0, OPERATIONS.1, &labels, "outcome", ["rejected", "failed"])
}

/// Shows how many calls a breaker that is one handler's own has counted: it keeps that itself, which costs calls nothing.
pub(crate) fn register_own(about: &About, breaker: &CircuitBreaker) {
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
        format!("breaker {}{}", self.settings, self.sharing.words()).into()
    }

    fn of(&self, about: &About) -> Self {
        let sharing = self.sharing.of(about);
        let breakers = sharing.clone();
        register_breakers(about, move || breakers.list());
        let own = self.sharing.is_each();
        if let (true, [breaker]) = (own, &*sharing.list()) {
            register_own(about, breaker);
        }
        let counted = breaker_counted(about);
        Breaker { sharing, settings: self.settings.clone(), counted, classify: self.classify.clone(), own }
    }

    #[inline]
    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        let breaker = self.sharing.get(call);
        let permit = match breaker.try_acquire() {
            Ok(permit) => permit,
            Err(open) => {
                self.counted.add(REJECTED, 1);
                return Err(breaker_of(call.about(), open));
            }
        };
        let ended = next.call(call, request).await;
        let class = ended.as_ref().err().map(|error| self.class(error));
        if class.is_some_and(Class::is_retryable) && !self.own {
            self.counted.add(FAILED, 1);
        }
        permit.end(class);
        ended
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker").field("settings", &self.settings).finish_non_exhaustive()
    }
}

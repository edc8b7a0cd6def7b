//! Calls that are made again.

use std::borrow::Cow;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use millstream_resilience::{Class, Classify, Retry, Stop, noting};
use tokio::time::sleep;

use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::{ClassOf, Error, class_word};
use crate::message::{About, Request};
use crate::metrics::{Histogram, Rare};

/// Makes a call again that failed, as a [`Retry`] says, if its request [may be repeated](Request::repeat): others pass as if
/// it were not there.
///
/// Errors are of the class that they say themselves, whatever behaviours are in between; what is permanent or cancelled is
/// not tried again. The last try's error is the call's.
///
/// ```
/// use millstream_mediator::{Mediator, Retries};
/// use millstream_resilience::{Backoff, Retry};
/// use std::time::Duration;
///
/// let retry = Retry::new(4).backoff(Backoff::exponential(Duration::from_millis(200)).full_jitter());
/// let builder = Mediator::builder().behaviour(Retries::new(retry));
/// # let _ = builder;
/// ```
#[derive(Clone)]
pub struct Retries {
    retry: Retry,
    classify: Option<Arc<ClassOf>>,
    counted: Counted,
}

impl Retries {
    /// Tries as `retry` says.
    pub fn new(retry: Retry) -> Self {
        Retries { retry, classify: None, counted: Counted::default() }
    }

    /// Errors are of the class that this function says, instead of their own.
    #[must_use]
    pub fn classify(mut self, classify: impl Fn(&Error) -> Class + Send + Sync + 'static) -> Self {
        self.classify = Some(Arc::new(classify));
        self
    }

    fn class(&self, error: &Error) -> Class {
        self.classify.as_ref().map_or_else(|| error.class(), |classify| classify(error))
    }
}

/// What retries count.
#[derive(Clone, Default)]
pub(crate) struct Counted {
    again: Rare<4>,
    ended: Rare<3>,
    durations: Option<Histogram>,
}

const CLASSES: [Class; 4] =
    [Class::Transient, Class::Permanent, Class::Throttled { retry_after: None }, Class::Cancelled];
const ENDED: [&str; 3] = ["saved", "given_up", "unrepeatable"];
const SAVED: usize = 0;
const GIVEN_UP: usize = 1;
const UNREPEATABLE: usize = 2;

impl Counted {
    pub(crate) fn of(about: &About) -> Self {
        let metrics = about.metrics();
        let help = "Tries after the first one, and how calls that had some ended.";
        let name = "mediator_retry_attempts_total";
        let labels = [("operation", about.label()), ("outcome", "again"), ("class", "")];
        let again = metrics.rare(name, help, &labels, "class", CLASSES.map(class_word));
        let ended = metrics.rare(name, help, &labels, "outcome", ENDED);
        let labels = [("operation", about.label())];
        let help = "How long calls took that succeeded after the first try.";
        let durations = metrics.histogram(
            "mediator_retry_success_duration_seconds",
            help,
            &labels,
            &Histogram::LONG_BOUNDS,
        );
        Counted { again, ended, durations: Some(durations) }
    }

    /// Another try begins, after an error of this class.
    pub(crate) fn again(&self, class: Class) {
        let at = match class {
            Class::Transient => 0,
            Class::Permanent => 1,
            Class::Throttled { .. } => 2,
            Class::Cancelled => 3,
        };
        self.again.add(at, 1);
    }

    pub(crate) fn saved(&self, elapsed: Duration) {
        self.ended.add(SAVED, 1);
        if let Some(durations) = &self.durations {
            durations.observe(elapsed);
        }
    }

    /// No try follows. What could not be tried again by its error's class counts only if it was `tried` again before.
    pub(crate) fn given_up(&self, stop: Stop, tried: bool) {
        if tried || !matches!(stop, Stop::Permanent | Stop::Cancelled) {
            self.ended.add(GIVEN_UP, 1);
        }
    }

    /// No try follows an error of this class, because the request may not be repeated once more.
    pub(crate) fn unrepeatable(&self, class: Class, tried: bool) {
        if class.is_retryable() {
            self.ended.add(UNREPEATABLE, 1);
        } else if tried {
            self.ended.add(GIVEN_UP, 1);
        }
    }
}

impl Behaviour for Retries {
    fn name(&self) -> Cow<'static, str> {
        format!("retry {}", self.retry).into()
    }

    fn of(&self, about: &About) -> Self {
        Retries { retry: self.retry.clone(), classify: self.classify.clone(), counted: Counted::of(about) }
    }

    #[inline]
    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        let again = if self.retry.attempts_max() > 1 { request.repeat() } else { None };
        let mut began = None;
        let response = {
            let mut first = pin!(next.call(call, request));
            if again.is_some() { noting(&mut began, first.as_mut()).await } else { first.await }
        };
        let mut error = match response {
            Ok(response) => {
                self.retry.succeeded();
                return Ok(response);
            }
            Err(error) => error,
        };
        let Some(mut again) = again else {
            if self.retry.attempts_max() > 1 {
                self.counted.unrepeatable(self.class(&error), false);
            }
            return Err(error);
        };
        let (mut attempts, mut tried) = (self.retry.attempts(began), false);
        loop {
            let class = self.class(&error);
            let delay = match attempts.failed(&self.retry, class) {
                Ok(delay) => delay,
                Err(stop) => {
                    self.counted.given_up(stop, tried);
                    return Err(error);
                }
            };
            tried = true;
            self.counted.again(class);
            sleep(delay).await;
            let next_one = again.repeat();
            match next.call(call, again).await {
                Ok(response) => {
                    self.retry.succeeded();
                    self.counted.saved(attempts.elapsed());
                    return Ok(response);
                }
                Err(failed) => error = failed,
            }
            match next_one {
                Some(next_one) => again = next_one,
                None => {
                    self.counted.unrepeatable(self.class(&error), tried);
                    return Err(error);
                }
            }
        }
    }
}

impl fmt::Debug for Retries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retries").field("retry", &self.retry).finish_non_exhaustive()
    }
}

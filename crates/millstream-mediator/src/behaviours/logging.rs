//! What is told of calls.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millstream_flow::chain;
use tracing::{Instrument, Level};

use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::message::{About, Request};

/// Makes a `tracing` span of each call, with its message, handler, kind and correlation, and tells how the call ended. What a
/// message holds is never told.
///
/// Target is `millstream_mediator::request`. While nobody listens to it, a call costs a look at a flag.
///
/// ```
/// use millstream_mediator::{Logging, Mediator};
/// use tracing::Level;
///
/// let logging = Logging::new().success(Level::INFO).sample(100); // every hundredth success, all failures
/// let builder = Mediator::builder().behaviour(logging);
/// # let _ = builder;
/// ```
#[derive(Debug, Clone)]
pub struct Logging {
    success: Level,
    refusal: Level,
    failure: Level,
    one_in: u64,
    count: Arc<AtomicU64>,
}

impl Logging {
    /// Successes at `DEBUG`, refusals (invalid, denied, duplicate, throttled, full) at `INFO`, failures at `WARN`.
    pub fn new() -> Self {
        Logging {
            success: Level::DEBUG,
            refusal: Level::INFO,
            failure: Level::WARN,
            one_in: 1,
            count: Arc::default(),
        }
    }

    /// At which level a success is told.
    #[must_use]
    pub fn success(mut self, level: Level) -> Self {
        self.success = level;
        self
    }

    /// At which level it is told that a call did not reach its handler because of what it was or when it came.
    #[must_use]
    pub fn refusal(mut self, level: Level) -> Self {
        self.refusal = level;
        self
    }

    /// At which level a failure is told.
    #[must_use]
    pub fn failure(mut self, level: Level) -> Self {
        self.failure = level;
        self
    }

    /// Tells of one success in so many.
    ///
    /// # Panics
    /// If it is 0.
    #[must_use]
    pub fn sample(mut self, one_in: u64) -> Self {
        assert!(one_in > 0, "one in none is none");
        self.one_in = one_in;
        self
    }

    fn level(&self, error: &Error) -> Level {
        match error.kind() {
            ErrorKind::Invalid
            | ErrorKind::Denied
            | ErrorKind::Duplicate
            | ErrorKind::Throttled { .. }
            | ErrorKind::Full => self.refusal,
            _ => self.failure,
        }
    }

    #[cold]
    fn told<T>(&self, ended: &Result<T, Error>) {
        match ended {
            Ok(_) => {
                if self.count.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.one_in) {
                    log!(self.success, "millstream_mediator::request", outcome = "ok", "a call has ended");
                }
            }
            Err(error) => {
                let (outcome, why) = (error.kind().word(), chain(error));
                log!(
                    self.level(error),
                    "millstream_mediator::request",
                    outcome,
                    error = why,
                    "a call has failed"
                );
            }
        }
    }
}

impl Default for Logging {
    fn default() -> Self {
        Logging::new()
    }
}

/// An event at a level that is not known when it is compiled.
macro_rules! log {
    ($level:expr, $target:literal, $($rest:tt)*) => {
        match $level {
            ::tracing::Level::ERROR => ::tracing::event!(target: $target, ::tracing::Level::ERROR, $($rest)*),
            ::tracing::Level::WARN => ::tracing::event!(target: $target, ::tracing::Level::WARN, $($rest)*),
            ::tracing::Level::INFO => ::tracing::event!(target: $target, ::tracing::Level::INFO, $($rest)*),
            ::tracing::Level::DEBUG => ::tracing::event!(target: $target, ::tracing::Level::DEBUG, $($rest)*),
            ::tracing::Level::TRACE => ::tracing::event!(target: $target, ::tracing::Level::TRACE, $($rest)*),
        }
    };
}
pub(crate) use log;

impl Behaviour for Logging {
    fn name(&self) -> Cow<'static, str> {
        match self.one_in {
            1 => "logging".into(),
            n => format!("logging 1 in {n}").into(),
        }
    }

    fn of(&self, _: &About) -> Self {
        Logging { count: Arc::default(), ..self.clone() }
    }

    #[inline]
    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        if !tracing::event_enabled!(target: "millstream_mediator::request", Level::ERROR) {
            return next.call(call, request).await;
        }
        let About { name, kind, handler, .. } = &**call.about();
        let span = tracing::info_span!(
            target: "millstream_mediator::request",
            "call",
            message_type = %name,
            %handler,
            %kind,
            correlation = %call.correlation(),
        );
        async {
            let ended = next.call(call, request).await;
            self.told(&ended);
            ended
        }
        .instrument(span)
        .await
    }
}

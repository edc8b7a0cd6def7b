//! What a kind of service has around its requests.

use std::fmt;
use std::time::Duration;

use tracing::Level;

use super::{BreakerPreset, ResourcePreset, RetryPreset};
use crate::behaviour::{Bare, Behaviour, Behaviours, Inside};
use crate::behaviours::{Admission, Breaker, Logging, Retries, Timeout, Timing};
use crate::builder::Builder;
use crate::memory::Memory;
use crate::stream::StreamBehaviours;

/// What kind of service it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Answers people: slow above 200 ms; retries as for a database, a balanced breaker and balanced memory.
    Web,
    /// Answers and asks other services: slow above 500 ms; retries and a breaker as for their interfaces, little memory.
    Microservice,
    /// Works through what nobody waits for: slow above 5 s; many retries, a patient breaker, little memory.
    Background,
}

/// Where it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// Tells of every success at `INFO`, and has the memory of [`ResourcePreset::Development`].
    Development,
    /// Tells of every success at `DEBUG`.
    Staging,
    /// Tells of one success in a hundred at `DEBUG`.
    Production,
}

/// What stands around requests, as fits a kind of service and where it runs. Outermost first: logging, timing, admission,
/// breaker, timeout, retries; so that retries are tried within the timeout, and the breaker counts what they could not
/// save, and what hangs until its time is over.
///
/// It prints itself, a behaviour a line.
///
/// ```
/// use millstream_mediator::Mediator;
/// use millstream_mediator::presets::{Environment, Profile, Service};
///
/// // `millstream::mediator::process_memory` looks at the process; here nothing is known of it.
/// let profile = Profile::new(Service::Web, Environment::Production, || None);
/// println!("{profile}");
/// let builder = Mediator::builder().profile(&profile);
/// # let _ = builder;
/// ```
#[derive(Debug, Clone)]
pub struct Profile {
    logging: Logging,
    timing: Timing,
    memory: Memory,
    timeout: Timeout,
    breaker: BreakerPreset,
    retry: RetryPreset,
}

impl Profile {
    /// How long a request may take, if it is not said.
    pub const TIMEOUT: Duration = Duration::from_secs(30);

    /// That of a kind of service in a place. A request may take 30 s. What admission goes by is how many bytes the process uses,
    /// as `probe` finds it, asked as often as the [preset](ResourcePreset) says; `None` stands for not known.
    pub fn new(
        service: Service,
        environment: Environment,
        probe: impl Fn() -> Option<u64> + Send + Sync + 'static,
    ) -> Self {
        let resource = ResourcePreset::of(service, environment);
        Profile::within(service, environment, resource.memory_probed(probe))
    }

    /// The same within a budget of memory with other numbers, or one that streams share.
    pub fn within(service: Service, environment: Environment, memory: Memory) -> Self {
        let (slow, retry, breaker) = match service {
            Service::Web => (200, RetryPreset::Database, BreakerPreset::Balanced),
            Service::Microservice => (500, RetryPreset::HttpApi, BreakerPreset::ExternalApi),
            Service::Background => (5000, RetryPreset::Aggressive, BreakerPreset::Resilient),
        };
        let logging = match environment {
            Environment::Development => Logging::new().success(Level::INFO),
            Environment::Staging => Logging::new(),
            Environment::Production => Logging::new().sample(100),
        };
        let timing = Timing::new().slow(Duration::from_millis(slow));
        Profile { logging, timing, memory, timeout: Timeout::new(Profile::TIMEOUT), breaker, retry }
    }

    /// With these limits for requests.
    #[must_use]
    pub fn timeout(mut self, timeout: Timeout) -> Self {
        self.timeout = timeout;
        self
    }

    /// With a warning of calls that take longer than this.
    #[must_use]
    pub fn slow(mut self, longer_than: Duration) -> Self {
        self.timing = self.timing.slow(longer_than);
        self
    }

    /// With these retries.
    #[must_use]
    pub fn retry(mut self, retry: RetryPreset) -> Self {
        self.retry = retry;
        self
    }

    /// With this breaker.
    #[must_use]
    pub fn breaker(mut self, breaker: BreakerPreset) -> Self {
        self.breaker = breaker;
        self
    }

    fn parts(&self) -> (Logging, Timing, Admission, Timeout, Breaker, Retries) {
        let admission = Admission::new(self.memory.clone());
        (
            self.logging.clone(),
            self.timing.clone(),
            admission,
            self.timeout.clone(),
            self.breaker.behaviour(),
            self.retry.behaviour(),
        )
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (logging, timing, admission, timeout, breaker, retries) = self.parts();
        for name in
            [logging.name(), timing.name(), admission.name(), breaker.name(), timeout.name(), retries.name()]
        {
            writeln!(f, "{name}")?;
        }
        Ok(())
    }
}

/// What a profile adds.
pub type Profiled<B = Bare> =
    Inside<Inside<Inside<Inside<Inside<Inside<B, Logging>, Timing>, Admission>, Breaker>, Timeout>, Retries>;

impl<B: Behaviours, S: StreamBehaviours> Builder<B, S> {
    /// Stands a profile's behaviours around all requests.
    pub fn profile(self, profile: &Profile) -> Builder<Profiled<B>, S> {
        let (logging, timing, admission, timeout, breaker, retries) = profile.parts();
        self.behaviour(logging)
            .behaviour(timing)
            .behaviour(admission)
            .behaviour(breaker)
            .behaviour(timeout)
            .behaviour(retries)
    }
}

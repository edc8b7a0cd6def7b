//! So many calls at once, and so many that wait.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use millstream_resilience as resilience;

use super::sharing::{Sharing, Who};
use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::message::{About, Request};
use crate::metrics::{Combine, MetricKind};

/// Lets so many calls run at once and so many wait, and fails the others with [`ErrorKind::Full`]. Around the opening of
/// streams it bounds those that are being opened; for those that flow there is
/// [`StreamBulkhead`](crate::StreamBulkhead).
#[derive(Clone)]
pub struct Bulkhead(Places);

impl Bulkhead {
    /// One for each handler, with places for so many calls.
    ///
    /// # Panics
    /// If `concurrent` is 0.
    pub fn new(concurrent: usize) -> Self {
        assert!(concurrent > 0, "without a place nothing is ever called");
        Bulkhead(Places::new(concurrent))
    }

    /// How many calls may wait for a place; none if it is not said.
    #[must_use]
    pub fn queue(self, queue: usize) -> Self {
        Bulkhead(self.0.queue(queue))
    }

    /// How long a call may wait for a place; as long as its caller if it is not said.
    #[must_use]
    pub fn wait_max(self, wait: Duration) -> Self {
        Bulkhead(self.0.wait_max(wait))
    }

    /// The same places for all handlers.
    #[must_use]
    pub fn shared(self) -> Self {
        Bulkhead(self.0.share(Who::All))
    }

    /// The same places for the calls of one key, for at most `keys_max` keys. Metrics show the fullest of them, and all that wait.
    #[must_use]
    pub fn by_key(self, keys_max: usize, key: impl Fn(&Call<'_>) -> String + Send + Sync + 'static) -> Self {
        Bulkhead(self.0.share(Who::by_key(keys_max, key)))
    }
}

/// What bulkheads of calls and of streams have in common: how many places there are, and who shares them.
#[derive(Clone)]
pub(crate) struct Places {
    sharing: Sharing<resilience::Bulkhead>,
    who: Who,
    concurrent: usize,
    queue: usize,
    wait_max: Option<Duration>,
}

impl Places {
    pub(crate) fn new(concurrent: usize) -> Self {
        Places::make(Who::Each, concurrent, 0, None)
    }

    pub(crate) fn queue(self, queue: usize) -> Self {
        Places::make(self.who, self.concurrent, queue, self.wait_max)
    }

    pub(crate) fn wait_max(self, wait: Duration) -> Self {
        Places::make(self.who, self.concurrent, self.queue, Some(wait))
    }

    pub(crate) fn share(self, who: Who) -> Self {
        Places::make(who, self.concurrent, self.queue, self.wait_max)
    }

    fn make(who: Who, concurrent: usize, queue: usize, wait_max: Option<Duration>) -> Self {
        let sharing = who.share(move || {
            let places = resilience::Bulkhead::new(concurrent).queue(queue);
            match wait_max {
                Some(wait) => places.wait_max(wait),
                None => places,
            }
        });
        Places { sharing, who, concurrent, queue, wait_max }
    }

    /// What is wrong with how they are set.
    pub(crate) fn problem(&self) -> Option<String> {
        let idle = self.wait_max.is_some() && self.queue == 0;
        idle.then(|| "`wait_max` has no effect without a `queue` to wait in: give both, or neither".into())
    }

    /// What they are, for those that are called so.
    pub(crate) fn name(&self, taken: &str) -> Cow<'static, str> {
        let Places { sharing, concurrent, queue, wait_max, .. } = self;
        let wait = wait_max.map(|wait| format!(" up to {wait:?}")).unwrap_or_default();
        let queue = if *queue > 0 { format!(", {queue} wait{wait}") } else { String::new() };
        format!("bulkhead {concurrent} {taken}{queue}{}", sharing.words()).into()
    }

    /// Those for a handler, which metrics show: the fullest of several, and how many wait for all of them. Several bulkheads around
    /// one type show as one in the same way.
    pub(crate) fn of(&self, about: &About) -> Self {
        let (sharing, concurrent) = (self.sharing.of(about), self.concurrent);
        let places = sharing.clone();
        let running = move || places.list().iter().map(resilience::Bulkhead::running).max().unwrap_or(0);
        register_resource(about, "calls", move || (concurrent as f64, running() as f64));
        let (places, sum) = (sharing.clone(), Combine::Sum);
        let (labels, help) = ([("type", about.label())], "Calls that wait for a place.");
        let metrics = about.metrics();
        metrics.read_combined("mediator_requests_queued", help, MetricKind::Gauge, &labels, sum, move || {
            places.list().iter().map(resilience::Bulkhead::waiting).sum::<usize>() as f64
        });
        Places { sharing, ..self.clone() }
    }

    /// Those for a call.
    #[inline]
    pub(crate) fn get(&self, call: &Call<'_>) -> Cow<'_, resilience::Bulkhead> {
        self.sharing.get(call)
    }
}

/// A call that has found no place.
#[cold]
pub(crate) fn full(call: &Call<'_>, full: resilience::Full) -> Error {
    Error::new(call.about(), ErrorKind::Full).because(full)
}

/// Shows of a resource how much is free, and the part that is used; `read` says how much there is, and how much of it is used. Of
/// several around one type the least is free.
pub(crate) fn register_resource(
    about: &About,
    resource: &str,
    read: impl Fn() -> (f64, f64) + Clone + Send + Sync + 'static,
) {
    let (metrics, labels) = (about.metrics(), [("type", about.label()), ("resource", resource)]);
    let (gauge, least, most) = (MetricKind::Gauge, Combine::Least, Combine::Most);
    let available = read.clone();
    let help = "Of a resource, how much is free: places for calls, bytes of memory.";
    metrics.read_combined("mediator_resources_available", help, gauge, &labels, least, move || {
        let (all, used) = available();
        (all - used).max(0.0)
    });
    let help = "Of a resource, the part that is used, from 0 to 1.";
    metrics.read_combined("mediator_resources_utilization", help, gauge, &labels, most, move || {
        let (all, used) = read();
        used / all
    });
}

impl Behaviour for Bulkhead {
    fn name(&self) -> Cow<'static, str> {
        self.0.name("at once")
    }

    fn of(&self, about: &About) -> Self {
        Bulkhead(self.0.of(about))
    }

    fn problem(&self) -> Option<String> {
        self.0.problem()
    }

    #[inline]
    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        let places = self.0.get(call);
        let _place = places.enter().await.map_err(|error| full(call, error))?;
        next.call(call, request).await
    }
}

impl fmt::Debug for Bulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

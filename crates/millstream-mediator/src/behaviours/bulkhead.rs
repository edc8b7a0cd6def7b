//! So many calls at once, and so many that wait.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use millstream_resilience::Bulkhead as Places;

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
pub struct Bulkhead {
    sharing: Sharing<Places>,
    who: Who,
    concurrent: usize,
    queue: usize,
    wait_max: Option<Duration>,
}

impl Bulkhead {
    /// One for each handler, with places for so many calls.
    ///
    /// # Panics
    /// If `concurrent` is 0.
    pub fn new(concurrent: usize) -> Self {
        assert!(concurrent > 0, "without a place nothing is ever called");
        Bulkhead::make(Who::Each, concurrent, 0, None)
    }

    fn make(who: Who, concurrent: usize, queue: usize, wait_max: Option<Duration>) -> Self {
        let sharing = who.share(move || {
            let places = Places::new(concurrent).queue(queue);
            match wait_max {
                Some(wait) => places.wait_max(wait),
                None => places,
            }
        });
        Bulkhead { sharing, who, concurrent, queue, wait_max }
    }

    /// How many calls may wait for a place; none if it is not said.
    #[must_use]
    pub fn queue(self, queue: usize) -> Self {
        Bulkhead::make(self.who, self.concurrent, queue, self.wait_max)
    }

    /// How long a call may wait for a place; as long as its caller if it is not said.
    #[must_use]
    pub fn wait_max(self, wait: Duration) -> Self {
        Bulkhead::make(self.who, self.concurrent, self.queue, Some(wait))
    }

    /// The same places for all handlers.
    #[must_use]
    pub fn shared(self) -> Self {
        Bulkhead::make(Who::All, self.concurrent, self.queue, self.wait_max)
    }

    /// The same places for the calls of one key, for at most `keys_max` keys. Metrics show the fullest of them, and all that wait.
    #[must_use]
    pub fn by_key(self, keys_max: usize, key: impl Fn(&Call<'_>) -> String + Send + Sync + 'static) -> Self {
        Bulkhead::make(Who::by_key(keys_max, key), self.concurrent, self.queue, self.wait_max)
    }
}

/// Shows how full they are: the fullest of several, and how many wait for all of them. Several bulkheads around one type show as
/// one in the same way.
pub(crate) fn register(
    about: &About,
    concurrent: usize,
    places: impl Fn() -> Vec<Places> + Clone + Send + Sync + 'static,
) {
    let (metrics, labels) = (about.metrics(), [("type", about.label()), ("resource", "calls")]);
    let running = |places: &[Places]| places.iter().map(Places::running).max().unwrap_or(0) as f64;
    let read = places.clone();
    let help = "Of a resource, how much is free: places for calls, bytes of memory.";
    let least = Combine::Least;
    metrics.read_combined(
        "mediator_resources_available",
        help,
        MetricKind::Gauge,
        &labels,
        least,
        move || concurrent as f64 - running(&read()),
    );
    let read = places.clone();
    let help = "Of a resource, the part that is used, from 0 to 1.";
    let most = Combine::Most;
    metrics.read_combined(
        "mediator_resources_utilization",
        help,
        MetricKind::Gauge,
        &labels,
        most,
        move || running(&read()) / concurrent as f64,
    );
    let help = "Calls that wait for a place.";
    let (labels, sum) = (&labels[..1], Combine::Sum);
    metrics.read_combined("mediator_requests_queued", help, MetricKind::Gauge, labels, sum, move || {
        places().iter().map(Places::waiting).sum::<usize>() as f64
    });
}

impl Behaviour for Bulkhead {
    fn name(&self) -> Cow<'static, str> {
        let Bulkhead { sharing, concurrent, queue, wait_max, .. } = self;
        let wait = wait_max.map(|wait| format!(" up to {wait:?}")).unwrap_or_default();
        let queue = if *queue > 0 { format!(", {queue} wait{wait}") } else { String::new() };
        format!("bulkhead {concurrent} at once{queue}{}", sharing.words()).into()
    }

    fn of(&self, about: &About) -> Self {
        let sharing = self.sharing.of(about);
        let places = sharing.clone();
        register(about, self.concurrent, move || places.list());
        Bulkhead { sharing, ..self.clone() }
    }

    #[inline]
    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        let places = self.sharing.get(call);
        let acquired = places.enter().await;
        let _place = acquired.map_err(|full| Error::new(call.about(), ErrorKind::Full).because(full))?;
        next.call(call, request).await
    }
}

impl fmt::Debug for Bulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

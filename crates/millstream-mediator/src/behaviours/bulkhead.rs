//! So many calls at once, and so many that wait.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use millstream_resilience::Bulkhead as Places;

use super::sharing::Sharing;
use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::message::{About, Request};
use crate::metrics::MetricKind;

/// Lets so many calls run at once and so many wait, and fails the others with [`ErrorKind::Full`]. Around the opening of
/// streams it bounds those that are being opened; for those that flow there is
/// [`StreamBulkhead`](crate::StreamBulkhead).
#[derive(Clone)]
pub struct Bulkhead {
    sharing: Sharing<Places>,
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
        Bulkhead::each(concurrent, 0, None)
    }

    fn each(concurrent: usize, queue: usize, wait_max: Option<Duration>) -> Self {
        let sharing = Sharing::each(move |_| places(concurrent, queue, wait_max));
        Bulkhead { sharing, concurrent, queue, wait_max }
    }

    /// How many calls may wait for a place; none if it is not said.
    #[must_use]
    pub fn queue(self, queue: usize) -> Self {
        Bulkhead::each(self.concurrent, queue, self.wait_max)
    }

    /// How long a call may wait for a place; as long as its caller if it is not said.
    #[must_use]
    pub fn wait_max(self, wait: Duration) -> Self {
        Bulkhead::each(self.concurrent, self.queue, Some(wait))
    }

    /// The same places for all handlers.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.sharing = Sharing::One(places(self.concurrent, self.queue, self.wait_max));
        self
    }

    /// The same places for the calls of one key, for at most `keys_max` keys.
    #[must_use]
    pub fn by_key(
        mut self,
        keys_max: usize,
        key: impl Fn(&Call<'_>) -> String + Send + Sync + 'static,
    ) -> Self {
        let Bulkhead { concurrent, queue, wait_max, .. } = self;
        self.sharing = Sharing::by_key(keys_max, move |_| places(concurrent, queue, wait_max), key);
        self
    }
}

fn places(concurrent: usize, queue: usize, wait_max: Option<Duration>) -> Places {
    let places = Places::new(concurrent).queue(queue);
    match wait_max {
        Some(wait) => places.wait_max(wait),
        None => places,
    }
}

/// Shows how full it is.
pub(crate) fn register(about: &About, places: &Places, concurrent: usize) {
    let (metrics, labels) = (about.metrics(), [("type", about.label()), ("resource", "calls")]);
    let each = [
        (
            "mediator_resources_available",
            "Of a resource, how much is free: places for calls, bytes of memory.",
        ),
        ("mediator_resources_utilization", "Of a resource, the part that is used, from 0 to 1."),
        ("mediator_requests_queued", "Calls that wait for a place."),
    ];
    let reads: [fn(&Places, f64) -> f64; 3] = [
        |places, concurrent| concurrent - places.running() as f64,
        |places, concurrent| places.running() as f64 / concurrent,
        |places, _| places.waiting() as f64,
    ];
    for ((name, help), read) in each.into_iter().zip(reads) {
        let (places, concurrent) = (places.clone(), concurrent as f64);
        let labels = if name == "mediator_requests_queued" { &labels[..1] } else { &labels[..] };
        metrics.read(name, help, MetricKind::Gauge, labels, move || read(&places, concurrent));
    }
}

impl Behaviour for Bulkhead {
    fn name(&self) -> Cow<'static, str> {
        let Bulkhead { sharing, concurrent, queue, wait_max } = self;
        let wait = wait_max.map(|wait| format!(" up to {wait:?}")).unwrap_or_default();
        let queue = if *queue > 0 { format!(", {queue} wait{wait}") } else { String::new() };
        format!("bulkhead {concurrent} at once{queue}{}", sharing.words()).into()
    }

    fn of(&self, about: &About) -> Self {
        let sharing = self.sharing.of(about);
        if let Sharing::One(places) = &sharing {
            register(about, places, self.concurrent);
        }
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
        let acquired = places.acquire().await;
        let _place = acquired.map_err(|full| Error::new(call.about(), ErrorKind::Full).because(full))?;
        next.call(call, request).await
    }
}

impl fmt::Debug for Bulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

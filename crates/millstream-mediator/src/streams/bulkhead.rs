//! So many streams open at once.

use std::borrow::Cow;
use std::fmt;
use std::ops::ControlFlow;
use std::task::{Context, Poll};
use std::time::Duration;

use millstream_flow::{Flow, Pipe, Step};
use millstream_resilience::Place;

use crate::behaviours::{Places, Who, full};
use crate::call::Call;
use crate::error::Error;
use crate::message::{About, StreamRequest};
use crate::stream::{StreamBehaviour, StreamNext};

/// Lets so many streams of a type be open at once, and so many wait to be opened; others fail with
/// [`ErrorKind::Full`](crate::ErrorKind::Full).
#[derive(Clone)]
pub struct StreamBulkhead(Places);

impl StreamBulkhead {
    /// So many, none of which waits.
    ///
    /// # Panics
    /// If `open` is 0.
    pub fn new(open: usize) -> Self {
        assert!(open > 0, "without a place no stream is ever opened");
        StreamBulkhead(Places::new(open))
    }

    /// How many may wait to be opened.
    #[must_use]
    pub fn queue(self, queue: usize) -> Self {
        StreamBulkhead(self.0.queue(queue))
    }

    /// How long a stream may wait to be opened; as long as its caller if it is not said.
    #[must_use]
    pub fn wait_max(self, wait: Duration) -> Self {
        StreamBulkhead(self.0.wait_max(wait))
    }

    /// The same places for the streams of all handlers.
    #[must_use]
    pub fn shared(self) -> Self {
        StreamBulkhead(self.0.share(Who::All))
    }

    /// The same places for the streams of one key, for at most `keys_max` keys. Metrics show the fullest of them, and all that
    /// wait.
    #[must_use]
    pub fn by_key(self, keys_max: usize, key: impl Fn(&Call<'_>) -> String + Send + Sync + 'static) -> Self {
        StreamBulkhead(self.0.share(Who::by_key(keys_max, key)))
    }
}

impl StreamBehaviour for StreamBulkhead {
    type Flow<R: StreamRequest, N: StreamNext<R>> = Placed<N::Flow>;

    fn name(&self) -> Cow<'static, str> {
        self.0.name("open")
    }

    fn of(&self, about: &About) -> Self {
        StreamBulkhead(self.0.of(about))
    }

    fn problem(&self) -> Option<String> {
        self.0.problem()
    }

    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        let place = self.0.get(call).acquire().await.map_err(|error| full(call, error))?;
        let pipe = next.open(call, request).await?;
        Ok(pipe.via("bulkhead", |upstream| Placed { upstream, place: Some(place) }))
    }
}

impl fmt::Debug for StreamBulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// A flow that has a place until it ends.
pub struct Placed<F> {
    upstream: F,
    place: Option<Place>,
}

impl<F: Flow> Flow for Placed<F> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        let step = self.upstream.poll_drive(cx, max, sink);
        if step == Poll::Ready(Step::End) {
            self.place = None;
        }
        step
    }
}

//! So many streams open at once.

use std::borrow::Cow;
use std::fmt;
use std::ops::ControlFlow;
use std::task::{Context, Poll};
use std::time::Duration;

use millstream_flow::{Flow, Pipe, Step};
use millstream_resilience::{Bulkhead, Place};

use crate::behaviours::{Sharing, Who, register_places};
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::message::{About, StreamRequest};
use crate::stream::{StreamBehaviour, StreamNext};

/// Lets so many streams of a type be open at once, and so many wait to be opened; others fail with [`ErrorKind::Full`].
#[derive(Clone)]
pub struct StreamBulkhead {
    sharing: Sharing<Bulkhead>,
    who: Who,
    open: usize,
    queue: usize,
    wait_max: Option<Duration>,
}

impl StreamBulkhead {
    /// So many, none of which waits.
    ///
    /// # Panics
    /// If `open` is 0.
    pub fn new(open: usize) -> Self {
        assert!(open > 0, "without a place no stream is ever opened");
        StreamBulkhead::make(Who::Each, open, 0, None)
    }

    fn make(who: Who, open: usize, queue: usize, wait_max: Option<Duration>) -> Self {
        let sharing = who.share(move || {
            let places = Bulkhead::new(open).queue(queue);
            match wait_max {
                Some(wait) => places.wait_max(wait),
                None => places,
            }
        });
        StreamBulkhead { sharing, who, open, queue, wait_max }
    }

    /// How many may wait to be opened.
    #[must_use]
    pub fn queue(self, queue: usize) -> Self {
        StreamBulkhead::make(self.who, self.open, queue, self.wait_max)
    }

    /// How long a stream may wait to be opened; as long as its caller if it is not said.
    #[must_use]
    pub fn wait_max(self, wait: Duration) -> Self {
        StreamBulkhead::make(self.who, self.open, self.queue, Some(wait))
    }

    /// The same places for the streams of all handlers.
    #[must_use]
    pub fn shared(self) -> Self {
        StreamBulkhead::make(Who::All, self.open, self.queue, self.wait_max)
    }

    /// The same places for the streams of one key, for at most `keys_max` keys. Metrics show the fullest of them, and all that
    /// wait.
    #[must_use]
    pub fn by_key(self, keys_max: usize, key: impl Fn(&Call<'_>) -> String + Send + Sync + 'static) -> Self {
        StreamBulkhead::make(Who::by_key(keys_max, key), self.open, self.queue, self.wait_max)
    }
}

impl StreamBehaviour for StreamBulkhead {
    type Flow<R: StreamRequest, N: StreamNext<R>> = Placed<N::Flow>;

    fn name(&self) -> Cow<'static, str> {
        let StreamBulkhead { sharing, open, queue, wait_max, .. } = self;
        let wait = wait_max.map(|wait| format!(" up to {wait:?}")).unwrap_or_default();
        format!("bulkhead {open} open, {queue} wait{wait}{}", sharing.words()).into()
    }

    fn of(&self, about: &About) -> Self {
        let sharing = self.sharing.of(about);
        let places = sharing.clone();
        register_places(about, self.open, move || places.list());
        StreamBulkhead { sharing, ..self.clone() }
    }

    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        let place = self.sharing.get(call).acquire().await;
        let place = place.map_err(|full| Error::new(call.about(), ErrorKind::Full).because(full))?;
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

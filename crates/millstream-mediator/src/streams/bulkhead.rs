//! So many streams open at once.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::task::{Context, Poll};

use millstream_flow::{Flow, Pipe, Step};
use millstream_resilience::{Bulkhead, Place};

use crate::behaviours::register_places;
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::message::{About, StreamRequest};
use crate::stream::{StreamBehaviour, StreamNext};

/// Lets so many streams of a type be open at once, and so many wait to be opened; others fail with [`ErrorKind::Full`].
#[derive(Debug, Clone)]
pub struct StreamBulkhead {
    open: usize,
    queue: usize,
    places: Bulkhead,
}

impl StreamBulkhead {
    /// So many, none of which waits.
    ///
    /// # Panics
    /// If `open` is 0.
    pub fn new(open: usize) -> Self {
        StreamBulkhead { open, queue: 0, places: Bulkhead::new(open) }
    }

    /// How many may wait to be opened.
    #[must_use]
    pub fn queue(mut self, queue: usize) -> Self {
        self.queue = queue;
        self
    }
}

impl StreamBehaviour for StreamBulkhead {
    type Flow<R: StreamRequest, N: StreamNext<R>> = Placed<N::Flow>;

    fn name(&self) -> Cow<'static, str> {
        format!("bulkhead {} open, {} wait", self.open, self.queue).into()
    }

    fn of(&self, about: &About) -> Self {
        let places = Bulkhead::new(self.open).queue(self.queue);
        let shown = places.clone();
        register_places(about, self.open, move || vec![shown.clone()]);
        StreamBulkhead { places, ..self.clone() }
    }

    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        let place = self.places.acquire().await;
        let place = place.map_err(|full| Error::new(call.about(), ErrorKind::Full).because(full))?;
        let pipe = next.open(call, request).await?;
        Ok(pipe.via("bulkhead", |upstream| Placed { upstream, place: Some(place) }))
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

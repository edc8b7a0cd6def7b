//! No more items while memory is short.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use millstream_flow::{Flow, Pipe, Step};

use crate::call::Call;
use crate::error::Error;
use crate::memory::Memory;
use crate::message::{About, StreamRequest};
use crate::metrics::Counter;
use crate::stream::{StreamBehaviour, StreamNext};

/// Holds streams back while [`Memory`] is short: nothing more is taken from their handlers, and nothing is lost. For streams that
/// must not even open then, put an [`Admission`](crate::Admission) around their opening.
///
/// Around a [`Backpressure`](crate::Backpressure) that counts its buffer in the same memory it would keep from reading what makes
/// memory short, and wait for ever: it belongs inside of that, and a mediator in which it is not is not built.
#[derive(Debug, Clone)]
pub struct StreamAdmission {
    memory: Memory,
    held: Counter,
}

impl StreamAdmission {
    /// By this budget.
    pub fn new(memory: Memory) -> Self {
        StreamAdmission { memory, held: Counter::default() }
    }
}

impl StreamBehaviour for StreamAdmission {
    type Flow<R: StreamRequest, N: StreamNext<R>> = Gated<N::Flow>;

    fn name(&self) -> Cow<'static, str> {
        format!("held back within {} MiB", self.memory.limit() >> 20).into()
    }

    fn of(&self, about: &About) -> Self {
        self.memory.register(about);
        let help = "How often a stream was held back because memory was short.";
        let held =
            about.metrics().counter("mediator_streams_held_back_total", help, &[("type", about.label())]);
        StreamAdmission { memory: self.memory.clone(), held }
    }

    fn problem(&self) -> Option<String> {
        self.memory.problem()
    }

    fn waits_for(&self) -> Option<&Memory> {
        Some(&self.memory)
    }

    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        let pipe = next.open(call, request).await?;
        let StreamAdmission { memory, held } = self.clone();
        Ok(pipe.via("admission", |upstream| Gated { upstream, memory, held, waiting: None }))
    }
}

/// A flow that is held back.
pub struct Gated<F> {
    upstream: F,
    memory: Memory,
    held: Counter,
    waiting: Option<BoxFuture<'static, ()>>,
}

impl<F: Flow> Flow for Gated<F> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        if self.waiting.is_none() && self.memory.is_short() {
            self.held.add(1);
            let memory = self.memory.clone();
            self.waiting = Some(Box::pin(async move { memory.until_enough().await }));
        }
        if let Some(waiting) = &mut self.waiting {
            ready!(waiting.as_mut().poll(cx));
            self.waiting = None;
        }
        self.upstream.poll_drive(cx, max, sink)
    }
}

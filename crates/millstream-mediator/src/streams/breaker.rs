//! No streams from what fails too often.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::task::{Context, Poll};

use millstream_flow::{Flow, Pipe, Step};
use millstream_resilience::{BreakerSettings, CircuitBreaker, Class, Permit};

use crate::behaviours::{
    BreakerCounted, REJECTED, breaker_counted, breaker_of, register_breakers, register_own,
};
use crate::call::Call;
use crate::error::Error;
use crate::message::{About, StreamRequest};
use crate::stream::{StreamBehaviour, StreamError, StreamNext};

/// Opens no stream while too many have failed: one stream is one call, which has succeeded when it ends well. One that is
/// dropped says nothing.
#[derive(Debug, Clone)]
pub struct StreamBreaker {
    settings: BreakerSettings,
    enough: u64,
    shared: Option<CircuitBreaker>,
    breaker: Option<CircuitBreaker>,
    counted: BreakerCounted,
}

impl StreamBreaker {
    /// One for each handler.
    pub fn new(settings: BreakerSettings) -> Self {
        StreamBreaker {
            settings,
            enough: u64::MAX,
            shared: None,
            breaker: None,
            counted: BreakerCounted::default(),
        }
    }

    /// This one for all.
    pub fn shared(breaker: CircuitBreaker) -> Self {
        StreamBreaker { shared: Some(breaker.clone()), ..StreamBreaker::new(breaker.settings()) }
    }

    /// A stream that fails after so many items has still succeeded. Without it none has.
    #[must_use]
    pub fn success_after(mut self, items: u64) -> Self {
        self.enough = items;
        self
    }
}

impl StreamBehaviour for StreamBreaker {
    type Flow<R: StreamRequest, N: StreamNext<R>> = Judged<N::Flow>;

    fn name(&self) -> Cow<'static, str> {
        let shared = if self.shared.is_some() { ", shared" } else { "" };
        let enough = match self.enough {
            u64::MAX => String::new(),
            items => format!(", success after {items} items"),
        };
        format!("breaker {}{enough}{shared}", self.settings).into()
    }

    fn of(&self, about: &About) -> Self {
        let own = || CircuitBreaker::new(self.settings.clone().name(about.name.clone()));
        let breaker = self.shared.clone().unwrap_or_else(own);
        let shown = breaker.clone();
        register_breakers(about, move || vec![shown.clone()]);
        if self.shared.is_none() {
            register_own(about, &breaker);
        }
        StreamBreaker { breaker: Some(breaker), counted: breaker_counted(about), ..self.clone() }
    }

    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        let permit = match self.breaker.as_ref().map(CircuitBreaker::try_acquire_owned).transpose() {
            Ok(permit) => permit,
            Err(open) => {
                self.counted.add(REJECTED, 1);
                return Err(breaker_of(call.about(), open));
            }
        };
        let enough = self.enough;
        match next.open(call, request).await {
            Ok(pipe) => Ok(pipe.via("breaker", |upstream| Judged { upstream, permit, enough, items: 0 })),
            Err(error) => {
                if let Some(permit) = permit {
                    permit.end(Some(error.class_for_breakers()));
                }
                Err(error)
            }
        }
    }
}

/// A flow whose end a breaker hears of.
pub struct Judged<F> {
    upstream: F,
    /// Given back, without a word, when the stream is dropped.
    permit: Option<Permit>,
    enough: u64,
    items: u64,
}

impl<T, F: Flow<Item = Result<T, StreamError>, Token = ()>> Flow for Judged<F> {
    type Item = F::Item;
    type Token = ();

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, ()) -> ControlFlow<()>,
    {
        let Judged { upstream, permit, enough, items } = self;
        let step = upstream.poll_drive(cx, max, &mut |item, ()| {
            match &item {
                Ok(_) => *items += 1,
                Err(error) if error.is_last() => {
                    judge(permit, (*items < *enough).then(|| error.error().class_for_breakers()))
                }
                Err(_) => {}
            }
            sink(item, ())
        });
        if step == Poll::Ready(Step::End) {
            judge(permit, None);
        }
        step
    }
}

fn judge(permit: &mut Option<Permit>, failed: Option<Class>) {
    if let Some(permit) = permit.take() {
        permit.end(failed);
    }
}

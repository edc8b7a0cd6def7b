//! Streams that are opened anew when they break.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_util::future::BoxFuture;
use millstream_flow::{Flow, Pipe, Step};
use millstream_resilience::{Attempts, Class, Classify, Retry};
use tokio::time::{Instant, sleep};

use crate::behaviours::Counted;
use crate::call::{Call, Detached};
use crate::error::{ClassOf, Error};
use crate::message::{About, StreamRequest};
use crate::metrics::{Counter, stream_dropped};
use crate::stream::progress::LeftOut;
use crate::stream::{StreamBehaviour, StreamError, StreamNext};

mod account;

use account::{Account, Keys};

/// How a stream goes on that broke after it had delivered items, and so what its reader may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resume {
    /// Not at all: only a stream that has delivered nothing is opened anew. Every item comes *at most once*. The
    /// default.
    #[default]
    Never,
    /// From its beginning, with [`StreamRequest::repeat`]. What was delivered is delivered again: *at least once*.
    Restart,
    /// From the handler's position, with [`StreamRequest::resume`]: *exactly once*, if the handler means the same items by it.
    /// Where nothing has come it is opened from its beginning: with [`StreamRequest::repeat`], else with `resume(0)`.
    /// Items that failed and were [passed, skipped, replaced or put aside](crate::ItemErrors) count. A
    /// [`Backpressure`](crate::Backpressure) inside of the retries hides how many were left out behind it: where such a stream is broken by
    /// a [`StreamTimeout`](crate::StreamTimeout) around the buffer, some items may come again.
    Position,
    /// From its beginning, leaving out as many items as were delivered, and failed ones that were passed: *exactly once*, if the
    /// handler gives the same in the same order each time.
    Skip,
    /// From its beginning, leaving out what has the [key](StreamRequest::key) of one of the last so many items that were delivered:
    /// *exactly once*, if keys are unique and no more items than that come again. Items without a key are delivered again.
    Dedupe(usize),
}

impl Resume {
    /// What a reader may rely on, in words.
    pub fn delivery(self) -> &'static str {
        match self {
            Resume::Never => "at most once",
            Resume::Restart => "at least once",
            Resume::Position => "exactly once, by position",
            Resume::Skip => "exactly once, by count",
            Resume::Dedupe(_) => "exactly once, by key",
        }
    }

    /// The request for all of the stream once more.
    fn anew<R: StreamRequest>(self, request: &R) -> Option<R> {
        let from_position = || request.resume(0).filter(|_| self == Resume::Position);
        request.repeat().or_else(from_position)
    }
}

/// Opens a stream again that did not open or that broke, as a [`Retry`] says. The reader notices nothing, but for what
/// [`Resume`] declares; if no try is left, the last error is the last item, with the position and the number of items
/// delivered in all tries.
///
/// Where new items have come since the last error, tries are counted from the beginning again (not with
/// [`Resume::Restart`], which would go on for ever).
///
/// ```
/// use millstream_mediator::{Mediator, Resume, StreamRetries};
/// use millstream_resilience::Retry;
///
/// let builder = Mediator::builder().stream_behaviour(StreamRetries::new(Retry::new(3), Resume::Position));
/// # let _ = builder;
/// ```
#[derive(Clone)]
pub struct StreamRetries {
    retry: Retry,
    resume: Resume,
    classify: Option<Arc<ClassOf>>,
    counted: Counted,
    duplicates: Counter,
}

impl StreamRetries {
    /// Tries as `retry` says, and goes on as `resume` says.
    ///
    /// # Panics
    /// If it is to remember 0 keys.
    pub fn new(retry: Retry, resume: Resume) -> Self {
        assert!(resume != Resume::Dedupe(0), "to remember no keys leaves nothing out");
        let (counted, duplicates) = Default::default();
        StreamRetries { retry, resume, classify: None, counted, duplicates }
    }

    /// Errors are of the class that this function says, instead of their own.
    #[must_use]
    pub fn classify(mut self, classify: impl Fn(&Error) -> Class + Send + Sync + 'static) -> Self {
        self.classify = Some(Arc::new(classify));
        self
    }

    fn class(&self, error: &Error) -> Class {
        self.classify.as_ref().map_or_else(|| error.class(), |classify| classify(error))
    }
}

impl StreamBehaviour for StreamRetries {
    type Flow<R: StreamRequest, N: StreamNext<R>> = Reopening<R, N>;

    fn name(&self) -> Cow<'static, str> {
        format!("retry {}, {}", self.retry, self.resume.delivery()).into()
    }

    fn needs_order(&self) -> bool {
        matches!(self.resume, Resume::Position | Resume::Skip)
    }

    fn of(&self, about: &About) -> Self {
        let (retry, resume) = (self.retry.clone(), self.resume);
        StreamRetries {
            retry,
            resume,
            classify: self.classify.clone(),
            counted: Counted::of(about),
            duplicates: stream_dropped(about, "duplicate"),
        }
    }

    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        // Each try counts from 0 what it leaves out; who stands around all of them is told the sum.
        let (left_out, behind) = (LeftOut::of(call), LeftOut::default());
        let detached = behind.beside(call);
        let call = &detached.call();
        let spare = self.resume.anew(&request);
        let (mut asked, began) = (request, Instant::now());
        let mut attempts: Option<Attempts> = None;
        let pipe = loop {
            let error = match next.open(call, asked).await {
                Ok(pipe) => break pipe,
                Err(error) => error,
            };
            let (class, tried) = (self.class(&error), attempts.is_some());
            let Some(again) = spare.as_ref().and_then(|spare| self.resume.anew(spare)) else {
                self.counted.unrepeatable(class, tried);
                return Err(error);
            };
            let attempts = attempts.get_or_insert_with(|| self.retry.attempts(Some(began)));
            match attempts.failed(&self.retry, class) {
                Ok(delay) => {
                    self.counted.again(class);
                    asked = again;
                    sleep(delay).await;
                }
                Err(stop) => {
                    self.counted.given_up(stop, tried);
                    return Err(error);
                }
            }
        };
        let account = Account {
            rule: self.clone(),
            attempts,
            left_out,
            behind,
            base: 0,
            came: 0,
            skip: 0,
            given: 0,
            delivered: 0,
            fresh: 0,
            keys: Keys::default(),
        };
        account.tell();
        let next = next.clone();
        Ok(pipe.via("retry", |first| Reopening {
            request: spare,
            next,
            call: detached,
            state: State::First(first),
            account,
        }))
    }
}

/// However much has come before and is left out, after so many items others have their turn.
const LEFT_OUT_MAX: u32 = 1024;

/// A flow that is opened anew when it breaks.
pub struct Reopening<R: StreamRequest, N: StreamNext<R>> {
    /// What is asked again; `None` if that may not be.
    request: Option<R>,
    next: N,
    call: Detached,
    state: State<N::Flow>,
    account: Account,
}

type Opened<F> = BoxFuture<'static, Result<Pipe<F>, Error>>;

enum State<F> {
    First(F),
    Opening(Opened<F>),
    Again(Pipe<F>),
    Over,
}

impl<R: StreamRequest, N: StreamNext<R>> Flow for Reopening<R, N> {
    type Item = Result<R::Item, StreamError>;
    type Token = ();

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Self::Item, ()) -> ControlFlow<()>,
    {
        let step = self.drive(cx, max, sink);
        self.account.tell();
        step
    }
}

impl<R: StreamRequest, N: StreamNext<R>> Reopening<R, N> {
    // The state stays in its place while the sink is called, which may panic.
    #[inline]
    fn drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Result<R::Item, StreamError>, ()) -> ControlFlow<()>,
    {
        let Reopening { request, next, call, state, account } = self;
        let (mut room, mut left_out) = (max, 0);
        loop {
            if room == 0 {
                return Poll::Ready(Step::More);
            }
            let broken = match state {
                State::Over => return Poll::Ready(Step::End),
                State::First(flow) => {
                    let mut broken = None;
                    let step = flow.poll_drive(cx, max, &mut |item, ()| match item {
                        Err(error) if error.is_last() => {
                            broken = Some(error);
                            ControlFlow::Break(())
                        }
                        item => match account.gives::<R>(item) {
                            Some(item) => {
                                room -= 1;
                                sink(item, ())
                            }
                            None => ControlFlow::Continue(()),
                        },
                    });
                    let Some(broken) = broken else {
                        if step == Poll::Ready(Step::End) {
                            account.ended_well();
                        }
                        return step;
                    };
                    broken
                }
                State::Opening(opening) => match opening.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(pipe)) => {
                        *state = State::Again(pipe);
                        continue;
                    }
                    Poll::Ready(Err(error)) => StreamError::new(error, 0, true),
                },
                State::Again(pipe) => {
                    let item = match Pin::new(pipe).poll_next(cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(None) => {
                            account.ended_well();
                            return Poll::Ready(Step::End);
                        }
                        Poll::Ready(Some(item)) => item,
                    };
                    match item {
                        Err(error) if error.is_last() => error,
                        item => {
                            match account.gives::<R>(item) {
                                Some(item) => {
                                    room -= 1;
                                    if sink(item, ()).is_break() {
                                        return Poll::Ready(Step::More);
                                    }
                                }
                                None => left_out += 1,
                            }
                            if left_out == LEFT_OUT_MAX {
                                return Poll::Ready(Step::More);
                            }
                            continue;
                        }
                    }
                }
            };
            let position = account.base + broken.position();
            let Some((again, delay)) = account.again(request.as_ref(), broken.error(), position) else {
                *state = State::Over;
                let broken = broken.at(position).delivered_in_all(account.delivered);
                let _ = sink(Err(broken), ());
                return Poll::Ready(Step::End);
            };
            let (next, call) = (next.clone(), call.clone());
            *state = State::Opening(Box::pin(async move {
                sleep(delay).await;
                next.open(&call.call(), again).await
            }));
        }
    }
}

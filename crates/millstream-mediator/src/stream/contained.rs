//! The outermost flow of a stream: a panic of a behaviour is the stream's end, and not its reader's.

use std::any::Any;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::task::{Context, Poll};

use millstream_flow::{BoxError, Flow, Panicked, Step};

use super::StreamError;
use super::progress::LeftOut;
use crate::call::{Call, Detached};
use crate::error::{Error, ErrorKind};

/// How far a stream has come, for whoever ends it with an error.
pub(crate) struct Reached {
    call: Detached,
    left_out: LeftOut,
    /// Items that have come; of those, such that have failed.
    pub(crate) items: u64,
    pub(crate) failed: u64,
}

impl Reached {
    pub(crate) fn new(call: Detached, left_out: LeftOut) -> Self {
        Reached { call, left_out, items: 0, failed: 0 }
    }

    pub(crate) fn call(&self) -> Call<'_> {
        self.call.call()
    }

    #[inline]
    pub(crate) fn passes<T>(&mut self, item: &Result<T, StreamError>) {
        self.items += 1;
        self.failed += u64::from(item.is_err());
    }

    /// The stream's end, of a panic at what would have come next.
    pub(crate) fn panicked(&self, payload: Box<dyn Any + Send>) -> StreamError {
        self.broken(ErrorKind::Panicked, Panicked::new(payload), true)
    }

    /// What would have come next failed, and the stream with it or not.
    #[cold]
    pub(crate) fn broken(&self, kind: ErrorKind, cause: impl Into<BoxError>, last: bool) -> StreamError {
        let error = Error::new(self.call().about(), kind).because(cause);
        let position = self.items.wrapping_add(self.left_out.items());
        StreamError::new(error, position, last).delivered_in_all(self.items - self.failed)
    }
}

/// A flow whose panic is its last item.
pub(crate) struct Contained<F> {
    /// `None` once it has ended.
    upstream: Option<F>,
    reached: Reached,
    /// What it ends with, while there was no room to say so.
    broken: Option<StreamError>,
}

impl<F> Contained<F> {
    pub(crate) fn new(upstream: F, reached: Reached) -> Self {
        Contained { upstream: Some(upstream), reached, broken: None }
    }
}

impl<T, F: Flow<Item = Result<T, StreamError>, Token = ()>> Flow for Contained<F> {
    type Item = F::Item;
    type Token = ();

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, ()) -> ControlFlow<()>,
    {
        let Contained { upstream: slot, reached, broken } = self;
        let Some(upstream) = slot else {
            if let Some(broken) = broken.take() {
                let _ = sink(Err(broken), ());
            }
            return Poll::Ready(Step::End);
        };
        // Two numbers and a flag for each item; what is rare has a branch of its own.
        let (mut items, mut failed, mut last, mut enough) = (0, 0, false, false);
        // A panic further down is not this flow's to catch.
        let mut below = false;
        let driven = catch_unwind(AssertUnwindSafe(|| {
            upstream.poll_drive(cx, max, &mut |item, ()| {
                items += 1;
                if let Err(error) = &item {
                    failed += 1;
                    last |= error.is_last();
                }
                below = true;
                let flow = sink(item, ());
                below = false;
                if flow.is_break() {
                    enough = true;
                }
                flow
            })
        }));
        reached.items += items as u64;
        reached.failed += failed;
        let payload = match driven {
            Ok(step) => return step,
            Err(payload) if below => resume_unwind(payload),
            Err(payload) => payload,
        };
        *slot = None;
        if last {
            return Poll::Ready(Step::End);
        }
        let panicked = reached.panicked(payload);
        if enough || items == max {
            *broken = Some(panicked);
            return Poll::Ready(Step::More);
        }
        let _ = sink(Err(panicked), ());
        Poll::Ready(Step::End)
    }
}

//! A stream's items as JSON.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll};

use millstream_flow::{Flow, Step};
use serde::Serialize;
use serde_json::Value;

use super::contained::Reached;
use super::{StreamError, Streaming};
use crate::error::ErrorKind;

/// A flow of items as JSON. One that cannot be written is an item that failed; a panic at it ends the stream.
pub(crate) struct Written<F> {
    /// `None` once it has ended.
    upstream: Option<F>,
    reached: Reached,
    /// Items that could not be written.
    malformed: u64,
}

/// The items of a stream, which began at 0 with what it leaves out, as JSON.
pub(crate) fn written<T: Serialize + Send + 'static>(
    stream: Streaming<T>,
    reached: Reached,
) -> Streaming<Value> {
    stream.via("json", |upstream| Written { upstream: Some(upstream), reached, malformed: 0 }).boxed()
}

impl<T: Serialize, F: Flow<Item = Result<T, StreamError>, Token = ()>> Flow for Written<F> {
    type Item = Result<Value, StreamError>;
    type Token = ();

    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Self::Item, ()) -> ControlFlow<()>,
    {
        let Written { upstream: slot, reached, malformed } = self;
        let Some(upstream) = slot else { return Poll::Ready(Step::End) };
        let (mut room, mut over) = (max, false);
        loop {
            let before = room;
            // Item by item: what is left out behind a chunk that is read ahead would count for an item in it.
            let step = upstream.poll_drive(cx, 1, &mut |item, ()| {
                let item = match item {
                    Ok(item) => match catch_unwind(AssertUnwindSafe(|| serde_json::to_value(&item))) {
                        Ok(written) => written.map_err(|error| {
                            *malformed += 1;
                            reached.broken(ErrorKind::Malformed, error, false)
                        }),
                        Err(payload) => {
                            over = true;
                            Err(reached.panicked(payload))
                        }
                    },
                    // Of what those inside call delivered, some was not.
                    Err(error) => {
                        let delivered = error.delivered().saturating_sub(*malformed);
                        Err(error.delivered_in_all(delivered))
                    }
                };
                reached.passes(&item);
                room -= 1;
                if sink(item, ()).is_break() {
                    room = 0;
                }
                ControlFlow::Continue(())
            });
            if over {
                *slot = None;
                return Poll::Ready(Step::End);
            }
            if step != Poll::Ready(Step::More) || room == 0 || room == before {
                return step;
            }
        }
    }
}

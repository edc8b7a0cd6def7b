//! A flow of what somebody else sends.

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::flow::{Flow, Step};
use crate::ring::{Reader, ReaderGone, Writer, ring};
use crate::scope::{Scope, StopSignal};
use crate::source::{Entry, Received};

/// The sending end of a flow's source. See [`Pipe::channel`](crate::Pipe::channel).
///
/// Dropping it ends the flow, after what was sent.
pub struct Sender<T> {
    writer: Writer<T>,
    capacity: usize,
    /// After the word to stop nothing is accepted, else a sender that never pauses would keep the flow going for ever.
    stop: Arc<StopSignal>,
}

/// A flow of what a [`Sender`] sends.
pub struct FromChannel<T> {
    reader: Reader<T>,
    entry: Entry,
}

pub(crate) fn channel<T>(capacity: usize, scope: &Arc<Scope>) -> (Sender<T>, FromChannel<T>) {
    let (writer, reader) = ring(capacity);
    let entry = Entry::new(scope);
    (Sender { writer, capacity, stop: entry.signal() }, FromChannel { reader, entry })
}

impl<T> Sender<T> {
    /// Hands one item to the flow, waiting while it is full.
    ///
    /// `Ok` says that the item is in the flow's buffer, not that it was processed: for that, send an item that
    /// carries where to answer, or use a tracked source ([`Pipe::from_tracked`](crate::Pipe::from_tracked)).
    ///
    /// # Errors
    /// If the flow has ended, or was stopped; the item comes back.
    ///
    /// # Cancel safety
    /// A future that is dropped while it waits has not sent, and drops the item with it.
    pub async fn send(&mut self, item: T) -> Result<(), SendError<T>> {
        let Sender { writer, capacity, stop } = self;
        match poll_fn(|cx| writer.poll_room(cx, *capacity, usize::MAX)).await {
            Ok(_) if !stop.is_raised() => {
                writer.push(item);
                writer.publish(0);
                Ok(())
            }
            Ok(_) | Err(ReaderGone) => Err(SendError { item, full: false }),
        }
    }

    /// As [`send`](Sender::send), without waiting.
    ///
    /// # Errors
    /// If the flow is full, has ended, or was stopped; the item comes back.
    pub fn try_send(&mut self, item: T) -> Result<(), SendError<T>> {
        match self.writer.poll_room(&mut Context::from_waker(Waker::noop()), self.capacity, usize::MAX) {
            Poll::Ready(Ok(_)) if !self.stop.is_raised() => {
                self.writer.push(item);
                self.writer.publish(0);
                Ok(())
            }
            Poll::Ready(Ok(_) | Err(ReaderGone)) => Err(SendError { item, full: false }),
            Poll::Pending => Err(SendError { item, full: true }),
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

/// An item that was not sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendError<T> {
    /// The item.
    pub item: T,
    full: bool,
}

impl<T> SendError<T> {
    /// True if the flow is full, false if it has ended or was stopped.
    pub fn is_full(&self) -> bool {
        self.full
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.full { "the flow is full" } else { "the flow has ended or was stopped" })
    }
}

impl<T: fmt::Debug> Error for SendError<T> {}

impl<T> Flow for FromChannel<T> {
    type Item = T;
    type Token = ();

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(T, ()) -> ControlFlow<()>,
    {
        let mut room = max;
        let mut received = Received::new(&self.entry);
        while room > 0 {
            let available = match self.reader.poll_available(cx) {
                Poll::Ready(Some(available)) => available,
                Poll::Ready(None) => return Poll::Ready(Step::End),
                // What was sent before the word to stop is taken first.
                Poll::Pending if self.entry.wait(cx) => return Poll::Ready(Step::End),
                Poll::Pending => return Poll::Pending,
            };
            let mut stock = self.reader.stock(available.min(room));
            room -= stock.len();
            let mut taking = stock.take();
            while let Some(item) = taking.next() {
                received.count += 1;
                if sink(item, ()).is_break() {
                    return Poll::Ready(Step::More);
                }
            }
        }
        Poll::Ready(Step::More)
    }
}

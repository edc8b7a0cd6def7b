//! Where flows begin.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::failure::BoxError;
use crate::flow::{Flow, Step};
use crate::scope::{RunErrorKind, Scope, StopSignal};
use crate::token::{Settle, Tracked};

/// What every source has: the word to stop, and the count of what it let in.
pub(crate) struct Entry {
    scope: Arc<Scope>,
    stop: Arc<StopSignal>,
}

impl Entry {
    pub(crate) fn new(scope: &Arc<Scope>) -> Self {
        Entry { scope: scope.clone(), stop: scope.stop_signal() }
    }

    /// Ends a flow whose stream has panicked, for whatever policy keeps the run going.
    #[cold]
    fn fail_panicked(&self) -> Poll<Step> {
        let error = "it panicked, and what has panicked must not be polled again";
        self.scope.fail(RunErrorKind::Source(error.into()));
        Poll::Ready(Step::End)
    }

    /// What the source hears the word to stop by, for who fills it.
    pub(crate) fn signal(&self) -> Arc<StopSignal> {
        self.stop.clone()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.is_raised()
    }

    /// Registers a source that waits. Returns true if it must not wait but end.
    pub(crate) fn wait(&self, cx: &Context<'_>) -> bool {
        self.stop.register(cx.waker());
        self.stop.is_raised()
    }
}

/// Adds what a quantum let in to the ledger, also when a panic cuts the quantum short.
pub(crate) struct Received<'a> {
    pub(crate) count: u64,
    /// The source is being asked. A panic now is the end of an item that nobody has counted yet.
    asking: bool,
    to: &'a AtomicU64,
}

/// Notices that a stream panicked. Most cannot be polled again after that, and would panic for ever.
struct Asking<'a> {
    now: bool,
    panicked: &'a mut bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        *self.panicked |= self.now;
    }
}

impl<'a> Received<'a> {
    pub(crate) fn new(entry: &'a Entry) -> Self {
        Received { count: 0, asking: false, to: &entry.scope.counts.received }
    }
}

impl Drop for Received<'_> {
    fn drop(&mut self) {
        self.count += u64::from(self.asking);
        if self.count > 0 {
            // The source is its counter's only writer, so this needs no read-modify-write, which would be most of
            // the cost of an item that is asked for one by one.
            self.to.store(self.to.load(Ordering::Relaxed) + self.count, Ordering::Release);
        }
    }
}

/// A flow of an iterator's items. See [`Pipe::from_iter`](crate::Pipe::from_iter).
pub struct FromIter<I> {
    iter: I,
    entry: Entry,
}

impl<I> FromIter<I> {
    pub(crate) fn new(iter: I, scope: &Arc<Scope>) -> Self {
        FromIter { iter, entry: Entry::new(scope) }
    }
}

impl<I: Iterator> Flow for FromIter<I> {
    type Item = I::Item;
    type Token = ();

    #[inline]
    fn poll_drive<S>(&mut self, _cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(I::Item, ()) -> ControlFlow<()>,
    {
        if self.entry.stop.is_raised() {
            return Poll::Ready(Step::End);
        }
        let mut received = Received { count: 0, asking: false, to: &self.entry.scope.counts.received };
        for _ in 0..max {
            received.asking = true;
            let next = self.iter.next();
            received.asking = false;
            let Some(item) = next else { return Poll::Ready(Step::End) };
            received.count += 1;
            if sink(item, ()).is_break() {
                break;
            }
        }
        Poll::Ready(Step::More)
    }
}

/// A flow of any stream's items. See [`Pipe::from_stream`](crate::Pipe::from_stream).
pub struct FromStream<S> {
    stream: Pin<Box<S>>,
    entry: Entry,
    panicked: bool,
}

impl<S> FromStream<S> {
    pub(crate) fn new(stream: S, scope: &Arc<Scope>) -> Self {
        FromStream { stream: Box::pin(stream), entry: Entry::new(scope), panicked: false }
    }
}

impl<St: Stream> Flow for FromStream<St> {
    type Item = St::Item;
    type Token = ();

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(St::Item, ()) -> ControlFlow<()>,
    {
        if self.entry.stop.is_raised() {
            return Poll::Ready(Step::End);
        }
        if self.panicked {
            return self.entry.fail_panicked();
        }
        let mut asking = Asking { now: false, panicked: &mut self.panicked };
        let mut received = Received { count: 0, asking: false, to: &self.entry.scope.counts.received };
        for _ in 0..max {
            (asking.now, received.asking) = (true, true);
            let next = self.stream.as_mut().poll_next(cx);
            (asking.now, received.asking) = (false, false);
            match next {
                Poll::Ready(Some(item)) => {
                    received.count += 1;
                    if sink(item, ()).is_break() {
                        break;
                    }
                }
                Poll::Ready(None) => return Poll::Ready(Step::End),
                Poll::Pending if self.entry.wait(cx) => return Poll::Ready(Step::End),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Step::More)
    }
}

/// A flow of items that must be acknowledged. See [`Pipe::from_tracked`](crate::Pipe::from_tracked).
pub struct FromTracked<S> {
    stream: Pin<Box<S>>,
    entry: Entry,
    /// The stream hears the word to stop itself.
    hears: bool,
    panicked: bool,
}

impl<S> FromTracked<S> {
    pub(crate) fn new(stream: S, scope: &Arc<Scope>) -> Self {
        FromTracked { stream: Box::pin(stream), entry: Entry::new(scope), hears: false, panicked: false }
    }

    pub(crate) fn until(make: impl FnOnce(Stopping) -> S, scope: &Arc<Scope>) -> Self {
        let entry = Entry::new(scope);
        let stream = Box::pin(make(Stopping(entry.signal())));
        FromTracked { stream, entry, hears: true, panicked: false }
    }
}

/// How a source hears that its run is to stop: see [`Pipe::from_tracked_until`](crate::Pipe::from_tracked_until).
#[derive(Debug)]
pub struct Stopping(Arc<StopSignal>);

impl Stopping {
    /// Whether the run is to stop.
    pub fn is_stopping(&self) -> bool {
        self.0.is_raised()
    }

    /// Ready when the run is to stop. Only the last task that has polled it is woken.
    pub fn poll_stopping(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.register(cx.waker());
        if self.0.is_raised() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl<St, T, K> Flow for FromTracked<St>
where
    St: Stream<Item = Result<Tracked<T, K>, BoxError>>,
    K: Settle,
{
    type Item = T;
    type Token = K;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(T, K) -> ControlFlow<()>,
    {
        if !self.hears && self.entry.stop.is_raised() {
            return Poll::Ready(Step::End);
        }
        if self.panicked {
            return self.entry.fail_panicked();
        }
        let mut asking = Asking { now: false, panicked: &mut self.panicked };
        for _ in 0..max {
            asking.now = true;
            let next = self.stream.as_mut().poll_next(cx);
            asking.now = false;
            match next {
                Poll::Ready(Some(Ok(Tracked { value, token }))) => {
                    if sink(value, token).is_break() {
                        break;
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    self.entry.scope.fail(RunErrorKind::Source(error));
                    return Poll::Ready(Step::End);
                }
                Poll::Ready(None) => return Poll::Ready(Step::End),
                Poll::Pending if !self.hears && self.entry.wait(cx) => return Poll::Ready(Step::End),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Step::More)
    }
}

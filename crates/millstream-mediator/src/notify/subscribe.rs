//! Flows of notifications, each with a buffer of its own.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use millstream_flow::Pipe;
use millstream_flow::flows::FromStream;
use tokio::sync::Notify;

use crate::metrics::Counter;

/// How many notifications may wait for a subscriber, and what happens when so many do.
///
/// ```
/// use millstream_mediator::{Full, Subscribe};
/// let audit = Subscribe::buffer(1000); // a full buffer makes publishers wait
/// let screen = Subscribe::buffer(1).when_full(Full::DropOldest); // it always shows the newest
/// # let _ = (audit, screen);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Subscribe {
    capacity: usize,
    full: Full,
}

/// What happens to a notification for which a subscriber's buffer has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Full {
    /// Who publishes waits. The default: nothing is lost.
    #[default]
    Wait,
    /// The one that has waited longest is dropped.
    DropOldest,
    /// The one that has just come is dropped.
    DropNewest,
    /// From half of the buffer on only one of so many is let in; full, the one that has just come is dropped.
    Sample(NonZeroUsize),
    /// The subscription ends, after what waits: for subscribers who would rather begin anew than miss something.
    End,
}

impl Subscribe {
    /// A buffer of so many notifications.
    ///
    /// # Panics
    /// If `capacity` is 0.
    pub fn buffer(capacity: usize) -> Self {
        assert!(capacity > 0, "a buffer of no notifications holds none");
        Subscribe { capacity, full: Full::Wait }
    }

    /// What happens when it is full.
    pub fn when_full(mut self, full: Full) -> Self {
        self.full = full;
        self
    }
}

/// Those who subscribed to one type.
pub(crate) struct Subscribers<N> {
    list: Mutex<Vec<Arc<Queue<N>>>>,
    count: Arc<AtomicUsize>,
    dropped: Counter,
}

struct Queue<N> {
    rule: Subscribe,
    state: Mutex<State<N>>,
    /// Rung when there may be room, or nobody reads any more.
    room: Notify,
}

struct State<N> {
    waiting: VecDeque<Arc<N>>,
    /// Since the last one that was let in while the flow is thinned out.
    left_out: usize,
    dropped: u64,
    /// Nothing more comes.
    closed: bool,
    /// Nobody reads any more.
    gone: bool,
    reader: Option<Waker>,
}

impl<N> Queue<N> {
    fn state(&self) -> MutexGuard<'_, State<N>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether nothing reaches it any more.
    fn is_over(&self) -> bool {
        let state = self.state();
        state.gone || state.closed
    }

    /// Puts one in if there is room or another goes for it. `None` if the publisher must wait, else how many were dropped.
    fn offer(&self, notification: &Arc<N>) -> Option<u64> {
        let mut state = self.state();
        if state.gone || state.closed {
            return Some(0);
        }
        let Subscribe { capacity, full } = self.rule;
        let mut oldest = None;
        let len = state.waiting.len();
        let lets_in = match full {
            Full::Wait if len >= capacity => return None,
            Full::DropOldest if len >= capacity => {
                oldest = state.waiting.pop_front();
                true
            }
            Full::DropNewest => len < capacity,
            Full::Sample(one_in) => {
                let thin = len * 2 >= capacity;
                state.left_out = if thin { state.left_out + 1 } else { 0 };
                let turn = !thin || state.left_out % one_in == 1 % one_in.get();
                turn && len < capacity
            }
            Full::End if len >= capacity => {
                state.closed = true;
                false
            }
            Full::Wait | Full::DropOldest | Full::End => true,
        };
        let dropped = u64::from(oldest.is_some() || !lets_in);
        state.dropped += dropped;
        if lets_in {
            state.waiting.push_back(notification.clone());
        }
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        Some(dropped)
    }

    async fn tell(&self, notification: &Arc<N>) -> u64 {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            match self.offer(notification) {
                Some(dropped) => return dropped,
                None => room.await,
            }
        }
    }
}

impl<N> Subscribers<N> {
    pub(crate) fn new(dropped: Counter) -> Self {
        Subscribers { list: Mutex::default(), count: Arc::default(), dropped }
    }

    fn list(&self) -> MutexGuard<'_, Vec<Arc<Queue<N>>>> {
        self.list.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    pub(crate) fn add(&self, rule: Subscribe) -> Notifications<N> {
        let state = State {
            waiting: VecDeque::new(),
            left_out: 0,
            dropped: 0,
            closed: false,
            gone: false,
            reader: None,
        };
        let queue = Arc::new(Queue { rule, state: Mutex::new(state), room: Notify::new() });
        let mut list = self.list();
        // Here too, since nobody may ever publish.
        list.retain(|queue| !queue.is_over());
        list.push(queue.clone());
        drop(list);
        self.count.fetch_add(1, Ordering::AcqRel);
        Notifications { queue, count: self.count.clone() }
    }

    /// Tells all, waiting for those that make who publishes wait; says how many of them are still there.
    pub(crate) async fn tell(&self, notification: &Arc<N>) -> usize {
        let queues = {
            let mut list = self.list();
            list.retain(|queue| !queue.is_over());
            list.clone()
        };
        let mut told = 0;
        for queue in &queues {
            let dropped = queue.tell(notification).await;
            self.dropped.add(dropped);
            told += usize::from(!queue.is_over());
        }
        told
    }
}

impl<N> Drop for Subscribers<N> {
    fn drop(&mut self) {
        for queue in self.list().drain(..) {
            let mut state = queue.state();
            state.closed = true;
            let reader = state.reader.take();
            drop(state);
            if let Some(reader) = reader {
                reader.wake();
            }
        }
    }
}

/// A stream of notifications of one type, in the order in which they were published. See
/// [`Mediator::subscribe`](crate::Mediator::subscribe). Dropping it ends the subscription.
pub struct Notifications<N> {
    queue: Arc<Queue<N>>,
    count: Arc<AtomicUsize>,
}

impl<N: Send + Sync + 'static> Notifications<N> {
    /// The same as a flow.
    pub fn pipe(self) -> Pipe<FromStream<Self>> {
        Pipe::from_stream(self)
    }

    /// How many were dropped because the buffer was full.
    pub fn dropped(&self) -> u64 {
        self.queue.state().dropped
    }
}

impl<N> Stream for Notifications<N> {
    type Item = Arc<N>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Arc<N>>> {
        let mut state = self.queue.state();
        let next = state.waiting.pop_front();
        if next.is_none() && !state.closed {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(state);
        self.queue.room.notify_waiters();
        Poll::Ready(next)
    }
}

impl<N> Drop for Notifications<N> {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.gone = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
        self.queue.room.notify_waiters();
        self.count.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<N> fmt::Debug for Notifications<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.queue.state();
        f.debug_struct("Notifications")
            .field("rule", &self.queue.rule)
            .field("waiting", &state.waiting.len())
            .field("dropped", &state.dropped)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscribers_that_have_gone_leave_nothing_though_nobody_publishes() {
        let subscribers = Subscribers::<()>::new(Counter::default());
        for _ in 0..100 {
            drop(subscribers.add(Subscribe::buffer(1)));
        }
        let _kept = subscribers.add(Subscribe::buffer(1));
        assert_eq!(subscribers.list().len(), 1);
    }
}

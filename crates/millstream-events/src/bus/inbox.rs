//! Events that were handled already.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Remembers which events were handled, so that one that comes again is skipped: published twice by its id, or delivered
/// again because the acknowledgement was lost.
///
/// An event is remembered when its handler has succeeded, not before. While one is handled, another of the same id waits; it is
/// skipped if that succeeds, and handled if that fails; to wait is part of its attempt's time. A clone is the same inbox. Several subscriptions may share one: what
/// each of their queues has handled is kept apart, while consumers of one queue share what they know.
///
/// It is in memory and **forgets with the process**: after a restart, and between processes that compete for one queue, an event
/// may be handled again. Where that does harm, the handler has to keep the id with what it changes, in the same transaction.
///
/// It is bounded twice: it keeps so many ids, of which the oldest goes first, none longer than `age`. An id takes about
/// 200 bytes; 100,000 of them 20 MB.
///
/// ```
/// use std::time::Duration;
/// use millstream_events::{Inbox, Subscribe};
///
/// let inbox = Inbox::new(100_000, Duration::from_secs(3600));
/// let options = Subscribe::new().inbox(inbox.clone());
/// assert_eq!((inbox.len(), inbox.skipped()), (0, 0));
/// ```
#[derive(Clone, Debug)]
pub struct Inbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    count: usize,
    age: Duration,
    skipped: AtomicU64,
    known: Mutex<Known>,
}

/// A queue, and the id of an event.
type Key = (Arc<str>, Arc<str>);

#[derive(Debug, Default)]
struct Known {
    events: HashMap<Key, Seen>,
    /// Those that were handled, the oldest first.
    handled: VecDeque<(Instant, Key)>,
}

#[derive(Debug)]
enum Seen {
    /// Whoever waits learns from this channel's end that it is over, well or not.
    Running(watch::Receiver<()>),
    Handled,
}

impl Inbox {
    /// Remembers up to `count` events, each for `age`.
    ///
    /// # Panics
    /// If `count` or `age` is zero: nothing would ever be skipped.
    pub fn new(count: usize, age: Duration) -> Inbox {
        assert!(count > 0 && !age.is_zero(), "an inbox that remembers nothing skips nothing");
        let (skipped, known) = (AtomicU64::new(0), Mutex::default());
        Inbox(Arc::new(Inner { count, age, skipped, known }))
    }

    /// How many events it remembers as handled.
    pub fn len(&self) -> usize {
        self.known().handled.len()
    }

    /// Whether it remembers none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many events were skipped because of it.
    pub fn skipped(&self) -> u64 {
        self.0.skipped.load(Ordering::Relaxed)
    }

    /// What is known now, without what is too old.
    fn known(&self) -> MutexGuard<'_, Known> {
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while known.handled.front().is_some_and(|(at, _)| now.duration_since(*at) >= self.0.age) {
            known.forget_oldest();
        }
        known
    }

    /// The right to handle an event, which nobody else has meanwhile; `None` if it was handled.
    ///
    /// # Cancel safety
    /// Nothing is claimed by a future that was dropped.
    pub(super) async fn claim(&self, queue: &Arc<str>, id: &str) -> Option<Claim> {
        let key = (queue.clone(), Arc::from(id));
        loop {
            let mut running = {
                let mut known = self.known();
                match known.events.get(&key) {
                    Some(Seen::Handled) => {
                        self.0.skipped.fetch_add(1, Ordering::Relaxed);
                        return None;
                    }
                    Some(Seen::Running(running)) => running.clone(),
                    None => {
                        let (ends, running) = watch::channel(());
                        known.events.insert(key.clone(), Seen::Running(running));
                        return Some(Claim { inbox: self.clone(), key, _ends: ends });
                    }
                }
            };
            // Nothing is ever sent: it ends when the claim does.
            let _ = running.changed().await;
        }
    }
}

impl Known {
    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.handled.pop_front() {
            self.events.remove(&key);
        }
    }
}

/// The right to handle an event. Dropped before the event is [handled](Claim::handled), it leaves it to the next.
pub(super) struct Claim {
    inbox: Inbox,
    key: Key,
    /// Dropped behind the entry in the map.
    _ends: watch::Sender<()>,
}

impl Claim {
    /// The event is not to be handled again.
    pub(super) fn handled(self) {
        let mut known = self.inbox.known();
        if known.handled.len() >= self.inbox.0.count {
            known.forget_oldest();
        }
        known.handled.push_back((Instant::now(), self.key.clone()));
        known.events.insert(self.key.clone(), Seen::Handled);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut known = self.inbox.known();
        if let Some(Seen::Running(_)) = known.events.get(&self.key) {
            known.events.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{advance, sleep};

    const HOUR: Duration = Duration::from_secs(3600);

    async fn handle(inbox: &Inbox, queue: &str, id: &str) -> bool {
        match inbox.claim(&queue.into(), id).await {
            Some(claim) => {
                claim.handled();
                true
            }
            None => false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_handled_is_skipped_while_it_is_remembered() {
        let inbox = Inbox::new(2, HOUR);
        assert!(handle(&inbox, "q", "a").await && !handle(&inbox, "q", "a").await);
        assert!(handle(&inbox, "other", "a").await, "another queue's");
        assert_eq!((inbox.len(), inbox.skipped()), (2, 1));
        // There is room for two: the oldest goes.
        assert!(handle(&inbox, "q", "b").await && handle(&inbox, "q", "a").await);
        assert_eq!((inbox.len(), inbox.skipped()), (2, 1));
        advance(HOUR - Duration::from_secs(1)).await;
        assert!(!handle(&inbox, "q", "b").await);
        advance(Duration::from_secs(1)).await;
        assert!(inbox.is_empty() && inbox.known().events.is_empty());
        assert!(handle(&inbox, "q", "b").await);
    }

    #[tokio::test(start_paused = true)]
    async fn one_handles_while_others_wait_and_who_fails_leaves_it_to_them() {
        let inbox = Inbox::new(9, HOUR);
        let queue: Arc<str> = "q".into();
        let first = inbox.claim(&queue, "a").await.expect("nobody has it");
        let others: Vec<_> = (0..3)
            .map(|_| {
                let (inbox, queue) = (inbox.clone(), queue.clone());
                tokio::spawn(async move {
                    let claim = inbox.claim(&queue, "a").await?;
                    sleep(Duration::from_secs(1)).await;
                    claim.handled();
                    Some(())
                })
            })
            .collect();
        sleep(Duration::from_secs(5)).await;
        assert!(others.iter().all(|other| !other.is_finished()));
        drop(first);
        let mut handled = 0;
        for other in others {
            handled += usize::from(other.await.expect("no panic").is_some());
        }
        assert_eq!((handled, inbox.skipped(), inbox.len()), (1, 2, 1));
    }
}

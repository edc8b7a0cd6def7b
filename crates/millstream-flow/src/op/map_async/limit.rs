//! How long a call may take, or one attempt of it: one timer for all calls of a stage, set for the oldest.
//!
//! All calls have the same limit, so they run out of time in the order in which their times began: a list through the
//! slots, oldest first, from which a call that ends is taken wherever it is. Nothing of this is there without a limit. A
//! limit for attempts has a list of its own, which calls enter and leave with each.
//!
//! Calls are polled when somebody asks for their results. A call that was woken while nobody asked could have gone on, and
//! begins its time anew: else a slow sink would fail items that it only holds back. One that was not woken is late all the same.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use millstream_resilience::TimedOut;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::op::errors::settle_dead;
use crate::scope::{PanicPolicy, RunErrorKind, Scope};
use crate::stats::OpStats;
use crate::timer::{Timer, bounded};
use crate::token::Settle;

/// Who is asked again sooner than this was not held back. Timers are no more exact.
const HELD_MIN: Duration = Duration::from_millis(1);

/// What a call and its stage tell each other while the call is polled. Both are on one thread then.
#[derive(Debug)]
pub(crate) struct Limit {
    time: Duration,
    /// From the call: its time begins.
    began: AtomicBool,
    /// From the call: what had a time is done. If both are said, it ended before.
    ended: AtomicBool,
    /// To the call: its time is over.
    over: AtomicBool,
}

impl Limit {
    pub(crate) fn new(time: Duration) -> Arc<Self> {
        Arc::new(Limit { time: bounded(time), began: false.into(), ended: false.into(), over: false.into() })
    }

    pub(super) fn error(&self) -> TimedOut {
        TimedOut { limit: self.time }
    }

    /// What a call has said, which is forgotten with that: whether a time ended, and whether one began after that.
    fn take_said(&self) -> (bool, bool) {
        let take = |said: &AtomicBool| {
            let was = said.load(Ordering::Relaxed);
            said.store(false, Ordering::Relaxed);
            was
        };
        (take(&self.ended), take(&self.began))
    }
}

/// The limits of a stage's calls.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    /// For all attempts of a call together.
    pub(crate) call: Option<Arc<Limit>>,
    /// For each.
    pub(crate) attempt: Option<Arc<Limit>>,
}

/// Calls as long as the stage's limit lets it, from when the call first waits.
pub(crate) async fn within<C: Future>(
    limit: Option<&Limit>,
    mut call: Pin<&mut C>,
) -> Result<C::Output, TimedOut> {
    let mut waits = false;
    poll_fn(|cx| {
        let polled = call.as_mut().poll(cx);
        let Some(limit) = limit else { return polled.map(Ok) };
        let result = match polled {
            Poll::Ready(output) => Ok(output),
            Poll::Pending if limit.over.load(Ordering::Relaxed) => Err(limit.error()),
            Poll::Pending => {
                if !waits {
                    waits = true;
                    limit.began.store(true, Ordering::Relaxed);
                }
                return Poll::Pending;
            }
        };
        if waits {
            limit.ended.store(true, Ordering::Relaxed);
        }
        // It is not over for the next attempt, which may begin while this is polled.
        limit.over.store(false, Ordering::Relaxed);
        Poll::Ready(result)
    })
    .await
}

/// While alive, the call that is polled has had its time.
pub(super) struct Over(Arc<Limit>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.over.store(false, Ordering::Relaxed);
    }
}

/// Since when a call's time runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// Since it was first found to wait.
    Waiting,
    /// Since it [says so](within): what it waits for before is not its own.
    Said,
    /// As [`Said`](Since::Said), of attempts: who is told that one is over goes on with the next, or ends by itself.
    Attempt,
}

/// When each call has had its time.
pub(crate) struct Deadlines {
    limit: Arc<Limit>,
    since: Since,
    op: Arc<OpStats>,
    scope: Arc<Scope>,
    failed: bool,
    /// When the operator was left though it could have gone on.
    left: Option<Instant>,
    /// Between entering and leaving; still so when it is entered again, if a panic went through it.
    inside: bool,
    /// The time when it was entered, and whether it was held back until then; `None` if there was nothing to compare it with.
    entered: Option<(Instant, bool)>,
    /// By slot.
    links: Vec<Link>,
    first: Option<usize>,
    last: Option<usize>,
    timer: Timer,
    /// What the timer is set for.
    set: Option<Instant>,
}

/// A call in the list.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    /// `None` if it is not in the list.
    until: Option<Instant>,
    before: Option<usize>,
    after: Option<usize>,
}

impl Deadlines {
    /// What one call takes in here.
    pub(crate) const CALL_BYTES: usize = size_of::<Link>();

    pub(crate) fn new(limit: Arc<Limit>, since: Since, op: Arc<OpStats>, scope: Arc<Scope>) -> Self {
        Deadlines {
            limit,
            since,
            op,
            scope,
            failed: false,
            left: None,
            inside: false,
            entered: None,
            links: Vec::new(),
            first: None,
            last: None,
            timer: Timer::default(),
            set: None,
        }
    }

    /// The call in `slot` was polled and waits, for the `first` time or not.
    pub(super) fn waits(&mut self, slot: usize, first: bool) {
        let (ended, begins) = match self.since {
            Since::Waiting => (false, first),
            Since::Said | Since::Attempt => self.limit.take_said(),
        };
        if ended {
            self.remove(slot);
        }
        if begins {
            self.add(slot);
        }
    }

    /// The call in `slot` has ended. What it said meanwhile is nothing of the next one's.
    pub(super) fn ends(&mut self, slot: usize) {
        let _ = self.limit.take_said();
        self.remove(slot);
    }

    fn add(&mut self, slot: usize) {
        if self.links.len() <= slot {
            self.links.resize(slot + 1, Link::default());
        }
        let before = self.last.replace(slot);
        match before {
            Some(before) => self.links[before].after = Some(slot),
            None => self.first = Some(slot),
        }
        self.links[slot] = Link { until: Some(Instant::now() + self.limit.time), before, after: None };
    }

    /// The time of the call in `slot` has ended, if it ever began.
    fn remove(&mut self, slot: usize) {
        let Some(link) = self.links.get_mut(slot) else { return };
        let Link { until: Some(_), before, after } = std::mem::take(link) else { return };
        match before {
            Some(before) => self.links[before].after = after,
            None => self.first = after,
        }
        match after {
            Some(after) => self.links[after].before = before,
            None => self.last = before,
        }
    }

    fn next(&self) -> Option<(usize, Instant)> {
        let first = self.first?;
        Some((first, self.links[first].until?))
    }

    /// The operator returns, though it could go on.
    pub(super) fn leave(&mut self) {
        self.inside = false;
        self.left = self.first.map(|_| Instant::now());
    }

    /// The operator returns, and can do nothing before it is woken.
    pub(super) fn rest(&mut self) {
        self.inside = false;
    }

    /// The operator is asked again; a call was `woken` then, if any was. After a panic nobody knows since when it was held
    /// back: then it counts as held back.
    pub(super) fn enter(&mut self, woken: Option<Instant>) {
        let unwound = std::mem::replace(&mut self.inside, true);
        let since = self.left.take().or(woken);
        self.entered = self.first.map(|_| {
            let now = Instant::now();
            let held = |since| now.saturating_duration_since(since) > HELD_MIN;
            (now, unwound || since.is_some_and(held))
        });
    }

    /// Takes a call from the list that has had its time when the operator was entered, and says whether it was held back.
    pub(super) fn take_due(&mut self) -> Option<(usize, bool)> {
        let (now, held) = self.entered?;
        let (slot, until) = self.next()?;
        (until <= now).then(|| {
            self.remove(slot);
            (slot, held)
        })
    }

    /// Whether a call whose time is over is dropped, if it does not end by itself.
    pub(super) fn ends_calls(&self) -> bool {
        self.since != Since::Attempt
    }

    /// The call in `slot` has all its time again.
    pub(super) fn renew(&mut self, slot: usize) {
        self.add(slot);
    }

    /// Tells the call that is polled next that it has had its time.
    pub(super) fn over(&self) -> Over {
        self.limit.over.store(true, Ordering::Relaxed);
        Over(self.limit.clone())
    }

    /// Ready when a call has had its time; else the stage is woken then.
    pub(super) fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some((_, until)) = self.next() {
            // Most calls end in time. A timer that is set for one of those is left as it is, and set anew when it goes off:
            // once in the time of the limit, not once for every call.
            let set = *self.set.get_or_insert(until);
            if self.timer.poll_until(cx, set).is_pending() {
                return Poll::Pending;
            }
            self.set = None;
            if until <= Instant::now() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// Settles an item whose call was dropped, by the run's policy: the function cannot say what is to become of it.
    #[cold]
    pub(super) fn late<K: Settle>(&mut self, token: K) {
        self.op.add_failed(1);
        let failure = Failure::new(self.op.name(), &self.limit.error(), self.scope.clock().now());
        match self.scope.panic_policy() {
            PanicPolicy::Dead => settle_dead(token, failure, &self.scope),
            PanicPolicy::Fail => {
                // Dropped unsettled: to be delivered again.
                drop(token);
                self.failed = true;
                self.scope.fail(RunErrorKind::Item(failure));
            }
        }
    }

    /// Whether an item that was late has failed the run.
    pub(super) fn failed(&self) -> bool {
        self.failed
    }
}

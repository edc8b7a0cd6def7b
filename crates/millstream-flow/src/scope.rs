//! What all stages of one run share: its clock, its counters, its knobs, its tasks, and the word to stop.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures_util::task::AtomicWaker;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::failure::{BoxError, Failure, chain};
use crate::knob::Knob;
use crate::stats::{HopStats, OpStats, StageStats};
use crate::token::Account;

/// What becomes of a run when a user's function panics, or an async one has had its
/// [time](crate::Concurrency::time_limit), outside of an operator that declares it.
///
/// The process goes on in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PanicPolicy {
    /// The run fails, naming the stage; what was under way is given back to its source.
    #[default]
    Fail,
    /// That item is dead: counted, and for tracked flows settled as dead, so that the source can dead-letter the
    /// message. The run goes on.
    Dead,
}

/// Why a run failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum RunErrorKind {
    /// An item failed, and the declared policy is to fail.
    Item(Failure),
    /// A source could not go on.
    Source(BoxError),
    /// A sink could not go on.
    Sink(BoxError),
    /// An operator ended the run, as it was declared to: [`Silent`](crate::Silent), [`Overflowed`](crate::Overflowed).
    Stage(BoxError),
    /// The task was cancelled from outside, for example because the runtime shut down.
    Cancelled,
}

/// One hop as the run knows it.
#[derive(Debug, Clone)]
pub(crate) struct HopEntry {
    pub(crate) stats: Arc<HopStats>,
    pub(crate) capacity: Knob,
    pub(crate) bytes_max: Option<usize>,
}

/// Counters of flows without tokens, which count themselves.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) received: AtomicU64,
    pub(crate) completed: AtomicU64,
    /// Whether several ends may count what they completed at once: the flow goes to lanes.
    pub(crate) several_ends: AtomicBool,
    pub(crate) dead: AtomicU64,
    /// Items that operators made more of (one in, k out: k - 1).
    pub(crate) split: AtomicU64,
    /// Items that operators made fewer of (k in, one out: k - 1).
    pub(crate) merged: AtomicU64,
}

#[derive(Default)]
struct Parts {
    stages: Vec<Arc<StageStats>>,
    hops: Vec<HopEntry>,
    knobs: Vec<Knob>,
    accounts: Vec<Arc<Account>>,
    untracked_ops: Vec<Arc<OpStats>>,
    memory: Vec<MemoryUse>,
    stops: Vec<Arc<StopSignal>>,
    children: Vec<Arc<Scope>>,
    alarms: Vec<Arc<AtomicWaker>>,
}

/// One line of a run's memory bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryUse {
    /// Who may hold it.
    pub what: String,
    /// How much, at most.
    pub bytes: u64,
}

/// Everything that the stages of one run share. One for each source until [`adopt`](Scope::adopt) joins them.
pub(crate) struct Scope {
    clock: Mutex<Clock>,
    pub(crate) counts: Counts,
    /// Tasks that nobody needs any more and that have not ended yet. The end of a run waits for them.
    pub(crate) leaving: TaskTracker,
    parts: Mutex<Parts>,
    /// Set when the scope was adopted; else it leads nowhere.
    parent: Mutex<Weak<Scope>>,
    stopping: AtomicBool,
    failed: AtomicBool,
    failure: Mutex<Option<RunErrorKind>>,
    ends: Mutex<Ends>,
    panic_policy: Mutex<Option<PanicPolicy>>,
}

/// The ends of a run that were started: several, if its lanes go to several.
#[derive(Debug, Default)]
struct Ends {
    begun: bool,
    running: usize,
}

/// An end of a run, as long as its task lives.
#[derive(Debug)]
pub(crate) struct Running(Arc<Scope>);

impl Drop for Running {
    fn drop(&mut self) {
        // What is poisoned is only a count.
        self.0.ends.lock().unwrap_or_else(PoisonError::into_inner).running -= 1;
    }
}

impl Scope {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Scope {
            clock: Mutex::new(Clock::system()),
            counts: Counts::default(),
            leaving: TaskTracker::new(),
            parts: Mutex::default(),
            parent: Mutex::default(),
            stopping: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            failure: Mutex::default(),
            ends: Mutex::default(),
            panic_policy: Mutex::default(),
        })
    }

    /// The wall clock of the run.
    pub(crate) fn clock(&self) -> Clock {
        *self.clock.lock().expect("nothing panics while the clock is held")
    }

    pub(crate) fn set_clock(&self, clock: Clock) {
        *self.clock.lock().expect("nothing panics while the clock is held") = clock;
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().expect("nothing panics while a scope is held")
    }

    /// Makes one run of this scope's and `other`'s. Returns the scope that stands for it.
    pub(crate) fn adopt(self: &Arc<Self>, other: &Arc<Scope>) -> Arc<Scope> {
        let (root, joins) = (self.root(), other.root());
        if Arc::ptr_eq(&root, &joins) {
            return root; // lanes of one flow that come together again
        }
        *joins.parent.lock().expect("nothing panics while a parent is held") = Arc::downgrade(&root);
        let policy = *joins.policy();
        let mut own = root.policy();
        *own = own.or(policy);
        drop(own);
        root.parts().children.push(joins);
        root
    }

    /// The scope that stands for the whole run.
    pub(crate) fn root(self: &Arc<Self>) -> Arc<Scope> {
        let mut scope = self.clone();
        loop {
            let parent = scope.parent.lock().expect("nothing panics while a parent is held").upgrade();
            match parent {
                Some(parent) => scope = parent,
                None => return scope,
            }
        }
    }

    /// This scope and those it adopted.
    pub(crate) fn all(self: &Arc<Self>) -> Vec<Arc<Scope>> {
        let mut all = vec![self.clone()];
        let mut next = 0;
        while next < all.len() {
            let children = all[next].parts().children.clone();
            all.extend(children);
            next += 1;
        }
        all
    }

    pub(crate) fn add_stage(&self, stage: Arc<StageStats>) {
        self.parts().stages.push(stage);
    }
    pub(crate) fn add_hop(&self, hop: HopEntry) {
        self.parts().hops.push(hop);
    }
    pub(crate) fn add_knob(&self, knob: Knob) {
        self.parts().knobs.push(knob);
    }
    pub(crate) fn add_account(&self, account: Arc<Account>) {
        self.parts().accounts.push(account);
    }
    /// Remembers an operator of a flow without tokens, whose drops the ledger reads from the operator itself.
    pub(crate) fn add_untracked_op(&self, op: Arc<OpStats>) {
        self.parts().untracked_ops.push(op);
    }
    pub(crate) fn add_memory(&self, what: String, bytes: usize) {
        self.parts().memory.push(MemoryUse { what, bytes: bytes as u64 });
    }

    pub(crate) fn stages(&self) -> Vec<Arc<StageStats>> {
        self.parts().stages.clone()
    }
    pub(crate) fn hops(&self) -> Vec<HopEntry> {
        self.parts().hops.clone()
    }
    pub(crate) fn hop_count(&self) -> usize {
        self.parts().hops.len()
    }
    pub(crate) fn knobs(&self) -> Vec<Knob> {
        self.parts().knobs.clone()
    }
    pub(crate) fn accounts(&self) -> Vec<Arc<Account>> {
        self.parts().accounts.clone()
    }
    pub(crate) fn untracked_ops(&self) -> Vec<Arc<OpStats>> {
        self.parts().untracked_ops.clone()
    }
    pub(crate) fn memory(&self) -> Vec<MemoryUse> {
        self.parts().memory.clone()
    }

    /// A signal for a new source to listen to.
    pub(crate) fn stop_signal(&self) -> Arc<StopSignal> {
        let signal = Arc::new(StopSignal { set: AtomicBool::new(false), waker: AtomicWaker::new() });
        self.parts().stops.push(signal.clone());
        if self.stopping.load(Ordering::Acquire) {
            signal.raise();
        }
        signal
    }

    /// Tells every source to accept nothing more; what was accepted flows on.
    pub(crate) fn stop(self: &Arc<Self>) {
        // Before looking for the others: whoever is adopted meanwhile reads it.
        self.stopping.store(true, Ordering::Release);
        for scope in self.all() {
            scope.stopping.store(true, Ordering::Release);
            let stops = scope.parts().stops.clone();
            for signal in stops {
                signal.raise();
            }
        }
    }

    /// Whether sources are told to accept nothing more.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// An end of the run has been started, and lasts until what is returned is dropped.
    pub(crate) fn start_end(self: &Arc<Self>) -> Running {
        let root = self.root();
        let mut ends = root.ends.lock().expect("nothing panics while ends are counted");
        (ends.begun, ends.running) = (true, ends.running + 1);
        drop(ends);
        Running(root)
    }

    /// Whether the ends that were started are over.
    pub(crate) fn has_ended(self: &Arc<Self>) -> bool {
        let root = self.root();
        let ends = root.ends.lock().expect("nothing panics while ends are counted");
        ends.begun && ends.running == 0
    }

    /// Fails the run. The first failure is the run's.
    pub(crate) fn fail(self: &Arc<Self>, kind: RunErrorKind) {
        let root = self.root();
        root.failure.lock().expect("nothing panics while a failure is held").get_or_insert(kind);
        for scope in root.all() {
            scope.failed.store(true, Ordering::Release);
            let alarms = scope.parts().alarms.clone();
            alarms.iter().for_each(|alarm| alarm.wake());
        }
    }

    /// What wakes an end of the run when a stage elsewhere has failed. A run has several ends if its lanes go to
    /// several.
    pub(crate) fn alarm(&self) -> Arc<AtomicWaker> {
        let alarm = Arc::new(AtomicWaker::new());
        self.parts().alarms.push(alarm.clone());
        alarm
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(crate) fn take_failure(self: &Arc<Self>) -> Option<RunErrorKind> {
        let root = self.root();
        let mut failure = root.failure.lock().expect("nothing panics while a failure is held");
        let kind = failure.take()?;
        // What the other ends of the run are told.
        *failure = Some(match &kind {
            RunErrorKind::Item(failure) => RunErrorKind::Item(failure.clone()),
            RunErrorKind::Source(error) => RunErrorKind::Source(chain(&**error).into()),
            RunErrorKind::Sink(error) => RunErrorKind::Sink(chain(&**error).into()),
            RunErrorKind::Stage(error) => RunErrorKind::Stage(chain(&**error).into()),
            RunErrorKind::Cancelled => RunErrorKind::Cancelled,
        });
        Some(kind)
    }

    fn policy(&self) -> MutexGuard<'_, Option<PanicPolicy>> {
        self.panic_policy.lock().expect("nothing panics while a policy is held")
    }

    pub(crate) fn set_panic_policy(self: &Arc<Self>, policy: PanicPolicy) {
        *self.root().policy() = Some(policy);
    }

    pub(crate) fn panic_policy(self: &Arc<Self>) -> PanicPolicy {
        self.root().policy().unwrap_or_default()
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("counts", &self.counts).finish_non_exhaustive()
    }
}

/// How a source hears that it must accept nothing more.
#[derive(Debug)]
pub(crate) struct StopSignal {
    set: AtomicBool,
    waker: AtomicWaker,
}

impl StopSignal {
    #[inline]
    pub(crate) fn is_raised(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// Registers the waiting source; look at `is_raised` again afterwards.
    pub(crate) fn register(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }

    fn raise(&self) {
        self.set.store(true, Ordering::Release);
        self.waker.wake();
    }
}

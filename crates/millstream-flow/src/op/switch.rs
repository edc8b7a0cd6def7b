//! A fan-out by key whose routes come and go.

use std::collections::HashSet;
use std::hash::Hash;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use hashbrown::HashMap;

use crate::flow::Flow;
use crate::measure::Unmeasured;
use crate::op::broadcast::{Companions, Outlet, Place, Route};
use crate::pipe::{Buffered, Lane, Pipe};
use crate::scope::Scope;
use crate::spawn::Tasks;
use crate::stats::OpStats;
use crate::token::{Outcome, Settle};

/// A change of the routes. The default route has no key.
enum Change<Q, T, K> {
    Set(Option<Q>, Outlet<T, K>, Companions),
    Remove(Option<Q>),
}

/// Where the handle leaves changes for the stage.
pub(crate) struct Board<Q, T, K> {
    notes: Mutex<Notes<Q, T, K>>,
    /// Whether there is a change that the stage has not seen.
    news: AtomicBool,
    stage: AtomicWaker,
}

struct Notes<Q, T, K> {
    changes: Vec<Change<Q, T, K>>,
    keys: HashSet<Q>,
    /// The handle is gone: nothing will change any more.
    settled: bool,
    /// The stage is gone: nothing will flow any more.
    ended: bool,
}

impl<Q, T, K> Board<Q, T, K> {
    pub(crate) fn new() -> Arc<Self> {
        let notes = Notes { changes: Vec::new(), keys: HashSet::new(), settled: false, ended: false };
        Arc::new(Board { notes: Mutex::new(notes), news: AtomicBool::new(false), stage: AtomicWaker::new() })
    }

    fn notes(&self) -> MutexGuard<'_, Notes<Q, T, K>> {
        self.notes.lock().expect("nothing panics while the notes are held")
    }

    /// Leaves a change for the stage. When that is gone, the change is dropped, and a new route ends at once.
    fn tell(&self, change: Change<Q, T, K>) {
        let mut notes = self.notes();
        if notes.ended {
            return;
        }
        notes.changes.push(change);
        drop(notes);
        self.wake();
    }

    fn wake(&self) {
        self.news.store(true, Ordering::Release);
        self.stage.wake();
    }
}

/// The routes of a flow that is split by key. See [`Pipe::switch`].
///
/// Dropping it leaves the routes as they are.
pub struct Switch<F: Flow, Q> {
    board: Arc<Board<Q, F::Item, F::Token>>,
    tasks: Tasks,
    scope: Arc<Scope>,
    op: Arc<OpStats>,
}

impl<F, Q> Switch<F, Q>
where
    F: Flow,
    F::Item: Send + 'static,
    Q: Hash + Eq + Clone,
{
    pub(crate) fn new(
        board: Arc<Board<Q, F::Item, F::Token>>,
        tasks: Tasks,
        scope: Arc<Scope>,
        op: Arc<OpStats>,
    ) -> Self {
        Switch { board, tasks, scope, op }
    }

    /// Names the operator: in reports, and as what dropped the items that no route is for.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        self.op.rename(name.into());
        self
    }

    /// A route for the items of a key, from now on. If the key had one, that one ends after what is in it.
    ///
    /// Its buffer stays in the run's report and memory bound when it has ended: two to three kilobytes for each route that was
    /// ever added.
    pub fn route(&self, key: Q, lane: impl Into<Lane>) -> Pipe<Buffered<F, Unmeasured>> {
        self.board.notes().keys.insert(key.clone());
        self.add(Some(key), lane.into())
    }

    /// A route for the items of all keys that have none, from now on.
    pub fn default_route(&self, lane: impl Into<Lane>) -> Pipe<Buffered<F, Unmeasured>> {
        self.add(None, lane.into())
    }

    fn add(&self, key: Option<Q>, lane: Lane) -> Pipe<Buffered<F, Unmeasured>> {
        let (outlet, end) = Outlet::new(&self.scope, &self.op, lane.ring_capacity());
        let companions = Companions::default();
        let pipe = end.pipe(&self.tasks, &self.scope, &self.op).shedding(lane, &companions);
        self.board.tell(Change::Set(key, outlet, companions));
        pipe
    }

    /// Ends a key's route: what is in it is still read, what comes is for the default route, or nobody. False if there was
    /// none.
    pub fn remove(&self, key: &Q) -> bool {
        let Some(key) = self.board.notes().keys.take(key) else { return false };
        self.board.tell(Change::Remove(Some(key)));
        true
    }

    /// Ends the default route: what comes for it is dropped.
    pub fn remove_default(&self) {
        self.board.tell(Change::Remove(None));
    }

    /// Whether a key has a route.
    pub fn has_route(&self, key: &Q) -> bool {
        self.board.notes().keys.contains(key)
    }

    /// The keys that have one, in no order.
    pub fn keys(&self) -> Vec<Q> {
        self.board.notes().keys.iter().cloned().collect()
    }
}

impl<F: Flow, Q> Drop for Switch<F, Q> {
    fn drop(&mut self) {
        self.board.notes().settled = true;
        self.board.wake();
    }
}

/// Each item to the route of its key.
pub(crate) struct ToRoute<N, Q, T, K> {
    key: N,
    /// Which lane a key goes to.
    routes: HashMap<Q, usize>,
    default: Option<usize>,
    /// Lanes whose routes were removed.
    free: Vec<usize>,
    board: Arc<Board<Q, T, K>>,
    settled: bool,
    /// Lanes with routes that nobody reads, for which items came.
    stuck: Vec<usize>,
    op: Arc<OpStats>,
}

impl<N, Q: Hash + Eq, T, K> ToRoute<N, Q, T, K> {
    pub(crate) fn new(key: N, board: Arc<Board<Q, T, K>>, op: Arc<OpStats>) -> Self {
        ToRoute {
            key,
            routes: HashMap::new(),
            default: None,
            free: Vec::new(),
            board,
            settled: false,
            stuck: Vec::new(),
            op,
        }
    }

    fn set(&mut self, key: Option<Q>, lane: Option<usize>) -> Option<usize> {
        match (key, lane) {
            (None, lane) => mem::replace(&mut self.default, lane),
            (Some(key), Some(lane)) => self.routes.insert(key, lane),
            (Some(key), None) => self.routes.remove(&key),
        }
    }

    #[cold]
    fn stick(&mut self, lane: usize) {
        if !self.stuck.contains(&lane) {
            self.stuck.push(lane);
        }
    }

    fn apply(&mut self, change: Change<Q, T, K>, lanes: &mut Vec<Outlet<T, K>>) {
        let before = match change {
            Change::Remove(key) => self.set(key, None),
            Change::Set(key, outlet, companions) => {
                companions.start();
                let lane = match self.free.pop() {
                    Some(lane) => {
                        lanes[lane] = outlet;
                        lane
                    }
                    None => {
                        lanes.push(outlet);
                        lanes.len() - 1
                    }
                };
                self.set(key, Some(lane))
            }
        };
        if let Some(lane) = before {
            // Its reader finds the end behind what is in the ring.
            lanes[lane].writer = None;
            self.free.push(lane);
            self.stuck.retain(|stuck| *stuck != lane);
        }
    }
}

impl<N, Q, T, K> Route<T, K> for ToRoute<N, Q, T, K>
where
    N: FnMut(&T) -> Q + Send + 'static,
    Q: Hash + Eq + Send + 'static,
    T: Send + 'static,
    K: Settle,
{
    fn route<P: Place<T, K>>(&mut self, item: T, token: K, lanes: &mut [P], sent: &mut u64) {
        *sent += 1;
        let key = (self.key)(&item);
        match self.routes.get(&key).copied().or(self.default) {
            Some(lane) if lanes[lane].is_open() => lanes[lane].place(item, token),
            // Its reader is gone without a word: dropping the token gives the item back.
            Some(lane) => {
                if K::TRACKED {
                    self.stick(lane);
                } else {
                    self.op.add_dropped(1);
                }
            }
            None => {
                self.op.add_dropped(1);
                if K::TRACKED {
                    token.settle(&Outcome::Dropped(self.op.name()));
                }
            }
        }
    }

    fn poll_lanes(&mut self, cx: &mut Context<'_>, lanes: &mut Vec<Outlet<T, K>>) -> Poll<()> {
        if !self.settled {
            self.board.stage.register(cx.waker());
        }
        if self.board.news.swap(false, Ordering::AcqRel) {
            let mut notes = self.board.notes();
            let changes = mem::take(&mut notes.changes);
            self.settled = notes.settled;
            drop(notes);
            changes.into_iter().for_each(|change| self.apply(change, lanes));
        }
        if self.routes.is_empty() && self.default.is_none() && !self.settled {
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn may_grow(&self) -> bool {
        !self.settled
    }

    fn is_stuck(&self) -> bool {
        !self.stuck.is_empty()
    }

    fn forget_stuck(&mut self) {
        self.stuck.clear();
    }
}

impl<N, Q, T, K> Drop for ToRoute<N, Q, T, K> {
    fn drop(&mut self) {
        let mut notes = self.board.notes();
        notes.ended = true;
        let changes = mem::take(&mut notes.changes);
        drop(notes);
        drop(changes);
    }
}

//! What stages, hops and operators count while they run. Written by one task each, read by anybody.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crate::clock::Tick;
use crate::ring::Writer;

/// One operator's name and what it did not pass on.
#[derive(Debug)]
pub(crate) struct OpStats {
    kind: &'static str,
    name: Mutex<Arc<str>>,
    dropped: AtomicU64,
    failed: AtomicU64,
}

impl OpStats {
    pub(crate) fn new(kind: &'static str) -> Arc<Self> {
        Arc::new(OpStats { kind, name: Mutex::new(kind.into()), dropped: 0.into(), failed: 0.into() })
    }

    /// What the operator is: `map`, `filter`.
    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    /// The name the user gave it, else its kind.
    pub(crate) fn name(&self) -> Arc<str> {
        self.name.lock().expect("nothing panics while a name is held").clone()
    }

    pub(crate) fn rename(&self, name: Arc<str>) {
        *self.name.lock().expect("nothing panics while a name is held") = name;
    }

    /// Items that ended here by declaration.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Calls of the user's function that failed for good.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Called by the operator only, and an operator runs in one task: no read-modify-write is needed.
    pub(crate) fn add_dropped(&self, items: u64) {
        self.dropped.store(self.dropped.load(Ordering::Relaxed) + items, Ordering::Relaxed);
    }

    pub(crate) fn add_failed(&self, items: u64) {
        self.failed.fetch_add(items, Ordering::Relaxed);
    }
}

/// One stage: a run of operators fused into one task.
#[derive(Debug)]
pub(crate) struct StageStats {
    ops: Vec<Arc<OpStats>>,
    items_out: AtomicU64,
    quanta: AtomicU64,
    busy_ns: AtomicU64,
    starved_ns: AtomicU64,
    blocked_ns: AtomicU64,
    panics: AtomicU64,
    stalls: AtomicU64,
    /// The tick at which it began to work on what it works on now; 0 if it does not.
    working_since: AtomicU64,
    /// The same for each worker of `parallel`.
    workers_since: OnceLock<Box<[AtomicU64]>>,
}

/// A stage that works for this long without letting others run stalls: a user's function blocks. It keeps its thread, and
/// every other task on it, from running.
pub(crate) const STALL: Duration = Duration::from_millis(100);

impl StageStats {
    pub(crate) fn new(ops: Vec<Arc<OpStats>>) -> Self {
        StageStats {
            ops,
            items_out: 0.into(),
            quanta: 0.into(),
            busy_ns: 0.into(),
            starved_ns: 0.into(),
            blocked_ns: 0.into(),
            panics: 0.into(),
            stalls: 0.into(),
            working_since: 0.into(),
            workers_since: OnceLock::new(),
        }
    }

    /// The operators, from the source's end.
    pub(crate) fn ops(&self) -> &[Arc<OpStats>] {
        &self.ops
    }

    /// The operators' names joined: what the report calls the stage.
    pub(crate) fn name(&self) -> String {
        let names: Vec<_> = self.ops.iter().map(|op| op.name().to_string()).collect();
        names.join(" → ")
    }

    /// Items handed to the next stage or taken by the sink.
    pub(crate) fn items_out(&self) -> u64 {
        self.items_out.load(Ordering::Relaxed)
    }

    /// How often the stage's driver went round.
    pub(crate) fn quanta(&self) -> u64 {
        self.quanta.load(Ordering::Relaxed)
    }

    /// Time spent working.
    pub(crate) fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy_ns.load(Ordering::Relaxed))
    }

    /// Time spent waiting for the stage before, or for the source.
    pub(crate) fn starved(&self) -> Duration {
        Duration::from_nanos(self.starved_ns.load(Ordering::Relaxed))
    }

    /// Time spent waiting for room downstream: the next hop was full, or the sink was writing.
    pub(crate) fn blocked(&self) -> Duration {
        Duration::from_nanos(self.blocked_ns.load(Ordering::Relaxed))
    }

    /// Panics of users' functions, each one item's failure.
    pub(crate) fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// How often it worked for longer than [`STALL`] in one go.
    pub(crate) fn stalls(&self) -> u64 {
        self.stalls.load(Ordering::Relaxed)
    }

    /// How long it has been working in one go; of several workers the one that has for longest.
    pub(crate) fn working(&self) -> Duration {
        let workers = self.workers_since.get().map_or(&[][..], |workers| workers);
        let began = workers.iter().chain([&self.working_since]);
        let began = began.filter_map(|since| Tick::of_raw(since.load(Ordering::Relaxed)));
        let now = Tick::now();
        began.map(|since| now.since(since)).max().unwrap_or_default()
    }

    /// Says that so many workers turn the stage, each of which [works](Self::work_as) for itself.
    pub(crate) fn has_workers(&self, workers: usize) {
        self.workers_since.get_or_init(|| (0..workers).map(|_| 0.into()).collect());
    }

    /// As [`work`](Self::work), by one of several workers.
    pub(crate) fn work_as(&self, worker: usize, since: Option<Tick>) {
        if let Some(slot) = self.workers_since.get().and_then(|workers| workers.get(worker)) {
            slot.store(since.map_or(0, Tick::raw), Ordering::Relaxed);
        }
    }

    /// To be called before users' functions are, and with `None` after.
    #[inline]
    pub(crate) fn work(&self, since: Option<Tick>) {
        self.working_since.store(since.map_or(0, Tick::raw), Ordering::Relaxed);
    }

    /// Notes that the stage worked for so long in one go, if that was too long.
    #[cold]
    pub(crate) fn add_stall(&self, took: Duration) {
        if took >= STALL {
            self.stalls.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(stage = %self.name(), ?took, "a user's function blocks; other tasks of its thread wait for it");
        }
    }

    /// Adds a quantum of a stage that runs in one task at a time, as all but `parallel`'s workers do: no
    /// read-modify-write is needed.
    #[inline]
    pub(crate) fn add_quantum(&self, items: u64, busy: Duration) {
        add(&self.items_out, items);
        add(&self.quanta, 1);
        add(&self.busy_ns, nanos(busy));
    }

    /// As [`add_quantum`](Self::add_quantum), for a stage whose tasks add at the same time.
    pub(crate) fn add_quantum_shared(&self, items: u64, busy: Duration) {
        self.items_out.fetch_add(items, Ordering::Relaxed);
        self.quanta.fetch_add(1, Ordering::Relaxed);
        self.busy_ns.fetch_add(nanos(busy), Ordering::Relaxed);
    }

    pub(crate) fn add_starved(&self, time: Duration) {
        add(&self.starved_ns, nanos(time));
    }

    pub(crate) fn add_blocked(&self, time: Duration) {
        add(&self.blocked_ns, nanos(time));
    }

    pub(crate) fn add_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }
}

/// Adds to what one task at a time writes: no read-modify-write is needed.
#[inline]
fn add(to: &AtomicU64, more: u64) {
    to.store(to.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

fn nanos(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(time.subsec_nanos()))
}

/// Tells the items and the bytes that wait in a ring, while there is one.
type Waiting = dyn Fn() -> Option<(usize, usize)> + Send + Sync;

/// Where a hop's [`Waiting`] is, if it has a ring.
#[derive(Default)]
struct Gauge(OnceLock<Box<Waiting>>);

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauge")
    }
}

/// One hop: the bounded hand-over between two stages.
#[derive(Debug, Default)]
pub(crate) struct HopStats {
    ring: Gauge,
    len: AtomicUsize,
    bytes: AtomicUsize,
    len_max: AtomicUsize,
    chunks: AtomicU64,
    items: AtomicU64,
}

impl HopStats {
    /// Of a hop whose items wait in a ring.
    pub(crate) fn of_ring<T: Send + 'static>(&self, writer: &Writer<T>) {
        self.ring.0.get_or_init(|| Box::new(writer.gauge()));
    }

    /// Items waiting in the hop, and their bytes by the hop's own measure, or 0 if it has none.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        match self.ring.0.get() {
            Some(gauge) => gauge().unwrap_or_default(),
            None => (self.len.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed)),
        }
    }

    /// The most items that ever waited.
    pub(crate) fn len_max(&self) -> usize {
        self.len_max.load(Ordering::Relaxed)
    }

    /// Chunks handed over.
    pub(crate) fn chunks(&self) -> u64 {
        self.chunks.load(Ordering::Relaxed)
    }

    /// Items handed over.
    pub(crate) fn items(&self) -> u64 {
        self.items.load(Ordering::Relaxed)
    }

    /// What a ring's writer has handed over. It is the only one that counts, so no read-modify-write is needed.
    pub(crate) fn published<T>(&self, writer: &Writer<T>) {
        let len_max = self.len_max.load(Ordering::Relaxed).max(writer.len());
        self.len_max.store(len_max, Ordering::Relaxed);
        self.chunks.store(writer.chunks() as u64, Ordering::Relaxed);
        self.items.store(writer.written() as u64, Ordering::Relaxed);
    }

    /// A chunk that was put on a shelf, which has `len` items and `bytes` now.
    pub(crate) fn shelved(&self, items: usize, len: usize, bytes: usize) {
        self.observed(len, bytes);
        self.len_max.fetch_max(len, Ordering::Relaxed);
        self.chunks.fetch_add(1, Ordering::Relaxed);
        self.items.fetch_add(items as u64, Ordering::Relaxed);
    }

    /// How much waits on a shelf.
    pub(crate) fn observed(&self, len: usize, bytes: usize) {
        self.len.store(len, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }
}

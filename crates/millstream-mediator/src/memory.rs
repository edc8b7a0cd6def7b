//! Budgets of memory, by which calls and streams are held back.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::behaviours::register_resource;
use crate::message::About;
use crate::metrics::{WeakCounter, nanoseconds};

/// A budget of memory: what is known to be held ([reserved](Memory::reserve) bytes, those of streams' buffers among them), and what
/// a probe finds that the process uses. Clones are the same budget.
///
/// It is *short* from the high mark on until it has come down to the low one.
///
/// ```
/// use millstream_mediator::{Admission, Mediator, Memory};
///
/// let memory = Memory::new(512 << 20).marks(0.9, 0.7);
/// let builder = Mediator::builder().behaviour(Admission::new(memory.clone()));
/// let buffer = memory.reserve(500 << 20); // counts until it is dropped
/// assert!(memory.is_short());
/// drop(buffer);
/// assert!(!memory.is_short());
/// # let _ = builder;
/// ```
#[derive(Clone)]
pub struct Memory(Arc<Budget>);

struct Budget {
    limit: u64,
    high: u64,
    low: u64,
    reserved: AtomicU64,
    probe: Option<Probe>,
    growth_max: Option<u64>,
    /// It has been at the high mark, and not yet down to the low one.
    above: AtomicBool,
    /// That, or it grows too fast.
    short: AtomicBool,
    /// What to do when it becomes short, and who counts how often that was done: each mediator once, as long as it is there.
    shrink: Vec<Box<dyn Fn() + Send + Sync>>,
    shrunk: Mutex<Vec<WeakCounter>>,
    released: Notify,
}

/// What a probe found last, read without a lock by all but the one who asks it anew.
struct Probe {
    every: Duration,
    read: Box<dyn Fn() -> Option<u64> + Send + Sync>,
    began: Instant,
    /// Nanoseconds from `began` to when it is due again.
    due: AtomicU64,
    used: AtomicU64,
    /// Since the time before, more than may be in a second.
    rushes: AtomicBool,
    /// When it was asked last, and what it said.
    asked: Mutex<Option<(Instant, Option<u64>)>>,
}

impl Memory {
    /// A budget of so many bytes, short from 90 % on until it is down to 80 %.
    ///
    /// # Panics
    /// If `bytes` is 0.
    pub fn new(bytes: u64) -> Self {
        assert!(bytes > 0, "a budget of nothing lets nothing pass");
        Memory(Arc::new(Budget {
            limit: bytes,
            high: part(bytes, 0.9),
            low: part(bytes, 0.8),
            reserved: AtomicU64::new(0),
            probe: None,
            growth_max: None,
            above: AtomicBool::new(false),
            short: AtomicBool::new(false),
            shrink: Vec::new(),
            shrunk: Mutex::default(),
            released: Notify::new(),
        }))
    }

    fn with(self, set: impl FnOnce(&mut Budget)) -> Self {
        let mut shared = self.0;
        set(Arc::get_mut(&mut shared).expect("a budget is set up before it is shared"));
        Memory(shared)
    }

    /// From which part of the budget on it is short, and down to which.
    ///
    /// # Panics
    /// If they are not in order within 0 and 1, or the budget is already shared.
    #[must_use]
    pub fn marks(self, high: f64, low: f64) -> Self {
        assert!(
            0.0 < low && low <= high && high <= 1.0,
            "marks are 0 < low <= high <= 1, not {low} and {high}"
        );
        self.with(|budget| (budget.high, budget.low) = (part(budget.limit, high), part(budget.limit, low)))
    }

    /// Asks also how many bytes the process uses, at most so often; `None` stands for not known.
    ///
    /// # Panics
    /// If `every` is 0, since growth has no rate in no time, or the budget is already shared.
    #[must_use]
    pub fn probe(self, every: Duration, read: impl Fn() -> Option<u64> + Send + Sync + 'static) -> Self {
        assert!(!every.is_zero(), "a probe needs a time in which it is not asked again");
        let probe = Probe {
            every,
            read: Box::new(read),
            began: Instant::now(),
            due: AtomicU64::new(0),
            used: AtomicU64::new(0),
            rushes: AtomicBool::new(false),
            asked: Mutex::default(),
        };
        self.with(|budget| budget.probe = Some(probe))
    }

    /// It is short also while the process grows by more than so many bytes a second, from one probe to the next. Without a
    /// [probe](Memory::probe) nobody knows how fast that is, and a mediator with such a budget is not built.
    ///
    /// # Panics
    /// If the budget is already shared.
    #[must_use]
    pub fn growth_max(self, bytes_per_second: u64) -> Self {
        self.with(|budget| budget.growth_max = Some(bytes_per_second))
    }

    /// Does this each time that memory becomes short: empty a cache, give back a pool.
    ///
    /// # Panics
    /// If the budget is already shared.
    #[must_use]
    pub fn on_short(self, shrink: impl Fn() + Send + Sync + 'static) -> Self {
        self.with(|budget| budget.shrink.push(Box::new(shrink)))
    }

    /// Counts so many bytes as held until what it returns is dropped. It counts only: who must not hold them asks
    /// [`is_short`](Memory::is_short) before.
    pub fn reserve(&self, bytes: u64) -> Reserved {
        self.0.reserved.fetch_add(bytes, Ordering::AcqRel);
        Reserved { memory: self.clone(), bytes }
    }

    /// How many bytes are held: those reserved, or those the process uses if that is more.
    pub fn used(&self) -> u64 {
        self.probed().0
    }

    /// How many bytes are held, and whether the process grows too fast.
    fn probed(&self) -> (u64, bool) {
        let reserved = self.0.reserved.load(Ordering::Acquire);
        let Some(probe) = &self.0.probe else { return (reserved, false) };
        let now = Instant::now();
        if nanoseconds(now - probe.began) >= probe.due.load(Ordering::Acquire) {
            probe.ask(now, self.0.growth_max);
        }
        let used = probe.used.load(Ordering::Relaxed);
        (reserved.max(used), probe.rushes.load(Ordering::Relaxed))
    }

    /// Whether it is the same budget.
    pub(crate) fn is(&self, other: &Memory) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What is wrong with how it is set, if something is.
    pub(crate) fn problem(&self) -> Option<String> {
        let unread = self.0.growth_max.filter(|_| self.0.probe.is_none());
        unread.map(|bytes| {
            format!("`growth_max({bytes})` of a memory budget has no effect without a probe; add `probe`, or remove it")
        })
    }

    /// How many bytes there are.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// Whether it is short. The first to find it so does what [`on_short`](Memory::on_short) says.
    pub fn is_short(&self) -> bool {
        let Budget { high, low, above, short, .. } = &*self.0;
        let (used, rushes) = self.probed();
        let was_above = above.load(Ordering::Relaxed);
        let is_above = if was_above { used > *low } else { used >= *high };
        if is_above != was_above {
            above.store(is_above, Ordering::Relaxed);
        }
        let is = is_above || rushes;
        let was = short.load(Ordering::Relaxed);
        if is != was && short.compare_exchange(was, is, Ordering::AcqRel, Ordering::Relaxed).is_ok() && is {
            self.shrink(used);
        }
        is
    }

    #[cold]
    fn shrink(&self, used: u64) {
        tracing::warn!(used, limit = self.0.limit, "memory is short: calls are held back");
        for shrink in &self.0.shrink {
            for counter in self.counters().iter().filter_map(WeakCounter::get) {
                counter.add(1);
            }
            shrink();
        }
    }

    fn counters(&self) -> MutexGuard<'_, Vec<WeakCounter>> {
        self.0.shrunk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is not short.
    pub(crate) async fn until_enough(&self) {
        loop {
            let mut released = std::pin::pin!(self.0.released.notified());
            released.as_mut().enable();
            if !self.is_short() {
                return;
            }
            match &self.0.probe {
                None => released.await,
                Some(probe) => tokio::select! {
                    () = released => {}
                    () = sleep(probe.every) => {}
                },
            }
        }
    }

    pub(crate) fn register(&self, about: &About) {
        let memory = self.clone();
        register_resource(about, "memory", move || (memory.limit() as f64, memory.used() as f64));
        let help = "How often something was shrunk because memory was short.";
        let counter = about.metrics().counter("mediator_resource_cleanup_triggered_total", help, &[]);
        let mut counters = self.counters();
        counters.retain(|known| known.get().is_some() && !known.is(&counter));
        counters.push(counter.weak());
    }
}

impl Probe {
    /// Asks how many bytes the process uses, unless somebody does just now: then what was found before is good enough.
    #[cold]
    fn ask(&self, now: Instant, growth_max: Option<u64>) {
        let mut asked = match self.asked.try_lock() {
            Ok(asked) => asked,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if asked.is_some_and(|(at, _)| now.saturating_duration_since(at) < self.every) {
            return;
        }
        let found = (self.read)();
        self.used.store(found.unwrap_or(0), Ordering::Relaxed);
        // From what is not known to what is, nothing has grown.
        let rate = asked.and_then(|(at, before)| {
            let grown = found?.saturating_sub(before?) as f64;
            Some(grown / (now - at).as_secs_f64().max(1e-9))
        });
        let rushes = growth_max.zip(rate).is_some_and(|(most, rate)| rate > most as f64);
        self.rushes.store(rushes, Ordering::Relaxed);
        *asked = Some((now, found));
        self.due
            .store(nanoseconds(now - self.began).saturating_add(nanoseconds(self.every)), Ordering::Release);
    }
}

fn part(of: u64, part: f64) -> u64 {
    (of as f64 * part) as u64
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Budget { limit, high, low, reserved, .. } = &*self.0;
        f.debug_struct("Memory")
            .field("limit", limit)
            .field("high", high)
            .field("low", low)
            .field("reserved", reserved)
            .finish_non_exhaustive()
    }
}

/// Bytes that count as held. See [`Memory::reserve`].
#[derive(Debug)]
#[must_use = "bytes are held until this is dropped"]
pub struct Reserved {
    memory: Memory,
    bytes: u64,
}

impl Reserved {
    /// Holds so many from now on.
    pub fn set(&mut self, bytes: u64) {
        let budget = &self.memory.0;
        if bytes >= self.bytes {
            budget.reserved.fetch_add(bytes - self.bytes, Ordering::AcqRel);
        } else {
            budget.reserved.fetch_sub(self.bytes - bytes, Ordering::AcqRel);
            budget.released.notify_waiters();
        }
        self.bytes = bytes;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Admission, Mediator, Request};

    struct Ask;
    impl Request for Ask {
        type Response = ();
    }

    #[test]
    fn a_budget_counts_for_each_mediator_once_and_forgets_those_that_are_gone() {
        let memory = Memory::new(1000).on_short(|| {});
        let build = || {
            let admission = || Admission::new(memory.clone());
            let builder = Mediator::builder().behaviour(admission()).behaviour(admission());
            builder.request(async |_: Ask| Ok::<_, crate::Error>(())).build().expect("it is complete")
        };
        for _ in 0..10 {
            drop(build());
        }
        let mediators = [build(), build()];
        assert_eq!(memory.counters().len(), 2, "those that are there");
        let _held = memory.reserve(950);
        assert!(memory.is_short());
        for mediator in mediators {
            let snapshot = mediator.metrics().snapshot();
            assert_eq!(snapshot.number("mediator_resource_cleanup_triggered_total", &[]), Some(1.0));
        }
    }
}

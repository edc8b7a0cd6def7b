//! Buffers that are used again: tiers of sizes, a bound in bytes, leases that come back by being dropped.

mod lease;
mod local;
mod shelf;
mod snapshot;
mod waiting;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;

pub use lease::Lease;
pub use snapshot::{PoolSnapshot, TierSnapshot};

use lease::{Boxed, Content};
use local::Counts;
use shelf::Shelf;
use waiting::Waiting;

/// The sizes of the tiers, in bytes.
pub const TIERS: [usize; 9] =
    [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20];

const _: () = {
    let mut tier = 1;
    while tier < TIERS.len() {
        assert!(TIERS[tier] == 2 * TIERS[tier - 1]);
        tier += 1;
    }
};

/// What a pool may hold and do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// Whether buffers are kept for the next lease. Without that, every lease allocates and every drop frees;
    /// sizes, bounds and counts are the same.
    pub enabled: bool,
    /// The most bytes of all buffers, leased and idle; at least one of the smallest tier. To it comes what threads keep for
    /// themselves, up to [`THREAD_BYTES`] for each that has used the pool: with the default and two threads 21 MiB in all.
    /// [`BufferPool::lease_or_smaller`] may pass it by one buffer of the smallest tier for each lease.
    pub bytes_max: u64,
    /// Overwrite all that was written into a buffer, at the latest when it comes back. What one lease wrote no other can read even
    /// without this: a lease begins empty, and only what was written into it can be read.
    pub scrub: bool,
}

impl Default for PoolSettings {
    fn default() -> Self {
        PoolSettings { enabled: true, bytes_max: 20 << 20, scrub: false }
    }
}

/// The most idle bytes that one thread keeps for itself, of the tiers up to 64 KiB.
pub const THREAD_BYTES: u64 = local::BYTES_MAX;

/// A pool of buffers in tiers from 4 KiB to 1 MiB.
///
/// A [`Lease`] is a buffer that nobody else has; dropping it returns the buffer, and no other way to return one
/// exists, so that nothing can be returned twice. Buffers are made when they are first needed, kept by the thread
/// that returned them (up to 64 KiB, a few of each) or on a shelf that all threads share, and freed by
/// [`trim`](BufferPool::trim) when they were not needed for a while.
///
/// ```
/// use millstream_gateway::{BufferPool, PoolSettings};
///
/// let pool = BufferPool::new(PoolSettings::default());
/// let mut lease = pool.try_lease(10_000).expect("the pool is empty");
/// assert_eq!(lease.capacity(), 16 * 1024);
/// lease.extend(b"some bytes");
/// assert_eq!(&lease[..], b"some bytes");
/// assert_eq!(pool.snapshot().in_use, 1);
/// drop(lease);
/// assert_eq!(pool.snapshot().in_use, 0);
/// ```
///
/// # Backpressure
/// The bound counts bytes. [`lease`](BufferPool::lease) waits, in the order of asking, while the bound is reached;
/// [`try_lease`](BufferPool::try_lease) says so; [`lease_or_smaller`](BufferPool::lease_or_smaller) gives what there
/// is room for.
///
/// # When it pays
/// Against glibc's allocator always, by a factor of two on one thread and more where several take and give
/// (`cargo xtask bench gateway pool`); beside the reading of a buffer's bytes that is little. The pool is here because it is where the
/// bytes of all streams are bounded and counted, and because its buffers are never zeroed.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
    _open: Arc<Open>,
}

/// What all handles of a pool hold. When it goes, so does what lies on the shelves, which keeps the pool itself alive.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Relaxed);
        self.0.tiers.iter().for_each(Shelf::close);
    }
}

/// What all handles, leases and threads share.
pub(crate) struct Shared {
    settings: PoolSettings,
    tier_max: usize,
    tiers: [Shelf; TIERS.len()],
    /// Bytes of all buffers that exist.
    bytes: AtomicU64,
    bytes_high: AtomicU64,
    /// Threads that keep idle buffers, each up to [`local::BYTES_MAX`].
    threads: AtomicU64,
    /// Leases of more than the largest tier.
    oversize: AtomicU64,
    /// Those of threads that have ended, then one of each thread.
    counts: Mutex<(Counts, Vec<Arc<Counts>>)>,
    waiting: AtomicUsize,
    waiters: Mutex<VecDeque<(u64, Waker)>>,
    next_waiter: AtomicU64,
    /// Nobody has a handle any more.
    closed: AtomicBool,
}

impl BufferPool {
    /// A pool without buffers.
    pub fn new(mut settings: PoolSettings) -> Self {
        settings.bytes_max = settings.bytes_max.max(TIERS[0] as u64);
        let tier_max = TIERS.iter().rposition(|tier| *tier as u64 <= settings.bytes_max).unwrap_or(0);
        let shared = Arc::new(Shared {
            settings,
            tier_max,
            tiers: Default::default(),
            bytes: AtomicU64::new(0),
            bytes_high: AtomicU64::new(0),
            threads: AtomicU64::new(0),
            oversize: AtomicU64::new(0),
            counts: Mutex::default(),
            waiting: AtomicUsize::new(0),
            waiters: Mutex::default(),
            next_waiter: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        BufferPool { _open: Arc::new(Open(shared.clone())), shared }
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &PoolSettings {
        &self.shared.settings
    }

    /// A buffer of at least `size` bytes, or of the largest tier that exists and fits into the bound.
    ///
    /// `None` while the bound is reached, or somebody waits who asked earlier.
    #[inline]
    pub fn try_lease(&self, size: usize) -> Option<Lease> {
        let tier = self.shared.tier_for(size);
        if self.shared.waiting.load(Ordering::SeqCst) > 0 {
            return None;
        }
        local::take(&self.shared, tier).or_else(|| Shared::slow(&self.shared, tier, false))
    }

    /// The same, waiting while the bound is reached; in the order of asking.
    ///
    /// # Cancel safety
    /// A dropped future has taken nothing, and passes its turn on.
    pub async fn lease(&self, size: usize) -> Lease {
        if let Some(lease) = self.try_lease(size) {
            return lease;
        }
        Waiting::new(&self.shared, self.shared.tier_of(size)).await
    }

    /// A buffer of at least `size` bytes if there is room, of a smaller tier if there is none, and of the smallest
    /// always: what nobody waits for must not fail. Whoever uses this bounds how many leases he holds.
    #[inline]
    pub fn lease_or_smaller(&self, size: usize) -> Lease {
        let asked = self.shared.tier_for(size);
        let mut tier = asked;
        loop {
            if let Some(lease) = local::take(&self.shared, tier) {
                return lease;
            }
            if let Some(lease) = Shared::slow(&self.shared, tier, tier == 0) {
                return lease;
            }
            if tier == asked {
                self.shared.tiers[asked].made_smaller();
            }
            tier -= 1;
        }
    }

    /// Makes `count` buffers of `size` now and touches their memory, so that their first use finds them ready.
    /// Returns how many there was room for.
    pub fn warm_up(&self, size: usize, count: usize) -> usize {
        let tier = self.shared.tier_of(size);
        if !self.shared.settings.enabled {
            return 0;
        }
        (0..count)
            .take_while(|_| {
                let Some(mut content) = Shared::create(&self.shared, tier, false) else { return false };
                content.buffer.resize(TIERS[tier], 0);
                content.buffer.clear();
                self.shared.tiers[tier].put(std::iter::once(content));
                true
            })
            .count()
    }

    /// Frees every shared idle buffer that no lease has needed since the last call, and returns their bytes. Called
    /// once a period, it lets the pool shrink to what the period needed.
    pub fn trim(&self) -> u64 {
        let mut freed = 0;
        for (tier, shelf) in self.shared.tiers.iter().enumerate() {
            let buffers = shelf.trim();
            freed += (buffers.len() * TIERS[tier]) as u64;
        }
        self.shared.shrink(freed);
        // Somebody may have found no room while it was being freed.
        self.shared.wake_first();
        freed
    }

    /// Calls [`trim`](BufferPool::trim) once a period, for ever.
    ///
    /// # Cancel safety
    /// Dropping the future stops it.
    pub async fn trim_every(&self, period: Duration) {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.trim();
        }
    }

    /// What the pool holds and has done. Numbers of different threads are read one after the other: while leases
    /// come and go they may be off by as many as did meanwhile.
    pub fn snapshot(&self) -> PoolSnapshot {
        snapshot::of(&self.shared)
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("BufferPool").field(&self.snapshot()).finish()
    }
}

impl Shared {
    /// The smallest tier whose buffers hold `size` bytes, or the largest that fits into the bound.
    #[inline]
    fn tier_of(&self, size: usize) -> usize {
        // Each tier is twice the one before.
        let doublings = size.div_ceil(TIERS[0]).next_power_of_two().trailing_zeros();
        (doublings as usize).min(self.tier_max)
    }

    /// The same for a lease; one that no buffer holds is counted.
    #[inline]
    fn tier_for(&self, size: usize) -> usize {
        if size > TIERS[self.tier_max] {
            self.oversize.fetch_add(1, Ordering::Relaxed);
        }
        self.tier_of(size)
    }

    /// A buffer of the shared shelf, or a new one.
    #[cold]
    fn slow(shared: &Arc<Shared>, tier: usize, beyond: bool) -> Option<Lease> {
        local::take_from_shelf(shared, tier).or_else(|| {
            let content = Shared::create(shared, tier, beyond)?;
            local::count_made(shared, tier);
            Some(Lease::new(content))
        })
    }

    /// The bound of all buffers, those among them that threads keep for themselves, which nobody else can use.
    fn bytes_max(&self) -> u64 {
        self.settings.bytes_max + self.threads.load(Ordering::Relaxed) * local::BYTES_MAX
    }

    /// A new buffer, if the bound allows for it or need not.
    fn create(shared: &Arc<Shared>, tier: usize, beyond: bool) -> Option<Boxed> {
        let size = TIERS[tier] as u64;
        let max = shared.bytes_max();
        let before = shared
            .bytes
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |bytes| {
                (beyond || bytes + size <= max).then_some(bytes + size)
            })
            .ok()?;
        shared.bytes_high.fetch_max(before + size, Ordering::Relaxed);
        shared.tiers[tier].created();
        Some(Box::new(Content { buffer: Vec::with_capacity(TIERS[tier]), tier, home: shared.clone() }))
    }

    /// Takes a buffer back that the thread does not keep.
    fn put_back(content: Boxed) {
        let (home, tier) = (content.home.clone(), content.tier);
        if home.settings.enabled && home.waiting.load(Ordering::SeqCst) == 0 {
            home.tiers[tier].put(std::iter::once(content));
            // Whoever began to wait since then finds it on the shelf, or is woken here.
            if home.waiting.load(Ordering::SeqCst) == 0 {
                return;
            }
        } else {
            drop(content);
            home.tiers[tier].freed();
            home.shrink(TIERS[tier] as u64);
        }
        home.wake_first();
    }

    fn shrink(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
    }

    fn wake_first(&self) {
        if let Some((_, waker)) = self.waiters.lock().front() {
            waker.wake_by_ref();
        }
    }

    /// Frees shared idle buffers of all tiers until `size` more bytes fit.
    fn make_room(&self, size: u64) {
        for (tier, shelf) in self.tiers.iter().enumerate() {
            while self.bytes.load(Ordering::SeqCst) + size > self.bytes_max() {
                if shelf.take().is_none() {
                    break;
                }
                shelf.freed();
                self.shrink(TIERS[tier] as u64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_nobody_has_is_freed_with_all_its_buffers() {
        let pool = BufferPool::new(PoolSettings::default());
        let known = Arc::downgrade(&pool.shared);
        let late = std::thread::scope(|scope| {
            // Some stay with this thread until it ends, some go to the shelf, and one outlives the pool.
            let leases = scope.spawn(|| (0..20).map(|_| pool.lease_or_smaller(TIERS[0])).collect::<Vec<_>>());
            let mut leases = leases.join().expect("no panic");
            let late = leases.pop();
            scope.spawn(|| drop(leases)).join().expect("no panic");
            late
        });
        assert_eq!(pool.snapshot().total, 20);
        drop(pool);
        assert!(known.upgrade().is_some(), "a lease knows where it belongs");
        std::thread::spawn(|| drop(late)).join().expect("no panic");
        assert!(known.upgrade().is_none());
    }
}

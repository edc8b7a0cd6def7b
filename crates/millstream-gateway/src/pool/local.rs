//! What each thread keeps for itself: idle buffers of the small tiers, and its counts, which nobody else writes.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::lease::Content;
use super::{Lease, Shared, TIERS};

/// How many idle buffers of each tier a thread keeps. Of the larger ones none: there a lock costs nothing beside
/// the copying of the bytes.
const KEPT: [usize; 5] = [8, 8, 8, 4, 2];

pub(super) const BYTES_MAX: u64 = {
    let (mut sum, mut tier) = (0, 0);
    while tier < KEPT.len() {
        sum += KEPT[tier] * TIERS[tier];
        tier += 1;
    }
    sum as u64
};

/// How often one thread took and gave back buffers of each tier. Only that thread writes it, so that an increment is a
/// load and a store.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) hits: [AtomicU64; TIERS.len()],
    pub(super) misses: [AtomicU64; TIERS.len()],
    pub(super) given: [AtomicU64; TIERS.len()],
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        let add = |to: &mut [AtomicU64; TIERS.len()], from: &[AtomicU64; TIERS.len()]| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to.get_mut() += from.load(Ordering::Relaxed));
        };
        add(&mut self.hits, &other.hits);
        add(&mut self.misses, &other.misses);
        add(&mut self.given, &other.given);
    }
}

#[inline]
fn increment(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// What a thread has of one pool.
struct Local {
    home: Arc<Shared>,
    counts: Arc<Counts>,
    idle: [Vec<Content>; KEPT.len()],
}

impl Local {
    fn new(home: &Arc<Shared>) -> Self {
        let counts = Arc::new(Counts::default());
        home.counts.lock().1.push(counts.clone());
        home.threads.fetch_add(1, Ordering::Relaxed);
        Local { home: home.clone(), counts, idle: Default::default() }
    }

    /// Whether this thread is the last that knows the pool.
    fn is_orphan(&self) -> bool {
        let idle: usize = self.idle.iter().map(Vec::len).sum();
        Arc::strong_count(&self.home) == 1 + idle
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        for (tier, kept) in self.idle.iter_mut().enumerate() {
            for content in kept.drain(..) {
                self.home.put_back(content.buffer, tier);
            }
        }
        self.home.threads.fetch_sub(1, Ordering::Relaxed);
        let (ended, living) = &mut *self.home.counts.lock();
        living.retain(|counts| !Arc::ptr_eq(counts, &self.counts));
        ended.add(&self.counts);
    }
}

thread_local! {
    static LOCALS: RefCell<Vec<Local>> = const { RefCell::new(Vec::new()) };
}

/// The index of this thread's part of a pool.
#[inline]
fn find(locals: &mut Vec<Local>, home: &Arc<Shared>) -> usize {
    match locals.iter().position(|local| Arc::ptr_eq(&local.home, home)) {
        Some(at) => at,
        None => enter(locals, home),
    }
}

#[cold]
fn enter(locals: &mut Vec<Local>, home: &Arc<Shared>) -> usize {
    // Pools that are gone but for this thread's memory of them.
    locals.retain(|local| !local.is_orphan());
    locals.push(Local::new(home));
    locals.len() - 1
}

/// An idle buffer of this thread.
#[inline]
pub(super) fn take(home: &Arc<Shared>, tier: usize) -> Option<Lease> {
    if tier >= KEPT.len() {
        return None;
    }
    LOCALS
        .try_with(|locals| {
            let locals = &mut *locals.borrow_mut();
            let at = find(locals, home);
            let local = &mut locals[at];
            let content = local.idle[tier].pop()?;
            increment(&local.counts.hits[tier]);
            Some(Lease { content: Some(content), tier })
        })
        .ok()
        .flatten()
}

/// Counts a buffer that did not come from the thread's own.
pub(super) fn count_taken(home: &Arc<Shared>, tier: usize, hit: bool) {
    let counted = LOCALS.try_with(|locals| {
        let locals = &mut *locals.borrow_mut();
        let at = find(locals, home);
        let counts = &locals[at].counts;
        increment(if hit { &counts.hits[tier] } else { &counts.misses[tier] });
    });
    if counted.is_err() {
        add_late(home, |counts| if hit { &counts.hits[tier] } else { &counts.misses[tier] });
    }
}

/// Takes a buffer back: the thread keeps it, or it goes to the shelf.
#[inline]
pub(super) fn give(mut content: Content, tier: usize) {
    if content.home.settings.scrub {
        content.buffer.fill(0);
    }
    let mut content = Some(content);
    let kept = LOCALS.try_with(|locals| {
        let locals = &mut *locals.borrow_mut();
        let mine = content.as_mut().expect("taken only below");
        let at = find(locals, &mine.home);
        let local = &mut locals[at];
        increment(&local.counts.given[tier]);
        let has_room = tier < KEPT.len() && local.idle[tier].len() < KEPT[tier];
        if has_room && mine.home.settings.enabled && mine.home.waiting.load(Ordering::SeqCst) == 0 {
            mine.buffer.clear();
            if let Some(content) = content.take() {
                local.idle[tier].push(content);
            }
        }
    });
    // Outside of the borrow: waking somebody may run anything.
    if let Some(Content { buffer, home }) = content {
        if kept.is_err() {
            add_late(&home, |counts| &counts.given[tier]);
        }
        home.put_back(buffer, tier);
    }
}

/// Counts for a thread that ends and has no memory of its own any more.
#[cold]
fn add_late(home: &Shared, of: impl Fn(&Counts) -> &AtomicU64) {
    increment(of(&home.counts.lock().0));
}

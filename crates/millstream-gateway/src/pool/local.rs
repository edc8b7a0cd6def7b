//! What each thread keeps for itself: idle buffers of the small tiers, and its counts, which nobody else writes.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::lease::Boxed;
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
    idle: [Vec<Boxed>; KEPT.len()],
}

impl Local {
    fn new(home: &Arc<Shared>) -> Self {
        let counts = Arc::new(Counts::default());
        home.counts.lock().1.push(counts.clone());
        home.threads.fetch_add(1, Ordering::Relaxed);
        Local { home: home.clone(), counts, idle: Default::default() }
    }

    /// Takes half of a tier to the shelf, so that it need not go there with each.
    #[cold]
    fn make_room(&mut self, tier: usize) {
        self.home.tiers[tier].put(self.idle[tier].drain(..KEPT[tier] / 2));
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.idle.iter_mut().flat_map(|kept| kept.drain(..)).for_each(Shared::put_back);
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
    locals.retain(|local| !local.home.closed.load(Ordering::Relaxed));
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
            Some(Lease::new(content))
        })
        .ok()
        .flatten()
}

/// An idle buffer of the shelf; the thread takes some more along, so that it need not come back for each.
pub(super) fn take_from_shelf(home: &Arc<Shared>, tier: usize) -> Option<Lease> {
    let shelf = &home.tiers[tier];
    let taken = LOCALS.try_with(|locals| {
        let locals = &mut *locals.borrow_mut();
        let at = find(locals, home);
        let local = &mut locals[at];
        let nobody_waits = home.waiting.load(Ordering::SeqCst) == 0;
        let content = match local.idle.get_mut(tier).filter(|_| nobody_waits) {
            Some(kept) => shelf.take_along(KEPT[tier] / 2, kept)?,
            None => shelf.take()?,
        };
        increment(&local.counts.hits[tier]);
        Some(content)
    });
    let content = taken.unwrap_or_else(|_| {
        let content = shelf.take()?;
        add_late(home, |counts| &counts.hits[tier]);
        Some(content)
    });
    content.map(Lease::new)
}

/// Counts a buffer that was made.
pub(super) fn count_made(home: &Arc<Shared>, tier: usize) {
    let counted = LOCALS.try_with(|locals| {
        let locals = &mut *locals.borrow_mut();
        let at = find(locals, home);
        increment(&locals[at].counts.misses[tier]);
    });
    if counted.is_err() {
        add_late(home, |counts| &counts.misses[tier]);
    }
}

/// Takes a buffer back: the thread keeps it, or it goes to the shelf.
#[inline]
pub(super) fn give(mut content: Boxed) {
    if content.home.settings.scrub {
        content.buffer.fill(0);
    }
    content.buffer.clear();
    let (mut content, mut crowded) = (Some(content), None);
    let kept = LOCALS.try_with(|locals| {
        let locals = &mut *locals.borrow_mut();
        let Some(mine) = &content else { return };
        let (home, tier) = (&mine.home, mine.tier);
        let at = find(locals, home);
        let local = &mut locals[at];
        increment(&local.counts.given[tier]);
        let keeps = tier < KEPT.len() && home.settings.enabled && home.waiting.load(Ordering::SeqCst) == 0;
        if keeps {
            if local.idle[tier].len() == KEPT[tier] {
                local.make_room(tier);
                crowded = (home.waiting.load(Ordering::SeqCst) > 0).then(|| home.clone());
            }
            local.idle[tier].extend(content.take());
        }
    });
    // Outside of the borrow: waking somebody may run anything.
    if let Some(home) = crowded {
        home.wake_first();
    }
    if let Some(content) = content {
        if kept.is_err() {
            add_late(&content.home, |counts| &counts.given[content.tier]);
        }
        Shared::put_back(content);
    }
}

/// Counts for a thread that ends and has no memory of its own any more.
#[cold]
fn add_late(home: &Shared, of: impl Fn(&Counts) -> &AtomicU64) {
    increment(of(&home.counts.lock().0));
}

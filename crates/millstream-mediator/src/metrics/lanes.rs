//! Numbers to which each thread adds in a lane of its own: no locked instruction, and no cache line that cores pass to and fro,
//! however many of them make calls.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// How many threads have a lane; those that are more share one.
const OWN: usize = 32;
/// The lane that is shared.
const SHARED: u8 = OWN as u8;
/// No lane was asked for yet.
const NONE: u8 = u8::MAX;

/// The lanes that belong to threads, a bit each: for all mediators of the process, as a thread is for all of them.
static TAKEN: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static LANE: Cell<u8> = const { Cell::new(NONE) };
    static OWNED: Owned = const { Owned(Cell::new(SHARED)) };
}

/// A thread's lane, which the next thread gets when this one ends.
struct Owned(Cell<u8>);

impl Drop for Owned {
    fn drop(&mut self) {
        // What comes later, from destructors of this thread, is shared.
        LANE.set(SHARED);
        if self.0.get() < SHARED {
            TAKEN.fetch_and(!(1 << self.0.get()), Ordering::Release);
        }
    }
}

#[inline]
fn lane() -> usize {
    match LANE.get() {
        NONE => take(),
        lane => usize::from(lane),
    }
}

#[cold]
fn take() -> usize {
    let free = |taken: u32| (taken != u32::MAX).then(|| taken | (taken + 1));
    let own = OWNED.try_with(|owned| {
        // Acquired from whoever had it before, whose numbers this thread adds to.
        let before = TAKEN.fetch_update(Ordering::Acquire, Ordering::Relaxed, free).ok()?;
        let lane = before.trailing_ones() as u8;
        owned.0.set(lane);
        Some(lane)
    });
    let lane = own.ok().flatten().unwrap_or(SHARED);
    LANE.set(lane);
    usize::from(lane)
}

/// As many numbers as fit into two lines, which processors fetch together.
#[repr(align(128))]
#[derive(Default)]
struct Lines([AtomicU64; LINES]);
const LINES: usize = 16;

/// Several numbers that only grow.
pub(crate) struct Lanes {
    count: usize,
    own: [OnceLock<Box<[Lines]>>; OWN],
    shared: Box<[Lines]>,
}

impl Lanes {
    /// So many numbers, all 0.
    pub(crate) fn new(count: usize) -> Self {
        Lanes { count, own: [const { OnceLock::new() }; OWN], shared: Lanes::row(count) }
    }

    fn row(count: usize) -> Box<[Lines]> {
        (0..count.div_ceil(LINES)).map(|_| Lines::default()).collect()
    }

    /// Where this thread adds. Not to be kept over an await: what follows may run on another.
    #[inline]
    pub(crate) fn here(&self) -> Lane<'_> {
        match self.own.get(lane()) {
            Some(row) => Lane { row: row.get_or_init(|| Lanes::row(self.count)), own: true },
            None => Lane { row: &self.shared, own: false },
        }
    }

    /// What all threads have added to one of the numbers.
    pub(crate) fn value(&self, number: usize) -> u64 {
        let rows = self.own.iter().filter_map(OnceLock::get).chain([&self.shared]);
        rows.map(|row| at(row, number).load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
    }
}

#[inline]
fn at(row: &[Lines], number: usize) -> &AtomicU64 {
    &row[number / LINES].0[number % LINES]
}

/// The lane of the thread that asks.
pub(crate) struct Lane<'a> {
    row: &'a [Lines],
    own: bool,
}

impl Lane<'_> {
    /// Adds to one of the numbers, and says what there was in this lane before.
    #[inline]
    pub(crate) fn add(&self, number: usize, more: u64) -> u64 {
        let number = at(self.row, number);
        if !self.own {
            return number.fetch_add(more, Ordering::Relaxed);
        }
        // Nobody else writes here.
        let before = number.load(Ordering::Relaxed);
        number.store(before.wrapping_add(more), Ordering::Relaxed);
        before
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};
    use std::thread;

    use super::*;

    /// Threads come and go and are more than there are lanes; nothing that one of them has added is lost.
    #[test]
    fn what_threads_add_is_there_when_they_are_gone_and_when_they_are_many() {
        let lanes = Arc::new(Lanes::new(LINES + 1));
        for _ in 0..4 {
            let threads = OWN + 8;
            let together = Arc::new(Barrier::new(threads));
            let add = |_| {
                let (lanes, together) = (lanes.clone(), together.clone());
                thread::spawn(move || {
                    lanes.here().add(0, 1);
                    together.wait();
                    for _ in 0..10_000 {
                        lanes.here().add(LINES, 3);
                    }
                    lane()
                })
            };
            let spawned: Vec<_> = (0..threads).map(add).collect();
            let taken: Vec<_> = spawned.into_iter().map(|thread| thread.join().unwrap()).collect();
            assert!(taken.contains(&OWN), "some share");
            assert!(
                (0..8).any(|lane| taken.contains(&lane)),
                "some do not, also when others had theirs before"
            );
        }
        assert_eq!((lanes.value(0), lanes.value(LINES)), (4 * 40, 4 * 40 * 10_000 * 3));
    }
}

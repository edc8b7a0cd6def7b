//! The pool in numbers.

use std::sync::atomic::Ordering;

use serde::Serialize;

use super::local::Counts;
use super::{Shared, TIERS};

/// A pool at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PoolSnapshot {
    /// Whether buffers are kept.
    pub enabled: bool,
    /// Buffers that exist.
    pub total: u64,
    /// Buffers that are leased.
    pub in_use: u64,
    /// Bytes of all buffers that exist.
    pub bytes: u64,
    /// Bytes of those that are leased.
    pub bytes_in_use: u64,
    /// The part of all leases that found an idle buffer, from 0 to 1; 0 before the first.
    pub hit_rate: f64,
    /// Leases of more bytes than any buffer has, which got one of the largest.
    pub oversize: u64,
    /// The most bytes that existed at once.
    pub bytes_high_water: u64,
    /// The bound of that: [`PoolSettings::bytes_max`](crate::PoolSettings::bytes_max), and [`THREAD_BYTES`](crate::THREAD_BYTES) for
    /// each thread that has used the pool.
    pub bytes_max: u64,
    /// The tiers, smallest first.
    pub tiers: Vec<TierSnapshot>,
}

/// One tier at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TierSnapshot {
    /// Bytes of one buffer.
    pub size: u64,
    /// Buffers that exist, leased or idle.
    pub total: u64,
    /// Buffers that are leased.
    pub in_use: u64,
    /// Leases that found an idle buffer.
    pub hits: u64,
    /// Leases for which a buffer was made.
    pub misses: u64,
    /// Leases that had to wait for room.
    pub waits: u64,
    /// Leases that wanted this tier, found no room for it, and got a smaller one.
    pub smaller: u64,
    /// The most buffers that existed at once.
    pub high_water: u64,
}

pub(super) fn of(shared: &Shared) -> PoolSnapshot {
    let counts = shared.counts.lock();
    let counts: Vec<&Counts> =
        std::iter::once(&counts.0).chain(counts.1.iter().map(|counts| &**counts)).collect();
    let tiers: Vec<TierSnapshot> = (0..TIERS.len())
        .map(|tier| {
            // What was given is read first, so that a lease of this moment is never given but not taken.
            let given: u64 = counts.iter().map(|counts| counts.given[tier].load(Ordering::Relaxed)).sum();
            let hits: u64 = counts.iter().map(|counts| counts.hits[tier].load(Ordering::Relaxed)).sum();
            let misses: u64 = counts.iter().map(|counts| counts.misses[tier].load(Ordering::Relaxed)).sum();
            let shelf = &shared.tiers[tier];
            TierSnapshot {
                size: TIERS[tier] as u64,
                total: shelf.total(),
                in_use: (hits + misses).saturating_sub(given),
                hits,
                misses,
                waits: shelf.waits(),
                smaller: shelf.smaller(),
                high_water: shelf.total_high(),
            }
        })
        .collect();
    let (hits, misses) = tiers.iter().fold((0, 0), |sums, tier| (sums.0 + tier.hits, sums.1 + tier.misses));
    PoolSnapshot {
        enabled: shared.settings.enabled,
        total: tiers.iter().map(|tier| tier.total).sum(),
        in_use: tiers.iter().map(|tier| tier.in_use).sum(),
        bytes_in_use: tiers.iter().map(|tier| tier.in_use * tier.size).sum(),
        hit_rate: if hits == 0 { 0.0 } else { hits as f64 / (hits + misses) as f64 },
        oversize: shared.oversize.load(Ordering::Relaxed),
        bytes: shared.bytes.load(Ordering::SeqCst),
        bytes_high_water: shared.bytes_high.load(Ordering::Relaxed),
        bytes_max: shared.bytes_max(),
        tiers,
    }
}

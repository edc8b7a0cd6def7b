//! The buffer pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millstream_gateway::{BufferPool, Lease, PoolSettings, THREAD_BYTES, TIERS};
use proptest::prelude::*;

fn pool(bytes_max: u64) -> BufferPool {
    BufferPool::new(PoolSettings { bytes_max, ..PoolSettings::default() })
}

#[test]
fn a_lease_is_of_the_smallest_tier_that_holds_it_and_begins_empty() {
    let pool = pool(16 << 20);
    for (asked, given) in [(0, 4096), (4096, 4096), (4097, 8192), (1 << 20, 1 << 20), (9 << 20, 1 << 20)] {
        let mut lease = pool.try_lease(asked).expect("room");
        assert_eq!((lease.capacity(), lease.len(), lease.room()), (given, 0, given), "{asked}");
        lease.extend(&vec![9; given]);
        assert_eq!(lease.room(), 0);
    }
    // What was used before is empty again.
    assert!(pool.try_lease(4096).expect("room").is_empty());
}

#[test]
#[should_panic(expected = "2 bytes for 1 bytes of room")]
fn a_lease_never_grows() {
    let mut lease = pool(1 << 20).try_lease(4096).expect("room");
    lease.extend(&[0; 4095]);
    lease.extend(&[0; 2]);
}

#[test]
fn the_second_lease_finds_the_buffer_of_the_first() {
    let pool = pool(16 << 20);
    for size in TIERS {
        drop(pool.try_lease(size).expect("room"));
        drop(pool.try_lease(size).expect("room"));
    }
    for tier in pool.snapshot().tiers {
        assert_eq!(
            (tier.hits, tier.misses, tier.total, tier.in_use, tier.high_water),
            (1, 1, 1, 0, 1),
            "{tier:?}"
        );
    }
}

#[test]
fn without_keeping_every_lease_allocates_and_every_drop_frees() {
    let pool = BufferPool::new(PoolSettings { enabled: false, ..PoolSettings::default() });
    let leases: Vec<Lease> = (0..3).map(|_| pool.try_lease(4096).expect("room")).collect();
    assert_eq!((pool.snapshot().total, pool.snapshot().in_use, pool.snapshot().bytes), (3, 3, 3 * 4096));
    drop(leases);
    drop(pool.try_lease(4096).expect("room"));
    let snapshot = pool.snapshot();
    assert_eq!(
        (snapshot.total, snapshot.bytes, snapshot.tiers[0].hits, snapshot.tiers[0].misses),
        (0, 0, 0, 4)
    );
    assert_eq!(pool.warm_up(4096, 5), 0);
}

#[test]
fn warm_buffers_are_there_before_they_are_needed_and_trimmed_when_they_are_not() {
    let pool = pool(16 << 20);
    assert_eq!(pool.warm_up(128 << 10, 10), 10);
    assert_eq!((pool.snapshot().total, pool.snapshot().in_use), (10, 0));
    pool.trim();
    // Three of them are needed in this period.
    drop((0..3).map(|_| pool.try_lease(128 << 10).expect("room")).collect::<Vec<_>>());
    assert_eq!(pool.snapshot().tiers[5].misses, 0);
    assert_eq!(pool.trim(), 7 * (128 << 10));
    assert_eq!(pool.snapshot().total, 3);
    // In the next one none is.
    assert_eq!(pool.trim(), 3 * (128 << 10));
    assert_eq!((pool.snapshot().total, pool.snapshot().bytes), (0, 0));
    assert_eq!(pool.snapshot().bytes_high_water, 10 * (128 << 10));
}

#[test]
fn warming_up_ends_at_the_bound() {
    assert_eq!(pool(1 << 20).warm_up(256 << 10, 100), 4);
}

#[test]
fn a_smaller_buffer_is_given_where_there_is_no_room_and_the_smallest_always() {
    let pool = pool(1 << 20);
    let mut leases = vec![pool.lease_or_smaller(1 << 20)];
    // Whoever used the pool may keep a little, which is room for others, too.
    leases.extend((0..2 * THREAD_BYTES / 4096).map(|_| pool.lease_or_smaller(64 << 10)));
    assert_eq!(leases[0].capacity(), 1 << 20);
    assert_eq!(leases.last().expect("many").capacity(), 4096);
    assert!(pool.try_lease(4096).is_none());
    drop(leases);
    assert_eq!(pool.snapshot().in_use, 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_served_in_the_order_of_asking_when_room_comes() {
    let pool = pool(1 << 20);
    let mut held = Vec::new();
    while let Some(lease) = pool.try_lease(256 << 10) {
        held.push(lease);
    }
    let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..3 {
        let (pool, order) = (pool.clone(), order.clone());
        waiting.spawn(async move {
            let lease = pool.lease(256 << 10).await;
            order.lock().push(number);
            drop(lease);
        });
        tokio::task::yield_now().await;
    }
    assert_eq!(pool.snapshot().tiers[6].waits, 3);
    // Whoever asks now stands behind those.
    held.pop();
    assert!(pool.try_lease(4096).is_none());
    tokio::time::timeout(Duration::from_secs(10), waiting.join_all()).await.expect("all are served");
    assert_eq!(*order.lock(), [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_passes_its_turn_on() {
    let pool = pool(1 << 20);
    let mut held = Vec::new();
    while let Some(lease) = pool.try_lease(512 << 10) {
        held.push(lease);
    }
    let leaving = tokio::time::timeout(Duration::from_secs(1), pool.lease(512 << 10)).await;
    assert!(leaving.is_err());
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.lease(512 << 10).await.capacity() }
    });
    tokio::task::yield_now().await;
    drop(held);
    let served = tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("served");
    assert_eq!(served.expect("no panic"), 512 << 10);
}

#[tokio::test(start_paused = true)]
async fn idle_buffers_of_other_tiers_make_room_for_who_waits() {
    let pool = pool(1 << 20);
    let held: Vec<Lease> = std::iter::from_fn(|| pool.try_lease(128 << 10)).collect();
    drop(held);
    let lease = tokio::time::timeout(Duration::from_secs(10), pool.lease(1 << 20)).await.expect("room");
    assert_eq!(lease.capacity(), 1 << 20);
}

#[test]
fn shared_bytes_bring_the_buffer_home_when_the_last_of_them_is_gone() {
    let pool = pool(1 << 20);
    let mut lease = pool.try_lease(4096).expect("room");
    lease.extend(b"hello world");
    let bytes = lease.freeze();
    let part = bytes.slice(6..);
    drop(bytes);
    assert_eq!((&part[..], pool.snapshot().in_use), (&b"world"[..], 1));
    drop(part);
    assert_eq!(pool.snapshot().in_use, 0);
}

/// What lies in this process's memory, whoever it belongs to.
fn memory(at: *const u8, length: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; length];
    let memory = std::fs::File::open("/proc/self/mem").expect("Linux shows it");
    memory.read_exact_at(&mut bytes, at as u64).expect("it is mapped");
    bytes
}

#[test]
fn scrubbed_buffers_hold_nothing_of_their_past() {
    for (scrub, left) in [(false, &b"abcdefgh"[..]), (true, &[0; 8])] {
        let pool = BufferPool::new(PoolSettings { scrub, ..PoolSettings::default() });
        let mut lease = pool.try_lease(4096).expect("room");
        lease.extend(b"abcdefgh");
        // What was forgotten before the lease ended was written all the same.
        lease.truncate(3);
        let at = lease.as_ptr();
        drop(lease);
        assert_eq!(memory(at, 8), left, "scrub: {scrub}");
        // It was the buffer that the next lease gets.
        assert_eq!(pool.try_lease(4096).expect("room").as_ptr(), at);
    }
}

#[test]
fn a_buffer_that_comes_back_from_a_thread_that_is_ending_is_scrubbed_like_any_other() {
    thread_local! {
        static HELD: std::cell::RefCell<Option<Lease>> = const { std::cell::RefCell::new(None) };
    }
    let pool = BufferPool::new(PoolSettings { scrub: true, ..PoolSettings::default() });
    let ending = std::thread::spawn({
        let pool = pool.clone();
        move || {
            HELD.with_borrow_mut(|held| {
                // What a thread used last ends first: the pool's part of it before the lease.
                let lease = held.insert(pool.try_lease(4096).expect("room"));
                lease.extend(b"abcdefgh");
                lease.as_ptr() as usize
            })
        }
    });
    let at = ending.join().expect("no panic");
    assert_eq!(memory(at as *const u8, 8), [0; 8]);
    let lease = pool.try_lease(4096).expect("room");
    assert_eq!((lease.as_ptr() as usize, pool.snapshot().tiers[0].in_use), (at, 1));
}

#[test]
fn the_bound_that_is_shown_is_the_bound_that_holds() {
    let pool = pool(64 << 10);
    let held: Vec<Lease> = std::iter::from_fn(|| pool.try_lease(64 << 10)).collect();
    let snapshot = pool.snapshot();
    assert_eq!(snapshot.bytes_max, (64 << 10) + THREAD_BYTES);
    assert!(snapshot.bytes <= snapshot.bytes_max && snapshot.bytes + (64 << 10) > snapshot.bytes_max);
    drop(held);
}

#[test]
fn many_threads_take_and_give_and_nothing_is_lost_or_shared() {
    let pool = pool(8 << 20);
    let owners = Arc::new(AtomicUsize::new(0));
    let (send, receive) = std::sync::mpsc::sync_channel::<Lease>(64);
    let receive = Arc::new(parking_lot::Mutex::new(receive));
    std::thread::scope(|scope| {
        for seed in 0..4_usize {
            let (pool, send, receive, owners) = (pool.clone(), send.clone(), receive.clone(), owners.clone());
            scope.spawn(move || {
                let mut state = seed + 1;
                for round in 0..20_000_usize {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let size = TIERS[(state >> 33) % TIERS.len()];
                    let mut lease = pool.lease_or_smaller(size);
                    assert!(lease.is_empty());
                    let mark = ((seed * 1_000_000 + round) as u64).to_le_bytes();
                    lease.extend(&mark);
                    owners.fetch_add(1, Ordering::Relaxed);
                    assert_eq!(&lease[..], mark, "somebody else wrote into it");
                    // A third is freed by whichever thread gets it.
                    if round % 3 == 0 {
                        drop(send.try_send(lease));
                    } else if let Some(receive) = receive.try_lock() {
                        drop(receive.try_recv());
                    }
                }
            });
        }
    });
    drop(receive.lock().try_iter().collect::<Vec<_>>());
    let snapshot = pool.snapshot();
    assert_eq!(snapshot.in_use, 0, "{snapshot:?}");
    let leased: u64 = snapshot.tiers.iter().map(|tier| tier.hits + tier.misses).sum();
    assert_eq!(leased, owners.load(Ordering::Relaxed) as u64);
    let bound = snapshot.bytes_max + 4 * THREAD_BYTES + 68 * 4096;
    assert!(snapshot.bytes_high_water <= bound, "{snapshot:?}");
    let total: u64 = snapshot.tiers.iter().map(|tier| tier.total * tier.size).sum();
    assert_eq!(snapshot.bytes, total);
}

proptest! {
    #[test]
    fn the_account_is_exact_after_any_operations(operations in proptest::collection::vec((0_u8..4, 0_usize..9), 0..300)) {
        let pool = pool(2 << 20);
        let mut held: Vec<Lease> = Vec::new();
        for (operation, tier) in operations {
            match operation {
                0 => held.extend(pool.try_lease(TIERS[tier])),
                1 => held.push(pool.lease_or_smaller(TIERS[tier])),
                2 if !held.is_empty() => drop(held.swap_remove(tier % held.len())),
                _ => drop(pool.trim()),
            }
            let snapshot = pool.snapshot();
            prop_assert_eq!(snapshot.in_use, held.len() as u64);
            for (at, tier) in snapshot.tiers.iter().enumerate() {
                let mine = held.iter().filter(|lease| lease.capacity() == TIERS[at]).count() as u64;
                prop_assert_eq!(tier.in_use, mine);
                prop_assert!(tier.total >= mine && tier.high_water >= tier.total);
            }
            let exists: u64 = snapshot.tiers.iter().map(|tier| tier.total * tier.size).sum();
            prop_assert_eq!(snapshot.bytes, exists);
            prop_assert!(snapshot.bytes_high_water >= snapshot.bytes);
        }
    }
}

#[test]
fn what_a_lease_did_not_get_is_counted_with_what_all_of_them_got() {
    let pool = pool(1 << 20);
    assert_eq!(pool.snapshot().hit_rate, 0.0);
    let large = pool.lease_or_smaller(5 << 20);
    assert_eq!((pool.snapshot().oversize, pool.snapshot().bytes_in_use), (1, 1 << 20));
    let mut leases = Vec::new();
    while leases.last().is_none_or(|lease: &Lease| lease.capacity() == 64 << 10) {
        leases.push(pool.lease_or_smaller(64 << 10));
    }
    let smaller =
        |pool: &BufferPool| pool.snapshot().tiers.iter().map(|tier| tier.smaller).collect::<Vec<_>>();
    assert_eq!(smaller(&pool), [0, 0, 0, 0, 1, 0, 0, 0, 0]);
    drop((leases, large));
    assert_eq!((pool.snapshot().bytes_in_use, pool.snapshot().oversize), (0, 1));
    drop(pool.try_lease(9 << 20));
    let snapshot = pool.snapshot();
    let (hits, misses) =
        snapshot.tiers.iter().fold((0, 0), |sums, tier| (sums.0 + tier.hits, sums.1 + tier.misses));
    assert_eq!((snapshot.oversize, hits), (2, 1));
    assert!((snapshot.hit_rate - 1.0 / (1 + misses) as f64).abs() < 1e-9, "{snapshot:?}");
}

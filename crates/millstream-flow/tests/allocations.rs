//! What an async call with a time limit allocates: nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millstream_flow::{BoxError, Concurrency, Pipe, Retry};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: all is the system's allocator's; that calls are counted changes nothing for it.
#[expect(unsafe_code, reason = "a global allocator is unsafe by its trait")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that it asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

async fn yielding(n: u64) -> u64 {
    tokio::task::yield_now().await;
    n
}

/// What a run of so many items allocates.
async fn allocations(items: u64, calls: Concurrency, fallible: bool) -> u64 {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let pipe = Pipe::from_iter(0..items);
    let sum = |sum: &mut u64, n: u64| *sum += n;
    match fallible {
        false => pipe.map_async(calls, yielding).fold(0, sum).await.unwrap().0,
        true => {
            let call = async |n: &u64| Ok::<_, BoxError>(yielding(*n).await);
            pipe.try_map_async(calls, Retry::never(), call).reject().fold(0, sum).await.unwrap().0
        }
    };
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// The only test of this process: others' allocations would count.
#[tokio::test(flavor = "current_thread")]
async fn a_time_limit_allocates_nothing_for_an_item() {
    let limit = Duration::from_secs(60);
    for fallible in [false, true] {
        for calls in
            [Concurrency::ordered(50), Concurrency::unordered(50)].map(|calls| calls.time_limit(limit))
        {
            allocations(1000, calls, fallible).await;
            let (short, long) =
                (allocations(1000, calls, fallible).await, allocations(41_000, calls, fallible).await);
            assert!(long <= short + 4, "{short} for 1,000 items, {long} for 41,000");
        }
    }
}

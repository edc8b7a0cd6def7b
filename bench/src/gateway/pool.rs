//! Getting a buffer and giving it back.

use std::hint::black_box;
use std::sync::mpsc::sync_channel;

use millstream_gateway::{BufferPool, PoolSettings};

use super::load::Watch;
use crate::case::{Bound, Case, NS, Sample, Scale};

const OVER: &str = "ns over";
const SIZE: usize = 32 << 10;
/// Buffers that are handed over at once; all that are on their way are far within the pool's bound.
const BATCH: u64 = 50;

/// What the contestants have in common: a buffer that is dropped when it is done with.
fn pooled() -> impl Fn() -> millstream_gateway::Lease + Clone + Send + 'static {
    let pool = BufferPool::new(PoolSettings::default());
    move || pool.lease_or_smaller(SIZE)
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("pool, one thread")
            .floor("allocate", |scale| alone(scale, || Vec::<u8>::with_capacity(SIZE)))
            .peer("allocate and zero", |scale| alone(scale, || vec![0_u8; SIZE]))
            .ours("pool", |scale| alone(scale, pooled()))
            .goal(Bound::AtMost(12.0), "get and put of 32 KB"),
        Case::new("pool, two threads")
            .floor("allocate", |scale| together(scale, || Vec::<u8>::with_capacity(SIZE)))
            .ours("pool", |scale| together(scale, pooled()))
            .goal(Bound::AtMost(14.0), "get and put of 32 KB, each"),
        Case::new("pool, another thread frees")
            .floor("allocate", |scale| handed(scale, || Vec::<u8>::with_capacity(SIZE)))
            .peer("numbers", |scale| handed(scale, || 0_u64))
            .ours("pool", |scale| {
                let numbers = handed(scale, || 0_u64).0[NS];
                let sample = handed(scale, pooled());
                let over = sample.0[NS] - numbers;
                sample.with(OVER, over)
            })
            .goal(Bound::TimesAtMost(1.0, "allocate"), "handed over by 50, with the channel in both figures")
            .goal_on(OVER, Bound::AtMost(80.0), "over numbers that are handed over in the same way"),
    ]
}

fn alone<T>(scale: Scale, get: impl Fn() -> T) -> Sample {
    let count = scale.of(20_000_000);
    let watch = Watch::start();
    for _ in 0..count {
        drop(black_box(get()));
    }
    Sample::new().with(NS, watch.seconds() * 1e9 / count as f64)
}

fn together<T>(scale: Scale, get: impl Fn() -> T + Clone + Send + 'static) -> Sample {
    let count = scale.of(20_000_000);
    let watch = Watch::start();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let get = get.clone();
            scope.spawn(move || (0..count).for_each(|_| drop(black_box(get()))));
        }
    });
    Sample::new().with(NS, watch.seconds() * 1e9 / count as f64)
}

/// Buffers go to the other thread in batches: one by one the threads' wake-ups would be all that is measured.
fn handed<T: Send>(scale: Scale, get: impl Fn() -> T) -> Sample {
    let batches = scale.of(2_000_000) / BATCH;
    let (send, receive) = sync_channel(4);
    let watch = Watch::start();
    std::thread::scope(|scope| {
        scope.spawn(move || receive.into_iter().flatten().for_each(|buffer: T| drop(black_box(buffer))));
        for _ in 0..batches {
            // The other side takes until this side is done.
            let _ = send.send((0..BATCH).map(|_| get()).collect::<Vec<_>>());
        }
        drop(send);
    });
    Sample::new().with(NS, watch.seconds() * 1e9 / (batches * BATCH) as f64)
}

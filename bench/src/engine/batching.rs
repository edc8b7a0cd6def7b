//! Many items as one, and apart again.

use std::hint::black_box;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use millstream_flow::{Batch, Pipe};
use tokio_stream::StreamExt as _;

use super::run::{Threads, floor, future, plan};
use crate::case::{Bound, Case};
use crate::work::{multiply, one};

const ITEMS: u64 = 50_000_000;
const COUNT: usize = 100;
const AGE: Duration = Duration::from_millis(10);

pub(crate) fn cases() -> Vec<Case> {
    vec![by_count(), by_age(), apart_again()]
}

fn sum_up(sum: &mut u64, batch: &[u64]) {
    for i in batch {
        *sum = sum.wrapping_add(multiply(*i));
    }
}

fn base(name: &'static str) -> Case {
    Case::new(name).floor("filling a Vec", |scale| {
        let items = scale.of(ITEMS);
        floor(items, one(items), || {
            let (mut sum, mut batch) = (0, Vec::with_capacity(COUNT));
            for i in 0..black_box(items) {
                batch.push(i);
                if batch.len() == COUNT {
                    sum_up(&mut sum, &batch);
                    // A batch is its receiver's to keep, so each is a new one, as everybody's is.
                    drop(black_box(std::mem::replace(&mut batch, Vec::with_capacity(COUNT))));
                }
            }
            sum_up(&mut sum, &batch);
            sum
        })
    })
}

fn by_count() -> Case {
    base("batch(100)")
        .peer("futures chunks", |scale| {
            let items = scale.of(ITEMS);
            future(Threads::One, items, one(items), move || async move {
                let mut stream = stream::iter(0..items).chunks(COUNT);
                let mut sum = 0;
                while let Some(batch) = futures_util::StreamExt::next(&mut stream).await {
                    sum_up(&mut sum, &batch);
                }
                sum
            })
        })
        .ours("ours", |scale| {
            let items = scale.of(ITEMS);
            plan(Threads::One, items, one(items), || {
                Pipe::from_iter(0..items)
                    .batch(Batch::count(COUNT))
                    .fold(0u64, |sum, batch: Vec<u64>| sum_up(sum, &batch))
            })
        })
        .goal(Bound::TimesAtMost(0.57, "futures chunks"), "≤ 0.45 ns at its 0.79")
        .goal(Bound::TimesAtMost(1.6, "filling a Vec"), "")
}

fn by_age() -> Case {
    base("batch(100), or 10 ms of age")
        .peer("tokio chunks_timeout", |scale| {
            let items = scale.of(ITEMS);
            future(Threads::One, items, one(items), move || async move {
                let stream = stream::iter(0..items).chunks_timeout(COUNT, AGE);
                let mut stream = std::pin::pin!(stream);
                let mut sum = 0;
                while let Some(batch) = futures_util::StreamExt::next(&mut stream).await {
                    sum_up(&mut sum, &batch);
                }
                sum
            })
        })
        .ours("ours", |scale| {
            let items = scale.of(ITEMS);
            plan(Threads::One, items, one(items), || {
                Pipe::from_iter(0..items)
                    .batch(Batch::count(COUNT).age(AGE))
                    .fold(0u64, |sum, batch: Vec<u64>| sum_up(sum, &batch))
            })
        })
        .goal(Bound::TimesAtMost(0.53, "tokio chunks_timeout"), "≤ 0.58 ns at its 1.09")
}

fn apart_again() -> Case {
    base("batch(100) and unbatch")
        .peer("futures chunks + flat_map", |scale| {
            let items = scale.of(ITEMS);
            future(Threads::One, items, one(items), move || async move {
                let mut stream = stream::iter(0..items).chunks(COUNT).flat_map(stream::iter);
                let mut sum = 0u64;
                while let Some(i) = futures_util::StreamExt::next(&mut stream).await {
                    sum = sum.wrapping_add(multiply(i));
                }
                sum
            })
        })
        .ours("ours", |scale| {
            let items = scale.of(ITEMS);
            plan(Threads::One, items, one(items), || {
                Pipe::from_iter(0..items)
                    .batch(Batch::count(COUNT))
                    .unbatch()
                    .fold(0u64, |sum, i| *sum = sum.wrapping_add(multiply(i)))
            })
        })
        .goal(Bound::TimesAtMost(0.365, "futures chunks + flat_map"), "≤ 0.95 ns at its 2.6")
}

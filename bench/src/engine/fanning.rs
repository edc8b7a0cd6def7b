//! One flow to two tasks, and two tasks into one flow.

use std::hint::black_box;

use millstream_flow::Pipe;
use tokio::sync::{broadcast, mpsc};

use super::run::{Threads, floor, future, plan};
use crate::case::{Bound, Case, Sample, Scale};
use crate::work::{multiply, one};

const ITEMS: u64 = 10_000_000;
const ITEMS_PEERS: u64 = 1_000_000;
const CAPACITY: usize = 1024;

use Threads::{One, Two};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        fan_out("broadcast to 2 tasks, ct", One)
            .goal(Bound::TimesAtMost(5.6, "loop"), "≤ 1.7 ns at a loop of 0.31")
            .goal(Bound::TimesFaster(72.0, "2 × tokio::mpsc"), "as ≤ 1.7 ns at 124"),
        fan_out("broadcast to 2 tasks, mt", Two)
            .goal(Bound::TimesAtMost(10.9, "loop"), "≤ 3.4 ns at a loop of 0.31")
            .goal(Bound::TimesFaster(49.0, "2 × tokio::mpsc"), "as ≤ 3.4 ns at 168"),
        fan_in("fan-in of 2 producer tasks, ct", One)
            .goal(Bound::TimesAtMost(1.8, "loop"), "≤ 0.55 ns at a loop of 0.31")
            .goal(Bound::TimesFaster(25.0, "kanal"), "as ≤ 0.55 ns at 13.6"),
        fan_in("fan-in of 2 producer tasks, mt", Two)
            .goal(Bound::TimesAtMost(2.9, "loop"), "≤ 0.9 ns at a loop of 0.31")
            .goal(Bound::TimesFaster(27.0, "kanal"), "as ≤ 0.9 ns at 24"),
    ]
}

fn loop_floor(scale: Scale) -> Sample {
    let items = scale.of(ITEMS);
    floor(items, one(items), || one(black_box(items)))
}

fn add(sum: &mut u64, i: u64) {
    *sum = sum.wrapping_add(multiply(i));
}

/// Both subscribers see every item.
fn twice(items: u64) -> u64 {
    one(items).wrapping_mul(2)
}

fn fan_out(name: &'static str, threads: Threads) -> Case {
    Case::new(name)
        .floor("loop", loop_floor)
        .peer("2 × tokio::mpsc", move |scale| {
            let items = scale.of(ITEMS_PEERS);
            future(threads, items, twice(items), move || async move {
                let (mut lanes, mut readers) = (Vec::new(), Vec::new());
                for _ in 0..2 {
                    let (tx, mut rx) = mpsc::channel(CAPACITY);
                    lanes.push(tx);
                    readers.push(tokio::spawn(async move {
                        let mut sum = 0;
                        while let Some(i) = rx.recv().await {
                            add(&mut sum, i);
                        }
                        sum
                    }));
                }
                for i in 0..items {
                    for lane in &lanes {
                        let _ = lane.send(i).await;
                    }
                }
                drop(lanes);
                let mut sum = 0u64;
                for reader in readers {
                    sum = sum.wrapping_add(reader.await.expect("a reader does not panic"));
                }
                sum
            })
        })
        .peer("tokio::broadcast", move |scale| {
            let items = scale.of(ITEMS_PEERS);
            future(threads, items, twice(items), move || async move {
                // It has no backpressure: the producer waits for word from both readers once a ring full.
                let (tx, _) = broadcast::channel(CAPACITY);
                let (seen, mut word) = mpsc::channel(8);
                let mut readers = Vec::new();
                for _ in 0..2 {
                    let (mut rx, seen) = (tx.subscribe(), seen.clone());
                    readers.push(tokio::spawn(async move {
                        let (mut sum, mut count) = (0, 0);
                        while let Ok(i) = rx.recv().await {
                            add(&mut sum, i);
                            count += 1;
                            if count % (CAPACITY / 2) == 0 {
                                let _ = seen.send(()).await;
                            }
                        }
                        sum
                    }));
                }
                for i in 0..items {
                    let _ = tx.send(i);
                    if (i + 1) % (CAPACITY as u64 / 2) == 0 {
                        let _ = word.recv().await;
                        let _ = word.recv().await;
                    }
                }
                drop((tx, seen));
                let mut sum = 0u64;
                for reader in readers {
                    sum = sum.wrapping_add(reader.await.expect("a reader does not panic"));
                }
                sum
            })
        })
        .ours("ours", move |scale| {
            let items = scale.of(ITEMS);
            future(threads, items, twice(items), move || async move {
                let lanes = Pipe::from_iter(0..items).broadcast(2, CAPACITY);
                let runs: Vec<_> = lanes.into_iter().map(|lane| lane.fold(0u64, add).start()).collect();
                let mut sum = 0u64;
                for run in runs {
                    let (part, _) = run.join().await.expect("the run succeeds");
                    sum = sum.wrapping_add(part);
                }
                sum
            })
        })
}

fn fan_in(name: &'static str, threads: Threads) -> Case {
    Case::new(name)
        .floor("loop", loop_floor)
        .peer("tokio::mpsc", move |scale| {
            let items = scale.of(ITEMS_PEERS);
            future(threads, items, one(items), move || async move {
                let (tx, mut rx) = mpsc::channel(CAPACITY);
                for half in [0..items / 2, items / 2..items] {
                    let tx = tx.clone();
                    tokio::spawn(async move {
                        for i in half {
                            let _ = tx.send(i).await;
                        }
                    });
                }
                drop(tx);
                let mut sum = 0;
                while let Some(i) = rx.recv().await {
                    add(&mut sum, i);
                }
                sum
            })
        })
        .peer("kanal", move |scale| {
            let items = scale.of(ITEMS_PEERS);
            future(threads, items, one(items), move || async move {
                let (tx, rx) = kanal::bounded_async(CAPACITY);
                for half in [0..items / 2, items / 2..items] {
                    let tx = tx.clone();
                    tokio::spawn(async move {
                        for i in half {
                            let _ = tx.send(i).await;
                        }
                    });
                }
                drop(tx);
                let mut sum = 0;
                while let Ok(i) = rx.recv().await {
                    add(&mut sum, i);
                }
                sum
            })
        })
        .ours("ours", move |scale| {
            let items = scale.of(ITEMS);
            plan(threads, items, one(items), || {
                let first = Pipe::from_iter(0..items / 2).buffer(CAPACITY);
                Pipe::merge_all([first, Pipe::from_iter(items / 2..items).buffer(CAPACITY)]).fold(0u64, add)
            })
        })
}

//! From one task to another: one hop, three hops, and a hop read item by item.

use std::hint::black_box;

use crossfire::spsc;
use futures_util::StreamExt;
use millstream_flow::{Capacity, Pipe};
use tokio::sync::mpsc;

use super::run::{Threads, floor, future, plan};
use super::streamz;
use crate::case::{Bound, Case, Sample, Scale};
use crate::work::{
    Order, kept, mix, multiply, one, one_order, open, order, stamp, tax, three, three_orders, value,
};

const ITEMS: u64 = 20_000_000;
const ITEMS_PEERS: u64 = 2_000_000;
const ORDERS: u64 = 2_000_000;
const ORDERS_PEERS: u64 = 600_000;
/// The room of every hop, ours and the peers'.
const CAPACITY: usize = 1024;

use Threads::{One, Two};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        one_hop("one hop, u64, ct", One)
            .goal(Bound::TimesAtMost(2.6, "loop"), "≤ 0.8 ns at a loop of 0.31")
            .goal(Bound::TimesFaster(70.0, "tokio::mpsc"), ""),
        one_hop("one hop, u64, mt", Two)
            .goal(Bound::TimesAtMost(4.8, "loop"), "≤ 1.5 ns at a loop of 0.31")
            .goal(Bound::TimesFaster(70.0, "tokio::mpsc"), ""),
        one_hop_order("one hop, Order, ct", One)
            .goal(Bound::TimesAtMost(1.95, "loop"), "≤ 17 ns at a loop of 8.7"),
        one_hop_order("one hop, Order, mt", Two)
            .goal(Bound::TimesAtMost(3.4, "loop"), "≤ 30 ns at a loop of 8.8"),
        four_stages("four stages, u64, ct", One)
            .goal(Bound::TimesAtMost(3.9, "loop"), "≤ 1.8 ns at a loop of 0.46")
            .goal(Bound::TimesFaster(300.0, "streamz (Go)"), ""),
        four_stages("four stages, u64, mt", Two)
            .goal(Bound::TimesAtMost(6.7, "loop"), "≤ 3.1 ns at a loop of 0.46")
            .goal(Bound::TimesFaster(300.0, "streamz (Go)"), ""),
        four_stages_order("four stages, Order, ct", One)
            .goal(Bound::TimesAtMost(4.5, "loop"), "≤ 40 ns at a loop of 8.8"),
        four_stages_order("four stages, Order, mt", Two)
            .goal(Bound::TimesAtMost(7.3, "loop"), "≤ 64 ns at a loop of 8.8"),
        per_item("hop read item by item, u64, ct", One)
            .goal(Bound::TimesAtMost(0.65, "kanal"), "≤ 9.6 ns at kanal's 14.8"),
        per_item("hop read item by item, u64, mt", Two)
            .goal(Bound::TimesAtMost(0.76, "crossfire"), "≤ 14 ns at crossfire's 18.5"),
    ]
}

/// The item by item channels, behind one face: what peers do for a hop.
macro_rules! through {
    (tokio, $tx:ident, $rx:ident, $produce:block, $consume:block) => {{
        let ($tx, mut $rx) = mpsc::channel(CAPACITY);
        let producer = tokio::spawn(async move { $produce });
        $consume
        producer.await.expect("the producer does not panic");
    }};
    (kanal, $tx:ident, $rx:ident, $produce:block, $consume:block) => {{
        let ($tx, $rx) = kanal::bounded_async(CAPACITY);
        let producer = tokio::spawn(async move { $produce });
        $consume
        producer.await.expect("the producer does not panic");
    }};
    (crossfire, $tx:ident, $rx:ident, $produce:block, $consume:block) => {{
        let ($tx, $rx) = spsc::bounded_async(CAPACITY);
        let producer = tokio::spawn(async move { $produce });
        $consume
        producer.await.expect("the producer does not panic");
    }};
}

/// How a receiver of each kind says what is next.
macro_rules! next {
    (tokio, $rx:ident) => {
        $rx.recv().await
    };
    ($other:ident, $rx:ident) => {
        $rx.recv().await.ok()
    };
}

/// A peer's hop of `u64`: the whole contestant.
macro_rules! hop {
    ($kind:ident, $threads:expr) => {
        move |scale: Scale| {
            let items = scale.of(ITEMS_PEERS);
            future($threads, items, one(items), move || async move {
                let mut sum = 0u64;
                through!(
                    $kind,
                    tx,
                    rx,
                    {
                        for i in 0..items {
                            let _ = tx.send(i).await;
                        }
                    },
                    {
                        while let Some(i) = next!($kind, rx) {
                            sum = sum.wrapping_add(multiply(i));
                        }
                    }
                );
                sum
            })
        }
    };
}

fn hop_floor(scale: Scale) -> Sample {
    let items = scale.of(ITEMS);
    floor(items, one(items), || one(black_box(items)))
}

fn one_hop(name: &'static str, threads: Threads) -> Case {
    Case::new(name)
        .floor("loop", hop_floor)
        .peer("tokio::mpsc", hop!(tokio, threads))
        .peer("kanal", hop!(kanal, threads))
        .peer("crossfire", hop!(crossfire, threads))
        .peer("streamz (Go)", |scale| {
            let items = scale.of(500_000);
            streamz::measure("hop", items, one(items))
        })
        .ours("ours", move |scale| hop(scale, threads, Capacity::items(CAPACITY)))
        .ours("ours, auto", move |scale| hop(scale, threads, Capacity::auto()))
}

fn hop(scale: Scale, threads: Threads, capacity: Capacity) -> Sample {
    let items = scale.of(ITEMS);
    plan(threads, items, one(items), || {
        Pipe::from_iter(0..items)
            .buffer(capacity)
            .map(multiply)
            .fold(0u64, |sum, x| *sum = sum.wrapping_add(x))
    })
}

macro_rules! hop_order {
    ($kind:ident, $threads:expr) => {
        move |scale: Scale| {
            let items = scale.of(ORDERS_PEERS);
            future($threads, items, one_order(items), move || async move {
                let mut sum = 0u64;
                through!(
                    $kind,
                    tx,
                    rx,
                    {
                        for i in 0..items {
                            let _ = tx.send(order(i)).await;
                        }
                    },
                    {
                        while let Some(order) = next!($kind, rx) {
                            let order: Order = order;
                            sum = sum.wrapping_add(value(&tax(order)));
                        }
                    }
                );
                sum
            })
        }
    };
}

fn one_hop_order(name: &'static str, threads: Threads) -> Case {
    Case::new(name)
        .floor("loop", |scale| {
            let items = scale.of(ORDERS);
            floor(items, one_order(items), || one_order(black_box(items)))
        })
        .peer("tokio::mpsc", hop_order!(tokio, threads))
        .peer("kanal", hop_order!(kanal, threads))
        .peer("crossfire", hop_order!(crossfire, threads))
        .ours("ours", move |scale| hop_of_orders(scale, threads, Capacity::items(CAPACITY)))
        .ours("ours, auto", move |scale| hop_of_orders(scale, threads, Capacity::auto()))
}

fn hop_of_orders(scale: Scale, threads: Threads, capacity: Capacity) -> Sample {
    let items = scale.of(ORDERS);
    plan(threads, items, one_order(items), || {
        Pipe::from_iter((0..items).map(order))
            .buffer(capacity)
            .map(tax)
            .fold(0u64, |sum, order| *sum = sum.wrapping_add(value(&order)))
    })
}

/// Source, map, filter, and map with sum, each a task of its own.
macro_rules! four {
    ($kind:ident, $threads:expr, $items:expr, $sum:path, $make:expr, $first:expr, $keep:expr, $last:expr) => {
        move |scale: Scale| {
            let items = scale.of($items);
            future($threads, items, $sum(items), move || async move {
                let mut sum = 0u64;
                through!(
                    $kind,
                    a,
                    from_a,
                    {
                        for i in 0..items {
                            let _ = a.send($make(i)).await;
                        }
                    },
                    {
                        through!(
                            $kind,
                            b,
                            from_b,
                            {
                                while let Some(item) = next!($kind, from_a) {
                                    let _ = b.send($first(item)).await;
                                }
                            },
                            {
                                through!(
                                    $kind,
                                    c,
                                    from_c,
                                    {
                                        while let Some(item) = next!($kind, from_b) {
                                            if $keep(&item) {
                                                let _ = c.send(item).await;
                                            }
                                        }
                                    },
                                    {
                                        while let Some(item) = next!($kind, from_c) {
                                            sum = sum.wrapping_add($last(item));
                                        }
                                    }
                                );
                            }
                        );
                    }
                );
                sum
            })
        }
    };
}

fn four_stages(name: &'static str, threads: Threads) -> Case {
    let same = |i: u64| i;
    Case::new(name)
        .floor("loop", |scale| {
            let items = scale.of(ITEMS);
            floor(items, three(items), || three(black_box(items)))
        })
        .peer("tokio::mpsc", four!(tokio, threads, ITEMS_PEERS / 2, three, same, multiply, kept, mix))
        .peer("kanal", four!(kanal, threads, ITEMS_PEERS, three, same, multiply, kept, mix))
        .peer("crossfire", four!(crossfire, threads, ITEMS_PEERS, three, same, multiply, kept, mix))
        .peer("streamz (Go)", |scale| {
            let items = scale.of(500_000);
            streamz::measure("three", items, three(items))
        })
        .ours("ours", move |scale| {
            let items = scale.of(ITEMS);
            plan(threads, items, three(items), || {
                let pipe = Pipe::from_iter(0..items).buffer(CAPACITY).map(multiply).buffer(CAPACITY);
                pipe.filter(kept).buffer(CAPACITY).map(mix).fold(0u64, |sum, x| *sum = sum.wrapping_add(x))
            })
        })
}

fn four_stages_order(name: &'static str, threads: Threads) -> Case {
    let last = |order| value(&stamp(order));
    Case::new(name)
        .floor("loop", |scale| {
            let items = scale.of(ORDERS);
            floor(items, three_orders(items), || three_orders(black_box(items)))
        })
        .peer("tokio::mpsc", four!(tokio, threads, ORDERS_PEERS / 2, three_orders, order, tax, open, last))
        .peer("kanal", four!(kanal, threads, ORDERS_PEERS / 2, three_orders, order, tax, open, last))
        .peer("crossfire", four!(crossfire, threads, ORDERS_PEERS / 2, three_orders, order, tax, open, last))
        .ours("ours", move |scale| {
            let items = scale.of(ORDERS / 2);
            plan(threads, items, three_orders(items), || {
                let pipe = Pipe::from_iter((0..items).map(order)).buffer(CAPACITY).map(tax).buffer(CAPACITY);
                pipe.filter(open)
                    .buffer(CAPACITY)
                    .map(stamp)
                    .fold(0u64, |sum, order| *sum = sum.wrapping_add(value(&order)))
            })
        })
}

fn per_item(name: &'static str, threads: Threads) -> Case {
    Case::new(name)
        .peer("tokio::mpsc", hop!(tokio, threads))
        .peer("kanal", hop!(kanal, threads))
        .peer("crossfire", hop!(crossfire, threads))
        .ours("ours", move |scale| {
            let items = scale.of(ITEMS);
            future(threads, items, one(items), move || async move {
                let (mut sender, mut hop) = Pipe::channel(CAPACITY);
                tokio::spawn(async move {
                    for i in 0..items {
                        sender.send(i).await.expect("the hop is read to its end");
                    }
                });
                let mut sum = 0u64;
                while let Some(i) = StreamExt::next(&mut hop).await {
                    sum = sum.wrapping_add(multiply(i));
                }
                sum
            })
        })
        .remark("Each item is sent, published and read by itself: `Pipe::channel`, `send` and `next`.")
}

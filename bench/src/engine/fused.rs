//! Operators of one stage: what fusing costs over a loop written by hand.

use std::future::ready;
use std::hint::black_box;

use futures_util::{StreamExt, stream};
use millstream_flow::Pipe;

use super::run::{Threads, floor, future, plan};
use super::streamz;
use crate::case::{Bound, Case};
use crate::work::{Order, kept, mix, multiply, open, order, stamp, tax, three, three_orders, value};

const ITEMS: u64 = 50_000_000;
const ORDERS: u64 = 4_000_000;

fn add(sum: &mut u64, x: u64) {
    *sum = sum.wrapping_add(x);
}

fn add_order(sum: &mut u64, order: Order) {
    *sum = sum.wrapping_add(value(&order));
}

pub(crate) fn cases() -> Vec<Case> {
    vec![fused_u64(), fused_order(), as_stream(), boxed()]
}

fn fused_u64() -> Case {
    Case::new("3 fused operators, u64")
        .floor("loop", |scale| {
            let items = scale.of(ITEMS);
            floor(items, three(items), || three(black_box(items)))
        })
        .peer("futures filter_map", |scale| {
            let items = scale.of(ITEMS);
            future(Threads::One, items, three(items), move || async move {
                let mut stream = stream::iter(0..items)
                    .map(multiply)
                    .filter_map(|x| ready(kept(&x).then_some(x)))
                    .map(mix);
                let mut sum = 0;
                while let Some(x) = stream.next().await {
                    add(&mut sum, x);
                }
                sum
            })
        })
        .peer("streamz (Go)", |scale| {
            let items = scale.of(500_000);
            streamz::measure("three", items, three(items))
        })
        .ours("ours", |scale| {
            let items = scale.of(ITEMS);
            plan(Threads::One, items, three(items), || {
                Pipe::from_iter(0..items).map(multiply).filter(kept).map(mix).fold(0, add)
            })
        })
        .goal(Bound::TimesAtMost(1.2, "loop"), "")
        .goal(Bound::TimesFaster(700.0, "streamz (Go)"), "")
}

fn fused_order() -> Case {
    Case::new("3 fused operators, Order")
        .floor("loop", |scale| {
            let items = scale.of(ORDERS);
            floor(items, three_orders(items), || three_orders(black_box(items)))
        })
        .peer("futures filter_map", |scale| {
            let items = scale.of(ORDERS);
            future(Threads::One, items, three_orders(items), move || async move {
                let mut stream = stream::iter(0..items)
                    .map(order)
                    .map(tax)
                    .filter_map(|order| ready(open(&order).then_some(order)))
                    .map(stamp);
                let mut sum = 0;
                while let Some(order) = stream.next().await {
                    add_order(&mut sum, order);
                }
                sum
            })
        })
        .ours("ours", |scale| {
            let items = scale.of(ORDERS);
            plan(Threads::One, items, three_orders(items), || {
                Pipe::from_iter((0..items).map(order)).map(tax).filter(open).map(stamp).fold(0, add_order)
            })
        })
        .goal(Bound::TimesAtMost(1.05, "loop"), "")
        .goal(Bound::TimesFaster(5.0, "futures filter_map"), "")
}

fn as_stream() -> Case {
    Case::new("3 fused operators, u64, consumed as a futures::Stream")
        .floor("loop", |scale| {
            let items = scale.of(ITEMS);
            floor(items, three(items), || three(black_box(items)))
        })
        .ours("ours", |scale| {
            let items = scale.of(ITEMS);
            future(Threads::One, items, three(items), move || async move {
                let mut stream = Pipe::from_iter(0..items).map(multiply).filter(kept).map(mix);
                let mut sum = 0;
                while let Some(x) = StreamExt::next(&mut stream).await {
                    add(&mut sum, x);
                }
                sum
            })
        })
        .goal(Bound::TimesAtMost(1.1, "loop"), "")
}

fn boxed() -> Case {
    Case::new("boxed after every operator, u64")
        .floor("loop", |scale| {
            let items = scale.of(ITEMS);
            floor(items, three(items), || three(black_box(items)))
        })
        .peer("futures BoxStream", |scale| {
            let items = scale.of(ITEMS / 4);
            future(Threads::One, items, three(items), move || async move {
                let stream = stream::iter(0..items).boxed().map(multiply).boxed();
                let mut stream = stream.filter_map(|x| ready(kept(&x).then_some(x))).boxed().map(mix).boxed();
                let mut sum = 0;
                while let Some(x) = stream.next().await {
                    add(&mut sum, x);
                }
                sum
            })
        })
        .ours("ours", |scale| {
            let items = scale.of(ITEMS);
            plan(Threads::One, items, three(items), || {
                let pipe = Pipe::from_iter(0..items).boxed().map(multiply).boxed();
                pipe.filter(kept).boxed().map(mix).boxed().fold(0, add)
            })
        })
        .goal(Bound::TimesAtMost(2.0, "loop"), "")
        .goal(Bound::TimesFaster(4.0, "futures BoxStream"), "")
}

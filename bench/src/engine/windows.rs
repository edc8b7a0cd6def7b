//! Windows over a thousand keys.

use std::collections::HashMap;
use std::time::Duration;

use millstream_flow::{Pipe, Plan, Sum, Window};

use super::run::{Threads, floor, plan};
use super::streamz;
use crate::case::{Bound, Case};
use crate::work::{multiply, one};

const ITEMS: u64 = 10_000_000;
/// What streamz is given, which takes two orders of magnitude longer.
const ITEMS_GO: u64 = 300_000;
const KEYS: u64 = 1000;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("window: tumbling, 10 ms", "tumbling", 1, || Window::tumbling(millis(10)))
            .goal(Bound::TimesFaster(80.0, "streamz"), "was ≥ 35: ≤ 40 ns at its 1,415"),
        case("window: sliding, 20 ms every 5 ms", "sliding", 4, || Window::sliding(millis(20), millis(5)))
            .goal(Bound::TimesFaster(240.0, "streamz"), "was ≥ 91: ≤ 60 ns at its 5,480")
            .remark("Each item is in four windows; streamz leaves some out, so its sum is of what went in."),
        case("window: session, gap 40 ms", "session", 1, || Window::session(millis(40)))
            .goal(Bound::TimesFaster(180.0, "streamz"), "was ≥ 35: ≤ 60 ns at its 2,110"),
    ]
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// A flow of items in windows, ending in the sum of the windows' sums.
pub(crate) fn sums(items: u64, window: Window) -> Plan<u64> {
    Pipe::from_iter(0..items)
        .window(window, |i| i % KEYS, Sum(|i: &u64| std::num::Wrapping(multiply(*i))))
        .fold(0u64, |sum, window| *sum = sum.wrapping_add(window.value.0))
}

fn case(name: &'static str, workload: &'static str, windows: u64, window: fn() -> Window) -> Case {
    Case::new(name)
        .floor("a sum in a HashMap", |scale| {
            let items = scale.of(ITEMS);
            floor(items, one(items), || {
                let mut sums = HashMap::<u64, u64>::new();
                for i in 0..items {
                    let sum = sums.entry(i % KEYS).or_default();
                    *sum = sum.wrapping_add(multiply(i));
                }
                sums.values().fold(0, |sum, value| sum.wrapping_add(*value))
            })
        })
        .peer("streamz", move |scale| {
            let items = scale.of(ITEMS_GO);
            streamz::measure(workload, items, one(items))
        })
        .ours("ours", move |scale| {
            let items = scale.of(ITEMS);
            plan(Threads::One, items, one(items).wrapping_mul(windows), move || sums(items, window()))
        })
}

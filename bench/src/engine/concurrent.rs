//! Many calls of an async function in flight in one task.

use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_buffered::BufferedStreamExt;
use futures_util::{StreamExt, stream};
use millstream_flow::{Concurrency, Pipe};

use super::run::{Threads, floor, future, plan};
use crate::case::{Bound, Case};
use crate::work::{multiply, one};

const ITEMS: u64 = 5_000_000;
const ITEMS_PEERS: u64 = 1_000_000;
const IN_FLIGHT: usize = 50;

/// Pending once, having woken itself: what a call that needs one more poll costs.
#[derive(Default)]
struct SelfWake(bool);

impl Future for SelfWake {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.0 {
            return Poll::Ready(());
        }
        self.0 = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

async fn at_once(i: u64) -> u64 {
    multiply(i)
}

async fn self_wake(i: u64) -> u64 {
    SelfWake::default().await;
    multiply(i)
}

async fn yielding(i: u64) -> u64 {
    tokio::task::yield_now().await;
    multiply(i)
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("map_async(50) unordered, ready at once", at_once, Concurrency::unordered(IN_FLIGHT), 1)
            .goal(Bound::TimesFaster(27.0, "futures-buffered"), "as ≤ 0.8 ns at its 22"),
        case("map_async(50) unordered, self-wake", self_wake, Concurrency::unordered(IN_FLIGHT), 4)
            .goal(Bound::TimesFaster(4.4, "futures-buffered"), "as ≤ 10 ns at its 44"),
        case("map_async(50) unordered, yield", yielding, Concurrency::unordered(IN_FLIGHT), 4)
            .goal(Bound::TimesFaster(2.3, "futures-buffered"), "as ≤ 27 ns at its 62"),
        ordered("map_async(50) ordered, ready at once", at_once, 1)
            .goal(Bound::TimesFaster(70.0, "futures buffered"), "as ≤ 0.8 ns at its 56"),
        ordered("map_async(50) ordered, self-wake", self_wake, 4)
            .goal(Bound::TimesFaster(23.0, "futures buffered"), "as ≤ 10 ns at its 236"),
        ordered("map_async(50) ordered, yield", yielding, 4)
            .goal(Bound::TimesFaster(4.8, "futures buffered"), "as ≤ 27 ns at its 132"),
    ]
}

fn add(sum: &mut u64, x: u64) {
    *sum = sum.wrapping_add(x);
}

/// `call` is a type of its own, not a pointer, so that every contestant may inline it. `slow`: by how much fewer items are enough.
fn base<C, Fut>(name: &'static str, call: C, concurrency: Concurrency, slow: u64) -> Case
where
    C: Fn(u64) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = u64> + Send + 'static,
{
    Case::new(name)
        .floor("loop", |scale| {
            let items = scale.of(4 * ITEMS);
            floor(items, one(items), || one(black_box(items)))
        })
        .ours("ours", move |scale| {
            let items = scale.of(ITEMS / slow);
            plan(Threads::One, items, one(items), || {
                Pipe::from_iter(0..items).map_async(concurrency, call).fold(0u64, add)
            })
        })
}

fn case<C, Fut>(name: &'static str, call: C, concurrency: Concurrency, slow: u64) -> Case
where
    C: Fn(u64) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = u64> + Send + 'static,
{
    base(name, call, concurrency, slow)
        .peer("futures buffer_unordered", move |scale| {
            let items = scale.of(ITEMS_PEERS / slow);
            future(Threads::One, items, one(items), move || async move {
                let mut stream = stream::iter(0..items).map(call).buffer_unordered(IN_FLIGHT);
                let mut sum = 0;
                while let Some(x) = stream.next().await {
                    add(&mut sum, x);
                }
                sum
            })
        })
        .peer("futures-buffered", move |scale| {
            let items = scale.of(ITEMS_PEERS);
            future(Threads::One, items, one(items), move || async move {
                let mut stream = stream::iter(0..items).map(call).buffered_unordered(IN_FLIGHT);
                let mut sum = 0;
                while let Some(x) = stream.next().await {
                    add(&mut sum, x);
                }
                sum
            })
        })
}

fn ordered<C, Fut>(name: &'static str, call: C, slow: u64) -> Case
where
    C: Fn(u64) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = u64> + Send + 'static,
{
    base(name, call, Concurrency::ordered(IN_FLIGHT), slow)
        .peer("futures buffered", move |scale| {
            let items = scale.of(ITEMS_PEERS / slow);
            future(Threads::One, items, one(items), move || async move {
                let mut stream = stream::iter(0..items).map(call).buffered(IN_FLIGHT);
                let mut sum = 0;
                while let Some(x) = stream.next().await {
                    add(&mut sum, x);
                }
                sum
            })
        })
        .peer("futures-buffered", move |scale| {
            let items = scale.of(ITEMS_PEERS);
            future(Threads::One, items, one(items), move || async move {
                let mut stream = stream::iter(0..items).map(call).buffered_ordered(IN_FLIGHT);
                let mut sum = 0;
                while let Some(x) = stream.next().await {
                    add(&mut sum, x);
                }
                sum
            })
        })
}

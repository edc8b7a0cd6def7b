//! Random chains of operators, as data and as the flow they stand for.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use millstream_flow::{
    Batch, BoxError, Capacity, Concurrency, Debounce, Dedupe, EventTime, Failed, Flow, Pipe, RateLimit,
    Replay, Retry, Sample, Sum, Throttle, Tick, TimeOf, Window, Workers,
};
use proptest::prelude::*;

use crate::support::{Checked, Issue, checked, yields};

/// Longer than any of these flows lasts.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What becomes of items whose function failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    Skip,
    Fallback,
    Reject,
    /// To a destination that is not ready at once.
    DeadLetter,
}

/// Which items of a burst pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edge {
    First,
    Last,
    Both,
}

/// One operator on numbers. Where an operator fails, panics or drops, it does so by the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Map,
    Filter(u64),
    FilterMap(u64),
    /// Into `number % .0` parts.
    FlatMap(u64),
    Skip(usize),
    Take(usize),
    /// Batches of a count, each summed.
    Sums(usize),
    /// Batches of a count and of bytes (a number's size is its last digit), each summed.
    SumsBytes(usize, usize),
    /// Batches, taken apart again.
    Rebatch(usize),
    /// Batches that lose their last item, if they have two, and are taken apart again.
    Shorten(usize),
    /// Calls that wait `number % .2` times.
    MapAsync {
        limit: usize,
        unordered: bool,
        waits: u64,
    },
    /// Calls that never return at numbers divisible by this, and have a limit.
    LateAsync {
        every: u64,
        limit: usize,
        unordered: bool,
        by_key: bool,
    },
    TryMap(u64, Policy),
    TryMapAsync(u64, usize, Policy),
    /// Calls that never return, as above.
    TryLate(u64, usize, Policy),
    /// Numbers divisible by this need a second attempt.
    Retry(u64),
    Boxed,
    Replay,
    /// Panics at numbers divisible by this.
    Panic(u64),
    /// In the second poll of a call.
    PanicAsync {
        every: u64,
        limit: usize,
        unordered: bool,
    },
    /// At the second part of two.
    PanicParts(u64),
    Buffer(usize),
    BufferBytes(usize, usize),
    /// With so many bytes at once, of items of up to nine; busy for as long as others are woken for.
    Parallel {
        workers: usize,
        unordered: bool,
        bytes: usize,
        busy: bool,
    },
    PerKey(usize),
    /// Running sums.
    Scan,
    /// Until a number is divisible by this.
    TakeWhile(u64),
    SkipWhile(u64),
    OneIn(usize),
    /// By the last digit, of which so many are remembered.
    Dedupe(usize),
    /// By the remainder of 3.
    Changes,
    /// The first, the last, or both of all numbers: they come within less than the span.
    Debounce(Edge),
    Throttle(Edge),
    /// The newest by last digit, of which so many are held.
    LatestBy(usize),
    RateLimit,
    /// To two lanes that are zipped again.
    Pairs,
    /// Sums of so many numbers of the same remainder of 3.
    CountWindows(u64),
    /// Sums of the last so many times the second, after each second.
    Moving(u64, u64),
    /// Sums of windows of this length and step, of numbers as seconds, which come in any order.
    TimeWindows(u64, u64),
    /// Sums of sessions with this gap, of the same.
    Sessions(u64),
    /// To two lanes by parity.
    Split,
    /// To so many lanes by turns.
    Deal(usize),
    /// To routes of the remainders of 5 that are smaller than this; the others to a default route, or nowhere.
    Switch(u64, bool),
    /// To two lanes, one of which takes the odd numbers and the other the even ones.
    Halves,
}

impl Op {
    /// Whether it works only inside of a run: it has a task of its own, or panics.
    fn needs_run(self) -> bool {
        matches!(
            self,
            Op::Panic(_)
                | Op::PanicAsync { .. }
                | Op::PanicParts(_)
                | Op::Buffer(_)
                | Op::BufferBytes(..)
                | Op::Parallel { .. }
                | Op::PerKey(_)
                | Op::Halves
                | Op::Pairs
                | Op::Split
                | Op::Deal(_)
                | Op::Switch(..)
        )
    }

    /// Whether what comes out depends on the order of what goes in.
    pub(crate) fn needs_order(self) -> bool {
        matches!(
            self,
            Op::Skip(_)
                | Op::Take(_)
                | Op::Sums(_)
                | Op::SumsBytes(..)
                | Op::Rebatch(_)
                | Op::Shorten(_)
                | Op::Scan
                | Op::TakeWhile(_)
                | Op::SkipWhile(_)
                | Op::OneIn(_)
                | Op::Dedupe(_)
                | Op::Changes
                | Op::Debounce(_)
                | Op::Throttle(_)
                | Op::LatestBy(_)
                | Op::CountWindows(_)
                | Op::Moving(..)
                | Op::TimeWindows(..)
                | Op::Sessions(_)
        )
    }

    pub(crate) fn loses_order(self) -> bool {
        matches!(
            self,
            Op::MapAsync { unordered: true, .. }
                | Op::LateAsync { unordered: true, .. }
                | Op::PanicAsync { unordered: true, .. }
                | Op::Parallel { unordered: true, .. }
                | Op::PerKey(_)
                | Op::Halves
                | Op::Split
                | Op::Deal(_)
                | Op::Switch(..)
                | Op::CountWindows(_)
                | Op::Moving(..)
                | Op::TimeWindows(..)
                | Op::Sessions(_)
        )
    }
}

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::Skip), Just(Policy::Fallback), Just(Policy::Reject), Just(Policy::DeadLetter)]
}

fn edge() -> impl Strategy<Value = Edge> {
    prop_oneof![Just(Edge::First), Just(Edge::Last), Just(Edge::Both)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![plain_op(), selecting_op(), op_of_a_run()]
}

fn selecting_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        Just(Op::Scan),
        (2..30u64).prop_map(Op::TakeWhile),
        (2..9u64).prop_map(Op::SkipWhile),
        (1..6usize).prop_map(Op::OneIn),
        (1..11usize).prop_map(Op::Dedupe),
        Just(Op::Changes),
        edge().prop_map(Op::Debounce),
        edge().prop_map(Op::Throttle),
        (1..11usize).prop_map(Op::LatestBy),
        Just(Op::RateLimit),
        (1..6u64).prop_map(Op::CountWindows),
        ((1..5u64), (1..4u64)).prop_map(|(times, every)| Op::Moving(times, every)),
        ((1..40u64), (1..40u64)).prop_map(|(size, slide)| Op::TimeWindows(size, slide)),
        (1..30u64).prop_map(Op::Sessions),
    ]
}

fn plain_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        Just(Op::Map),
        (2..5u64).prop_map(Op::Filter),
        (2..5u64).prop_map(Op::FilterMap),
        (1..5u64).prop_map(Op::FlatMap),
        (0..20usize).prop_map(Op::Skip),
        (0..60usize).prop_map(Op::Take),
        (1..6usize).prop_map(Op::Sums),
        ((1..6usize), (1..20usize)).prop_map(|(count, bytes)| Op::SumsBytes(count, bytes)),
        (1..6usize).prop_map(Op::Rebatch),
        (1..6usize).prop_map(Op::Shorten),
        ((1..9usize), any::<bool>(), (1..4u64)).prop_map(|(limit, unordered, waits)| Op::MapAsync {
            limit,
            unordered,
            waits
        }),
        ((2..9u64), policy()).prop_map(|(every, policy)| Op::TryMap(every, policy)),
        ((2..9u64), (1..9usize), policy())
            .prop_map(|(every, limit, policy)| Op::TryMapAsync(every, limit, policy)),
        ((2..9u64), (1..9usize), any::<bool>(), any::<bool>())
            .prop_map(|(every, limit, unordered, by_key)| Op::LateAsync { every, limit, unordered, by_key }),
        ((2..9u64), (1..9usize), policy())
            .prop_map(|(every, limit, policy)| Op::TryLate(every, limit, policy)),
        (2..9u64).prop_map(Op::Retry),
        Just(Op::Boxed),
        Just(Op::Replay),
    ]
}

fn op_of_a_run() -> impl Strategy<Value = Op> {
    prop_oneof![
        Just(Op::Pairs),
        Just(Op::Split),
        (1..6usize).prop_map(Op::Deal),
        ((1..5u64), any::<bool>()).prop_map(|(routes, default)| Op::Switch(routes, default)),
        (2..20u64).prop_map(Op::Panic),
        ((2..20u64), (1..9usize), any::<bool>()).prop_map(|(every, limit, unordered)| Op::PanicAsync {
            every,
            limit,
            unordered
        }),
        (2..20u64).prop_map(Op::PanicParts),
        (1..20usize).prop_map(Op::Buffer),
        ((1..20usize), (1..30usize)).prop_map(|(items, bytes)| Op::BufferBytes(items, bytes)),
        ((1..4usize), any::<bool>(), 1..60usize, prop::bool::weighted(0.1))
            .prop_map(|(workers, unordered, bytes, busy)| Op::Parallel { workers, unordered, bytes, busy }),
        (1..4usize).prop_map(Op::PerKey),
        Just(Op::Halves),
    ]
}

/// Chains in which nothing depends on an order that was given up before.
pub(crate) fn chains(in_run: bool) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 0..7).prop_map(move |ops| {
        let mut ordered = true;
        let mut chain = Vec::new();
        for op in ops {
            if (op.needs_order() && !ordered) || (op.needs_run() && !in_run) {
                continue;
            }
            ordered &= !op.loses_order();
            chain.push(op);
        }
        chain
    })
}

/// A number's size in bytes, for the operators that measure.
pub(crate) fn size(number: &u64) -> usize {
    (number % 10) as usize
}

/// What `FlatMap(modulus)` makes of a number.
pub(crate) fn parts(number: u64, modulus: u64) -> impl Iterator<Item = u64> {
    (0..number % modulus).map(move |part| number + 100 * part)
}

type Link<K> = Pipe<Checked<u64, K>>;

fn handled<K: Issue, F>(pipe: Pipe<F>, policy: Policy, name: &str) -> Link<K>
where
    F: Flow<Item = Result<u64, Failed<u64>>, Token = K> + Send + 'static,
{
    match policy {
        Policy::Skip => checked(pipe.skip_errors().named(name), name),
        Policy::Fallback => checked(pipe.fallback(|failed| failed.input + 5), name),
        Policy::Reject => checked(pipe.reject(), name),
        Policy::DeadLetter => {
            let letters = AtomicU64::new(0);
            let send = move |_| {
                let letter = letters.fetch_add(1, Ordering::Relaxed);
                async move {
                    yields(letter % 3).await;
                    Ok(())
                }
            };
            checked(pipe.dead_letter(send), name)
        }
    }
}

/// One more operator.
pub(crate) fn link<K: Issue>(pipe: Link<K>, op: Op, name: &str) -> Link<K> {
    match op {
        Op::Map => checked(pipe.map(|n| n + 1), name),
        Op::Filter(m) => checked(pipe.filter(move |n| n % m != 0).named(name), name),
        Op::FilterMap(m) => {
            checked(pipe.filter_map(move |n| (n % m != 0).then_some(n + 1)).named(name), name)
        }
        Op::FlatMap(m) => checked(pipe.flat_map(move |n| parts(n, m)).named(name), name),
        Op::Skip(n) => checked(pipe.skip(n).named(name), name),
        Op::Take(n) => checked(pipe.take(n), name),
        Op::Sums(n) => checked(pipe.batch(Batch::count(n)).map(|batch| batch.iter().sum()), name),
        Op::SumsBytes(n, bytes) => {
            checked(pipe.batch(Batch::count(n).bytes(bytes, size)).map(|batch| batch.iter().sum()), name)
        }
        Op::Rebatch(n) => {
            let batches = checked(pipe.batch(Batch::count(n)), name);
            checked(batches.unbatch().named(name), name)
        }
        Op::Shorten(n) => {
            let shorter = pipe.batch(Batch::count(n)).map(|mut batch| {
                if batch.len() > 1 {
                    batch.pop();
                }
                batch
            });
            checked(shorter.unbatch().named(name), name)
        }
        Op::MapAsync { limit, unordered, waits } => {
            let calls = if unordered { Concurrency::unordered(limit) } else { Concurrency::ordered(limit) };
            let call = move |n: u64| async move {
                yields(n % waits).await;
                n + 1
            };
            checked(pipe.map_async(calls, call), name)
        }
        Op::LateAsync { every, limit, unordered, by_key } => {
            let calls = if unordered { Concurrency::unordered(limit) } else { Concurrency::ordered(limit) };
            let calls = calls.time_limit(Duration::from_millis(5));
            let call = move |n: u64| async move {
                yields(n % 3).await;
                if n.is_multiple_of(every) { pending().await } else { n + 1 }
            };
            if by_key {
                via_box(pipe.map_async_by_key(calls, |n| n % 3, call))
            } else {
                checked(pipe.map_async(calls, call), name)
            }
        }
        Op::TryLate(m, limit, policy) => {
            // Of the call or of its only attempt: that is the same.
            let time = Duration::from_millis(5);
            let (calls, retry) = match limit % 2 {
                0 => (Concurrency::ordered(limit), Retry::never().timeout(time)),
                _ => (Concurrency::ordered(limit).time_limit(time), Retry::never()),
            };
            let call = async move |n: &u64| {
                yields(n % 3).await;
                if n.is_multiple_of(m) { pending().await } else { Ok::<_, BoxError>(n + 1) }
            };
            handled(via_box(pipe.try_map_async(calls, retry, call)), policy, name)
        }
        Op::TryMap(m, policy) => {
            let tried = pipe.try_map(move |n| match n % m {
                0 if n.is_multiple_of(2) => panic!("even"),
                0 => Err("odd"),
                _ => Ok(n + 1),
            });
            handled(checked(tried, name), policy, name)
        }
        Op::TryMapAsync(m, limit, policy) => {
            let call = async move |n: &u64| {
                yields(n % 3).await;
                match n % m {
                    0 if n.is_multiple_of(2) => panic!("even"),
                    0 => Err("odd"),
                    _ => Ok(n + 1),
                }
            };
            let tried = pipe.try_map_async(limit, Retry::never(), call);
            handled(via_box(tried), policy, name)
        }
        Op::Retry(m) => {
            let retry = Retry::attempts(2).unwrap().first_delay(Duration::from_millis(7));
            let mut tried = false;
            let tried = pipe.try_map_retry(retry, move |n| {
                if n % m == 0 && !tried {
                    tried = true;
                    return Err("once more");
                }
                tried = false;
                Ok(n + 1)
            });
            handled(checked(tried, name), Policy::Reject, name)
        }
        Op::Boxed => checked(pipe.boxed(), name),
        Op::Replay => checked(pipe.replay(&Replay::new(3)).named(name), name),
        Op::Panic(m) => {
            let panics =
                move |n: u64| if n.is_multiple_of(m) { panic!("a test panics at {n}") } else { n + 1 };
            checked(pipe.map(panics), name)
        }
        Op::PanicAsync { every, limit, unordered } => {
            let calls = if unordered { Concurrency::unordered(limit) } else { Concurrency::ordered(limit) };
            let call = move |n: u64| async move {
                yields(n % 2).await;
                assert!(!n.is_multiple_of(every), "a test panics at {n}");
                n + 1
            };
            checked(pipe.map_async(calls, call), name)
        }
        Op::PanicParts(m) => {
            let panics = move |n: u64| {
                [n, n].into_iter().enumerate().map(move |(part, n)| {
                    assert!(part == 0 || n % m != 0, "a test panics at {n}");
                    n + 1
                })
            };
            checked(pipe.flat_map(panics), name)
        }
        Op::Buffer(n) => checked(pipe.buffer(n), name),
        Op::BufferBytes(n, bytes) => {
            checked(pipe.buffer_measured(Capacity::items(n).bytes(bytes, size)), name)
        }
        Op::Parallel { workers, unordered, bytes, busy } => {
            let workers = if unordered { Workers::unordered(workers) } else { Workers::ordered(workers) };
            let work = move |n| {
                let began = Tick::now();
                while busy && Tick::now().since(began) < Duration::from_micros(5) {}
                n + 1
            };
            let workers = workers.bytes(bytes, |n: &u64| (n % 10) as usize);
            checked(pipe.parallel_measured(workers, work), name)
        }
        Op::PerKey(lanes) => checked(pipe.per_key(lanes, 3, |n| n % 7, |lane| lane.map(|n| n + 1)), name),
        Op::Scan => {
            let sums = pipe.scan(0u64, |sum, n| {
                *sum = sum.wrapping_add(n) % 10_000;
                *sum
            });
            checked(sums, name)
        }
        Op::TakeWhile(m) => checked(pipe.take_while(move |n| n % m != 0).named(name), name),
        Op::SkipWhile(m) => checked(pipe.skip_while(move |n| n % m != 0).named(name), name),
        Op::OneIn(n) => checked(pipe.sample(Sample::one_in(n)).named(name), name),
        Op::Dedupe(keys) => checked(pipe.dedupe(Dedupe::keys(keys).ttl(DAY), |n| n % 10).named(name), name),
        Op::Changes => checked(pipe.distinct_until_changed(|n| n % 3).named(name), name),
        Op::Debounce(edge) => {
            let rule = match edge {
                Edge::First => Debounce::leading(DAY),
                Edge::Last => Debounce::trailing(DAY),
                Edge::Both => Debounce::both(DAY),
            };
            checked(pipe.debounce(rule).named(name), name)
        }
        Op::Throttle(edge) => {
            let rule = match edge {
                Edge::First => Throttle::leading(DAY),
                Edge::Last => Throttle::trailing(DAY),
                Edge::Both => Throttle::both(DAY),
            };
            checked(pipe.throttle(rule).named(name), name)
        }
        Op::LatestBy(keys) => checked(pipe.latest_by(DAY, keys, |n| n % 10).named(name), name),
        Op::RateLimit => checked(pipe.rate_limit(RateLimit::new(300, Duration::from_secs(1)).burst(3)), name),
        Op::Pairs => {
            let mut lanes = pipe.broadcast(2, 3).into_iter();
            let (one, other) = (lanes.next().unwrap(), lanes.next().unwrap());
            checked(one.zip(other).map(|(a, b)| a + b), name)
        }
        Op::CountWindows(items) => windows(pipe, Window::count(items), name),
        Op::Moving(times, every) => windows(pipe, Window::sliding_count(times * every, every), name),
        Op::TimeWindows(size, slide) => {
            let window = Window::sliding(Duration::from_secs(size), Duration::from_secs(slide));
            windows(pipe, window.event_time(any_order()), name)
        }
        Op::Sessions(gap) => {
            windows(pipe, Window::session(Duration::from_secs(gap)).event_time(any_order()), name)
        }
        Op::Split => {
            let (even, odd) = pipe.split(3, |n| n % 2 == 0);
            checked(even.merge(odd), name)
        }
        Op::Deal(lanes) => checked(Pipe::merge_all(pipe.round_robin(lanes, 3)), name),
        Op::Switch(routes, default) => {
            let switch = pipe.switch(|n| n % 5).named(name);
            let mut lanes: Vec<_> = (0..routes).map(|key| switch.route(key, 3)).collect();
            if default {
                lanes.push(switch.default_route(3));
            }
            drop(switch);
            checked(Pipe::merge_all(lanes), name)
        }
        Op::Halves => {
            let mut lanes = pipe.broadcast(2, 3).into_iter();
            let odd = lanes.next().unwrap().filter(|n| n % 2 == 1).named(name);
            let even = lanes.next().unwrap().filter(|n| n % 2 == 0).named(name);
            checked(odd.merge(even), name)
        }
    }
}

fn any_order() -> EventTime<impl Fn(&u64) -> SystemTime + Send + 'static> {
    EventTime::new(|n: &u64| SystemTime::UNIX_EPOCH + Duration::from_secs(*n)).delay(DAY)
}

/// Sums of windows. A window's token is of the source's kind again.
fn windows<K: Issue, C: TimeOf<u64>>(pipe: Link<K>, window: Window<C>, name: &str) -> Link<K> {
    let sums = pipe.window(window, |n| n % 3, Sum(|n: &u64| *n)).named(name);
    checked(sums.map(|window| window.value), name)
}

/// Through the engine's own boxes: the type of an async operator cannot be named.
fn via_box<F: Flow<Item: Send> + Send + 'static>(pipe: Pipe<F>) -> Pipe<Checked<F::Item, F::Token>> {
    checked(pipe.boxed(), "boxed")
}

/// The whole chain behind a source.
pub(crate) fn build<K: Issue, F>(source: Pipe<F>, ops: &[Op]) -> Link<K>
where
    F: Flow<Item = u64, Token = K> + Send + 'static,
{
    let mut pipe = checked(source, "source");
    for (at, op) in ops.iter().enumerate() {
        pipe = link(pipe, *op, &format!("{at}:{op:?}"));
    }
    pipe
}

/// Shared by whoever collects what comes out.
pub(crate) type Collected = Arc<std::sync::Mutex<Vec<u64>>>;

//! What the table of all operators (`docs/operators.md`) says, against the operators: what holds for all is measured of each in one
//! way, and of what one does in its own way, the list below names the test that shows it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::ready;
use std::sync::LazyLock;
use std::time::Duration;

use millstream_flow::test::{End, Probe, quiescence, virtual_time};
use millstream_flow::{
    Batch, BoxError, Concurrency, ContextKey, Debounce, Dedupe, Flow, Lane, Memo, Overflow, Pipe, RateLimit,
    Replay, Retry, Sample, Spill, Sum, Throttle, Window, Workers,
};

use crate::support::{Ear, tracked, yields};

/// Longer than any of these flows lasts.
const DAY: Duration = Duration::from_secs(24 * 3600);

const ITEMS: u64 = 10_000;

static NUMBER: ContextKey<u64> = ContextKey::new("number");

/// What was seen of an operator.
struct Seen {
    name: &'static str,
    /// How many items it holds at most, as the table has it.
    said: u64,
    /// How many were between source and sink while the sink held one and asked for nothing.
    held: u64,
    /// How the items ended when the run was dropped then.
    dropped: BTreeMap<u64, End>,
    /// Whether what came out of a whole run was in the order of the source.
    in_order: bool,
    /// The items of the source in the whole run that had not ended when it had.
    left: u64,
    /// The same two of a run behind what drops most items; `None` if it did not end.
    behind: Option<(bool, u64)>,
}

/// The operator behind a sink that takes one item and asks for no more, and is then dropped.
async fn held<F>(pipe: Pipe<F>, ends: Ear) -> (u64, BTreeMap<u64, End>)
where
    F: Flow<Item: Send, Token: Send> + Send + 'static,
{
    let (probe, sink) = Probe::new();
    let run = pipe.into_sink(sink).start();
    quiescence().await;
    let held = (ends.issued() - ends.ends().len() as u64).saturating_sub(1);
    drop((run, probe));
    quiescence().await;
    (held, ends.ends())
}

/// The operator in a run from its first item to its last.
async fn whole<F>(pipe: Pipe<F>, ends: Ear) -> (bool, u64)
where
    F: Flow<Item = u64, Token: Send> + Send + 'static,
{
    let (out, report) = pipe.collect().await.expect("nothing fails");
    assert!(report.ledger.balances(), "{:?}", report.ledger);
    (out.is_sorted(), ends.issued() - ends.ends().len() as u64)
}

macro_rules! operators {
    ($($name:literal holds $said:literal: |$pipe:ident| $build:expr;)*) => {
        vec![$({
            let (held, dropped) = virtual_time(async {
                let ($pipe, ends, _) = tracked(0..ITEMS);
                held($build, ends).await
            });
            let (in_order, left) = virtual_time(async {
                let ($pipe, ends, _) = tracked(0..ITEMS);
                whole($build, ends).await
            });
            let behind = virtual_time(async {
                let (pipe, ends, _) = tracked(0..ITEMS);
                let $pipe = pipe.filter(|n| n % 5 == 4);
                // It is over by its own clock long before.
                tokio::time::timeout(1000 * DAY, whole($build, ends)).await.ok()
            });
            Seen { name: $name, said: $said, held, dropped, in_order, left, behind }
        }),*]
    };
}

/// Every operator, alone between a tracked source and a sink.
static OPERATORS: LazyLock<Vec<Seen>> = LazyLock::new(|| {
    operators! {
        "map" holds 0: |pipe| pipe.map(|n| n);
        "inspect" holds 0: |pipe| pipe.inspect(|_| ());
        "scan" holds 0: |pipe| pipe.scan(0, |_, n| n);
        "flat_map" holds 0: |pipe| pipe.flat_map(|n| [n, n]);
        "flatten" holds 0: |pipe| pipe.map(|n| [n, n]).flatten();
        "unbatch" holds 0: |pipe| pipe.map(|n| vec![n, n]).unbatch();
        "batch" holds 9: |pipe| pipe.batch(Batch::count(10)).map(|batch| batch[0]);
        "window" holds 9: |pipe| pipe.window(Window::count(10), |_| 0, Sum(|n: &u64| *n)).map(|sum| sum.value);
        "zip" holds 0: |pipe| pipe.zip(tracked(0..10_000u64).0).map(|(n, _)| n);
        "filter" holds 0: |pipe| pipe.filter(|_| true);
        "filter_map" holds 0: |pipe| pipe.filter_map(Some);
        "sample" holds 0: |pipe| pipe.sample(Sample::one_in(3));
        "sample_by" holds 0: |pipe| pipe.sample_by(0.5, |n| *n);
        "take" holds 0: |pipe| pipe.take(100);
        "take_while" holds 0: |pipe| pipe.take_while(|_| true);
        "skip" holds 0: |pipe| pipe.skip(3);
        "skip_while" holds 0: |pipe| pipe.skip_while(|n| *n < 3);
        "dedupe" holds 0: |pipe| pipe.dedupe(Dedupe::keys(3).ttl(DAY), |n| *n);
        "distinct_until_changed" holds 0: |pipe| pipe.distinct_until_changed(|n| *n);
        "debounce" holds 0: |pipe| pipe.debounce(Debounce::both(DAY));
        "throttle" holds 0: |pipe| pipe.throttle(Throttle::both(DAY));
        "latest_by" holds 2: |pipe| pipe.latest_by(DAY, 3, |n| n % 3);
        "rate_limit" holds 0: |pipe| pipe.rate_limit(RateLimit::new(10, DAY));
        "idle_timeout" holds 0: |pipe| pipe.idle_timeout(DAY);
        "meter" holds 0: |pipe| pipe.meter(DAY, |_| ());
        "map_async" holds 4: |pipe| pipe.map_async(Concurrency::ordered(5), late);
        "map_async_by_key" holds 4: |pipe| pipe.map_async_by_key(5, |n| *n, late);
        "memoize" holds 4: |pipe| {
            pipe.memoize(5, Memo::new(9), |n| *n, async |n: &u64| Ok::<_, String>(late(*n).await)).map(|_| 0)
        };
        "try_map" holds 0: |pipe| pipe.try_map(|n| Ok::<_, String>(*n)).reject();
        "try_map_retry" holds 0: |pipe| pipe.try_map_retry(Retry::never(), |n| Ok::<_, String>(*n)).reject();
        "try_map_async" holds 4: |pipe| {
            pipe.try_map_async(5, Retry::never(), async |n: &u64| Ok::<_, String>(late(*n).await)).reject()
        };
        "try_map_async_by_key" holds 4: |pipe| {
            let call = async |n: &u64| Ok::<_, String>(late(*n).await);
            pipe.try_map_async_by_key(5, Retry::never(), |n| *n, call).reject()
        };
        "map_err" holds 0: |pipe| pipe.try_map(|n| Ok::<_, String>(*n)).map_err(|e| e).reject();
        "inspect_err" holds 0: |pipe| pipe.try_map(|n| Ok::<_, String>(*n)).inspect_err(|_| ()).reject();
        "and_then" holds 0: |pipe| pipe.try_map(|n| Ok::<_, String>(*n)).and_then(Ok).reject();
        "recover" holds 0: |pipe| pipe.try_map(|n| Ok::<_, String>(*n)).recover(Err).reject();
        "fallback" holds 0: |pipe| pipe.try_map(|n| Ok::<_, String>(*n)).fallback(|failed| failed.input);
        "skip_errors" holds 0: |pipe| pipe.try_map(|n| Ok::<_, String>(*n)).skip_errors();
        "reject" holds 0: |pipe| pipe.try_map(|n| Ok::<_, String>(*n)).reject();
        "fail_fast" holds 0: |pipe| pipe.try_map(|n| Ok::<_, String>(*n)).fail_fast();
        "dead_letter" holds 0: |pipe| pipe.try_map(|n| Ok::<_, String>(*n)).dead_letter(|_| ready(Ok(())));
        "buffer" holds 5: |pipe| pipe.buffer(5);
        "buffer_measured" holds 5: |pipe| pipe.buffer_measured(5.into());
        "buffer_with" holds 5: |pipe| pipe.buffer_with(5.into(), Overflow::DropOldest);
        "conflate" holds 3: |pipe| pipe.conflate(5, |n| n % 3);
        "boxed" holds 0: |pipe| pipe.boxed();
        "merge" holds 0: |pipe| pipe.merge(tracked(0..0u64).0);
        "merge_all" holds 0: |pipe| Pipe::merge_all([pipe]);
        "concat" holds 0: |pipe| pipe.concat(tracked(0..0u64).0);
        "concat_all" holds 0: |pipe| Pipe::concat_all([pipe]);
        "broadcast" holds 5: |pipe| pipe.broadcast(1, 5).remove(0);
        "broadcast_to" holds 5: |pipe| pipe.broadcast_to(&[Lane::capacity(5)]).remove(0);
        "partition" holds 5: |pipe| pipe.partition(1, 5, |n| *n).remove(0);
        "partition_by" holds 5: |pipe| pipe.partition_by(1, 5, |_| 0).remove(0);
        "round_robin" holds 5: |pipe| pipe.round_robin(1, 5).remove(0);
        "split" holds 5: |pipe| {
            let (all, none) = pipe.split(5, |_| true);
            drop(none);
            all
        };
        "switch" holds 5: |pipe| pipe.switch(|_| 0).route(0, 5);
        "per_key" holds 10: |pipe| pipe.per_key(1, 5, |n| *n, |lane| lane);
        "replay" holds 0: |pipe| pipe.replay(&Replay::new(3));
        "window_or_late" holds 9: |pipe| {
            let sums = pipe.window_or_late(Window::count(10), |_| 0, Sum(|n: &u64| *n));
            sums.filter_map(|sum| sum.ok()).map(|sum| sum.value)
        };
        "parallel" holds 2048: |pipe| pipe.parallel(Workers::ordered(2), |n| n);
        "parallel_measured" holds 80: |pipe| {
            pipe.parallel_measured(Workers::ordered(2).bytes(640, |_: &u64| 8), |n| n)
        };
        "buffer_spilling" holds 300: |pipe| pipe.buffer_spilling(5, 30, Heap::default());
        "inputs" holds 256: |pipe| {
            let (inputs, all) = Pipe::inputs();
            inputs.add(pipe).expect("the flow has not ended");
            all
        };
        "with_context" holds 0: |pipe| pipe.with_context();
        "without_context" holds 0: |pipe| pipe.with_context().without_context();
        "set_context" holds 0: |pipe| pipe.with_context().set_context(&NUMBER, |n| *n);
        "map_in_context" holds 0: |pipe| pipe.with_context().map_in_context(|n, _| n);
    }
});

#[test]
fn an_operator_takes_no_more_than_was_asked_for_but_what_it_is_said_to_hold() {
    for &Seen { name, said, held, .. } in &*OPERATORS {
        assert!(held <= said, "{name} holds {held}, more than {said}");
        assert!(held > 0 || said == 0, "{name} holds nothing, and is said to hold {said}");
    }
}

#[test]
fn what_an_operator_holds_is_given_back_when_the_run_is_dropped() {
    for &Seen { name, held, ref dropped, .. } in &*OPERATORS {
        let back = dropped.values().filter(|end| **end == End::Abandoned).count() as u64;
        assert_eq!(back, held + 1, "{name}: what it held and what the sink had in hand");
        assert!(dropped.values().all(|end| *end != End::Completed), "{name}");
    }
}

#[test]
fn nothing_is_left_in_an_operator_at_the_end_and_order_is_kept() {
    for &Seen { name, in_order, left, .. } in &*OPERATORS {
        assert_eq!(left, 0, "{name}");
        // It gives the newest of keys that come in turns.
        assert!(in_order || name == "conflate", "{name}");
    }
}

#[test]
fn an_operator_asks_on_when_all_that_came_was_dropped_before_it() {
    for &Seen { name, behind, .. } in &*OPERATORS {
        let (in_order, left) = behind.unwrap_or_else(|| panic!("{name} waits for ever"));
        assert_eq!(left, 0, "{name}");
        assert!(in_order || name == "conflate", "{name}");
    }
}

/// Of each cell of the table that is not the same for many, the test that shows it.
const SHOWN: &[(&str, &str, &str)] = &[
    ("order", "window", "windows_of_time_hold_what_the_model_says"),
    ("order", "window_or_late", "late_items_are_dropped_by_name_told_again_or_handed_on"),
    ("time", "window", "windows_by_arrival_are_cut_at_multiples_of_their_length_and_close_by_the_clock"),
    (
        "time",
        "window_or_late",
        "windows_by_arrival_are_cut_at_multiples_of_their_length_and_close_by_the_clock",
    ),
    ("time", "batch", "an_idle_partial_batch_is_complete_at_its_age"),
    ("time", "dedupe", "a_duplicate_is_one_within_the_keys_lifetime_which_it_does_not_extend"),
    ("time", "debounce", "debounce_passes_the_newest_once_it_is_quiet_and_what_is_held_at_the_end"),
    ("time", "throttle", "throttle_trailing_passes_the_newest_item_at_the_end_of_each_period"),
    ("order", "latest_by", "latest_by_passes_the_newest_of_each_key_at_the_end_of_its_interval"),
    ("time", "latest_by", "latest_by_passes_the_newest_of_each_key_at_the_end_of_its_interval"),
    ("time", "rate_limit", "a_rate_limit_spreads_items_evenly_and_saves_up_no_more_than_its_burst"),
    ("time", "idle_timeout", "a_silent_flow_fails_by_its_idle_timeout_and_a_slow_sink_is_no_silence"),
    ("time", "meter", "a_meter_tells_each_intervals_items_and_the_rest_at_the_end"),
    ("order", "map_async", "results_keep_their_places_though_later_calls_are_faster_and_some_fail"),
    ("time", "map_async", "a_call_that_never_returns_costs_its_item_alone_and_no_more_than_its_time"),
    ("time", "map_async_by_key", "waiting_for_the_turn_of_a_key_takes_no_time"),
    ("time", "memoize", "who_waits_for_what_is_looked_up_too_long_looks_up_in_a_time_of_his_own"),
    ("order", "map_async_by_key", "calls_of_one_key_are_one_after_the_other_and_those_of_others_at_once"),
    ("order", "memoize", "what_was_looked_up_comes_in_order_or_as_it_is_there_as_declared"),
    ("time", "try_map_retry", "retries_wait_twice_as_long_each_time_and_keep_the_order"),
    ("order", "try_map_async", "results_keep_their_places_though_later_calls_are_faster_and_some_fail"),
    ("time", "try_map_async", "an_attempt_that_takes_too_long_is_dropped_then_and_tried_again"),
    (
        "order",
        "try_map_async_by_key",
        "tried_calls_of_one_key_wait_for_each_other_and_for_each_others_retries",
    ),
    (
        "time",
        "try_map_async_by_key",
        "tried_calls_of_one_key_wait_for_each_other_and_for_each_others_retries",
    ),
    ("order", "parallel", "parallel_keeps_the_order_unless_told_otherwise_and_loses_nothing"),
    ("order", "parallel_measured", "workers_hold_as_many_bytes_as_they_may_and_one_item"),
    ("order", "conflate", "a_slow_reader_of_a_conflating_buffer_sees_the_newest_of_each_key_once"),
    ("order", "merge", "merging_gives_each_input_its_turn"),
    ("order", "merge_all", "fifty_inputs_keep_their_order_each"),
    ("order", "inputs", "inputs_come_and_go_and_the_flow_ends_with_the_last_of_them"),
    ("order", "concat", "concat_asks_the_second_flow_for_nothing_before_the_first_has_ended"),
    ("order", "concat_all", "concat_asks_the_second_flow_for_nothing_before_the_first_has_ended"),
    ("order", "broadcast", "every_subscriber_sees_the_same_sequence_the_slow_one_too"),
    ("order", "broadcast_to", "lanes_that_shed_and_lanes_that_wait_each_get_what_is_theirs"),
    ("order", "partition", "a_key_always_has_the_same_lane_and_keys_are_spread_over_all_lanes"),
    (
        "order",
        "partition_by",
        "a_custom_partition_sends_where_it_says_and_a_lane_that_is_not_there_is_a_panic",
    ),
    ("order", "round_robin", "round_robin_deals_out_equally_and_in_order"),
    ("order", "split", "a_split_keeps_the_order_on_either_side"),
    ("order", "switch", "routes_come_and_go_while_the_flow_runs"),
    ("order", "per_key", "lanes_keep_the_order_of_each_key"),
    ("time", "replay", "items_are_forgotten_at_their_age"),
];

#[test]
fn every_cell_of_the_table_has_its_test() {
    let sources = [
        include_str!("batches.rs"),
        include_str!("breaker.rs"),
        include_str!("channels.rs"),
        include_str!("contexts.rs"),
        include_str!("failing.rs"),
        include_str!("idle.rs"),
        include_str!("kit.rs"),
        include_str!("lanes.rs"),
        include_str!("memo.rs"),
        include_str!("operators.rs"),
        include_str!("panics.rs"),
        include_str!("properties.rs"),
        include_str!("replay.rs"),
        include_str!("runs.rs"),
        include_str!("selecting.rs"),
        include_str!("streamz.rs"),
        include_str!("threads.rs"),
        include_str!("time_limits.rs"),
        include_str!("timing.rs"),
        include_str!("windows.rs"),
        include_str!("windows_model.rs"),
        include_str!("workers.rs"),
    ];
    for (.., test) in SHOWN {
        assert!(
            sources.iter().any(|source| source.contains(&format!("fn {test}("))),
            "no test is called {test}"
        );
    }
    let measured: BTreeSet<&str> = OPERATORS.iter().map(|seen| seen.name).collect();
    let mut missing = Vec::new();
    let mut told = BTreeSet::new();
    for row in include_str!("../../docs/operators.md").lines().filter(|line| line.starts_with("| [")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let names: Vec<&str> =
            cells[1].split("[`").skip(1).map(|rest| &rest[..rest.find('`').unwrap()]).collect();
        for name in &names {
            told.insert(*name);
            if !measured.contains(name) {
                missing.push(format!("{name} is not measured"));
            }
        }
        for (column, cell) in [("order", cells[2]), ("time", cells[4])] {
            let shown = |name: &&str| SHOWN.iter().any(|(of, operator, _)| *of == column && operator == name);
            if !["kept", "–"].contains(&cell) {
                let bare = names.iter().filter(|name| !shown(name));
                missing.extend(bare.map(|name| format!("{column} of {name}: {cell}")));
            }
        }
    }
    missing.extend(measured.difference(&told).map(|name| format!("{name} is not in the table")));
    assert!(missing.is_empty(), "{missing:#?}");
}

/// An answer that is not there at once.
async fn late(n: u64) -> u64 {
    yields(1).await;
    n
}

/// A spill in memory.
#[derive(Default)]
struct Heap(VecDeque<u64>);

impl Spill<u64> for Heap {
    async fn push(&mut self, items: Vec<u64>) -> Result<(), BoxError> {
        self.0.extend(items);
        Ok(())
    }

    async fn pop(&mut self, max: usize) -> Result<Vec<u64>, BoxError> {
        let count = max.min(self.0.len());
        Ok(self.0.drain(..count).collect())
    }
}

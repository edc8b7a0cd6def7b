//! Windows: which items are in which, when they are complete, and what becomes of late ones.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use millstream_flow::test::Script;
use millstream_flow::{
    Closed, Count, EventTime, Fold, Items, Max, Mean, Min, PanicPolicy, Pipe, Sum, Window, Windowed,
};
use tokio::task::yield_now;
use tokio::time::sleep;

use crate::support::{End, tracked, tracked_stream};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

fn at(second: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(second)
}

fn second(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_secs() as i64,
        Err(before) => -(before.duration().as_secs() as i64),
    }
}

/// A window as the tests compare it: why it closed, its key, its seconds, what it holds.
pub(crate) type Seen<V> = (Closed, u64, i64, i64, V);

pub(crate) fn seen<V>(window: Windowed<u64, V>) -> Seen<V> {
    let Windowed { closed, key, start, end, value, .. } = window;
    (closed, key, second(start), second(end), value)
}

// By arrival.

/// Sends each number at its second of a flow that starts at `start` by the wall clock.
fn arrivals(
    start: u64,
    items: &'static [(u64, u64)],
) -> Pipe<impl millstream_flow::Flow<Item = u64, Token = ()> + Send + 'static> {
    let (mut sender, pipe) = Pipe::channel(8);
    tokio::spawn(async move {
        let mut now = 0;
        for (second, item) in items {
            sleep((*second - now) as u32 * SECOND).await;
            now = *second;
            sender.send(*item).await.unwrap();
        }
        sleep(1000 * SECOND).await;
    });
    pipe.starting_at(at(start))
}

#[tokio::test(start_paused = true)]
async fn windows_by_arrival_are_cut_at_multiples_of_their_length_and_close_by_the_clock() {
    let began = tokio::time::Instant::now();
    let (windows, _) = arrivals(57, &[(0, 1), (1, 2), (4, 3), (30, 4)])
        .window(Window::tumbling(10 * SECOND), |_| 0, Items)
        .map(move |window| (began.elapsed().as_secs(), seen(window)))
        .take(3)
        .collect()
        .await
        .unwrap();
    assert_eq!(
        windows,
        [
            (3, (Closed::Time, 0, 50, 60, vec![1, 2])),
            (13, (Closed::Time, 0, 60, 70, vec![3])),
            (33, (Closed::Time, 0, 80, 90, vec![4])),
        ],
        "and there is none for the ten seconds in which nothing came"
    );
}

#[tokio::test(start_paused = true)]
async fn an_offset_moves_the_cuts() {
    let (windows, _) = arrivals(57, &[(0, 1), (4, 2), (6, 3)])
        .window(Window::tumbling(10 * SECOND).offset(63 * SECOND), |_| 0, Items)
        .map(seen)
        .take(2)
        .collect()
        .await
        .unwrap();
    assert_eq!(windows, [(Closed::Time, 0, 53, 63, vec![1, 2]), (Closed::Time, 0, 63, 73, vec![3])]);
}

#[tokio::test(start_paused = true)]
async fn sliding_windows_hold_each_item_as_often_as_they_cover_it() {
    let (windows, _) = arrivals(100, &[(0, 1), (3, 2), (12, 4)])
        .window(Window::sliding(10 * SECOND, 5 * SECOND), |_| 0, Sum(|n: &u64| *n))
        .map(|window| (second(window.start), window.items, window.value))
        .take(4)
        .collect()
        .await
        .unwrap();
    assert_eq!(windows, [(95, 2, 3), (100, 2, 3), (105, 1, 4), (110, 1, 4)]);
}

#[tokio::test(start_paused = true)]
async fn items_between_two_windows_are_in_none_and_are_counted() {
    let (windows, report) = arrivals(100, &[(0, 1), (4, 2), (7, 3), (11, 4)])
        .window(Window::sliding(3 * SECOND, 10 * SECOND), |_| 0, Items)
        .named("beginnings")
        .map(seen)
        .take(2)
        .collect()
        .await
        .unwrap();
    assert_eq!(windows, [(Closed::Time, 0, 100, 103, vec![1]), (Closed::Time, 0, 110, 113, vec![4])]);
    assert_eq!(report.ledger.dropped["beginnings"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_session_lasts_until_nothing_has_come_for_its_gap() {
    let began = tokio::time::Instant::now();
    let items = &[(0, 1), (4, 1), (6, 2), (8, 1), (14, 1), (25, 1)];
    let (sessions, _) = arrivals(100, items)
        .window(Window::session(5 * SECOND), |n| *n, Count)
        .map(move |window| (began.elapsed().as_secs(), seen(window)))
        .take(4)
        .collect()
        .await
        .unwrap();
    assert_eq!(
        sessions,
        [
            (11, (Closed::Time, 2, 106, 111, 1)),
            (13, (Closed::Time, 1, 100, 113, 3)),
            (19, (Closed::Time, 1, 114, 119, 1)),
            (30, (Closed::Time, 1, 125, 130, 1)),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_that_never_pauses_ends_by_its_age_or_its_number_of_items() {
    let items = &[(0, 1), (3, 1), (6, 1), (9, 1), (12, 1), (15, 1)];
    let (sessions, _) = arrivals(100, items)
        .window(Window::session(5 * SECOND).max_age(8 * SECOND), |n| *n, Count)
        .map(seen)
        .take(2)
        .collect()
        .await
        .unwrap();
    assert_eq!(sessions, [(Closed::Time, 1, 100, 108, 3), (Closed::Time, 1, 109, 117, 3)]);
    let (sessions, _) = arrivals(100, items)
        .window(Window::session(5 * SECOND).max_items(4), |n| *n, Count)
        .map(seen)
        .take(2)
        .collect()
        .await
        .unwrap();
    assert_eq!(sessions, [(Closed::Count, 1, 100, 109, 4), (Closed::Time, 1, 112, 120, 2)]);
    for window in
        [Window::session(5 * SECOND).max_items(1), Window::count(1), Window::count(1).max_age(SECOND)]
    {
        let (sessions, _) =
            Pipe::from_iter([7u64, 7]).window(window, |n| *n, Count).map(seen).collect().await.unwrap();
        assert!(sessions.iter().all(|session| session.0 == Closed::Count && session.4 == 1), "{sessions:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_of_a_count_ends_by_its_age_if_its_items_do_not_come() {
    let items = &[(0, 1), (1, 1), (2, 1), (3, 1), (50, 1)];
    let (windows, _) = arrivals(100, items)
        .window(Window::count(3).max_age(10 * SECOND), |n| *n, Count)
        .map(seen)
        .take(3)
        .collect()
        .await
        .unwrap();
    assert_eq!(
        windows,
        [(Closed::Count, 1, 100, 102, 3), (Closed::Time, 1, 103, 113, 1), (Closed::Time, 1, 150, 160, 1)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_moving_average_is_of_the_last_items_and_of_fewer_at_first() {
    let (averages, _) = Pipe::from_iter([1, 2, 3, 4, 5, 6, 7])
        .window(Window::sliding_count(4, 2), |_| (), Mean(|n: &i32| f64::from(*n)))
        .map(|window| (window.items, window.value, window.closed))
        .collect()
        .await
        .unwrap();
    assert_eq!(
        averages,
        [(2, 1.5, Closed::Count), (4, 2.5, Closed::Count), (4, 4.5, Closed::Count), (3, 6.0, Closed::End),],
        "the seventh is in a window too"
    );
}

#[tokio::test(start_paused = true)]
async fn an_end_hands_on_what_is_open_and_a_cancelled_run_gives_it_back() {
    let (pipe, ear, _) = tracked(0..4u64);
    let (windows, report) = pipe
        .window(Window::tumbling(3600 * SECOND), |n| n % 2, Items)
        .map(|window| (window.closed, window.value))
        .collect()
        .await
        .unwrap();
    assert_eq!(windows, [(Closed::End, vec![0, 2]), (Closed::End, vec![1, 3])]);
    assert_eq!((report.ledger.completed, ear.list()), (4, vec![End::Completed; 4]));

    use futures_util::StreamExt;
    let (pipe, ear, account) =
        tracked_stream(futures_util::stream::iter(0..4u64).chain(futures_util::stream::pending()));
    let run = pipe.window(Window::session(3600 * SECOND), |_| (), Count).for_each(drop).start();
    while account.received() < 4 {
        yield_now().await;
    }
    drop(run);
    ear.all_ended().await;
    assert_eq!(ear.list(), vec![End::Abandoned; 4]);
}

#[tokio::test(start_paused = true)]
async fn an_item_of_several_windows_is_done_when_all_of_them_are() {
    let (sender, items) = tokio::sync::mpsc::channel(4);
    let (pipe, ear, _) = tracked_stream(tokio_stream::wrappers::ReceiverStream::new(items));
    let window = Window::sliding(10 * SECOND, 5 * SECOND);
    let run = pipe.starting_at(at(101)).window(window, |_: &u32| (), Count).for_each(drop).start();
    sender.send(1).await.unwrap();
    sleep(5 * SECOND).await;
    assert!(ear.ends().is_empty(), "the window up to 105 is done, the one up to 110 is not");
    sleep(5 * SECOND).await;
    ear.all_ended().await;
    assert_eq!(ear.list(), [End::Completed]);
    drop(run);
}

// By the time that items carry.

/// Second, key, number.
pub(crate) type Event = (u64, u64, u64);

pub(crate) type ByEvent = EventTime<fn(&Event) -> SystemTime>;

pub(crate) fn event_time() -> ByEvent {
    EventTime::new(|(second, ..): &Event| at(*second))
}

#[tokio::test(start_paused = true)]
async fn a_silent_flow_completes_its_windows_when_it_is_idle_for_long_enough() {
    let (mut sender, pipe) = Pipe::channel(8);
    let window = Window::tumbling(10 * SECOND).event_time(event_time().delay(60 * SECOND).idle(30 * SECOND));
    let (tell, mut told) = tokio::sync::mpsc::channel(8);
    let run = pipe
        .window(window, |event: &Event| event.1, Count)
        .for_each(move |window| tell.try_send(seen(window)).unwrap())
        .start();
    sender.send((5, 0, 0)).await.unwrap();
    sender.send((12, 0, 0)).await.unwrap();
    sleep(29 * SECOND).await;
    assert!(told.try_recv().is_err());
    sleep(2 * SECOND).await;
    assert_eq!(told.try_recv().unwrap(), (Closed::Time, 0, 0, 10, 1));
    assert_eq!(told.try_recv().unwrap(), (Closed::Time, 0, 10, 20, 1));
    // Time goes on from there.
    sender.send((21, 0, 0)).await.unwrap();
    drop(sender);
    run.join().await.unwrap();
    assert_eq!(told.recv().await, Some((Closed::End, 0, 20, 30, 1)));
}

#[tokio::test(start_paused = true)]
async fn late_items_are_dropped_by_name_told_again_or_handed_on() {
    let events: [Event; 5] = [(5, 0, 1), (25, 0, 2), (7, 0, 3), (14, 0, 4), (36, 0, 5)];
    let window = Window::tumbling(10 * SECOND);
    let (windows, report) = Pipe::from_iter(events)
        .window(window.event_time(event_time()), |_| 0, Sum(|event: &Event| event.2))
        .named("by second")
        .map(|window| (second(window.start), window.value, window.closed))
        .collect()
        .await
        .unwrap();
    assert_eq!(windows, [(0, 1, Closed::Time), (20, 2, Closed::Time), (30, 5, Closed::End)]);
    assert_eq!(report.ledger.dropped["by second"], 2);

    // The window of 14 was complete at 20, five seconds before the newest; that of 7 fifteen.
    let patient = window.event_time(event_time().lateness(6 * SECOND));
    let (windows, _) = Pipe::from_iter(events)
        .window_or_late(patient, |_| 0, Sum(|event: &Event| event.2))
        .map(|window| window.map(|window| (second(window.start), window.value, window.closed)))
        .collect()
        .await
        .unwrap();
    assert_eq!(
        windows,
        [
            Ok((0, 1, Closed::Time)),
            Err((7, 0, 3)),
            Ok((10, 4, Closed::Late)),
            Ok((20, 2, Closed::Time)),
            Ok((30, 5, Closed::End)),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn as_many_keys_are_open_as_may_be_and_nothing_is_lost_by_that() {
    let mut dice = Rng::with_seed(3);
    let numbers: Vec<u64> = (0..5000).map(|_| dice.u64(..400)).collect();
    let windows = [
        Window::tumbling(3600 * SECOND),
        Window::sliding(3600 * SECOND, 3600 * SECOND),
        Window::session(3600 * SECOND),
        Window::count(7),
        Window::sliding_count(5, 5),
    ];
    for window in windows {
        let (pipe, ear, _) = tracked(numbers.clone());
        let pipe = pipe.window(window.max_keys(16), |n| *n, Count);
        let (windows, _) = pipe.collect().await.unwrap();
        let mut counts = BTreeMap::<u64, u64>::new();
        windows.iter().for_each(|window| *counts.entry(window.key).or_default() += window.value);
        let mut expected = BTreeMap::<u64, u64>::new();
        numbers.iter().for_each(|n| *expected.entry(*n).or_default() += 1);
        assert_eq!(counts, expected, "{window:?}");
        assert!(windows.iter().any(|window| window.closed == Closed::Evicted));
        assert_eq!(ear.list(), vec![End::Completed; 5000]);
    }
}

#[test]
fn what_windows_may_hold_is_in_the_runs_bound() {
    let bound = |window: Window<ByEvent>| {
        let pipe = Pipe::from_iter(Vec::<Event>::new()).window(window, |event| event.1, Count);
        pipe.monitor().report().memory_bound_bytes
    };
    let late = || event_time().delay(600 * SECOND);
    for kind in [Window::tumbling(SECOND), Window::sliding(9 * SECOND, SECOND), Window::session(SECOND)] {
        let kind = kind.max_keys(10);
        let one = bound(kind.event_time(event_time()));
        assert!(bound(kind.max_keys(1000).event_time(event_time())) >= 90 * one, "by keys");
        assert!(bound(kind.event_time(late())) >= one + 10 * 600 * 16, "by what is ahead of the watermark");
    }
}

#[tokio::test]
async fn aggregates_give_what_they_are_named_for() {
    let window = Window::count(4);
    let all = (Count, Sum(|n: &i64| *n), (Min(|n: &i64| *n), Max(|n: &i64| *n)));
    let longest = Fold {
        start: String::new,
        add: |longest: &mut String, n: i64| {
            let text = n.to_string();
            if text.len() > longest.len() {
                *longest = text;
            }
        },
        merge: |longest: &mut String, later: &String| {
            if later.len() > longest.len() {
                longest.clone_from(later);
            }
        },
    };
    let numbers = || Pipe::from_iter([3i64, -10, 7, 2, 100]);
    let (values, _) =
        numbers().window(window, |_| (), (all, longest)).map(|window| window.value).collect().await.unwrap();
    assert_eq!(
        values,
        [
            ((4, 2, (Some(-10), Some(7))), "-10".to_owned()),
            ((1, 100, (Some(100), Some(100))), "100".to_owned())
        ]
    );
    // The same over windows that overlap, whose pieces are put together.
    let all = (Count, Sum(|n: &i64| *n), (Min(|n: &i64| *n), Max(|n: &i64| *n)));
    let (values, _) = numbers()
        .window(Window::sliding_count(3, 1), |_| (), (all, Items))
        .map(|window| window.value)
        .collect()
        .await
        .unwrap();
    assert_eq!(values[3], ((3, -1, (Some(-10), Some(7))), vec![-10, 7, 2]));
    assert_eq!(values[4], ((3, 109, (Some(2), Some(100))), vec![7, 2, 100]));
}

#[tokio::test]
async fn an_aggregate_that_panics_costs_the_item_in_hand_and_no_other() {
    let (pipe, ear, _) = tracked(0..10u64);
    let picky = Fold {
        start: || 0,
        add: |sum: &mut u64, n: u64| {
            assert_ne!(n, 4, "a test panics");
            *sum += n;
        },
        merge: |sum: &mut u64, later: &u64| *sum += later,
    };
    let (sums, report) = pipe
        .on_panic(PanicPolicy::Dead)
        .window(Window::count(3), |_| (), picky)
        .map(|window| window.value)
        .collect()
        .await
        .unwrap();
    assert_eq!(sums, [3, 3 + 5 + 6, 7 + 8 + 9]);
    assert_eq!((report.ledger.dead, report.ledger.completed), (1, 9));
    assert_eq!(ear.list().iter().filter(|end| matches!(end, End::Dead(_))).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_window_whose_only_item_made_its_aggregate_panic_is_not_handed_on() {
    let kinds = [Window::tumbling(SECOND), Window::sliding(4 * SECOND, SECOND), Window::session(SECOND)];
    let picky = Fold {
        start: || 0,
        add: |sum: &mut u64, event: Event| {
            assert_ne!(event.2, 4, "a test panics");
            *sum += event.2;
        },
        merge: |sum: &mut u64, later: &u64| *sum += later,
    };
    for kind in kinds {
        let events: [Event; 3] = [(10, 0, 4), (10, 1, 5), (20, 0, 6)];
        let (windows, report) = Pipe::from_iter(events)
            .on_panic(PanicPolicy::Dead)
            .window(kind.event_time(event_time()), |event| event.1, picky)
            .collect()
            .await
            .unwrap();
        assert!(windows.iter().all(|window| window.items == 1 && window.value > 4), "{windows:?}");
        assert!(report.ledger.balances() && report.ledger.dead == 1, "{:?}", report.ledger);
    }
}

#[tokio::test(start_paused = true)]
async fn times_that_cannot_be_are_no_reason_to_panic() {
    let far = Duration::from_secs(1 << 50);
    let times = [UNIX_EPOCH - far, UNIX_EPOCH, UNIX_EPOCH + far];
    let longest = Duration::MAX;
    let windows = [
        Window::tumbling(SECOND),
        Window::sliding(longest, longest),
        Window::session(longest).max_age(longest),
        Window::tumbling(longest).offset(longest),
    ];
    for window in windows {
        let time = EventTime::new(|at: &SystemTime| *at).delay(longest).lateness(longest).idle(longest);
        let pipe = Script::new().items(times).wait(SECOND).pipe();
        let (windows, _) = pipe.window(window.event_time(time), |_| (), Count).collect().await.unwrap();
        assert_eq!(windows.iter().map(|window| window.value).sum::<u64>(), 3, "{windows:?}");
    }
}

#[test]
fn windows_of_nothing_and_limits_that_have_no_effect_are_refused() {
    let refused = |build: fn()| std::panic::catch_unwind(build).is_err();
    assert!(refused(|| _ = Window::tumbling(Duration::ZERO)));
    assert!(refused(|| _ = Window::sliding(SECOND, Duration::ZERO)));
    assert!(refused(|| _ = Window::sliding(3600 * SECOND, Duration::from_nanos(7))));
    assert!(refused(|| _ = Window::session(Duration::ZERO)));
    assert!(refused(|| _ = Window::count(0)));
    assert!(refused(|| _ = Window::sliding_count(3, 4)));
    assert!(refused(|| _ = Window::count(1).max_keys(0)));
    assert!(refused(|| _ = Window::count(1).offset(SECOND)));
    assert!(refused(|| _ = Window::tumbling(SECOND).max_age(SECOND)));
    assert!(refused(|| _ = Window::sliding_count(3, 1).max_items(3)));
}

// Against a model.

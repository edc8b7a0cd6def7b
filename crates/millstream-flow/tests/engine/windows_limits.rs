//! Windows by event time at their limits: keys that give way, ages, numbers of items, and the order of their ends.

use millstream_flow::{Closed, Items, Pipe, Window};

use crate::windows::{ByEvent, Event, SECOND, Seen, event_time, seen};

/// The windows of these events, as `(closed, key, start, end, seconds)`.
async fn windows(window: Window<ByEvent>, events: &[Event]) -> Vec<Seen<Vec<u64>>> {
    let (windows, report) = Pipe::from_iter(events.to_vec())
        .window(window, |event| event.1, Items)
        .map(|window| {
            let (closed, key, start, end, events) = seen(window);
            (closed, key, start, end, events.into_iter().map(|event| event.0).collect())
        })
        .collect()
        .await
        .unwrap();
    assert!(report.ledger.balances() && report.ledger.in_flight == 0);
    windows
}

#[tokio::test(start_paused = true)]
async fn a_key_that_gives_way_has_its_complete_windows_as_they_are() {
    let tumbling = Window::tumbling(60 * SECOND).event_time(event_time()).max_keys(1);
    assert_eq!(
        windows(tumbling, &[(10, 0, 0), (70, 1, 0)]).await,
        [(Closed::Time, 0, 0, 60, vec![10]), (Closed::End, 1, 60, 120, vec![70])]
    );
    let sliding = Window::sliding(20 * SECOND, 10 * SECOND).event_time(event_time()).max_keys(1);
    assert_eq!(
        windows(sliding, &[(5, 0, 0), (15, 0, 0), (26, 1, 0)]).await,
        [
            (Closed::Time, 0, -10, 10, vec![5]),
            (Closed::Time, 0, 0, 20, vec![5, 15]),
            (Closed::Evicted, 0, 10, 30, vec![15]),
            (Closed::End, 1, 10, 30, vec![26]),
            (Closed::End, 1, 20, 40, vec![26]),
        ]
    );
    let session = Window::session(10 * SECOND).event_time(event_time()).max_keys(1);
    assert_eq!(
        windows(session, &[(5, 0, 0), (7, 0, 0), (30, 1, 0), (31, 2, 0)]).await,
        [
            (Closed::Time, 0, 5, 17, vec![5, 7]),
            (Closed::Evicted, 1, 30, 30, vec![30]),
            (Closed::End, 2, 31, 41, vec![31]),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn the_number_of_keys_holds_though_each_item_completes_a_window() {
    // Every key has windows ahead when the next one comes.
    let events: Vec<Event> = (0..200).map(|n| (10 * n, n, 0)).collect();
    let sliding = Window::sliding(1000 * SECOND, 10 * SECOND).event_time(event_time()).max_keys(3);
    let mut open = std::collections::BTreeSet::new();
    let windows = windows(sliding, &events).await;
    for (closed, key, ..) in &windows {
        match closed {
            Closed::Evicted => _ = open.remove(key),
            _ => _ = open.insert(*key),
        }
        assert!(open.len() <= 4, "{open:?}");
    }
    assert_eq!(
        windows.iter().filter(|window| window.0 == Closed::End).map(|window| window.1).min(),
        Some(197)
    );
    let complete: Vec<_> =
        windows.iter().filter(|window| window.0 == Closed::Time).map(|window| window.3).collect();
    assert!(complete.is_sorted());
}

#[tokio::test(start_paused = true)]
async fn sessions_come_in_the_order_of_their_ends() {
    let session = Window::session(10 * SECOND).event_time(event_time());
    assert_eq!(
        windows(session, &[(0, 0, 0), (3, 1, 0), (8, 0, 0), (100, 2, 0), (101, 3, 0), (105, 2, 0)]).await,
        [
            (Closed::Time, 1, 3, 13, vec![3]),
            (Closed::Time, 0, 0, 18, vec![0, 8]),
            (Closed::End, 3, 101, 111, vec![101]),
            (Closed::End, 2, 100, 115, vec![100, 105]),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn an_earlier_item_makes_a_session_end_earlier_by_its_age() {
    let session =
        Window::session(100 * SECOND).max_age(15 * SECOND).event_time(event_time().delay(20 * SECOND));
    assert_eq!(
        windows(session, &[(10, 0, 0), (0, 0, 0), (36, 1, 0), (40, 1, 0)]).await,
        [(Closed::Time, 0, 0, 15, vec![10, 0]), (Closed::End, 1, 36, 51, vec![36, 40])]
    );
    let (ends, _) = Pipe::from_iter([(10, 0, 0), (0, 0, 0), (36, 1, 0), (40, 1, 0)])
        .window_or_late(session, |event: &Event| event.1, millstream_flow::Count)
        .map(|window| window.is_ok())
        .collect()
        .await
        .unwrap();
    assert_eq!(ends, [true, true]);
}

#[tokio::test(start_paused = true)]
async fn sessions_are_joined_only_within_their_limits() {
    let by_time = event_time().delay(30 * SECOND);
    let aged = Window::session(10 * SECOND).max_age(15 * SECOND).event_time(by_time);
    assert_eq!(
        windows(aged, &[(0, 0, 0), (9, 0, 0), (20, 0, 0), (14, 0, 0)]).await,
        [(Closed::End, 0, 0, 15, vec![0, 9, 14]), (Closed::End, 0, 20, 30, vec![20])]
    );
    let counted = Window::session(10 * SECOND).max_items(4).event_time(by_time);
    assert_eq!(
        windows(counted, &[(0, 0, 0), (5, 0, 0), (20, 0, 0), (25, 0, 0), (13, 0, 0)]).await,
        [(Closed::End, 0, 0, 23, vec![0, 5, 13]), (Closed::End, 0, 20, 35, vec![20, 25])]
    );
}

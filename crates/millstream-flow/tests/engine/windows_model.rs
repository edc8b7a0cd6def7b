//! Random windows and sessions against a sorted vector.

use std::collections::BTreeMap;

use millstream_flow::{Closed, Count, Items, Pipe, Window, Windowed};
use proptest::prelude::*;

use crate::support::{End, fitful, tracked};
use crate::windows::{Event, SECOND, Seen, event_time, seen};

/// What a sorted vector makes of the events, one after the other.
struct Model {
    watermark: i64,
    newest: i64,
    delay: i64,
    lateness: i64,
    results: Vec<Seen<Vec<u64>>>,
    late: Vec<Event>,
    dropped: u64,
}

impl Model {
    fn new(delay: u64, lateness: u64) -> Self {
        let (delay, lateness) = (delay as i64, lateness as i64);
        Model {
            watermark: i64::MIN / 2,
            newest: i64::MIN / 2,
            delay,
            lateness,
            results: vec![],
            late: vec![],
            dropped: 0,
        }
    }

    fn sees(&mut self, time: i64) {
        self.newest = self.newest.max(time);
        self.watermark = self.watermark.max(self.newest - self.delay);
    }

    fn timed(mut self, events: &[Event], size: i64, slide: i64) -> Self {
        let mut open = BTreeMap::<(i64, u64), Vec<u64>>::new();
        for event in events {
            let (time, key, number) = (event.0 as i64, event.1, event.2);
            self.sees(time);
            let first = (time - size).div_euclid(slide) * slide + slide;
            let starts: Vec<_> =
                (0..).map(|n| first + n * slide).take_while(|start| *start <= time).collect();
            if starts.is_empty() {
                self.dropped += 1;
                continue;
            }
            let mut taken = false;
            for start in starts {
                let end = start + size;
                if end > self.watermark {
                    open.entry((end, key)).or_default().push(number);
                    taken = true;
                } else if end > self.watermark - self.lateness {
                    self.results.push((Closed::Late, key, start, end, vec![number]));
                    taken = true;
                }
            }
            if !taken {
                self.late.push(*event);
            }
        }
        for ((end, key), mut numbers) in open {
            numbers.sort_unstable();
            let closed = if end <= self.watermark { Closed::Time } else { Closed::End };
            self.results.push((closed, key, end - size, end, numbers));
        }
        self
    }

    fn sessions(mut self, events: &[Event], gap: i64) -> Self {
        // Key, first, last, numbers, late.
        let mut open: Vec<(u64, i64, i64, Vec<u64>, bool)> = Vec::new();
        for event in events {
            let (time, key, number) = (event.0 as i64, event.1, event.2);
            self.sees(time);
            let fits = |session: &(u64, i64, i64, Vec<u64>, bool)| {
                session.0 == key && time < session.2 + gap && session.1 < time + gap
            };
            let (mut joined, others): (Vec<_>, Vec<_>) = open.into_iter().partition(|session| fits(session));
            open = others;
            let late = time + gap <= self.watermark;
            if joined.is_empty() {
                if time + gap <= self.watermark - self.lateness {
                    self.late.push(*event);
                    continue;
                }
                joined.push((key, time, time, vec![], late));
            }
            open.push((
                key,
                joined.iter().map(|session| session.1).min().unwrap().min(time),
                joined.iter().map(|session| session.2).max().unwrap().max(time),
                joined.iter().flat_map(|session| session.3.clone()).chain([number]).collect(),
                joined.iter().all(|session| session.4),
            ));
            let (over, left): (Vec<_>, Vec<_>) =
                open.into_iter().partition(|session| session.2 + gap <= self.watermark);
            open = left;
            over.into_iter().for_each(|session| self.close(session, gap, false));
        }
        open.into_iter().for_each(|session| self.close(session, gap, true));
        self
    }

    fn close(&mut self, session: (u64, i64, i64, Vec<u64>, bool), gap: i64, end: bool) {
        let (key, first, last, mut numbers, late) = session;
        numbers.sort_unstable();
        let closed = match (end, late) {
            (true, _) => Closed::End,
            (_, true) => Closed::Late,
            _ => Closed::Time,
        };
        self.results.push((closed, key, first, last + gap, numbers));
    }

    fn check(mut self, windows: Vec<Result<Windowed<u64, Vec<Event>>, Event>>, tumbling: bool) {
        let mut late: Vec<_> = windows.iter().filter_map(|window| window.as_ref().err().copied()).collect();
        let windows: Vec<_> = windows.into_iter().flatten().collect();
        let ends: Vec<_> =
            windows.iter().filter(|window| window.closed == Closed::Time).map(|window| window.end).collect();
        assert!(!tumbling || ends.is_sorted(), "in the order of their ends");
        let mut results: Vec<_> = windows
            .into_iter()
            .map(|window| {
                assert_eq!(window.items, window.value.len() as u64);
                let (closed, key, start, end, events) = seen(window);
                let mut numbers: Vec<_> = events.iter().map(|event| event.2).collect();
                numbers.sort_unstable();
                (closed, key, start, end, numbers)
            })
            .collect();
        let order = |(closed, key, start, _, numbers): &Seen<Vec<u64>>| {
            (*start, *key, format!("{closed:?}"), numbers.clone())
        };
        results.sort_by_key(order);
        self.results.sort_by_key(order);
        assert_eq!(results, self.results);
        late.sort_unstable();
        self.late.sort_unstable();
        assert_eq!(late, self.late);
    }
}

/// Events that wander about in time.
fn events() -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(((0..60u64), (0..3u64)), 0..120).prop_map(|events| {
        let place = |(at, (back, key)): (usize, (u64, u64))| {
            ((2 * at as u64 + 60).saturating_sub(back), key, at as u64)
        };
        events.into_iter().enumerate().map(place).collect()
    })
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if std::env::var_os("MILLSTREAM_SOAK").is_some() { 100_000 } else { 300 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn windows_of_time_hold_what_the_model_says(
        events in events(), size in 1..40u64, slide in 1..40u64, delay in 0..50u64, lateness in 0..50u64, seed in any::<u64>(),
    ) {
        let window = Window::sliding(size as u32 * SECOND, slide as u32 * SECOND)
            .event_time(event_time().delay(delay as u32 * SECOND).lateness(lateness as u32 * SECOND));
        let source = fitful(events.clone().into_iter(), seed);
        let (windows, report) = paused().block_on(async {
            Pipe::from_stream(source).window_or_late(window, |event| event.1, Items).collect().await.unwrap()
        });
        let model = Model::new(delay, lateness).timed(&events, size as i64, slide as i64);
        prop_assert_eq!(report.ledger.dropped_total(), model.dropped);
        prop_assert!(report.ledger.balances() && report.ledger.in_flight == 0);
        model.check(windows, true);
    }

    #[test]
    fn sessions_hold_what_the_model_says(
        events in events(), gap in 1..20u64, delay in 0..50u64, lateness in 0..50u64, seed in any::<u64>(),
    ) {
        let window = Window::session(gap as u32 * SECOND)
            .event_time(event_time().delay(delay as u32 * SECOND).lateness(lateness as u32 * SECOND));
        let source = fitful(events.clone().into_iter(), seed);
        let (windows, report) = paused().block_on(async {
            Pipe::from_stream(source).window_or_late(window, |event| event.1, Items).collect().await.unwrap()
        });
        prop_assert!(report.ledger.balances() && report.ledger.in_flight == 0);
        Model::new(delay, lateness).sessions(&events, gap as i64).check(windows, false);
    }

    #[test]
    fn every_token_of_a_window_is_settled_once(
        events in events(), size in 1..40u64, slide in 1..40u64, delay in 0..50u64, lateness in 0..50u64,
    ) {
        let late = event_time().delay(delay as u32 * SECOND).lateness(lateness as u32 * SECOND);
        let timed = Window::sliding(size as u32 * SECOND, slide as u32 * SECOND).event_time(late);
        let session = Window::session(slide as u32 * SECOND).event_time(late);
        let moving = Window::sliding_count(slide * 3, slide).event_time(late);
        for window in [timed, session, moving] {
            let (pipe, ear, account) = tracked(events.clone());
            paused().block_on(async {
                pipe.window(window, |event| event.1, Count).for_each(drop).await.unwrap();
            });
            let completed = ear.list().iter().filter(|end| **end == End::Completed).count() as u64;
            prop_assert_eq!(completed + account.dropped().values().sum::<u64>(), events.len() as u64);
        }
    }
}

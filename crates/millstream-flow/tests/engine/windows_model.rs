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

/// An open session.
struct Session {
    key: u64,
    first: i64,
    last: i64,
    numbers: Vec<u64>,
    late: bool,
}

impl Session {
    fn and(mut self, other: Session) -> Session {
        self.numbers.extend(other.numbers);
        let (first, last) = (self.first.min(other.first), self.last.max(other.last));
        Session { first, last, late: self.late && other.late, ..self }
    }
}

/// What bounds sessions.
#[derive(Debug, Clone, Copy)]
struct Sessions {
    gap: i64,
    age: i64,
    items: u64,
    keys_max: usize,
}

impl Sessions {
    fn end(&self, session: &Session) -> i64 {
        (session.last + self.gap).min(session.first + self.age)
    }

    fn fits(&self, session: &Session, time: i64) -> bool {
        let (span, apart) = (self.gap, self.age);
        time < session.last + span
            && session.first < time + span
            && time < session.first + apart
            && session.last < time + apart
    }

    fn joins(&self, one: &Session, other: &Session, time: i64) -> bool {
        let (first, last) = (one.first.min(other.first).min(time), one.last.max(other.last).max(time));
        last < first + self.age && ((one.numbers.len() + other.numbers.len()) as u64) < self.items
    }
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

    fn timed(mut self, events: &[Event], size: i64, slide: i64, keys_max: usize) -> Self {
        let mut open = BTreeMap::<(i64, u64), Vec<u64>>::new();
        let mut keys: Vec<u64> = Vec::new(); // in the order in which they came
        for event in events {
            let (time, key, number) = (event.0 as i64, event.1, event.2);
            self.sees(time);
            let first = (time - size).div_euclid(slide) * slide + slide;
            let starts: Vec<_> =
                (0..).map(|n| first + n * slide).take_while(|start| *start <= time).collect();
            // It may lie between two windows, and complete others.
            let mut taken = starts.is_empty();
            self.dropped += u64::from(taken);
            for start in starts {
                let end = start + size;
                if end > self.watermark {
                    open.entry((end, key)).or_default().push(number);
                    if !keys.contains(&key) {
                        keys.push(key);
                    }
                    taken = true;
                } else if end > self.watermark - self.lateness {
                    self.results.push((Closed::Late, key, start, end, vec![number]));
                    taken = true;
                }
            }
            if !taken {
                self.late.push(*event);
            }
            let (due, left): (BTreeMap<_, _>, _) =
                open.into_iter().partition(|((end, _), _)| *end <= self.watermark);
            open = left;
            for ((end, key), numbers) in due {
                self.results.push((Closed::Time, key, end - size, end, numbers));
            }
            keys.retain(|key| open.keys().any(|(_, open)| open == key));
            if keys.len() > keys_max {
                let given_up = keys.remove(0);
                let (gone, left): (BTreeMap<_, _>, _) =
                    open.into_iter().partition(|((_, key), _)| *key == given_up);
                open = left;
                for ((end, key), numbers) in gone {
                    self.results.push((Closed::Evicted, key, end - size, end, numbers));
                }
            }
        }
        for ((end, key), numbers) in open {
            self.results.push((Closed::End, key, end - size, end, numbers));
        }
        self.results.iter_mut().for_each(|(.., numbers)| numbers.sort_unstable());
        self
    }

    fn sessions(mut self, events: &[Event], rule: Sessions) -> Self {
        let mut open: Vec<Session> = Vec::new(); // of the keys in the order in which these came
        let mut keys: Vec<u64> = Vec::new();
        for event in events {
            let (time, key, number) = (event.0 as i64, event.1, event.2);
            self.sees(time);
            let alone = Session { key, first: time, last: time, numbers: vec![number], late: false };
            let alone = Session { late: rule.end(&alone) <= self.watermark, ..alone };
            let (mut fitting, others): (Vec<_>, Vec<_>) =
                open.into_iter().partition(|session| session.key == key && rule.fits(session, time));
            open = others;
            fitting.sort_by_key(|session| session.first);
            let mut fitting = fitting.into_iter();
            let session = match fitting.next() {
                None if rule.end(&alone) <= self.watermark - self.lateness => {
                    self.late.push(*event);
                    continue;
                }
                None => alone,
                Some(first) => {
                    let mut session = first;
                    for other in fitting {
                        if rule.joins(&session, &other, time) {
                            session = session.and(other);
                        } else {
                            open.push(other);
                        }
                    }
                    let late = session.late;
                    Session { late, ..session.and(alone) }
                }
            };
            if !keys.contains(&key) {
                keys.push(key);
            }
            if session.numbers.len() as u64 >= rule.items {
                self.results.push((Closed::Count, key, session.first, session.last, session.numbers));
            } else {
                open.push(session);
            }
            let (over, left): (Vec<_>, Vec<_>) =
                open.into_iter().partition(|session| rule.end(session) <= self.watermark);
            open = left;
            over.into_iter().for_each(|session| self.close(session, rule, Closed::Time));
            keys.retain(|key| open.iter().any(|session| session.key == *key));
            if keys.len() > rule.keys_max {
                let given_up = keys.remove(0);
                let (gone, left): (Vec<_>, Vec<_>) =
                    open.into_iter().partition(|session| session.key == given_up);
                open = left;
                for Session { key, first, last, numbers, .. } in gone {
                    self.results.push((Closed::Evicted, key, first, last, numbers));
                }
            }
        }
        open.into_iter().for_each(|session| self.close(session, rule, Closed::End));
        self.results.iter_mut().for_each(|(.., numbers)| numbers.sort_unstable());
        self
    }

    fn close(&mut self, session: Session, rule: Sessions, closed: Closed) {
        let end = rule.end(&session);
        let closed = if session.late && closed == Closed::Time { Closed::Late } else { closed };
        self.results.push((closed, session.key, session.first, end, session.numbers));
    }

    fn check(mut self, windows: Vec<Result<Windowed<u64, Vec<Event>>, Event>>, in_order: bool) {
        let mut late: Vec<_> = windows.iter().filter_map(|window| window.as_ref().err().copied()).collect();
        let windows: Vec<_> = windows.into_iter().flatten().collect();
        for closed in [Closed::Time, Closed::End] {
            let ends = windows.iter().filter(|window| window.closed == closed).map(|window| window.end);
            assert!(!in_order || ends.is_sorted(), "in the order of their ends");
        }
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
        events in events(), size in 1..40u64, slide in 1..40u64, delay in 0..50u64, lateness in 0..50u64,
        keys_max in 1..4usize, seed in any::<u64>(),
    ) {
        let window = Window::sliding(size as u32 * SECOND, slide as u32 * SECOND)
            .max_keys(keys_max)
            .event_time(event_time().delay(delay as u32 * SECOND).lateness(lateness as u32 * SECOND));
        let source = fitful(events.clone().into_iter(), seed);
        let (windows, report) = paused().block_on(async {
            Pipe::from_stream(source).window_or_late(window, |event| event.1, Items).collect().await.unwrap()
        });
        let model = Model::new(delay, lateness).timed(&events, size as i64, slide as i64, keys_max);
        prop_assert_eq!(report.ledger.dropped_total(), model.dropped);
        prop_assert!(report.ledger.balances() && report.ledger.in_flight == 0);
        model.check(windows, true);
    }

    #[test]
    fn sessions_hold_what_the_model_says(
        events in events(), gap in 1..20u64, delay in 0..50u64, lateness in 0..50u64,
        age in prop::option::of(1..60u64), items in prop::option::of(2..9u64), keys_max in 1..4usize, seed in any::<u64>(),
    ) {
        let mut window = Window::session(gap as u32 * SECOND).max_keys(keys_max);
        if let Some(age) = age {
            window = window.max_age(age as u32 * SECOND);
        }
        if let Some(items) = items {
            window = window.max_items(items);
        }
        let window = window
            .event_time(event_time().delay(delay as u32 * SECOND).lateness(lateness as u32 * SECOND));
        let source = fitful(events.clone().into_iter(), seed);
        let (windows, report) = paused().block_on(async {
            Pipe::from_stream(source).window_or_late(window, |event| event.1, Items).collect().await.unwrap()
        });
        prop_assert!(report.ledger.balances() && report.ledger.in_flight == 0);
        let rule = Sessions {
            gap: gap as i64,
            age: age.map_or(i64::MAX / 4, |age| age as i64),
            items: items.unwrap_or(u64::MAX),
            keys_max,
        };
        // An item from before a session's first may let it be of age in the past.
        Model::new(delay, lateness).sessions(&events, rule).check(windows, age.is_none());
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

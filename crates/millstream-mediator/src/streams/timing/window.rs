//! How fast all open streams of a type flow together.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::Counter;
use crate::stream::progress::per_second;

/// Intervals in which streams are open, one after another, and what the last one showed. They end when somebody looks: a stream
/// that begins, ends or is watched, and whoever reads the numbers, so that they are never those of long ago.
#[derive(Debug)]
pub(super) struct Window {
    interval: Duration,
    items: Counter,
    /// Nanoseconds of waiting for items.
    waited: Counter,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Streams that are open.
    open: u64,
    /// Where the present interval began, and where the one before it, if streams have been open since then.
    since: Mark,
    before: Option<Mark>,
    shown: Shown,
    shown_at: Instant,
}

/// How many items there were at a time, and how much waiting.
#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Instant,
    items: u64,
    waited: u64,
}

/// The numbers of an interval.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Shown {
    /// Items a second.
    pub(super) throughput: f64,
    /// Milliseconds that an item was waited for, on average.
    pub(super) latency: f64,
}

impl Window {
    pub(super) fn new(interval: Duration, items: Counter, waited: Counter) -> Self {
        let at = Instant::now();
        let since = Mark { at, items: items.value(), waited: waited.value() };
        let state = State { open: 0, since, before: None, shown: Shown::default(), shown_at: at };
        Window { interval, items, waited, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn mark(&self) -> Mark {
        Mark { at: Instant::now(), items: self.items.value(), waited: self.waited.value() }
    }

    /// Ends the present interval, if it has lasted long enough. Time without any stream is in none.
    fn roll(&self, state: &mut State, now: Mark) {
        if state.open > 0 && now.at - state.since.at >= self.interval {
            state.show(state.since, now);
            state.before = Some(std::mem::replace(&mut state.since, now));
        }
    }

    /// A stream opens.
    pub(super) fn begin(&self) {
        let mut state = self.state();
        let now = self.mark();
        self.roll(&mut state, now);
        if state.open == 0 {
            (state.since, state.before) = (now, None);
        }
        state.open += 1;
    }

    /// A stream has ended. The last one shows what there was of its interval, too.
    pub(super) fn end(&self) {
        let mut state = self.state();
        let now = self.mark();
        self.roll(&mut state, now);
        state.open -= 1;
        let from = state.before.unwrap_or(state.since);
        if state.open == 0 && now.items > from.items {
            state.show(from, now);
        }
    }

    /// Time passes.
    pub(super) fn look(&self) {
        let mut state = self.state();
        let now = self.mark();
        self.roll(&mut state, now);
    }

    /// The numbers of the last interval; nothing once one has passed without any.
    pub(super) fn shown(&self) -> Shown {
        let mut state = self.state();
        let now = self.mark();
        self.roll(&mut state, now);
        if now.at - state.shown_at < self.interval { state.shown } else { Shown::default() }
    }

    /// Streams that are open.
    pub(super) fn open(&self) -> u64 {
        self.state().open
    }
}

impl State {
    fn show(&mut self, from: Mark, to: Mark) {
        let (items, waited) = (to.items - from.items, to.waited - from.waited);
        self.shown = Shown {
            throughput: per_second(items, to.at - from.at),
            latency: waited as f64 / 1e6 / items.max(1) as f64,
        };
        self.shown_at = to.at;
    }
}

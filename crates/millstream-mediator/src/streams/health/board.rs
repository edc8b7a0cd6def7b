//! What an endpoint shows of streams.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Severity, StreamHealth};

/// The last check of every open stream, how the last fifty ended, and how well other parts of a service are. Clones are the same
/// board.
///
/// ```
/// use millstream_mediator::{HealthBoard, Memory, Severity};
///
/// let (board, memory) = (HealthBoard::default(), Memory::new(512 << 20));
/// board.component("memory", {
///     let memory = memory.clone();
///     move || if memory.is_short() { Severity::Unhealthy } else { Severity::Healthy }
/// });
/// assert!(board.is_ready());
/// let held = memory.reserve(500 << 20);
/// assert!(!board.is_ready());
/// # drop(held);
/// ```
#[derive(Clone, Default)]
pub struct HealthBoard(Arc<Mutex<Board>>);

type Component = dyn Fn() -> Severity + Send + Sync;

#[derive(Default)]
struct Board {
    components: BTreeMap<String, Arc<Component>>,
    places: u64,
    /// `None` until the first check.
    open: BTreeMap<u64, Option<StreamHealth>>,
    ended: VecDeque<StreamHealth>,
}

const ENDED_MAX: usize = 50;

impl HealthBoard {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn place(&self) -> u64 {
        let mut board = self.board();
        board.places += 1;
        let place = board.places;
        board.open.insert(place, None);
        place
    }

    /// What a check has found of a stream, unless that has ended meanwhile.
    pub(super) fn set(&self, place: u64, health: StreamHealth) {
        if let Some(open) = self.board().open.get_mut(&place) {
            *open = Some(health);
        }
    }

    pub(super) fn end(&self, place: u64, health: StreamHealth) {
        let mut board = self.board();
        board.open.remove(&place);
        if board.ended.len() == ENDED_MAX {
            board.ended.pop_front();
        }
        board.ended.push_back(health);
    }

    /// The open streams, in the order of their openings. One that was not checked yet is not there.
    pub fn open(&self) -> Vec<StreamHealth> {
        self.board().open.values().flatten().cloned().collect()
    }

    /// The last fifty that ended, oldest first.
    pub fn ended(&self) -> Vec<StreamHealth> {
        self.board().ended.iter().cloned().collect()
    }

    /// Asks this whenever somebody asks the board, as one more part that must be well: a breaker, a budget of memory, a connection. It
    /// takes the place of one of the same name, and must not block. One that panics is unhealthy.
    pub fn component(
        &self,
        name: impl Into<String>,
        severity: impl Fn() -> Severity + Send + Sync + 'static,
    ) {
        let replaced = self.board().components.insert(name.into(), Arc::new(severity));
        drop(replaced); // with the lock free
    }

    /// The components by their names, and how well they are.
    pub fn components(&self) -> Vec<(String, Severity)> {
        let components: Vec<_> =
            self.board().components.iter().map(|(name, severity)| (name.clone(), severity.clone())).collect();
        let ask = |severity: Arc<Component>| {
            catch_unwind(AssertUnwindSafe(|| severity())).unwrap_or(Severity::Unhealthy)
        };
        components.into_iter().map(|(name, severity)| (name, ask(severity))).collect()
    }

    /// Whether no open stream and no component is unhealthy: what a readiness endpoint answers. One for liveness needs no board: a
    /// process that answers is alive.
    pub fn is_ready(&self) -> bool {
        let streams =
            self.board().open.values().flatten().all(|health| health.severity < Severity::Unhealthy);
        streams && self.components().iter().all(|(_, severity)| *severity < Severity::Unhealthy)
    }
}

impl fmt::Debug for HealthBoard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let board = self.board();
        f.debug_struct("HealthBoard")
            .field("components", &board.components.keys().collect::<Vec<_>>())
            .field("open", &board.open)
            .field("ended", &board.ended)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_ends_after_its_stream_changes_nothing() {
        let unwell = || StreamHealth {
            stream: "s".into(),
            correlation: String::new(),
            severity: Severity::Unhealthy,
            warnings: Vec::new(),
            items: 0,
            errors: 0,
            rate: 0.0,
            rate_max: 0.0,
            seconds: 0.0,
            ended: None,
        };
        let board = HealthBoard::default();
        let place = board.place();
        assert!(board.open().is_empty(), "it was not checked yet");
        board.set(place, unwell());
        assert!(!board.is_ready());
        board.end(place, unwell());
        board.set(place, unwell());
        assert!(board.is_ready() && board.open().is_empty());
    }
}

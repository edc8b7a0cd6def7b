//! What an endpoint shows of streams.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Severity, StreamHealth};

/// The last check of every open stream, and how the last fifty ended. Clones are the same board.
#[derive(Debug, Clone, Default)]
pub struct HealthBoard(Arc<Mutex<Board>>);

#[derive(Debug, Default)]
struct Board {
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

    /// Whether no open stream is unhealthy: what a readiness endpoint answers.
    pub fn is_ready(&self) -> bool {
        self.board().open.values().flatten().all(|health| health.severity < Severity::Unhealthy)
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

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
    open: BTreeMap<u64, StreamHealth>,
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
        board.places
    }

    pub(super) fn set(&self, place: u64, health: StreamHealth) {
        self.board().open.insert(place, health);
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
        self.board().open.values().cloned().collect()
    }

    /// The last fifty that ended, oldest first.
    pub fn ended(&self) -> Vec<StreamHealth> {
        self.board().ended.iter().cloned().collect()
    }

    /// Whether no open stream is unhealthy: what a readiness endpoint answers.
    pub fn is_ready(&self) -> bool {
        self.board().open.values().all(|health| health.severity < Severity::Unhealthy)
    }
}

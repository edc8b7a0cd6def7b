//! All streams as they are at one offset, read piece by piece while they go on.

use std::collections::HashMap;
use std::ops::{Bound, Range};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Entry, Fold};

/// What is counted over all streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// What comes next.
    pub(crate) next_offset: u64,
    pub(crate) applied: u64,
    pub(crate) events: u64,
    pub(crate) conflicts: u64,
    pub(crate) snapshots: u64,
    pub(crate) foreign: u64,
}

/// What is known beside the streams.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    pub(crate) totals: Totals,
    /// Entries that do not count, in order.
    pub(crate) void: Vec<u64>,
    /// Commits that are remembered, the oldest first.
    pub(crate) commits: Vec<(Arc<str>, Range<u64>)>,
}

/// How far the streams are taken.
#[derive(Debug, Default)]
pub(crate) struct Taking {
    /// The last that was taken; they are taken in the order of their names.
    at: Option<Arc<str>>,
    /// Streams that have changed since it began and before they were taken, as they were; `None` if they were not there.
    before: HashMap<Arc<str>, Option<Entry>>,
}

impl Fold {
    /// What is [taken](Self::take) from now on is as it is now, until [`end_taking`](Self::end_taking).
    pub(crate) fn begin_taking(&mut self) -> Beside {
        self.taking = Some(Taking::default());
        let commits = self.order.iter();
        let commits = commits.filter_map(|name| Some((name.clone(), self.commits.get(name)?.clone())));
        Beside {
            totals: Totals {
                next_offset: self.next_offset,
                applied: self.applied,
                events: self.events,
                conflicts: self.conflicts,
                snapshots: self.snapshots,
                foreign: self.foreign,
            },
            void: self.void.iter().copied().collect(),
            commits: commits.collect(),
        }
    }

    /// Hands over the next streams, for as long as `more` says so. False when all are.
    pub(crate) fn take(&mut self, mut more: impl FnMut(&Arc<str>, &Entry) -> bool) -> bool {
        let Some(Taking { at, before }) = &mut self.taking else { return false };
        let behind = at.clone();
        let from = behind.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        for (name, now) in self.streams.range::<str, _>((from, Bound::Unbounded)) {
            *at = Some(name.clone());
            let more = match before.remove(name) {
                Some(None) => true,
                Some(Some(entry)) => more(name, &entry),
                None => more(name, now),
            };
            if !more {
                return true;
            }
        }
        false
    }

    /// Keeps nothing any more for who takes.
    pub(crate) fn end_taking(&mut self) {
        self.taking = None;
    }

    /// A stream is about to change.
    pub(super) fn changes(&mut self, stream: &str) {
        let Some(Taking { at, before }) = &mut self.taking else { return };
        if at.as_deref().is_some_and(|at| stream <= at) || before.contains_key(stream) {
            return;
        }
        before.insert(stream.into(), self.streams.get(stream).cloned());
    }

    /// What was known at an offset; the streams are still to come.
    pub(crate) fn restored(beside: Beside) -> Fold {
        let Beside { totals, void, commits } = beside;
        let Totals { next_offset, applied, events, conflicts, snapshots, foreign } = totals;
        let order = commits.iter().map(|(name, _)| name.clone()).collect();
        Fold {
            next_offset,
            applied,
            events,
            conflicts,
            snapshots,
            foreign,
            void: void.into_iter().collect(),
            commits: commits.into_iter().collect(),
            order,
            ..Fold::default()
        }
    }
}

//! Messages that are only in the log are read when a consumer comes to them.

use std::sync::Arc;

use millstream_message::{BrokerError, Publish};

use super::Queue;
use crate::run::{Items, Run, Stored, Taken, size_of, weight_of};
use crate::state::State;

/// How many messages are read from the log at once when a consumer comes to them.
const LOAD_ITEMS: u32 = 256;
/// And how many bytes, at least one message.
const LOAD_BYTES: u64 = 1 << 20;
/// How many messages are copied forward with one sync, and of bytes a load's worth.
const SHARE_ITEMS: u32 = 4096;

impl Queue {
    /// The head run to be loaded, when it is only in the log. At most a load's worth of it, the rest split off.
    pub(crate) fn loadable(&self, state: &mut State) -> Option<Run> {
        let level = state.levels.iter().rposition(|level| level.front().is_some_and(|run| !run.is_here()))?;
        let run = state.levels[level].front_mut()?;
        let count = load_count(run);
        if count < run.count {
            let front = run.split_front(count);
            state.levels[level].push_front(front);
        }
        state.levels[level].front().cloned()
    }

    /// Reads the run's messages and puts them in its place, unless it has gone meanwhile. A message whose bytes are
    /// damaged is taken off the queue and counted; the others go on.
    ///
    /// Reads from the disk on this thread: page-cache speed for what is recent, the disk's for the rest.
    pub(crate) fn load(self: &Arc<Self>, run: Run) -> Result<(), BrokerError> {
        self.reload(0, &run).map(|_| ())
    }

    /// [`load`](Queue::load) of a run that is due then (0: it is ready). False when it had gone.
    pub(crate) fn reload(self: &Arc<Self>, due: u64, run: &Run) -> Result<bool, BrokerError> {
        let journal = self.shared.journal.as_ref().expect("only a broker with a log puts messages out");
        let positions: Vec<u64> = (0..run.count).map(|i| run.slot(i).0).collect();
        let read = journal.read(&positions)?;
        let mut state = self.lock();
        let taken = if due > 0 { state.take_delayed(due, run) } else { state.take_ready(run) };
        let Some(old) = taken else { return Ok(false) };
        let put = |state: &mut State, run| match due {
            0 => state.insert(run),
            due => state.insert_delayed(due, run),
        };
        let intact = read.iter().all(Option::is_some);
        if intact {
            let publishes: Vec<Publish> = read.into_iter().flatten().collect();
            let bytes = publishes.iter().map(|publish| u64::from(size_of(publish))).sum();
            let weight = publishes.iter().map(weight_of).sum();
            self.charge(weight);
            let items = Items::Here { batch: Arc::new(Stored { publishes, positions }), start: 0 };
            put(&mut state, Run { bytes, weight, items, ..old });
            return Ok(true);
        }
        for (at, (publish, position)) in (0..).zip(read.into_iter().zip(positions)) {
            let (order, seq) = (old.order + at, old.seq + at);
            match publish {
                Some(publish) => {
                    let (size, weight) = (size_of(&publish), weight_of(&publish));
                    self.charge(weight);
                    let one = Taken { order, seq, position, size, weight, traits: old.traits, publish };
                    put(&mut state, one.into_run());
                }
                None => {
                    journal.count_damaged();
                    self.note_settled(&mut state, seq..seq + 1);
                }
            }
        }
        Ok(true)
    }

    /// Ready and delayed runs that begin before this position of the log, each with when it is due (0: it is ready): about
    /// `bytes` of them, and no more than are copied forward in one go. Of delayed ones those from the key `from` on, which is
    /// left behind the last.
    pub(crate) fn old_runs(&self, before: u64, bytes: u64, from: &mut (u64, u64)) -> Vec<(u64, Run)> {
        let mut state = self.lock();
        let mut left = (SHARE_ITEMS, bytes.min(LOAD_BYTES));
        let old = |run: &Run| run.is_logged() && run.slot(0).0 < before;
        let mut runs = Vec::new();
        for level in &mut state.levels {
            let mut at = 0;
            while at < level.len() && left.0 > 0 && left.1 > 0 {
                if old(&level[at]) {
                    let count = load_count(&level[at]);
                    if count < level[at].count {
                        let front = level[at].split_front(count);
                        level.insert(at, front);
                    }
                    let run = level[at].clone();
                    left = (left.0.saturating_sub(run.count), left.1.saturating_sub(run.bytes.max(1)));
                    runs.push((0, run));
                }
                at += 1;
            }
        }
        while left.0 > 0
            && left.1 > 0
            && let Some((due, run)) = state.old_delayed(*from, old, load_count)
        {
            left = (left.0.saturating_sub(run.count), left.1.saturating_sub(run.bytes.max(1)));
            *from = (due, run.order + 1);
            runs.push((due, run));
        }
        runs
    }

    /// The run's messages are at these positions now. False when it has changed or gone meanwhile.
    pub(crate) fn moved(&self, due: u64, run: &Run, positions: Vec<u64>) -> bool {
        let mut state = self.lock();
        if due > 0 {
            let gone = state.delayed_moved(due, run, positions);
            return gone.map(|weight| self.refund(weight)).is_some();
        }
        let level = &mut state.levels[usize::from(run.traits.level)];
        let Some(at) = level.iter().position(|known| known.seq == run.seq && known.count == run.count) else {
            return false;
        };
        self.refund(level[at].relocate(positions));
        true
    }
}

/// How many messages from the front of a run are read from the log at once.
fn load_count(run: &Run) -> u32 {
    let mut count = 0;
    let mut bytes = 0;
    while count < run.count.min(LOAD_ITEMS)
        && (count == 0 || bytes + u64::from(run.slot(count).1) <= LOAD_BYTES)
    {
        bytes += u64::from(run.slot(count).1);
        count += 1;
    }
    count
}

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
        let journal = self.shared.journal.as_ref().expect("only a broker with a log puts messages out");
        let positions: Vec<u64> = (0..run.count).map(|i| run.slot(i).0).collect();
        let read = journal.read(&positions)?;
        let mut state = self.lock();
        let level = &mut state.levels[usize::from(run.traits.level)];
        let Some(at) = level.iter().take(64).position(|known| known.seq == run.seq) else { return Ok(()) };
        if level[at].count != run.count || !level[at].items.same(&run.items) {
            return Ok(());
        }
        let old = level.remove(at).expect("it was found there");
        state.ready.sub(u64::from(old.count), old.bytes);
        let intact = read.iter().all(Option::is_some);
        if intact {
            let publishes: Vec<Publish> = read.into_iter().flatten().collect();
            let bytes = publishes.iter().map(|publish| u64::from(size_of(publish))).sum();
            let weight = publishes.iter().map(weight_of).sum();
            self.shared.budget.charge(weight);
            let items = Items::Here { batch: Arc::new(Stored { publishes, positions }), start: 0 };
            state.insert(Run { bytes, weight, items, ..old });
            return Ok(());
        }
        for (at, (publish, position)) in (0..).zip(read.into_iter().zip(positions)) {
            let (order, seq) = (old.order + at, old.seq + at);
            match publish {
                Some(publish) => {
                    let (size, weight) = (size_of(&publish), weight_of(&publish));
                    self.shared.budget.charge(weight);
                    let one = Taken { order, seq, position, size, weight, traits: old.traits, publish };
                    state.insert(one.into_run());
                }
                None => {
                    journal.count_damaged();
                    self.note_settled(&mut state, seq..seq + 1);
                }
            }
        }
        Ok(())
    }

    /// A ready or delayed run, at most a load's worth, that begins before this position of the log, and when it is due (0: it is
    /// ready).
    pub(crate) fn oldest_run(&self, before: u64) -> Option<(u64, Run)> {
        let mut state = self.lock();
        let old = |run: &Run| run.is_logged() && run.slot(0).0 < before;
        for level in &mut state.levels {
            let Some(at) = level.iter().position(old) else { continue };
            let count = load_count(&level[at]);
            if count < level[at].count {
                let front = level[at].split_front(count);
                level.insert(at, front);
            }
            return level.get(at).cloned().map(|run| (0, run));
        }
        state.old_delayed(old, load_count)
    }

    /// The run's messages are at these positions now. False when it has changed or gone meanwhile.
    pub(crate) fn moved(&self, due: u64, run: &Run, positions: Vec<u64>) -> bool {
        let mut state = self.lock();
        if due > 0 {
            let gone = state.delayed_moved(due, run, positions);
            return gone.map(|weight| self.shared.budget.refund(weight)).is_some();
        }
        let level = &mut state.levels[usize::from(run.traits.level)];
        let Some(at) = level.iter().position(|known| known.seq == run.seq && known.count == run.count) else {
            return false;
        };
        self.shared.budget.refund(level[at].relocate(positions));
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

//! Runs that are not due yet.

use std::ops::Bound;

use super::State;
use crate::run::Run;

impl State {
    pub(crate) fn insert_delayed(&mut self, due: u64, run: Run) {
        self.waiting.add(u64::from(run.count), run.bytes);
        self.keep_delayed((due, run.order), run);
    }

    fn keep_delayed(&mut self, key: (u64, u64), run: Run) {
        if run.is_here() && run.is_logged() {
            self.delayed_here.insert(key);
        }
        self.delayed.insert(key, run);
    }

    /// Makes what is due ready, behind everything that is. True when something was.
    pub(crate) fn ripen(&mut self, now: u64) -> bool {
        let mut any = false;
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let (key, mut run) = entry.remove_entry();
            self.delayed_here.remove(&key);
            self.waiting.sub(u64::from(run.count), run.bytes);
            run.order = self.next_seq;
            self.next_seq += u64::from(run.count);
            self.insert(run);
            any = true;
        }
        any
    }

    /// Removes a delayed run that is only in the log; `None` when it has changed or gone.
    pub(crate) fn take_delayed(&mut self, due: u64, run: &Run) -> Option<Run> {
        let key = (due, run.order);
        self.delayed.get(&key).filter(|known| {
            known.seq == run.seq && known.count == run.count && known.items.same(&run.items)
        })?;
        let old = self.delayed.remove(&key)?;
        self.waiting.sub(u64::from(old.count), old.bytes);
        Some(old)
    }

    /// The first delayed run from this key on of which `old` holds, and when it is due; `count` says how much of it is wanted,
    /// and the rest is split off.
    pub(crate) fn old_delayed(
        &mut self,
        from: (u64, u64),
        old: impl Fn(&Run) -> bool,
        count: impl Fn(&Run) -> u32,
    ) -> Option<(u64, Run)> {
        let key = self.delayed.range(from..).find(|(_, run)| old(run)).map(|(key, _)| *key)?;
        let wanted = count(&self.delayed[&key]);
        if wanted < self.delayed[&key].count {
            let mut rest = self.delayed.remove(&key)?;
            let front = rest.split_front(wanted);
            self.keep_delayed((key.0, rest.order), rest);
            self.keep_delayed(key, front);
        }
        self.delayed.get(&key).map(|run| (key.0, run.clone()))
    }

    /// The messages of a delayed run are at these positions now, and no longer in memory. The weight that is gone; `None` when it
    /// has changed or gone meanwhile.
    pub(crate) fn delayed_moved(&mut self, due: u64, run: &Run, positions: Vec<u64>) -> Option<u64> {
        let key = (due, run.order);
        let known =
            self.delayed.get_mut(&key).filter(|known| known.seq == run.seq && known.count == run.count)?;
        self.delayed_here.remove(&key);
        Some(known.relocate(positions))
    }

    /// Puts runs out to the log until `bytes` bodies are gone, those that come last first; returns how many bytes went.
    pub(super) fn put_out_delayed(&mut self, bytes: u64) -> u64 {
        let mut gone = 0;
        while gone < bytes
            && let Some(key) = self.delayed_here.pop_last()
            && let Some(run) = self.delayed.get_mut(&key)
        {
            gone += run.put_out();
            self.merge_delayed(key);
        }
        gone
    }

    /// Makes a delayed run that was put out one with the next that is due at the same time, if that was, too.
    fn merge_delayed(&mut self, key: (u64, u64)) {
        let behind = (Bound::Excluded(key), Bound::Included((key.0, u64::MAX)));
        let Some((&next, _)) = self.delayed.range(behind).next() else { return };
        let (Some(mut run), Some(more)) = (self.delayed.remove(&key), self.delayed.get(&next)) else {
            return;
        };
        if run.merge(more) {
            self.delayed.remove(&next);
        }
        self.delayed.insert(key, run);
    }
}

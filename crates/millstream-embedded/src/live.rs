//! Live messages by identity: what recovery rebuilds a queue from, and what a checkpoint writes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::run::{Bare, Items, PutOut, Run, Slot, Traits};
use crate::wire::{Input, Malformed, put_i64, put_u64};

/// A run that is in the log, and when it is due (0: it is not delayed).
#[derive(Debug, Clone)]
pub(crate) struct LiveRun {
    pub(crate) run: Run,
    pub(crate) due: u64,
}

/// The live messages of one queue, as runs by the identity of their first message. Runs do not overlap.
#[derive(Debug, Default)]
pub(crate) struct Live(BTreeMap<u64, LiveRun>);

impl Live {
    /// Whether a message is live.
    fn contains(&self, seq: u64) -> bool {
        self.0.range(..=seq).next_back().is_some_and(|(first, live)| seq < first + u64::from(live.run.count))
    }

    /// Adds a message unless it is there already.
    pub(crate) fn add(&mut self, seq: u64, position: u64, size: u32, traits: Traits, due: u64) {
        if self.contains(seq) {
            return;
        }
        self.put_one(&Bare { order: seq, seq, position, size, traits }, due);
    }

    /// Adds a message that overlaps no other.
    pub(crate) fn put_one(&mut self, bare: &Bare, due: u64) {
        if let Some((_, before)) = self.0.range_mut(..bare.seq).next_back()
            && before.due == due
            && before.run.push(bare)
        {
            return;
        }
        self.0.insert(bare.seq, LiveRun { run: bare.into_run(), due });
    }

    /// Adds a run that overlaps no other; it becomes part of the one before when nothing tells them apart.
    pub(crate) fn put(&mut self, live: LiveRun) {
        if let Some((_, before)) = self.0.range_mut(..live.run.seq).next_back()
            && before.due == live.due
            && before.run.merge(&live.run)
        {
            return;
        }
        self.0.insert(live.run.seq, live);
    }

    /// Takes out what is live of these identities.
    pub(crate) fn carve(&mut self, seqs: &Range<u64>) -> Vec<LiveRun> {
        let mut out = Vec::new();
        // A run that begins before and reaches in.
        let before = self.0.range(..seqs.start).next_back().map(|(first, live)| (*first, live.run.count));
        if let Some((first, count)) = before
            && first + u64::from(count) > seqs.start
            && let Some(mut live) = self.0.remove(&first)
        {
            let keep = u32::try_from(seqs.start - first).expect("within a run");
            let front = live.run.split_front(keep);
            self.0.insert(first, LiveRun { run: front, due: live.due });
            self.0.insert(seqs.start, live);
        }
        while let Some((&first, _)) = self.0.range(seqs.start..seqs.end.max(seqs.start)).next() {
            let Some(mut live) = self.0.remove(&first) else { break };
            let end = first + u64::from(live.run.count);
            if end > seqs.end {
                let keep = u32::try_from(seqs.end - first).expect("within a run");
                let front = live.run.split_front(keep);
                self.0.insert(seqs.end, live.clone());
                live.run = front;
            }
            out.push(live);
        }
        out
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &LiveRun> {
        self.0.values()
    }

    pub(crate) fn into_runs(self) -> impl Iterator<Item = LiveRun> {
        self.0.into_values()
    }

    /// The smallest position that is live.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.iter().filter_map(|live| (0..live.run.count).map(|i| live.run.slot(i).0).min()).min()
    }

    /// Writes all runs.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, self.0.len() as u64);
        let mut end = 0;
        for LiveRun { run, due } in self.iter() {
            put_u64(out, run.seq - end);
            put_i64(out, run.order.wrapping_sub(run.seq) as i64);
            put_u64(out, run.count.into());
            put_u64(out, run.traits.level.into());
            put_u64(out, run.traits.deliveries.into());
            put_u64(out, run.traits.expires.wrapping_add(1));
            put_u64(out, *due);
            let mut last = 0;
            for i in 0..run.count {
                let (position, size) = run.slot(i);
                put_i64(out, position.wrapping_sub(last) as i64);
                put_u64(out, size.into());
                last = position;
            }
            end = run.seq + u64::from(run.count);
        }
    }

    /// Reads what [`encode`](Live::encode) wrote.
    pub(crate) fn decode(input: &mut Input<'_>) -> Result<Live, Malformed> {
        let mut live = BTreeMap::new();
        let mut end: u64 = 0;
        for _ in 0..input.count()? {
            let seq = end.checked_add(input.u64()?).ok_or(Malformed)?;
            let order = seq.wrapping_add(input.i64()? as u64);
            let count = u32::try_from(input.count()?).map_err(|_| Malformed)?;
            let level = u8::try_from(input.u64()?).map_err(|_| Malformed)?;
            let deliveries = input.u32()?;
            let expires = input.u64()?.wrapping_sub(1);
            let due = input.u64()?;
            let mut slots = Vec::with_capacity(count as usize);
            let mut base = None;
            let mut position: u64 = 0;
            let mut bytes = 0;
            for _ in 0..count {
                position = position.wrapping_add(input.i64()? as u64);
                let base = *base.get_or_insert(position);
                let delta = position.checked_sub(base).and_then(|delta| u32::try_from(delta).ok());
                let size = input.u32()?;
                bytes += u64::from(size);
                slots.push(Slot { delta: delta.ok_or(Malformed)?, size });
            }
            let items =
                Items::Out { out: Arc::new(PutOut { base: base.ok_or(Malformed)?, slots }), start: 0 };
            let traits = Traits { level, deliveries, expires };
            live.insert(
                seq,
                LiveRun { run: Run { order, seq, count, bytes, weight: 0, traits, items }, due },
            );
            end = seq.checked_add(count.into()).ok_or(Malformed)?;
        }
        Ok(Live(live))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn traits() -> Traits {
        Traits { level: 0, deliveries: 0, expires: u64::MAX }
    }

    fn seqs(live: &Live) -> Vec<(u64, u64)> {
        live.iter()
            .flat_map(|l| (0..l.run.count).map(|i| (l.run.seq + u64::from(i), l.run.slot(i).0)))
            .collect()
    }

    proptest! {
        /// Against a plain map: adding, carving and coming back from bytes lose and invent nothing.
        #[test]
        fn agrees_with_a_plain_map(steps in proptest::collection::vec((any::<bool>(), 0..60_u64, 0..20_u64), 0..80)) {
            let mut live = Live::default();
            let mut model = BTreeMap::new();
            for (at, (add, seq, len)) in steps.into_iter().enumerate() {
                if add {
                    let position = 8 + 1000 * at as u64;
                    live.add(seq, position, 5, traits(), 0);
                    model.entry(seq).or_insert(position);
                } else {
                    let carved = live.carve(&(seq..seq + len));
                    let count: u32 = carved.iter().map(|l| l.run.count).sum();
                    let before = model.len();
                    model.retain(|known, _| !(seq..seq + len).contains(known));
                    prop_assert_eq!(count as usize, before - model.len());
                }
                prop_assert_eq!(seqs(&live), model.iter().map(|(a, b)| (*a, *b)).collect::<Vec<_>>());
            }
            let mut out = Vec::new();
            live.encode(&mut out);
            let read = Live::decode(&mut Input(&out)).expect("reads back");
            prop_assert_eq!(seqs(&read), seqs(&live));
            prop_assert_eq!(live.oldest(), model.values().min().copied());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Live::decode(&mut Input(&bytes));
        }
    }
}

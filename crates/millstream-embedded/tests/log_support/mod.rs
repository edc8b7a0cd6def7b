//! A model of the log's promise, and a random workload held against it.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::{path::Path, sync::Arc};

use millstream_embedded::log::{
    Commit, CommitErrorKind, Entry, Log, LogSettings, Position, ReadError, Recovery, Replay, SimDisk,
};

/// SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

pub(crate) const DIR: &str = "log";

/// Segments so small that a short workload rolls and recycles them, and no threads, so that a seed replays.
pub(crate) fn small() -> LogSettings {
    LogSettings {
        segment_bytes: 16 << 10,
        record_bytes_max: 6 << 10,
        pending_bytes_max: 32 << 10,
        background: false,
    }
}

/// The body of record `id`: its length and bytes follow from the number.
pub(crate) fn body(id: u64) -> Vec<u8> {
    let mut random = Random(id);
    let len = match random.below(10) {
        0 => 0,
        1..=6 => random.below(200),
        7 | 8 => random.below(1500),
        _ => random.below(4000),
    };
    (0..len).map(|_| random.next() as u8).collect()
}

pub(crate) fn entry(id: u64, body: &[u8]) -> Entry<'_> {
    let (head, body) = body.split_at(body.len() / 3);
    Entry { kind: id as u8, time: id, head, body }
}

/// What the model knows of a record's fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Confirmed, or seen after a crash: must be there.
    Stored,
    /// Neither confirmed nor refused: may be there.
    Open,
    /// Refused, or not there after a crash: must never be seen.
    Gone,
}

#[derive(Debug, Clone)]
struct Expected {
    id: u64,
    position: Position,
    fate: Fate,
    /// Number of the atomic batch it belongs to.
    batch: Option<u64>,
}

/// A log on a simulated disk and what it owes.
pub(crate) struct Model {
    pub(crate) disk: SimDisk,
    records: Vec<Expected>,
    next_id: u64,
    next_batch: u64,
    /// The newest confirmed checkpoint; one that may have been stored in its place.
    checkpoint: Option<(Position, Vec<u8>)>,
    checkpoint_open: Option<(Position, Vec<u8>)>,
    /// Records before may have been given free.
    released: Position,
    pub(crate) recovered: Recovery,
}

impl Model {
    pub(crate) fn new(disk: SimDisk) -> Self {
        Self {
            disk,
            records: Vec::new(),
            next_id: 1,
            next_batch: 1,
            checkpoint: None,
            checkpoint_open: None,
            released: Position::ZERO,
            recovered: Recovery::default(),
        }
    }

    /// Opens the log and holds what it hands over against what it owes. `None` when the disk failed.
    pub(crate) fn open(&mut self) -> Option<Log> {
        let mut seen = Vec::new();
        let mut checkpoint = None;
        let opened =
            Log::open(Path::new(DIR), small(), Arc::new(self.disk.clone()), &mut |replay| match replay {
                Replay::Checkpoint { payload, covers } => checkpoint = Some((covers, payload.to_vec())),
                Replay::Record(r) => seen.push((r.position, r.kind, r.time, r.body.to_vec())),
            });
        let (log, recovery) = opened.ok()?;

        if checkpoint.is_none() || !self.is(&checkpoint, &self.checkpoint_open) {
            let newest = self.is(&checkpoint, &self.checkpoint);
            assert!(newest, "replayed is {checkpoint:?}, the newest confirmed is {:?}", self.checkpoint);
        }
        self.checkpoint = checkpoint.clone();
        self.checkpoint_open = None;

        assert!(recovery.damaged.is_empty(), "a crash is no damage: {recovery:?}");
        assert_eq!(recovery.damaged_files, 0, "{recovery:?}");
        assert_eq!(recovery.records, seen.len() as u64);
        let covers = checkpoint.map_or(Position::ZERO, |(covers, _)| covers);
        let mut seen = seen.into_iter().peekable();
        for expected in self.records.iter_mut().filter(|r| r.position >= covers) {
            let here =
                seen.next_if(|(position, ..)| *position == expected.position && expected.fate != Fate::Gone);
            match here {
                Some((_, kind, time, bytes)) => {
                    assert_eq!((kind, time), (expected.id as u8, expected.id));
                    assert_eq!(bytes, body(expected.id));
                    expected.fate = Fate::Stored;
                }
                None => {
                    assert_ne!(expected.fate, Fate::Stored, "lost record {expected:?}");
                    expected.fate = Fate::Gone;
                }
            }
        }
        assert_eq!(seen.next(), None, "a record that nobody stored, or that was gone, is there");
        // A record that is gone frees its position for another.
        self.records.retain(|r| r.fate != Fate::Gone);
        self.check_batches(covers);
        self.recovered = recovery;
        Some(log)
    }

    /// Whether a checkpoint is the one that was asked for. It covers less where records were given up at the end: that
    /// must have been all of what it leaves out.
    fn is(&self, found: &Option<(Position, Vec<u8>)>, asked: &Option<(Position, Vec<u8>)>) -> bool {
        let (Some((covers, payload)), Some((asked, expected))) = (found, asked) else {
            return found == asked;
        };
        let left_out = |record: &&Expected| (*covers..*asked).contains(&record.position);
        payload == expected
            && covers <= asked
            && self.records.iter().filter(left_out).all(|record| record.fate != Fate::Stored)
    }

    fn check_batches(&self, covers: Position) {
        for batch in 1..self.next_batch {
            let members = self.records.iter().filter(|r| r.batch == Some(batch) && r.position >= covers);
            let ids: Vec<u64> = members.map(|r| r.id).collect();
            if let (Some(first), Some(last)) = (ids.first(), ids.last()) {
                let size = BATCH_SIZES[(batch % BATCH_SIZES.len() as u64) as usize];
                assert_eq!(
                    (ids.len() as u64, last - first + 1),
                    (size, size),
                    "atomic batch {batch} is torn"
                );
            }
        }
    }

    /// Random work until the disk fails or `steps` are done; whether all were done.
    pub(crate) fn work(&mut self, log: &Log, random: &mut Random, steps: u64) -> bool {
        let mut commits: Vec<(Commit, Vec<usize>)> = Vec::new();
        for _ in 0..steps {
            match random.below(12) {
                0..=3 => {
                    let appended = self.append(log, 1, false);
                    commits.push(appended);
                }
                4 | 5 => commits.push(self.append(log, random.clone().below(12) + 2, false)),
                6 => {
                    let size = BATCH_SIZES[(self.next_batch % BATCH_SIZES.len() as u64) as usize];
                    commits.push(self.append(log, size, true));
                }
                7 | 8 => {
                    for (commit, indices) in commits.drain(..) {
                        self.settle(commit, &indices);
                    }
                }
                9 => {
                    let covers = if random.below(2) == 0 { log.durable() } else { log.end() };
                    let payload = body(random.next());
                    self.checkpoint_open = Some((covers, payload.clone()));
                    if log.checkpoint(&payload, covers).is_err() {
                        return false;
                    }
                    self.checkpoint = self.checkpoint_open.take();
                }
                10 => {
                    if let Some((covers, _)) = &self.checkpoint {
                        self.released = *covers;
                        log.release_before(self.released);
                    }
                }
                _ => self.read_some(log, random),
            }
            if self.disk.files().is_empty() {
                return false;
            }
        }
        let mut fine = true;
        for (commit, indices) in commits.drain(..) {
            fine &= self.settle(commit, &indices);
        }
        fine
    }

    fn append(&mut self, log: &Log, count: u64, atomic: bool) -> (Commit, Vec<usize>) {
        let ids: Vec<u64> = (self.next_id..self.next_id + count).collect();
        self.next_id += count;
        let mut bodies: Vec<Vec<u8>> = ids.iter().map(|id| body(*id)).collect();
        let batch = atomic.then_some(self.next_batch);
        if atomic {
            // Together they must fit the limit: ids whose bodies are too long are passed over.
            let total: usize = bodies.iter().map(|b| b.len() + 40).sum();
            if total > small().record_bytes_max {
                return self.append(log, 1, false);
            }
            self.next_batch += 1;
        }
        let entries: Vec<Entry<'_>> = ids.iter().zip(&bodies).map(|(id, body)| entry(*id, body)).collect();
        let appended =
            if atomic { log.append_atomic_blocking(&entries) } else { log.append_batch_blocking(&entries) };
        let appended = appended.expect("within the limits");
        bodies.clear();
        let first = self.records.len();
        for (id, position) in ids.iter().zip(appended.positions) {
            self.records.push(Expected { id: *id, position, fate: Fate::Open, batch });
        }
        (appended.commit, (first..self.records.len()).collect())
    }

    fn settle(&mut self, commit: Commit, indices: &[usize]) -> bool {
        let result = commit.wait();
        for index in indices {
            self.records[*index].fate = match &result {
                Ok(()) => Fate::Stored,
                Err(e) if e.kind() == CommitErrorKind::NotStored => Fate::Gone,
                Err(_) => Fate::Open,
            };
        }
        result.is_ok()
    }

    fn read_some(&self, log: &Log, random: &mut Random) {
        let stored: Vec<_> =
            self.records.iter().filter(|r| r.fate == Fate::Stored && r.position >= self.released).collect();
        if stored.is_empty() {
            return;
        }
        let expected = stored[random.below(stored.len() as u64) as usize];
        match log.read_at(expected.position) {
            Ok(record) => assert_eq!((record.time, &record.body[..]), (expected.id, &body(expected.id)[..])),
            Err(ReadError::Io(..)) => {} // the disk has stopped
            Err(error) => panic!("{expected:?}: {error}"),
        }
    }

    /// Everything stored is there for a reader, in order.
    pub(crate) fn check_reader(&self, log: &Log, from: Position) {
        let mut reader = log.reader(from);
        let mut stored = self.records.iter().filter(|r| r.fate == Fate::Stored && r.position >= from);
        while let Some(record) = reader.next().expect("nothing is damaged") {
            let known =
                self.records.iter().find(|r| r.position == record.position).expect("somebody stored it");
            if known.fate == Fate::Stored {
                assert_eq!(stored.next().map(|r| r.id), Some(record.time), "in order, none missing");
            }
            assert_eq!(record.body, body(record.time));
        }
        assert_eq!(stored.next().map(|r| r.id), None, "all of them");
    }

    pub(crate) fn stored(&self) -> usize {
        self.records.iter().filter(|r| r.fate == Fate::Stored).count()
    }

    /// Where the checkpoint in force stands.
    pub(crate) fn covers(&self) -> Position {
        self.checkpoint.as_ref().map_or(Position::ZERO, |(covers, _)| *covers)
    }
}

/// Sizes of atomic batches, by number.
const BATCH_SIZES: [u64; 4] = [2, 3, 5, 9];

//! The meeting place of those who append and the one who writes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{Semaphore, TryAcquireError};

use super::{
    commit::{Group, Outcome, Part},
    error::AppendError,
    pool::Pool,
    record::{Entry, FLAG_JOINED, HEADER, Header, body_crc, stored_len},
    segment::Segments,
    settings::LogSettings,
    writer::Writer,
};

/// What the handles of one log share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: LogSettings,
    pub(crate) salt: u32,
    pub(crate) epoch: u32,
    /// Bytes that may still be accepted before something becomes durable. First come, first served.
    room: Semaphore,
    /// How many callers wait for room; while there are any, every group is asked for.
    short_of_room: AtomicUsize,
    pub(crate) segments: Arc<Segments>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) counters: Counters,
    durable: AtomicU64,
    /// Where the last confirmed record ends; behind it, before `durable`, is only what was given up.
    confirmed: AtomicU64,
    state: Mutex<State>,
    /// The writing thread sleeps here.
    work: Condvar,
    /// Only whoever set `State::writing` locks it.
    writer: Mutex<Writer>,
}

/// Monotonic counts, read by [`LogStats`](super::LogStats).
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) records: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) groups: AtomicU64,
    pub(crate) failed_syncs: AtomicU64,
    pub(crate) failed_groups: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// Encoded records, the next group to be written; the first of them is at `base`.
    pending: Vec<u8>,
    base: u64,
    /// The permits of `room` that `pending` stands for.
    room_taken: usize,
    group: Arc<Group>,
    /// The group being written, or the last one written.
    previous: Arc<Group>,
    /// The other buffer, empty, while nobody writes.
    spare: Vec<u8>,
    /// One thread at a time writes groups; this is its claim.
    writing: bool,
    stopping: bool,
}

impl Shared {
    pub(crate) fn new(
        settings: LogSettings,
        salt: u32,
        epoch: u32,
        end: u64,
        segments: Arc<Segments>,
        pool: Arc<Pool>,
        writer: Writer,
    ) -> Self {
        let previous = Arc::new(Group::default());
        previous.finish(Outcome { durable: end, untried: end, error: None });
        Self {
            room: Semaphore::new(settings.pending_bytes_max),
            short_of_room: AtomicUsize::new(0),
            settings,
            salt,
            epoch,
            segments,
            pool,
            counters: Counters::default(),
            durable: AtomicU64::new(end),
            confirmed: AtomicU64::new(end),
            state: Mutex::new(State {
                pending: Vec::new(),
                base: end,
                room_taken: 0,
                group: Arc::default(),
                previous,
                spare: Vec::new(),
                writing: false,
                stopping: false,
            }),
            work: Condvar::new(),
            writer: Mutex::new(writer),
        }
    }

    /// Everything before this position is durable, apart from what was given up with an error.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Where the next record will be.
    pub(crate) fn end(&self) -> u64 {
        let state = self.state.lock();
        state.base + state.pending.len() as u64
    }

    /// Takes room for `bytes`, at most all there is, if nobody has to be waited for.
    pub(crate) fn try_take_room(&self, bytes: usize) -> Result<usize, AppendError> {
        let bytes = bytes.min(self.settings.pending_bytes_max);
        match self.room.try_acquire_many(bytes as u32) {
            Ok(permit) => {
                permit.forget();
                Ok(bytes)
            }
            Err(TryAcquireError::NoPermits) => Err(AppendError::Busy),
            Err(TryAcquireError::Closed) => Err(AppendError::Closed),
        }
    }

    /// Takes room for `bytes`, waiting until others' records are durable. First come, first served.
    pub(crate) async fn take_room(&self, bytes: usize) -> Result<usize, AppendError> {
        match self.try_take_room(bytes) {
            Err(AppendError::Busy) => {}
            done => return done,
        }
        let bytes = bytes.min(self.settings.pending_bytes_max);
        // What takes the room may have been appended without anybody asking for it to be written.
        let _short = Short::new(&self.short_of_room);
        self.ask_all();
        let permit = self.room.acquire_many(bytes as u32).await.map_err(|_| AppendError::Closed)?;
        permit.forget();
        Ok(bytes)
    }

    /// Has everything appended so far written as soon as nothing else is.
    pub(crate) fn ask_all(&self) {
        let group = {
            let state = self.state.lock();
            if state.pending.is_empty() {
                // A group that was asked for while empty would never be asked for again: who appends next asks.
                return;
            }
            state.group.clone()
        };
        self.ask(&group);
    }

    /// Adds `entries` to the group being gathered; `room` permits were taken for them. Calls `placed` with
    /// every record's position.
    pub(crate) fn push(
        &self,
        entries: &[Entry<'_>],
        joined: bool,
        room: usize,
        mut placed: impl FnMut(u64),
    ) -> Part {
        // The body's checksum needs no position. Of a few records it is taken before the lock; of many, one by
        // one with the copying, while the record is in the first-level cache.
        let mut crcs = [0; 4];
        let early = entries.len() <= crcs.len();
        if early {
            crcs.iter_mut().zip(entries).for_each(|(crc, entry)| *crc = body_crc(self.salt, entry));
        }
        let bytes = entries.iter().map(|e| stored_len(e.body_len())).sum();

        let mut state = self.state.lock();
        let state = &mut *state;
        let durable = self.durable();
        let from = state.base + state.pending.len() as u64;
        let mut position = from;
        state.pending.reserve(bytes);
        for (index, entry) in entries.iter().enumerate() {
            let crc = if early { crcs[index] } else { body_crc(self.salt, entry) };
            let more = joined && index + 1 < entries.len();
            let len = entry.body_len();
            let header = Header {
                crc: 0,
                len: u32::try_from(len).expect("record_bytes_max is below 2^30"),
                position,
                kind: entry.kind,
                flags: if more { FLAG_JOINED } else { 0 },
                time: entry.time,
                epoch: self.epoch,
                lag: u32::try_from(position - durable).unwrap_or(u32::MAX),
            };
            placed(position);
            state.pending.extend_from_slice(&header.encode(crc));
            state.pending.extend_from_slice(entry.head);
            state.pending.extend_from_slice(entry.body);
            let stored = stored_len(len);
            state.pending.extend_from_slice(&[0; 8][..stored - HEADER - len]);
            position += stored as u64;
        }
        state.room_taken += room;
        let pressing = state.pending.len() > self.settings.pending_bytes_max / 2
            || self.short_of_room.load(Ordering::Relaxed) > 0;
        if pressing && state.group.ask() && !state.writing {
            self.work.notify_one();
        }
        Part { group: state.group.clone(), from, end: position }
    }

    /// Everything appended so far.
    pub(crate) fn everything(&self) -> Option<Part> {
        let state = self.state.lock();
        let end = state.base + state.pending.len() as u64;
        if !state.pending.is_empty() {
            return Some(Part { group: state.group.clone(), from: state.base, end });
        }
        // What is being written ends where the pending bytes begin.
        (!state.previous.is_finished()).then(|| Part {
            group: state.previous.clone(),
            from: self.durable(),
            end: state.base,
        })
    }

    /// Has `group` written as soon as nothing else is.
    pub(crate) fn ask(&self, group: &Arc<Group>) {
        if !self.settings.background {
            self.lead(group);
        } else if group.ask() {
            let state = self.state.lock();
            if Arc::ptr_eq(&state.group, group) && !state.writing {
                self.work.notify_one();
            }
        }
    }

    /// Writes `group` on this thread, unless somebody is writing: then it is asked for. Whether it is finished.
    pub(crate) fn lead(&self, group: &Arc<Group>) -> bool {
        if group.is_finished() {
            return true;
        }
        let mut state = self.state.lock();
        if !Arc::ptr_eq(&state.group, group) {
            return group.is_finished();
        }
        // Whoever writes now goes on with this group, or leaves it to the writing thread.
        group.ask();
        let mut goes_on = !state.writing;
        while goes_on {
            state = self.write(state);
            // Without a writing thread, nobody else would hear those who asked meanwhile.
            goes_on = !self.settings.background
                && !state.writing
                && state.group.is_asked()
                && !state.pending.is_empty();
        }
        group.is_finished()
    }

    /// Where the last confirmed record ends.
    pub(crate) fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Acquire)
    }

    /// The writing thread: writes groups that somebody asked for until told to stop.
    pub(crate) fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if !state.writing && state.group.is_asked() && !state.pending.is_empty() {
                state = self.write(state);
            } else if state.stopping {
                return;
            } else {
                self.work.wait(&mut state);
            }
        }
    }

    pub(crate) fn stop(&self) {
        self.room.close();
        let mut state = self.state.lock();
        state.stopping = true;
        self.work.notify_all();
    }

    /// Writes the group gathered so far. The caller saw that nobody is writing.
    ///
    /// An empty group is possible when a caller without background asks; it is left as it is.
    fn write<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.pending.is_empty() {
            return state;
        }
        state.writing = true;
        let group = std::mem::take(&mut state.group);
        state.previous = group.clone();
        let spare = std::mem::take(&mut state.spare);
        let mut buffer = std::mem::replace(&mut state.pending, spare);
        let base = state.base;
        let end = base + buffer.len() as u64;
        state.base = end;
        let room = std::mem::take(&mut state.room_taken);
        drop(state);

        let (outcome, confirmed) = {
            let mut writer = self.writer.lock();
            (writer.write(base, &mut buffer, &self.counters), writer.confirmed())
        };
        self.counters.groups.fetch_add(1, Ordering::Relaxed);
        if outcome.error.is_some() {
            self.counters.failed_groups.fetch_add(1, Ordering::Relaxed);
        }
        self.confirmed.store(confirmed, Ordering::Release);
        // Also after a failure: what was given up is not readable, but what follows it will be.
        self.durable.store(end, Ordering::Release);
        buffer.clear();

        let mut state = self.state.lock();
        state.spare = buffer;
        if state.pending.is_empty() {
            // The buffer just used is the one the processor's caches know.
            let state = &mut *state;
            std::mem::swap(&mut state.pending, &mut state.spare);
        }
        state.writing = false;
        if !state.pending.is_empty() && (state.group.is_awaited() || state.group.is_asked()) {
            state.group.ask();
            self.work.notify_one();
        }
        drop(state);
        self.room.add_permits(room);
        group.finish(outcome);
        self.state.lock()
    }
}

/// Counts itself while it lives.
struct Short<'a>(&'a AtomicUsize);

impl<'a> Short<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Short<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

//! Waiting until records are durable: one outcome per group, however many records it has.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;

use super::{
    block_on::block_on,
    error::{CommitError, CommitErrorKind},
    shared::Shared,
};

/// The records that one write and one sync make durable.
#[derive(Debug, Default)]
pub(crate) struct Group {
    outcome: OnceLock<Outcome>,
    /// Somebody wants it written now. Set once, so that only the first waiter takes the log's lock.
    asked: AtomicBool,
    /// Commits of this group that were not left for later. They do not start a write, but keep one going: the
    /// next group follows without its waiters having to be woken first.
    awaited: AtomicUsize,
    waiters: Mutex<Vec<Option<Waker>>>,
}

/// How far a group came.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Everything before is durable.
    pub(crate) durable: u64,
    /// Everything from here on was never handed to the disk.
    pub(crate) untried: u64,
    pub(crate) error: Option<Arc<io::Error>>,
}

impl Group {
    /// Records the outcome and wakes everybody who waits for it.
    pub(crate) fn finish(&self, outcome: Outcome) {
        let waiters = {
            let mut waiters = self.waiters.lock();
            self.outcome.set(outcome).expect("a group is written once");
            std::mem::take(&mut *waiters)
        };
        waiters.into_iter().flatten().for_each(Waker::wake);
    }

    /// Whether this is the first time that somebody asks.
    pub(crate) fn ask(&self) -> bool {
        !self.asked.load(Ordering::Relaxed) && !self.asked.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Whether somebody holds a commit of it.
    pub(crate) fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.outcome.get().is_some()
    }
}

/// A range of records within one group.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) group: Arc<Group>,
    pub(crate) from: u64,
    pub(crate) end: u64,
}

impl Part {
    fn await_it(&self) {
        self.group.awaited.fetch_add(1, Ordering::Relaxed);
    }

    fn result(&self) -> Option<Result<(), CommitError>> {
        let outcome = self.group.outcome.get()?;
        if self.end <= outcome.durable {
            return Some(Ok(()));
        }
        let kind = if self.from < outcome.untried {
            CommitErrorKind::MaybeStored
        } else {
            CommitErrorKind::NotStored
        };
        let source = outcome.error.clone().expect("a group that is not durable says why");
        Some(Err(CommitError { kind, source }))
    }
}

/// Resolves when the records it stands for are durable.
///
/// A group of records begins to be written as soon as somebody awaits, [waits](Self::wait) for or drops one
/// of its commits and the group before is through; no timer holds it back. [`later`](Self::later) is the
/// exception.
///
/// # Cancel safety
/// Dropping a commit takes nothing back: the records are written all the same.
///
/// # Errors
/// A [`CommitError`] says whether the records may be stored.
#[derive(Debug)]
#[must_use = "records are durable only once their commit resolves"]
pub struct Commit {
    shared: Arc<Shared>,
    part: Option<Part>,
    /// Further parts, when a batch larger than the pending bytes was spread over several groups.
    rest: Vec<Part>,
    /// Where this commit's waker is among the waiters of its current group.
    slot: Option<usize>,
    failed: Option<CommitError>,
    /// Some of it is durable.
    stored: bool,
}

impl Commit {
    pub(crate) fn new(shared: Arc<Shared>, part: Option<Part>) -> Self {
        part.iter().for_each(Part::await_it);
        Self { shared, part, rest: Vec::new(), slot: None, failed: None, stored: false }
    }

    /// Adds records that were appended after those of this commit.
    pub(crate) fn extend(&mut self, part: Part) {
        match &mut self.part {
            Some(last) if self.rest.is_empty() && Arc::ptr_eq(&last.group, &part.group) => {
                last.end = part.end;
                return;
            }
            _ => part.await_it(),
        }
        match &mut self.part {
            None => self.part = Some(part),
            Some(_) => self.rest.push(part),
        }
    }

    /// Waits on this thread. When no group is being written, this thread writes the group itself, which
    /// saves two switches between threads. Not for the threads of an async runtime.
    ///
    /// # Errors
    /// As the future.
    pub fn wait(mut self) -> Result<(), CommitError> {
        while let Some(part) = &self.part
            && self.shared.lead(&part.group)
        {
            self.step();
        }
        block_on(self)
    }

    /// Gives up waiting and does not ask for the records to be written now: they go with the next group
    /// somebody asks for, when half of the pending bytes are used, or when the log is closed.
    pub fn later(mut self) {
        self.leave();
        for part in self.part.take().into_iter().chain(self.rest.drain(..)) {
            part.group.awaited.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether the records are durable; `None` as long as that is not known. Does not ask for writing.
    pub fn outcome(&self) -> Option<Result<(), CommitError>> {
        let (mut failed, mut stored) = (self.failed.clone(), self.stored);
        for part in self.part.iter().chain(&self.rest) {
            note(part.result()?, &mut failed, &mut stored);
        }
        Some(whole(failed, stored))
    }

    /// Moves on from a finished part.
    fn step(&mut self) -> bool {
        let Some(result) = self.part.as_ref().and_then(Part::result) else { return false };
        note(result, &mut self.failed, &mut self.stored);
        self.slot = None;
        self.part = (!self.rest.is_empty()).then(|| self.rest.remove(0));
        true
    }

    fn finish(&mut self) -> Result<(), CommitError> {
        whole(self.failed.take(), self.stored)
    }

    /// Takes this commit's waker back.
    fn leave(&mut self) {
        if let (Some(slot), Some(part)) = (self.slot.take(), &self.part)
            && let Some(waker) = part.group.waiters.lock().get_mut(slot)
        {
            *waker = None;
        }
    }
}

/// Notes what became of a part. The first failure is reported; "may be stored" outweighs "not stored".
fn note(result: Result<(), CommitError>, failed: &mut Option<CommitError>, stored: &mut bool) {
    match result {
        Ok(()) => *stored = true,
        Err(error) => {
            let keep = failed.as_ref().is_some_and(|failed| {
                failed.kind == CommitErrorKind::MaybeStored || error.kind == CommitErrorKind::NotStored
            });
            if !keep {
                *failed = Some(error);
            }
        }
    }
}

/// What became of all parts: of a batch of which some is durable nobody may say that it is not stored.
fn whole(failed: Option<CommitError>, stored: bool) -> Result<(), CommitError> {
    match failed {
        None => Ok(()),
        Some(error) if stored => Err(CommitError { kind: CommitErrorKind::MaybeStored, ..error }),
        Some(error) => Err(error),
    }
}

impl Future for Commit {
    type Output = Result<(), CommitError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        while let Some(part) = &this.part {
            if part.group.is_finished() {
                this.step();
                continue;
            }
            this.shared.ask(&part.group);
            let mut waiters = part.group.waiters.lock();
            if part.group.is_finished() {
                continue;
            }
            match this.slot {
                Some(slot) => match &mut waiters[slot] {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                },
                None => {
                    this.slot = Some(waiters.len());
                    waiters.push(Some(cx.waker().clone()));
                }
            }
            return Poll::Pending;
        }
        Poll::Ready(this.finish())
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        self.leave();
        for part in self.part.iter().chain(&self.rest) {
            if !part.group.is_finished() {
                self.shared.ask(&part.group);
            }
        }
    }
}

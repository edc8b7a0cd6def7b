//! What hyper takes of a body, and its task that does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;

use crate::http2::tasks;

/// The task of hyper's that takes the pieces. While one of them waits for the peer's window the task does not ask for the next, and
/// would never see that none comes: so it is aborted, which resets its stream.
#[derive(Default)]
pub(crate) struct Taker {
    pub(super) task: OnceLock<tasks::Abort>,
    /// It waits for the next piece.
    pub(super) waits: AtomicBool,
    /// No more comes, and the last piece did not.
    pub(super) broken: AtomicBool,
    /// Bytes of [`Portion`]s that were written.
    taken: AtomicU64,
    /// Somebody waits for all of them to be.
    drains: AtomicBool,
    drained: AtomicWaker,
    /// A portion was thrown away before all of it was written.
    lost: AtomicBool,
    whole: AtomicBool,
}

impl Taker {
    /// How many bytes were written; of an answer to a client.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Hyper has taken the end, and every byte has found its place in the client's window.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::SeqCst)
    }

    /// Ready when as many bytes as were given were written.
    pub(super) fn poll_taken(&self, given: u64, cx: &mut Context<'_>) -> Poll<()> {
        if self.taken.load(Ordering::SeqCst) == given {
            return Poll::Ready(());
        }
        self.drained.register(cx.waker());
        self.drains.store(true, Ordering::SeqCst);
        // What was written before it could see that somebody waits.
        if self.taken.load(Ordering::SeqCst) == given { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Hyper lets go of a body that has given its end. What it had of it and gave to nobody it has thrown away before.
    pub(super) fn end(&self) {
        let broken = self.broken.load(Ordering::SeqCst) || self.lost.load(Ordering::SeqCst);
        self.whole.store(!broken, Ordering::SeqCst);
    }
}

/// Bytes that tell when they are written.
pub(crate) struct Portion {
    data: Bytes,
    taker: Option<Arc<Taker>>,
}

impl Portion {
    pub(crate) fn new(data: Bytes, taker: Option<Arc<Taker>>) -> Portion {
        Portion { data, taker }
    }
}

impl Buf for Portion {
    fn remaining(&self) -> usize {
        self.data.len()
    }
    fn chunk(&self) -> &[u8] {
        &self.data
    }
    fn advance(&mut self, count: usize) {
        self.data.advance(count);
        let Some(taker) = &self.taker else { return };
        taker.taken.fetch_add(count as u64, Ordering::SeqCst);
        if self.data.is_empty() && taker.drains.load(Ordering::SeqCst) {
            taker.drained.wake();
        }
    }
}

impl Drop for Portion {
    fn drop(&mut self) {
        if let Some(taker) = self.taker.as_ref().filter(|_| !self.data.is_empty()) {
            taker.lost.store(true, Ordering::SeqCst);
        }
    }
}

//! Who waits for what became of a batch, and what is told.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use millstream_message::{Outcomes, PublishOutcome};
use parking_lot::Mutex;

use crate::link::closed_error;

/// What is known of a link's batches. They nearly always become known in the order in which they were handed over, and all of
/// a batch is confirmed: a mark says so of any number, and takes no memory for each. What became of the others, and of those that
/// become known before one that holds up the mark, is kept until it is asked for.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// The batches below this number are known.
    known: AtomicU64,
    /// How many of those have outcomes that were not asked for yet.
    others: AtomicUsize,
    rest: Mutex<Rest>,
}

#[derive(Debug, Default)]
struct Rest {
    others: BTreeMap<u64, Outcomes>,
    /// Known above the mark.
    early: BTreeMap<u64, Outcomes>,
    waiting: BTreeMap<u64, Waker>,
    /// Not known yet, and nobody will ask.
    forgotten: BTreeSet<u64>,
    /// Nothing will be told any more.
    over: bool,
}

impl Board {
    /// The batches below this number are known. All of them are confirmed, but for these, and those that were told early.
    pub(crate) fn tell(&self, known: u64, others: Vec<(u64, Outcomes)>) {
        let mut rest = self.rest.lock();
        for (batch, outcomes) in others {
            if !rest.forgotten.contains(&batch) {
                rest.others.insert(batch, outcomes);
                self.others.fetch_add(1, Ordering::Relaxed);
            }
        }
        if !rest.early.is_empty() {
            let later = rest.early.split_off(&known);
            for (batch, outcomes) in std::mem::replace(&mut rest.early, later) {
                if !outcomes.all_confirmed() {
                    rest.others.insert(batch, outcomes);
                    self.others.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        if !rest.forgotten.is_empty() {
            rest.forgotten = rest.forgotten.split_off(&known);
        }
        // Who sees the mark sees what was counted before.
        self.known.store(known, Ordering::Release);
        let later = if rest.waiting.is_empty() { BTreeMap::new() } else { rest.waiting.split_off(&known) };
        let woken = std::mem::replace(&mut rest.waiting, later);
        drop(rest);
        woken.into_values().for_each(Waker::wake);
    }

    /// These batches are known, though one before them is not.
    pub(crate) fn tell_early(&self, told: Vec<(u64, Outcomes)>) {
        let mut woken = Vec::new();
        let mut rest = self.rest.lock();
        for (batch, outcomes) in told {
            woken.extend(rest.waiting.remove(&batch));
            if !rest.forgotten.contains(&batch) {
                rest.early.insert(batch, outcomes);
            }
        }
        drop(rest);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Nothing will be told any more.
    pub(crate) fn end(&self) {
        let mut rest = self.rest.lock();
        rest.over = true;
        let woken = std::mem::take(&mut rest.waiting);
        drop(rest);
        woken.into_values().for_each(Waker::wake);
    }

    /// What became of a batch that is known.
    fn take(&self, batch: u64, total: usize) -> Outcomes {
        if self.others.load(Ordering::Relaxed) == 0 {
            return Outcomes::confirmed(total);
        }
        match self.rest.lock().others.remove(&batch) {
            None => Outcomes::confirmed(total),
            Some(outcomes) => {
                self.others.fetch_sub(1, Ordering::Relaxed);
                outcomes
            }
        }
    }
}

/// What will become of one batch.
pub(crate) struct Told {
    board: Arc<Board>,
    batch: u64,
    /// How many messages it has.
    total: usize,
    done: bool,
}

impl Told {
    /// Batches are numbered from 0, in the order in which they were handed over.
    pub(crate) fn new(board: Arc<Board>, batch: u64, total: usize) -> Told {
        Told { board, batch, total, done: false }
    }
}

impl Future for Told {
    type Output = Outcomes;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcomes> {
        let Told { board, batch, total, done } = self.get_mut();
        if *batch >= board.known.load(Ordering::Acquire) {
            let mut rest = board.rest.lock();
            // Nobody tells anything while the lock is held.
            if *batch >= board.known.load(Ordering::Relaxed) {
                if let Some(outcomes) = rest.early.remove(batch) {
                    *done = true;
                    return Poll::Ready(outcomes);
                }
                if !rest.over {
                    rest.waiting.insert(*batch, cx.waker().clone());
                    return Poll::Pending;
                }
                *done = true;
                return Poll::Ready(Outcomes::all(*total, &PublishOutcome::Unconfirmed(closed_error())));
            }
        }
        *done = true;
        Poll::Ready(board.take(*batch, *total))
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut rest = self.board.rest.lock();
        rest.waiting.remove(&self.batch);
        if self.batch >= self.board.known.load(Ordering::Relaxed) {
            if rest.early.remove(&self.batch).is_none() {
                rest.forgotten.insert(self.batch);
            }
        } else if rest.others.remove(&self.batch).is_some() {
            self.board.others.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use millstream_message::Refusal;

    fn told(board: &Arc<Board>, batches: std::ops::Range<u64>) -> Vec<Told> {
        batches.map(|batch| Told::new(board.clone(), batch, 1)).collect()
    }

    fn refused() -> Outcomes {
        Outcomes::all(1, &PublishOutcome::Refused(Refusal::Atomic { index: 0 }))
    }

    #[tokio::test]
    async fn who_waits_is_woken_in_any_order() {
        let board = Arc::new(Board::default());
        let waiting = told(&board, 0..5).into_iter().rev().map(tokio::spawn).collect::<Vec<_>>();
        tokio::task::yield_now().await;
        board.tell(2, vec![(1, refused())]);
        board.tell(5, vec![(2, refused())]);
        let mut confirmed = Vec::new();
        for outcomes in waiting {
            confirmed.push(outcomes.await.expect("no panic").all_confirmed());
        }
        assert_eq!(confirmed, [true, true, false, false, true]);
        assert_eq!(board.others.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn nothing_is_kept_for_those_who_have_gone() {
        let board = Arc::new(Board::default());
        let mut all = told(&board, 0..4);
        drop(all.remove(1));
        assert!((&mut all[0]).now_or_never().is_none(), "it waits");
        drop(all.remove(0));
        board.tell(3, vec![(0, refused()), (1, refused()), (2, refused())]);
        drop(all.remove(0));
        let rest = board.rest.lock();
        assert!(rest.others.is_empty() && rest.waiting.is_empty() && rest.forgotten.is_empty());
        assert_eq!(board.others.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_known_early_is_told_once_whoever_asks_when() {
        let board = Arc::new(Board::default());
        let mut all = told(&board, 0..5);
        drop(all.remove(1));
        let confirmed = || Outcomes::confirmed(1);
        board.tell_early(vec![(1, refused()), (2, refused()), (3, refused()), (4, confirmed())]);
        assert!((&mut all[0]).now_or_never().is_none(), "it holds nobody up");
        assert!(!all.remove(1).now_or_never().expect("known").all_confirmed());
        board.tell(5, Vec::new());
        let confirmed = all.into_iter().map(|told| told.now_or_never().expect("known").all_confirmed());
        assert_eq!(confirmed.collect::<Vec<_>>(), [true, false, true]);
        let rest = board.rest.lock();
        assert!(rest.others.is_empty() && rest.early.is_empty() && rest.forgotten.is_empty());
        assert_eq!(board.others.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn at_the_end_nothing_is_known_of_what_was_not_told() {
        let board = Arc::new(Board::default());
        let mut all = told(&board, 0..2);
        board.tell(1, Vec::new());
        board.end();
        assert!(all.remove(0).now_or_never().expect("known").all_confirmed());
        let outcomes = all.remove(0).now_or_never().expect("it is over");
        assert!(matches!(outcomes.get(0), PublishOutcome::Unconfirmed(_)));
    }
}

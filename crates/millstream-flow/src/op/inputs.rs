//! Several flows as one, of which some come and go while it runs.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

use crate::flow::{Flow, Step};
use crate::op::boxed::BoxFlow;
use crate::op::merge::Merge;
use crate::pipe::Pipe;
use crate::scope::{Scope, StopSignal};
use crate::token::Settle;

/// Where new inputs wait for the flow to take them.
pub(crate) struct Board<T, K: Settle> {
    notes: Mutex<Notes<T, K>>,
    handles: AtomicUsize,
    stage: AtomicWaker,
}

struct Notes<T, K: Settle> {
    new: Vec<BoxFlow<T, K>>,
    /// The flow is gone: nobody will take anything.
    ended: bool,
}

impl<T, K: Settle> Board<T, K> {
    fn notes(&self) -> MutexGuard<'_, Notes<T, K>> {
        self.notes.lock().expect("nothing panics while the notes are held")
    }
}

/// Adds inputs to a flow. See [`Pipe::inputs`]. The flow ends when all inputs have ended and all handles are dropped, or
/// the run was stopped.
pub struct Inputs<T, K: Settle = ()> {
    board: Arc<Board<T, K>>,
    scope: Arc<Scope>,
}

/// An input that was added.
#[derive(Debug, Clone)]
pub struct Input {
    scope: Arc<Scope>,
}

impl Input {
    /// Ends this input: its source accepts nothing more, and what it has accepted flows on. Dropping the handle changes
    /// nothing.
    pub fn stop(&self) {
        self.scope.stop();
    }
}

/// How many items of an input may wait for their turn.
const WAITING: usize = 256;

impl<T: Send + 'static, K: Settle> Inputs<T, K> {
    pub(crate) fn new(scope: &Arc<Scope>) -> (Self, Changing<T, K>) {
        let notes = Mutex::new(Notes { new: Vec::new(), ended: false });
        let board = Arc::new(Board { notes, handles: AtomicUsize::new(1), stage: AtomicWaker::new() });
        let flow = Changing { merge: Merge::new([]), board: board.clone(), stop: scope.stop_signal() };
        (Inputs { board, scope: scope.clone() }, flow)
    }

    /// Adds an input, which runs in tasks of its own with a buffer of 256 items. `None` if the flow has ended or was
    /// dropped.
    ///
    /// Its account is the run's, and stays part of it when it has ended: two to three kilobytes for each input that was ever
    /// added.
    pub fn add<F>(&self, pipe: Pipe<F>) -> Option<Input>
    where
        F: Flow<Item = T, Token = K> + Send + 'static,
    {
        let own = pipe.scope().root();
        let pipe = pipe.buffer(WAITING).boxed();
        let run = self.scope.root();
        let mut notes = self.board.notes();
        if notes.ended {
            return None;
        }
        run.adopt(&own);
        notes.new.push(pipe.into_flow());
        drop(notes);
        if run.is_stopping() {
            own.stop();
        }
        self.board.stage.wake();
        Some(Input { scope: own })
    }
}

impl<T, K: Settle> Clone for Inputs<T, K> {
    fn clone(&self) -> Self {
        self.board.handles.fetch_add(1, Ordering::Relaxed);
        Inputs { board: self.board.clone(), scope: self.scope.clone() }
    }
}

impl<T, K: Settle> Drop for Inputs<T, K> {
    fn drop(&mut self) {
        if self.board.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.board.stage.wake();
        }
    }
}

impl<T, K: Settle> fmt::Debug for Inputs<T, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inputs").finish_non_exhaustive()
    }
}

/// See [`Pipe::inputs`].
pub struct Changing<T, K: Settle> {
    merge: Merge<BoxFlow<T, K>>,
    board: Arc<Board<T, K>>,
    stop: Arc<StopSignal>,
}

impl<T, K: Settle> Changing<T, K> {
    /// Whether nothing can come any more, for want of handles or after the word to stop. From then on nothing is added.
    fn is_over(&self, cx: &Context<'_>, closed: bool) -> bool {
        self.stop.register(cx.waker());
        if !closed && !self.stop.is_raised() {
            return false;
        }
        let mut notes = self.board.notes();
        notes.ended = notes.new.is_empty();
        notes.ended
    }
}

impl<T, K: Settle> Flow for Changing<T, K> {
    type Item = T;
    type Token = K;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(T, K) -> ControlFlow<()>,
    {
        self.board.stage.register(cx.waker());
        // Before the notes: the last handle may be dropped just after it has added something.
        let closed = self.board.handles.load(Ordering::Acquire) == 0;
        let new = std::mem::take(&mut self.board.notes().new);
        new.into_iter().for_each(|flow| self.merge.add(flow));
        if self.merge.is_empty() {
            if self.is_over(cx, closed) {
                return Poll::Ready(Step::End);
            }
            // What was added just now has woken the stage.
            return Poll::Pending;
        }
        match self.merge.poll_drive(cx, max, sink) {
            // The last one there was; the next call looks for others.
            Poll::Ready(Step::End) => Poll::Ready(Step::More),
            step => step,
        }
    }
}

impl<T, K: Settle> Drop for Changing<T, K> {
    fn drop(&mut self) {
        let mut notes = self.board.notes();
        notes.ended = true;
        let new = std::mem::take(&mut notes.new);
        drop(notes);
        drop(new);
    }
}

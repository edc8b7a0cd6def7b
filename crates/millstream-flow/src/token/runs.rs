//! Tokens of many items as runs of consecutive numbers.

use std::fmt;
use std::mem;
use std::sync::atomic::Ordering;

use super::{InnerRef, Outcome, Settle, Token, unwound};

/// Consecutive items of one tracker. Owns `len` references.
struct Run {
    inner: InnerRef,
    first: u64,
    len: u64,
}

/// The tokens of a group of items (a batch, a chunk), settled together.
///
/// Items that entered in sequence are one run, whatever their number, so that confirming a batch of a thousand
/// costs what confirming one item costs.
#[derive(Default)]
#[must_use = "tokens that are dropped mean: deliver the items again"]
pub struct TokenRuns {
    /// Kept apart from `more` so that a group of consecutive items never allocates.
    last: Option<Run>,
    more: Vec<Run>,
}

impl TokenRuns {
    /// Adds one token.
    #[inline]
    pub fn push(&mut self, token: Token) {
        let (inner, item) = (token.inner, token.item);
        mem::forget(token);
        match &mut self.last {
            Some(run) if run.inner == inner && run.first + run.len == item => run.len += 1,
            _ => self.push_run(Run { inner, first: item, len: 1 }),
        }
    }

    fn push_run(&mut self, run: Run) {
        if let Some(before) = self.last.replace(run) {
            self.more.push(before);
        }
    }

    /// How many items the group stands for.
    pub fn items(&self) -> u64 {
        self.more.iter().chain(&self.last).map(|run| run.len).sum()
    }

    /// True if the group has no item.
    pub fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// Takes the group apart again, in the order in which it was put together.
    pub fn into_tokens(mut self) -> impl Iterator<Item = Token> + Send {
        let runs: Vec<Run> = self.more.drain(..).chain(self.last.take()).collect();
        Tokens { runs: runs.into_iter(), current: None }
    }

    fn drain(&mut self) -> impl Iterator<Item = Run> {
        self.more.drain(..).chain(self.last.take())
    }

    /// Settles every run, and counts once for all runs in a row of one tracker: a filter that drops every other
    /// item makes many short runs.
    fn settle_all(&mut self, outcome: &Outcome) {
        let mut runs = self.drain().peekable();
        while let Some(Run { inner, first, len }) = runs.next() {
            let mut refs = len as usize;
            let mut count = inner.get().settle_uncounted(first..first + len, outcome);
            while let Some(Run { first, len, .. }) = runs.next_if(|run| run.inner == inner) {
                refs += len as usize;
                count += inner.get().settle_uncounted(first..first + len, outcome);
            }
            inner.get().account.count(count, outcome);
            // SAFETY: the runs owned one reference for each of their items.
            unsafe { inner.release(refs) }
        }
    }
}

/// Hands out the tokens of runs; what is not handed out is dropped as tokens are.
struct Tokens {
    runs: std::vec::IntoIter<Run>,
    current: Option<Run>,
}

impl Iterator for Tokens {
    type Item = Token;
    fn next(&mut self) -> Option<Token> {
        let mut run = match self.current.take() {
            Some(run) => run,
            None => self.runs.next()?,
        };
        let token = Token { inner: run.inner, item: run.first };
        run.first += 1;
        run.len -= 1;
        if run.len > 0 {
            self.current = Some(run);
        }
        Some(token)
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        for token in self.by_ref() {
            drop(token);
        }
    }
}

impl Settle for TokenRuns {
    const TRACKED: bool = true;
    type Group = TokenRuns;

    fn join(mut self, group: &mut TokenRuns) {
        for run in self.drain() {
            match &mut group.last {
                Some(last) if last.inner == run.inner && last.first + last.len == run.first => {
                    last.len += run.len
                }
                _ => group.push_run(run),
            }
        }
    }

    fn split_first(&mut self, parts: usize) -> TokenRuns {
        if self.items() != parts as u64 {
            return self.share();
        }
        let oldest =
            self.more.first_mut().or(self.last.as_mut()).expect("a group of several items has a run");
        let first = Run { inner: oldest.inner, first: oldest.first, len: 1 };
        oldest.first += 1;
        oldest.len -= 1;
        if oldest.len == 0 {
            // With one run it would be `last`, and a single item is never split; so it is the first of `more`.
            self.more.remove(0);
        }
        TokenRuns { last: Some(first), more: Vec::new() }
    }

    fn share(&self) -> TokenRuns {
        let mut group = TokenRuns::default();
        for run in self.more.iter().chain(&self.last) {
            let inner = run.inner.get();
            inner.refs.fetch_add(run.len as usize, Ordering::Relaxed);
            for item in run.first..run.first + run.len {
                inner.share(item);
            }
            group.push_run(Run { inner: run.inner, first: run.first, len: run.len });
        }
        group
    }

    fn settle(mut self, outcome: &Outcome) {
        self.settle_all(outcome);
    }
}

impl Drop for TokenRuns {
    fn drop(&mut self) {
        if self.is_empty() {
            return;
        }
        if unwound::catching() {
            for token in mem::take(self).into_tokens() {
                drop(token);
            }
            return;
        }
        self.settle_all(&Outcome::Abandoned);
    }
}

impl fmt::Debug for TokenRuns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.more.iter().chain(&self.last).map(|run| run.first..run.first + run.len))
            .finish()
    }
}

//! Tokens of many items as runs of consecutive numbers.

use std::cell::Cell;
use std::fmt;
use std::mem;
use std::sync::atomic::Ordering;

use super::{InnerRef, Outcome, Settle, Token, shared, unwound};

/// Items of one tracker in the order of their numbers: consecutive, or some of 64. Owns `len` references.
///
/// A filter that keeps every other item would make a run of one item each; as bits, 32 of them are one run.
pub(super) struct Run {
    inner: InnerRef,
    first: u64,
    len: u64,
    /// 0 if the items are consecutive. Else bit `n` says that item `first + n` is one of them; bit 0 is set.
    bits: u64,
}

impl Run {
    #[inline]
    fn consecutive(inner: InnerRef, first: u64, len: u64) -> Self {
        Run { inner, first, len, bits: 0 }
    }

    /// Adds an item behind all others, if it is near enough.
    #[inline]
    fn push(&mut self, inner: InnerRef, item: u64) -> bool {
        if self.inner != inner {
            return false;
        }
        let at = item.wrapping_sub(self.first);
        if self.bits == 0 {
            if at == self.len {
                self.len += 1;
                return true;
            }
            if at >= 64 || at < self.len {
                return false;
            }
            self.bits = (1 << self.len) - 1;
        } else if at >= 64 || self.bits >> at != 0 {
            return false;
        }
        self.bits |= 1 << at;
        self.len += 1;
        true
    }

    /// Takes the first item off a run of several.
    fn pop_first(&mut self) -> u64 {
        let first = self.first;
        let gap = if self.bits == 0 { 1 } else { 1 + (self.bits >> 1).trailing_zeros() };
        self.bits = self.bits.unbounded_shr(gap);
        self.first += u64::from(gap);
        self.len -= 1;
        first
    }

    /// The items' numbers.
    fn items(&self) -> impl Iterator<Item = u64> + use<> {
        let (first, bits) = (self.first, self.bits);
        let end = if bits == 0 { self.len } else { 64 };
        (0..end).filter(move |at| bits == 0 || bits >> at & 1 != 0).map(move |at| first + at)
    }

    /// Settles without counting; see [`Inner::settle_uncounted`](super::Inner).
    fn settle_uncounted(&self, outcome: &Outcome) -> u64 {
        match self.bits {
            0 => self.inner.get().settle_uncounted(self.first..self.first + self.len, outcome),
            bits => self.inner.get().settle_some_uncounted(self.first, bits, outcome),
        }
    }
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
    pub(super) more: Vec<Run>,
}

thread_local! {
    /// The room of a group that was settled, for the next one: a group a quantum would allocate each time.
    static SPARE: Cell<Vec<Run>> = const { Cell::new(Vec::new()) };
}

/// Larger rooms go back to the allocator.
const SPARE_MAX: usize = 4096;

impl TokenRuns {
    /// Adds one token.
    #[inline]
    pub fn push(&mut self, token: Token) {
        let (inner, item) = (token.inner, token.item);
        mem::forget(token);
        if !self.last.as_mut().is_some_and(|run| run.push(inner, item)) {
            self.push_run(Run::consecutive(inner, item, 1));
        }
    }

    #[cold]
    #[inline(never)]
    fn push_run(&mut self, run: Run) {
        if let Some(before) = self.last.replace(run) {
            if self.more.capacity() == 0 {
                self.more = SPARE.try_with(Cell::take).unwrap_or_default();
            }
            self.more.push(before);
        }
    }

    /// Keeps the room for the next group.
    fn give_back(&mut self) {
        if self.more.is_empty() && (1..=SPARE_MAX).contains(&self.more.capacity()) {
            let _ = SPARE.try_with(|spare| spare.set(mem::take(&mut self.more)));
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
        while let Some(run) = runs.next() {
            let inner = run.inner;
            let mut refs = run.len as usize;
            let mut count = run.settle_uncounted(outcome);
            while let Some(run) = runs.next_if(|run| run.inner == inner) {
                refs += run.len as usize;
                count += run.settle_uncounted(outcome);
            }
            inner.get().account.count(count, outcome);
            // SAFETY: the runs owned one reference for each of their items.
            unsafe { inner.release(refs) }
        }
        drop(runs);
        self.give_back();
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
        let token = Token { inner: run.inner, item: run.pop_first() };
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
                Some(last)
                    if last.bits | run.bits == 0
                        && last.inner == run.inner
                        && last.first + last.len == run.first =>
                {
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
        let first = Run::consecutive(oldest.inner, oldest.pop_first(), 1);
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
            match run.bits {
                0 => inner.share(shared::words(run.first..run.first + run.len)),
                bits => inner.share(shared::words_of(run.first, bits)),
            }
            group.push_run(Run { ..*run });
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
        f.debug_list().entries(self.more.iter().chain(&self.last).flat_map(Run::items)).finish()
    }
}

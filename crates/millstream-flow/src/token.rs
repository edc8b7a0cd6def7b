//! Settlement: the small token that travels with an item from a source that must be acknowledged.
//!
//! A [`Tracker`] issues numbered [`Token`]s; every token is settled once, with an [`Outcome`], or dropped, which
//! means "deliver again". Settling is told to the source's [`Settler`] as ranges of numbers. Flows that nobody
//! has to acknowledge carry `()` instead, which costs nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

use crate::failure::Failure;

mod runs;
mod shared;
#[cfg(test)]
mod tests;
mod unwound;

pub use runs::TokenRuns;
use shared::{Ended, PAGE, Shared};
pub(crate) use unwound::CatchScope;

/// How an item ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Outcome {
    /// The sink confirmed it.
    Completed,
    /// An operator of this name dropped it by declaration (a filter, a full buffer, a skipped error).
    Dropped(Arc<str>),
    /// It failed and was handed to a dead-letter destination, or is the source's to dead-letter now.
    Dead(Arc<Failure>),
    /// Nobody settled it: the flow was stopped or failed while the item was under way. It must be delivered
    /// again.
    Abandoned,
}

impl Outcome {
    /// Which of several outcomes of the parts of one item speaks for the item.
    fn rank(&self) -> u8 {
        match self {
            Outcome::Dropped(_) => 0,
            Outcome::Completed => 1,
            Outcome::Dead(_) => 2,
            Outcome::Abandoned => 3,
        }
    }
}

/// The side of a source that hears how its items ended.
pub trait Settler: Send + Sync + 'static {
    /// The items numbered `items` (by their tracker, from 0) ended with `outcome`. Called once for each item,
    /// from whichever thread settles, in the order of settlement, which need not be the order of issue.
    ///
    /// It must not block: hand the range to whoever does the work.
    fn settle(&self, items: Range<u64>, outcome: &Outcome);

    /// As [`settle`](Self::settle), for some of 64 items: item `first + n` for each bit `n` that is set in `bits`.
    ///
    /// Calls `settle` for each range of them; one who can do better may say how.
    fn settle_some(&self, first: u64, bits: u64, outcome: &Outcome) {
        for_each_range(first, bits, |items| self.settle(items, outcome));
    }
}

/// The ranges of items whose bits are set, from the lowest.
#[inline]
fn for_each_range(first: u64, mut bits: u64, mut each: impl FnMut(Range<u64>)) {
    let mut at = first;
    while bits != 0 {
        let gap = bits.trailing_zeros();
        bits >>= gap;
        at += u64::from(gap);
        let len = bits.trailing_ones();
        each(at..at + u64::from(len));
        bits = bits.unbounded_shr(len);
        at += u64::from(len);
    }
}

impl<F: Fn(Range<u64>, &Outcome) + Send + Sync + 'static> Settler for F {
    fn settle(&self, items: Range<u64>, outcome: &Outcome) {
        self(items, outcome);
    }
}

/// What can be settled: `()` for untracked flows, [`Token`] for one item, [`TokenRuns`] for a group.
pub trait Settle: Sized + Send + 'static {
    /// Whether settling has any effect. `false` only for `()`.
    const TRACKED: bool;
    /// Whether each handle is worth keeping apart although nothing is settled: it carries an item's context.
    const CARRIES: bool = false;
    /// Many of these as one: what a batch carries.
    type Group: Settle<Group = Self::Group> + Default;

    /// Adds this to a group. The group is settled for all of its members at once.
    fn join(self, group: &mut Self::Group);
    /// The handle for the first of `parts` parts, at least two; this one stays for the rest. A group that stands
    /// for exactly `parts` items gives the first item's own token, anything else a shared handle.
    fn split_first(&mut self, parts: usize) -> Self {
        debug_assert!(parts > 1, "the last part takes the token itself");
        self.share()
    }
    /// Takes this apart into handles for `parts` parts, in order.
    fn shares(self, parts: usize) -> Shares<Self> {
        Shares { rest: Some(self), parts }
    }
    /// Another handle of the same item. The item has ended when all of its handles are settled.
    fn share(&self) -> Self;
    /// Says how the item ended.
    fn settle(self, outcome: &Outcome);
}

impl Settle for () {
    const TRACKED: bool = false;
    type Group = ();
    #[inline]
    fn join(self, _group: &mut ()) {}
    #[inline]
    fn share(&self) {}
    #[inline]
    fn settle(self, _outcome: &Outcome) {}
}

/// Handles of one token, for a known number of parts; each part's handle must be settled.
#[derive(Debug)]
pub struct Shares<K> {
    rest: Option<K>,
    parts: usize,
}

impl<K: Settle> Shares<K> {
    /// As [`next_share`](Self::next_share) of handles that settle nothing, and so need not be counted.
    #[inline(always)]
    pub(crate) fn untracked_share(&self) -> Option<K> {
        debug_assert!(!K::TRACKED, "each share is settled once");
        self.rest.as_ref().map(K::share)
    }

    /// The handle for the next part; the last part gets the token itself.
    ///
    /// Returns `None` once every part has its handle.
    #[inline]
    pub fn next_share(&mut self) -> Option<K> {
        if self.parts <= 1 {
            self.parts = 0;
            self.rest.take()
        } else {
            let parts = self.parts;
            self.parts -= 1;
            self.rest.as_mut().map(|token| token.split_first(parts))
        }
    }
}

/// What a tracker has issued and what became of it; the source of a run's ledger.
#[derive(Debug, Default)]
pub struct Account {
    received: AtomicU64,
    completed: AtomicU64,
    dead: AtomicU64,
    abandoned: AtomicU64,
    dropped: Mutex<BTreeMap<Arc<str>, u64>>,
}

impl Account {
    /// Items issued.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }
    /// Items that a sink confirmed.
    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Acquire)
    }
    /// Items that were dead-lettered.
    pub fn dead(&self) -> u64 {
        self.dead.load(Ordering::Acquire)
    }
    /// Items given up unsettled; they are to be delivered again, so the ledger has them in flight.
    pub fn abandoned(&self) -> u64 {
        self.abandoned.load(Ordering::Acquire)
    }
    /// Items dropped, by the name of what dropped them.
    pub fn dropped(&self) -> BTreeMap<Arc<str>, u64> {
        self.dropped.lock().expect("no panic while the ledger is held").clone()
    }

    fn count(&self, items: u64, outcome: &Outcome) {
        if items == 0 {
            return;
        }
        match outcome {
            Outcome::Completed => {
                self.completed.fetch_add(items, Ordering::AcqRel);
            }
            Outcome::Dead(_) => {
                self.dead.fetch_add(items, Ordering::AcqRel);
            }
            Outcome::Abandoned => {
                self.abandoned.fetch_add(items, Ordering::AcqRel);
            }
            Outcome::Dropped(name) => {
                let mut dropped = self.dropped.lock().expect("no panic while the ledger is held");
                match dropped.get_mut(name) {
                    Some(count) => *count += items,
                    None => {
                        dropped.insert(name.clone(), items);
                    }
                }
            }
        }
    }
}

/// What a tracker and its tokens share. Freed by whoever gives back the last reference.
struct Inner {
    /// One for the tracker, one for each token that exists, plus what the tracker has reserved ahead.
    refs: AtomicUsize,
    shared: Shared,
    account: Arc<Account>,
    settler: Box<dyn Settler>,
}

impl Inner {
    fn settle(&self, items: Range<u64>, outcome: &Outcome) {
        let count = self.settle_uncounted(items, outcome);
        self.account.count(count, outcome);
    }

    /// Settles without counting. Returns how many items the caller must count: those that end with this outcome.
    fn settle_uncounted(&self, items: Range<u64>, outcome: &Outcome) -> u64 {
        if self.shared.is_empty() {
            let count = items.end - items.start;
            // The source hears first: whoever sees the ledger balanced may rely on the source having been told.
            self.settler.settle(items, outcome);
            return count;
        }
        self.settle_words(shared::words(items), outcome)
    }

    /// As [`settle_uncounted`](Self::settle_uncounted), for the items whose bits are set.
    fn settle_some_uncounted(&self, first: u64, bits: u64, outcome: &Outcome) -> u64 {
        if self.shared.is_empty() {
            self.settler.settle_some(first, bits, outcome);
            return u64::from(bits.count_ones());
        }
        self.settle_words(shared::words_of(first, bits), outcome)
    }

    #[inline(never)]
    fn settle_words(&self, words: impl Iterator<Item = (u64, u64)>, outcome: &Outcome) -> u64 {
        // Items that end in a row, over pages.
        let (mut count, mut row) = (0, 0..0);
        let settle_row = |row: Range<u64>| {
            if !row.is_empty() {
                self.settler.settle(row, outcome);
            }
        };
        for (number, bits) in words {
            let Ended { so, otherwise } = self.shared.settle(number, bits, outcome);
            if so != 0 {
                let skipped = so.trailing_zeros();
                let (first, bits) = (number * PAGE + u64::from(skipped), so >> skipped);
                let ones = u64::from(bits.count_ones());
                count += ones;
                if bits.trailing_ones() != bits.count_ones() {
                    self.settler.settle_some(first, bits, outcome);
                } else if row.end == first {
                    row.end += ones;
                } else {
                    settle_row(mem::replace(&mut row, first..first + ones));
                }
            }
            for (item, outcome) in otherwise {
                self.settler.settle(item..item + 1, &outcome);
                self.account.count(1, &outcome);
            }
        }
        settle_row(row);
        count
    }

    /// One handle more for each of these items.
    fn share(&self, words: impl Iterator<Item = (u64, u64)>) {
        words.for_each(|(number, bits)| self.shared.share(number, bits));
    }
}

/// A counted pointer to [`Inner`] whose count is given and taken in bulk.
///
/// An `Arc` in every token would cost two atomic read-modify-writes an item; here a tracker reserves references
/// by the thousand and a range of settled tokens gives its references back at once.
#[derive(PartialEq, Eq, Clone, Copy)]
struct InnerRef(std::ptr::NonNull<Inner>);

// SAFETY: `Inner` is `Sync` (atomics, mutexes, a `Sync` settler) and `Send`; the pointer is only a counted handle.
unsafe impl Send for InnerRef {}
// SAFETY: as above.
unsafe impl Sync for InnerRef {}

impl InnerRef {
    fn get(&self) -> &Inner {
        // SAFETY: an `InnerRef` exists only inside a tracker, token or run, each of which owns at least one
        // counted reference, so the allocation is alive for as long as `self` is borrowed.
        unsafe { self.0.as_ref() }
    }

    /// Gives `count` references back.
    ///
    /// # Safety
    /// The caller owns `count` references and never uses them again.
    unsafe fn release(self, count: usize) {
        if self.get().refs.fetch_sub(count, Ordering::Release) == count {
            fence(Ordering::Acquire);
            // SAFETY: the count fell to zero, so this was the last reference; the pointer came from
            // `Box::into_raw` in `Tracker::new`.
            drop(unsafe { Box::from_raw(self.0.as_ptr()) });
        }
    }
}

/// Issues the tokens of one source and accounts for them.
///
/// Held by the source; `issue` is called in the order in which items enter the flow, so that token `n` belongs
/// to the `n`-th item.
///
/// ```
/// use millstream_flow::{Outcome, Settle, Tracker};
/// use std::sync::{Arc, Mutex};
///
/// let heard = Arc::new(Mutex::new(Vec::new()));
/// let mut tracker = Tracker::new({
///     let heard = heard.clone();
///     move |items: std::ops::Range<u64>, _: &Outcome| heard.lock().unwrap().push(items)
/// });
/// let (a, b) = (tracker.issue(), tracker.issue());
/// b.settle(&Outcome::Completed);
/// drop(a); // not settled: to be delivered again
/// assert_eq!(*heard.lock().unwrap(), [1..2, 0..1]);
/// assert_eq!(tracker.account().completed(), 1);
/// assert_eq!(tracker.account().abandoned(), 1);
/// ```
pub struct Tracker {
    inner: InnerRef,
    next: u64,
    /// References already counted in `refs` for tokens yet to be issued.
    reserved: usize,
}

/// How many references a tracker takes at once.
const RESERVE: usize = 4096;

impl Tracker {
    /// A tracker whose items' ends are told to `settler`.
    pub fn new(settler: impl Settler) -> Self {
        let inner = Box::new(Inner {
            refs: AtomicUsize::new(1),
            shared: Shared::default(),
            account: Arc::default(),
            settler: Box::new(settler),
        });
        let inner = InnerRef(std::ptr::NonNull::from(Box::leak(inner)));
        Tracker { inner, next: 0, reserved: 0 }
    }

    /// The token of the next item.
    #[inline]
    pub fn issue(&mut self) -> Token {
        if self.reserved == 0 {
            self.inner.get().refs.fetch_add(RESERVE, Ordering::Relaxed);
            self.reserved = RESERVE;
        }
        self.reserved -= 1;
        let item = self.next;
        self.next += 1;
        // A plain store: only the tracker writes it.
        self.inner.get().account.received.store(self.next, Ordering::Release);
        Token { inner: self.inner, item }
    }

    /// How many items were issued: the number of the next one.
    pub fn issued(&self) -> u64 {
        self.next
    }

    /// What was issued and what became of it.
    pub fn account(&self) -> Arc<Account> {
        self.inner.get().account.clone()
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        // SAFETY: the tracker owns its own reference and those it reserved and did not issue.
        unsafe { self.inner.release(self.reserved + 1) }
    }
}

impl fmt::Debug for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker").field("issued", &self.next).finish_non_exhaustive()
    }
}

/// The duty to say how one item ended. Dropping it unsettled means "deliver again".
#[must_use = "a token that is dropped means: deliver the item again"]
pub struct Token {
    inner: InnerRef,
    item: u64,
}

impl Token {
    /// The number of the item, counted by its tracker from 0.
    pub fn item(&self) -> u64 {
        self.item
    }
}

impl Settle for Token {
    const TRACKED: bool = true;
    type Group = TokenRuns;

    #[inline]
    fn join(self, group: &mut TokenRuns) {
        group.push(self);
    }

    fn share(&self) -> Token {
        let inner = self.inner.get();
        inner.refs.fetch_add(1, Ordering::Relaxed);
        inner.share(shared::words(self.item..self.item + 1));
        Token { inner: self.inner, item: self.item }
    }

    fn settle(self, outcome: &Outcome) {
        let inner = self.inner;
        let item = self.item;
        mem::forget(self);
        inner.get().settle(item..item + 1, outcome);
        // SAFETY: the forgotten token owned one reference.
        unsafe { inner.release(1) }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        // A panic that a stage's driver will catch: the driver settles the item by its policy.
        let inner = self.inner;
        let item = self.item;
        if unwound::keep(|| Token { inner, item }) {
            return;
        }
        inner.get().settle(item..item + 1, &Outcome::Abandoned);
        // SAFETY: the token owned one reference and is gone after this.
        unsafe { inner.release(1) }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Token").field(&self.item).finish()
    }
}

/// An item with the token that must be settled for it.
#[derive(Debug)]
pub struct Tracked<T, K = Token> {
    /// The item.
    pub value: T,
    /// The duty to say how it ended.
    pub token: K,
}

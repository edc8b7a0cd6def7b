//! What has flowed flows again for whoever comes late.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use crate::flow::{Flow, Step};
use crate::pipe::Pipe;
use crate::source::{Entry, Received};
use crate::stats::OpStats;
use crate::timer::bounded;

type Size<T> = dyn Fn(&T) -> usize + Send + Sync;

/// The newest items of a flow, bounded in number, age and bytes, for those who come late: each subscriber sees what is
/// remembered and then what comes. See [`Pipe::replay`]. Clones are the same memory.
///
/// Items are cloned for each subscriber; an `Arc` makes that cheap. For what must outlive the process there are the streams of a
/// broker.
///
/// ```
/// use millstream_flow::{Pipe, Replay};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let prices = Replay::new(3);
/// Pipe::from_iter([7, 8, 9, 10]).replay(&prices).for_each(drop).await.unwrap();
/// let (late, _) = prices.subscribe().collect().await.unwrap();
/// assert_eq!(late, [8, 9, 10]);
/// # }
/// ```
pub struct Replay<T>(Arc<Mutex<Book<T>>>);

impl<T> Clone for Replay<T> {
    fn clone(&self) -> Self {
        Replay(self.0.clone())
    }
}

struct Book<T> {
    items_max: usize,
    age_max: Option<Duration>,
    bytes_max: usize,
    size: Option<Arc<Size<T>>>,
    row: VecDeque<Remembered<T>>,
    /// The number of the row's first item, counted from the first that ever came.
    first: u64,
    bytes: usize,
    readers: Vec<Reader>,
    readers_made: u64,
    /// Flows that are recorded, and whether there ever was one.
    recording: usize,
    recorded: bool,
    /// Recorders that wait for readers.
    waiting: Vec<Waker>,
}

struct Remembered<T> {
    item: T,
    came: Option<Instant>,
    bytes: usize,
}

/// Who reads along.
struct Reader {
    id: u64,
    /// The number of the item that it reads next.
    next: u64,
    /// The flow waits for it.
    complete: bool,
    waker: Option<Waker>,
}

impl<T> Replay<T> {
    /// Remembers the newest `items` items.
    ///
    /// # Panics
    /// If `items` is 0.
    pub fn new(items: usize) -> Self {
        assert!(items > 0, "to remember no items leaves nothing to replay");
        Replay(Arc::new(Mutex::new(Book {
            items_max: items,
            age_max: None,
            bytes_max: usize::MAX,
            size: None,
            row: VecDeque::new(),
            first: 0,
            bytes: 0,
            readers: Vec::new(),
            readers_made: 0,
            recording: 0,
            recorded: false,
            waiting: Vec::new(),
        })))
    }

    fn book(&self) -> MutexGuard<'_, Book<T>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Forgets an item so long after it came.
    ///
    /// # Panics
    /// If `age` is zero.
    #[must_use]
    pub fn age(self, age: Duration) -> Self {
        assert!(!age.is_zero(), "to remember for no time leaves nothing to replay");
        self.book().age_max = Some(bounded(age));
        self
    }

    /// Remembers at most so many bytes of items, as `size` finds them, or one larger item.
    ///
    /// # Panics
    /// If `bytes` is 0.
    #[must_use]
    pub fn bytes(self, bytes: usize, size: impl Fn(&T) -> usize + Send + Sync + 'static) -> Self {
        assert!(bytes > 0, "to remember nothing leaves nothing to replay");
        let mut book = self.book();
        book.bytes_max = bytes;
        book.size = Some(Arc::new(size));
        drop(book);
        self
    }

    /// How many items are remembered.
    pub fn len(&self) -> usize {
        let mut book = self.book();
        let mut old = Vec::new();
        book.forget(Instant::now, &mut old);
        let len = book.row.len();
        drop(book);
        len
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it may hold at most.
    pub(crate) fn memory(&self) -> usize {
        let book = self.book();
        let items = book.items_max.saturating_mul(2 * size_of::<Remembered<T>>());
        items.saturating_add(if book.size.is_some() { book.bytes_max } else { 0 })
    }
}

impl<T: Clone> Replay<T> {
    /// A flow of what is remembered, the oldest first, and then of what comes, until all flows that are recorded have ended.
    /// Nobody waits for it: when it falls behind what is remembered, it goes on with the oldest there is, and its ledger has what it
    /// missed as dropped, under its name.
    ///
    /// It begins with what is remembered now, and may come before any flow is recorded.
    pub fn subscribe(&self) -> Pipe<Replayed<T>> {
        self.reader(false)
    }

    /// As [`subscribe`](Self::subscribe), and misses nothing that is remembered now or comes: the flows that are recorded wait for
    /// it, until it is dropped.
    pub fn subscribe_complete(&self) -> Pipe<Replayed<T>> {
        self.reader(true)
    }

    fn reader(&self, complete: bool) -> Pipe<Replayed<T>> {
        let mut book = self.book();
        let mut old = Vec::new();
        book.forget(Instant::now, &mut old);
        let (id, next) = (book.readers_made, book.first);
        book.readers_made += 1;
        book.readers.push(Reader { id, next, complete, waker: None });
        drop(book);
        Pipe::source("replay", |scope, op| {
            scope.add_untracked_op(op.clone());
            scope.add_memory("replay".into(), CHUNK * size_of::<T>());
            Replayed {
                replay: self.clone(),
                id,
                taken: VecDeque::new(),
                old: Vec::new(),
                op,
                entry: Entry::new(scope),
            }
        })
    }
}

/// The most items that are taken at once.
const CHUNK: usize = 64;

impl<T> Book<T> {
    /// The first item that a reader whom the flow waits for has not read.
    fn kept(&self) -> u64 {
        let needed = self.readers.iter().filter(|reader| reader.complete).map(|reader| reader.next);
        needed.min().unwrap_or(u64::MAX)
    }

    /// Makes room and forgets what is too old, but for what somebody whom the flow waits for has not read. What goes into `old` is
    /// to be dropped when the book is free: a user's `Drop` may do anything.
    fn forget(&mut self, now: impl FnOnce() -> Instant, old: &mut Vec<T>) {
        let (kept, now) = (self.kept(), self.age_max.map(|age| (age, now())));
        while let Some(Remembered { came, .. }) = self.row.front()
            && self.first < kept
        {
            let aged = now.zip(*came).is_some_and(|((age, now), came)| came + age <= now);
            if !aged
                && self.row.len() <= self.items_max
                && (self.bytes <= self.bytes_max || self.row.len() == 1)
            {
                break;
            }
            let Some(Remembered { item, bytes, .. }) = self.row.pop_front() else { break };
            self.bytes -= bytes;
            self.first += 1;
            old.push(item);
        }
    }

    /// How many items may come before a reader is waited for.
    fn room(&self) -> usize {
        let kept = self.kept();
        if kept == u64::MAX {
            return usize::MAX;
        }
        let unread = self.row.len() - (kept.max(self.first) - self.first) as usize;
        match self.size {
            Some(_) if unread > 0 && self.bytes >= self.bytes_max => 0,
            // What it weighs is known only when it is here.
            Some(_) => self.items_max.saturating_sub(unread).min(1),
            None => self.items_max.saturating_sub(unread),
        }
    }

    fn wake_readers(&mut self) -> Vec<Waker> {
        self.readers.iter_mut().filter_map(|reader| reader.waker.take()).collect()
    }

    fn reader(&mut self, id: u64) -> Option<&mut Reader> {
        self.readers.iter_mut().find(|reader| reader.id == id)
    }
}

/// See [`Pipe::replay`].
pub struct Recorded<F: Flow> {
    upstream: F,
    replay: Replay<F::Item>,
    /// Passed on, and not remembered yet; with their bytes.
    fresh: Vec<(F::Item, usize)>,
    /// Forgotten, and dropped when the book is free.
    old: Vec<F::Item>,
    /// No longer among those who record.
    ended: bool,
}

impl<F: Flow> Recorded<F> {
    pub(crate) fn new(upstream: F, replay: Replay<F::Item>) -> Self {
        let mut book = replay.book();
        book.recording += 1;
        book.recorded = true;
        drop(book);
        Recorded { upstream, replay, fresh: Vec::new(), old: Vec::new(), ended: false }
    }

    fn remember(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        let mut book = self.replay.book();
        let now = book.age_max.map(|_| Instant::now());
        for (item, bytes) in self.fresh.drain(..) {
            book.bytes += bytes;
            book.row.push_back(Remembered { item, came: now, bytes });
        }
        book.forget(|| now.unwrap_or_else(Instant::now), &mut self.old);
        let wakers = book.wake_readers();
        drop(book);
        self.old.clear();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn end(&mut self) {
        self.remember();
        if mem::replace(&mut self.ended, true) {
            return;
        }
        let mut book = self.replay.book();
        book.recording -= 1;
        let wakers = if book.recording == 0 { book.wake_readers() } else { Vec::new() };
        drop(book);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl<F: Flow> Drop for Recorded<F> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<F: Flow<Item: Clone>> Flow for Recorded<F> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        // What a panic further down has left.
        self.remember();
        let mut book = self.replay.book();
        let room = book.room().min(max).min(CHUNK);
        if room == 0 && !self.ended {
            book.waiting.retain(|waker| !waker.will_wake(cx.waker()));
            book.waiting.push(cx.waker().clone());
            return Poll::Pending;
        }
        let size = book.size.clone();
        drop(book);
        let Recorded { upstream, fresh, .. } = self;
        let step = upstream.poll_drive(cx, room.max(1), &mut |item, token| {
            // While the item is in hand, and the book is not: it costs what panics, and no other.
            let bytes = size.as_ref().map_or(0, |size| size(&item));
            fresh.push((item.clone(), bytes));
            sink(item, token)
        });
        if step == Poll::Ready(Step::End) {
            self.end()
        } else {
            self.remember()
        }
        step
    }
}

/// See [`Replay::subscribe`].
pub struct Replayed<T> {
    replay: Replay<T>,
    id: u64,
    /// Taken from the book and not pushed yet.
    taken: VecDeque<T>,
    /// Forgotten, and dropped when the book is free.
    old: Vec<T>,
    op: Arc<OpStats>,
    entry: Entry,
}

impl<T: Clone> Flow for Replayed<T> {
    type Item = T;
    type Token = ();

    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(T, ()) -> ControlFlow<()>,
    {
        let Replayed { replay, id, taken, old, op, entry } = self;
        let mut received = Received::new(entry);
        let mut room = max;
        loop {
            while let Some(item) = taken.pop_front() {
                received.count += 1;
                room -= 1;
                if sink(item, ()).is_break() || room == 0 {
                    return Poll::Ready(Step::More);
                }
            }
            if entry.is_stopped() {
                return Poll::Ready(Step::End);
            }
            let mut book = replay.book();
            book.forget(Instant::now, old);
            let (first, end) = (book.first, book.first + book.row.len() as u64);
            let over = book.recorded && book.recording == 0;
            let Some(reader) = book.reader(*id) else { return Poll::Ready(Step::End) };
            let missed = first.saturating_sub(reader.next);
            let from = reader.next.max(first);
            let count = ((end - from) as usize).min(room).min(CHUNK);
            reader.next = from + count as u64;
            if count == 0 && !over {
                reader.waker = Some(cx.waker().clone());
            }
            let at = (from - first) as usize;
            taken.extend(book.row.range(at..at + count).map(|remembered| remembered.item.clone()));
            let wakers = if count > 0 { mem::take(&mut book.waiting) } else { Vec::new() };
            drop(book);
            old.clear();
            wakers.into_iter().for_each(Waker::wake);
            if missed > 0 {
                received.count += missed;
                op.add_dropped(missed);
            }
            if count == 0 {
                let ends = over || entry.wait(cx);
                return if ends { Poll::Ready(Step::End) } else { Poll::Pending };
            }
        }
    }
}

impl<T> Drop for Replayed<T> {
    fn drop(&mut self) {
        let mut book = self.replay.book();
        book.readers.retain(|reader| reader.id != self.id);
        let wakers = mem::take(&mut book.waiting);
        drop(book);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl<T> fmt::Debug for Replay<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let book = self.book();
        let subscribers = book.readers.len();
        f.debug_struct("Replay").field("len", &book.row.len()).field("subscribers", &subscribers).finish()
    }
}

//! What was looked up before is not looked up again.

use std::fmt;
use std::hash::Hash;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hashbrown::HashTable;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::keyed::KeyedQueue;
use crate::timer::bounded;

type Size<V> = dyn Fn(&V) -> usize + Send + Sync;

/// Values by key, bounded in number, age and bytes, each looked up once however many ask for it at the same time. See
/// [`Pipe::memoize`](crate::Pipe::memoize). Clones are the same memory.
///
/// The value that was found first is forgotten first, used or not. Errors are not remembered, and take no place: the next who asks
/// looks up again.
///
/// ```
/// use millstream_flow::Memo;
/// use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let customers = Memo::new(10_000).age(Duration::from_secs(600)).bytes(64 << 20, |name: &String| name.len());
/// let look_up = async |id: &u32| Ok::<_, std::io::Error>(format!("customer {id}"));
/// for _ in 0..3 {
///     assert_eq!(customers.get(7, look_up).await.unwrap(), "customer 7");
/// }
/// assert_eq!((customers.misses(), customers.hits()), (1, 2));
/// # }
/// ```
pub struct Memo<Q, V>(Arc<Shared<Q, V>>);

impl<Q, V> Clone for Memo<Q, V> {
    fn clone(&self) -> Self {
        Memo(self.0.clone())
    }
}

struct Shared<Q, V> {
    book: Mutex<Book<Q, V>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

struct Book<Q, V> {
    items_max: usize,
    age_max: Option<Duration>,
    bytes_max: usize,
    size: Option<Arc<Size<V>>>,
    /// What was found, in the order in which it was. What is forgotten before its turn is hidden.
    row: KeyedQueue<Q, Entry<V>>,
    bytes: usize,
    /// What is looked up now, by the hashes of the row: as many as there are calls that have not ended.
    under_way: HashTable<UnderWay<Q, V>>,
    /// Values that were forgotten: mostly one at a time.
    gone: Option<Cell<V>>,
    more_gone: Vec<Cell<V>>,
}

type Cell<V> = Arc<OnceCell<V>>;

struct UnderWay<Q, V> {
    hash: u64,
    key: Q,
    cell: Cell<V>,
    /// Who looks it up and who waits for that.
    asking: usize,
}

struct Entry<V> {
    /// When it was found. Without an age nobody looks at a clock, nor at this.
    found: Option<Instant>,
    /// 0 until it is weighed.
    bytes: usize,
    /// `None` of what is hidden.
    value: Option<Cell<V>>,
}

/// Where the value of a key comes from.
enum Source<'a, Q, V> {
    Row(Cell<V>),
    UnderWay(Asking<'a, Q, V>),
}

impl<Q, V> Memo<Q, V> {
    fn book(&self) -> Look<'_, Q, V> {
        Look(Some(self.0.book.lock().unwrap_or_else(|poisoned| poisoned.into_inner())))
    }
}

/// The book, as long as it is held. What was forgotten meanwhile is dropped when others may have it, and may ask the memo itself.
struct Look<'a, Q, V>(Option<MutexGuard<'a, Book<Q, V>>>);

impl<Q, V> Deref for Look<'_, Q, V> {
    type Target = Book<Q, V>;
    #[inline]
    fn deref(&self) -> &Book<Q, V> {
        self.0.as_ref().expect("it is held until it is dropped")
    }
}

impl<Q, V> DerefMut for Look<'_, Q, V> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Book<Q, V> {
        self.0.as_mut().expect("it is held until it is dropped")
    }
}

impl<Q, V> Drop for Look<'_, Q, V> {
    #[inline]
    fn drop(&mut self) {
        let Some(mut book) = self.0.take() else { return };
        let gone = (book.gone.take(), std::mem::take(&mut book.more_gone));
        drop(book);
        drop(gone);
    }
}

impl<Q: Hash + Eq, V> Memo<Q, V> {
    /// Remembers the values of at most `items` keys.
    ///
    /// # Panics
    /// If `items` is 0.
    pub fn new(items: usize) -> Self {
        assert!(items > 0, "to remember nothing spares nothing");
        let book = Book {
            items_max: items,
            age_max: None,
            bytes_max: usize::MAX,
            size: None,
            row: KeyedQueue::default(),
            bytes: 0,
            under_way: HashTable::new(),
            gone: None,
            more_gone: Vec::new(),
        };
        Memo(Arc::new(Shared { book: Mutex::new(book), hits: 0.into(), misses: 0.into() }))
    }

    /// Forgets a value so long after it was found, when any key is next asked for; at once, if that was before this was said. Without it no
    /// clock is read.
    ///
    /// # Panics
    /// If `age` is zero.
    #[must_use]
    pub fn age(self, age: Duration) -> Self {
        assert!(!age.is_zero(), "to remember for no time spares nothing");
        self.book().age_max = Some(bounded(age));
        self
    }

    /// Remembers at most so many bytes of values, as `size` finds them, or one larger value.
    ///
    /// # Panics
    /// If `bytes` is 0.
    #[must_use]
    pub fn bytes(self, bytes: usize, size: impl Fn(&V) -> usize + Send + Sync + 'static) -> Self {
        assert!(bytes > 0, "to remember nothing spares nothing");
        let mut book = self.book();
        book.bytes_max = bytes;
        book.size = Some(Arc::new(size));
        drop(book);
        self
    }

    /// The value of a key: remembered, or being looked up by somebody else, or by `look_up`.
    ///
    /// # Errors
    /// Those of `look_up`; another who waited for the same value looks up for himself then.
    ///
    /// # Cancel safety
    /// If the one who looks up is dropped, one of those who wait for it looks up.
    pub async fn get<E>(&self, key: Q, look_up: impl AsyncFnOnce(&Q) -> Result<V, E>) -> Result<V, E>
    where
        Q: Clone,
        V: Clone,
    {
        let asking = match self.source(&key) {
            Source::Row(cell) => {
                let value = cell.get().expect("what is in the row was found");
                return Ok(value.clone());
            }
            Source::UnderWay(asking) => asking,
        };
        let found = asking.cell.get_or_try_init(async || {
            asking.asked.store(true, Ordering::Relaxed);
            look_up(&key).await
        });
        let found = found.await.cloned();
        asking.end(found.is_ok());
        found
    }

    fn source<'a>(&'a self, key: &'a Q) -> Source<'a, Q, V>
    where
        Q: Clone,
    {
        let mut book = self.book();
        let now = book.age_max.map(|_| Instant::now());
        book.forget_old(now);
        let hash = book.row.hash(key);
        let Book { row, under_way, size, .. } = &mut *book;
        if let Ok(Entry { value: Some(value), bytes, .. }) = row.find_by(hash, key) {
            let value = value.clone();
            // The limit was said after it was found.
            if size.is_some() && *bytes == 0 {
                *bytes = weight(size, &value);
                let more = *bytes;
                book.add(more);
            }
            add_one(&self.0.hits);
            return Source::Row(value);
        }
        let mut entry = under_way
            .entry(hash, |there| there.key == *key, |there| there.hash)
            .or_insert_with(|| UnderWay { hash, key: key.clone(), cell: Cell::default(), asking: 0 });
        let under_way = entry.get_mut();
        under_way.asking += 1;
        let cell = under_way.cell.clone();
        Source::UnderWay(Asking { memo: self, hash, key, cell, asked: false.into(), ended: false })
    }

    /// Forgets a key, so that the next who asks looks up. Those who wait for it already get what was asked for before.
    pub fn forget(&self, key: &Q) {
        let mut book = self.book();
        let hash = book.row.hash(key);
        if let Ok(under_way) = book.under_way.find_entry(hash, |there| there.key == *key) {
            under_way.remove();
        }
        book.forget(hash, key);
    }

    /// How many keys are remembered, those being looked up included.
    pub fn len(&self) -> usize {
        let book = self.book();
        book.row.keys() + book.under_way.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often a value was there, or was found by another who looked it up already.
    pub fn hits(&self) -> u64 {
        self.0.hits.load(Ordering::Relaxed)
    }

    /// How often it was looked up, found or not, or given up meanwhile.
    pub fn misses(&self) -> u64 {
        self.0.misses.load(Ordering::Relaxed)
    }

    /// What it may hold at most, without what is looked up now.
    pub(crate) fn memory(&self) -> usize {
        let book = self.book();
        let entry = KeyedQueue::<Q, Entry<V>>::ENTRY_BYTES + size_of::<OnceCell<V>>();
        let values = if book.size.is_some() { book.bytes_max } else { 0 };
        book.items_max.saturating_mul(2 * entry).saturating_add(values)
    }
}

/// One who looks a key up, or waits for another who does.
struct Asking<'a, Q, V> {
    memo: &'a Memo<Q, V>,
    hash: u64,
    key: &'a Q,
    cell: Cell<V>,
    /// It is this one who looks up.
    asked: AtomicBool,
    ended: bool,
}

impl<Q, V> Asking<'_, Q, V> {
    /// Counts it, and has the key no longer be under way if nobody else waits for it.
    fn leave(&mut self, book: &mut Book<Q, V>) {
        self.ended = true;
        let Ok(mut there) =
            book.under_way.find_entry(self.hash, |there| Arc::ptr_eq(&there.cell, &self.cell))
        else {
            return;
        };
        there.get_mut().asking -= 1;
        if there.get().asking == 0 {
            there.remove();
        }
    }
}

impl<Q: Hash + Eq, V> Asking<'_, Q, V> {
    /// It was looked up, by this one if it has asked, and found or not.
    fn end(mut self, found: bool) {
        let (memo, asked) = (self.memo, *self.asked.get_mut());
        let mut book = memo.book();
        add_one(if asked { &memo.0.misses } else { &memo.0.hits });
        if asked && found {
            self.remember(&mut book);
        } else {
            self.leave(&mut book);
        }
    }

    /// Puts what was found where others find it, unless it was to be forgotten meanwhile.
    fn remember(&mut self, book: &mut Book<Q, V>) {
        self.ended = true;
        let under_way = book.under_way.find_entry(self.hash, |there| Arc::ptr_eq(&there.cell, &self.cell));
        let Ok(under_way) = under_way else { return };
        let (UnderWay { key, cell, .. }, _) = under_way.remove();
        let bytes = weight(&book.size, &cell);
        let found = book.age_max.map(|_| Instant::now());
        // What was forgotten before its end, and found by another who began later.
        book.forget(self.hash, self.key);
        book.forget_old(found);
        while book.row.keys() >= book.items_max {
            book.forget_first();
        }
        // What is hidden takes no more room than what is there.
        if book.row.len() >= 2 * book.items_max {
            book.row.compact(|entry| entry.value.is_some());
        }
        book.row.push_back_by(self.hash, key, Entry { found, bytes, value: Some(cell) });
        book.add(bytes);
    }
}

impl<Q, V> Drop for Asking<'_, Q, V> {
    fn drop(&mut self) {
        if !self.ended {
            let memo = self.memo;
            let mut book = memo.book();
            if *self.asked.get_mut() {
                add_one(&memo.0.misses);
            }
            self.leave(&mut book);
        }
    }
}

fn is_old(found: Option<Instant>, age_max: Option<Duration>, now: Option<Instant>) -> bool {
    let Some((age, now)) = age_max.zip(now) else { return false };
    found.is_none_or(|found| found + age <= now)
}

/// Adds one to what is only written while the book is held.
fn add_one(number: &AtomicU64) {
    number.store(number.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// The bytes of a value that was found, never 0; without a limit of bytes nobody looks.
fn weight<V>(size: &Option<Arc<Size<V>>>, cell: &OnceCell<V>) -> usize {
    let Some(size) = size else { return 0 };
    cell.get().map_or(0, |value| size(value).max(1))
}

impl<Q, V> Book<Q, V> {
    /// Counts bytes, and makes room for them.
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        while self.bytes > self.bytes_max && self.row.keys() > 1 {
            self.forget_first();
        }
    }

    /// Forgets what is too old now, and what is hidden in front.
    #[inline]
    fn forget_old(&mut self, now: Option<Instant>) {
        let Book { row, age_max, .. } = &*self;
        let goes = |entry: &Entry<V>| entry.value.is_none() || is_old(entry.found, *age_max, now);
        if row.front().is_some_and(goes) {
            self.forget_front(now);
        }
    }

    #[cold]
    fn forget_front(&mut self, now: Option<Instant>) {
        while let Some(entry) = self.row.front()
            && (entry.value.is_none() || is_old(entry.found, self.age_max, now))
        {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some(entry) = self.row.pop_front() {
            self.bytes -= entry.bytes;
            self.go(entry.value);
        }
    }

    fn go(&mut self, value: Option<Cell<V>>) {
        let Some(value) = value else { return };
        if let Some(before) = self.gone.replace(value) {
            self.more_gone.push(before);
        }
    }
}

impl<Q: Hash + Eq, V> Book<Q, V> {
    fn forget(&mut self, hash: u64, key: &Q) {
        if let Some(entry) = self.row.hide(hash, key) {
            let value = entry.value.take();
            self.bytes -= std::mem::take(&mut entry.bytes);
            self.go(value);
        }
    }
}

impl<Q, V> fmt::Debug for Memo<Q, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { hits, misses, .. } = &*self.0;
        f.debug_struct("Memo").field("hits", hits).field("misses", misses).finish_non_exhaustive()
    }
}

//! What was looked up before is not looked up again.

use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::keyed::KeyedQueue;
use crate::timer::bounded;

type Size<V> = dyn Fn(&V) -> usize + Send + Sync;

/// Values by key, bounded in number, age and bytes, each looked up once however many ask for it at the same time. See
/// [`Pipe::memoize`](crate::Pipe::memoize). Clones are the same memory.
///
/// The key that came first is forgotten first, used or not. Errors are not remembered: the next who asks looks up again.
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
    row: KeyedQueue<Q, Entry<V>>,
    bytes: usize,
}

struct Entry<V> {
    /// When it was first asked for. Without an age nobody looks at a clock, nor at this.
    born: Option<Instant>,
    /// 0 until it is weighed.
    bytes: usize,
    value: Arc<OnceCell<V>>,
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
        };
        Memo(Arc::new(Shared { book: Mutex::new(book), hits: 0.into(), misses: 0.into() }))
    }

    fn book(&self) -> MutexGuard<'_, Book<Q, V>> {
        self.0.book.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Forgets a value so long after it was first asked for; at once, if that was before this was said. Without it no clock is read.
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
        let (cell, unweighed) = self.cell(&key);
        let found = cell.get_or_try_init(async || look_up(&key).await).await;
        let value = found?.clone();
        if unweighed {
            self.weigh(&key, &cell, &value);
        }
        Ok(value)
    }

    /// The place of a key's value, and whether its bytes are still to be counted.
    fn cell(&self, key: &Q) -> (Arc<OnceCell<V>>, bool)
    where
        Q: Clone,
    {
        let mut book = self.book();
        let Book { items_max, age_max, .. } = *book;
        let measures = book.size.is_some();
        let now = age_max.map(|_| Instant::now());
        if let (Some(age), Some(now)) = (age_max, now) {
            while book.row.front().is_some_and(|entry| entry.born.is_none_or(|born| born + age <= now)) {
                book.forget_first();
            }
        }
        let absent = match book.row.find(key) {
            Ok(entry) => {
                count(&self.0.hits);
                return (entry.value.clone(), measures && entry.bytes == 0);
            }
            Err(absent) => absent,
        };
        count(&self.0.misses);
        while book.row.len() >= items_max {
            book.forget_first();
        }
        let value = Arc::new(OnceCell::new());
        book.row.push_back(key.clone(), absent, Entry { born: now, bytes: 0, value: value.clone() });
        (value, measures)
    }

    /// Counts a value's bytes when it is first seen.
    fn weigh(&self, key: &Q, cell: &Arc<OnceCell<V>>, value: &V) {
        let mut book = self.book();
        let Some(size) = book.size.clone() else { return };
        let Ok(entry) = book.row.find(key) else { return };
        if entry.bytes > 0 || !Arc::ptr_eq(&entry.value, cell) {
            return;
        }
        // Never 0, which stands for what has not been weighed.
        let bytes = size(value).max(1);
        entry.bytes = bytes;
        book.bytes += bytes;
        while book.bytes > book.bytes_max && book.row.len() > 1 {
            book.forget_first();
        }
    }

    /// Forgets a key, so that the next who asks looks up.
    pub fn forget(&self, key: &Q) {
        let mut book = self.book();
        if let Ok(entry) = book.row.find(key) {
            entry.value = Arc::new(OnceCell::new());
            let bytes = std::mem::take(&mut entry.bytes);
            book.bytes -= bytes;
        }
    }

    /// How many keys are remembered, those being looked up included.
    pub fn len(&self) -> usize {
        self.book().row.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often a value was there, or on its way.
    pub fn hits(&self) -> u64 {
        self.0.hits.load(Ordering::Relaxed)
    }

    /// How often it was not.
    pub fn misses(&self) -> u64 {
        self.0.misses.load(Ordering::Relaxed)
    }

    /// What it may hold at most.
    pub(crate) fn memory(&self) -> usize {
        let book = self.book();
        let entry = KeyedQueue::<Q, Entry<V>>::ENTRY_BYTES + size_of::<OnceCell<V>>();
        let values = if book.size.is_some() { book.bytes_max } else { 0 };
        book.items_max.saturating_mul(entry).saturating_add(values)
    }
}

/// Adds one to what is only written while the book is held.
fn count(number: &AtomicU64) {
    number.store(number.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl<Q, V> Book<Q, V> {
    fn forget_first(&mut self) {
        if let Some(entry) = self.row.pop_front() {
            self.bytes -= entry.bytes;
        }
    }
}

impl<Q, V> fmt::Debug for Memo<Q, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { hits, misses, .. } = &*self.0;
        f.debug_struct("Memo").field("hits", hits).field("misses", misses).finish_non_exhaustive()
    }
}

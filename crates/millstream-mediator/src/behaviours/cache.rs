//! Answers that are remembered, and requests that are.

use std::borrow::Cow;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use millstream_flow::Memo;

use crate::behaviour::Next;
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::message::{About, Kind, Request};
use crate::metrics::{Combine, MetricKind};
use crate::typed::BehaviourOf;

type KeyOf<R, K> = dyn Fn(&R) -> K + Send + Sync;

/// Answers requests of one type from memory, by a key. Of many that ask for the same at once, one calls the handler and the
/// others wait for its answer (*single flight*); if it fails or is dropped, the next one calls. Errors are not
/// remembered.
///
/// How many answers, how long and how many bytes, is the [`Memo`]'s to say; clones of it reach the same memory, to
/// [forget](Memo::forget) what has changed.
///
/// ```
/// use millstream_flow::{BoxError, Memo};
/// use millstream_mediator::{Cache, Mediator, Request};
/// use std::time::Duration;
///
/// struct NameOf(u32);
/// impl Request for NameOf { type Response = String; }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// let names = Memo::new(10_000).age(Duration::from_secs(60));
/// let mediator = Mediator::builder()
///     .behaviour_of(Cache::new(names.clone(), |request: &NameOf| request.0))
///     .request(async |request: NameOf| Ok::<_, BoxError>(format!("customer {}", request.0)))
///     .build()?;
/// for _ in 0..3 {
///     assert_eq!(mediator.send(NameOf(7)).await?, "customer 7");
/// }
/// assert_eq!((names.misses(), names.hits()), (1, 2));
/// # Ok(()) }
/// ```
pub struct Cache<R: Request, K> {
    memo: Memo<K, R::Response>,
    key: Arc<KeyOf<R, K>>,
}

impl<R: Request, K> Cache<R, K> {
    /// Remembers in `memo`, by what `key` makes of a request.
    pub fn new(memo: Memo<K, R::Response>, key: impl Fn(&R) -> K + Send + Sync + 'static) -> Self {
        Cache { memo, key: Arc::new(key) }
    }
}

impl<R, K> BehaviourOf<R> for Cache<R, K>
where
    R: Request,
    R::Response: Clone + Sync,
    K: Hash + Eq + Clone + Send + Sync + 'static,
{
    fn name(&self) -> Cow<'static, str> {
        "cache".into()
    }

    fn problem(&self) -> Option<String> {
        let words = "a notification has no answer to remember, and one of its handlers would stand for all; use `Dedupe`";
        (R::KIND == Kind::Notification).then(|| words.into())
    }

    fn of(&self, about: &About) -> Self {
        let help = "Answers from memory and others.";
        for (outcome, read) in [("hit", Memo::hits as fn(&_) -> u64), ("miss", Memo::misses)] {
            let (memo, labels) = (self.memo.clone(), [("type", about.label()), ("outcome", outcome)]);
            let (name, sum) = ("mediator_cache_total", Combine::Sum);
            about
                .metrics()
                .read_combined(name, help, MetricKind::Counter, &labels, sum, move || read(&memo) as f64);
        }
        Cache { memo: self.memo.clone(), key: self.key.clone() }
    }

    async fn call<N: Next<R>>(&self, call: &Call<'_>, request: R, next: &N) -> Result<R::Response, Error> {
        let key = (self.key)(&request);
        self.memo.get(key, async |_| next.call(call, request).await).await
    }
}

impl<R: Request, K> fmt::Debug for Cache<R, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("memo", &self.memo).finish_non_exhaustive()
    }
}

/// Handles a request of one key once in a time, and fails others like it with [`ErrorKind::Duplicate`]. One that fails, or is
/// dropped, has not been handled: another of its key is then let through. One that comes while its like is under way waits for
/// how that ends.
///
/// The memory is bounded: the oldest of `keys_max` keys is forgotten for a new one. Each handler of a notification has its own.
pub struct Dedupe<R, K> {
    memo: Memo<K, ()>,
    key: Arc<KeyOf<R, K>>,
    keys_max: usize,
    ttl: Duration,
}

impl<R: Request, K: Hash + Eq> Dedupe<R, K> {
    /// Remembers at most `keys_max` keys, each for so long after it was handled.
    ///
    /// # Panics
    /// If either is 0.
    pub fn new(keys_max: usize, ttl: Duration, key: impl Fn(&R) -> K + Send + Sync + 'static) -> Self {
        Dedupe::make(keys_max, ttl, Arc::new(key))
    }

    fn make(keys_max: usize, ttl: Duration, key: Arc<KeyOf<R, K>>) -> Self {
        Dedupe { memo: Memo::new(keys_max).age(ttl), key, keys_max, ttl }
    }
}

impl<R, K> Dedupe<R, K> {
    fn words(&self) -> String {
        format!("dedupe {} keys for {:?}", self.keys_max, self.ttl)
    }
}

impl<R, K> BehaviourOf<R> for Dedupe<R, K>
where
    R: Request,
    R::Response: Sync,
    K: Hash + Eq + Clone + Send + Sync + 'static,
{
    fn name(&self) -> Cow<'static, str> {
        self.words().into()
    }

    fn of(&self, _: &About) -> Self {
        Dedupe::make(self.keys_max, self.ttl, self.key.clone())
    }

    async fn call<N: Next<R>>(&self, call: &Call<'_>, request: R, next: &N) -> Result<R::Response, Error> {
        let key = (self.key)(&request);
        let mut response = None;
        let handled = self.memo.get(key, async |_| {
            response = Some(next.call(call, request).await?);
            Ok::<_, Error>(())
        });
        handled.await?;
        response.ok_or_else(|| Error::new(call.about(), ErrorKind::Duplicate))
    }
}

impl<R, K> fmt::Debug for Dedupe<R, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words())
    }
}

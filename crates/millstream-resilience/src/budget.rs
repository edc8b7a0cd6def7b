//! Attempts that many calls may spend together.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A bucket of tokens that pays for extra attempts, shared by all clones: when everything fails, retries must not multiply the
/// load on what is down already.
///
/// Each extra attempt takes a token; each call that succeeds puts a part of one back. While calls succeed the bucket is full and
/// costs one look; when the callee is down, it is soon empty, and calls are tried once until some succeed again. So do gRPC
/// ("retry throttling", proposal A6) and the AWS SDKs ("retry quota").
///
/// ```
/// use millstream_resilience::Budget;
/// // At most ten at once; in the long run, one extra attempt for every five successes.
/// let budget = Budget::new(10, 0.2);
/// assert_eq!((0..100).filter(|_| budget.spend()).count(), 10);
/// (0..10).for_each(|_| budget.earn());
/// assert_eq!(budget.left(), 2);
/// ```
#[derive(Clone)]
pub struct Budget(Arc<Bucket>);

struct Bucket {
    /// In parts of a token.
    full: u64,
    earned: u64,
    held: AtomicU64,
}

/// What a token is divided into.
const TOKEN: u64 = 1000;

impl Budget {
    /// Up to `capacity` extra attempts at once, and `ratio` of one more for each success.
    ///
    /// # Panics
    /// If `ratio` is below 0.001, above 1, or no number.
    pub fn new(capacity: u32, ratio: f64) -> Self {
        assert!((0.001..=1.0).contains(&ratio), "a success earns 0.001 to 1 attempts, not {ratio}");
        let full = u64::from(capacity) * TOKEN;
        let earned = (ratio * TOKEN as f64).round() as u64;
        Budget(Arc::new(Bucket { full, earned, held: AtomicU64::new(full) }))
    }

    /// Takes a token; false if there is none.
    pub fn spend(&self) -> bool {
        let take = |held: u64| held.checked_sub(TOKEN);
        self.0.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// A call has succeeded.
    #[inline]
    pub fn earn(&self) {
        let Bucket { full, earned, held } = &*self.0;
        if held.load(Ordering::Relaxed) < *full {
            let _ = held
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| Some((held + earned).min(*full)));
        }
    }

    /// How many extra attempts could be made now.
    pub fn left(&self) -> u64 {
        self.0.held.load(Ordering::Relaxed) / TOKEN
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Bucket { full, earned, .. } = &*self.0;
        write!(f, "Budget {{ {} of {}, +{} a success }}", self.left(), full / TOKEN, *earned as f64 / 1000.0)
    }
}

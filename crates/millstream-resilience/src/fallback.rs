//! Another answer when a call fails.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

type When<E> = dyn Fn(&E) -> bool + Send + Sync;

/// What a call gives instead when it fails: a value, or what another function makes of the error.
///
/// ```
/// use millstream_resilience::Fallback;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let cached = async |_error: &'static str| Ok(42);
/// let fallback = Fallback::new(cached).when(|error: &&str| *error != "forbidden");
/// assert_eq!(fallback.call(async || Err("away")).await, Ok(42));
/// assert_eq!(fallback.call(async || Err("forbidden")).await, Err("forbidden"));
/// assert_eq!(fallback.used(), 1);
/// # }
/// ```
pub struct Fallback<F, E> {
    make: F,
    when: Option<Arc<When<E>>>,
    used: Arc<AtomicU64>,
}

impl<F, E> Fallback<F, E> {
    /// Calls `make` with the error: a function from `E` to a future of `Result<T, E>`.
    pub fn new(make: F) -> Self {
        Fallback { make, when: None, used: Arc::default() }
    }

    /// Only for errors like these; for all by default.
    #[must_use]
    pub fn when(mut self, when: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        self.when = Some(Arc::new(when));
        self
    }

    /// Whether this error is one of those.
    pub fn applies(&self, error: &E) -> bool {
        self.when.as_ref().is_none_or(|when| when(error))
    }

    /// Calls, and makes another answer if that fails.
    ///
    /// # Errors
    /// Those of `call` that the fallback is not for, and those of the fallback.
    pub async fn call<T, G, H>(&self, call: impl FnOnce() -> G) -> Result<T, E>
    where
        G: Future<Output = Result<T, E>>,
        F: Fn(E) -> H,
        H: Future<Output = Result<T, E>>,
    {
        match call().await {
            Err(error) if self.applies(&error) => self.instead(error).await,
            result => result,
        }
    }

    /// Begins what there is instead of an answer with this error, whether it is [for such](Self::applies) or not.
    pub fn instead<H>(&self, error: E) -> H
    where
        F: Fn(E) -> H,
    {
        self.used.fetch_add(1, Ordering::Relaxed);
        (self.make)(error)
    }

    /// How often it was needed.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

impl<F: Clone, E> Clone for Fallback<F, E> {
    fn clone(&self) -> Self {
        Fallback { make: self.make.clone(), when: self.when.clone(), used: self.used.clone() }
    }
}

impl<F, E> fmt::Debug for Fallback<F, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallback")
            .field("selective", &self.when.is_some())
            .field("used", &self.used())
            .finish()
    }
}

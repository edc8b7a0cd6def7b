//! Trouble that comes by chance, and the same for the same seed.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use tokio::task::yield_now;
use tokio::time::{Sleep, sleep};

/// What can go wrong around a user's functions and streams, each with its probability.
///
/// ```
/// use millstream_flow::test::{Faults, Script, virtual_time};
/// use millstream_flow::{PanicPolicy, Pipe, Retry};
/// use std::time::Duration;
/// for seed in 0..20 {
///     virtual_time(async {
///         let faults = Faults::new(seed).pending(0.3).delay(0.2, Duration::from_secs(5)).error(0.2).panic(0.1);
///         let (pipe, outcomes) = Script::new().items(0..100).tracked();
///         let call = async move |n: &i32| {
///             faults.strike_async().await?;
///             Ok::<_, millstream_flow::test::Injected>(*n)
///         };
///         let calls = pipe.try_map_async(8, Retry::attempts(3).unwrap(), call).reject();
///         let (items, report) = calls.collect().await.unwrap();
///         assert_eq!(items.len() as u64 + report.ledger.dead, 100);
///         assert_eq!(outcomes.list().len(), 100);
///     });
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Faults {
    dice: Arc<Mutex<fastrand::Rng>>,
    pending: f64,
    delay: (f64, Duration),
    error: f64,
    panic: f64,
}

/// The error that [`Faults`] strikes with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injected;

impl std::fmt::Display for Injected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an injected fault")
    }
}

impl std::error::Error for Injected {}

impl Faults {
    /// No faults yet. Clones share the dice.
    pub fn new(seed: u64) -> Self {
        let dice = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
        Faults { dice, pending: 0.0, delay: (0.0, Duration::ZERO), error: 0.0, panic: 0.0 }
    }

    /// Not being ready, and waking at once.
    #[must_use]
    pub fn pending(mut self, probability: f64) -> Self {
        self.pending = probability;
        self
    }

    /// Taking time, up to so much.
    #[must_use]
    pub fn delay(mut self, probability: f64, most: Duration) -> Self {
        self.delay = (probability, most);
        self
    }

    /// An error: [`Injected`].
    #[must_use]
    pub fn error(mut self, probability: f64) -> Self {
        self.error = probability;
        self
    }

    /// A panic.
    #[must_use]
    pub fn panic(mut self, probability: f64) -> Self {
        self.panic = probability;
        self
    }

    fn chance(&self, probability: f64) -> bool {
        probability > 0.0 && self.dice.lock().expect("nothing panics while the dice roll").f64() < probability
    }

    fn time(&self) -> Duration {
        let (probability, most) = self.delay;
        if !self.chance(probability) {
            return Duration::ZERO;
        }
        most.mul_f64(self.dice.lock().expect("nothing panics while the dice roll").f64())
    }

    /// Strikes, perhaps: to be called in a function of the test.
    ///
    /// # Errors
    /// With the probability of [`error`](Self::error).
    ///
    /// # Panics
    /// With the probability of [`panic`](Self::panic).
    pub fn strike(&self) -> Result<(), Injected> {
        assert!(!self.chance(self.panic), "an injected panic");
        if self.chance(self.error) { Err(Injected) } else { Ok(()) }
    }

    /// As [`strike`](Self::strike), and may take its time before.
    ///
    /// # Errors
    /// As `strike`.
    ///
    /// # Panics
    /// As `strike`.
    pub async fn strike_async(&self) -> Result<(), Injected> {
        while self.chance(self.pending) {
            yield_now().await;
        }
        let time = self.time();
        if !time.is_zero() {
            sleep(time).await;
        }
        self.strike()
    }

    /// A stream that is not ready, or takes its time, by chance. It loses nothing.
    pub fn around<S: Stream + Unpin>(&self, stream: S) -> Fitful<S> {
        Fitful { stream, faults: self.clone(), waiting: None }
    }
}

/// See [`Faults::around`].
#[derive(Debug)]
pub struct Fitful<S> {
    stream: S,
    faults: Faults,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S: Stream + Unpin> Stream for Fitful<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        if let Some(waiting) = &mut self.waiting {
            std::task::ready!(waiting.as_mut().poll(cx));
            self.waiting = None;
        } else {
            if self.faults.chance(self.faults.pending) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let time = self.faults.time();
            if !time.is_zero() {
                let mut waiting = Box::pin(sleep(time));
                if waiting.as_mut().poll(cx).is_pending() {
                    self.waiting = Some(waiting);
                    return Poll::Pending;
                }
            }
        }
        Pin::new(&mut self.stream).poll_next(cx)
    }
}

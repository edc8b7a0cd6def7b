//! When items pass.

use std::hash::Hash;
use std::time::Duration;

use super::Pipe;
use crate::flow::Flow;
use crate::measure::Measure;
use crate::op::burst::{Bursts, Debounce, Throttle};
use crate::op::idle_timeout::IdleTimeout;
use crate::op::latest::Latest;
use crate::op::rate_limit::{RateLimit, RateLimited};

/// All keep the order and take their time from tokio's clock, which tests can pause. What they drop is settled, and counted
/// by the operator's name; what they hold is given back to its source if the run is cancelled.
impl<F: Flow> Pipe<F> {
    /// Of items that follow each other closely, the newest once it is quiet, the first, or both. See [`Debounce`].
    ///
    /// # Backpressure
    /// Items are taken as fast as they come; at most one is held.
    ///
    /// # At the end
    /// What is held passes at once.
    ///
    /// ```
    /// # use millstream_flow::{Debounce, Pipe};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let (mut keys, pipe) = Pipe::channel(8);
    /// let run = pipe.debounce(Debounce::trailing(Duration::from_millis(300))).collect().start();
    /// for typed in ["m", "mi", "mill"] {
    ///     keys.send(typed).await.unwrap();
    /// }
    /// tokio::time::sleep(Duration::from_secs(1)).await;
    /// keys.send("millstream").await.unwrap();
    /// drop(keys);
    /// assert_eq!(run.join().await.unwrap().0, ["mill", "millstream"]);
    /// # }
    /// ```
    pub fn debounce(self, rule: Debounce) -> Pipe<Bursts<F>> {
        self.then("debounce", |upstream, op, _| Bursts::new(upstream, rule.rule(), op))
    }

    /// One item a period: its first, its newest, or both. The others are dropped; to delay them instead, use
    /// [`rate_limit`](Pipe::rate_limit). See [`Throttle`].
    ///
    /// # Backpressure
    /// Items are taken as fast as they come; at most one is held.
    ///
    /// # At the end
    /// What is held passes at once.
    pub fn throttle(self, rule: Throttle) -> Pipe<Bursts<F>> {
        self.then("throttle", |upstream, op, _| Bursts::new(upstream, rule.rule(), op))
    }

    /// The newest item of each key, once an interval, which begins with its first item. Older ones of the same key are
    /// dropped. For states of which only the last matters: prices, positions, progress.
    ///
    /// # Ordering
    /// The items of an interval pass in the order in which their keys first came.
    ///
    /// # Backpressure
    /// Items are taken as fast as they come, and `keys_max` of them are held at most: when so many keys have come, all
    /// pass before their time.
    ///
    /// # At the end
    /// What is held passes at once.
    ///
    /// # Panics
    /// If `interval` or `keys_max` is zero.
    pub fn latest_by<Q: Hash + Eq>(
        self,
        interval: Duration,
        keys_max: usize,
        key: impl FnMut(&F::Item) -> Q,
    ) -> Pipe<Latest<F, Q, impl FnMut(&F::Item) -> Q>> {
        assert!(
            !interval.is_zero(),
            "in no time there is one item of each key: leave the operator out instead"
        );
        assert!(keys_max > 0, "of no keys nothing passes");
        self.then("latest_by", |upstream, op, scope| {
            let name = op.name().to_string();
            let latest = Latest::new(upstream, interval, keys_max, key, op);
            scope.add_memory(name, latest.memory());
            latest
        })
    }

    /// Delays items so that no more pass than `limit` says, in items or bytes. Nothing is dropped and nothing held:
    /// upstream waits.
    ///
    /// # Cancel safety
    /// An item is taken from upstream only when it may pass.
    ///
    /// ```
    /// # use millstream_flow::{Pipe, RateLimit};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let started = tokio::time::Instant::now();
    /// let limit = RateLimit::new(10, Duration::from_secs(1)).burst(3);
    /// Pipe::from_iter(0..53).rate_limit(limit).for_each(drop).await.unwrap();
    /// assert_eq!(started.elapsed().as_secs(), 5); // three at once, fifty at ten a second
    /// # }
    /// ```
    pub fn rate_limit<W: Measure<F::Item>>(self, limit: RateLimit<W>) -> Pipe<RateLimited<F, W>> {
        self.then("rate_limit", |upstream, _, scope| RateLimited::new(upstream, limit, scope))
    }

    /// Fails the run, with [`Silent`](crate::Silent), when nothing has come for so long. Time in which the flow itself was
    /// busy, or held back by what comes after, does not count.
    ///
    /// A limit for each call of a function is [`Retry::timeout`](crate::Retry::timeout)'s.
    ///
    /// # Panics
    /// If `limit` is zero.
    pub fn idle_timeout(self, limit: Duration) -> Pipe<IdleTimeout<F>> {
        assert!(!limit.is_zero(), "no flow is never silent");
        self.then("idle_timeout", |upstream, op, scope| IdleTimeout::new(upstream, limit, op, scope.clone()))
    }
}

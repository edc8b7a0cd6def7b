//! Async functions, with many calls in flight.

use std::future::{Future, pending};
use std::hash::Hash;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::Pipe;
use crate::flow::Flow;
use crate::op::map_async::limit::{Deadlines, Limit, Limits, Since, within};
use crate::op::map_async::{Concurrency, MapAsync};
use crate::op::turns::Turns;
use crate::scope::Scope;
use crate::stats::OpStats;

impl<F: Flow> Pipe<F> {
    /// Calls an async function for each item, with many calls in flight in this stage's task.
    ///
    /// What an async closure captures its calls cannot borrow here: `move |item| async move { … }`, with clones, is how it gets there.
    ///
    /// # Ordering
    /// As [`Concurrency`] says: in order, or as results come.
    ///
    /// # Backpressure
    /// At most the limit is in flight, waiting results of an ordered one included. No item allocates: calls live
    /// in slots that are made once.
    ///
    /// # Errors
    /// A call that panics, or takes longer than its [`time_limit`](Concurrency::time_limit), is taken out; the run's
    /// [`PanicPolicy`](crate::PanicPolicy) decides. To hear of such an item, use [`try_map_async`](Pipe::try_map_async).
    ///
    /// # Cancel safety
    /// Calls are dropped where they wait when their time is over or the run is dropped.
    pub fn map_async<M, Fut>(self, concurrency: impl Into<Concurrency>, map: M) -> Pipe<MapAsync<F, M, Fut>>
    where
        M: FnMut(F::Item) -> Fut,
        Fut: Future,
    {
        self.calls("map_async", concurrency.into(), Since::Waiting, None, |_, _, _| map)
    }

    /// An operator that calls what `build` makes, in flight at once. `attempt` limits what each call says is one.
    pub(super) fn calls<M, Fut>(
        self,
        kind: &'static str,
        concurrency: Concurrency,
        since: Since,
        attempt: Option<Duration>,
        build: impl FnOnce(Arc<OpStats>, &Arc<Scope>, Limits) -> M,
    ) -> Pipe<MapAsync<F, M, Fut>>
    where
        M: FnMut(F::Item) -> Fut,
        Fut: Future,
    {
        self.then(kind, |upstream, op, scope| {
            let limit = concurrency.knob(format!("{} in flight", op.name()));
            let mut call = size_of::<Fut>() + size_of::<Option<Fut::Output>>();
            let limits =
                Limits { call: concurrency.time_limit.map(Limit::new), attempt: attempt.map(Limit::new) };
            let deadlines: Box<[_]> = [(&limits.call, since), (&limits.attempt, Since::Attempt)]
                .into_iter()
                .filter_map(|(limit, since)| {
                    let limit = limit.clone()?;
                    call += Deadlines::CALL_BYTES;
                    Some(Deadlines::new(limit, since, op.clone(), scope.clone()))
                })
                .collect();
            scope.add_memory(kind.into(), limit.bounds().1.saturating_mul(call));
            scope.add_knob(limit.clone());
            MapAsync::new(upstream, build(op, scope, limits), limit, concurrency.unordered, deadlines)
        })
    }

    /// As [`map_async`](Pipe::map_async), with calls for one key one after the other, in the order of their items.
    ///
    /// Keys are told apart by their hash, into sixteen times as many groups as calls may be in flight; keys of one group
    /// wait for each other like one key.
    ///
    /// # Ordering
    /// Calls and results of one key keep their order. Results of different keys as [`Concurrency`] says.
    ///
    /// # Backpressure
    /// A call that waits for another of its key counts as in flight.
    ///
    /// # Errors
    /// As [`map_async`](Pipe::map_async). The next call of a key begins when the one before is taken out.
    ///
    /// ```
    /// # use millstream_flow::{Concurrency, Pipe};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let updates = [("a", 3), ("a", 1), ("b", 1)];
    /// let (done, _) = Pipe::from_iter(updates)
    ///     .map_async_by_key(Concurrency::unordered(8), |update| update.0, async |(key, seconds)| {
    ///         tokio::time::sleep(Duration::from_secs(seconds)).await;
    ///         (key, seconds)
    ///     })
    ///     .collect()
    ///     .await
    ///     .unwrap();
    /// assert_eq!(done, [("b", 1), ("a", 3), ("a", 1)]);
    /// # }
    /// ```
    pub fn map_async_by_key<Q: Hash, U, M>(
        self,
        concurrency: impl Into<Concurrency>,
        mut key: impl FnMut(&F::Item) -> Q,
        map: M,
    ) -> Pipe<impl Flow<Item = U, Token = F::Token>>
    where
        M: AsyncFn(F::Item) -> U + 'static,
    {
        let concurrency = concurrency.into();
        self.calls("map_async_by_key", concurrency, Since::Said, None, |_, scope, limits| {
            let (turns, shared) =
                (Turns::new(&concurrency, scope, "map_async_by_key"), Arc::new((map, limits.call)));
            move |item| {
                let (turn, shared) = (turns.of(&key(&item)), shared.clone());
                async move {
                    let _turn = turn.wait().await;
                    let (map, limit) = &*shared;
                    match within(limit.as_deref(), pin!(map(item))).await {
                        Ok(output) => output,
                        // Its item is settled by whoever drops this.
                        Err(_) => pending().await,
                    }
                }
            }
        })
    }
}

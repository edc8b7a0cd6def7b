//! Functions that may fail, and what happens to what failed.

use std::future::Future;
use std::hash::Hash;
use std::pin::pin;
use std::sync::Arc;

use super::Pipe;
use crate::failure::{BoxError, Failed};
use crate::flow::Flow;
use crate::memo::Memo;
use crate::op::basic::{Inspect, Map};
use crate::op::errors::{DeadLetter, FailFast, Fallback, Reject, SkipErrors};
use crate::op::map_async::Concurrency;
use crate::op::map_async::limit::{Since, within};
use crate::op::try_async::catching;
use crate::op::try_map::TryMap;
use crate::op::turns::Turns;
use crate::retry::Retry;

/// An item with what was looked up for it, or the item for which that failed.
type LookedUp<T, V> = Result<(T, V), Failed<T>>;

impl<F: Flow> Pipe<F> {
    /// Calls a function that may fail, and gives `Ok` with its output or `Err` with a [`Failed`] that holds the
    /// *input*. What happens to failures is declared next: [`fail_fast`](Pipe::fail_fast),
    /// [`skip_errors`](Pipe::skip_errors), [`fallback`](Pipe::fallback), [`reject`](Pipe::reject) or
    /// [`dead_letter`](Pipe::dead_letter).
    ///
    /// # Panics
    /// A panic of the function is that item's failure, with [`Panicked`](crate::Panicked) as its error.
    ///
    /// ```
    /// use millstream_flow::Pipe;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let mut bad = Vec::new();
    /// let (numbers, _) = Pipe::from_iter(["1", "two", "3"])
    ///     .try_map(|text| text.parse::<u32>()).named("parse")
    ///     .fallback(move |failed| {
    ///         assert_eq!((failed.input, &*failed.stage, failed.position), ("two", "parse", 1));
    ///         bad.push(failed.input);
    ///         0
    ///     })
    ///     .collect()
    ///     .await
    ///     .unwrap();
    /// assert_eq!(numbers, [1, 0, 3]);
    /// # }
    /// ```
    pub fn try_map<U, E, M>(self, map: M) -> Pipe<TryMap<F, M>>
    where
        M: FnMut(&F::Item) -> Result<U, E>,
        E: Into<BoxError>,
    {
        self.try_map_retry(Retry::never(), map)
    }

    /// As [`try_map`](Pipe::try_map), and tries an item again as `retry` says before it counts as failed.
    ///
    /// # Ordering
    /// Kept: items behind a failing one wait while it is retried. To let them pass, use
    /// [`try_map_async`](Pipe::try_map_async) unordered.
    pub fn try_map_retry<U, E, M>(self, retry: Retry, map: M) -> Pipe<TryMap<F, M>>
    where
        M: FnMut(&F::Item) -> Result<U, E>,
        E: Into<BoxError>,
    {
        self.then("try_map", |upstream, op, scope| TryMap::new(upstream, map, retry, op, scope.clone()))
    }

    // What `Result` can do, item by item. Items that are not concerned pass as they are; order, backpressure and end are
    // upstream's.

    /// Turns the error of each failed item into another.
    pub fn map_err<T, E, R>(
        self,
        mut map: impl FnMut(E) -> R,
    ) -> Pipe<impl Flow<Item = Result<T, R>, Token = F::Token>>
    where
        F: Flow<Item = Result<T, E>>,
    {
        self.then("map_err", |upstream, _, _| Map {
            upstream,
            map: move |item: Result<T, E>| item.map_err(&mut map),
        })
    }

    /// Looks at the error of each failed item.
    pub fn inspect_err<T, E>(
        self,
        mut inspect: impl FnMut(&E),
    ) -> Pipe<impl Flow<Item = Result<T, E>, Token = F::Token>>
    where
        F: Flow<Item = Result<T, E>>,
    {
        self.then("inspect_err", |upstream, _, _| Inspect {
            upstream,
            inspect: move |item: &Result<T, E>| {
                if let Err(error) = item {
                    inspect(error);
                }
            },
        })
    }

    /// Goes on with the items that have not failed; they may fail now.
    pub fn and_then<T, E, U>(
        self,
        mut next: impl FnMut(T) -> Result<U, E>,
    ) -> Pipe<impl Flow<Item = Result<U, E>, Token = F::Token>>
    where
        F: Flow<Item = Result<T, E>>,
    {
        self.then("and_then", |upstream, _, _| Map {
            upstream,
            map: move |item: Result<T, E>| item.and_then(&mut next),
        })
    }

    /// Makes a good item of a failed one, or leaves it failed. Where every one can be mended, use
    /// [`fallback`](Pipe::fallback).
    ///
    /// ```
    /// # use millstream_flow::Pipe;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (numbers, report) = Pipe::from_iter(["1", "", "x"])
    ///     .try_map(|text| text.parse::<i32>())
    ///     .recover(|failed| if failed.input.is_empty() { Ok(0) } else { Err(failed) })
    ///     .reject()
    ///     .collect()
    ///     .await
    ///     .unwrap();
    /// assert_eq!((numbers, report.ledger.dead), (vec![1, 0], 1));
    /// # }
    /// ```
    pub fn recover<T, E>(
        self,
        mut mend: impl FnMut(E) -> Result<T, E>,
    ) -> Pipe<impl Flow<Item = Result<T, E>, Token = F::Token>>
    where
        F: Flow<Item = Result<T, E>>,
    {
        self.then("recover", |upstream, _, _| Map {
            upstream,
            map: move |item: Result<T, E>| item.or_else(&mut mend),
        })
    }

    // What happens to failed items.

    /// Fails the run at the first failed item. What is under way, that item included, is given back to the
    /// source.
    pub fn fail_fast<T, I>(self) -> Pipe<FailFast<F>>
    where
        F: Flow<Item = Result<T, Failed<I>>>,
    {
        self.then("fail_fast", |upstream, _, scope| FailFast {
            upstream,
            scope: scope.clone(),
            failed: false,
        })
    }

    /// Drops failed items: settled, and counted by this operator's name.
    pub fn skip_errors<T, I>(self) -> Pipe<SkipErrors<F>>
    where
        F: Flow<Item = Result<T, Failed<I>>>,
    {
        self.then("skip_errors", |upstream, op, _| SkipErrors { upstream, op })
    }

    /// Puts something else in a failed item's place.
    pub fn fallback<T, I, M>(self, instead: M) -> Pipe<Fallback<F, M>>
    where
        F: Flow<Item = Result<T, Failed<I>>>,
        M: FnMut(Failed<I>) -> T,
    {
        self.then("fallback", |upstream, _, _| Fallback { upstream, instead })
    }

    /// Settles failed items as dead, with their reason: the source dead-letters them (a broker's queue moves the
    /// message to its dead-letter exchange).
    pub fn reject<T, I>(self) -> Pipe<Reject<F>>
    where
        F: Flow<Item = Result<T, Failed<I>>>,
    {
        self.then("reject", |upstream, _, scope| Reject { upstream, scope: scope.clone() })
    }

    /// Hands failed items to `send`, one after the other, and settles each as dead when `send` has it safe. The
    /// flow waits meanwhile, so a `send` that may never return wants a limit, such as [`Timeout`](millstream_resilience::Timeout)'s.
    /// If it fails or panics the run fails, and the item is given back to its source.
    ///
    /// ```
    /// use millstream_flow::{BoxError, Failed, Pipe};
    /// use millstream_resilience::Timeout;
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let limit = Timeout::new(Duration::from_secs(10));
    /// let send = move |failed: Failed<i32>| {
    ///     limit.wrap(async move {
    ///         println!("{failed}"); // a real one stores it
    ///         Ok::<_, BoxError>(())
    ///     })
    /// };
    /// let (even, report) = Pipe::from_iter([1, 2])
    ///     .try_map(|n| if n % 2 == 0 { Ok(*n) } else { Err("odd") })
    ///     .dead_letter(send)
    ///     .collect()
    ///     .await
    ///     .unwrap();
    /// assert_eq!((even, report.ledger.dead), (vec![2], 1));
    /// # }
    /// ```
    pub fn dead_letter<T, I, D, Fut>(self, send: D) -> Pipe<DeadLetter<F, D>>
    where
        F: Flow<Item = Result<T, Failed<I>>>,
        D: FnMut(Failed<I>) -> Fut,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.then("dead_letter", |upstream, _, scope| DeadLetter {
            upstream,
            send,
            scope: scope.clone(),
            sending: None,
            ended: false,
        })
    }
}

impl<F> Pipe<F>
where
    F: Flow,
    F::Item: Send + Sync + 'static,
{
    /// Calls an async function that may fail, with many calls in flight and retries, and gives `Ok` with its
    /// output or `Err` with a [`Failed`] that holds the input.
    ///
    /// A retried call keeps its place in flight while it waits for its next attempt.
    ///
    /// # Ordering
    /// As [`Concurrency`] says.
    ///
    /// # Errors
    /// Of an item: the function's, its panic as [`Panicked`](crate::Panicked), and [`TimedOut`](crate::TimedOut) if an attempt
    /// takes longer than [`Retry::timeout`] or the whole call longer than its [`time_limit`](Concurrency::time_limit).
    ///
    /// # Cancel safety
    /// Calls are dropped where they wait when their time is over or the run is dropped.
    ///
    /// ```
    /// use millstream_flow::{Concurrency, Pipe, Retry};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let (replies, _) = Pipe::from_iter(1..=3)
    ///     .try_map_async(Concurrency::ordered(2), Retry::attempts(3).unwrap(), async |n: &i32| match n {
    ///         2 => Err("refused"),
    ///         n => Ok(n * 10),
    ///     })
    ///     .fallback(|failed| -(failed.attempts as i32))
    ///     .collect()
    ///     .await
    ///     .unwrap();
    /// assert_eq!(replies, [10, -3, 30]);
    /// # }
    /// ```
    pub fn try_map_async<U, E, M>(
        self,
        concurrency: impl Into<Concurrency>,
        retry: Retry,
        map: M,
    ) -> Pipe<impl Flow<Item = Result<U, Failed<F::Item>>, Token = F::Token>>
    where
        M: AsyncFn(&F::Item) -> Result<U, E> + 'static,
        E: Into<BoxError>,
    {
        self.calls("try_map_async", concurrency.into(), Since::Said, retry.limit(), |op, scope, limits| {
            let (scope, shared, mut position) = (scope.clone(), Arc::new((map, retry, op, limits)), 0);
            move |input| {
                let at = position;
                position += 1;
                crate::op::try_async::call(shared.clone(), scope.clone(), input, at)
            }
        })
    }

    /// As [`try_map_async`](Pipe::try_map_async), with calls for one key one after the other, in the order of their items. A
    /// call that is tried again keeps its key's turn meanwhile.
    ///
    /// # Ordering
    /// Calls and results of one key keep their order. Results of different keys as [`Concurrency`] says. Keys are told
    /// apart as by [`map_async_by_key`](Pipe::map_async_by_key).
    ///
    /// # Backpressure
    /// A call that waits for another of its key counts as in flight.
    ///
    /// ```
    /// use millstream_flow::{Concurrency, Pipe, Retry};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use std::sync::atomic::{AtomicBool, Ordering};
    /// let busy = AtomicBool::new(true);
    /// let (sent, _) = Pipe::from_iter([("a", 1), ("a", 2), ("b", 3)])
    ///     .try_map_async_by_key(
    ///         Concurrency::unordered(8),
    ///         Retry::attempts(2).unwrap(),
    ///         |update| update.0,
    ///         async move |update: &(&str, i32)| match busy.swap(false, Ordering::Relaxed) {
    ///             true => Err("busy"),
    ///             false => Ok(update.1),
    ///         },
    ///     )
    ///     .reject()
    ///     .collect()
    ///     .await
    ///     .unwrap();
    /// assert_eq!(sent, [3, 1, 2]); // the first of `a` is tried again, and its second waits for it
    /// # }
    /// ```
    pub fn try_map_async_by_key<Q: Hash, U, E, M>(
        self,
        concurrency: impl Into<Concurrency>,
        retry: Retry,
        mut key: impl FnMut(&F::Item) -> Q,
        map: M,
    ) -> Pipe<impl Flow<Item = Result<U, Failed<F::Item>>, Token = F::Token>>
    where
        M: AsyncFn(&F::Item) -> Result<U, E> + 'static,
        E: Into<BoxError>,
    {
        let concurrency = concurrency.into();
        self.calls("try_map_async_by_key", concurrency, Since::Said, retry.limit(), |op, scope, limits| {
            let turns = Turns::new(&concurrency, scope, "try_map_async_by_key");
            let (scope, shared, mut position) = (scope.clone(), Arc::new((map, retry, op, limits)), 0);
            move |input| {
                let (turn, shared, scope, at) =
                    (turns.of(&key(&input)), shared.clone(), scope.clone(), position);
                position += 1;
                async move {
                    let _turn = turn.wait().await;
                    crate::op::try_async::call(shared, scope, input, at).await
                }
            }
        })
    }

    /// Pairs each item with a value that is looked up by its key, once for each key as long as `memo` remembers it: for
    /// enrichment. Gives `Err` with a [`Failed`] that holds the item if it cannot be looked up.
    ///
    /// # Ordering
    /// As [`Concurrency`] says.
    ///
    /// # Errors
    /// Of an item: those of `look_up`, its panic as [`Panicked`](crate::Panicked), and [`TimedOut`](crate::TimedOut) if it takes
    /// longer than its [`time_limit`](Concurrency::time_limit). Another item that waited for the same value looks up for itself
    /// then, in a time of its own.
    ///
    /// ```
    /// # use millstream_flow::{Memo, Pipe};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let orders = [(1, "tea"), (2, "ink"), (1, "cups")];
    /// let names = Memo::new(1000);
    /// let look_up = async |customer: &u32| Ok::<_, std::io::Error>(["", "Ada", "Grace"][*customer as usize]);
    /// let (named, _) = Pipe::from_iter(orders)
    ///     .memoize(16, names.clone(), |order| order.0, look_up)
    ///     .reject()
    ///     .map(|((_, what), who)| format!("{who}: {what}"))
    ///     .collect()
    ///     .await
    ///     .unwrap();
    /// assert_eq!(named, ["Ada: tea", "Grace: ink", "Ada: cups"]);
    /// assert_eq!(names.misses(), 2);
    /// # }
    /// ```
    pub fn memoize<Q, V, E, M>(
        self,
        concurrency: impl Into<Concurrency>,
        memo: Memo<Q, V>,
        mut key: impl FnMut(&F::Item) -> Q,
        look_up: M,
    ) -> Pipe<impl Flow<Item = LookedUp<F::Item, V>, Token = F::Token>>
    where
        Q: Hash + Eq + Clone,
        V: Clone,
        M: AsyncFn(&Q) -> Result<V, E> + 'static,
        E: Into<BoxError>,
    {
        self.calls("memoize", concurrency.into(), Since::Said, None, |op, scope, limits| {
            scope.add_memory("memoize".into(), memo.memory());
            let (shared, mut position) = (Arc::new((memo, look_up, op, scope.clone(), limits.call)), 0);
            move |item| {
                let (key, shared, at) = (key(&item), shared.clone(), position);
                position += 1;
                async move {
                    let (memo, look_up, op, scope, limit) = &*shared;
                    let look_up = async |key: &Q| match within(limit.as_deref(), pin!(look_up(key))).await {
                        Ok(found) => found.map_err(Into::into),
                        Err(late) => Err(BoxError::from(late)),
                    };
                    let error = match catching(memo.get(key, look_up)).await {
                        Ok(Ok(value)) => return Ok((item, value)),
                        Ok(Err(error)) => error,
                        Err(panicked) => panicked.into(),
                    };
                    op.add_failed(1);
                    Err(Failed::new(item, error, op.name(), scope.clock().now()).counted(at, 1))
                }
            }
        })
    }
}

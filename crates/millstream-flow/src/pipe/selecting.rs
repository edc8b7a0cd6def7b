//! Which items pass.

use std::hash::Hash;

use super::Pipe;
use crate::flow::Flow;
use crate::op::basic::{Filter, FilterMap, Skip, SkipWhile, Take, TakeWhile};
use crate::op::dedupe::{Changes, Dedupe, Deduped};
use crate::op::sample::{Sample, Sampled, SampledByKey, threshold};

/// What these operators keep back is done: settled, and counted as dropped by the operator's name. All keep the order,
/// hold no item, and pass upstream's backpressure and end on.
impl<F: Flow> Pipe<F> {
    /// Passes the items that `keep` answers `true` for. The others are done: settled, and counted as dropped by
    /// this operator's name.
    ///
    /// # Panics
    /// A panic of `keep` is that item's, by the run's [`PanicPolicy`](crate::PanicPolicy).
    pub fn filter<P: FnMut(&F::Item) -> bool>(self, keep: P) -> Pipe<Filter<F, P>> {
        self.then("filter", |upstream, op, _| Filter { upstream, keep, op })
    }

    /// Maps and filters in one: `None` is dropped, as by [`filter`](Pipe::filter).
    pub fn filter_map<U, M: FnMut(F::Item) -> Option<U>>(self, map: M) -> Pipe<FilterMap<F, M>> {
        self.then("filter_map", |upstream, op, _| FilterMap { upstream, map, op })
    }

    /// Ends after `count` items. No further item is taken from the source.
    pub fn take(self, count: usize) -> Pipe<Take<F>> {
        self.then("take", |upstream, _, _| Take { upstream, left: count })
    }

    /// Drops the first `count` items.
    pub fn skip(self, count: usize) -> Pipe<Skip<F>> {
        self.then("skip", |upstream, op, _| Skip { upstream, left: count, op })
    }

    /// Ends at the first item that `keep` answers `false` for. That item is dropped; no further one is taken from
    /// the source.
    pub fn take_while<P: FnMut(&F::Item) -> bool>(self, keep: P) -> Pipe<TakeWhile<F, P>> {
        self.then("take_while", |upstream, op, _| TakeWhile { upstream, keep, op, ended: false })
    }

    /// Drops items until one comes that `skip` answers `false` for; that one and all behind it pass unasked.
    pub fn skip_while<P: FnMut(&F::Item) -> bool>(self, skip: P) -> Pipe<SkipWhile<F, P>> {
        self.then("skip_while", |upstream, op, _| SkipWhile { upstream, skip, op, passing: false })
    }

    /// Passes a part of the items: one in so many, or each with a probability. See [`Sample`].
    pub fn sample(self, rule: Sample) -> Pipe<Sampled<F>> {
        self.then("sample", |upstream, op, _| Sampled { upstream, rule, op })
    }

    /// Passes the items of a part of the keys, as large as `rate` says: whether a key is among them depends on
    /// nothing but the key, so that two runs, and two processes of the same build, choose the same ones. For
    /// experiments, and for traces that are to be whole.
    ///
    /// # Panics
    /// If `rate` is not between 0 and 1.
    pub fn sample_by<Q: Hash>(
        self,
        rate: f64,
        key: impl FnMut(&F::Item) -> Q,
    ) -> Pipe<SampledByKey<F, impl FnMut(&F::Item) -> Q>> {
        let threshold = threshold(rate);
        self.then("sample_by", |upstream, op, _| SampledByKey { upstream, threshold, key, op })
    }

    /// Passes the first item of each key; the others are dropped. [`Dedupe`] says how many keys are
    /// remembered, and for how long.
    ///
    /// An item that fails further down has passed all the same: its copy is a duplicate.
    ///
    /// ```
    /// # use millstream_flow::{Dedupe, Pipe};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let orders = [(7, "created"), (8, "created"), (7, "created again")];
    /// let (first, report) =
    ///     Pipe::from_iter(orders).dedupe(Dedupe::keys(10_000), |order| order.0).collect().await.unwrap();
    /// assert_eq!(first, [(7, "created"), (8, "created")]);
    /// assert_eq!(report.ledger.dropped["dedupe"], 1);
    /// # }
    /// ```
    pub fn dedupe<Q: Hash + Eq>(
        self,
        rule: Dedupe,
        key: impl FnMut(&F::Item) -> Q,
    ) -> Pipe<Deduped<F, Q, impl FnMut(&F::Item) -> Q>> {
        self.then("dedupe", |upstream, op, scope| {
            scope.add_memory(op.name().to_string(), rule.memory::<Q>());
            Deduped::new(upstream, rule, key, op)
        })
    }

    /// Passes an item if its key is another than that of the item before it.
    pub fn distinct_until_changed<Q: PartialEq>(
        self,
        key: impl FnMut(&F::Item) -> Q,
    ) -> Pipe<Changes<F, Q, impl FnMut(&F::Item) -> Q>> {
        self.then("distinct_until_changed", |upstream, op, _| Changes { upstream, last: None, key, op })
    }
}

//! A part of the items.

use std::collections::hash_map::DefaultHasher;
use std::hash::{BuildHasher, BuildHasherDefault, Hash};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::flow::{Flow, Step};
use crate::op::Discard;
use crate::stats::OpStats;

/// Which part of the items [`Pipe::sample`](crate::Pipe::sample) passes.
///
/// For the newest item of each interval see [`Throttle::trailing`](crate::Throttle::trailing), and
/// [`Pipe::latest_by`](crate::Pipe::latest_by) for that of each key; for a part of the keys
/// [`Pipe::sample_by`](crate::Pipe::sample_by).
#[derive(Debug, Clone)]
pub struct Sample(Rule);

#[derive(Debug, Clone)]
enum Rule {
    /// Every so many; how many are still to be left out.
    OneIn { every: usize, left: usize },
    /// By chance.
    Rate { threshold: u128, dice: fastrand::Rng },
}

impl Sample {
    /// The first of every `every` items.
    ///
    /// # Panics
    /// If `every` is 0.
    pub fn one_in(every: usize) -> Self {
        assert!(every > 0, "one in no items is none; leave the flow out instead");
        Sample(Rule::OneIn { every, left: 0 })
    }

    /// Each item with this probability, whatever became of the others.
    ///
    /// # Panics
    /// If `rate` is not between 0 and 1.
    pub fn rate(rate: f64) -> Self {
        Sample(Rule::Rate { threshold: threshold(rate), dice: fastrand::Rng::new() })
    }

    /// As [`rate`](Self::rate), with the same chances in every run: for tests.
    ///
    /// # Panics
    /// As `rate`.
    pub fn rate_with_seed(rate: f64, seed: u64) -> Self {
        Sample(Rule::Rate { threshold: threshold(rate), dice: fastrand::Rng::with_seed(seed) })
    }

    #[inline]
    fn passes(&mut self) -> bool {
        match &mut self.0 {
            Rule::OneIn { every, left } => {
                let passes = *left == 0;
                *left = if passes { *every - 1 } else { *left - 1 };
                passes
            }
            Rule::Rate { threshold, dice } => u128::from(dice.u64(..)) < *threshold,
        }
    }
}

/// Below how much of 2^64 a number must be to have this probability; all of it for 1, which never drops.
pub(crate) fn threshold(rate: f64) -> u128 {
    assert!((0.0..=1.0).contains(&rate), "a sampling rate is between 0 and 1, not {rate}");
    (rate * 2f64.powi(64)) as u128
}

/// See [`Pipe::sample`](crate::Pipe::sample).
pub struct Sampled<F> {
    pub(crate) upstream: F,
    pub(crate) rule: Sample,
    pub(crate) op: Arc<OpStats>,
}

impl<F: Flow> Flow for Sampled<F> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        let Sampled { upstream, rule, op } = self;
        let mut dropped = Discard::<F::Token>::new(op);
        upstream.poll_drive(cx, max, &mut |item, token| {
            if rule.passes() {
                return sink(item, token);
            }
            dropped.add(token);
            ControlFlow::Continue(())
        })
    }
}

/// See [`Pipe::sample_by`](crate::Pipe::sample_by).
pub struct SampledByKey<F, N> {
    pub(crate) upstream: F,
    pub(crate) threshold: u128,
    pub(crate) key: N,
    pub(crate) op: Arc<OpStats>,
}

impl<F: Flow, Q: Hash, N: FnMut(&F::Item) -> Q> Flow for SampledByKey<F, N> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        let SampledByKey { upstream, threshold, key, op } = self;
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let mut dropped = Discard::<F::Token>::new(op);
        upstream.poll_drive(cx, max, &mut |item, token| {
            if u128::from(hasher.hash_one(key(&item))) < *threshold {
                return sink(item, token);
            }
            dropped.add(token);
            ControlFlow::Continue(())
        })
    }
}

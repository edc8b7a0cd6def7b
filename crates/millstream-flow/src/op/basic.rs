//! The plain operators: map, scan, filter, inspect, take and skip in their forms. Nothing but closures.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::flow::{Flow, Step};
use crate::op::Discard;
use crate::stats::OpStats;

/// See [`Pipe::map`](crate::Pipe::map).
pub struct Map<F, M> {
    pub(crate) upstream: F,
    pub(crate) map: M,
}

impl<F: Flow, U, M: FnMut(F::Item) -> U> Flow for Map<F, M> {
    type Item = U;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(U, F::Token) -> ControlFlow<()>,
    {
        let map = &mut self.map;
        self.upstream.poll_drive(cx, max, &mut |item, token| sink(map(item), token))
    }
}

/// See [`Pipe::inspect`](crate::Pipe::inspect).
pub struct Inspect<F, I> {
    pub(crate) upstream: F,
    pub(crate) inspect: I,
}

impl<F: Flow, I: FnMut(&F::Item)> Flow for Inspect<F, I> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        let inspect = &mut self.inspect;
        self.upstream.poll_drive(cx, max, &mut |item, token| {
            inspect(&item);
            sink(item, token)
        })
    }
}

/// See [`Pipe::scan`](crate::Pipe::scan).
pub struct Scan<F, A, M> {
    pub(crate) upstream: F,
    pub(crate) state: A,
    pub(crate) step: M,
}

impl<F: Flow, A, U, M: FnMut(&mut A, F::Item) -> U> Flow for Scan<F, A, M> {
    type Item = U;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(U, F::Token) -> ControlFlow<()>,
    {
        let Scan { upstream, state, step } = self;
        upstream.poll_drive(cx, max, &mut |item, token| sink(step(state, item), token))
    }
}

/// See [`Pipe::filter`](crate::Pipe::filter).
pub struct Filter<F, P> {
    pub(crate) upstream: F,
    pub(crate) keep: P,
    pub(crate) op: Arc<OpStats>,
}

impl<F: Flow, P: FnMut(&F::Item) -> bool> Flow for Filter<F, P> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        let keep = &mut self.keep;
        let mut dropped = Discard::<F::Token>::new(&self.op);
        self.upstream.poll_drive(cx, max, &mut |item, token| {
            if keep(&item) {
                sink(item, token)
            } else {
                dropped.add(token);
                ControlFlow::Continue(())
            }
        })
    }
}

/// See [`Pipe::filter_map`](crate::Pipe::filter_map).
pub struct FilterMap<F, M> {
    pub(crate) upstream: F,
    pub(crate) map: M,
    pub(crate) op: Arc<OpStats>,
}

impl<F: Flow, U, M: FnMut(F::Item) -> Option<U>> Flow for FilterMap<F, M> {
    type Item = U;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(U, F::Token) -> ControlFlow<()>,
    {
        let map = &mut self.map;
        let mut dropped = Discard::<F::Token>::new(&self.op);
        self.upstream.poll_drive(cx, max, &mut |item, token| match map(item) {
            Some(item) => sink(item, token),
            None => {
                dropped.add(token);
                ControlFlow::Continue(())
            }
        })
    }
}

/// See [`Pipe::take`](crate::Pipe::take).
pub struct Take<F> {
    pub(crate) upstream: F,
    pub(crate) left: usize,
}

impl<F: Flow> Flow for Take<F> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        if self.left == 0 {
            return Poll::Ready(Step::End);
        }
        let left = &mut self.left;
        // `max` bounds what upstream pushes, so that it never lets in an item that would not be taken.
        let step = self.upstream.poll_drive(cx, max.min(*left), &mut |item, token| {
            *left -= 1;
            sink(item, token)
        });
        if self.left == 0 { Poll::Ready(Step::End) } else { step }
    }
}

/// See [`Pipe::skip`](crate::Pipe::skip).
pub struct Skip<F> {
    pub(crate) upstream: F,
    pub(crate) left: usize,
    pub(crate) op: Arc<OpStats>,
}

impl<F: Flow> Flow for Skip<F> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        if self.left == 0 {
            return self.upstream.poll_drive(cx, max, sink);
        }
        let left = &mut self.left;
        let mut dropped = Discard::<F::Token>::new(&self.op);
        self.upstream.poll_drive(cx, max, &mut |item, token| {
            if *left == 0 {
                return sink(item, token);
            }
            *left -= 1;
            dropped.add(token);
            ControlFlow::Continue(())
        })
    }
}

/// See [`Pipe::take_while`](crate::Pipe::take_while).
pub struct TakeWhile<F, P> {
    pub(crate) upstream: F,
    pub(crate) keep: P,
    pub(crate) op: Arc<OpStats>,
    pub(crate) ended: bool,
}

impl<F: Flow, P: FnMut(&F::Item) -> bool> Flow for TakeWhile<F, P> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        let TakeWhile { upstream, keep, op, ended } = self;
        if *ended {
            return Poll::Ready(Step::End);
        }
        let mut dropped = Discard::<F::Token>::new(op);
        let step = upstream.poll_drive(cx, max, &mut |item, token| {
            if keep(&item) {
                return sink(item, token);
            }
            *ended = true;
            dropped.add(token);
            ControlFlow::Break(())
        });
        if *ended { Poll::Ready(Step::End) } else { step }
    }
}

/// See [`Pipe::skip_while`](crate::Pipe::skip_while).
pub struct SkipWhile<F, P> {
    pub(crate) upstream: F,
    pub(crate) skip: P,
    pub(crate) op: Arc<OpStats>,
    pub(crate) passing: bool,
}

impl<F: Flow, P: FnMut(&F::Item) -> bool> Flow for SkipWhile<F, P> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        let SkipWhile { upstream, skip, op, passing } = self;
        if *passing {
            return upstream.poll_drive(cx, max, sink);
        }
        let mut dropped = Discard::<F::Token>::new(op);
        upstream.poll_drive(cx, max, &mut |item, token| {
            if *passing || !skip(&item) {
                *passing = true;
                return sink(item, token);
            }
            dropped.add(token);
            ControlFlow::Continue(())
        })
    }
}

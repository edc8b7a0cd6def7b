//! Operators that see what items carry.

use std::ops::ControlFlow;
use std::task::{Context, Poll};

use crate::context::{Carry, ContextKey, ContextRef, InContext};
use crate::flow::{Flow, Step};

/// See [`Pipe::with_context`](crate::Pipe::with_context).
pub struct WithContext<F> {
    pub(crate) upstream: F,
}

impl<F: Flow> Flow for WithContext<F> {
    type Item = F::Item;
    type Token = InContext<F::Token>;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, Self::Token) -> ControlFlow<()>,
    {
        self.upstream.poll_drive(cx, max, &mut |item, token| sink(item, InContext::new(token)))
    }
}

/// See [`Pipe::without_context`](crate::Pipe::without_context).
pub struct WithoutContext<F> {
    pub(crate) upstream: F,
}

impl<F: Flow<Token: Carry>> Flow for WithoutContext<F> {
    type Item = F::Item;
    type Token = <F::Token as Carry>::Bare;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, Self::Token) -> ControlFlow<()>,
    {
        self.upstream.poll_drive(cx, max, &mut |item, token| sink(item, token.bare()))
    }
}

/// See [`Pipe::set_context`](crate::Pipe::set_context).
pub struct SetContext<F, T: 'static, M> {
    pub(crate) upstream: F,
    pub(crate) key: &'static ContextKey<T>,
    pub(crate) value: M,
}

impl<F, T, M> Flow for SetContext<F, T, M>
where
    F: Flow<Token: Carry>,
    T: Send + Sync + 'static,
    M: FnMut(&F::Item) -> T,
{
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        let SetContext { upstream, key, value } = self;
        upstream.poll_drive(cx, max, &mut |item, mut token| {
            token.set(key, value(&item));
            sink(item, token)
        })
    }
}

/// See [`Pipe::map_in_context`](crate::Pipe::map_in_context).
pub struct MapInContext<F, M> {
    pub(crate) upstream: F,
    pub(crate) map: M,
}

impl<F, U, M> Flow for MapInContext<F, M>
where
    F: Flow<Token: Carry>,
    M: FnMut(F::Item, ContextRef<'_, F::Token>) -> U,
{
    type Item = U;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(U, F::Token) -> ControlFlow<()>,
    {
        let map = &mut self.map;
        self.upstream.poll_drive(cx, max, &mut |item, token| {
            let item = map(item, ContextRef(&token));
            sink(item, token)
        })
    }
}

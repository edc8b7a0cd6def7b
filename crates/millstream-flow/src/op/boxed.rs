//! Type erasure: any flow of the same items as one type.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::task::{Context, Poll};

use crate::flow::{Flow, Step};
use crate::token::Settle;

/// The object-safe form of [`Flow`], a chunk a call.
trait DynFlow<T, K>: Send {
    fn poll_chunk(&mut self, cx: &mut Context<'_>, out: &mut Vec<(T, K)>, max: usize) -> Poll<Step>;
}

impl<F: Flow + Send> DynFlow<F::Item, F::Token> for F {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<(F::Item, F::Token)>,
        max: usize,
    ) -> Poll<Step> {
        self.poll_drive(cx, max, &mut |item, token| {
            out.push((item, token));
            ControlFlow::Continue(())
        })
    }
}

/// A flow whose operators' types are forgotten. See [`Pipe::boxed`](crate::Pipe::boxed).
///
/// Items cross the boundary in chunks of up to 256, so the virtual call is paid per chunk. What a sink that
/// breaks off leaves of a chunk stays here, in order.
pub struct BoxFlow<T, K: Settle = ()> {
    inner: Box<dyn DynFlow<T, K>>,
    chunk: Vec<(T, K)>,
    rest: VecDeque<(T, K)>,
    ended: bool,
}

/// How many items cross at once.
pub(crate) const CHUNK: usize = 256;

/// A chunk that is being pushed. What a break or a panic leaves of it goes to `rest`.
struct Pushing<'a, T, K> {
    chunk: std::vec::Drain<'a, (T, K)>,
    rest: &'a mut VecDeque<(T, K)>,
}

impl<T, K> Drop for Pushing<'_, T, K> {
    fn drop(&mut self) {
        if self.chunk.len() > 0 {
            self.rest.extend(self.chunk.by_ref());
        }
    }
}

impl<T, K: Settle> BoxFlow<T, K> {
    pub(crate) fn new(flow: impl Flow<Item = T, Token = K> + Send + 'static) -> Self {
        BoxFlow { inner: Box::new(flow), chunk: Vec::new(), rest: VecDeque::new(), ended: false }
    }
}

impl<T, K: Settle> Flow for BoxFlow<T, K> {
    type Item = T;
    type Token = K;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(T, K) -> ControlFlow<()>,
    {
        let mut room = max;
        if !self.chunk.is_empty() {
            self.rest.extend(self.chunk.drain(..)); // a panic upstream cut the chunk short
        }
        while let Some((item, token)) = self.rest.pop_front() {
            room -= 1;
            if sink(item, token).is_break() || room == 0 {
                return Poll::Ready(Step::More);
            }
        }
        if self.ended {
            return Poll::Ready(Step::End);
        }
        loop {
            // With `room` passed down, nothing is taken from upstream that the sink did not ask for.
            let step = self.inner.poll_chunk(cx, &mut self.chunk, room.min(CHUNK));
            self.ended = step == Poll::Ready(Step::End);
            let got = self.chunk.len();
            room -= got;
            let mut pushing = Pushing { chunk: self.chunk.drain(..), rest: &mut self.rest };
            let mut broke = false;
            for (item, token) in pushing.chunk.by_ref() {
                broke = sink(item, token).is_break();
                if broke {
                    break;
                }
            }
            drop(pushing);
            if !self.rest.is_empty() || (broke && !self.ended) {
                return Poll::Ready(Step::More);
            }
            match step {
                // Nothing came: an operator drops all of it, and the stage must be able to yield.
                Poll::Ready(Step::More) if room > 0 && got > 0 => {}
                step => return step,
            }
        }
    }
}

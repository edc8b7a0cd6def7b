//! Type erasure: any flow of the same items as one type.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::task::{Context, Poll};

use crate::flow::{Flow, Step};
use crate::token::Settle;

/// The object-safe form of [`Flow`], a chunk a call.
trait DynFlow<T, K>: Send {
    fn poll_chunk(&mut self, cx: &mut Context<'_>, out: &mut VecDeque<(T, K)>, max: usize) -> Poll<Step>;
}

impl<F: Flow + Send> DynFlow<F::Item, F::Token> for F {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut VecDeque<(F::Item, F::Token)>,
        max: usize,
    ) -> Poll<Step> {
        self.poll_drive(cx, max, &mut |item, token| {
            out.push_back((item, token));
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
    chunk: VecDeque<(T, K)>,
    ended: bool,
}

/// How many items cross at once.
pub(crate) const CHUNK: usize = 256;

impl<T, K: Settle> BoxFlow<T, K> {
    pub(crate) fn new(flow: impl Flow<Item = T, Token = K> + Send + 'static) -> Self {
        BoxFlow { inner: Box::new(flow), chunk: VecDeque::new(), ended: false }
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
        loop {
            while room > 0 {
                let Some((item, token)) = self.chunk.pop_front() else { break };
                room -= 1;
                if sink(item, token).is_break() {
                    return Poll::Ready(Step::More);
                }
            }
            if room == 0 {
                return Poll::Ready(Step::More);
            }
            if self.ended {
                return Poll::Ready(Step::End);
            }
            // With `room` passed down, nothing is taken from upstream that the sink did not ask for.
            let step = self.inner.poll_chunk(cx, &mut self.chunk, room.min(CHUNK));
            self.ended = step == Poll::Ready(Step::End);
            if self.chunk.is_empty() && !self.ended {
                return step;
            }
            if step.is_pending() {
                // Hand on what came with it, then wait: the waker is registered.
                while let Some((item, token)) = self.chunk.pop_front() {
                    if sink(item, token).is_break() {
                        return Poll::Ready(Step::More);
                    }
                }
                return Poll::Pending;
            }
        }
    }
}

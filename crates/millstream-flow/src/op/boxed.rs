//! Type erasure: any flow of the same items as one type.

use std::ops::ControlFlow;
use std::task::{Context, Poll};

use crate::chunk::Chunk;
use crate::flow::{Flow, Step};
use crate::held::Held;
use crate::token::Settle;

/// The object-safe form of [`Flow`], a chunk a call.
trait DynFlow<T, K>: Send {
    fn poll_chunk(&mut self, cx: &mut Context<'_>, out: &mut Chunk<(T, K)>, max: usize) -> Poll<Step>;
}

impl<F: Flow + Send> DynFlow<F::Item, F::Token> for F {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Chunk<(F::Item, F::Token)>,
        max: usize,
    ) -> Poll<Step> {
        let mut flow = Held::new(self);
        let mut filling = out.fill(max);
        flow.poll_drive(cx, max, &mut |item, token| {
            filling.push((item, token));
            ControlFlow::Continue(())
        })
    }
}

/// A flow whose operators' types are forgotten. See [`Pipe::boxed`](crate::Pipe::boxed).
///
/// Items cross the boundary in chunks, so the virtual call is paid per chunk. A chunk is as large as the sink shows
/// to be wanted: it doubles, up to 1,024 items or 16 KiB, while all of it is taken, and is one item after the sink broke off, so
/// that one who asks for item after item finds nothing read ahead. What a sink that breaks off leaves of a chunk
/// stays here, in order.
pub struct BoxFlow<T, K: Settle = ()> {
    inner: Box<dyn DynFlow<T, K>>,
    chunk: Chunk<(T, K)>,
    /// How many items the next chunk takes.
    size: usize,
    ended: bool,
}

/// How many items cross at most at once: what the first-level cache holds beside the chunks of other boxes.
pub(crate) const fn chunk_items<T>() -> usize {
    let size = if size_of::<T>() == 0 { 1 } else { size_of::<T>() };
    let items = CHUNK_BYTES / size;
    if items > CHUNK_ITEMS {
        CHUNK_ITEMS
    } else if items == 0 {
        1
    } else {
        items
    }
}

const CHUNK_BYTES: usize = 16 << 10;
const CHUNK_ITEMS: usize = 1024;

impl<T, K: Settle> BoxFlow<T, K> {
    pub(crate) fn new(flow: impl Flow<Item = T, Token = K> + Send + 'static) -> Self {
        BoxFlow { inner: Box::new(flow), chunk: Chunk::new(), size: 1, ended: false }
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
        // What a break or a panic left of the last chunk.
        let mut step = Poll::Ready(Step::More);
        loop {
            let broke = self.chunk.push_into(&mut room, sink).is_break();
            if broke || !self.chunk.is_empty() {
                self.size = 1;
                let over = self.ended && self.chunk.is_empty();
                return Poll::Ready(if over { Step::End } else { Step::More });
            }
            if self.ended {
                return Poll::Ready(Step::End);
            }
            if room == 0 || step.is_pending() {
                return step;
            }
            // With `room` passed down, nothing is taken from upstream that the sink did not ask for.
            step = self.inner.poll_chunk(cx, &mut self.chunk, room.min(self.size));
            self.ended = step == Poll::Ready(Step::End);
            if self.chunk.is_empty() {
                // An operator drops all of it, and the stage must be able to yield.
                return step;
            }
            self.size = (self.size * 2).min(chunk_items::<(T, K)>());
        }
    }
}

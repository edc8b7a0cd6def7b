//! Flows one after the other.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::task::{Context, Poll};

use crate::flow::{Flow, Step};

/// See [`Pipe::concat`](crate::Pipe::concat).
pub struct Concat<F> {
    /// Those that have not ended.
    flows: VecDeque<F>,
}

impl<F> Concat<F> {
    pub(crate) fn new(flows: impl IntoIterator<Item = F>) -> Self {
        Concat { flows: flows.into_iter().collect() }
    }
}

impl<F: Flow> Flow for Concat<F> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        let Some(flow) = self.flows.front_mut() else { return Poll::Ready(Step::End) };
        let step = flow.poll_drive(cx, max, sink);
        if step != Poll::Ready(Step::End) {
            return step;
        }
        self.flows.pop_front();
        // How much of `max` is left was not counted, which would cost every item; the next call goes on.
        Poll::Ready(if self.flows.is_empty() { Step::End } else { Step::More })
    }
}

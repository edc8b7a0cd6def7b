//! Several flows as one.

use std::ops::ControlFlow;
use std::task::{Context, Poll};

use crate::flow::{Flow, Step};
use crate::held::Held;

/// How many items one input may push before the next has its turn.
const TURN: usize = 256;

/// See [`Pipe::merge`](crate::Pipe::merge).
pub struct Merge<F> {
    inputs: Vec<Option<F>>,
    next: usize,
}

impl<F> Merge<F> {
    pub(crate) fn new(inputs: impl IntoIterator<Item = F>) -> Self {
        Merge { inputs: inputs.into_iter().map(Some).collect(), next: 0 }
    }

    /// One more, in the place of one that has ended if there is one.
    pub(crate) fn add(&mut self, flow: F) {
        match self.inputs.iter_mut().find(|input| input.is_none()) {
            Some(place) => *place = Some(flow),
            None => self.inputs.push(Some(flow)),
        }
    }

    /// Whether all have ended.
    pub(crate) fn is_empty(&self) -> bool {
        self.inputs.iter().all(Option::is_none)
    }
}

impl<F: Flow> Flow for Merge<F> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        let mut room = max;
        let mut broke = false;
        let mut waiting = 0;
        let mut open = self.inputs.iter().flatten().count();
        // Round after round until the room ends or every open input waits.
        while open > 0 && waiting < open {
            let at = self.next;
            self.next = (self.next + 1) % self.inputs.len();
            let Some(input) = &mut self.inputs[at] else { continue };
            let before = room;
            let step = Held::new(input).poll_drive(cx, room.min(TURN), &mut |item, token| {
                room -= 1;
                let flow = sink(item, token);
                broke |= flow.is_break();
                flow
            });
            match step {
                Poll::Pending => waiting += 1,
                // An input that drops all it has takes time without using up room: the stage must be able to yield.
                Poll::Ready(Step::More) if room == before => return Poll::Ready(Step::More),
                Poll::Ready(Step::More) => waiting = 0,
                Poll::Ready(Step::End) => {
                    self.inputs[at] = None;
                    open -= 1;
                    waiting = 0;
                }
            }
            if broke || room == 0 {
                return Poll::Ready(if open == 0 { Step::End } else { Step::More });
            }
        }
        if open == 0 { Poll::Ready(Step::End) } else { Poll::Pending }
    }
}

/// One of two flows of the same items.
pub enum Either<A, B> {
    /// The first.
    Left(A),
    /// The second.
    Right(B),
}

impl<A, B> Flow for Either<A, B>
where
    A: Flow,
    B: Flow<Item = A::Item, Token = A::Token>,
{
    type Item = A::Item;
    type Token = A::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(A::Item, A::Token) -> ControlFlow<()>,
    {
        match self {
            Either::Left(flow) => flow.poll_drive(cx, max, sink),
            Either::Right(flow) => flow.poll_drive(cx, max, sink),
        }
    }
}

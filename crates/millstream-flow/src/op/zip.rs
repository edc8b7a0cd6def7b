//! Two flows, item by item.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::flow::{Flow, Step};
use crate::op::{Discard, Tally};
use crate::scope::Scope;
use crate::stats::OpStats;
use crate::token::Settle;

/// See [`Pipe::zip`](crate::Pipe::zip).
pub struct Zip<A: Flow, B> {
    left: A,
    right: B,
    /// An item of the left flow whose partner has not come yet.
    held: Option<(A::Item, A::Token)>,
    op: Arc<OpStats>,
    scope: Arc<Scope>,
    ended: bool,
}

impl<A: Flow, B> Zip<A, B> {
    pub(crate) fn new(left: A, right: B, op: Arc<OpStats>, scope: Arc<Scope>) -> Self {
        Zip { left, right, held: None, op, scope, ended: false }
    }
}

impl<A, B> Flow for Zip<A, B>
where
    A: Flow,
    B: Flow<Token = A::Token>,
{
    type Item = (A::Item, B::Item);
    type Token = <A::Token as Settle>::Group;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Self::Item, Self::Token) -> ControlFlow<()>,
    {
        let Zip { left, right, held, op, scope, ended } = self;
        let mut merged = Tally::new::<A::Token>(&scope.counts.merged);
        let mut room = max;
        while !*ended && room > 0 {
            if held.is_none() {
                let step = left.poll_drive(cx, 1, &mut |item, token| {
                    *held = Some((item, token));
                    ControlFlow::Break(())
                });
                if held.is_none() {
                    *ended = step == Poll::Ready(Step::End);
                    return step;
                }
            }
            let mut flow = ControlFlow::Continue(());
            let before = room;
            let step = right.poll_drive(cx, 1, &mut |other, token| {
                let Some((item, own)) = held.take() else { return ControlFlow::Break(()) };
                let mut tokens = Self::Token::default();
                own.join(&mut tokens);
                token.join(&mut tokens);
                merged.add(1);
                room -= 1;
                flow = sink((item, other), tokens);
                ControlFlow::Break(())
            });
            *ended = step == Poll::Ready(Step::End);
            if *ended && let Some((_, token)) = held.take() {
                // Its partner will never come.
                Discard::<A::Token>::new(op).add(token);
            }
            if flow.is_break() {
                break;
            }
            if room == before && !*ended {
                return step;
            }
        }
        Poll::Ready(if *ended { Step::End } else { Step::More })
    }
}

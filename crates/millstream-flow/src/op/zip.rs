//! Two flows, item by item.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::flow::{Flow, Step};
use crate::op::{Discard, Tally};
use crate::scope::Scope;
use crate::stats::OpStats;
use crate::token::Settle;

/// An item of a flow that waits for its partner.
type Held<F> = Option<(<F as Flow>::Item, <F as Flow>::Token)>;

/// See [`Pipe::zip`](crate::Pipe::zip).
pub struct Zip<A: Flow, B: Flow> {
    left: A,
    right: B,
    /// Items whose partner has not come yet: of one side only, between calls.
    held: (Held<A>, Held<B>),
    op: Arc<OpStats>,
    scope: Arc<Scope>,
    ended: bool,
}

impl<A: Flow, B: Flow> Zip<A, B> {
    pub(crate) fn new(left: A, right: B, op: Arc<OpStats>, scope: Arc<Scope>) -> Self {
        Zip { left, right, held: (None, None), op, scope, ended: false }
    }
}

/// What a flow says that has no item held.
enum Empty {
    Ended,
    Waits,
    /// It has dropped what it had, and is to be asked again.
    Dropped,
}

/// Has a flow's next item held, unless there is one.
#[inline]
fn hold<F: Flow>(flow: &mut F, cx: &mut Context<'_>, held: &mut Held<F>) -> Option<Empty> {
    if held.is_some() {
        return None;
    }
    let step = flow.poll_drive(cx, 1, &mut |item, token| {
        *held = Some((item, token));
        ControlFlow::Break(())
    });
    if held.is_some() {
        return None;
    }
    Some(match step {
        Poll::Ready(Step::End) => Empty::Ended,
        Poll::Ready(Step::More) => Empty::Dropped,
        Poll::Pending => Empty::Waits,
    })
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
            // Both are asked, so that either end is heard of while the other side is silent.
            let own = hold(left, cx, &mut held.0);
            let other = match own {
                Some(Empty::Ended) => None,
                _ => hold(right, cx, &mut held.1),
            };
            *ended = matches!((&own, &other), (Some(Empty::Ended), _) | (_, Some(Empty::Ended)));
            match (held.0.take(), held.1.take()) {
                (Some((item, own)), Some((other, token))) => {
                    let mut tokens = Self::Token::default();
                    own.join(&mut tokens);
                    token.join(&mut tokens);
                    merged.add(1);
                    room -= 1;
                    if sink((item, other), tokens).is_break() {
                        break;
                    }
                }
                // Its partner will never come.
                (Some((_, token)), None) | (None, Some((_, token))) if *ended => {
                    Discard::<A::Token>::new(op).add(token);
                }
                waiting if !*ended => {
                    *held = waiting;
                    return match (own, other) {
                        (Some(Empty::Dropped), _) | (_, Some(Empty::Dropped)) => Poll::Ready(Step::More),
                        _ => Poll::Pending,
                    };
                }
                _ => {}
            }
        }
        Poll::Ready(if *ended { Step::End } else { Step::More })
    }
}

//! Several flows as one.

use std::sync::Arc;

use super::Pipe;
use crate::flow::Flow;
use crate::op::concat::Concat;
use crate::op::merge::{Either, Merge};
use crate::op::zip::Zip;
use crate::scope::Scope;
use crate::stats::OpStats;
use crate::token::Settle;

impl<F: Flow> Pipe<F> {
    /// This flow and another of the same items, by turns of up to 256 items. Ends when both have ended.
    ///
    /// # Ordering
    /// Each input's order is kept.
    pub fn merge<G>(self, other: Pipe<G>) -> Pipe<Merge<Either<F, G>>>
    where
        G: Flow<Item = F::Item, Token = F::Token>,
    {
        let Pipe { flow, scope, mut ops, .. } = self;
        let scope = scope.adopt(&other.scope);
        ops.extend(other.ops);
        let flow = Merge::new([Either::Left(flow), Either::Right(other.flow)]);
        ops.push(OpStats::new("merge"));
        Pipe { flow, scope, ops, boundary: None }
    }

    /// Any number of flows of one type as one, by turns.
    ///
    /// # Panics
    /// If there is none.
    pub fn merge_all(pipes: impl IntoIterator<Item = Pipe<F>>) -> Pipe<Merge<F>> {
        let Joined { flows, scope, ops } = Joined::new(pipes, "merge");
        Pipe { flow: Merge::new(flows), scope, ops, boundary: None }
    }

    /// This flow and then another of the same items, which is not asked for any before this one has ended.
    ///
    /// # Ordering
    /// All of this flow's items, then all of the other's, each in their order.
    pub fn concat<G>(self, other: Pipe<G>) -> Pipe<Concat<Either<F, G>>>
    where
        G: Flow<Item = F::Item, Token = F::Token>,
    {
        let Pipe { flow, scope, mut ops, .. } = self;
        let scope = scope.adopt(&other.scope);
        ops.extend(other.ops);
        ops.push(OpStats::new("concat"));
        let flow = Concat::new([Either::Left(flow), Either::Right(other.flow)]);
        Pipe { flow, scope, ops, boundary: None }
    }

    /// Any number of flows of one type, one after the other.
    ///
    /// # Panics
    /// If there is none.
    pub fn concat_all(pipes: impl IntoIterator<Item = Pipe<F>>) -> Pipe<Concat<F>> {
        let Joined { flows, scope, ops } = Joined::new(pipes, "concat");
        Pipe { flow: Concat::new(flows), scope, ops, boundary: None }
    }

    /// Pairs of this flow's items and another's: the first with the first, the second with the second. Ends when
    /// either does.
    ///
    /// A pair's token stands for both of its items.
    ///
    /// # Ordering
    /// Kept.
    ///
    /// # Backpressure
    /// At most one item is held, until its partner comes; the faster flow waits for the other.
    ///
    /// # At the end
    /// An item whose partner never came is dropped by this operator's name.
    pub fn zip<G>(self, other: Pipe<G>) -> Pipe<Zip<F, G>>
    where
        G: Flow<Token = F::Token>,
    {
        let Pipe { flow, scope, mut ops, .. } = self;
        let scope = scope.adopt(&other.scope);
        ops.extend(other.ops);
        let op = OpStats::new("zip");
        ops.push(op.clone());
        if !F::Token::TRACKED {
            scope.add_untracked_op(op.clone());
        }
        let flow = Zip::new(flow, other.flow, op, scope.clone());
        Pipe { flow, scope, ops, boundary: None }
    }
}

/// Flows of one type that become one of several.
struct Joined<F> {
    flows: Vec<F>,
    scope: Arc<Scope>,
    ops: Vec<Arc<OpStats>>,
}

impl<F> Joined<F> {
    fn new(pipes: impl IntoIterator<Item = Pipe<F>>, kind: &'static str) -> Self {
        let mut pipes = pipes.into_iter();
        let Some(Pipe { flow, mut scope, mut ops, .. }) = pipes.next() else {
            panic!("to {kind} takes at least one flow");
        };
        let mut flows = vec![flow];
        for pipe in pipes {
            scope = scope.adopt(&pipe.scope);
            ops.extend(pipe.ops);
            flows.push(pipe.flow);
        }
        ops.push(OpStats::new(kind));
        Joined { flows, scope, ops }
    }
}

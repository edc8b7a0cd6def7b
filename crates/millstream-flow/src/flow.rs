//! The contract between operators: internal iteration that can suspend.

use std::ops::ControlFlow;
use std::task::{Context, Poll};

use crate::token::Settle;

/// What a call of [`Flow::poll_drive`] ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `max` items were pushed, or the sink broke off. There may be more: call again.
    More,
    /// The flow has ended. It stays ended, and nothing may be pushed any more.
    End,
}

/// A flow of items that pushes into a sink instead of being pulled item by item.
///
/// It is `Iterator::try_for_each` with a way to suspend. The source runs the loop and operators nest their
/// closures into one another, so that inside a stage nothing is stored, boxed, sent or allocated per item. The
/// measurements that chose this shape over `poll_next`, over vectors between operators and over plain push
/// are in `bench/` (`cargo xtask bench engine`).
///
/// Users hold a [`Pipe`](crate::Pipe), whose methods build these; implement the trait only for a new operator.
///
/// # The contract
///
/// `poll_drive` pushes **at most `max`** items into `sink`, and returns
///
/// * `Pending` when nothing more can be had right now; the waker is registered. Items *may already have been
///   pushed by this very call*, so whoever buffers what the sink receives hands it on before returning
///   `Pending` itself. This rule alone carries "an idle flow moves each item at once" through any number of
///   stages, without a timer.
/// * `Ready(More)` when `max` was reached or the sink answered `Break`. The item that the sink answered with
///   `Break` *was accepted*.
/// * `Ready(End)` when the flow has ended.
///
/// An implementation that would push an eleventh item with `max` at ten keeps that item and pushes it in the
/// next call. It never drops a token without settling it (see [`Settle`]); a token that is dropped means
/// "deliver again".
///
/// # Panics
///
/// A panic of a user's function unwinds through `poll_drive` to the stage's driver, which counts it as that
/// item's failure and calls `poll_drive` again. State must therefore be consistent whenever a user's function
/// or the sink is called: take the item out of the state first, then call.
pub trait Flow {
    /// What flows.
    type Item;
    /// What must be settled for each item; `()` for flows that nobody has to acknowledge.
    type Token: Settle;

    /// Pushes up to `max` items into `sink`. See the contract above.
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Self::Item, Self::Token) -> ControlFlow<()>;
}

impl<F: Flow + ?Sized> Flow for Box<F> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Self::Item, Self::Token) -> ControlFlow<()>,
    {
        (**self).poll_drive(cx, max, sink)
    }
}

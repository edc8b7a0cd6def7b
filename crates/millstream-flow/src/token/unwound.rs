//! Tokens that a panic swept off the stack, kept for the driver that catches it.
//!
//! When a user's function panics, the token of the item in hand is dropped by unwinding. Dropping means "deliver
//! again", which for an item that always panics would be for ever; instead the driver, which knows the policy
//! and the stage's name, settles it. Both run on one thread, so the hand-over is a thread-local list, open
//! only while a driver is prepared to catch.

use std::cell::RefCell;

use super::{Outcome, Settle, Token};

thread_local! {
    static CAUGHT: RefCell<Option<Vec<Token>>> = const { RefCell::new(None) };
}

/// True while a panic is unwinding towards a driver that will settle what it drops.
pub(super) fn catching() -> bool {
    std::thread::panicking() && CAUGHT.try_with(|list| list.borrow().is_some()).unwrap_or(false)
}

/// Keeps the token for the driver, if one is about to catch. Returns whether it was kept.
pub(super) fn keep(token: impl FnOnce() -> Token) -> bool {
    if !std::thread::panicking() {
        return false;
    }
    CAUGHT
        .try_with(|list| match list.borrow_mut().as_mut() {
            Some(list) => {
                list.push(token());
                true
            }
            None => false,
        })
        .unwrap_or(false)
}

/// While alive on a thread, tokens dropped by unwinding are kept. Nested scopes keep to themselves.
pub(crate) struct CatchScope {
    outer: Option<Vec<Token>>,
}

impl CatchScope {
    pub(crate) fn enter() -> Self {
        // An empty vector: nothing is allocated unless a panic really happens.
        let outer = CAUGHT.with(|list| list.borrow_mut().replace(Vec::new()));
        CatchScope { outer }
    }

    /// What was swept off the stack since `enter`.
    pub(crate) fn leave(self) -> Unwound {
        let tokens = CAUGHT.with(|list| list.borrow_mut().take()).unwrap_or_default();
        Unwound { tokens }
        // `drop` restores the outer scope.
    }
}

impl Drop for CatchScope {
    fn drop(&mut self) {
        let outer = self.outer.take();
        let _ = CAUGHT.try_with(|list| *list.borrow_mut() = outer);
    }
}

/// The tokens of the items that a caught panic took with it.
#[derive(Debug, Default)]
pub(crate) struct Unwound {
    tokens: Vec<Token>,
}

impl Unwound {
    pub(crate) fn settle(self, outcome: &Outcome) {
        for token in self.tokens {
            token.settle(outcome);
        }
    }
}

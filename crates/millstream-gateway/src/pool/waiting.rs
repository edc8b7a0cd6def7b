//! Waiting for room, in the order of asking.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use super::{Lease, Shared, TIERS};

/// Somebody who waits for room.
pub(super) struct Waiting<'a> {
    shared: &'a Arc<Shared>,
    tier: usize,
    ticket: u64,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, tier: usize) -> Self {
        let ticket = shared.next_waiter.fetch_add(1, Ordering::Relaxed);
        shared.tiers[tier].waited();
        shared.waiting.fetch_add(1, Ordering::SeqCst);
        shared.waiters.lock().push_back((ticket, Waker::noop().clone()));
        Waiting { shared, tier, ticket }
    }
}

impl Future for Waiting<'_> {
    type Output = Lease;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Lease> {
        let first = {
            let mut waiters = self.shared.waiters.lock();
            let at = waiters.iter().position(|(ticket, _)| *ticket == self.ticket);
            let at = at.expect("a waiter stands in the row until it is dropped");
            waiters[at].1.clone_from(cx.waker());
            at == 0
        };
        if first {
            // The waker is in the row, so that room which appears after this look wakes it.
            if let Some(lease) = Shared::slow(self.shared, self.tier, false) {
                return Poll::Ready(lease);
            }
            self.shared.make_room(TIERS[self.tier] as u64);
            if let Some(lease) = Shared::slow(self.shared, self.tier, false) {
                return Poll::Ready(lease);
            }
        }
        Poll::Pending
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.waiters.lock().retain(|(ticket, _)| *ticket != self.ticket);
        self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
        self.shared.wake_first();
    }
}

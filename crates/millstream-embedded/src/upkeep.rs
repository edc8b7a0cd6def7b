//! The upkeep: what must happen though nobody calls. Expiry, delays, leases, dead letters, and writing settlements.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use millstream_message::dead::{Death, letter};
use millstream_message::{Address, Batch, Publish, PublishOutcome};

use crate::clock::{NEVER, millis};
use crate::core::{Core, From};
use crate::queue::Queue;

/// Dead letters sent at once.
const LETTERS: usize = 256;

/// How long to wait before a dead-letter queue that refuses is tried again: a second.
const RETRY: u64 = 1000;

/// Runs until the broker is closed.
pub(crate) async fn run(core: Arc<Core>) {
    let shared = core.shared.clone();
    let bell = &shared.bell;
    // When the settlements that wait are written.
    let mut write_at = NEVER;
    let mut retry: Vec<(u64, Arc<Queue>)> = Vec::new();
    while !shared.is_closed() {
        let now = shared.clock.now();
        if bell.due.load(Ordering::Acquire) <= now {
            // Reset first: what is announced while the queues are looked at rings again.
            bell.due.store(NEVER, Ordering::Release);
            for queue in core.all_queues() {
                let next = queue.tick(now);
                if next != NEVER {
                    bell.due.fetch_min(next.max(now + 1), Ordering::AcqRel);
                }
            }
        }
        let mut senders = std::mem::take(&mut *bell.letters.lock());
        retry.retain(|(at, queue)| {
            let due = *at <= now;
            if due {
                senders.push(queue.clone());
            }
            !due
        });
        for queue in senders {
            if !send_letters(&core, &queue).await {
                retry.push((shared.clock.now() + RETRY, queue));
            }
        }
        if write_at <= now || bell.hurry.swap(false, Ordering::AcqRel) {
            core.flush_settled();
            if let Some(journal) = &shared.journal {
                journal.kick();
            }
            write_at = NEVER;
        }
        if write_at == NEVER && !bell.settled.lock().is_empty() {
            write_at = now + millis(shared.settings.ack_delay);
        }
        let retry_at = retry.iter().map(|(at, _)| *at).min().unwrap_or(NEVER);
        let next = bell.due.load(Ordering::Acquire).min(write_at).min(retry_at);
        tokio::select! {
            () = bell.ring.notified() => {}
            () = tokio::time::sleep_until(shared.clock.instant(next)), if next != NEVER => {}
        }
    }
}

/// Publishes a queue's dead letters and takes each off the queue once it has arrived. False when some must be tried
/// again later: they stay in the queue's outbox, in their order.
async fn send_letters(core: &Core, queue: &Arc<Queue>) -> bool {
    let spec = &queue.spec;
    let Some(exchange) = &spec.dead_letter_exchange else { return true };
    let fixed = spec.dead_letter_key.as_ref().map(|key| Address::new(exchange.clone(), key.clone()));
    loop {
        let dead: Vec<_> = queue.lock().outbox.iter().take(LETTERS).cloned().collect();
        if dead.is_empty() {
            return true;
        }
        let time = core.shared.clock.now();
        let publishes = dead.iter().map(|dead| {
            let from = &dead.taken.publish.to;
            let death = Death {
                reason: dead.reason,
                detail: dead.detail.as_deref(),
                stage: dead.stage.as_deref(),
                queue: queue.name(),
                address: from,
                time,
            };
            let to = fixed.clone().unwrap_or_else(|| Address::new(exchange.clone(), from.key()));
            Publish { to, message: letter(dead.taken.publish.message.clone(), &death) }
        });
        let batch = Batch::from(publishes.collect::<Vec<_>>());
        let Ok(confirm) = core.submit(batch, From::Upkeep).await else { return true };
        let outcomes = confirm.await;
        // Letters leave in order: up to the first that must wait. One that nothing is bound for has nowhere to go.
        let arrived = |outcome: &PublishOutcome| {
            matches!(outcome, PublishOutcome::Confirmed | PublishOutcome::Unroutable(_))
        };
        let sent = (0..dead.len()).take_while(|&at| arrived(&outcomes.get(at))).count();
        let mut state = queue.lock();
        for _ in 0..sent {
            let Some(done) = state.outbox.pop_front() else { break };
            state.unacked.sub(1, u64::from(done.taken.size));
            queue.forget_one(&mut state, &done.taken);
        }
        let empty = state.outbox.is_empty();
        let mut wakers = Vec::new();
        state.wakers(&mut wakers);
        drop(state);
        wakers.into_iter().for_each(std::task::Waker::wake);
        queue.sent.notify_waiters();
        // The head may have waited for room in the outbox.
        core.shared.bell.wake_by(0);
        if sent < dead.len() {
            return false;
        }
        if empty {
            return true;
        }
    }
}

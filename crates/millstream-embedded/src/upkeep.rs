//! The upkeep: what must happen though nobody calls. Expiry, delays, leases, dead letters, and writing settlements.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use millstream_message::dead::{Death, letter};
use millstream_message::{Address, Publish};

use crate::checkpoint::{self, Written};
use crate::clock::{NEVER, millis};
use crate::core::{Core, has_arrived};
use crate::journal::Journal;
use crate::queue::Queue;
use crate::run::Taken;
use crate::state::Dead;

/// Dead letters sent at once.
const LETTERS: usize = 256;

/// How long to wait before a dead-letter queue that refuses is tried again: a second.
const RETRY: u64 = 1000;

/// Runs until the broker is closed.
pub(crate) async fn run(core: Arc<Core>) {
    let _running = core.upkeep.lock().await;
    let shared = core.shared.clone();
    let bell = &shared.bell;
    // When the settlements that wait are written.
    let mut write_at = NEVER;
    let mut retry: Vec<(u64, Arc<Queue>)> = Vec::new();
    let mut checkpoints = Checkpoints::default();
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
        checkpoints.step(&core, now).await;
        let retry_at = retry.iter().map(|(at, _)| *at).min().unwrap_or(NEVER);
        let next = bell.due.load(Ordering::Acquire).min(write_at).min(retry_at).min(checkpoints.next());
        tokio::select! {
            () = bell.ring.notified() => {}
            () = tokio::time::sleep_until(shared.clock.instant(next)), if next != NEVER => {}
        }
    }
}

/// Brings all queues within their limits and sends their dead letters, as far as these are taken. A letter may be what
/// is too much for the queue it comes to, and so on; a chain of queues is no longer than there are queues.
pub(crate) async fn send_all_letters(core: &Core) {
    let queues = core.all_queues();
    for _ in 0..=queues.len() {
        let mut sent = false;
        for queue in &queues {
            queue.tick(core.shared.clock.now());
            let dead = !queue.lock().outbox.is_empty();
            sent |= dead && send_letters(core, queue).await;
        }
        if !sent {
            return;
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
        // Large ones go in fewer pieces, so that what is settled by them fits into one record.
        let mut room = core.shared.settings.message_bytes_max / 2;
        let fits = |dead: &&Dead| {
            let fits = room > 0;
            room = room.saturating_sub(dead.taken.size as usize);
            fits
        };
        let dead: Vec<_> = queue.lock().outbox.iter().take(LETTERS).take_while(fits).cloned().collect();
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
        let publishes = publishes.collect();
        let logged = |taken: &Taken| queue.durable && taken.position != 0;
        let seqs: Vec<_> = dead.iter().map(|dead| logged(&dead.taken).then_some(dead.taken.seq)).collect();
        let (confirm, settled) = core.submit_letters(queue, publishes, &seqs).await;
        let outcomes = confirm.await;
        let mut state = queue.lock();
        // Nobody else takes letters out. Those that must wait stay in their order.
        let mut waiting = Vec::new();
        for (at, letter) in (0..dead.len()).zip(state.outbox.drain(..dead.len()).collect::<Vec<_>>()) {
            if !has_arrived(&outcomes.get(at)) {
                waiting.push(letter);
                continue;
            }
            state.unacked.sub(&letter.taken);
            if settled {
                queue.refund(letter.taken.weight);
            } else {
                queue.forget_one(&mut state, &letter.taken);
            }
        }
        let all_sent = waiting.is_empty();
        waiting.into_iter().rev().for_each(|letter| state.outbox.push_front(letter));
        let empty = state.outbox.is_empty();
        let mut wakers = Vec::new();
        state.wakers(&mut wakers);
        drop(state);
        wakers.into_iter().for_each(std::task::Waker::wake);
        queue.sent.notify_waiters();
        // The head may have waited for room in the outbox.
        core.shared.bell.wake_by(0);
        if !all_sent {
            return false;
        }
        if empty {
            return true;
        }
    }
}

/// When to write checkpoints: after every segment's worth of log, less often while checkpoints are large against
/// it, and once things have gone quiet, so that the disk of what was acked comes back.
#[derive(Default)]
struct Checkpoints {
    last: Written,
    seen_end: u64,
    /// When it will have been quiet long enough; `None`: it has been seen to.
    quiet_at: Option<u64>,
}

/// How long nothing is appended before it counts as quiet: half a second.
const QUIET: u64 = 500;

/// How much log a quiet broker leaves without a checkpoint: 1 MiB.
const QUIET_BYTES: u64 = 1 << 20;

/// How much is copied forward after one checkpoint: 8 MiB.
const RELOCATE_BYTES: u64 = 8 << 20;

impl Checkpoints {
    async fn step(&mut self, core: &Core, now: u64) {
        let Some(journal) = &core.shared.journal else { return };
        let Ok(log) = journal.log() else { return };
        let end = log.end().get();
        drop(log);
        if end != self.seen_end {
            self.seen_end = end;
            self.quiet_at = Some(now + QUIET);
        }
        let quiet = self.quiet_at.is_some_and(|at| at <= now);
        if quiet {
            self.quiet_at = None;
        }
        let worthwhile = quiet && end - self.last.covers.min(end) > QUIET_BYTES;
        if !worthwhile && !journal.wants_checkpoint() {
            return;
        }
        let segment = core.shared.settings.segment_bytes;
        match checkpoint::write(core, journal).await {
            Ok(written) => {
                self.last = written;
                journal.checkpoint_at(written.covers + segment.max(4 * written.bytes));
                self.relocate(core, journal, segment).await;
            }
            // The disk refuses: what is confirmed is safe in the log, which only grows. Try again after more of it.
            Err(_) => journal.checkpoint_at(end + segment),
        }
    }

    async fn relocate(&self, core: &Core, journal: &Journal, segment: u64) {
        let Written { covers, oldest, live, .. } = self.last;
        let keep = 4 * segment.max(live);
        if covers.saturating_sub(oldest) > keep {
            // The oldest part only: what was copied before must not be copied again while something older is left.
            let before = (oldest + 2 * segment).min(covers - keep / 2);
            // A failure leaves everything where it is; the next checkpoint tries again.
            let _ = checkpoint::relocate(core, journal, before, RELOCATE_BYTES).await;
        }
    }

    fn next(&self) -> u64 {
        self.quiet_at.unwrap_or(NEVER)
    }
}

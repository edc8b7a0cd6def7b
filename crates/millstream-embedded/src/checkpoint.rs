//! Checkpoints: writing down what the queues hold, giving old segments free, and copying forward the few messages
//! that hold them.

use std::collections::HashMap;
use std::sync::Arc;

use millstream_message::{BrokerError, BrokerErrorKind, Publish};

use crate::core::Core;
use crate::journal::Journal;
use crate::live::LiveRun;
use crate::log::{Commit, Position};
use crate::queue::Queue;
use crate::rebuild::{Image, QueueImage, TopologyImage};
use crate::record::{MOVED, put_publish};
use crate::run::{Bare, Run};

/// What a checkpoint found out.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Written {
    /// Where recovery would begin.
    pub(crate) covers: u64,
    /// Bytes of the checkpoint.
    pub(crate) bytes: u64,
    /// The oldest position that a queue still needs; `covers` when none is older.
    pub(crate) oldest: u64,
    /// Bytes of live messages.
    pub(crate) live: u64,
}

/// Writes a checkpoint and gives free what it makes unnecessary.
pub(crate) async fn write(core: &Core, journal: &Journal) -> Result<Written, BrokerError> {
    // Nothing is declared meanwhile; what is published meanwhile is behind `covers` or in the queues.
    let ids = core.declaring.lock().await;
    let covers = journal.covers().await?;
    let (mut image, captured) = capture(core, ids.next_id);
    drop(ids);
    let log = journal.log()?;
    let task = tokio::task::spawn_blocking(move || {
        let mut written = Written { covers: covers.get(), oldest: covers.get(), ..Written::default() };
        for one in captured {
            let (id, queue) = one.build();
            written.live += queue.live.iter().map(|live| live.run.bytes).sum::<u64>();
            written.oldest = written.oldest.min(queue.live.oldest().unwrap_or(u64::MAX));
            image.queues.insert(id, queue);
        }
        let payload = image.encode();
        written.bytes = payload.len() as u64;
        log.checkpoint(&payload, covers)?;
        log.release_before(Position::new(written.oldest));
        Ok(written)
    });
    let result = task.await.map_err(|error| {
        BrokerError::with_source(BrokerErrorKind::Storage, "writing the checkpoint panicked", error)
    })?;
    result.map_err(|error: crate::log::LogError| {
        BrokerError::with_source(BrokerErrorKind::Storage, "the checkpoint cannot be written", error)
    })
}

/// What a queue holds, as it was under its lock.
struct Captured {
    id: u32,
    next_seq: u64,
    runs: Vec<(Run, u64)>,
    singles: Vec<Bare>,
}

/// Copies what must be copied under locks; what takes longer is done with the copy.
fn capture(core: &Core, next_id: u32) -> (Image, Vec<Captured>) {
    let mut image = Image { positions: core.positions.lock().clone(), ..Image::default() };
    let mut queues: Vec<Arc<Queue>> = Vec::new();
    {
        let topology = core.topology.read();
        queues.extend(topology.queues.values().filter(|queue| queue.durable).cloned());
        let durable = topology.exchanges.values().filter(|bound| bound.exchange.durable);
        let bindings = durable.clone().flat_map(|bound| {
            let kept = bound.bindings.iter().filter(|(_, leads)| topology.is_durable(bound, leads));
            kept.map(|(binding, _)| binding.clone())
        });
        image.topology = TopologyImage {
            next_id,
            exchanges: durable.clone().map(|bound| bound.exchange.clone()).collect(),
            bindings: bindings.collect(),
            queues: queues.iter().map(|queue| (queue.id, queue.spec.clone())).collect(),
            streams: core.streams.logged(),
        };
    }
    let captured = queues.iter().map(|queue| {
        let state = queue.lock();
        let (runs, singles) = state.image();
        Captured { id: queue.id, next_seq: state.next_seq, runs, singles }
    });
    (image, captured.collect())
}

impl Captured {
    fn build(mut self) -> (u32, QueueImage) {
        let mut image = QueueImage { next_seq: self.next_seq, ..QueueImage::default() };
        self.runs.sort_unstable_by_key(|(run, _)| run.seq);
        self.singles.sort_unstable_by_key(|bare| bare.seq);
        let mut singles = self.singles.iter().peekable();
        for (mut run, due) in self.runs {
            while let Some(bare) = singles.next_if(|bare| bare.seq < run.seq) {
                image.live.put_one(bare, 0);
            }
            run.put_out();
            image.live.put(LiveRun { run, due });
        }
        singles.for_each(|bare| image.live.put_one(bare, 0));
        (self.id, image)
    }
}

/// Copies the oldest messages forward, about `bytes` of them, when what lives is so little against what the log spans that
/// it is cheaper to copy it than to keep the disk: those that are ready, delayed, held, or dead letters on their way.
pub(crate) async fn relocate(
    core: &Core,
    journal: &Journal,
    before: u64,
    bytes: u64,
) -> Result<(), BrokerError> {
    let mut left = bytes;
    let queues: Vec<_> = core.all_queues().into_iter().filter(|queue| queue.durable).collect();
    for queue in &queues {
        relocate_singles(core, journal, queue, before, &mut left).await?;
    }
    for queue in &queues {
        relocate_runs(core, journal, queue, before, &mut left).await?;
    }
    Ok(())
}

/// What consumers hold of a queue, and its dead letters on their way.
async fn relocate_singles(
    core: &Core,
    journal: &Journal,
    queue: &Queue,
    before: u64,
    left: &mut u64,
) -> Result<(), BrokerError> {
    // All are appended before the first is waited for, so that one sync may do for them.
    let held = queue.lock().old_held(before, *left);
    let mut moved = Vec::with_capacity(held.len());
    for (session, tag, taken) in held {
        *left = left.saturating_sub(u64::from(taken.size));
        let (position, commit) = append(core, journal, queue, taken.seq, &taken.publish).await?;
        moved.push((session, tag, position, commit));
    }
    let dead = queue.lock().old_dead(before, *left);
    let mut letters = Vec::with_capacity(dead.len());
    for taken in dead {
        *left = left.saturating_sub(u64::from(taken.size));
        let (position, commit) = append(core, journal, queue, taken.seq, &taken.publish).await?;
        letters.push((taken.seq, position, commit));
    }
    for (session, tag, position, commit) in moved {
        commit.await.map_err(|error| crate::journal::storage(&error))?;
        queue.lock().held_moved(session, tag, position);
    }
    let mut arrived = HashMap::with_capacity(letters.len());
    for (seq, position, commit) in letters {
        commit.await.map_err(|error| crate::journal::storage(&error))?;
        arrived.insert(seq, position);
    }
    if !arrived.is_empty() {
        queue.lock().dead_moved(&arrived);
    }
    Ok(())
}

/// What is ready or delayed in a queue.
async fn relocate_runs(
    core: &Core,
    journal: &Journal,
    queue: &Arc<Queue>,
    before: u64,
    left: &mut u64,
) -> Result<(), BrokerError> {
    let mut from = (0, 0);
    while *left > 0 {
        let runs = queue.old_runs(before, *left, &mut from);
        // A run that has changed or gone meanwhile is left to the next checkpoint.
        let mut settled = !runs.is_empty();
        let mut moved = Vec::with_capacity(runs.len());
        for (due, run) in runs {
            let publishes = match run.publishes() {
                Some(here) => here.to_vec(),
                None => {
                    let positions: Vec<u64> = (0..run.count).map(|i| run.slot(i).0).collect();
                    let read = journal.read(&positions)?;
                    if read.iter().any(Option::is_none) {
                        // Takes off the queue what is damaged, and leaves the others in memory, from where they are copied.
                        settled &= queue.reload(due, &run)?;
                        if due > 0 {
                            from = from.min((due, run.order));
                        }
                        continue;
                    }
                    read.into_iter().flatten().collect()
                }
            };
            let mut copies = Vec::with_capacity(publishes.len());
            for (seq, publish) in (run.seq..).zip(publishes) {
                copies.push(append(core, journal, queue, seq, &publish).await?);
            }
            moved.push((due, run, copies));
        }
        for (due, run, copies) in moved {
            let mut new = Vec::with_capacity(copies.len());
            for (position, commit) in copies {
                commit.await.map_err(|error| crate::journal::storage(&error))?;
                new.push(position);
            }
            *left = left.saturating_sub(run.bytes.max(1));
            settled &= queue.moved(due, &run, new);
        }
        if !settled {
            break;
        }
    }
    Ok(())
}

/// Appends a copy of a message of this queue.
async fn append(
    core: &Core,
    journal: &Journal,
    queue: &Queue,
    seq: u64,
    publish: &Publish,
) -> Result<(u64, Commit), BrokerError> {
    let mut body = Vec::with_capacity(publish.message.size() + 64);
    put_publish(&mut body, [(queue.id, seq)].into_iter(), publish);
    body.extend_from_slice(publish.message.body());
    journal.append(MOVED, &body, core.shared.clock.now()).await
}

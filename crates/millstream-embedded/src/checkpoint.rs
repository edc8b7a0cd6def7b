//! Checkpoints: writing down what the queues hold, giving old segments free, and copying forward the few messages
//! that hold them.

use std::sync::Arc;

use millstream_message::{BrokerError, BrokerErrorKind};

use crate::core::Core;
use crate::journal::Journal;
use crate::live::LiveRun;
use crate::log::Position;
use crate::queue::Queue;
use crate::rebuild::{Image, QueueImage, TopologyImage};
use crate::record::{MOVED, put_publish};

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
    let (image, mut written) = image(core, ids.next_id);
    drop(ids);
    written.covers = covers.get();
    written.oldest = written.oldest.min(written.covers);
    let log = journal.log()?;
    let task = tokio::task::spawn_blocking(move || {
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

fn image(core: &Core, next_id: u32) -> (Image, Written) {
    let mut image = Image { positions: core.positions.lock().clone(), ..Image::default() };
    let mut written = Written { oldest: u64::MAX, ..Written::default() };
    let mut queues: Vec<Arc<Queue>> = Vec::new();
    {
        let topology = core.topology.read();
        queues.extend(topology.queues.values().filter(|queue| queue.durable).cloned());
        let durable = topology.exchanges.values().filter(|bound| bound.exchange.durable);
        let bindings = durable.clone().flat_map(|bound| &bound.bindings);
        image.topology = TopologyImage {
            next_id,
            exchanges: durable.clone().map(|bound| bound.exchange.clone()).collect(),
            bindings: bindings
                .filter(|(_, queue)| queue.durable)
                .map(|(binding, _)| binding.clone())
                .collect(),
            queues: queues.iter().map(|queue| (queue.id, queue.spec.clone())).collect(),
            streams: core.streams.logged(),
        };
    }
    for queue in queues {
        let queue_image = queue_image(&queue);
        for LiveRun { run, .. } in queue_image.live.iter() {
            written.live += run.bytes;
        }
        written.oldest = written.oldest.min(queue_image.live.oldest().unwrap_or(u64::MAX));
        image.queues.insert(queue.id, queue_image);
    }
    (image, written)
}

fn queue_image(queue: &Queue) -> QueueImage {
    let (runs, taken, next_seq) = {
        let state = queue.lock();
        let (runs, taken) = state.image();
        (runs, taken, state.next_seq)
    };
    let mut all: Vec<LiveRun> = runs.into_iter().map(|(run, due)| LiveRun { run, due }).collect();
    all.extend(taken.into_iter().map(|taken| LiveRun { run: taken.into_out(), due: 0 }));
    all.sort_unstable_by_key(|live| live.run.seq);
    let mut image = QueueImage { next_seq, ..QueueImage::default() };
    for mut live in all {
        live.run.put_out();
        image.live.put(live);
    }
    image
}

/// Copies the oldest ready messages forward, about `bytes` of them, when what lives is so little against what the log
/// spans that it is cheaper to copy it than to keep the disk.
pub(crate) async fn relocate(
    core: &Core,
    journal: &Journal,
    before: u64,
    bytes: u64,
) -> Result<(), BrokerError> {
    let mut left = bytes;
    for queue in core.all_queues().into_iter().filter(|queue| queue.durable) {
        while left > 0 {
            let Some(run) = queue.oldest_run(before) else { break };
            let positions: Vec<u64> = (0..run.count).map(|i| run.slot(i).0).collect();
            let read = journal.read(&positions)?;
            if read.iter().any(Option::is_none) {
                // Damaged: whoever consumes it takes it off the queue.
                break;
            }
            let mut moved = Vec::with_capacity(positions.len());
            for (seq, publish) in (run.seq..).zip(read.into_iter().flatten()) {
                let mut body = Vec::with_capacity(publish.message.size() + 64);
                put_publish(&mut body, [(queue.id, seq)].into_iter(), &publish);
                body.extend_from_slice(publish.message.body());
                moved.push(journal.append(MOVED, &body, core.shared.clock.now()).await?);
            }
            let mut new = Vec::with_capacity(moved.len());
            for (position, commit) in moved {
                commit.await.map_err(|error| crate::journal::storage(&error))?;
                new.push(position);
            }
            left = left.saturating_sub(run.bytes.max(1));
            if !queue.moved(&run, new) {
                break;
            }
        }
    }
    Ok(())
}

//! How much memory the items of a run can hold, computed from the file alone; the run is built from the same
//! numbers.

use crate::batch::ITEM_BYTES;
use crate::batcher::{Knobs, Rule};
use crate::feed::CHUNK_BYTES;
use crate::file::model::{Buffer, Draft, Format, Prefetch, Source, Step};
use crate::item::Raw;
use millstream_flow::Token;
use millstream_message::BrokerUrl;

/// Bytes that a source reads from its file at once.
pub(crate) const READ_BYTES: u64 = 256 << 10;
/// Bytes of a stream's messages that were read and wait for the one who takes them, and that are on their way.
const STREAM_BYTES: u64 = 8 << 20;
/// Bytes of complete batches that an output takes at once, if batches are smaller than that.
const WRITE_BYTES: u64 = 8 << 20;
/// Batches that wait for the output while it writes.
pub(crate) const WAITING_BATCHES: usize = 2;
/// Bytes of values that the workers of `parallel` have taken and whose results are not taken from them.
pub(crate) const PARALLEL_BYTES: u64 = 16 << 20;
/// Open batches of one pipeline hold at most this many full ones.
const OPEN_BATCHES: u64 = 16;

/// Bytes of messages that a broker opened by a pipeline keeps in memory; the rest of a queue is read back from
/// its log. A pipeline consumes what it stores at once, so a larger cache would only be filled by a backlog.
pub(crate) const BROKER_BYTES: u64 = 32 << 20;
/// Bytes the queue may be ahead of its consumer. With the prefetch, which the broker's memory holds as well, less
/// than [`BROKER_BYTES`].
pub(crate) const AHEAD_BYTES: u64 = 8 << 20;

/// What keeps a message in memory besides its bytes: its place in a queue, its properties, its id.
const MESSAGE_BYTES: u64 = 512;

/// How much larger a long JSON value is in memory than as text, while it passes the steps: a list of objects with an entry each, the
/// worst, takes fifty times its text.
pub(crate) const VALUE_FACTOR: u64 = 64;

/// The sum of everything that holds items.
pub(crate) fn memory(draft: &Draft) -> u64 {
    let rule = batching(draft);
    let complete = batch(draft).saturating_mul((writing(draft) + WAITING_BATCHES) as u64);
    reading(draft)
        .saturating_add(buffered(draft))
        .saturating_add(at_workers(draft))
        .saturating_add(rule.held_bytes as u64)
        .saturating_add(complete)
}

/// Memory that a batch takes when it is full by its bytes and by its items.
fn batch(draft: &Draft) -> u64 {
    let items = draft.batch.count.value.min(draft.batch.bytes.value);
    draft.batch.bytes.value.saturating_add(items.saturating_mul(ITEM_BYTES))
}

/// How many batches the output takes at once.
pub(crate) fn writing(draft: &Draft) -> usize {
    (WRITE_BYTES / batch(draft).max(1)).clamp(1, 32) as usize
}

/// The rule of the batcher: no more is held than lets the source go on.
pub(crate) fn batching(draft: &Draft) -> Rule {
    let open = if draft.batch.by.is_some() { OPEN_BATCHES } else { draft.outputs.len() as u64 };
    let held = batch(draft).saturating_mul(open.clamp(1, OPEN_BATCHES));
    let batch = &draft.batch;
    let (items, size) = match (&draft.buffer.value, draft.source.as_deref()) {
        (Buffer::Queue { prefetch, .. }, _) | (_, Some(Source::Queue { prefetch, .. })) => {
            (prefetch.items.value / 2, prefetch.bytes.value / 2)
        }
        (_, Some(Source::Http(http))) => (http.pending_max.value / 2, u64::MAX),
        _ => (batch.count.value.saturating_mul(OPEN_BATCHES), u64::MAX),
    };
    Rule {
        count: batch.count.value as usize,
        bytes: usize::try_from(batch.bytes.value).unwrap_or(usize::MAX),
        age: batch.age.value,
        held_items: (items as usize).max(batch.count.value as usize).max(1),
        held_bytes: usize::try_from(held).unwrap_or(usize::MAX),
        held_size: usize::try_from(size).unwrap_or(usize::MAX),
    }
}

/// The numbers of that rule as knobs.
pub(crate) fn knobs(draft: &Draft, rule: &Rule) -> Knobs {
    let batch = &draft.batch;
    Knobs::new(rule, [batch.count.at.is_some(), batch.bytes.at.is_some(), batch.age.at.is_some()])
}

fn reading(draft: &Draft) -> u64 {
    match draft.source.as_deref() {
        // A chunk that was read and, while it is stored, the next one; of csv, each as text and as JSON.
        Some(Source::File { read, .. } | Source::Stdin { read }) => {
            // The longest line as text, as JSON for a queue, and as a value.
            let lines = if read.format.value == Format::Ndjson { 2 + VALUE_FACTOR } else { 2 };
            // What becomes messages is a chunk's: a sparse row is far longer as JSON.
            let stored = match &draft.buffer.value {
                Buffer::Queue { .. } => 2 * CHUNK_BYTES as u64,
                Buffer::Memory { .. } => 0,
            };
            4 * READ_BYTES + stored + (1 + sent(draft)).saturating_mul(lines * read.line_max as u64)
        }
        Some(Source::Http(http)) => http.bytes_max(),
        Some(Source::Stream(_)) => STREAM_BYTES,
        // A queue there is a stream.
        Some(Source::Queue { queue, .. }) if matches!(queue.broker, BrokerUrl::RabbitmqStream(_)) => {
            STREAM_BYTES
        }
        _ => 0,
    }
}

/// Items that are at handlers at once, or may be more than the workers of `parallel` should have, beside the one that passes the
/// steps. Those of a queue or of http are counted as prefetched, or as pending.
fn sent(draft: &Draft) -> u64 {
    let at_once = |step: &Step| match step {
        Step::Send { at_once, .. } => *at_once as u64 - 1,
        Step::Parallel { .. } => 1,
        _ => 0,
    };
    draft.steps.iter().map(at_once).sum()
}

/// What is at the workers of `parallel`, as values.
fn at_workers(draft: &Draft) -> u64 {
    let steps = draft.steps.iter().filter(|step| matches!(step, Step::Parallel { .. }));
    steps.count() as u64 * PARALLEL_BYTES
}

fn buffered(draft: &Draft) -> u64 {
    let slots = |items: u64| {
        let slots = items.checked_next_power_of_two().unwrap_or(u64::MAX);
        slots.saturating_mul(size_of::<(Raw, Token)>() as u64)
    };
    match (&draft.buffer.value, draft.source.as_deref()) {
        (Buffer::Queue { prefetch, .. }, _) => prefetched(prefetch).saturating_add(BROKER_BYTES),
        // The bytes of what waits in the buffer are those that were prefetched.
        (Buffer::Memory { items, .. }, Some(Source::Queue { prefetch, .. })) => {
            prefetched(prefetch).saturating_add(BROKER_BYTES).saturating_add(slots(*items))
        }
        (Buffer::Memory { items, bytes }, _) => bytes.saturating_add(slots(*items)),
    }
}

fn prefetched(prefetch: &Prefetch) -> u64 {
    prefetch.bytes.value.saturating_add(prefetch.items.value.saturating_mul(MESSAGE_BYTES))
}

//! The broker's core: topology, positions, and the way of a batch from its publisher to the queues.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use millstream_message::{
    Batch, BrokerError, BrokerErrorKind, Confirm, Outcomes, Publish, PublishOutcome, Refusal, StreamSpec,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use crate::checkpoint;
use crate::exchange::{Route, Topology};
use crate::journal::{self, Besides, Journal, Submission};
use crate::log::{Disk, LogSettings};
use crate::plan::{Plan, plan};
use crate::queue::Queue;
use crate::record::Declaration;
use crate::run::Stored;
use crate::settings::Settings;
use crate::shared::Shared;
use crate::stream_log::LoggedStream;
use crate::streams::{Stream, Streams};
use crate::upkeep;

/// Everything of one broker but its tasks.
pub(crate) struct Core {
    pub(crate) shared: Arc<Shared>,
    pub(crate) topology: RwLock<Topology>,
    /// Held while something is declared: declarations happen one after the other.
    pub(crate) declaring: tokio::sync::Mutex<Ids>,
    pub(crate) positions: Mutex<BTreeMap<String, Bytes>>,
    pub(crate) streams: Streams,
    /// Held by the upkeep for as long as it runs, so that the end can wait for it.
    pub(crate) upkeep: tokio::sync::Mutex<()>,
}

/// A position to be stored, or forgotten.
pub(crate) type NewPosition = (String, Option<Bytes>);

/// What declarations need.
pub(crate) struct Ids {
    pub(crate) next_id: u32,
    /// Where logs of streams go; `None` for `memory:`.
    pub(crate) place: Option<Place>,
}

/// Where a broker keeps its files.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
    /// Whether logs have threads of their own.
    pub(crate) background: bool,
}

impl Place {
    /// Opens the log of a stream. Blocks.
    pub(crate) fn stream(
        &self,
        id: u32,
        spec: StreamSpec,
        settings: &Settings,
    ) -> Result<Stream, BrokerError> {
        let settings = LogSettings { background: self.background, ..settings.log() };
        let stream = LoggedStream::open(&self.path, id, spec, settings, self.disk.clone())?;
        Ok(Stream::Logged(Arc::new(stream)))
    }
}

impl Core {
    pub(crate) fn queue(&self, name: &str) -> Option<Arc<Queue>> {
        self.topology.read().queues.get(name).cloned()
    }

    pub(crate) fn all_queues(&self) -> Vec<Arc<Queue>> {
        self.topology.read().queues.values().cloned().collect()
    }

    /// Routes a batch, takes its place in the order, and hands it to the log or straight to the queues.
    pub(crate) async fn submit(&self, batch: Batch) -> Result<Confirm, BrokerError> {
        let Batch { publishes, position } = batch;
        let position = position.map(|(name, value)| (name, Some(value)));
        self.submit_parts(publishes, position).await
    }

    /// [`submit`](Core::submit), where a position without a value is forgotten.
    pub(crate) async fn submit_parts(
        &self,
        publishes: Vec<Publish>,
        position: Option<NewPosition>,
    ) -> Result<Confirm, BrokerError> {
        self.shared.check_open()?;
        self.wait_for_room(&publishes).await?;
        let mut plan = plan(
            &self.topology.read(),
            &publishes,
            position.is_some(),
            self.shared.settings.message_bytes_max,
        );
        plan.commit();
        let total = publishes.len();
        match &self.shared.journal {
            Some(journal) if Journal::wants(&plan, &publishes, position.is_some()) => {
                let besides = position.map_or(Besides::Nothing, Besides::Position);
                Ok(self.submit_logged(journal, publishes, besides, plan).await.0)
            }
            _ => {
                if plan.others.len() < total || total == 0 {
                    self.set_position(position);
                }
                Ok(self.store(publishes, plan))
            }
        }
    }

    /// Publishes dead letters of a queue, which have these places there if they are logged. Tells whether what is stored of them is
    /// off the queue by the same record: after a crash each is in one place. Waits for no room that only this could make.
    pub(crate) async fn submit_letters(
        &self,
        queue: &Queue,
        letters: Vec<Publish>,
        seqs: &[Option<u64>],
    ) -> (Confirm, bool) {
        // A letter is a message that was taken, and what it died of: it is never too large.
        let mut plan = plan(&self.topology.read(), &letters, false, usize::MAX);
        plan.commit();
        let Some(journal) = &self.shared.journal else { return (self.store(letters, plan), false) };
        if !Journal::wants(&plan, &letters, false) {
            return (self.store(letters, plan), false);
        }
        let mut settled: Vec<Range<u64>> = Vec::new();
        for (_, seq) in seqs.iter().enumerate().filter(|(at, _)| plan.others.get(at).is_none_or(has_arrived))
        {
            match (*seq, settled.last_mut()) {
                (Some(seq), Some(last)) if last.end == seq => last.end += 1,
                (Some(seq), _) => settled.push(seq..seq + 1),
                (None, _) => {}
            }
        }
        let besides = if settled.is_empty() { Besides::Nothing } else { Besides::Settled(queue.id, settled) };
        self.submit_logged(journal, letters, besides, plan).await
    }

    /// Hands messages to their queues in memory.
    fn store(&self, publishes: Vec<Publish>, plan: Plan) -> Confirm {
        let total = publishes.len();
        let Plan { mut targets, others } = plan;
        let stored = Arc::new(Stored { publishes, positions: Vec::new() });
        let now = self.shared.clock.now();
        for target in &mut targets {
            target.queue.clone().store(&stored, target, now);
        }
        Confirm::known(Outcomes::with_others(total, others.into_iter().collect()))
    }

    async fn submit_logged(
        &self,
        journal: &Journal,
        publishes: Vec<Publish>,
        besides: Besides,
        plan: Plan,
    ) -> (Confirm, bool) {
        let total = publishes.len();
        let (reply, confirm) = oneshot::channel();
        let now = self.shared.clock.now();
        let complete = match journal.submit(publishes, besides, plan, reply, now).await {
            Ok(complete) => complete,
            Err((refusal, others)) => {
                let refused = PublishOutcome::Refused(refusal);
                return (Confirm::known(fill(total, others, &refused)), false);
            }
        };
        self.flush_settled();
        journal.kick();
        if journal.wants_checkpoint() {
            self.shared.bell.ring.notify_one();
        }
        let confirm = Confirm::pending(async move {
            confirm.await.unwrap_or_else(|_| {
                // The broker was dropped before its log answered.
                Outcomes::all(total, &PublishOutcome::Unconfirmed(crate::shared::closed()))
            })
        });
        (confirm, complete)
    }

    /// Changes the topology, durably when there is a declaration for the log. What was changed is undone when it does
    /// not become durable. The caller holds `declaring`.
    pub(crate) async fn declare(
        &self,
        declaration: Option<Declaration>,
        change: impl FnOnce(&mut Topology),
        undo: impl FnOnce(&mut Topology),
    ) -> Result<(), BrokerError> {
        let (Some(journal), Some(declaration)) = (&self.shared.journal, declaration) else {
            change(&mut self.topology.write());
            return Ok(());
        };
        let commit = journal.declare(&declaration, self.shared.clock.now()).await?;
        // Before waiting: a caller who goes away leaves it done, in memory as in the log.
        change(&mut self.topology.write());
        commit.await.map_err(|error| {
            undo(&mut self.topology.write());
            journal::storage(&error)
        })
    }

    /// The orderly end: everything accepted becomes durable, and the directory is free.
    pub(crate) async fn close(&self) -> Result<(), BrokerError> {
        let Some(journal) = &self.shared.journal else { return Ok(()) };
        let Ok(log) = journal.log() else { return Ok(()) };
        for stream in self.streams.all() {
            stream.close().await?;
        }
        // It ends by itself, after what it is about to do; what has died meanwhile leaves its queue before the log does.
        drop(self.upkeep.lock().await);
        upkeep::send_all_letters(self).await;
        journal.kick();
        journal.all_landed().await;
        loop {
            self.flush_settled();
            if self.shared.bell.settled.lock().is_empty() {
                break;
            }
            // The log's buffer is full: there is room once it is written.
            log.flush().await.map_err(|error| journal::storage(&error))?;
        }
        // Makes the next opening quick and gives free what it can. When it fails, the records themselves are there.
        let _ = checkpoint::write(self, journal).await;
        drop(log);
        let Some(log) = journal.take() else { return Ok(()) };
        let task = tokio::task::spawn_blocking(move || match Arc::into_inner(log) {
            Some(log) => log.close(),
            // Somebody is reading with it this moment, and closes it when done.
            None => Ok(()),
        });
        let closed = task.await.map_err(|error| {
            BrokerError::with_source(BrokerErrorKind::Storage, "closing the log panicked", error)
        })?;
        closed.map_err(|error| {
            BrokerError::with_source(BrokerErrorKind::Storage, "the log did not close cleanly", error)
        })
    }

    /// Waits while messages that cannot be put out fill the memory, and while dead letters dam up.
    async fn wait_for_room(&self, publishes: &[Publish]) -> Result<(), BrokerError> {
        let Some(first) = publishes.first() else { return Ok(()) };
        let budget = &self.shared.budget;
        if self.shared.journal.is_none() || !first.message.properties().persistent {
            budget.room().await;
        } else if budget.is_full_of_transient() && self.reaches_transient(publishes) {
            budget.room_for_transient().await;
        }
        self.shared.check_open()?;
        let queue = if first.to.exchange().is_empty() { self.queue(first.to.key()) } else { None };
        let Some(queue) = queue.filter(|queue| queue.dead_letters()) else { return Ok(()) };
        loop {
            let sent = queue.sent.notified();
            tokio::pin!(sent);
            sent.as_mut().enable();
            if !Queue::outbox_is_full(&queue.lock()) {
                return Ok(());
            }
            sent.await;
            self.shared.check_open()?;
        }
    }

    /// Whether something of the batch goes to a queue that is in memory alone.
    #[cold]
    fn reaches_transient(&self, publishes: &[Publish]) -> bool {
        let topology = self.topology.read();
        let mut last: Option<&Publish> = None;
        publishes.iter().any(|publish| {
            let known = last.is_some_and(|last| last.to.same(&publish.to) || last.to == publish.to);
            if known {
                return false;
            }
            match topology.route(&publish.to, &publish.message) {
                Route::Queues { queues, by_headers } => {
                    last = Some(publish).filter(|_| !by_headers);
                    queues.iter().any(|queue| !queue.durable)
                }
                Route::NoExchange | Route::Internal => false,
            }
        })
    }

    /// Hands what is durable to the queues and tells the publisher. Called in the order of the log.
    pub(crate) fn stored(&self, submission: Submission, result: Result<(), PublishOutcome>) {
        let Submission { mut targets, stored, position, others, reply, time, .. } = submission;
        let total = stored.publishes.len();
        let outcomes = match result {
            Ok(()) => {
                self.set_position(position);
                for target in &mut targets {
                    target.queue.clone().store(&stored, target, time);
                }
                Outcomes::with_others(total, others.into_iter().collect())
            }
            Err(outcome) => fill(total, others, &outcome),
        };
        // Nobody may be waiting any more; that changes nothing.
        let _ = reply.send(outcomes);
    }

    /// Stores or forgets a position durably.
    pub(crate) async fn store_position(&self, name: String, value: Option<Bytes>) -> Result<(), BrokerError> {
        if name.is_empty() || name.len() > NAME_MAX {
            let text = format!("the name of a position has {} bytes; use 1 to {NAME_MAX}", name.len());
            return Err(BrokerError::new(BrokerErrorKind::Invalid, text));
        }
        let batch = self.submit_parts(Vec::new(), Some((name, value))).await?;
        match batch.await.into_others().pop() {
            None => Ok(()),
            Some((
                _,
                PublishOutcome::Refused(Refusal::Broker(error)) | PublishOutcome::Unconfirmed(error),
            )) => Err(error),
            Some((_, other)) => {
                unreachable!("a batch without messages is refused only by the broker: {other:?}")
            }
        }
    }

    fn set_position(&self, position: Option<NewPosition>) {
        match position {
            Some((name, Some(value))) => _ = self.positions.lock().insert(name, value),
            Some((name, None)) => _ = self.positions.lock().remove(&name),
            None => {}
        }
    }

    /// Writes the settlements that wait, as far as there is room; the rest waits for the upkeep.
    pub(crate) fn flush_settled(&self) {
        let Some(journal) = &self.shared.journal else { return };
        let queues = std::mem::take(&mut *self.shared.bell.settled.lock());
        let mut full = false;
        for queue in queues {
            if full || !journal.append_settled(&queue, self.shared.clock.now()) {
                full = true;
                self.shared.bell.settled.lock().push(queue);
            }
        }
    }
}

/// Longest name of a position, in bytes.
const NAME_MAX: usize = 1024;

/// Whether a letter has left its queue with this outcome. One that nothing is bound for has nowhere to go.
pub(crate) fn has_arrived(outcome: &PublishOutcome) -> bool {
    matches!(outcome, PublishOutcome::Confirmed | PublishOutcome::Unroutable(_))
}

/// Every message that has no outcome yet gets this one; so does a batch that was only a position.
fn fill(total: usize, mut others: BTreeMap<usize, PublishOutcome>, outcome: &PublishOutcome) -> Outcomes {
    for at in 0..total.max(1) {
        others.entry(at).or_insert_with(|| outcome.clone());
    }
    Outcomes::with_others(total, others.into_iter().collect())
}

/// The refusal of a batch that was not stored for a reason of the broker.
pub(crate) fn refused(error: BrokerError) -> PublishOutcome {
    PublishOutcome::Refused(Refusal::Broker(error))
}

//! The broker's side of the log: batches on their way to the disk, settlements, declarations, and reading back.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use millstream_message::{BrokerError, BrokerErrorKind, Outcomes, Publish, PublishOutcome, Refusal};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, oneshot};

use crate::core::{Core, NewPosition, refused};
use crate::log::{AppendError, Commit, CommitError, CommitErrorKind, Entry, Log, Position, ReadError};
use crate::plan::{Plan, Target};
use crate::queue::Queue;
use crate::record::{
    self, Declaration, MARKED, POSITION, PUBLISH, SETTLED, TOPOLOGY, put_marked, put_position, put_publish,
    put_settled,
};
use crate::run::Stored;
use crate::shared::closed;

/// A batch that is in the log and not known to be durable.
pub(crate) struct Submission {
    pub(crate) targets: Vec<Target>,
    pub(crate) stored: Arc<Stored>,
    pub(crate) position: Option<NewPosition>,
    pub(crate) others: BTreeMap<usize, PublishOutcome>,
    pub(crate) reply: oneshot::Sender<Outcomes>,
    /// When it was published, in milliseconds since 1970.
    pub(crate) time: u64,
}

/// What is written with a batch: after a crash both are there, or neither.
pub(crate) enum Besides {
    Nothing,
    Position(NewPosition),
    /// These messages are off this queue. Left out where it is too large to be one record with the batch.
    Settled(u32, Vec<Range<u64>>),
}

/// What is in the log and not known to be durable.
enum Cargo {
    Batch(Submission),
    /// Settlements of a queue's consumers: how many of each.
    Settled(Arc<Queue>, Vec<(u64, u64)>),
}

/// In the order of the log, with the position of the first record.
#[derive(Default)]
struct Flying {
    batches: VecDeque<(u64, Commit, Cargo)>,
    waker: Option<Waker>,
    /// Nobody lands what is appended now.
    is_over: bool,
}

/// The log of a broker.
pub(crate) struct Journal {
    /// `None` once closed.
    log: RwLock<Option<Arc<Log>>>,
    /// Held for reading from before a batch gets its positions until it is among the flying, so that a checkpoint,
    /// which takes it for writing, sees every batch whose effect is not in the queues yet.
    gate: tokio::sync::RwLock<()>,
    flying: Mutex<Flying>,
    landed: Notify,
    /// Messages that could not be read back.
    damaged: AtomicU64,
    /// From this position of the log's end on, a checkpoint is wanted.
    checkpoint_at: AtomicU64,
}

/// How many batches are handed to the queues before other tasks get a turn.
const LANDINGS: usize = 64;

impl Journal {
    pub(crate) fn new(log: Log) -> Journal {
        Journal {
            log: RwLock::new(Some(Arc::new(log))),
            gate: tokio::sync::RwLock::new(()),
            flying: Mutex::default(),
            landed: Notify::new(),
            damaged: AtomicU64::new(0),
            checkpoint_at: AtomicU64::new(0),
        }
    }

    pub(crate) fn log(&self) -> Result<Arc<Log>, BrokerError> {
        self.log.read().clone().ok_or_else(closed)
    }

    /// Takes the log away; everything after fails as closed.
    pub(crate) fn take(&self) -> Option<Arc<Log>> {
        self.log.write().take()
    }

    /// Asks to be told when the log's end has come here.
    pub(crate) fn checkpoint_at(&self, position: u64) {
        self.checkpoint_at.store(position, Ordering::Relaxed);
    }

    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.log().is_ok_and(|log| log.end().get() >= self.checkpoint_at.load(Ordering::Relaxed))
    }

    /// Has what waits in the log written soon.
    pub(crate) fn kick(&self) {
        if let Ok(log) = self.log() {
            log.kick();
        }
    }

    // --- Batches ----------------------------------------------------------------------------------------------------

    /// Whether anything of the batch must be in the log.
    pub(crate) fn wants(plan: &Plan, publishes: &[Publish], position: bool) -> bool {
        // A refused atomic batch must not store its position.
        if plan.targets.is_empty() && !plan.others.is_empty() {
            return false;
        }
        let persistent = |at: u32| publishes[at as usize].message.properties().persistent;
        position || plan.targets.iter().any(|target| target.queue.durable && target.places().any(persistent))
    }

    /// Appends a batch, which then flies until [`land`] hears from the disk. Waits while the log's buffer is full;
    /// dropped while waiting, nothing has happened. Tells whether what is written besides was not left out.
    ///
    /// # Errors
    /// The refusal of all messages that have no other outcome.
    pub(crate) async fn submit(
        &self,
        publishes: Vec<Publish>,
        besides: Besides,
        plan: Plan,
        reply: oneshot::Sender<Outcomes>,
        time: u64,
    ) -> Result<bool, (Refusal, BTreeMap<usize, PublishOutcome>)> {
        let log = match self.log() {
            Ok(log) => log,
            Err(error) => return Err((Refusal::Broker(error), plan.others)),
        };
        let Plan { targets, others } = plan;
        let heads = Heads::encode(&publishes, &targets, &besides);
        let _gate = self.gate.read().await;
        let mut complete = true;
        let appended = {
            let entries = heads.entries(&publishes, time);
            match &besides {
                Besides::Nothing => log.append_batch(&entries).await,
                Besides::Position(_) => log.append_atomic(&entries).await,
                Besides::Settled(..) => match log.append_atomic(&entries).await {
                    Err(AppendError::TooLarge { .. }) => {
                        complete = false;
                        log.append_batch(&entries[..entries.len() - 1]).await
                    }
                    appended => appended,
                },
            }
        };
        let position = match besides {
            Besides::Position(position) => Some(position),
            Besides::Nothing | Besides::Settled(..) => None,
        };
        let appended = match appended {
            Ok(appended) => appended,
            Err(AppendError::TooLarge { len, max }) => {
                return Err((Refusal::TooLarge { len: len as u64, max: max as u64 }, others));
            }
            Err(_) => return Err((Refusal::Broker(closed()), others)),
        };
        let first = appended.positions.first().map_or(0, |position| position.get());
        let mut positions = vec![0; publishes.len()];
        // A position record is the first of its batch.
        let of_messages = appended.positions.iter().skip(usize::from(position.is_some()));
        for (&at, at_position) in heads.places.iter().zip(of_messages) {
            positions[at as usize] = at_position.get();
        }
        let stored = Arc::new(Stored { publishes, positions });
        let submission = Submission { targets, stored, position, others, reply, time };
        self.fly(first, appended.commit, Cargo::Batch(submission));
        Ok(complete)
    }

    fn fly(&self, first: u64, commit: Commit, cargo: Cargo) {
        let mut flying = self.flying.lock();
        if flying.is_over {
            drop(flying);
            // Its publishers hear that nobody will tell them.
            drop(cargo);
            return;
        }
        flying.batches.push_back((first, commit, cargo));
        let waker = flying.waker.take();
        drop(flying);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Where recovery must begin for a checkpoint of what the queues hold after this call.
    pub(crate) async fn covers(&self) -> Result<Position, BrokerError> {
        let log = self.log()?;
        let _gate = self.gate.write().await;
        let end = log.end().get();
        let flying = self.flying.lock();
        let oldest = flying.batches.iter().map(|(position, ..)| *position).min().unwrap_or(end);
        Ok(Position::new(oldest.min(end)))
    }

    /// Waits until nothing flies.
    pub(crate) async fn all_landed(&self) {
        loop {
            let landed = self.landed.notified();
            tokio::pin!(landed);
            landed.as_mut().enable();
            if self.flying.lock().batches.is_empty() {
                return;
            }
            landed.await;
        }
    }

    /// Tells those who wait for a batch what became of it, now that nobody will land it. Of what the log has not answered the
    /// publishers hear that nothing is known, and the queues that it names are not kept by their own journal; so it is with what is
    /// still appended by who had the log in hand.
    pub(crate) fn abandon(&self, core: &Core) {
        let mut cx = Context::from_waker(Waker::noop());
        while self.poll_landing(core, &mut cx).is_ready() {}
        let left = {
            let mut flying = self.flying.lock();
            flying.is_over = true;
            std::mem::take(&mut flying.batches)
        };
        drop(left);
    }

    fn poll_landing(&self, core: &Core, cx: &mut Context<'_>) -> Poll<()> {
        let mut flying = self.flying.lock();
        for _ in 0..LANDINGS {
            let Some((_, commit, _)) = flying.batches.front_mut() else {
                self.landed.notify_waiters();
                flying.waker = Some(cx.waker().clone());
                return Poll::Pending;
            };
            let Poll::Ready(result) = Pin::new(commit).poll(cx) else { return Poll::Pending };
            let (_, _, cargo) = flying.batches.pop_front().expect("it was there");
            match cargo {
                // Under the lock, so that a checkpoint sees the batch either flying or in the queues.
                Cargo::Batch(submission) => core.stored(submission, result.map_err(|error| lost(&error))),
                // Also after a failure: then a crash delivers these again, or the next checkpoint has them.
                Cargo::Settled(queue, sessions) => queue.settlements_landed(&sessions),
            }
        }
        Poll::Ready(())
    }

    // --- Settlements and declarations -----------------------------------------------------------------------------

    /// Writes what a queue has to tell, without asking for a sync. False when there is no room now.
    pub(crate) fn append_settled(&self, queue: &Arc<Queue>, time: u64) -> bool {
        // A closed log hears no more: what is not written is delivered again.
        let Ok(log) = self.log() else { return true };
        let (settled, mut marks, owed) = {
            let mut state = queue.lock();
            let state = &mut *state;
            let owing = state.sessions.iter_mut().filter(|session| session.unwritten > 0);
            let owed: Vec<_> =
                owing.map(|session| (session.id, std::mem::take(&mut session.unwritten))).collect();
            (std::mem::take(&mut state.settled), std::mem::take(&mut state.marks), owed)
        };
        // A delivery that is settled already needs no count.
        let ended = |seqs: &Range<u64>| settled.iter().any(|s| s.start <= seqs.start && seqs.end <= s.end);
        if settled.len() <= 16 {
            marks.retain(|mark| !ended(&mark.seqs));
        }
        let (mut head, mut body) = (Vec::new(), Vec::new());
        let mut entries = Vec::new();
        if !marks.is_empty() {
            put_marked(&mut head, queue.id, &marks);
            entries.push(Entry { kind: MARKED, time, head: &head, body: &[] });
        }
        if !settled.is_empty() {
            put_settled(&mut body, queue.id, &settled);
            entries.push(Entry { kind: SETTLED, time, head: &[], body: &body });
        }
        match log.try_append_batch(&entries) {
            Ok(appended) => {
                match appended.positions.first() {
                    Some(first) if !owed.is_empty() => {
                        self.fly(first.get(), appended.commit, Cargo::Settled(queue.clone(), owed));
                    }
                    _ => appended.commit.later(),
                }
                true
            }
            Err(AppendError::Busy) => {
                let mut state = queue.lock();
                // Before what came meanwhile: marks must be read in their order.
                let (newer, newer_marks) = (
                    std::mem::replace(&mut state.settled, settled),
                    std::mem::replace(&mut state.marks, marks),
                );
                state.settled.extend(newer);
                state.marks.extend(newer_marks);
                for (id, count) in owed {
                    if let Some(session) = state.session(id) {
                        session.unwritten += count;
                    }
                }
                false
            }
            Err(_) => true,
        }
    }

    /// Appends a declaration; the commit says when it is durable.
    pub(crate) async fn declare(&self, declaration: &Declaration, time: u64) -> Result<Commit, BrokerError> {
        let json = serde_json::to_vec(declaration).expect("declarations have text keys only");
        Ok(self.append(TOPOLOGY, &json, time).await?.1)
    }

    /// Appends one record; where it is, and its commit.
    pub(crate) async fn append(
        &self,
        kind: u8,
        body: &[u8],
        time: u64,
    ) -> Result<(u64, Commit), BrokerError> {
        let log = self.log()?;
        match log.append(Entry { kind, time, head: body, body: &[] }).await {
            Ok(appended) => Ok((appended.position.get(), appended.commit)),
            Err(error) => Err(BrokerError::with_source(
                BrokerErrorKind::Storage,
                "the log does not take the record",
                error,
            )),
        }
    }

    // --- Reading back -----------------------------------------------------------------------------------------------

    /// Reads messages back; `None` for those whose bytes are damaged or gone.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn read(&self, positions: &[u64]) -> Result<Vec<Option<Publish>>, BrokerError> {
        let log = self.log()?;
        let mut address = None;
        let mut out = Vec::with_capacity(positions.len());
        for &position in positions {
            out.push(match log.read_at(Position::new(position)) {
                Ok(record) if matches!(record.kind, PUBLISH | record::MOVED) => {
                    record::publish_of(record.body, &mut address).ok()
                }
                Ok(_) | Err(ReadError::Damaged(_) | ReadError::Gone(_)) => None,
                Err(error) => {
                    let text = format!("a stored message at position {position} cannot be read now");
                    return Err(BrokerError::with_source(BrokerErrorKind::Storage, text, error));
                }
            });
        }
        Ok(out)
    }

    pub(crate) fn count_damaged(&self) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages that could not be read back since opening.
    pub(crate) fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }
}

/// Hands batches to the queues as they become durable. Runs as a task until the broker is dropped.
pub(crate) async fn land(core: Arc<Core>) {
    let Some(journal) = &core.shared.journal else { return };
    loop {
        poll_fn(|cx| journal.poll_landing(&core, cx)).await;
        tokio::task::yield_now().await;
    }
}

/// The outcome of messages whose commit failed.
fn lost(error: &CommitError) -> PublishOutcome {
    let broker = storage(error);
    match error.kind() {
        CommitErrorKind::NotStored => refused(broker),
        _ => PublishOutcome::Unconfirmed(broker),
    }
}

pub(crate) fn storage(error: &CommitError) -> BrokerError {
    BrokerError::with_source(BrokerErrorKind::Storage, error.to_string(), error.clone())
}

/// The encoded heads of a batch's records, one after the other.
struct Heads {
    bytes: Vec<u8>,
    /// Where each head ends.
    ends: Vec<usize>,
    /// The message of each head; that of a position, which comes first, and that of settlements, which comes last, have none.
    places: Vec<u32>,
    position: bool,
}

impl Heads {
    fn encode(publishes: &[Publish], targets: &[Target], besides: &Besides) -> Heads {
        let mut heads = Heads {
            bytes: Vec::with_capacity(publishes.len() * 32),
            ends: Vec::with_capacity(publishes.len() + 1),
            places: Vec::with_capacity(publishes.len()),
            position: matches!(besides, Besides::Position(_)),
        };
        if let Besides::Position(position) = besides {
            put_position(&mut heads.bytes, position);
            heads.ends.push(heads.bytes.len());
        }
        // For every durable target, its next message and that message's identity.
        let mut next: Vec<_> = targets
            .iter()
            .filter(|target| target.queue.durable)
            .map(|target| (target.queue.id, target.places().peekable(), target.first_seq))
            .collect();
        let mut to = Vec::with_capacity(next.len());
        for (at, publish) in (0_u32..).zip(publishes) {
            to.clear();
            for (queue, places, seq) in &mut next {
                if places.next_if_eq(&at).is_some() {
                    to.push((*queue, *seq));
                    *seq += 1;
                }
            }
            if to.is_empty() || !publish.message.properties().persistent {
                continue;
            }
            put_publish(&mut heads.bytes, to.iter().copied(), publish);
            heads.ends.push(heads.bytes.len());
            heads.places.push(at);
        }
        if let Besides::Settled(queue, seqs) = besides {
            put_settled(&mut heads.bytes, *queue, seqs);
            heads.ends.push(heads.bytes.len());
        }
        heads
    }

    fn entries<'a>(&'a self, publishes: &'a [Publish], time: u64) -> Vec<Entry<'a>> {
        let mut from = 0;
        let mut places = self.places.iter();
        let mut entries = Vec::with_capacity(self.ends.len());
        for (index, &end) in self.ends.iter().enumerate() {
            let head = &self.bytes[from..end];
            from = end;
            entries.push(if self.position && index == 0 {
                Entry { kind: POSITION, time, head, body: &[] }
            } else if let Some(&at) = places.next() {
                Entry { kind: PUBLISH, time, head, body: publishes[at as usize].message.body() }
            } else {
                Entry { kind: SETTLED, time, head, body: &[] }
            });
        }
        entries
    }
}

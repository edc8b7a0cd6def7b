//! Recovery: from a checkpoint and the records behind it to topology, queues and positions.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use millstream_message::{Binding, BrokerError, BrokerErrorKind, Exchange, Queue as Spec, StreamSpec};
use serde::{Deserialize, Serialize};

use crate::exchange::Topology;
use crate::live::{Live, LiveRun};
use crate::log::{RecordRef, Replay};
use crate::queue::Queue;
use crate::record::{
    self, APPENDED, Declaration, FORMAT, MARKED, META, MOVED, POSITION, PUBLISH, SETTLED, TOPOLOGY,
};
use crate::run::Traits;
use crate::shared::Shared;
use crate::state::State;
use crate::wire::{Input, Malformed, put_bytes, put_u64};

/// Everything durable of a broker, as a checkpoint has it.
#[derive(Debug, Default)]
pub(crate) struct Image {
    pub(crate) topology: TopologyImage,
    pub(crate) queues: BTreeMap<u32, QueueImage>,
    pub(crate) positions: BTreeMap<String, Bytes>,
    /// Streams whose deletion was replayed: a crash may have left files of them.
    pub(crate) gone_streams: Vec<u32>,
}

/// The declared part, as JSON in the checkpoint.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct TopologyImage {
    pub(crate) next_id: u32,
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) bindings: Vec<Binding>,
    pub(crate) queues: BTreeMap<u32, Spec>,
    pub(crate) streams: BTreeMap<u32, StreamSpec>,
}

/// The messages of a queue.
#[derive(Debug, Default)]
pub(crate) struct QueueImage {
    pub(crate) next_seq: u64,
    pub(crate) live: Live,
}

impl Image {
    /// The payload of a checkpoint.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, FORMAT);
        put_bytes(&mut out, &serde_json::to_vec(&self.topology).expect("declarations have text keys only"));
        put_u64(&mut out, self.positions.len() as u64);
        for (name, value) in &self.positions {
            put_bytes(&mut out, name.as_bytes());
            put_bytes(&mut out, value);
        }
        put_u64(&mut out, self.queues.len() as u64);
        for (id, queue) in &self.queues {
            put_u64(&mut out, (*id).into());
            put_u64(&mut out, queue.next_seq);
            queue.live.encode(&mut out);
        }
        out
    }

    fn decode(payload: &[u8]) -> Result<Image, Malformed> {
        let mut input = Input(payload);
        if input.bytes()? != FORMAT {
            return Err(Malformed);
        }
        let topology = serde_json::from_slice(input.bytes()?).map_err(|_| Malformed)?;
        let mut image = Image { topology, ..Image::default() };
        for _ in 0..input.count()? {
            let name = input.text()?.to_owned();
            image.positions.insert(name, Bytes::copy_from_slice(input.bytes()?));
        }
        for _ in 0..input.count()? {
            let id = input.u32()?;
            let next_seq = input.u64()?;
            let live = Live::decode(&mut input)?;
            image.queues.insert(id, QueueImage { next_seq, live });
        }
        Ok(image)
    }

    fn apply(&mut self, declaration: Declaration) {
        let topology = &mut self.topology;
        match declaration {
            Declaration::Exchange(exchange) => {
                if !topology.exchanges.iter().any(|known| known.name == exchange.name) {
                    topology.exchanges.push(exchange);
                }
            }
            Declaration::DeleteExchange(name) => {
                topology.exchanges.retain(|known| known.name != name);
                topology.bindings.retain(|known| !known.touches_exchange(&name));
            }
            Declaration::Queue { id, queue } => {
                topology.next_id = topology.next_id.max(id.saturating_add(1));
                topology.queues.insert(id, queue);
                self.queues.entry(id).or_insert_with(|| QueueImage { next_seq: 1, live: Live::default() });
            }
            Declaration::DeleteQueue(id) => {
                if let Some(queue) = topology.queues.remove(&id) {
                    topology.bindings.retain(|known| !known.leads_to_queue(&queue.name));
                }
                self.queues.remove(&id);
            }
            Declaration::Stream { id, stream } => {
                topology.next_id = topology.next_id.max(id.saturating_add(1));
                topology.streams.insert(id, stream);
            }
            Declaration::DeleteStream(id) => {
                topology.streams.remove(&id);
                self.gone_streams.push(id);
            }
            Declaration::Bind(binding) => {
                if !topology.bindings.contains(&binding) {
                    topology.bindings.push(binding);
                }
            }
            Declaration::Unbind(binding) => topology.bindings.retain(|known| *known != binding),
        }
    }
}

/// Collects what the log hands over while it is opened.
#[derive(Debug, Default)]
pub(crate) struct Rebuild {
    pub(crate) image: Image,
    /// Whether anything was there at all.
    pub(crate) found: bool,
    /// Records that passed their checksum and made no sense.
    pub(crate) malformed: u64,
    pub(crate) error: Option<BrokerError>,
}

impl Rebuild {
    pub(crate) fn see(&mut self, replay: &Replay<'_>) {
        self.found = true;
        match replay {
            Replay::Checkpoint { payload, .. } => match Image::decode(payload) {
                Ok(image) => self.image = image,
                Err(Malformed) => {
                    self.fail("its checkpoint is of another format; use the version that wrote it");
                }
            },
            Replay::Record(record) => {
                if self.record(record) == Err(Malformed) {
                    self.malformed += 1;
                }
            }
        }
    }

    fn fail(&mut self, what: &str) {
        let error =
            BrokerError::new(BrokerErrorKind::Damaged, format!("the directory holds no broker: {what}"));
        self.error.get_or_insert(error);
    }

    fn record(&mut self, record: &RecordRef<'_>) -> Result<(), Malformed> {
        let position = record.position.get();
        match record.kind {
            META if record.body == FORMAT => {}
            META => self.fail(&format!("it says `{}`", String::from_utf8_lossy(record.body))),
            PUBLISH => {
                let read = record::read_publish(record.body)?;
                let size = read.message.size() + (record.body.len() - read.body_at);
                let size = u32::try_from(size).map_err(|_| Malformed)?;
                for (id, seq) in read.targets {
                    let Some(spec) = self.image.topology.queues.get(&id) else { continue };
                    let (traits, delay) = Traits::of(spec, &read.message, record.time);
                    let due = if delay > 0 { record.time.saturating_add(delay) } else { 0 };
                    let queue = self.image.queues.entry(id).or_default();
                    queue.live.add(seq, position, size, traits, due);
                    queue.next_seq = queue.next_seq.max(seq.checked_add(1).ok_or(Malformed)?);
                }
            }
            SETTLED => {
                let (id, ranges) = record::read_settled(record.body)?;
                if let Some(queue) = self.image.queues.get_mut(&id) {
                    for range in ranges {
                        queue.live.carve(&range);
                    }
                }
            }
            MARKED => {
                let (id, marks) = record::read_marked(record.body)?;
                if let Some(queue) = self.image.queues.get_mut(&id) {
                    for mark in marks {
                        for mut live in queue.live.carve(&mark.seqs) {
                            live.run.traits.deliveries = mark.deliveries;
                            live.due = mark.due;
                            queue.live.put(live);
                        }
                    }
                }
            }
            TOPOLOGY => {
                let declaration = serde_json::from_slice(record.body).map_err(|_| Malformed)?;
                self.image.apply(declaration);
            }
            POSITION => {
                match record::read_position(record.body)? {
                    (name, Some(value)) => _ = self.image.positions.insert(name, value),
                    (name, None) => _ = self.image.positions.remove(&name),
                };
            }
            MOVED => {
                let read = record::read_publish(record.body)?;
                for (id, seq) in read.targets {
                    let Some(queue) = self.image.queues.get_mut(&id) else { continue };
                    for live in queue.live.carve(&(seq..seq.saturating_add(1))) {
                        queue.live.put(moved(live, position));
                    }
                }
            }
            APPENDED => self.fail("it is a stream's; open the directory above `streams`"),
            _ => return Err(Malformed),
        }
        Ok(())
    }
}

/// The run of one message at another position.
fn moved(live: LiveRun, position: u64) -> LiveRun {
    let run = live.run;
    let mut one = Live::default();
    one.add(run.seq, position, run.slot(0).1, run.traits, live.due);
    let mut fresh = one.into_runs().next().expect("one was added");
    fresh.run.order = run.order;
    fresh
}

/// The topology and queues of an image.
pub(crate) fn topology(
    image: TopologyImage,
    mut queues: BTreeMap<u32, QueueImage>,
    shared: &Arc<Shared>,
) -> Topology {
    let mut topology = Topology::default();
    let now = shared.clock.now();
    for (id, spec) in image.queues {
        let state = state(&spec, queues.remove(&id).unwrap_or_default(), now);
        let queue = Arc::new(Queue::recovered(id, spec, shared.clone(), state));
        topology.queues.insert(queue.name().to_owned(), queue);
    }
    image.exchanges.into_iter().for_each(|exchange| topology.declare(exchange));
    for binding in image.bindings {
        if let Some(leads) = topology.target(&binding) {
            topology.bind(binding, &leads);
        }
    }
    topology
}

fn state(spec: &Spec, image: QueueImage, now: u64) -> State {
    let mut state = State::new(spec);
    let orders = image.live.iter().map(|live| live.run.order_end());
    state.next_seq = orders.max().unwrap_or(0).max(image.next_seq).max(1);
    let mut ripe = Vec::new();
    for live in image.live.into_runs() {
        match live.due {
            0 => state.insert(live.run),
            due if due > now => state.insert_delayed(due, live.run),
            _ => ripe.push(live),
        }
    }
    // What became due while nobody was there comes behind the rest, in the order in which it became due.
    ripe.sort_by_key(|live| (live.due, live.run.order));
    for LiveRun { mut run, .. } in ripe {
        run.order = state.next_seq;
        state.next_seq += u64::from(run.count);
        state.insert(run);
    }
    state
}

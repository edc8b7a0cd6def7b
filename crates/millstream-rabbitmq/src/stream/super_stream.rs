//! Super streams: one name for several streams, its partitions.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use hashbrown::HashMap;
use millstream_message::{
    Address, BrokerError, Confirm, Message, Outcomes, Publish, PublishOutcome, Returned, StreamFrom,
    StreamItem, StreamSource,
};

use super::client::StreamClient;
use super::consumer::{ConsumerOptions, StreamConsumer};
use super::producer::{Producer, ProducerOptions};

/// The seed of the hash by which RabbitMQ's own clients choose partitions.
const SEED: u32 = 104_729;
/// Keys whose routes are remembered.
const ROUTES_MAX: usize = 10_000;

/// How a super stream's partition is chosen for a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Routing {
    /// By the key's hash, as RabbitMQ's own clients do it: the same key always goes to the same partition.
    #[default]
    Hash,
    /// By the bindings: the broker is asked, once for each key, which partitions are bound with it. A message goes to
    /// all of them, and is returned when there is none.
    Key,
}

/// What a super stream is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Partitions {
    /// So many, `NAME-0`, `NAME-1` and so on, to be used by [`Routing::Hash`].
    Count(u16),
    /// One for each key, `NAME-KEY`, bound with it, to be used by [`Routing::Key`].
    Keys(Vec<String>),
}

impl Partitions {
    /// Streams, and the keys with which they are bound.
    pub(crate) fn of(&self, name: &str) -> (Vec<String>, Vec<String>) {
        let keys: Vec<String> = match self {
            Partitions::Count(count) => (0..*count).map(|place| place.to_string()).collect(),
            Partitions::Keys(keys) => keys.clone(),
        };
        (keys.iter().map(|key| format!("{name}-{key}")).collect(), keys)
    }
}

/// Publishes to a super stream. Made by [`StreamClient::super_producer`].
///
/// # Ordering
/// Messages with the same key are stored in the order of the calls of [`send`](SuperProducer::send).
pub struct SuperProducer {
    client: StreamClient,
    name: String,
    routing: Routing,
    partitions: Vec<String>,
    producers: Vec<Producer>,
    routes: tokio::sync::Mutex<HashMap<String, Arc<[usize]>>>,
}

impl SuperProducer {
    pub(crate) async fn open(
        client: StreamClient,
        name: &str,
        routing: Routing,
        options: ProducerOptions,
    ) -> Result<SuperProducer, BrokerError> {
        let partitions = client.partitions(name).await?;
        let mut producers = Vec::with_capacity(partitions.len());
        for partition in &partitions {
            producers.push(client.producer(partition, options.clone()).await?);
        }
        let routes = tokio::sync::Mutex::default();
        Ok(SuperProducer { client, name: name.to_owned(), routing, partitions, producers, routes })
    }

    /// The streams it publishes to.
    pub fn partitions(&self) -> &[String] {
        &self.partitions
    }

    /// Publishes messages under their keys. The [`Confirm`] resolves when all partitions have answered.
    ///
    /// # Backpressure
    /// Waits while the window of a partition that gets a message is full.
    ///
    /// # Cancel safety
    /// Dropped while it waits, some partitions may have got their messages and others not.
    ///
    /// # Errors
    /// As of [`Producer::send`].
    pub async fn send<K: AsRef<str>>(&self, messages: &[(K, Message)]) -> Result<Confirm, BrokerError> {
        let mut parts = vec![(Vec::new(), Vec::new()); self.producers.len()];
        let mut others = Vec::new();
        for (place, (key, message)) in messages.iter().enumerate() {
            let route = self.route(key.as_ref()).await?;
            if route.is_empty() {
                let to = Address::new(&self.name, key.as_ref());
                let reason =
                    format!("no partition of `{}` is bound with the key `{}`", self.name, key.as_ref());
                let returned = Returned { publish: Publish { to, message: message.clone() }, reason };
                others.push((place, PublishOutcome::Unroutable(Box::new(returned))));
            }
            for partition in route.iter() {
                parts[*partition].0.push(place);
                parts[*partition].1.push(message.clone());
            }
        }
        let mut confirms = Vec::new();
        for (producer, (places, messages)) in self.producers.iter().zip(parts) {
            if !messages.is_empty() {
                confirms.push((producer.send(&messages).await?, places));
            }
        }
        let total = messages.len();
        Ok(Confirm::pending(async move {
            for (confirm, places) in confirms {
                let outcomes = confirm.await.into_others();
                others.extend(outcomes.into_iter().map(|(at, outcome)| (places[at], outcome)));
            }
            others.sort_by_key(|(place, _)| *place);
            others.dedup_by_key(|(place, _)| *place);
            Outcomes::with_others(total, others)
        }))
    }

    async fn route(&self, key: &str) -> Result<Arc<[usize]>, BrokerError> {
        if self.routing == Routing::Hash {
            return Ok([murmur3(key.as_bytes(), SEED) as usize % self.producers.len()].into());
        }
        let mut routes = self.routes.lock().await;
        if let Some(route) = routes.get(key) {
            return Ok(route.clone());
        }
        let names = self.client.route(&self.name, key).await?;
        let place = |name: &String| self.partitions.iter().position(|partition| partition == name);
        let route: Arc<[usize]> = names.iter().filter_map(place).collect();
        if routes.len() >= ROUTES_MAX {
            routes.clear();
        }
        routes.insert(key.to_owned(), route.clone());
        Ok(route)
    }

    /// Waits until nothing is in flight and ends.
    pub async fn close(self) {
        for producer in self.producers {
            producer.close().await;
        }
    }
}

impl fmt::Debug for SuperProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SuperProducer").field("partitions", &self.partitions).finish_non_exhaustive()
    }
}

/// Reads all partitions of a super stream. Made by [`StreamClient::super_consumer`].
///
/// # Ordering
/// Messages of one partition come in order; between partitions there is none, and none is kept waiting by another.
///
/// # Several processes
/// Named consumers that are [`single_active`](ConsumerOptions::single_active) share the partitions: each partition is
/// read by one of them at a time, so that order by key holds over all of them, and when one goes the others take over
/// its partitions at the stored offsets.
pub struct SuperConsumer {
    partitions: Vec<String>,
    consumers: Vec<StreamConsumer>,
    /// Whose turn it is.
    turn: usize,
}

impl SuperConsumer {
    pub(crate) async fn open(
        client: &StreamClient,
        name: &str,
        from: StreamFrom,
        options: ConsumerOptions,
    ) -> Result<SuperConsumer, BrokerError> {
        let partitions = client.partitions(name).await?;
        let mut consumers = Vec::with_capacity(partitions.len());
        for partition in &partitions {
            let part = (partition.as_str(), Some(name));
            consumers.push(StreamConsumer::open(client.inner.clone(), part, from, options.clone()).await?);
        }
        Ok(SuperConsumer { partitions, consumers, turn: 0 })
    }

    /// The streams it reads.
    pub fn partitions(&self) -> &[String] {
        &self.partitions
    }

    /// Ends, as each of its consumers: see [`StreamConsumer::close`].
    ///
    /// # Errors
    /// When an offset could not be stored.
    pub async fn close(self) -> Result<(), BrokerError> {
        for consumer in self.consumers {
            consumer.close().await?;
        }
        Ok(())
    }

    /// The consumers of the partitions, to store their offsets, and to see which of them are active.
    pub fn consumers(&self) -> &[StreamConsumer] {
        &self.consumers
    }

    /// Up to `max` (at least one) items of one partition, with its place in
    /// [`partitions`](SuperConsumer::partitions); waits for more. Empty means that the client is closed.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When a partition was deleted or cannot be read.
    pub async fn next_chunk(&mut self, max: usize) -> Result<(usize, Vec<StreamItem>), BrokerError> {
        let mut items = Vec::new();
        let partition = poll_fn(|cx| self.poll_chunk(cx, max.max(1), &mut items)).await?;
        Ok((partition, items))
    }

    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        into: &mut Vec<StreamItem>,
    ) -> Poll<Result<usize, BrokerError>> {
        for step in 0..self.consumers.len() {
            let at = (self.turn + step) % self.consumers.len();
            if let Poll::Ready(outcome) = self.consumers[at].poll_chunk(cx, max, into) {
                self.turn = at + 1;
                return Poll::Ready(outcome.map(|_| at));
            }
        }
        Poll::Pending
    }
}

impl fmt::Debug for SuperConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SuperConsumer").field("partitions", &self.partitions).finish_non_exhaustive()
    }
}

/// MurmurHash3 by Austin Appleby, the one of 32 bits.
fn murmur3(bytes: &[u8], seed: u32) -> u32 {
    let mix = |word: u32| word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    let (words, tail) = bytes.as_chunks();
    let mut hash = seed;
    for word in words {
        hash =
            (hash ^ mix(u32::from_le_bytes(*word))).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    let rest = tail.iter().rev().fold(0, |rest, byte| rest << 8 | u32::from(*byte));
    hash ^= mix(rest);
    hash ^= bytes.len() as u32;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_murmur3() {
        for (text, seed, hash) in [
            ("", 0, 0),
            ("", 1, 0x514e_28b7),
            ("test", 0, 0xba6b_d213),
            ("Hello, world!", 0, 0xc036_3e43),
            ("Hello, world!", 0x9747_b28c, 0x2488_4cba),
            ("The quick brown fox jumps over the lazy dog", 0x9747_b28c, 0x2fa8_26cd),
        ] {
            assert_eq!(murmur3(text.as_bytes(), seed), hash, "{text}");
        }
    }
}

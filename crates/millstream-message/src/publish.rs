//! Publishing: what is handed over and what becomes of it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::error::BrokerError;
use crate::message::Message;

/// Where a message goes: an exchange and a key. Make one and clone it for many messages: a clone is one reference
/// count, and brokers route a run of messages with the same address once.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address(Arc<(String, String)>);

impl Address {
    /// This exchange, this key.
    pub fn new(exchange: impl Into<String>, key: impl Into<String>) -> Address {
        Address(Arc::new((exchange.into(), key.into())))
    }

    /// Straight to a queue, through the default exchange.
    pub fn queue(name: impl Into<String>) -> Address {
        Address::new("", name)
    }

    /// The exchange; empty for the default one.
    pub fn exchange(&self) -> &str {
        &self.0.0
    }

    /// The routing key.
    pub fn key(&self) -> &str {
        &self.0.1
    }

    /// Whether both are clones of one, which is quicker to tell than whether they are equal.
    pub fn same(&self, other: &Address) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exchange() {
            "" => write!(f, "queue `{}`", self.key()),
            exchange => write!(f, "exchange `{exchange}`, key `{}`", self.key()),
        }
    }
}

/// One message on its way.
#[derive(Clone, Debug, PartialEq)]
pub struct Publish {
    /// Where to.
    pub to: Address,
    /// What.
    pub message: Message,
}

/// Messages submitted together: one commit, one outcome each.
///
/// With a [position](Batch::with_position) the batch is atomic: all its messages and the position are stored, or
/// nothing is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The messages, in the order in which they are stored.
    pub publishes: Vec<Publish>,
    /// A name and a value to store with them.
    pub position: Option<(String, Bytes)>,
}

impl Batch {
    /// All of these messages to one address.
    pub fn to(address: &Address, messages: impl IntoIterator<Item = Message>) -> Batch {
        let publishes = messages.into_iter().map(|message| Publish { to: address.clone(), message });
        Batch { publishes: publishes.collect(), position: None }
    }

    /// Stores `value` under `name` in the same atomic step. A source that stores how far it has read in this way
    /// publishes every item exactly once, whenever the process is killed.
    #[must_use]
    pub fn with_position(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Batch {
        self.position = Some((name.into(), value.into()));
        self
    }
}

impl From<Vec<Publish>> for Batch {
    fn from(publishes: Vec<Publish>) -> Batch {
        Batch { publishes, position: None }
    }
}

/// What is known about one published message.
#[derive(Clone, Debug)]
#[must_use = "a message that was not confirmed may need to be published again"]
pub enum PublishOutcome {
    /// Stored by every queue it was routed to: durably, for a persistent message in a durable queue.
    Confirmed,
    /// No queue wanted it. Here it is again, with the reason.
    Unroutable(Box<Returned>),
    /// Not stored, and it is known that it is not. Publishing it again is safe.
    Refused(Refusal),
    /// The connection or the disk failed before the confirm: it may be stored or not. Publish it again only where
    /// consumers deduplicate.
    Unconfirmed(BrokerError),
}

impl PublishOutcome {
    /// Whether the message is stored.
    pub fn is_confirmed(&self) -> bool {
        matches!(self, PublishOutcome::Confirmed)
    }
}

/// A message that no queue wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Returned {
    /// The message and its address.
    pub publish: Publish,
    /// Why, in words.
    pub reason: String,
}

/// Why a broker refused a message. It is not stored.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A queue is at its limit and rejects publishes.
    #[error("queue `{queue}` is full ({limit}); consume from it, raise its limit, or let it drop its head")]
    Full {
        /// The queue.
        queue: String,
        /// Which limit, as `max_items 1000`.
        limit: String,
    },
    /// Larger than the broker takes.
    #[error("the message is {len} bytes, at most {max} are taken")]
    TooLarge {
        /// Size of the message (or of the atomic batch) in bytes.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// The exchange does not exist.
    #[error("there is no exchange `{exchange}`; declare it first")]
    NoExchange {
        /// Its name.
        exchange: String,
    },
    /// Another message of the same atomic batch could not be stored.
    #[error("message {index} of the same atomic batch could not be stored, so none was")]
    Atomic {
        /// Its place in the batch, from 0.
        index: usize,
    },
    /// The broker is closed, or its disk is full or failed. What is known is that this message is not stored.
    #[error("the broker could not store it")]
    Broker(#[source] BrokerError),
}

/// The outcome of every message of a batch. Kept short: only what was not confirmed takes space.
#[derive(Clone, Debug, Default)]
#[must_use = "a message that was not confirmed may need to be published again"]
pub struct Outcomes {
    total: usize,
    others: Vec<(usize, PublishOutcome)>,
}

impl Outcomes {
    /// All `total` confirmed.
    pub fn confirmed(total: usize) -> Outcomes {
        Outcomes { total, others: Vec::new() }
    }

    /// All `total` with this outcome.
    pub fn all(total: usize, outcome: &PublishOutcome) -> Outcomes {
        let others = (0..total).map(|index| (index, outcome.clone()));
        Outcomes { total, others: if outcome.is_confirmed() { Vec::new() } else { others.collect() } }
    }

    /// All `total` confirmed but these, which are ordered by their place in the batch.
    pub fn with_others(total: usize, others: Vec<(usize, PublishOutcome)>) -> Outcomes {
        debug_assert!(others.is_sorted_by_key(|(index, _)| *index), "outcomes are ordered by place");
        Outcomes { total, others }
    }

    /// How many messages the batch had.
    pub fn len(&self) -> usize {
        self.total
    }

    /// Whether the batch was empty.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Whether every message was confirmed.
    pub fn all_confirmed(&self) -> bool {
        self.others.is_empty()
    }

    /// How many messages were confirmed.
    pub fn confirmed_count(&self) -> usize {
        self.total.saturating_sub(self.others.len())
    }

    /// Those that were not confirmed, by place in the batch. A batch of nothing but a position that could not be
    /// stored has one here, at 0.
    pub fn others(&self) -> &[(usize, PublishOutcome)] {
        &self.others
    }

    /// The same, to keep.
    pub fn into_others(self) -> Vec<(usize, PublishOutcome)> {
        self.others
    }

    /// The outcome of the message at `index`.
    ///
    /// # Panics
    /// When the batch had no message there.
    pub fn get(&self, index: usize) -> PublishOutcome {
        assert!(index < self.total, "outcome {index} of a batch of {}", self.total);
        match self.others.binary_search_by_key(&index, |(at, _)| *at) {
            Ok(at) => self.others[at].1.clone(),
            Err(_) => PublishOutcome::Confirmed,
        }
    }
}

/// Resolves when what became of a submitted batch is known.
///
/// # Ordering
/// Batches of one publisher resolve in the order in which they were submitted, so keeping a window of confirms in
/// a queue and awaiting the oldest costs nothing.
///
/// # Cancel safety
/// Dropping it changes nothing: the batch is stored or not all the same, only nobody is told.
#[must_use = "whether the messages are stored is known only from the confirm"]
pub struct Confirm(State);

enum State {
    Known(Option<Outcomes>),
    Pending(Pin<Box<dyn Future<Output = Outcomes> + Send>>),
}

impl Confirm {
    /// Known already.
    pub fn known(outcomes: Outcomes) -> Confirm {
        Confirm(State::Known(Some(outcomes)))
    }

    /// Known when this future resolves.
    pub fn pending(future: impl Future<Output = Outcomes> + Send + 'static) -> Confirm {
        Confirm(State::Pending(Box::pin(future)))
    }
}

impl Future for Confirm {
    type Output = Outcomes;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcomes> {
        match &mut self.0 {
            State::Known(outcomes) => Poll::Ready(outcomes.take().expect("a confirm is awaited once")),
            State::Pending(future) => future.as_mut().poll(cx),
        }
    }
}

impl fmt::Debug for Confirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            State::Known(_) => "Confirm(known)",
            State::Pending(_) => "Confirm(pending)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_answer_for_every_place() {
        let refused = PublishOutcome::Refused(Refusal::Atomic { index: 0 });
        let outcomes = Outcomes::with_others(3, vec![(1, refused.clone())]);
        assert!(outcomes.get(0).is_confirmed() && outcomes.get(2).is_confirmed());
        assert!(!outcomes.get(1).is_confirmed());
        assert_eq!((outcomes.len(), outcomes.confirmed_count()), (3, 2));
        assert_eq!(Outcomes::all(4, &refused).confirmed_count(), 0);
        assert!(Outcomes::all(4, &PublishOutcome::Confirmed).all_confirmed());
    }

    #[test]
    fn an_address_reads_as_a_place() {
        assert_eq!(Address::queue("orders").to_string(), "queue `orders`");
        assert_eq!(Address::new("events", "a.b").to_string(), "exchange `events`, key `a.b`");
    }
}

//! What exists on a broker: exchanges, queues and what binds them.
//!
//! All are plain values. Declaring one that exists as it is changes nothing; declaring it otherwise is an error
//! that lists every difference.

use std::fmt::Debug;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::value::Headers;

/// How an exchange chooses queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExchangeKind {
    /// Every queue bound with exactly the message's key.
    Direct,
    /// Every bound queue.
    Fanout,
    /// Every queue whose pattern matches the key: words between dots, `*` for one word, `#` for any number.
    Topic,
    /// Every queue whose headers match the message's.
    Headers,
}

/// Where messages are published. The default exchange has the empty name, exists always, cannot be declared or
/// bound, and leads to the queue whose name is the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// Its name, not empty.
    pub name: String,
    /// How it chooses queues.
    pub kind: ExchangeKind,
    /// Whether it survives a restart.
    pub durable: bool,
    /// Whether only other exchanges may lead to it: what is published to it is refused.
    #[serde(default)]
    pub internal: bool,
    /// The exchange that gets what this one leads nowhere.
    #[serde(default)]
    pub alternate: Option<String>,
}

impl Exchange {
    /// A durable exchange.
    pub fn durable(name: impl Into<String>, kind: ExchangeKind) -> Exchange {
        Exchange { name: name.into(), kind, durable: true, internal: false, alternate: None }
    }

    /// An exchange that a restart forgets.
    pub fn transient(name: impl Into<String>, kind: ExchangeKind) -> Exchange {
        Exchange { durable: false, ..Exchange::durable(name, kind) }
    }

    /// Lets only other exchanges lead to it.
    #[must_use]
    pub fn internal(mut self) -> Exchange {
        self.internal = true;
        self
    }

    /// Leads to this exchange what it leads nowhere else.
    #[must_use]
    pub fn alternate(mut self, exchange: impl Into<String>) -> Exchange {
        self.alternate = Some(exchange.into());
        self
    }
}

/// How a broker keeps a queue. The embedded broker has one way, which serves as either of the first two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueKind {
    /// On one node.
    Classic,
    /// Replicated over several nodes, always durable.
    Quorum,
    /// A log that consumers read without taking anything off; they begin [where they say](crate::ConsumeOptions::from). See
    /// [`Features::stream_queues`](crate::Features); other brokers have streams apart from queues.
    Stream,
}

/// What a queue does with a publish when a limit is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// Refuses the new message; the publisher is told. Loses nothing, so it is the default.
    #[default]
    #[serde(rename = "reject-publish")]
    Reject,
    /// Removes the oldest ready message (to the dead-letter exchange, with reason `maxlen`, when one is set).
    DropHead,
}

/// A place where messages wait for consumers.
///
/// ```
/// use std::time::Duration;
/// use millstream_message::{Overflow, Queue};
/// let queue = Queue::durable("orders")
///     .max_items(1_000_000)
///     .max_bytes(1 << 30)
///     .overflow(Overflow::DropHead)
///     .ttl(Duration::from_secs(3600))
///     .dead_letter("", "orders.dead")
///     .delivery_limit(5);
/// assert_eq!(queue.dead_letter_key.as_deref(), Some("orders.dead"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// Its name, not empty, at most 255 bytes.
    pub name: String,
    /// Whether it, and the persistent messages in it, survive a restart.
    #[serde(default)]
    pub durable: bool,
    /// Whether it belongs to this connection alone and vanishes with it. Never durable.
    #[serde(default)]
    pub exclusive: bool,
    /// How long a message may wait before it is expired; whole milliseconds.
    #[serde(default)]
    pub ttl: Option<Duration>,
    /// How many messages may be ready. Unsettled deliveries do not count.
    #[serde(default)]
    pub max_items: Option<NonZeroU64>,
    /// How many bytes ([`Message::size`](crate::Message::size)) may be ready.
    #[serde(default)]
    pub max_bytes: Option<NonZeroU64>,
    /// What happens at a limit.
    #[serde(default)]
    pub overflow: Overflow,
    /// Where messages go that expired, were rejected, overflowed or were delivered too often. `Some("")` is the
    /// default exchange; `None` discards them.
    #[serde(default)]
    pub dead_letter_exchange: Option<String>,
    /// The key under which they go; `None` keeps each message's own.
    #[serde(default)]
    pub dead_letter_key: Option<String>,
    /// The highest priority; `None` means that priorities are not looked at. Each level costs a list: use few.
    #[serde(default)]
    pub max_priority: Option<u8>,
    /// How many times a message may be given back before it is dead-lettered with reason `delivery_limit`.
    #[serde(default)]
    pub delivery_limit: Option<NonZeroU32>,
    /// How it is kept; `None` leaves it to the broker and to what else is asked for.
    #[serde(default)]
    pub kind: Option<QueueKind>,
    /// Whether one consumer receives everything, the first one, and the next only when that one is gone: order holds though
    /// several stand by.
    #[serde(default)]
    pub single_active_consumer: bool,
    /// How long it may be without consumers and without being declared before it goes by itself; whole milliseconds. See
    /// [`Features::queue_expiry`](crate::Features).
    #[serde(default)]
    pub expires: Option<Duration>,
}

impl Queue {
    /// A queue that a restart forgets, without limits.
    pub fn transient(name: impl Into<String>) -> Queue {
        Queue {
            name: name.into(),
            durable: false,
            exclusive: false,
            ttl: None,
            max_items: None,
            max_bytes: None,
            overflow: Overflow::Reject,
            dead_letter_exchange: None,
            dead_letter_key: None,
            max_priority: None,
            delivery_limit: None,
            kind: None,
            single_active_consumer: false,
            expires: None,
        }
    }

    /// A durable queue without limits.
    pub fn durable(name: impl Into<String>) -> Queue {
        Queue { durable: true, ..Queue::transient(name) }
    }

    /// A queue of this connection alone.
    pub fn exclusive(name: impl Into<String>) -> Queue {
        Queue { exclusive: true, ..Queue::transient(name) }
    }

    /// Sets how long a message may wait. With a dead-letter exchange it goes there then; but a message that expires in a circle of queues, and
    /// comes to one a second time without anybody having rejected it in between, is dropped, as on RabbitMQ.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Queue {
        self.ttl = Some(ttl);
        self
    }

    /// Limits the ready messages. Zero is read as one.
    #[must_use]
    pub fn max_items(mut self, items: u64) -> Queue {
        self.max_items = Some(NonZeroU64::new(items).unwrap_or(NonZeroU64::MIN));
        self
    }

    /// Limits the ready bytes. Zero is read as one.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Queue {
        self.max_bytes = Some(NonZeroU64::new(bytes).unwrap_or(NonZeroU64::MIN));
        self
    }

    /// Sets what happens at a limit.
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Queue {
        self.overflow = overflow;
        self
    }

    /// Sets where dead letters go: an exchange and a key.
    #[must_use]
    pub fn dead_letter(mut self, exchange: impl Into<String>, key: impl Into<String>) -> Queue {
        self.dead_letter_exchange = Some(exchange.into());
        self.dead_letter_key = Some(key.into());
        self
    }

    /// Looks at priorities, up to this one.
    #[must_use]
    pub fn max_priority(mut self, priority: u8) -> Queue {
        self.max_priority = Some(priority);
        self
    }

    /// Says how it is kept.
    #[must_use]
    pub fn kind(mut self, kind: QueueKind) -> Queue {
        self.kind = Some(kind);
        self
    }

    /// Delivers to one consumer at a time, the one that came first. Its turn lasts until it has ended and nothing of it is in hand, so
    /// order outlives a change; to pause is not to end. RabbitMQ does so for consumers of a handle that has declared the queue.
    #[must_use]
    pub fn single_active_consumer(mut self) -> Queue {
        self.single_active_consumer = true;
        self
    }

    /// Lets it go by itself when nobody has used it for so long.
    #[must_use]
    pub fn expires(mut self, after: Duration) -> Queue {
        self.expires = Some(after);
        self
    }

    /// Limits how often a message may be given back. Zero is read as one.
    #[must_use]
    pub fn delivery_limit(mut self, times: u32) -> Queue {
        self.delivery_limit = Some(NonZeroU32::new(times).unwrap_or(NonZeroU32::MIN));
        self
    }
}

/// How a headers binding compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeaderMatch {
    /// Every header of the binding must be there with that value.
    All,
    /// One is enough.
    Any,
}

/// What a binding leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A queue.
    #[default]
    Queue,
    /// Another exchange, which chooses in its turn.
    Exchange,
}

/// Leads messages from an exchange to a queue, or to another exchange.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Binding {
    /// From this exchange.
    pub exchange: String,
    /// To the queue, or the exchange, of this name.
    #[serde(rename = "queue")]
    pub target: String,
    /// Which of both it is.
    #[serde(default)]
    pub target_kind: Target,
    /// The key (direct), the pattern (topic); not looked at by fanout and headers exchanges.
    #[serde(default)]
    pub key: String,
    /// What a headers exchange compares; `None` otherwise.
    #[serde(default)]
    pub headers: Option<(HeaderMatch, Headers)>,
}

impl Binding {
    /// Leads messages with this key, or matching this pattern, from `exchange` to `queue`.
    pub fn new(exchange: impl Into<String>, key: impl Into<String>, queue: impl Into<String>) -> Binding {
        Binding {
            exchange: exchange.into(),
            target: queue.into(),
            target_kind: Target::Queue,
            key: key.into(),
            headers: None,
        }
    }

    /// Leads to the exchange `target` what it would have led to a queue of that name.
    ///
    /// ```
    /// use millstream_message::{Binding, Target};
    /// let binding = Binding::new("events", "order.*", "orders").to_exchange();
    /// assert_eq!((binding.target.as_str(), binding.target_kind), ("orders", Target::Exchange));
    /// ```
    #[must_use]
    pub fn to_exchange(mut self) -> Binding {
        self.target_kind = Target::Exchange;
        self
    }

    /// Whether it leads to this queue.
    pub fn leads_to_queue(&self, queue: &str) -> bool {
        self.target_kind == Target::Queue && self.target == queue
    }

    /// Whether it leads from or to this exchange.
    pub fn touches_exchange(&self, exchange: &str) -> bool {
        self.exchange == exchange || (self.target_kind == Target::Exchange && self.target == exchange)
    }

    /// Leads messages whose headers match from a headers exchange to `queue`.
    pub fn headers(
        exchange: impl Into<String>,
        matching: HeaderMatch,
        headers: Headers,
        queue: impl Into<String>,
    ) -> Binding {
        Binding { headers: Some((matching, headers)), ..Binding::new(exchange, "", queue) }
    }
}

impl std::fmt::Display for Binding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.target_kind {
            Target::Queue => "queue",
            Target::Exchange => "exchange",
        };
        write!(f, "binding of {what} `{}` to exchange `{}`", self.target, self.exchange)?;
        if self.key.is_empty() { Ok(()) } else { write!(f, " for `{}`", self.key) }
    }
}

/// Every field in which two declarations differ, as `name: has 5, asked for 7`; `None` when there is none. For the
/// error of a differing redeclare.
///
/// ```
/// use millstream_message::{Queue, differences};
/// let has = Queue::durable("q").max_items(5);
/// assert_eq!(differences(&has, &has.clone()), None);
/// assert_eq!(differences(&has, &has.clone().max_items(7)).as_deref(), Some("max_items: has 5, asked for 7"));
/// ```
pub fn differences<T: Serialize + Debug>(has: &T, asked: &T) -> Option<String> {
    let fields = |value: &T| match serde_json::to_value(value) {
        Ok(serde_json::Value::Object(map)) => map,
        // Declarations are structs with text names: they always become an object.
        other => unreachable!("a declaration serializes to an object, not {other:?}"),
    };
    let (has, asked) = (fields(has), fields(asked));
    let list: Vec<String> = has
        .iter()
        .filter(|(name, value)| asked.get(*name) != Some(value))
        .map(|(name, value)| format!("{name}: has {}, asked for {}", show(value), show(&asked[name])))
        .collect();
    (!list.is_empty()).then(|| list.join("; "))
}

/// A field's value in the words of a declaration: durations as seconds, absence as `none`.
fn show(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "none".to_owned(),
        serde_json::Value::Object(map) => match (map.get("secs"), map.get("nanos")) {
            (Some(secs), Some(nanos)) => {
                let time = Duration::new(
                    secs.as_u64().unwrap_or_default(),
                    nanos.as_u64().and_then(|nanos| u32::try_from(nanos).ok()).unwrap_or_default(),
                );
                format!("{time:?}")
            }
            _ => value.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_differences_are_listed_in_readable_units() {
        let has = Queue::durable("q").ttl(Duration::from_millis(1500));
        let asked = Queue { durable: false, ..has.clone() }.ttl(Duration::from_secs(2)).dead_letter("", "d");
        let text = differences(&has, &asked).expect("they differ");
        for part in [
            "durable: has true, asked for false",
            "ttl: has 1.5s, asked for 2s",
            "dead_letter_key: has none, asked for \"d\"",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("name"));
    }
}

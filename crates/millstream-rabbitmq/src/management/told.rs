//! What the management tells of queues, exchanges and bindings, in our words, and how it differs from what is asked for.

use std::collections::BTreeSet;
use std::fmt::Display;

use millstream_message::{
    Binding, Exchange, HeaderMatch, Headers, Overflow, Queue, QueueKind, QueueStats, Target, Value,
};
use serde::Deserialize;

use crate::refusals::our_name;
use crate::topology;

/// A queue as the management tells it. Figures may be missing while it has none.
#[derive(Debug, Deserialize)]
pub(super) struct Told {
    pub(super) name: String,
    #[serde(default)]
    durable: bool,
    #[serde(default)]
    exclusive: bool,
    #[serde(default)]
    auto_delete: bool,
    #[serde(default)]
    arguments: Headers,
    #[serde(default)]
    messages_ready: u64,
    #[serde(default)]
    message_bytes_ready: u64,
    #[serde(default)]
    messages_unacknowledged: u64,
    #[serde(default)]
    message_bytes_unacknowledged: u64,
    #[serde(default)]
    consumers: u64,
}

#[derive(Deserialize)]
pub(super) struct ToldVhost {
    pub(super) name: String,
    #[serde(default)]
    pub(super) default_queue_type: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct ToldExchange {
    #[serde(rename = "type")]
    kind: String,
    durable: bool,
    auto_delete: bool,
    internal: bool,
    #[serde(default)]
    arguments: Headers,
}

#[derive(Deserialize)]
pub(super) struct ToldBinding {
    source: String,
    destination: String,
    destination_type: String,
    routing_key: String,
    #[serde(default)]
    arguments: Headers,
}

impl Told {
    pub(super) fn figures(self) -> QueueStats {
        QueueStats {
            name: self.name,
            ready: self.messages_ready,
            ready_bytes: self.message_bytes_ready,
            unacked: self.messages_unacknowledged,
            unacked_bytes: self.message_bytes_unacknowledged,
            consumers: self.consumers,
            ..QueueStats::default()
        }
    }

    /// The declaration whose arguments these are. Arguments that a [`Queue`] has no word for are not told.
    pub(super) fn declared(self) -> Queue {
        let mut queue =
            Queue { durable: self.durable, exclusive: self.exclusive, ..Queue::transient(self.name) };
        let number = |name: &str| {
            self.arguments.get(name).and_then(Value::as_int).and_then(|number| u64::try_from(number).ok())
        };
        let text = |name: &str| self.arguments.get(name).and_then(Value::as_text).map(str::to_owned);
        let millis = |name: &str| number(name).map(std::time::Duration::from_millis);
        queue.ttl = millis("x-message-ttl");
        queue.expires = millis("x-expires");
        queue.max_items = number("x-max-length").and_then(std::num::NonZeroU64::new);
        queue.max_bytes = number("x-max-length-bytes").and_then(std::num::NonZeroU64::new);
        // RabbitMQ drops the head unless it was told otherwise.
        let limited = queue.max_items.is_some() || queue.max_bytes.is_some();
        if limited && text("x-overflow").as_deref() != Some("reject-publish") {
            queue.overflow = Overflow::DropHead;
        }
        queue.dead_letter_exchange = text("x-dead-letter-exchange");
        queue.dead_letter_key = text("x-dead-letter-routing-key");
        queue.max_priority = number("x-max-priority").and_then(|priority| u8::try_from(priority).ok());
        let limit = number("x-delivery-limit").and_then(|limit| u32::try_from(limit).ok());
        queue.delivery_limit = limit.and_then(std::num::NonZeroU32::new);
        // A limit of deliveries says as much.
        queue.kind = match text("x-queue-type").as_deref().and_then(queue_kind) {
            Some(QueueKind::Quorum) if queue.delivery_limit.is_some() => None,
            kind => kind,
        };
        queue.single_active_consumer =
            matches!(self.arguments.get("x-single-active-consumer"), Some(Value::Bool(true)));
        queue
    }

    /// How it differs from what is asked for, in a vhost whose queues are of this kind by default.
    pub(super) fn differences(self, asked: &Queue, default: Option<QueueKind>) -> Vec<String> {
        let mut found = Found::default();
        found.compare("durable", self.durable, asked.durable);
        found.compare("exclusive", self.exclusive, asked.exclusive);
        found.compare("auto_delete", self.auto_delete, false);
        // What is said in other words, or not said because it is so anyway, is the same.
        let kind = |arguments: &mut Headers, otherwise: Option<QueueKind>| {
            let told = arguments.remove(KIND);
            let told = told.as_ref().and_then(Value::as_text).and_then(queue_kind);
            topology::kind_name(told.or(otherwise).unwrap_or(QueueKind::Classic))
        };
        let (mut has, mut wanted) = (self.arguments, topology::arguments(asked));
        found.compare("kind", kind(&mut has, None), kind(&mut wanted, default));
        found.arguments(&has, &wanted);
        found.0
    }
}

const KIND: &str = "x-queue-type";

pub(super) fn queue_kind(name: &str) -> Option<QueueKind> {
    [QueueKind::Classic, QueueKind::Quorum, QueueKind::Stream]
        .into_iter()
        .find(|kind| topology::kind_name(*kind) == name)
}

/// The differences between what is there and what is asked for, each in words.
#[derive(Default)]
struct Found(Vec<String>);

impl Found {
    fn compare<T: PartialEq + Display>(&mut self, name: &str, has: T, asked: T) {
        if has != asked {
            self.0.push(format!("{name}: has {has}, asked for {asked}"));
        }
    }

    /// Compares arguments, those that we have no word for among them.
    fn arguments(&mut self, has: &Headers, asked: &Headers) {
        let names: BTreeSet<&String> = has.keys().chain(asked.keys()).collect();
        let shown = |value: Option<&Value>| match value {
            None => "none".to_owned(),
            Some(Value::Text(text)) => text.clone(),
            Some(other) => serde_json::to_string(other).unwrap_or_else(|_| format!("{other:?}")),
        };
        for name in names {
            self.compare(our_name(name), shown(has.get(name)), shown(asked.get(name)));
        }
    }
}

impl ToldExchange {
    pub(super) fn differences(self, asked: &Exchange) -> Vec<String> {
        let mut found = Found::default();
        found.compare("kind", self.kind.as_str(), topology::kind(asked.kind));
        found.compare("durable", self.durable, asked.durable);
        found.compare("internal", self.internal, asked.internal);
        found.compare("auto_delete", self.auto_delete, false);
        found.arguments(&self.arguments, &topology::exchange_arguments(asked));
        found.0
    }
}

impl ToldBinding {
    pub(super) fn declared(mut self) -> Binding {
        let matching = self.arguments.remove("x-match").and_then(|matching| {
            Some(if matching.as_text()? == "any" { HeaderMatch::Any } else { HeaderMatch::All })
        });
        Binding {
            exchange: self.source,
            target: self.destination,
            target_kind: if self.destination_type == "exchange" { Target::Exchange } else { Target::Queue },
            key: self.routing_key,
            headers: matching.map(|matching| (matching, self.arguments)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Method;
    use std::time::Duration;

    #[test]
    fn a_declaration_comes_back_from_its_arguments() {
        let one = Queue::durable("one").max_items(5).max_bytes(7).ttl(Duration::from_millis(1500));
        let queues = [
            Queue::transient("plain"),
            Queue::exclusive("own"),
            one.clone().dead_letter("", "dead").max_priority(3),
            one.overflow(Overflow::DropHead),
            Queue::durable("quorum").delivery_limit(5),
            Queue::durable("kind").kind(QueueKind::Quorum).single_active_consumer(),
            Queue::durable("classic").kind(QueueKind::Classic).expires(Duration::from_secs(9)),
            Queue::durable("stream").kind(QueueKind::Stream).max_bytes(1 << 30),
        ];
        for queue in queues {
            let Method::QueueDeclare { arguments, .. } = topology::declare_queue(&queue) else { panic!() };
            let told = serde_json::json!({
                "name": queue.name, "durable": queue.durable, "exclusive": queue.exclusive, "arguments": arguments,
                "something": "else",
            });
            let told: Told = serde_json::from_value(told).expect("it is read");
            let mut declared = told.declared();
            // Of a stream nothing is said: what is oldest goes.
            if queue.kind == Some(QueueKind::Stream) {
                declared.overflow = queue.overflow;
            }
            assert_eq!(declared, queue);
        }
    }

    #[test]
    fn differences_are_told_of_what_we_have_no_word_for_and_not_of_other_words_for_the_same() {
        let told = |arguments: serde_json::Value| -> Told {
            let told = serde_json::json!({ "name": "q", "durable": true, "arguments": arguments });
            serde_json::from_value(told).expect("it is read")
        };
        let plain = Queue::durable("q");
        let lazy = told(serde_json::json!({ "x-queue-mode": "lazy" })).differences(&plain, None);
        assert_eq!(lazy, ["x-queue-mode: has lazy, asked for none"]);
        let limited = || told(serde_json::json!({ "x-queue-type": "quorum", "x-delivery-limit": 3 }));
        let asked = plain.clone().delivery_limit(3);
        assert_eq!(limited().differences(&asked, None), [""; 0]);
        assert_eq!(limited().differences(&asked.kind(QueueKind::Quorum), None), [""; 0]);
        let quorum = || told(serde_json::json!({ "x-queue-type": "quorum" }));
        assert_eq!(quorum().differences(&plain, Some(QueueKind::Quorum)), [""; 0], "the vhost's default");
        assert_eq!(quorum().differences(&plain, None), ["kind: has quorum, asked for classic"]);
        let classic = told(serde_json::json!({ "x-queue-type": "classic" }));
        assert_eq!(classic.differences(&plain, None), [""; 0], "RabbitMQ 4 says so though nobody asked");

        let hash = ToldExchange {
            kind: "x-consistent-hash".to_owned(),
            durable: true,
            auto_delete: false,
            internal: false,
            arguments: Headers::new(),
        };
        let topic = Exchange::durable("e", millstream_message::ExchangeKind::Topic);
        assert_eq!(hash.differences(&topic), ["kind: has x-consistent-hash, asked for topic"]);
    }
}

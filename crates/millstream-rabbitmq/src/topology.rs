//! What was declared through this handle, to be declared again; and our words for it in AMQP's.

use std::collections::BTreeMap;
use std::time::Duration;

use millstream_message::{
    Binding, BrokerError, BrokerErrorKind, Exchange, ExchangeKind, HeaderMatch, Headers, Overflow, Queue,
    QueueKind, Target, Value,
};

use crate::proto::Method;

/// Everything that was declared and not deleted through this handle.
#[derive(Debug, Default)]
pub(crate) struct Topology {
    pub(crate) exchanges: BTreeMap<String, Exchange>,
    pub(crate) queues: BTreeMap<String, Queue>,
    pub(crate) bindings: Vec<Binding>,
}

impl Topology {
    /// The methods that declare all of it again, each after what it needs.
    pub(crate) fn methods(&self) -> Vec<Method> {
        let exchanges = self.exchanges.values().map(declare_exchange);
        let queues = self.queues.values().map(declare_queue);
        let bindings = self.bindings.iter().map(bind);
        exchanges.chain(queues).chain(bindings).collect()
    }

    pub(crate) fn forget_exchange(&mut self, name: &str) {
        self.exchanges.remove(name);
        self.bindings.retain(|binding| !binding.touches_exchange(name));
    }

    pub(crate) fn forget_queue(&mut self, name: &str) {
        self.queues.remove(name);
        self.bindings.retain(|binding| !binding.leads_to_queue(name));
    }
}

pub(crate) fn kind(kind: ExchangeKind) -> &'static str {
    match kind {
        ExchangeKind::Direct => "direct",
        ExchangeKind::Fanout => "fanout",
        ExchangeKind::Topic => "topic",
        ExchangeKind::Headers => "headers",
    }
}

pub(crate) fn declare_exchange(exchange: &Exchange) -> Method {
    Method::ExchangeDeclare {
        reserved_1: 0,
        exchange: exchange.name.clone(),
        kind: kind(exchange.kind).to_owned(),
        flags: [false, exchange.durable, false, exchange.internal, false],
        arguments: exchange_arguments(exchange),
    }
}

pub(crate) fn exchange_arguments(exchange: &Exchange) -> Headers {
    let alternate = exchange.alternate.iter();
    alternate.map(|alternate| ("alternate-exchange".to_owned(), alternate.as_str().into())).collect()
}

/// Asks whether an exchange is there.
pub(crate) fn check_exchange(name: &str) -> Method {
    Method::ExchangeDeclare {
        reserved_1: 0,
        exchange: name.to_owned(),
        kind: String::new(),
        flags: [true, false, false, false, false],
        arguments: Headers::new(),
    }
}

pub(crate) fn declare_queue(queue: &Queue) -> Method {
    Method::QueueDeclare {
        reserved_1: 0,
        queue: queue.name.clone(),
        flags: [false, queue.durable, queue.exclusive, false, false],
        arguments: arguments(queue),
    }
}

/// Asks whether a queue is there, and how much is in it.
pub(crate) fn check_queue(name: &str) -> Method {
    Method::QueueDeclare {
        reserved_1: 0,
        queue: name.to_owned(),
        flags: [true, false, false, false, false],
        arguments: Headers::new(),
    }
}

fn number(number: u64) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn millis(time: Duration) -> Value {
    number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// What is kept in a queue, by the name of RabbitMQ. A limit of deliveries makes it a quorum queue, which is the only kind that has
/// one.
fn queue_kind(queue: &Queue) -> Option<&'static str> {
    let kind = queue.kind.or(queue.delivery_limit.map(|_| QueueKind::Quorum));
    kind.map(kind_name)
}

pub(crate) fn kind_name(kind: QueueKind) -> &'static str {
    match kind {
        QueueKind::Classic => "classic",
        QueueKind::Quorum => "quorum",
        QueueKind::Stream => "stream",
    }
}

pub(crate) fn arguments(queue: &Queue) -> Headers {
    let mut arguments = Headers::new();
    let mut set = |name: &str, value: Value| _ = arguments.insert(name.to_owned(), value);
    if let Some(kind) = queue_kind(queue) {
        set("x-queue-type", kind.into());
    }
    if let Some(limit) = queue.delivery_limit {
        set("x-delivery-limit", Value::Int(limit.get().into()));
    }
    if let Some(ttl) = queue.ttl {
        set("x-message-ttl", millis(ttl));
    }
    if let Some(items) = queue.max_items {
        set("x-max-length", number(items.get()));
    }
    if let Some(bytes) = queue.max_bytes {
        set("x-max-length-bytes", number(bytes.get()));
    }
    if queue.single_active_consumer {
        set("x-single-active-consumer", Value::Bool(true));
    }
    if let Some(after) = queue.expires {
        set("x-expires", millis(after));
    }
    // A stream always forgets what is oldest.
    if (queue.max_items.is_some() || queue.max_bytes.is_some()) && queue.kind != Some(QueueKind::Stream) {
        let overflow = match queue.overflow {
            Overflow::Reject => "reject-publish",
            Overflow::DropHead => "drop-head",
        };
        set("x-overflow", overflow.into());
    }
    if let Some(exchange) = &queue.dead_letter_exchange {
        set("x-dead-letter-exchange", exchange.as_str().into());
    }
    if let Some(key) = &queue.dead_letter_key {
        set("x-dead-letter-routing-key", key.as_str().into());
    }
    if let Some(priority) = queue.max_priority {
        set("x-max-priority", Value::Int(priority.into()));
    }
    arguments
}

pub(crate) fn bind(binding: &Binding) -> Method {
    let (target, exchange) = (binding.target.clone(), binding.exchange.clone());
    let (routing_key, arguments) = (binding.key.clone(), binding_arguments(binding));
    match binding.target_kind {
        Target::Queue => Method::QueueBind {
            reserved_1: 0,
            queue: target,
            exchange,
            routing_key,
            nowait: [false],
            arguments,
        },
        Target::Exchange => Method::ExchangeBind {
            reserved_1: 0,
            destination: target,
            source: exchange,
            routing_key,
            nowait: [false],
            arguments,
        },
    }
}

pub(crate) fn unbind(binding: &Binding) -> Method {
    let (target, exchange) = (binding.target.clone(), binding.exchange.clone());
    let (routing_key, arguments) = (binding.key.clone(), binding_arguments(binding));
    match binding.target_kind {
        Target::Queue => {
            Method::QueueUnbind { reserved_1: 0, queue: target, exchange, routing_key, arguments }
        }
        Target::Exchange => Method::ExchangeUnbind {
            reserved_1: 0,
            destination: target,
            source: exchange,
            routing_key,
            nowait: [false],
            arguments,
        },
    }
}

fn binding_arguments(binding: &Binding) -> Headers {
    let Some((matching, headers)) = &binding.headers else { return Headers::new() };
    let matching = match matching {
        HeaderMatch::All => "all",
        HeaderMatch::Any => "any",
    };
    let mut arguments = headers.clone();
    arguments.insert("x-match".to_owned(), matching.into());
    arguments
}

fn invalid(message: String) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Invalid, message)
}

/// Refuses a name that AMQP cannot carry.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), BrokerError> {
    if name.len() > 255 {
        let start: String = name.chars().take(40).collect();
        let text =
            format!("the name of the {what} `{start}…` has {} bytes, at most 255 are allowed", name.len());
        return Err(invalid(text));
    }
    Ok(())
}

/// Refuses a queue that AMQP cannot have, before the broker does with fewer words.
pub(crate) fn check_declared(queue: &Queue) -> Result<(), BrokerError> {
    let name = &queue.name;
    check_name("queue", name)?;
    if name.is_empty() {
        return Err(invalid("a queue needs a name".to_owned()));
    }
    if name.starts_with("amq.") {
        return Err(invalid(format!("queue `{name}`: names that begin with `amq.` are RabbitMQ's own")));
    }
    if queue.durable && queue.exclusive {
        return Err(invalid(format!(
            "queue `{name}` is exclusive, so it ends with its connection and cannot be durable"
        )));
    }
    let kind = queue_kind(queue);
    let of_kind = kind.unwrap_or("classic");
    let asked_by = if queue.kind.is_none() { ", which `delivery_limit` asks for," } else { "" };
    if matches!(kind, Some("quorum" | "stream")) && (!queue.durable || queue.exclusive) {
        return Err(invalid(format!(
            "queue `{name}`: a {of_kind} queue{asked_by} is durable; make it durable, or leave that out"
        )));
    }
    let cannot: &[(&str, bool)] = match of_kind {
        "classic" => &[("delivery_limit", queue.delivery_limit.is_some())],
        "quorum" => &[("max_priority", queue.max_priority.is_some())],
        _ => &[
            ("max_priority", queue.max_priority.is_some()),
            ("delivery_limit", queue.delivery_limit.is_some()),
            ("ttl", queue.ttl.is_some()),
            ("max_items", queue.max_items.is_some()),
            ("dead_letter_exchange", queue.dead_letter_exchange.is_some()),
            ("expires", queue.expires.is_some()),
            ("single_active_consumer", queue.single_active_consumer),
        ],
    };
    if let Some((what, _)) = cannot.iter().find(|(_, asked)| *asked) {
        return Err(invalid(format!(
            "queue `{name}`: a {of_kind} queue{asked_by} has no `{what}`; leave one of them out"
        )));
    }
    if queue.expires.is_some_and(|after| after.is_zero() || after.as_millis() > u32::MAX.into()) {
        return Err(invalid(format!("queue `{name}`: `expires` is from 1 ms to 49 days")));
    }
    if queue.dead_letter_key.is_some() && queue.dead_letter_exchange.is_none() {
        return Err(invalid(format!("queue `{name}` has a `dead_letter_key` and no `dead_letter_exchange`")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_amqp_cannot_have_is_refused_with_the_remedy() {
        let complaint = |queue: Queue| check_declared(&queue).expect_err("refused").to_string();
        assert!(complaint(Queue::durable("x".repeat(256))).contains("256 bytes"));
        assert!(complaint(Queue::durable("amq.x")).contains("RabbitMQ's own"));
        assert!(complaint(Queue::transient("q").delivery_limit(3)).contains("durable"));
        assert!(complaint(Queue::durable("q").delivery_limit(3).max_priority(3)).contains("max_priority"));
        assert!(check_declared(&Queue::durable("q").delivery_limit(3)).is_ok());
    }

    #[test]
    fn what_was_declared_is_declared_again_in_the_order_that_works() {
        let mut topology = Topology::default();
        topology.bindings.push(Binding::new("e", "k", "q"));
        topology.queues.insert("q".to_owned(), Queue::durable("q"));
        topology.exchanges.insert("e".to_owned(), Exchange::durable("e", ExchangeKind::Topic));
        let names: Vec<_> = topology.methods().iter().map(Method::name).collect();
        assert_eq!(names, ["ExchangeDeclare", "QueueDeclare", "QueueBind"]);
        topology.forget_queue("q");
        assert_eq!(topology.methods().len(), 1, "its bindings go with it");
    }
}

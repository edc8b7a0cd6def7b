//! What a message carries in headers between RabbitMQ and us: the broker's word on dead letters, and our own notes.

#[cfg(test)]
use millstream_message::Headers;
use millstream_message::dead::{self, DeadReason, Death};
use millstream_message::{Address, Message, Value};

use crate::proto::properties::{FORMER_USER_ID, USER_ID};

/// Where a message that was delayed had been published to: a list of exchange and key.
const ADDRESS: &str = "millstream-address";
/// How often it had been delivered before it was given back with a delay.
const REDELIVERIES: &str = "millstream-redeliveries";
/// Queues in which messages wait for their time begin so.
pub(crate) const DELAY_QUEUE: &str = "millstream.delay.";

/// A message that is given back with a delay, with what must not be forgotten meanwhile. It was handed out in time, and cannot expire
/// while it waits: RabbitMQ has one time for both.
pub(crate) fn given_back(mut message: Message, address: &Address, redeliveries: u32) -> Message {
    if message.properties().ttl.is_some() {
        message.properties_mut().ttl = None;
    }
    let place = Value::List(vec![address.exchange().into(), address.key().into()]);
    message.with_header(ADDRESS, place).with_header(REDELIVERIES, redeliveries.saturating_add(1))
}

/// A message as this user may publish it again: the server refuses one that says it is somebody else's.
pub(crate) fn published_by(user: Option<&str>, mut message: Message) -> Message {
    let said = message.header(USER_ID).and_then(Value::as_text);
    if said.is_some() && said != user {
        let headers = &mut message.properties_mut().headers;
        if let Some(former) = headers.remove(USER_ID) {
            headers.insert(FORMER_USER_ID.to_owned(), former);
        }
    }
    message
}

/// Whether a message is one that was given back.
pub(crate) fn is_given_back(message: &Message) -> bool {
    message.header(ADDRESS).is_some()
}

/// A message as it is handed out: what RabbitMQ says of its deaths in our words (see [`dead`]), our own notes taken out. Its
/// address, and how often it was delivered before.
pub(crate) fn received(
    mut message: Message,
    address: Address,
    redelivered: bool,
    queue: &str,
) -> (Message, Address, u32) {
    let seen = u32::from(redelivered);
    if message.is_plain() || message.properties().headers.is_empty() {
        return (message, address, seen);
    }
    const OURS: [&str; 8] = [
        ADDRESS,
        REDELIVERIES,
        "x-delivery-count",
        "x-death",
        "x-first-death-queue",
        "x-first-death-reason",
        "x-first-death-exchange",
        // RabbitMQ 3.13 and later tell the last one, too.
        "x-last-death-queue",
    ];
    if !OURS.iter().any(|name| message.header(name).is_some()) {
        return (message, address, seen);
    }
    let headers = &mut message.properties_mut().headers;
    let place = headers.remove(ADDRESS);
    if place.is_some()
        && let Some(former) = headers.remove(FORMER_USER_ID)
    {
        // It has only waited, and is as it was before.
        headers.entry(USER_ID.to_owned()).or_insert(former);
    }
    let before = headers.remove(REDELIVERIES).and_then(|count| count.as_int()).unwrap_or(0);
    // Quorum queues count; others only say that there was one.
    let seen = match headers.remove("x-delivery-count").and_then(|count| count.as_int()) {
        Some(count) => u32::try_from(count).unwrap_or(u32::MAX),
        None => seen,
    };
    let deaths = headers.remove("x-death");
    headers.retain(|name, _| !name.starts_with("x-first-death-") && !name.starts_with("x-last-death-"));
    if headers.is_empty() && message.properties() == &Default::default() {
        // It was plain before somebody wrote these.
        message = Message::new(message.into_body());
    }
    if let Some(Value::List(deaths)) = deaths {
        message = with_deaths(message, &deaths);
    }
    let address = match place.as_ref().and_then(Value::as_list) {
        Some([Value::Text(exchange), Value::Text(key)]) => Address::new(exchange.as_str(), key.as_str()),
        _ => address,
    };
    debug_assert!(!queue.starts_with(DELAY_QUEUE), "nobody consumes where messages wait");
    (message, address, seen.saturating_add(u32::try_from(before).unwrap_or(0)))
}

/// Adds deaths that the broker lists, the latest first, to those that we have written ourselves.
fn with_deaths(mut message: Message, deaths: &[Value]) -> Message {
    for death in deaths.iter().take(dead::HISTORY_MAX).rev().filter_map(Value::as_map) {
        let text = |name: &str| death.get(name).and_then(Value::as_text).unwrap_or_default();
        let queue = text("queue");
        // To wait for its time is no death.
        if queue.starts_with(DELAY_QUEUE) {
            continue;
        }
        let reason = match text("reason") {
            "expired" => DeadReason::Expired,
            "maxlen" => DeadReason::MaxLen,
            "delivery_limit" => DeadReason::DeliveryLimit,
            _ => DeadReason::Rejected,
        };
        let key = death.get("routing-keys").and_then(Value::as_list).and_then(|keys| keys.first()?.as_text());
        let address = Address::new(text("exchange"), key.unwrap_or_default());
        let seconds = death.get("time").and_then(Value::as_int).and_then(|time| u64::try_from(time).ok());
        let time = seconds.unwrap_or(0).saturating_mul(1000);
        let times = death.get("count").and_then(Value::as_int).unwrap_or(1).max(1);
        let (ttl, delay) = (message.properties().ttl, message.properties().delay);
        let said = Death { reason, detail: None, stage: None, queue, address: &address, time };
        message = dead::letter(message, &said);
        add(&mut message, times - 1);
        // The broker has taken off what had to go.
        let properties = message.properties_mut();
        (properties.ttl, properties.delay) = (ttl, delay);
    }
    message
}

/// Counts the latest death of a message so many times more.
fn add(message: &mut Message, times: i64) {
    let headers = &mut message.properties_mut().headers;
    let more = |count: Option<&mut Value>| {
        if let Some(Value::Int(count)) = count {
            *count = count.saturating_add(times);
        }
    };
    more(headers.get_mut(dead::COUNT));
    if let Some(Value::List(history)) = headers.get_mut(dead::HISTORY)
        && let Some(Value::Map(latest)) = history.first_mut()
    {
        more(latest.get_mut("count"));
    }
}

#[cfg(test)]
fn death(queue: &str, reason: &str, count: i64) -> Value {
    Value::Map(Headers::from([
        ("queue".to_owned(), queue.into()),
        ("reason".to_owned(), reason.into()),
        ("count".to_owned(), Value::Int(count)),
        ("exchange".to_owned(), "ex".into()),
        ("routing-keys".to_owned(), Value::List(vec!["key".into()])),
        ("time".to_owned(), Value::Int(1_700_000_000)),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handed_out(message: Message) -> (Message, Address, u32) {
        received(message, Address::new("", "dead"), false, "dead")
    }

    #[test]
    fn what_rabbitmq_says_of_deaths_is_told_in_our_words() {
        let deaths = Value::List(vec![death("second", "expired", 2), death("first", "rejected", 1)]);
        let message =
            Message::new("x").with_header("x-death", deaths).with_header("x-first-death-queue", "first");
        let (message, _, _) = handed_out(message);
        assert_eq!(message.header(dead::REASON), Some(&"rejected".into()));
        assert_eq!(message.header(dead::QUEUE), Some(&"first".into()));
        assert_eq!(message.header(dead::KEY), Some(&"key".into()));
        assert_eq!(message.header(dead::COUNT), Some(&Value::Int(3)));
        assert_eq!(message.header(dead::TIME), Some(&Value::Int(1_700_000_000_000)));
        let history = message.header(dead::HISTORY).and_then(Value::as_list).expect("a list");
        assert_eq!(history[0].as_map().expect("a map")["queue"], "second".into());
        assert!(message.properties().headers.keys().all(|name| !name.starts_with("x-")));
    }

    #[test]
    fn a_message_that_waited_comes_as_it_was() {
        let plain = Message::new("x");
        let waited = given_back(plain.clone(), &Address::new("ex", "key"), 1);
        let deaths = Value::List(vec![death("millstream.delay.5.q", "expired", 1)]);
        let (message, address, redeliveries) = handed_out(waited.with_header("x-death", deaths));
        assert_eq!((message, address, redeliveries), (plain, Address::new("ex", "key"), 2));
    }

    #[test]
    fn a_hostile_note_is_passed_over() {
        let message = Message::new("x")
            .with_header("x-death", "no list")
            .with_header("x-delivery-count", -5_i64)
            .with_header(ADDRESS, 7_i64)
            .with_header(REDELIVERIES, -1_i64);
        let (message, address, _) = handed_out(message);
        assert_eq!((message, address), (Message::new("x"), Address::new("", "dead")));
        let many = Value::List(vec![death("q", "expired", i64::MAX)]);
        let (message, _, _) = handed_out(Message::new("x").with_header("x-death", many));
        assert_eq!(message.header(dead::COUNT), Some(&Value::Int(i64::MAX)));
    }
}

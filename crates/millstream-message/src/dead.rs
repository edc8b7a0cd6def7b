//! What a dead letter says about its death.
//!
//! A message that is dead-lettered keeps its body and properties and gets these headers. The plain ones describe the
//! *first* death, which is the one that explains the message; [`HISTORY`] has them all.
//!
//! | header | type | meaning |
//! |---|---|---|
//! | [`REASON`] | text | `rejected`, `expired`, `maxlen` or `delivery_limit` |
//! | [`DETAIL`] | text | the words given with the rejection |
//! | [`STAGE`] | text | the stage that rejected it |
//! | [`QUEUE`] | text | the queue it died in |
//! | [`EXCHANGE`], [`KEY`] | text | where it had been published to |
//! | [`TIME`] | integer | when, in milliseconds since 1970 |
//! | [`COUNT`] | integer | deaths altogether |
//! | [`HISTORY`] | list of maps | one entry per queue and reason, the latest first: `queue`, `reason`, `count`, `time`, `exchange`, `key` |

use crate::message::Message;
use crate::publish::Address;
use crate::value::{Headers, Value};

/// Why it died first: see [`DeadReason`].
pub const REASON: &str = "millstream-dead-reason";
/// The words given with the first rejection.
pub const DETAIL: &str = "millstream-dead-detail";
/// The stage that rejected it first.
pub const STAGE: &str = "millstream-dead-stage";
/// The queue it died in first.
pub const QUEUE: &str = "millstream-dead-queue";
/// The exchange it had been published to when it died first.
pub const EXCHANGE: &str = "millstream-dead-exchange";
/// The key it had been published under when it died first.
pub const KEY: &str = "millstream-dead-key";
/// When it died first, in milliseconds since 1970.
pub const TIME: &str = "millstream-dead-time";
/// How many deaths it died altogether.
pub const COUNT: &str = "millstream-dead-count";
/// Every death, grouped by queue and reason, the latest first.
pub const HISTORY: &str = "millstream-dead-history";

/// How many groups the history keeps; older ones are forgotten, so that a message that circles cannot grow.
pub const HISTORY_MAX: usize = 16;

/// How many bytes of a reason travel in a header; the rest is cut off, so that what is said of a message always fits where the
/// message did.
pub const REASON_MAX: usize = 2048;

/// As much of a reason as travels.
pub(crate) fn shortened(reason: &str) -> &str {
    let mut end = REASON_MAX.min(reason.len());
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

/// Why a message was dead-lettered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeadReason {
    /// A consumer rejected it.
    Rejected,
    /// It waited longer than its TTL.
    Expired,
    /// The queue was at a limit and dropped its head.
    MaxLen,
    /// It was given back more often than the queue allows.
    DeliveryLimit,
}

impl DeadReason {
    /// The word in the headers; the same as RabbitMQ's.
    pub fn as_str(self) -> &'static str {
        match self {
            DeadReason::Rejected => "rejected",
            DeadReason::Expired => "expired",
            DeadReason::MaxLen => "maxlen",
            DeadReason::DeliveryLimit => "delivery_limit",
        }
    }
}

/// One death, to be written into a message's headers.
#[derive(Clone, Debug)]
pub struct Death<'a> {
    /// Why.
    pub reason: DeadReason,
    /// The words given with a rejection.
    pub detail: Option<&'a str>,
    /// The stage that rejected it.
    pub stage: Option<&'a str>,
    /// The queue it died in.
    pub queue: &'a str,
    /// Where it had been published to.
    pub address: &'a Address,
    /// When, in milliseconds since 1970.
    pub time: u64,
}

/// The message as it is dead-lettered: with the headers of this module, and without its own TTL and delay, which
/// would otherwise kill or hide it again in the dead-letter queue.
pub fn letter(mut message: Message, death: &Death<'_>) -> Message {
    let time = i64::try_from(death.time).unwrap_or(i64::MAX);
    let properties = message.properties_mut();
    properties.ttl = None;
    properties.delay = None;
    let headers = &mut properties.headers;

    let deaths = headers.get(COUNT).and_then(Value::as_int).unwrap_or(0).max(0);
    headers.insert(COUNT.to_owned(), Value::Int(deaths.saturating_add(1)));
    if deaths == 0 {
        let mut set = |name: &str, text: &str| headers.insert(name.to_owned(), text.into());
        set(REASON, death.reason.as_str());
        set(QUEUE, death.queue);
        set(EXCHANGE, death.address.exchange());
        set(KEY, death.address.key());
        if let Some(detail) = death.detail {
            set(DETAIL, shortened(detail));
        }
        if let Some(stage) = death.stage {
            set(STAGE, shortened(stage));
        }
        headers.insert(TIME.to_owned(), Value::Int(time));
    }

    let mut history = match headers.remove(HISTORY) {
        Some(Value::List(list)) => list,
        _ => Vec::new(),
    };
    let same = |entry: &Value| {
        entry.as_map().is_some_and(|map| {
            map.get("queue").and_then(Value::as_text) == Some(death.queue)
                && map.get("reason").and_then(Value::as_text) == Some(death.reason.as_str())
        })
    };
    let count = match history.iter().position(same) {
        Some(at) => history.remove(at).as_map().and_then(|map| map.get("count")?.as_int()).unwrap_or(0),
        None => 0,
    };
    let entry = Headers::from([
        ("queue".to_owned(), death.queue.into()),
        ("reason".to_owned(), death.reason.as_str().into()),
        ("count".to_owned(), Value::Int(count.saturating_add(1))),
        ("time".to_owned(), Value::Int(time)),
        ("exchange".to_owned(), death.address.exchange().into()),
        ("key".to_owned(), death.address.key().into()),
    ]);
    history.insert(0, Value::Map(entry));
    history.truncate(HISTORY_MAX);
    headers.insert(HISTORY.to_owned(), Value::List(history));
    message
}

/// Whether a message died in `queue` before without anybody having rejected it: dead-lettering it there again would
/// make it circle for ever.
pub fn circles(message: &Message, queue: &str) -> bool {
    let Some(history) = message.header(HISTORY).and_then(Value::as_list) else { return false };
    let text = |entry: &Value, name: &str| {
        entry.as_map().and_then(|map| map.get(name)?.as_text().map(str::to_owned))
    };
    let rejected = DeadReason::Rejected.as_str();
    history.iter().any(|entry| text(entry, "queue").as_deref() == Some(queue))
        && !history.iter().any(|entry| text(entry, "reason").as_deref() == Some(rejected))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(reason: DeadReason, queue: &str, message: Message) -> Message {
        let address = Address::new("ex", "key");
        let detail = Some("bad row");
        letter(message, &Death { reason, detail, stage: Some("parse"), queue, address: &address, time: 7 })
    }

    #[test]
    fn a_letter_belongs_to_the_trace_of_its_message() {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let message =
            Message::new("x").with_header(crate::TRACEPARENT, trace).with_header(crate::TRACESTATE, "a=1");
        let trace = message.trace();
        assert!(trace.is_some());
        assert_eq!(death(DeadReason::Rejected, "a", message).trace(), trace);
    }

    #[test]
    fn the_first_death_explains_and_the_history_has_all() {
        let first = death(DeadReason::Rejected, "a", Message::new("x"));
        let last = death(DeadReason::Expired, "b", death(DeadReason::Rejected, "a", first));
        assert_eq!(last.header(REASON), Some(&"rejected".into()));
        assert_eq!(last.header(DETAIL), Some(&"bad row".into()));
        assert_eq!(last.header(STAGE), Some(&"parse".into()));
        assert_eq!(last.header(QUEUE), Some(&"a".into()));
        assert_eq!(last.header(COUNT), Some(&Value::Int(3)));
        let history = last.header(HISTORY).and_then(Value::as_list).expect("a list");
        assert_eq!(history.len(), 2);
        assert_eq!(history[0].as_map().expect("a map")["queue"], "b".into());
        assert_eq!(history[1].as_map().expect("a map")["count"], Value::Int(2));
    }

    #[test]
    fn a_reason_is_cut_to_what_travels_in_whole_characters() {
        let address = Address::queue("q");
        let detail = format!("x{}", "é".repeat(REASON_MAX));
        let death = Death {
            reason: DeadReason::Rejected,
            detail: Some(&detail),
            stage: None,
            queue: "q",
            address: &address,
            time: 7,
        };
        let letter = letter(Message::new("x"), &death);
        let told = letter.header(DETAIL).and_then(Value::as_text).expect("a reason");
        assert!(detail.starts_with(told) && told.len() == REASON_MAX - 1, "{}", told.len());
    }

    #[test]
    fn the_history_is_bounded() {
        let mut message = Message::new("x");
        for queue in 0..100 {
            message = death(DeadReason::Expired, &format!("q{queue}"), message);
        }
        let history = message.header(HISTORY).and_then(Value::as_list).expect("a list");
        assert_eq!(history.len(), HISTORY_MAX);
        assert_eq!(message.header(COUNT), Some(&Value::Int(100)));
    }

    #[test]
    fn a_hostile_history_is_replaced_not_trusted() {
        let message = Message::new("x").with_header(HISTORY, "nonsense").with_header(COUNT, "many");
        assert_eq!(death(DeadReason::Expired, "q", message).header(COUNT), Some(&Value::Int(1)));
    }

    #[test]
    fn only_automatic_deaths_count_as_circling() {
        let expired = death(DeadReason::Expired, "q", Message::new("x"));
        assert!(circles(&expired, "q") && !circles(&expired, "other"));
        assert!(!circles(&death(DeadReason::Rejected, "other", expired), "q"));
    }
}

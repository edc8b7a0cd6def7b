//! Opening brokers, and messages as JSON.

use std::future::Future;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use millstream_message::{Address, Broker, BrokerUrl, Message, StreamItem};
use millstream_pipeline::Brokers;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::out::complain;

/// Opens a broker, lets `work` use it, and closes it whatever came of that, so that every ack and publish of a
/// command is durable when the command ends.
pub(crate) async fn with<T, F>(url: &BrokerUrl, work: impl FnOnce(Arc<dyn Broker>) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let brokers = Brokers::holding(millstream_embedded::Settings::default().memory_bytes);
    let broker = brokers.open(url).await;
    let broker =
        broker.map_err(|error| Failure::of(format_args!("cannot open the broker `{url}`"), &error))?;
    let done = work(broker).await;
    warn_of_damage(&brokers).await;
    let closed = brokers.close().await;
    let done = done?;
    closed.map_err(|error| Failure::of(format_args!("cannot close the broker `{url}`"), &error))?;
    Ok(done)
}

/// As [`with`], of a broker that is there already: a directory without one is refused rather than made.
pub(crate) async fn with_existing<T, F>(
    url: &BrokerUrl,
    work: impl FnOnce(Arc<dyn Broker>) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    match url {
        BrokerUrl::Embedded(directory) if !holds_broker(directory) => Err(Failure::Refused(format!(
            "there is no broker in {}; check the path, or make one there with `millstream queue declare {url} NAME`",
            directory.display()
        ))),
        _ => with(url, work).await,
    }
}

/// Whether a directory has a broker's log. One that cannot be looked into may have one: opening it says why.
fn holds_broker(directory: &Path) -> bool {
    let is_log = |path: &Path| path.extension().is_some_and(|end| end == "log" || end == "checkpoint");
    match std::fs::read_dir(directory) {
        Ok(mut entries) => entries.any(|entry| entry.is_ok_and(|entry| is_log(&entry.path()))),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

/// Tells what is damaged on the disk: what is lost by it is lost, but not without a word.
pub(crate) async fn warn_of_damage(brokers: &Brokers) {
    for damage in brokers.damage().await {
        complain(&format!("warning: {damage}"));
    }
}

/// A message of a queue as JSON.
pub(crate) fn message_json(message: &Message, address: &Address) -> Value {
    let place = [("exchange", address.exchange().into()), ("key", address.key().into())];
    placed_json(message, place)
}

/// A message of a stream as JSON.
pub(crate) fn item_json(item: &StreamItem) -> Value {
    // Before 1970 nothing was appended.
    let time = item.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    placed_json(&item.message, [("offset", item.offset.into()), ("time_ms", time.into())])
}

/// A message as JSON: text bodies as text, others in hexadecimal, and where it is.
fn placed_json(message: &Message, place: [(&str, Value); 2]) -> Value {
    let properties = message.properties();
    let mut out = serde_json::Map::new();
    match std::str::from_utf8(message.body()) {
        Ok(text) => out.insert("body".into(), text.into()),
        Err(_) => out.insert("body_hex".into(), hex(message.body()).into()),
    };
    out.extend(place.map(|(name, value)| (name.to_owned(), value)));
    if !properties.headers.is_empty() {
        out.insert("headers".into(), json!(properties.headers));
    }
    for (name, value) in [
        ("content_type", &properties.content_type),
        ("content_encoding", &properties.content_encoding),
        ("message_id", &properties.message_id),
        ("correlation_id", &properties.correlation_id),
        ("reply_to", &properties.reply_to),
    ] {
        if let Some(value) = value {
            out.insert(name.into(), value.as_str().into());
        }
    }
    if let Some(ttl) = properties.ttl {
        out.insert("ttl_seconds".into(), ttl.as_secs_f64().into());
    }
    if let Some(delay) = properties.delay {
        out.insert("delay_seconds".into(), delay.as_secs_f64().into());
    }
    if properties.priority > 0 {
        out.insert("priority".into(), properties.priority.into());
    }
    if !properties.persistent {
        out.insert("persistent".into(), false.into());
    }
    Value::Object(out)
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|nibble| char::from(b"0123456789abcdef"[nibble as usize]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_no_text_is_shown_in_hexadecimal() {
        let shown = message_json(&Message::new(&b"\xff\x0a"[..]), &Address::queue("q"));
        assert_eq!(shown, json!({ "body_hex": "ff0a", "exchange": "", "key": "q" }));
    }

    #[test]
    fn everything_that_is_said_about_a_body_is_shown() {
        let message =
            Message::new("x").with_header("n", 1_i64).with_priority(3).with_content_type("text/plain");
        let shown = message_json(&message, &Address::new("e", "k"));
        assert_eq!(
            shown,
            json!({ "body": "x", "exchange": "e", "key": "k", "headers": { "n": 1 }, "priority": 3, "content_type": "text/plain" })
        );
    }
}

//! Records of a broker's log in words, for `log export`.

use bytes::Bytes;
use millstream_message::{Message, Publish, Value};
use serde_json::{Value as Json, json};

use crate::log::RecordRef;
use crate::record::{self, APPENDED, MARKED, META, MOVED, POSITION, PUBLISH, SETTLED, TOPOLOGY};
use crate::stream_log;
use crate::wire::Malformed;

/// One record of a broker's log as a line of JSON, for [`log::export`](crate::log::export); `None` for what is not a
/// broker's. Bodies and positions that are not text are listed as bytes.
///
/// ```
/// use millstream_embedded::{describe, log::{Position, RecordRef}};
/// let body = br#"{"format":"millstream-broker","version":1}"#;
/// let record = RecordRef { position: Position::new(8), kind: 1, time: 0, body };
/// assert_eq!(describe(record).as_deref(), Some(r#"{"meta":{"format":"millstream-broker","version":1}}"#));
/// ```
pub fn describe(record: RecordRef<'_>) -> Option<String> {
    let json = match record.kind {
        META => json!({ "meta": serde_json::from_slice::<Json>(record.body).ok()? }),
        TOPOLOGY => json!({ "declared": serde_json::from_slice::<Json>(record.body).ok()? }),
        PUBLISH => json!({ "published": message(record.body).ok()? }),
        MOVED => json!({ "moved": message(record.body).ok()? }),
        SETTLED => {
            let (queue, ranges) = record::read_settled(record.body).ok()?;
            let ranges: Vec<_> = ranges.iter().map(|range| [range.start, range.end]).collect();
            json!({ "settled": { "queue": queue, "ranges": ranges } })
        }
        MARKED => {
            let (queue, marks) = record::read_marked(record.body).ok()?;
            let marks = marks.iter().map(|mark| {
                json!({ "range": [mark.seqs.start, mark.seqs.end], "deliveries": mark.deliveries, "due": mark.due })
            });
            json!({ "delivered": { "queue": queue, "marks": marks.collect::<Vec<_>>() } })
        }
        POSITION => {
            let (name, value) = record::read_position(record.body).ok()?;
            json!({ "position": { "name": name, "value": value.map(|value| text(&value)) } })
        }
        APPENDED => json!({ "appended": appended(record.body).ok()? }),
        _ => return None,
    };
    Some(json.to_string())
}

fn message(bytes: &[u8]) -> Result<Json, Malformed> {
    let targets = record::read_publish(bytes)?.targets;
    let Publish { to, message } = record::publish_of(Bytes::copy_from_slice(bytes), &mut None)?;
    let targets: Vec<_> = targets.iter().map(|(queue, seq)| json!({ "queue": queue, "seq": seq })).collect();
    Ok(json!({
        "to": targets,
        "exchange": to.exchange(),
        "key": to.key(),
        "content_type": message.content_type(),
        "headers": headers(&message),
        "body": text(message.body()),
    }))
}

/// The messages of one append to a stream.
fn appended(bytes: &[u8]) -> Result<Json, Malformed> {
    let mut messages = Vec::new();
    stream_log::record::decode(&Bytes::copy_from_slice(bytes), |offset, message| {
        messages.push(json!({
            "offset": offset,
            "content_type": message.content_type(),
            "headers": headers(&message),
            "body": text(message.body()),
        }));
    })?;
    Ok(json!(messages))
}

fn headers(message: &Message) -> Json {
    message.properties().headers.iter().map(|(name, value)| (name.clone(), value_json(value))).collect()
}

/// JSON when it is JSON, else text, else bytes.
fn text(bytes: &[u8]) -> Json {
    if let Ok(json) = serde_json::from_slice(bytes) {
        return json;
    }
    std::str::from_utf8(bytes).map_or_else(|_| json!(bytes), |text| json!(text))
}

fn value_json(value: &Value) -> Json {
    serde_json::to_value(value).unwrap_or(Json::Null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Position;
    use millstream_message::Address;
    use proptest::prelude::*;

    #[test]
    fn a_message_is_shown_with_its_queues_headers_and_body() {
        let message = Message::new(r#"{"a":1}"#).with_header("h", "x");
        let publish = Publish { to: Address::new("ex", "k"), message };
        let mut body = Vec::new();
        record::put_publish(&mut body, [(3, 9)].into_iter(), &publish);
        body.extend_from_slice(publish.message.body());
        let shown = describe(RecordRef { position: Position::new(8), kind: PUBLISH, time: 0, body: &body });
        let shown: Json = serde_json::from_str(&shown.expect("shown")).expect("JSON");
        assert_eq!(shown["published"]["body"]["a"], 1);
        assert_eq!(shown["published"]["to"][0], json!({ "queue": 3, "seq": 9 }));
        assert_eq!(shown["published"]["headers"]["h"], "x");
    }

    proptest! {
        #[test]
        fn any_bytes_are_shown_or_declined(kind in 0..10_u8, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = describe(RecordRef { position: Position::new(8), kind, time: 0, body: &body });
        }
    }
}

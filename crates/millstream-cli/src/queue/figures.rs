//! What queues hold, as tables and as JSON.

use std::sync::Arc;

use millstream_message::{Address, Broker, Queue, QueueStats};
use serde_json::{Value, json};

use super::{on_queue, stats_of};
use crate::failure::Failure;
use crate::out::Out;
use crate::table::{count, count_or_unknown, counted, table};

/// Of how many queues a list asks for what is ready now: a broker may collect its figures only now and then, and whoever
/// has just published should see it.
const FRESH_MAX: usize = 1000;

pub(super) async fn list(broker: Arc<dyn Broker>, json: bool) -> Result<(), Failure> {
    let mut all = broker.all_stats().await.map_err(|error| Failure::of("cannot list the queues", &error))?;
    for listed in all.iter_mut().take(FRESH_MAX) {
        // Where nobody else may look, as into a queue that is exclusive, the collected figure has to do.
        if let Ok(now) = broker.stats(&listed.name).await {
            listed.ready = now.ready;
        }
    }
    let mut out = Out::new();
    let told = broker.features().queue_bytes;
    if json {
        out.json(&all.iter().map(|stats| stats_json(stats, told)).collect())?;
    } else if all.is_empty() {
        out.line(format!("{} has no queue", broker.url()))?;
    } else {
        let rows: Vec<Vec<String>> = all.iter().map(|stats| row(stats, told)).collect();
        out.line(table(&["queue", ">ready", ">unacked", ">delayed", ">bytes"], &rows))?;
    }
    out.flush()
}

fn row(stats: &QueueStats, told: bool) -> Vec<String> {
    let bytes = parts(stats).map(|(_, messages, bytes)| known(messages, bytes, told));
    let bytes = bytes.into_iter().sum::<Option<u64>>();
    let mut row = vec![stats.name.clone(), count(stats.ready), count(stats.unacked), count(stats.delayed)];
    row.push(count_or_unknown(bytes));
    row
}

/// The messages of a queue by what they wait for, and their bytes.
fn parts(stats: &QueueStats) -> [(&'static str, u64, u64); 3] {
    [
        ("ready", stats.ready, stats.ready_bytes),
        ("unacked", stats.unacked, stats.unacked_bytes),
        ("delayed", stats.delayed, stats.delayed_bytes),
    ]
}

/// The bytes of so many messages, if they are known. With `told` the broker always tells them; another may tell them in a
/// list, later than how many there are.
fn known(messages: u64, bytes: u64, told: bool) -> Option<u64> {
    (told || bytes > 0 || messages == 0).then_some(bytes)
}

/// What a queue holds as JSON: bytes that are not known are null.
fn stats_json(stats: &QueueStats, told: bool) -> Value {
    let mut shown = json!(stats);
    for (name, messages, bytes) in parts(stats) {
        shown[format!("{name}_bytes")] = json!(known(messages, bytes, told));
    }
    shown
}

pub(super) async fn stats(broker: Arc<dyn Broker>, queue: &str, json: bool) -> Result<(), Failure> {
    let stats = stats_of(&broker, queue).await?;
    let declared =
        broker.queue(queue).await.map_err(|error| on_queue("look at", queue, broker.url(), &error))?;
    // Without its management a RabbitMQ tells that a queue is there, and not how it was declared.
    let untold = match broker.features().list {
        true => None,
        false => broker.queues().await.err(),
    };
    let declared = declared.filter(|_| untold.is_none());
    let (mut out, told) = (Out::new(), broker.features().queue_bytes);
    if json {
        out.json(&json!({ "stats": stats_json(&stats, told), "declared": declared }))?;
        return out.flush();
    }
    let rows = parts(&stats).map(|(name, messages, bytes)| {
        vec![name.to_owned(), count(messages), count_or_unknown(known(messages, bytes, told))]
    });
    out.line(table(&[queue, ">messages", ">bytes"], &rows))?;
    if let Some(declared) = declared {
        out.line(format!("\ndeclared {}", described(&declared)))?;
    } else if let Some(error) = untold {
        let why = Failure::of("how it was declared is not known", &error);
        out.line(format!("\n{}", why.text()))?;
    }
    out.flush()
}

/// A queue's declaration in words.
fn described(queue: &Queue) -> String {
    let mut words = vec![if queue.durable { "durable" } else { "transient" }.to_owned()];
    if let Some(ttl) = queue.ttl {
        words.push(format!("messages expire after {}", millstream_pipeline::show_duration(ttl)));
    }
    if let Some(items) = queue.max_items {
        words.push(format!("at most {}", counted(items.get(), "message")));
    }
    if let Some(bytes) = queue.max_bytes {
        words.push(format!("at most {}", millstream_pipeline::show_size(bytes.get())));
    }
    if queue.max_items.is_some() || queue.max_bytes.is_some() {
        let overflow = json!(queue.overflow);
        words.push(format!("when full {}", overflow.as_str().unwrap_or_default()));
    }
    if let Some(exchange) = &queue.dead_letter_exchange {
        let to = Address::new(exchange, queue.dead_letter_key.as_deref().unwrap_or("(the message's own)"));
        words.push(format!("dead letters go to {to}"));
    }
    if let Some(times) = queue.delivery_limit {
        words.push(format!("given back at most {}", counted(times.get().into(), "time")));
    }
    if let Some(priority) = queue.max_priority {
        words.push(format!("priorities up to {priority}"));
    }
    if let Some(kind) = queue.kind {
        words.push(format!("kept as {}", json!(kind).as_str().unwrap_or_default()));
    }
    if queue.single_active_consumer {
        words.push("one consumer at a time".to_owned());
    }
    if let Some(after) = queue.expires {
        words.push(format!("goes by itself after {}", millstream_pipeline::show_duration(after)));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_a_broker_does_not_tell_are_no_zero() {
        let name = || "q".to_owned();
        let queue =
            |ready, ready_bytes| QueueStats { name: name(), ready, ready_bytes, ..QueueStats::default() };
        for (stats, told, shown, json) in [
            (queue(606, 0), false, "?", Value::Null),
            (queue(606, 0), true, "0", json!(0)),
            (queue(606, 1300), false, "1,300", json!(1300)),
            (queue(0, 0), false, "0", json!(0)),
        ] {
            assert_eq!(row(&stats, told).last().map(String::as_str), Some(shown), "{stats:?}");
            assert_eq!(stats_json(&stats, told)["ready_bytes"], json, "{stats:?}");
        }
    }
}

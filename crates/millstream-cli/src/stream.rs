//! `millstream stream`: declaring streams, appending to them, and reading them.

use std::sync::Arc;

use millstream_message::{Broker, BrokerError, BrokerUrl, StreamSpec, stream_extent};
use millstream_rabbitmq::stream::{Partitions, StreamBroker};
use serde_json::json;

use crate::args::{self, OnStream};
use crate::broker::{self, item_json};
use crate::failure::Failure;
use crate::input;
use crate::out::{Out, complain};
use crate::signals::Signals;
use crate::table::{count, count_or_unknown, counted, table};

/// Messages that are read in one step.
const PAGE: usize = 100;

pub(crate) async fn stream(command: args::Stream) -> Result<(), Failure> {
    match command {
        args::Stream::Declare { on, max_bytes, max_age, partitions, keys } => {
            let mut spec = StreamSpec::new(&on.stream);
            spec = max_bytes.map_or(spec.clone(), |bytes| spec.max_bytes(bytes));
            spec = max_age.map_or(spec.clone(), |age| spec.max_age(age));
            match keys.map(Partitions::Keys).or(partitions.map(Partitions::Count)) {
                Some(partitions) => declare_super(&on, &spec, &partitions).await,
                None => {
                    broker::with(&on.url.clone(), |broker| async move {
                        let declared = broker.declare_stream(spec).await;
                        declared.map_err(|error| on_stream("declare", &on, &error))
                    })
                    .await
                }
            }
        }
        args::Stream::Publish(append) => {
            broker::with(&append.on.url.clone(), |broker| publish(broker, append)).await
        }
        args::Stream::Read(read) => {
            // Before the directory is locked: whoever sees the lock may send a signal.
            let signals = Signals::new()?;
            broker::with_existing(&read.on.url.clone(), |broker| self::read(broker, read, signals)).await
        }
        args::Stream::Delete { on, yes } => {
            broker::with_existing(&on.url.clone(), |broker| delete(broker, on, yes)).await
        }
        args::Stream::Stats { on, json } => {
            broker::with_existing(&on.url.clone(), |broker| stats(broker, on, json)).await
        }
    }
}

fn on_stream(tried: &str, on: &OnStream, error: &BrokerError) -> Failure {
    Failure::of(format_args!("cannot {tried} the stream `{}` of `{}`", on.stream, on.url), error)
}

async fn declare_super(on: &OnStream, spec: &StreamSpec, partitions: &Partitions) -> Result<(), Failure> {
    let BrokerUrl::RabbitmqStream(url) = &on.url else {
        let text =
            format!("`{}` has no super streams: they are RabbitMQ's, by `rabbitmq-stream://HOST`", on.url);
        return Err(Failure::Refused(text));
    };
    let declare = async {
        let broker = StreamBroker::connect(url).await?;
        let declared = broker.declare_super_stream(spec, partitions).await;
        broker.close().await?;
        declared
    };
    declare.await.map_err(|error| on_stream("declare", on, &error))
}

async fn stats(broker: Arc<dyn Broker>, on: OnStream, json: bool) -> Result<(), Failure> {
    let stats = broker.stream_stats(&on.stream).await.map_err(|error| on_stream("look at", &on, &error))?;
    let mut out = Out::new();
    let bytes = broker.features().stream_bytes.then_some(stats.bytes);
    if json {
        let mut shown = json!(stats);
        shown["bytes"] = json!(bytes);
        out.json(&shown)?;
    } else {
        let row = vec![on.stream.clone(), count(stats.first), count(stats.next), count_or_unknown(bytes)];
        out.line(table(&["stream", ">first", ">next", ">bytes"], &[row]))?;
    }
    out.flush()
}

async fn publish(broker: Arc<dyn Broker>, asked: args::Append) -> Result<(), Failure> {
    let max = broker.features().max_message_bytes;
    let append = async |messages| {
        let appended = broker.append(&asked.on.stream, messages).await;
        appended.map_err(|error| on_stream("publish to", &asked.on, &error))
    };
    if !asked.body.lines {
        return append(vec![input::one(&asked.body, max)?]).await.map(drop);
    }
    let mut published = 0;
    loop {
        let messages = input::lines(&asked.body, max, published)?;
        if messages.is_empty() {
            complain(&format!("published {}", counted(published, "message")));
            return Ok(());
        }
        let count = messages.len() as u64;
        append(messages).await.inspect_err(|_| {
            complain(&format!("published {}; of the next it is not known", counted(published, "message")));
        })?;
        published += count;
    }
}

async fn read(broker: Arc<dyn Broker>, asked: args::Read, mut signals: Signals) -> Result<(), Failure> {
    let stream = asked.on.stream.as_str();
    let failed = |error: BrokerError| on_stream("read", &asked.on, &error);
    let held = stream_extent(&*broker, stream, asked.from).await.map_err(failed)?;
    let mut reader = broker.read(stream, asked.from).await.map_err(failed)?;
    if !asked.follow {
        reader = reader.until(held);
    }
    let mut left = asked.max.unwrap_or(u64::MAX);
    let mut out = Out::new();
    while left > 0 {
        let page = usize::try_from(left).unwrap_or(usize::MAX).min(PAGE);
        let chunk = tokio::select! {
            biased;
            signal = signals.next() => return Err(Failure::Signal(signal)),
            chunk = reader.next_chunk(page) => chunk.map_err(failed)?,
        };
        if chunk.is_empty() {
            break;
        }
        left -= chunk.len() as u64;
        for item in &chunk {
            if asked.json {
                out.json(&item_json(item))?;
            } else {
                out.body(item.message.body())?;
            }
        }
        out.flush()?;
    }
    out.flush()
}

async fn delete(broker: Arc<dyn Broker>, on: OnStream, yes: bool) -> Result<(), Failure> {
    let stats = broker.stream_stats(&on.stream).await.map_err(|error| on_stream("look at", &on, &error))?;
    if !yes {
        let held = match stats.next.checked_sub(stats.first) {
            None | Some(0) => "which is empty".to_owned(),
            Some(_) => format!("with the offsets {} to {}", count(stats.first), count(stats.next - 1)),
        };
        return Err(Failure::Refused(format!(
            "this removes the stream `{}` for good, {held}; repeat it with --yes",
            on.stream
        )));
    }
    broker.delete_stream(&on.stream).await.map_err(|error| on_stream("delete", &on, &error))
}

//! `millstream stream`: declaring streams and looking at them.

use std::sync::Arc;

use millstream_message::{Broker, BrokerError, BrokerUrl, StreamSpec};
use millstream_rabbitmq::stream::{Partitions, StreamBroker};
use serde_json::json;

use crate::args::{self, OnStream};
use crate::broker;
use crate::failure::Failure;
use crate::out::Out;
use crate::table::{count, table};

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
        args::Stream::Stats { on, json } => {
            broker::with(&on.url.clone(), |broker| stats(broker, on, json)).await
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
    if json {
        out.json(&json!(stats))?;
    } else {
        let row = vec![on.stream.clone(), count(stats.first), count(stats.next), count(stats.bytes)];
        out.line(table(&["stream", ">first", ">next", ">bytes"], &[row]))?;
    }
    out.flush()
}

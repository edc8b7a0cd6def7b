//! What users ask of the broker.

use std::sync::Arc;

use bytes::Bytes;
use millstream_message::{
    Batch, Binding, BoxFuture, Broker, BrokerError, BrokerUrl, Browsed, Confirm, ConsumeOptions, Consumer,
    Declaration as Declared, Exchange, Features, Message, Queue as Spec, QueueStats, Standing, StreamFrom,
    StreamReader, StreamSpec, StreamStats, differences,
};

use super::checks::{check_binding, check_name, check_queue, not_found, same};
use super::{EmbeddedBroker, blocking, offset_name};
use crate::exchange::Topology;
use crate::queue::Queue;
use crate::record::Declaration;
use crate::session;
use crate::stream_memory::MemoryStream;
use crate::streams::Stream;

impl Broker for EmbeddedBroker {
    fn url(&self) -> &BrokerUrl {
        &self.url
    }

    fn features(&self) -> Features {
        let max = self.core.shared.settings.message_bytes_max as u64;
        let mut features = Features::all(max);
        features.durable = self.core.shared.journal.is_some();
        features.consumer_priority = false;
        features.queue_expiry = false;
        features.stream_queues = false;
        features
    }

    fn declare_exchange(&self, exchange: Exchange) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            check_name("exchange", &exchange.name)?;
            let _one = self.core.declaring.lock().await;
            let known =
                self.core.topology.read().exchanges.get(&exchange.name).map(|bound| bound.exchange.clone());
            if let Some(known) = known {
                return same(&known, &exchange, "exchange", &exchange.name);
            }
            let declared = exchange.durable.then(|| Declaration::Exchange(exchange.clone()));
            let name = exchange.name.clone();
            self.core
                .declare(
                    declared,
                    |topology| topology.declare(exchange),
                    |topology| topology.remove_exchange(&name),
                )
                .await
        })
    }

    fn delete_exchange<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            let _one = self.core.declaring.lock().await;
            let known = self.core.topology.read().exchanges.get(name).map(|bound| bound.exchange.durable);
            let declared = (known == Some(true)).then(|| Declaration::DeleteExchange(name.to_owned()));
            self.core.declare(declared, |topology| topology.remove_exchange(name), |_| {}).await
        })
    }

    fn declare_queue(&self, queue: Spec) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            check_queue(&queue)?;
            let mut ids = self.core.declaring.lock().await;
            if let Some(known) = self.core.queue(&queue.name) {
                return same(&known.spec, &queue, "queue", &queue.name);
            }
            let id = ids.next_id;
            ids.next_id += 1;
            let queue = Arc::new(Queue::new(id, queue, self.core.shared.clone()));
            let declared = queue.durable.then(|| Declaration::Queue { id, queue: queue.spec.clone() });
            let name = queue.name().to_owned();
            self.core
                .declare(
                    declared,
                    |topology| _ = topology.queues.insert(queue.name().to_owned(), queue),
                    |topology| _ = topology.remove_queue(&name),
                )
                .await
        })
    }

    fn delete_queue<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            let _one = self.core.declaring.lock().await;
            let Some(queue) = self.core.queue(name) else { return Ok(0) };
            let declared = queue.durable.then(|| Declaration::DeleteQueue(queue.id));
            let mut ready = 0;
            let delete = |topology: &mut Topology| {
                topology.remove_queue(name);
                ready = queue.delete();
            };
            self.core.declare(declared, delete, |_| {}).await?;
            Ok(ready)
        })
    }

    fn bind(&self, binding: Binding) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            let _one = self.core.declaring.lock().await;
            let (leads, durable) = {
                let topology = self.core.topology.read();
                let Some(bound) = topology.exchanges.get(&binding.exchange) else {
                    return Err(not_found("exchange", &binding.exchange));
                };
                let Some(leads) = topology.target(&binding) else {
                    let what = if binding.target_kind == millstream_message::Target::Queue {
                        "queue"
                    } else {
                        "exchange"
                    };
                    return Err(not_found(what, &binding.target));
                };
                check_binding(&bound.exchange, &binding)?;
                if bound.bindings.iter().any(|(known, _)| *known == binding) {
                    return Ok(());
                }
                let durable = topology.is_durable(bound, &leads);
                (leads, durable)
            };
            let declared = durable.then(|| Declaration::Bind(binding.clone()));
            let undo = binding.clone();
            self.core
                .declare(
                    declared,
                    |topology| _ = topology.bind(binding, &leads),
                    |topology| _ = topology.unbind(&undo),
                )
                .await
        })
    }

    fn unbind(&self, binding: Binding) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            let _one = self.core.declaring.lock().await;
            let declared = Some(Declaration::Unbind(binding.clone()));
            self.core.declare(declared, |topology| _ = topology.unbind(&binding), |_| {}).await
        })
    }

    fn standing<'a>(&'a self, what: &'a Declared) -> BoxFuture<'a, Result<Standing, BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            let topology = self.core.topology.read();
            let found = match what {
                Declared::Exchange(exchange) => {
                    topology.exchanges.get(&exchange.name).map(|bound| differences(&bound.exchange, exchange))
                }
                Declared::Queue(queue) => {
                    topology.queues.get(&queue.name).map(|known| differences(&known.spec, queue))
                }
                Declared::Binding(binding) => topology
                    .exchanges
                    .get(&binding.exchange)
                    .filter(|bound| bound.bindings.iter().any(|(known, _)| known == binding))
                    .map(|_| None),
            };
            Ok(match found {
                None => Standing::Missing,
                Some(None) => Standing::Same,
                Some(Some(text)) => Standing::Different(text),
            })
        })
    }

    fn purge<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move { Ok(self.existing(queue)?.purge()) })
    }

    fn submit(&self, batch: Batch) -> BoxFuture<'_, Result<Confirm, BrokerError>> {
        Box::pin(self.core.submit(batch))
    }

    fn consume<'a>(
        &'a self,
        queue: &'a str,
        options: ConsumeOptions,
    ) -> BoxFuture<'a, Result<Consumer, BrokerError>> {
        Box::pin(async move { session::consume(&self.existing(queue)?, options) })
    }

    fn browse<'a>(
        &'a self,
        queue: &'a str,
        skip: u64,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Browsed>, BrokerError>> {
        Box::pin(async move { self.existing(queue)?.browse(skip, max) })
    }

    fn stats<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<QueueStats, BrokerError>> {
        Box::pin(async move { Ok(self.existing(queue)?.stats()) })
    }

    fn queue<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Spec>, BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            Ok(self.core.queue(name).map(|queue| queue.spec.clone()))
        })
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<String>, BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            Ok(self.core.topology.read().queues.keys().cloned().collect())
        })
    }

    fn position<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            Ok(self.core.positions.lock().get(name).cloned())
        })
    }

    fn store_position<'a>(
        &'a self,
        name: &'a str,
        value: Option<Bytes>,
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move { self.core.store_position(name.to_owned(), value).await })
    }

    fn declare_stream(&self, stream: StreamSpec) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            check_name("stream", &stream.name)?;
            let mut ids = self.core.declaring.lock().await;
            if let Some(known) = self.core.streams.get(&stream.name) {
                return same(known.spec(), &stream, "stream", &stream.name);
            }
            let Some(place) = ids.place.clone() else {
                self.core.streams.insert(Stream::Memory(Arc::new(MemoryStream::new(stream))));
                return Ok(());
            };
            let id = ids.next_id;
            ids.next_id += 1;
            let declaration = Declaration::Stream { id, stream: stream.clone() };
            let settings = self.core.shared.settings.clone();
            let opened = blocking(move || place.stream(id, stream, &settings)).await?;
            let name = opened.spec().name.clone();
            let insert = |_: &mut Topology| self.core.streams.insert(opened);
            let undo = |_: &mut Topology| {
                self.core.streams.remove(&name).into_iter().for_each(|stream| stream.delete())
            };
            self.core.declare(Some(declaration), insert, undo).await
        })
    }

    fn delete_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            self.core.shared.check_open()?;
            let _one = self.core.declaring.lock().await;
            let Some(stream) = self.core.streams.get(name) else { return Ok(()) };
            let declaration = match &*stream {
                Stream::Logged(logged) => Some(Declaration::DeleteStream(logged.id)),
                Stream::Memory(_) => None,
            };
            let remove = |_: &mut Topology| _ = self.core.streams.remove(name);
            // Before, so that no crash leaves an offset of this stream to another of its name; and what was stored meanwhile.
            self.forget_offsets(name).await?;
            self.core.declare(declaration, remove, |_| {}).await?;
            self.forget_offsets(name).await?;
            blocking(move || {
                stream.delete();
                Ok(())
            })
            .await
        })
    }

    fn append<'a>(
        &'a self,
        stream: &'a str,
        messages: Vec<Message>,
    ) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move { self.stream_of(stream)?.append(messages, &self.core.shared).await })
    }

    fn read<'a>(
        &'a self,
        stream: &'a str,
        from: StreamFrom,
    ) -> BoxFuture<'a, Result<StreamReader, BrokerError>> {
        Box::pin(async move { self.stream_of(stream)?.read(from, &self.core.shared) })
    }

    fn stream_stats<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Result<StreamStats, BrokerError>> {
        Box::pin(async move { self.stream_of(stream)?.stats(self.core.shared.clock.now()) })
    }

    fn store_offset<'a>(
        &'a self,
        stream: &'a str,
        reader: &'a str,
        offset: u64,
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            self.stream_of(stream)?;
            let value = Bytes::copy_from_slice(&offset.to_le_bytes());
            self.core.store_position(offset_name(stream, reader), Some(value)).await
        })
    }

    fn stored_offset<'a>(
        &'a self,
        stream: &'a str,
        reader: &'a str,
    ) -> BoxFuture<'a, Result<Option<u64>, BrokerError>> {
        Box::pin(async move {
            self.stream_of(stream)?;
            let value = self.core.positions.lock().get(&offset_name(stream, reader)).cloned();
            Ok(value.and_then(|bytes| Some(u64::from_le_bytes(*bytes.first_chunk()?))))
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.shut();
            self.core.close().await
        })
    }
}

//! What a [`Broker`] does, in AMQP's words.

use bytes::Bytes;
use millstream_message::{
    Batch, Binding, BoxFuture, Broker, BrokerError, BrokerErrorKind, BrokerUrl, Browsed, Confirm,
    ConsumeOptions, Consumer, Declaration, DirectReplies, Exchange, Features, Message, PublishOutcome, Queue,
    QueueStats, Standing, StreamFrom, StreamReader, StreamSpec, StreamStats,
};

use super::asking::Looked;
use super::submit::Submit;
use super::{RabbitMq, positions};
use crate::link::CallError;
use crate::proto::{Closed, Method};
use crate::refusals::{failed, no_streams};
use crate::topology;

impl Broker for RabbitMq {
    fn url(&self) -> &BrokerUrl {
        &self.0.url
    }

    fn features(&self) -> Features {
        let mut features = Features::all(self.0.max_message_bytes);
        features.lease = false;
        features.streams = false;
        features.queue_bytes = false;
        features.atomic_batches = false;
        features.uncounted_browse = false;
        features.list = self.0.options.management.is_some();
        features.delayed_stats = false;
        features
    }

    fn declare_exchange(&self, exchange: Exchange) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            topology::check_name("exchange", &exchange.name)?;
            if exchange.name.is_empty() {
                return Err(BrokerError::new(
                    BrokerErrorKind::Invalid,
                    "the default exchange is always there",
                ));
            }
            let what = || format!("exchange `{}`", exchange.name);
            self.0.asked(what, &topology::declare_exchange(&exchange)).await?;
            self.0.hub.known.exchanges.lock().insert(exchange.name.clone());
            self.0.hub.topology.lock().exchanges.insert(exchange.name.clone(), exchange);
            Ok(())
        })
    }

    fn delete_exchange<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            topology::check_name("exchange", name)?;
            self.0.hub.topology.lock().forget_exchange(name);
            self.0.hub.known.exchanges.lock().remove(name);
            let delete =
                Method::ExchangeDelete { reserved_1: 0, exchange: name.to_owned(), flags: [false; 2] };
            self.0.asked(|| format!("exchange `{name}`"), &delete).await?;
            Ok(())
        })
    }

    fn declare_queue(&self, queue: Queue) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            topology::check_declared(&queue)?;
            self.0.asked(|| format!("queue `{}`", queue.name), &topology::declare_queue(&queue)).await?;
            self.0.hub.topology.lock().queues.insert(queue.name.clone(), queue);
            Ok(())
        })
    }

    fn delete_queue<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move {
            topology::check_name("queue", name)?;
            self.0.hub.topology.lock().forget_queue(name);
            self.0.hub.learn(name, None);
            let delete = Method::QueueDelete { reserved_1: 0, queue: name.to_owned(), flags: [false; 3] };
            match self.0.asked(|| format!("queue `{name}`"), &delete).await? {
                Method::QueueDeleteOk { messages } => Ok(messages.into()),
                _ => Ok(0),
            }
        })
    }

    fn bind(&self, binding: Binding) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            check_binding(&binding)?;
            self.0.asked(|| binding.to_string(), &topology::bind(&binding)).await?;
            let mut topology = self.0.hub.topology.lock();
            if !topology.bindings.contains(&binding) {
                topology.bindings.push(binding);
            }
            Ok(())
        })
    }

    fn unbind(&self, binding: Binding) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            check_binding(&binding)?;
            self.0.hub.topology.lock().bindings.retain(|known| *known != binding);
            match self.0.control(&topology::unbind(&binding)).await {
                // Without its queue or exchange there is no binding.
                Ok(_) | Err(CallError::Refused(Closed { code: 404, .. })) => Ok(()),
                Err(error) => Err(failed(&binding.to_string(), error)),
            }
        })
    }

    /// As the management tells it, to whoever has its tag. Without it what is there is declared as it is asked for, which changes
    /// nothing, needs the right to configure it, and tells the first difference; of a binding nothing is known.
    fn standing<'a>(&'a self, what: &'a Declaration) -> BoxFuture<'a, Result<Standing, BrokerError>> {
        Box::pin(self.0.standing(what))
    }

    fn purge<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move {
            topology::check_name("queue", queue)?;
            let purge = Method::QueuePurge { reserved_1: 0, queue: queue.to_owned(), nowait: [false] };
            match self.0.asked(|| format!("queue `{queue}`"), &purge).await? {
                Method::QueuePurgeOk { messages } => Ok(messages.into()),
                _ => Ok(0),
            }
        })
    }

    fn submit(&self, batch: Batch) -> BoxFuture<'_, Result<Confirm, BrokerError>> {
        Box::pin(Submit::new(&self.0, batch))
    }

    fn consume<'a>(
        &'a self,
        queue: &'a str,
        options: ConsumeOptions,
    ) -> BoxFuture<'a, Result<Consumer, BrokerError>> {
        Box::pin(self.0.consume(queue, options))
    }

    /// By `amq.rabbitmq.reply-to`, on a connection of their own. Up to 10,000 replies or 16 MiB of them wait in the process to be
    /// taken, and then nothing more is read from that connection: nothing is lost, and the other receivers of the handle wait, too.
    /// To learn the address of replies needs the right to write to the default exchange.
    fn direct_replies(&self) -> BoxFuture<'_, Result<Option<DirectReplies>, BrokerError>> {
        Box::pin(async {
            self.0.replying().await?;
            Ok(Some(self.0.hub.known.replies.receiver()))
        })
    }

    /// Takes them and gives them back, for RabbitMQ has no other way: they count as delivered once more.
    fn browse<'a>(
        &'a self,
        queue: &'a str,
        skip: u64,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Browsed>, BrokerError>> {
        Box::pin(async move {
            let skip = usize::try_from(skip).unwrap_or(usize::MAX);
            let most = skip.saturating_add(max).min(usize::from(u16::MAX));
            let options = ConsumeOptions::default().prefetch(most).stop_when_empty().name("browse");
            let mut consumer = self.0.consume(queue, options).await?;
            let mut seen = Vec::new();
            while seen.len() < most {
                let chunk = consumer.next_chunk(most - seen.len()).await?;
                if chunk.is_empty() {
                    break;
                }
                seen.extend(chunk);
            }
            let browsed = seen.into_iter().skip(skip).map(|delivery| Browsed {
                deliveries: delivery.redeliveries,
                message: delivery.message,
                address: delivery.address,
            });
            Ok(browsed.collect())
        })
    }

    /// `ready` and `consumers` are the broker's. `unacked` and `delayed` are those of this handle, and bytes are not known:
    /// AMQP does not tell them.
    fn stats<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<QueueStats, BrokerError>> {
        Box::pin(async move {
            let (ready, consumers) = match self.0.look_at(queue).await? {
                Looked::There { ready, consumers } => (ready, consumers),
                Looked::Foreign(error) => return Err(error),
                Looked::Missing => {
                    let text = format!("there is no queue `{queue}`; declare it first");
                    return Err(BrokerError::new(BrokerErrorKind::NotFound, text));
                }
            };
            let of_it = self.0.hub.consumers();
            let unacked =
                of_it.iter().filter(|consumer| consumer.queue() == queue).map(|consumer| consumer.unacked());
            Ok(QueueStats {
                name: queue.to_owned(),
                ready,
                unacked: unacked.sum(),
                delayed: self.0.hub.delayed(queue),
                consumers,
                ..QueueStats::default()
            })
        })
    }

    /// As it was declared through this handle, or else as the management tells it. Of a queue that somebody else has declared only
    /// the name is known, and whether it is exclusive to another connection, where the URL does not say where the management is and
    /// it is not where it usually is.
    fn queue<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Queue>, BrokerError>> {
        Box::pin(async move {
            let undescribed = match self.0.look_at(name).await? {
                Looked::Missing => return Ok(None),
                Looked::There { .. } => Queue::durable(name),
                Looked::Foreign(_) => Queue::exclusive(name),
            };
            let known = self.0.hub.topology.lock().queues.get(name).cloned();
            if known.is_some() {
                return Ok(known);
            }
            match self.0.told_queue(name).await {
                Err(error) if self.features().list => Err(error),
                Err(_) => Ok(Some(undescribed)),
                Ok(told) => {
                    self.0.hub.learn(name, told.as_ref());
                    Ok(told)
                }
            }
        })
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<String>, BrokerError>> {
        Box::pin(self.0.told_queues())
    }

    /// By the management, whose figures are up to five seconds old.
    fn all_stats(&self) -> BoxFuture<'_, Result<Vec<QueueStats>, BrokerError>> {
        Box::pin(self.0.told_figures())
    }

    /// Positions are kept in queues of their own, which begin with `millstream.position.`.
    fn position<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, BrokerError>> {
        Box::pin(async move {
            let queue = positions::queue(name).name;
            if let Looked::Missing = self.0.look_at(&queue).await? {
                return Ok(None);
            }
            let stored = self.browse(&queue, 0, 1).await?;
            Ok(stored.into_iter().next().map(|stored| stored.message.into_body()))
        })
    }

    fn store_position<'a>(
        &'a self,
        name: &'a str,
        value: Option<Bytes>,
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            let Some(value) = value else {
                let queue = positions::queue(name).name;
                self.0.hub.positions.lock().remove(&queue);
                self.delete_queue(&queue).await?;
                return Ok(());
            };
            let stored = self.0.submit_with_position(Vec::new(), name.to_owned(), value).await?.await;
            match stored.into_others().into_iter().next() {
                None => Ok(()),
                Some((_, PublishOutcome::Unconfirmed(error))) => Err(error),
                Some((_, outcome)) => Err(BrokerError::new(
                    BrokerErrorKind::Unavailable,
                    format!("position `{name}` was not stored: {outcome:?}"),
                )),
            }
        })
    }

    fn declare_stream(&self, _: StreamSpec) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async { Err(no_streams()) })
    }

    fn delete_stream<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async { Err(no_streams()) })
    }

    fn append<'a>(&'a self, _: &'a str, _: Vec<Message>) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async { Err(no_streams()) })
    }

    fn read<'a>(&'a self, _: &'a str, _: StreamFrom) -> BoxFuture<'a, Result<StreamReader, BrokerError>> {
        Box::pin(async { Err(no_streams()) })
    }

    fn stream_stats<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<StreamStats, BrokerError>> {
        Box::pin(async { Err(no_streams()) })
    }

    fn store_offset<'a>(&'a self, _: &'a str, _: &'a str, _: u64) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async { Err(no_streams()) })
    }

    fn stored_offset<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Option<u64>, BrokerError>> {
        Box::pin(async { Err(no_streams()) })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(self.0.close())
    }
}

fn check_binding(binding: &Binding) -> Result<(), BrokerError> {
    topology::check_name("exchange", &binding.exchange)?;
    topology::check_name("queue", &binding.target)?;
    topology::check_name("key", &binding.key)
}

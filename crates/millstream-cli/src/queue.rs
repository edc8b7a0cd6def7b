//! `millstream queue`: looking at queues and using them.

mod figures;

use std::sync::Arc;

use millstream_message::{
    Address, Batch, Broker, BrokerErrorKind, BrokerUrl, Browsed, ConsumeOptions, Delivery, Message, Outcomes,
    PublishOutcome, Queue, QueueStats,
};

use crate::args::{self, OnQueue};
use crate::broker::{self, message_json};
use crate::failure::Failure;
use crate::input;
use crate::out::{Out, complain, preview};
use crate::signals::Signals;
use crate::table::counted;

/// Messages looked at in one step.
const PAGE: usize = 100;

pub(crate) async fn queue(command: args::Queue) -> Result<(), Failure> {
    match command {
        args::Queue::List { on, json } => {
            broker::with_existing(&on.url, |broker| figures::list(broker, json)).await
        }
        args::Queue::Declare(declare) => {
            let url = declare.on.url.clone();
            broker::with(&url, |broker| self::declare(broker, declare)).await
        }
        args::Queue::Publish(publish) => {
            let url = publish.on.url.clone();
            broker::with(&url, |broker| self::publish(broker, publish)).await
        }
        args::Queue::Consume(consume) => {
            let url = consume.on.url.clone();
            // Before the directory is locked: whoever sees the lock may send a signal.
            let signals = Signals::new()?;
            broker::with_existing(&url, |broker| self::consume(broker, consume, signals)).await
        }
        args::Queue::Peek { on, max, skip, json } => {
            broker::with_existing(&on.url, |broker| peek(broker, &on.queue, max, skip, json)).await
        }
        args::Queue::Stats { on, json } => {
            broker::with_existing(&on.url, |broker| figures::stats(broker, &on.queue, json)).await
        }
        args::Queue::Purge { on, yes } => purge(on, yes).await,
        args::Queue::Delete { on, yes } => delete(on, yes).await,
    }
}

async fn stats_of(broker: &Arc<dyn Broker>, queue: &str) -> Result<QueueStats, Failure> {
    broker.stats(queue).await.map_err(|error| on_queue("look at", queue, broker.url(), &error))
}

/// What went wrong with a queue, in the words of every command here.
pub(crate) fn on_queue(
    tried: &str,
    queue: &str,
    url: &BrokerUrl,
    error: &millstream_message::BrokerError,
) -> Failure {
    Failure::of(format_args!("cannot {tried} the queue `{queue}` of `{url}`"), error)
}

async fn declare(broker: Arc<dyn Broker>, asked: args::Declare) -> Result<(), Failure> {
    let name = asked.on.queue.as_str();
    let mut queue = if asked.transient { Queue::transient(name) } else { Queue::durable(name) };
    queue = queue.overflow(asked.overflow);
    if let Some(ttl) = asked.ttl {
        queue = queue.ttl(ttl);
    }
    if let Some(items) = asked.max_items {
        queue = queue.max_items(items);
    }
    if let Some(bytes) = asked.max_bytes {
        queue = queue.max_bytes(bytes);
    }
    if let Some(dead) = &asked.dead_letters {
        queue = queue.dead_letter("", dead);
    }
    if let Some(times) = asked.delivery_limit {
        queue = queue.delivery_limit(times);
    }
    if let Some(priority) = asked.max_priority {
        queue = queue.max_priority(priority);
    }
    if let Some(kind) = asked.kind {
        queue = queue.kind(kind);
    }
    if asked.single_active_consumer {
        queue = queue.single_active_consumer();
    }
    if let Some(after) = asked.expires {
        queue = queue.expires(after);
    }
    broker.declare_queue(queue).await.map_err(|error| on_queue("declare", name, broker.url(), &error))?;
    match &asked.dead_letters {
        Some(letters) => declare_missing(&*broker, letters).await,
        None => Ok(()),
    }
}

/// Makes the queue for dead letters if there is none: letters to a queue that is not there would be lost.
async fn declare_missing(broker: &dyn Broker, name: &str) -> Result<(), Failure> {
    match broker.stats(name).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == BrokerErrorKind::NotFound => {
            let declared = broker.declare_queue(Queue::durable(name)).await;
            declared.map_err(|error| on_queue("declare", name, broker.url(), &error))?;
            complain(&format!("declared `{name}`, too"));
            Ok(())
        }
        Err(error) => Err(on_queue("look at", name, broker.url(), &error)),
    }
}

async fn publish(broker: Arc<dyn Broker>, asked: args::Publish) -> Result<(), Failure> {
    let to = Address::queue(&asked.on.queue);
    if asked.body.lines {
        publish_lines(&broker, &asked, &to).await
    } else {
        publish_one(&broker, &asked, &to).await
    }
}

async fn publish_one(broker: &Arc<dyn Broker>, asked: &args::Publish, to: &Address) -> Result<(), Failure> {
    let message = input::one(&asked.body, broker.features().max_message_bytes)?;
    let outcome = broker.publish(to, with_properties(asked, message)).await;
    let outcome = outcome.map_err(|error| on_queue("publish to", to.key(), broker.url(), &error))?;
    stored(&outcome, to.key(), broker.url())
}

async fn publish_lines(broker: &Arc<dyn Broker>, asked: &args::Publish, to: &Address) -> Result<(), Failure> {
    let max = broker.features().max_message_bytes;
    let mut published = 0_u64;
    loop {
        let messages = input::lines(&asked.body, max, published)?;
        if messages.is_empty() {
            complain(&format!("published {}", counted(published, "message")));
            return Ok(());
        }
        let messages = messages.into_iter().map(|message| with_properties(asked, message));
        let outcomes: Outcomes = broker
            .publish_batch(Batch::to(to, messages))
            .await
            .map_err(|error| on_queue("publish to", to.key(), broker.url(), &error))?;
        published += outcomes.confirmed_count() as u64;
        if let Some((_, outcome)) = outcomes.others().first() {
            complain(&format!("published {}; the next was not stored", counted(published, "message")));
            return stored(outcome, to.key(), broker.url());
        }
    }
}

fn with_properties(asked: &args::Publish, mut message: Message) -> Message {
    if let Some(ttl) = asked.ttl {
        message = message.with_ttl(ttl);
    }
    if let Some(delay) = asked.delay {
        message = message.with_delay(delay);
    }
    if asked.priority > 0 {
        message = message.with_priority(asked.priority);
    }
    message
}

/// Whether a publish is stored; otherwise the failure that says where the message is now.
pub(crate) fn stored(outcome: &PublishOutcome, queue: &str, url: &BrokerUrl) -> Result<(), Failure> {
    match outcome {
        PublishOutcome::Confirmed => Ok(()),
        PublishOutcome::Unroutable(returned) => {
            let reason = &returned.reason;
            Err(Failure::Failed(format!("not stored: {reason}: `millstream queue declare {url} {queue}`")))
        }
        PublishOutcome::Refused(refusal) => Err(Failure::of("not stored", refusal)),
        PublishOutcome::Unconfirmed(error) => Err(Failure::of("it is not known whether it is stored", error)),
    }
}

async fn consume(broker: Arc<dyn Broker>, asked: args::Consume, mut signals: Signals) -> Result<(), Failure> {
    let name = asked.on.queue.as_str();
    let max = asked.max.unwrap_or(u64::MAX);
    let mut options = ConsumeOptions::default().name("millstream queue consume");
    if !asked.follow {
        options = options.stop_when_empty();
    }
    let mut consumer = broker
        .consume(name, options)
        .await
        .map_err(|error| on_queue("consume", name, broker.url(), &error))?;
    let mut out = Out::new();
    let mut taken = 0;
    let ended = loop {
        let wanted = usize::try_from(max - taken).unwrap_or(usize::MAX).min(PAGE);
        if wanted == 0 {
            break Ok(());
        }
        let chunk = tokio::select! {
            biased;
            signal = signals.next() => break Err(Failure::Signal(signal)),
            chunk = consumer.next_chunk(wanted) => chunk,
        };
        let chunk = chunk.map_err(|error| on_queue("consume", name, broker.url(), &error))?;
        if chunk.is_empty() {
            break Ok(());
        }
        taken += chunk.len() as u64;
        print(&mut out, &chunk, asked.json)?;
        // Only what has been handed on is taken off the queue.
        out.flush()?;
        consumer.acker().ack_many(chunk.iter().map(|delivery| delivery.tag));
    };
    consumer.acker().release();
    ended
}

fn print(out: &mut Out, deliveries: &[Delivery], json: bool) -> Result<(), Failure> {
    for delivery in deliveries {
        if json {
            out.json(&message_json(&delivery.message, &delivery.address))?;
        } else {
            out.body(delivery.message.body())?;
        }
    }
    Ok(())
}

async fn peek(
    broker: Arc<dyn Broker>,
    queue: &str,
    max: usize,
    skip: u64,
    json: bool,
) -> Result<(), Failure> {
    let mut out = Out::new();
    let mut seen = 0;
    while seen < max {
        let page = browse(&broker, queue, skip + seen as u64, (max - seen).min(PAGE)).await?;
        if page.is_empty() {
            break;
        }
        seen += page.len();
        for browsed in &page {
            if json {
                out.json(&message_json(&browsed.message, &browsed.address))?;
            } else {
                out.line(preview(browsed.message.body(), 160))?;
            }
        }
    }
    out.flush()
}

/// A page of a queue's messages, which stay where they are.
pub(crate) async fn browse(
    broker: &Arc<dyn Broker>,
    queue: &str,
    skip: u64,
    max: usize,
) -> Result<Vec<Browsed>, Failure> {
    broker.browse(queue, skip, max).await.map_err(|error| on_queue("look into", queue, broker.url(), &error))
}

async fn purge(on: OnQueue, yes: bool) -> Result<(), Failure> {
    broker::with_existing(&on.url, |broker| async move {
        let ready = stats_of(&broker, &on.queue).await?.ready;
        if !yes {
            return Err(Failure::Refused(format!(
                "this removes {} for good from the queue `{}`; repeat it with --yes",
                counted(ready, "message"),
                on.queue
            )));
        }
        let purged = broker.purge(&on.queue).await;
        let purged = purged.map_err(|error| on_queue("purge", &on.queue, broker.url(), &error))?;
        complain(&format!("removed {}", counted(purged, "message")));
        Ok(())
    })
    .await
}

async fn delete(on: OnQueue, yes: bool) -> Result<(), Failure> {
    broker::with_existing(&on.url, |broker| async move {
        let ready = stats_of(&broker, &on.queue).await?.ready;
        if !yes {
            return Err(Failure::Refused(format!(
                "this removes the queue `{}` for good, with {} that wait in it; repeat it with --yes",
                on.queue,
                counted(ready, "message")
            )));
        }
        let removed = broker.delete_queue(&on.queue).await;
        let removed = removed.map_err(|error| on_queue("delete", &on.queue, broker.url(), &error))?;
        complain(&format!("removed the queue and {}", counted(removed, "message")));
        Ok(())
    })
    .await
}

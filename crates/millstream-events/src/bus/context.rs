//! What a handler is told of an event besides what happened.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use millstream_message::flow::Job;
use millstream_message::{Address, Codec, CodecError, Message, TraceContext};

use super::envelope::{AggregateFacts, Envelope};
use crate::Event;

/// What is known of an event that is handled. Cheap to clone, and to be kept beyond the handler's call.
///
/// What the event causes says so: [`EventDraft::in_context`](crate::EventDraft::in_context) of what is published, or
/// [`Event::caused_by`] with [`event`](EventContext::event) of what is stored.
#[derive(Clone, Debug)]
pub struct EventContext {
    envelope: Arc<Envelope>,
    message: Message,
    address: Address,
    queue: Arc<str>,
    attempt: u32,
    redeliveries: u32,
}

impl EventContext {
    pub(super) fn of<T>(job: &Job<Received<T>>, queue: &Arc<str>) -> EventContext {
        EventContext {
            envelope: job.value.envelope.clone(),
            message: job.message.clone(),
            address: job.address.clone(),
            queue: queue.clone(),
            attempt: job.attempt,
            redeliveries: job.redeliveries,
        }
    }

    /// The event, with its body as it came.
    pub fn event(&self) -> &Event {
        &self.envelope.event
    }

    /// The event's name, the same in each attempt and each redelivery.
    pub fn id(&self) -> &str {
        &self.event().id
    }

    /// What happened.
    pub fn event_type(&self) -> &str {
        &self.event().event_type
    }

    /// The service that published it.
    pub fn source(&self) -> &str {
        &self.envelope.source
    }

    /// What it belongs to.
    pub fn correlation_id(&self) -> Option<&str> {
        self.event().correlation_id.as_deref()
    }

    /// What caused it.
    pub fn causation_id(&self) -> Option<&str> {
        self.event().causation_id.as_deref()
    }

    /// Whatever else is said of it.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.event().metadata
    }

    /// What it happened to, if whoever published it has said so.
    pub fn aggregate(&self) -> Option<&AggregateFacts> {
        self.envelope.aggregate.as_ref()
    }

    /// When it was published, by the publisher's clock, to the millisecond.
    pub fn published(&self) -> Option<SystemTime> {
        self.envelope.published
    }

    /// The how-manieth attempt this is, from 1. One during which a process died is not in it, but in
    /// [`redeliveries`](EventContext::redeliveries).
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How often this message was given back unsettled, as exact as the broker counts.
    pub fn redeliveries(&self) -> u32 {
        self.redeliveries
    }

    /// The subscription's queue.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    pub(super) fn queue_shared(&self) -> &Arc<str> {
        &self.queue
    }

    /// Where it was published to: the exchange, and the type as the key.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The message as it came, with all of its headers.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The trace that it belongs to.
    pub fn trace(&self) -> Option<TraceContext> {
        self.message.trace()
    }
}

/// An event that was read.
pub(super) struct Received<T> {
    pub(super) value: T,
    envelope: Arc<Envelope>,
}

/// Reads events and their values, by a function.
pub(super) struct Reading<R>(pub(super) R);

impl<T, R: Fn(&Event) -> Result<T, CodecError>> Codec<Received<T>> for Reading<R> {
    fn content_type(&self) -> &'static str {
        "" // it writes nothing
    }

    fn encode(&self, _: &Received<T>) -> Result<Message, CodecError> {
        Err(no_event::<T>("what was received is not written"))
    }

    fn decode(&self, message: &Message) -> Result<Received<T>, CodecError> {
        let envelope = Envelope::from_message(message).map_err(no_event::<T>)?;
        Ok(Received { value: (self.0)(&envelope.event)?, envelope: Arc::new(envelope) })
    }
}

/// A message that carries no event for a `T`.
pub(super) fn no_event<T>(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CodecError {
    CodecError::Invalid { format: "event", wanted: std::any::type_name::<T>(), source: source.into() }
}

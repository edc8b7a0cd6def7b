//! An event that is about to be published.

use std::time::Duration;

use millstream_message::{Properties, Publish, TraceContext, Value};

use super::context::EventContext;
use super::envelope::{AggregateFacts, Envelope};
use super::{BusError, EventBus, Published};
use crate::Event;

/// An event that is about to be published, and all that is to be said of it: made by [`EventBus::event`].
#[derive(Debug, Clone)]
#[must_use = "a draft is published by `publish`"]
pub struct EventDraft {
    bus: EventBus,
    envelope: Envelope,
    /// What the message is to have that is not the envelope's.
    more: Properties,
}

impl EventDraft {
    pub(super) fn new(bus: EventBus, event: Event) -> EventDraft {
        let source = bus.source_used().to_owned();
        EventDraft { bus, envelope: Envelope::new(event, source), more: Properties::default() }
    }

    fn with_event(mut self, change: impl FnOnce(Event) -> Event) -> EventDraft {
        self.envelope.event = change(self.envelope.event);
        self
    }

    fn with_more(mut self, change: impl FnOnce(&mut Properties)) -> EventDraft {
        change(&mut self.more);
        self
    }

    /// Gives it a name of one's own: whoever publishes it again by the same name lets subscribers with an
    /// [`Inbox`](crate::Inbox) skip it.
    pub fn id(self, id: impl Into<String>) -> EventDraft {
        self.with_event(|event| event.with_id(id))
    }

    /// Says what it belongs to.
    pub fn correlation_id(self, id: impl Into<String>) -> EventDraft {
        self.with_event(|event| event.with_correlation_id(id))
    }

    /// Says what caused it.
    pub fn causation_id(self, id: impl Into<String>) -> EventDraft {
        self.with_event(|event| event.with_causation_id(id))
    }

    /// Says that this event caused it, and that it belongs to what that belongs to.
    pub fn caused_by(self, cause: &Event) -> EventDraft {
        self.with_event(|event| event.caused_by(cause))
    }

    /// Says that the event that is handled caused it: as [`caused_by`](EventDraft::caused_by), and it belongs to the same trace.
    pub fn in_context(self, context: &EventContext) -> EventDraft {
        let caused = self.caused_by(context.event());
        match context.trace() {
            Some(trace) => caused.trace(&trace),
            None => caused,
        }
    }

    /// Adds or replaces what is said under a name.
    pub fn metadata(self, name: impl Into<String>, value: impl Into<String>) -> EventDraft {
        self.with_event(|event| event.with_metadata(name, value))
    }

    /// Says what it happened to, and which of the events of that it is.
    pub fn aggregate(mut self, kind: impl Into<String>, id: impl Into<String>, version: u64) -> EventDraft {
        self.envelope.aggregate = Some(AggregateFacts { kind: kind.into(), id: id.into(), version });
        self
    }

    /// Says who publishes it, if that is not the bus's [source](EventBus::source).
    pub fn source(mut self, source: impl Into<String>) -> EventDraft {
        self.envelope.source = source.into();
        self
    }

    /// Says which trace it belongs to.
    pub fn trace(self, trace: &TraceContext) -> EventDraft {
        let headers = millstream_message::Message::new("").with_trace(trace).properties().headers.clone();
        self.with_more(|more| more.headers.extend(headers))
    }

    /// Adds or replaces a header of the message, for who routes or reads by it. The envelope's own headers win.
    pub fn header(self, name: impl Into<String>, value: impl Into<Value>) -> EventDraft {
        self.with_more(|more| _ = more.headers.insert(name.into(), value.into()))
    }

    /// How long it may wait in the queue of each subscriber. What has waited for longer is dead there.
    pub fn ttl(self, ttl: Duration) -> EventDraft {
        self.with_more(|more| more.ttl = Some(ttl))
    }

    /// How long it stays invisible. On RabbitMQ it is not known before then whether anybody wants it: it counts as stored.
    pub fn delay(self, delay: Duration) -> EventDraft {
        self.with_more(|more| more.delay = Some(delay))
    }

    /// Higher goes first, in the queues of subscribers that have declared priorities by [`Subscribe::queue`](crate::Subscribe::queue).
    pub fn priority(self, priority: u8) -> EventDraft {
        self.with_more(|more| more.priority = priority)
    }

    /// A restart of the broker may forget it. Events are persistent otherwise.
    pub fn transient(self) -> EventDraft {
        self.with_more(|more| more.persistent = false)
    }

    /// The event so far.
    pub fn event(&self) -> &Event {
        &self.envelope.event
    }

    /// Publishes it. As [`EventBus::publish`] in everything.
    ///
    /// # Errors
    /// As there.
    pub async fn publish(self) -> Result<Published, BusError> {
        let bus = self.bus.clone();
        bus.publish_draft(self).await
    }

    /// The message and where it is to go, for who publishes it otherwise, say from an outbox. It is published now, as far as its
    /// timestamp says.
    ///
    /// # Errors
    /// `EventType`, for a type that no event can have.
    pub fn into_publish(self) -> Result<Publish, BusError> {
        self.into_publish_after(None)
    }

    /// The same, behind another one of its bus.
    pub(super) fn into_publish_after(self, last: Option<&Publish>) -> Result<Publish, BusError> {
        let EventDraft { bus, mut envelope, more } = self;
        let event_type = &envelope.event.event_type;
        let to = match last {
            // Brokers route a run of clones once.
            Some(last) if last.to.key() == event_type => last.to.clone(),
            _ => bus.address_of(event_type)?,
        };
        envelope.published = Some(bus.now());
        let mut message = envelope.message_with(more.headers);
        let properties = message.properties_mut();
        properties.ttl = more.ttl;
        properties.delay = more.delay;
        properties.priority = more.priority;
        properties.persistent = more.persistent;
        Ok(Publish { to, message })
    }
}

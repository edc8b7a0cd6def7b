//! Statistics as metrics, in the Prometheus text format. `docs/events.md` lists them; a test holds the two together.

use millstream_observe::{Exposition, Metric, Value, labels, metrics};

use crate::bus::{BusStatistics, SubscriptionStatistics};
use crate::saga::SagasStatistics;
use crate::store::{CatchUpStatistics, EventStoreStatistics};

labels!(/** Labels of a store, and of the sagas in it. */ ByLog: log);
labels!(/** Labels of a subscription to a store. */ ByPlace: log, subscription);
labels!(/** Labels of what a service has published. */ ByService: service, outcome);
labels!(/** Labels of a subscription to a bus. */ ByQueue: queue);
labels!(/** Labels of what became of a subscription's events. */ ByQueueOutcome: queue, outcome);
labels!(/** Labels of sagas that have ended. */ ByEnding: log, outcome);

type Log = ByLog<'static>;

metrics! { "millstream_event_":
    STREAMS: Log = gauge "store_streams" "Streams that have events.";
    COMMITS: Log = counter "store_commits_total" "Entries of the log that count.";
    EVENTS: Log = counter "store_events_total" "Events ever appended.";
    SNAPSHOTS: Log = counter "store_snapshots_total" "Snapshots ever taken.";
    CONFLICTS: Log =
        counter "store_conflicts_total" "Entries that do not count, since their writers expected what did not hold.";
    FOREIGN: Log = counter "store_foreign_total" "Messages of the log that no store has written.";
    GAPS: Log = gauge "store_gaps" "Ranges of entries that are lost.";
    NEXT_OFFSET: Log = gauge "store_next_offset" "The offset of what is appended next.";
    CHECKPOINT_OFFSET: Log = gauge "store_checkpoint_offset" "The offset from which opening reads.";
    BYTES: Log = gauge "store_bytes" "Bytes of the log; 0 where the broker does not tell.";
    SUBSCRIPTION_OFFSET: ByPlace<'static> =
        gauge "subscription_offset" "The offset from which a subscription would go on.";
    SUBSCRIPTION_BEHIND: ByPlace<'static> =
        gauge "subscription_behind" "Entries that a subscription has not read, or whose events are not all settled.";
    PUBLISHED: ByService<'static> =
        counter "bus_published_total" "Events published: `stored`, `unroutable`, `refused` or `unconfirmed`.";
    RECEIVED: ByQueue<'static> =
        counter "bus_received_total" "Events that came to a subscription; one that is tried again comes again.";
    ENDED: ByQueueOutcome<'static> =
        counter "bus_ended_total" "What became of them: `handled`, `tried_again`, `given_back`, `skipped` or `dead`.";
    IN_FLIGHT: ByQueue<'static> = gauge "bus_in_flight" "Events that a subscription has in hand.";
    SAGAS_ACTIVE: Log = gauge "sagas_active" "Sagas that are on their way.";
    SAGAS_BEGUN: Log = counter "sagas_begun_total" "Sagas begun by this process.";
    SAGA_STEPS: Log = counter "saga_steps_total" "Steps done.";
    SAGA_FAILURES: Log = counter "saga_failures_total" "Attempts that failed, at steps and at undoing them.";
    SAGA_STEPS_UNDONE: Log = counter "saga_steps_undone_total" "Steps undone.";
    SAGAS_ENDED: ByEnding<'static> =
        counter "sagas_ended_total" "Sagas that ended: `completed`, `compensated`, `timed_out`, `aborted` or `failed`.";
}

/// The statistics of stores, buses, their subscriptions and sagas, to be shown together.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use millstream_events::metrics::EventMetrics;
/// use millstream_events::{Event, EventStore, Expected};
/// use millstream_message::Message;
///
/// let broker = millstream_embedded::open(&"memory:".parse()?).await?;
/// let store = EventStore::open(broker, "orders").await?;
/// store.append("order-7", Expected::Any, [Event::new("placed", Message::new("tea"))]).await?;
///
/// let text = EventMetrics::new().store("orders", store.statistics().await?).text();
/// assert!(text.contains("millstream_event_store_events_total{log=\"orders\"} 1\n"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct EventMetrics {
    stores: Vec<(String, EventStoreStatistics)>,
    buses: Vec<(String, BusStatistics)>,
    subscriptions: Vec<(String, SubscriptionStatistics)>,
    sagas: Vec<(String, SagasStatistics)>,
}

impl EventMetrics {
    /// Of nothing yet.
    pub fn new() -> EventMetrics {
        EventMetrics::default()
    }

    /// A store, by the name of its log, with the catch-up subscriptions that are open.
    #[must_use]
    pub fn store(mut self, log: impl Into<String>, statistics: EventStoreStatistics) -> Self {
        self.stores.push((log.into(), statistics));
        self
    }

    /// What a service has published.
    #[must_use]
    pub fn bus(mut self, service: impl Into<String>, statistics: BusStatistics) -> Self {
        self.buses.push((service.into(), statistics));
        self
    }

    /// A subscription to a bus, by its queue.
    #[must_use]
    pub fn subscription(mut self, queue: impl Into<String>, statistics: SubscriptionStatistics) -> Self {
        self.subscriptions.push((queue.into(), statistics));
        self
    }

    /// The sagas of a store, by the name of its log.
    #[must_use]
    pub fn sagas(mut self, log: impl Into<String>, statistics: SagasStatistics) -> Self {
        self.sagas.push((log.into(), statistics));
        self
    }

    /// All of it as text.
    pub fn text(&self) -> String {
        let mut out = Exposition::default();
        self.show(&mut out);
        out.finish()
    }

    /// All of it as part of a larger exposition.
    pub fn show(&self, out: &mut Exposition) {
        self.show_stores(out);
        self.show_buses(out);
        self.show_sagas(out);
    }

    fn show_stores(&self, out: &mut Exposition) {
        let mut show = |metric: &Metric<Log>, value: fn(&EventStoreStatistics) -> u64| {
            let stores = self.stores.iter();
            out.show(metric, stores.map(|(log, store)| (ByLog { log }, Value::Count(value(store)))));
        };
        show(&STREAMS, |store| store.streams);
        show(&COMMITS, |store| store.commits);
        show(&EVENTS, |store| store.events);
        show(&SNAPSHOTS, |store| store.snapshots);
        show(&CONFLICTS, |store| store.conflicts);
        show(&FOREIGN, |store| store.foreign);
        show(&GAPS, |store| store.gaps);
        show(&NEXT_OFFSET, |store| store.next_offset);
        show(&CHECKPOINT_OFFSET, |store| store.checkpoint_offset);
        show(&BYTES, |store| store.bytes);
        let mut show = |metric: &Metric<ByPlace<'static>>, value: fn(&CatchUpStatistics) -> u64| {
            let all = self.stores.iter().flat_map(|(log, store)| {
                store.subscriptions.iter().map(move |place| {
                    (ByPlace { log, subscription: &place.name }, Value::Count(value(place)))
                })
            });
            out.show(metric, all);
        };
        show(&SUBSCRIPTION_OFFSET, |place| place.offset);
        show(&SUBSCRIPTION_BEHIND, |place| place.behind);
    }

    fn show_buses(&self, out: &mut Exposition) {
        let published = self.buses.iter().flat_map(|(service, bus)| {
            let outcomes = [
                ("stored", bus.published),
                ("unroutable", bus.unroutable),
                ("refused", bus.refused),
                ("unconfirmed", bus.unconfirmed),
            ];
            outcomes.map(|(outcome, count)| (ByService { service, outcome }, Value::Count(count)))
        });
        out.show(&PUBLISHED, published);
        let mut show = |metric: &Metric<ByQueue<'static>>, value: fn(&SubscriptionStatistics) -> u64| {
            let all = self.subscriptions.iter();
            out.show(metric, all.map(|(queue, events)| (ByQueue { queue }, Value::Count(value(events)))));
        };
        show(&RECEIVED, |events| events.received);
        show(&IN_FLIGHT, |events| events.in_flight);
        let ended = self.subscriptions.iter().flat_map(|(queue, events)| {
            let outcomes = [
                ("handled", events.handled),
                ("tried_again", events.tried_again),
                ("given_back", events.given_back),
                ("skipped", events.skipped),
                ("dead", events.dead),
            ];
            outcomes.map(|(outcome, count)| (ByQueueOutcome { queue, outcome }, Value::Count(count)))
        });
        out.show(&ENDED, ended);
    }

    fn show_sagas(&self, out: &mut Exposition) {
        let mut show = |metric: &Metric<Log>, value: fn(&SagasStatistics) -> u64| {
            let all = self.sagas.iter();
            out.show(metric, all.map(|(log, sagas)| (ByLog { log }, Value::Count(value(sagas)))));
        };
        show(&SAGAS_ACTIVE, |sagas| sagas.active);
        show(&SAGAS_BEGUN, |sagas| sagas.begun);
        show(&SAGA_STEPS, |sagas| sagas.steps);
        show(&SAGA_FAILURES, |sagas| sagas.failures);
        show(&SAGA_STEPS_UNDONE, |sagas| sagas.undone);
        let ended = self.sagas.iter().flat_map(|(log, sagas)| {
            let outcomes = [
                ("completed", sagas.completed),
                ("compensated", sagas.compensated),
                ("timed_out", sagas.timed_out),
                ("aborted", sagas.aborted),
                ("failed", sagas.failed),
            ];
            outcomes.map(|(outcome, count)| (ByEnding { log, outcome }, Value::Count(count)))
        });
        out.show(&SAGAS_ENDED, ended);
    }
}

//! A subscription: what is ready to be started, and what runs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use millstream_flow::{Flow, Ledger, Pipe, Report, Run, RunError, Token};
use millstream_message::{Acker, Broker, BrokerError};
use serde::Serialize;

use tokio::runtime::Handle;

use super::BusError;

/// The name by which events that an [`Inbox`](crate::Inbox) knew are dropped in the ledger of a subscription.
pub const HANDLED_BEFORE: &str = "handled before";

/// Where a subscription's events come from.
pub(super) struct Place {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) queue: Arc<str>,
    pub(super) dead: Option<String>,
    pub(super) acker: Acker,
    /// Of a queue that goes with the subscription.
    pub(super) temporary: Option<Temporary>,
}

/// A queue that is deleted when this is dropped, as soon as somebody gets to it.
pub(super) struct Temporary(Option<(Arc<dyn Broker>, String)>);

impl Temporary {
    pub(super) fn new(broker: Arc<dyn Broker>, queue: String) -> Temporary {
        Temporary(Some((broker, queue)))
    }

    async fn delete(mut self) -> Result<(), BrokerError> {
        let Some((broker, queue)) = &self.0 else { return Ok(()) };
        broker.delete_queue(queue).await?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Without a runtime it goes with the process, or when nobody has used it for a while.
        if let (Some((broker, queue)), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(async move { _ = broker.delete_queue(&queue).await });
        }
    }
}

/// A subscription whose queue gets events, and that handles them once it is [started](Subscribing::start).
#[must_use = "a subscription handles nothing until it is started"]
pub struct Subscribing<F> {
    pub(super) pipe: Pipe<F>,
    pub(super) place: Place,
}

impl<F: Flow<Item = (), Token = Token> + Send + 'static> Subscribing<F> {
    /// Starts to handle events, on the current runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(self) -> Subscription {
        let run = self.pipe.for_each(drop).start();
        Subscription { run, place: self.place }
    }
}

impl<F> fmt::Debug for Subscribing<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscribing").field("queue", &self.place.queue).finish_non_exhaustive()
    }
}

/// A subscription that runs. Dropping it stops it where it is: calls of the handler are dropped where they wait, and what is not
/// settled goes back to the queue, which goes on to collect events unless it is [temporary](crate::Subscribe::temporary).
/// [`stop`](Subscription::stop) finishes what is in hand.
#[must_use = "dropping a subscription stops it"]
pub struct Subscription {
    run: Run<()>,
    place: Place,
}

/// What became of a subscription's events so far.
///
/// `received = handled + tried_again + given_back + skipped + dead + in_flight`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SubscriptionStatistics {
    /// Events that came; one that is tried again comes again.
    pub received: u64,
    /// Events whose handler has succeeded.
    pub handled: u64,
    /// Attempts that failed and were put off until later.
    pub tried_again: u64,
    /// Events that the handler gave back.
    pub given_back: u64,
    /// Events that an [`Inbox`](crate::Inbox) knew.
    pub skipped: u64,
    /// Events that failed for good, and messages that were no event: dead letters.
    pub dead: u64,
    /// Events in hand.
    pub in_flight: u64,
}

impl SubscriptionStatistics {
    fn of(ledger: &Ledger) -> SubscriptionStatistics {
        let dropped = |name| ledger.dropped.get(name).copied().unwrap_or(0);
        SubscriptionStatistics {
            received: ledger.received,
            handled: ledger.completed,
            tried_again: dropped("tried again later"),
            given_back: dropped("given back"),
            skipped: dropped(HANDLED_BEFORE),
            dead: ledger.dead,
            in_flight: ledger.in_flight,
        }
    }
}

/// How a subscription went that was given up.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Unsubscribed {
    /// What it did.
    pub report: Report,
    /// Events that waited in its queue and went with it.
    pub deleted: u64,
    /// Dead letters that are still there, in a queue that was kept because of them.
    pub dead_letters: u64,
}

impl Subscription {
    /// The queue that collects its events.
    pub fn queue(&self) -> &str {
        &self.place.queue
    }

    /// The queue of its dead letters; a [temporary](crate::Subscribe::temporary) subscription has none.
    pub fn dead_letter_queue(&self) -> Option<&str> {
        self.place.dead.as_deref()
    }

    /// The account of its run so far.
    pub fn report(&self) -> Report {
        self.run.report()
    }

    /// What became of its events so far.
    pub fn statistics(&self) -> SubscriptionStatistics {
        SubscriptionStatistics::of(&self.report().ledger)
    }

    /// Begins no more events until it is [resumed](Subscription::resume): those in hand are finished, its queue goes on to collect,
    /// and other processes of the service go on. Some that were handed over already, up to 256, still come.
    pub fn pause(&self) {
        self.place.acker.pause();
    }

    /// Goes on after a pause.
    pub fn resume(&self) {
        self.place.acker.resume();
    }

    /// Waits until it ends by itself, which it does only when its broker is closed.
    ///
    /// # Errors
    /// `Run`, if its queue was deleted, or its broker has failed.
    ///
    /// # Cancel safety
    /// Dropping the future stops the subscription.
    pub async fn join(self) -> Result<Report, BusError> {
        let Subscription { run, place } = self;
        let ended = report(run.join().await);
        drop(place); // no sooner: it can still be settled
        ended
    }

    /// Takes no more events, finishes those in hand for up to `deadline`, and gives the others back. The queue goes on to collect
    /// events for who subscribes next; that of a [temporary](crate::Subscribe::temporary) subscription is deleted.
    ///
    /// # Errors
    /// `Run`, if calls of the handler were still under way at the deadline, whose events are given back, or if the run has
    /// failed; `Broker`, if the broker does not delete a temporary queue.
    ///
    /// # Cancel safety
    /// Dropping the future stops the subscription as dropping it does.
    pub async fn stop(self, deadline: Duration) -> Result<Report, BusError> {
        let Subscription { run, mut place } = self;
        let ended = run.shutdown(deadline).await;
        place.acker.release();
        let deleted = match place.temporary.take() {
            Some(temporary) => temporary.delete().await,
            None => Ok(()),
        };
        let report = report(ended)?;
        deleted.map(|()| report).map_err(BusError::Broker)
    }

    /// [Stops](Subscription::stop), and deletes the queue with the events that wait in it, for every process of the service; also the
    /// queue of dead letters, if it is empty by then.
    ///
    /// # Errors
    /// As [`stop`](Subscription::stop). The queue is deleted also when the run did not end well: what was under way at the deadline
    /// goes with it, and the error's [report](BusError::report) says how many that were.
    ///
    /// # Cancel safety
    /// Dropping the future stops the subscription; the queues may be there or not.
    pub async fn unsubscribe(self, deadline: Duration) -> Result<Unsubscribed, BusError> {
        let Subscription { run, place } = self;
        let ended = run.shutdown(deadline).await;
        place.acker.release();
        let deleting = async {
            let Place { broker, queue, dead, .. } = &place;
            let deleted = broker.delete_queue(queue).await?;
            let Some(dead) = dead else { return Ok((deleted, 0)) };
            let dead_letters = broker.stats(dead).await?.total();
            if dead_letters == 0 {
                broker.delete_queue(dead).await?;
            }
            Ok((deleted, dead_letters))
        };
        let gone: Result<_, BrokerError> = deleting.await;
        let report = report(ended)?;
        let (deleted, dead_letters) = gone.map_err(BusError::Broker)?;
        Ok(Unsubscribed { report, deleted, dead_letters })
    }
}

fn report(ended: Result<((), Report), RunError>) -> Result<Report, BusError> {
    ended.map(|((), report)| report).map_err(BusError::Run)
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("queue", &self.place.queue)
            .field("statistics", &self.statistics())
            .finish_non_exhaustive()
    }
}

//! Subscriptions: all events, from where one of this name has come, and then whatever is appended.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use futures_util::stream::{BoxStream, StreamExt, unfold};
use millstream_flow::flows::FromTracked;
use millstream_flow::{BoxError, Outcome, Pipe, Settler, Tracked, Tracker};
use millstream_message::{BrokerError, BrokerErrorKind, LongestRun, StreamOffset};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::Inner;
use super::RecordedEvent;
use super::error::StoreError;
use super::read::{Filter, Tail};
use super::types::CatchUpStatistics;

/// The time between two saves of a subscription's place: a process that is killed repeats what it settled since the last one.
const SAVE_EVERY: Duration = Duration::from_millis(200);

/// Entries without an event that is wanted, after which the place goes on: so many are read again at most.
const PASSED_MAX: u64 = 1000;

/// How often a broker that is out of reach is asked to save the place of a subscription that has gone.
const LAST_TRIES: u32 = 5;

/// What is to be subscribed to: [`EventStore::subscribe`](crate::EventStore::subscribe).
///
/// ```
/// # use millstream_events::{Event, EventStore, Expected, Filter};
/// # use millstream_message::Message;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// # let broker = millstream_embedded::open(&"memory:".parse()?).await?;
/// let store = EventStore::open(broker, "log").await?;
/// let placed = |order: u32| Event::new("order-placed", Message::new(order.to_string()));
/// store.append("order-1", Expected::Any, [placed(1)]).await?;
///
/// // A projection: it hears what was there before, and what comes.
/// let orders = store.subscribe("orders").filter(Filter::all().types(["order-placed"])).open().await?;
/// let (seen, mut events) = tokio::sync::mpsc::channel(8);
/// let run = orders.flow().map_async(1, move |event| {
///     let seen = seen.clone();
///     async move { seen.send(event.version).await }
/// }).for_each(drop).start();
/// store.append("order-2", Expected::Any, [placed(2)]).await?;
/// assert_eq!((events.recv().await, events.recv().await), (Some(0), Some(0)));
/// run.shutdown(std::time::Duration::from_secs(1)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "nothing is subscribed to before `open`"]
pub struct CatchUp {
    store: Arc<Inner>,
    name: String,
    filter: Filter,
    new_only: bool,
}

impl fmt::Debug for CatchUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CatchUp { name, filter, new_only, .. } = self;
        let mut out = f.debug_struct("CatchUp");
        out.field("name", name).field("filter", filter).field("new_only", new_only).finish_non_exhaustive()
    }
}

impl CatchUp {
    pub(super) fn new(store: Arc<Inner>, name: String) -> CatchUp {
        CatchUp { store, name, filter: Filter::default(), new_only: false }
    }

    /// Only these events. Others are passed over; the subscription's place goes on behind them with the next that it gets, and after a
    /// thousand entries without one.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// The first time, only what is appended from now on; else all that is there comes first. A subscription that has come
    /// somewhere before goes on from there in any case.
    pub fn new_only(mut self) -> Self {
        self.new_only = true;
        self
    }

    /// Looks up how far the subscription has come.
    ///
    /// # Errors
    /// If its name is empty, or a subscription of that name is open by this handle of the store or a clone of it; if the broker cannot
    /// tell its place.
    pub async fn open(self) -> Result<EventSubscription, StoreError> {
        let shared = &self.store.shared;
        shared.check()?;
        if self.name.is_empty() {
            return Err(StoreError::Invalid(
                "a subscription needs a name, by which its place is kept".to_owned(),
            ));
        }
        let (place, before) = self.store.savers.claim(&shared.log, &self.name)?;
        if let Some(before) = before {
            // Then what it had to save is saved.
            let _ = before.await;
        }
        let failed = |error| StoreError::broker(&shared.log, error);
        let opened = StreamOffset::open(shared.broker.clone(), &shared.log, &self.name).await;
        let (offset, from) = opened.map_err(failed)?;
        let from = match from {
            Some(from) => from,
            None => {
                // It has begun, though it may hear of nothing before it is opened again.
                let from = if self.new_only { shared.reached() } else { 0 };
                offset.store(from).await.map_err(failed)?;
                from
            }
        };
        place.begin(from);
        self.store.savers.spawn(&self.name, save(offset, place.reached.subscribe()));
        let tail = Tail::new(shared.clone(), from, None, self.filter);
        Ok(EventSubscription { store: self.store, tail, place })
    }
}

/// All events from where a subscription has come: [`CatchUp::open`].
///
/// # Ordering
/// That of the log, for all streams together.
///
/// # Delivery
/// At least once: the place that is kept goes behind an entry of the log when all of its events, and all before, are settled. It is
/// saved every 200 ms at most, and when the subscription has gone; a process that is killed gets again what it settled since.
/// [`RecordedEvent::position`] tells what came before.
pub struct EventSubscription {
    /// Whose task reads what is appended.
    store: Arc<Inner>,
    tail: Tail,
    place: Arc<Place>,
}

impl fmt::Debug for EventSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventSubscription").field("next", &self.tail.next).finish_non_exhaustive()
    }
}

impl EventSubscription {
    /// The offset of the first entry that it reads.
    pub fn offset(&self) -> u64 {
        self.tail.next
    }

    /// The events as a flow that does not end by itself. An event is settled when its item completes, is dropped by declaration, or
    /// dies: send those that die [elsewhere](Pipe::dead_letter), since they do not come again.
    ///
    /// # Backpressure
    /// Entries are read when the flow asks for them, up to 256 at once.
    ///
    /// # Errors
    /// A log that cannot be read fails the run.
    pub fn flow(self) -> Pipe<FromTracked<SubscribedEvents>> {
        let chunks = unfold((Some(self.tail), self.place.clone()), |(tail, place)| async move {
            let mut tail = tail?;
            match tail.next_chunk_telling(|next| place.passed(next)).await {
                Ok(events) => Some((Ok((events, tail.next)), (Some(tail), place))),
                Err(error) => Some((Err(error), (None, place))),
            }
        });
        let tracker = Tracker::new(Settle(self.place.clone()));
        let account = tracker.account();
        let source = SubscribedEvents {
            _store: self.store,
            chunks: chunks.boxed(),
            ready: VecDeque::new(),
            tracker,
            place: self.place,
        };
        Pipe::from_tracked(account, source).named("events")
    }
}

/// What [`EventSubscription::flow`] reads.
pub struct SubscribedEvents {
    _store: Arc<Inner>,
    chunks: BoxStream<'static, Result<(Vec<RecordedEvent>, u64), StoreError>>,
    ready: VecDeque<RecordedEvent>,
    tracker: Tracker,
    place: Arc<Place>,
}

impl fmt::Debug for SubscribedEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SubscribedEvents")
    }
}

impl Stream for SubscribedEvents {
    type Item = Result<Tracked<RecordedEvent>, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let this = &mut *self;
            if let Some(value) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Tracked { value, token: this.tracker.issue() })));
            }
            match ready!(this.chunks.poll_next_unpin(cx)) {
                Some(Ok((events, next))) => {
                    this.place.handed_out(this.tracker.issued(), &events, next);
                    this.ready.extend(events);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(None),
            }
        }
    }
}

struct Settle(Arc<Place>);

impl Settler for Settle {
    fn settle(&self, items: Range<u64>, outcome: &Outcome) {
        if !matches!(outcome, Outcome::Abandoned) {
            self.0.settled(items);
        }
    }
}

/// How far a subscription has come.
pub(crate) struct Place {
    reached: watch::Sender<u64>,
    ahead: Mutex<Ahead>,
}

/// What a subscription has read ahead of where it has come. All but the number of items in offsets of the log.
#[derive(Default)]
struct Ahead {
    settled: LongestRun<u64>,
    /// Items handed out.
    items: u64,
    /// Behind what was handed out or passed over.
    read: u64,
    /// How much of that counts once all items are settled.
    marked: u64,
}

impl Place {
    fn begin(&self, from: u64) {
        let mut ahead = self.ahead();
        (ahead.read, ahead.marked) = (from, from);
        self.reached.send_if_modified(|reached| {
            *reached = from;
            false
        });
    }

    fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it has come, and how many entries of a log with this end it has still to see to.
    fn of(&self, end: u64) -> (u64, u64) {
        let ahead = self.ahead();
        let reached = *self.reached.borrow();
        let seen = if ahead.settled.is_reached() { ahead.read } else { reached };
        (reached, end.saturating_sub(seen))
    }

    /// Up to `next` there is nothing that is wanted. That is kept now and then, not each time somebody else's events have come.
    fn passed(&self, next: u64) {
        let mut ahead = self.ahead();
        ahead.read = next;
        if next.saturating_sub(ahead.marked) < PASSED_MAX {
            return;
        }
        ahead.marked = next;
        let items = ahead.items;
        let reached = ahead.settled.mark(items, next);
        self.reach(reached);
    }

    fn reach(&self, reached: Option<u64>) {
        if let Some(offset) = reached {
            self.reached.send_replace(offset);
        }
    }

    /// Items from this number on are these events, after which comes what is at `next`. Nobody has settled one of them yet.
    fn handed_out(&self, first: u64, events: &[RecordedEvent], next: u64) {
        let mut ahead = self.ahead();
        let mut item = first;
        let mut entries =
            events.chunk_by(|one, other| one.position.offset == other.position.offset).peekable();
        while let Some(entry) = entries.next() {
            item += entry.len() as u64;
            let behind = if entries.peek().is_some() { entry[0].position.offset + 1 } else { next };
            ahead.settled.mark(item, behind);
        }
        (ahead.items, ahead.read, ahead.marked) = (item, next, next);
    }

    fn settled(&self, items: Range<u64>) {
        let mut ahead = self.ahead();
        let reached = ahead.settled.settle(items);
        self.reach(reached);
    }
}

/// Saves what is reached now and then, and once more when the place has gone.
async fn save(offset: StreamOffset, mut reached: watch::Receiver<u64>) {
    let mut last_tries = LAST_TRIES;
    loop {
        // An error means that the place has gone; what it reached last may not have been seen.
        let _ = reached.changed().await;
        let gone = reached.has_changed().is_err();
        let at = *reached.borrow_and_update();
        match offset.store(at).await {
            Err(error) if error.kind() == BrokerErrorKind::Unavailable && (!gone || last_tries > 0) => {
                last_tries -= u32::from(gone);
                reached.mark_changed();
                sleep(SAVE_EVERY).await;
                continue;
            }
            // With the log its places go.
            Err(error) if error.kind() != BrokerErrorKind::NotFound => {
                tracing::warn!(%error, "the place of a subscription is not saved: its last events will come again");
            }
            _ => {}
        }
        if gone {
            return;
        }
        sleep(SAVE_EVERY).await;
    }
}

/// The subscriptions of a store, by name, and the tasks that save their places. A task ends with its subscription.
#[derive(Default)]
pub(crate) struct Savers(Mutex<HashMap<String, Open>>);

struct Open {
    place: Weak<Place>,
    saver: Option<JoinHandle<()>>,
}

impl Savers {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a subscription of this name, and what saves that of one before.
    fn claim(&self, log: &str, name: &str) -> Result<(Arc<Place>, Option<JoinHandle<()>>), StoreError> {
        let mut all = self.all();
        let before = match all.get_mut(name) {
            Some(open) if open.place.strong_count() > 0 => {
                let text = format!(
                    "a subscription `{name}` is open already; give this one another name to get every event too"
                );
                return Err(StoreError::broker(log, BrokerError::new(BrokerErrorKind::InUse, text)));
            }
            Some(open) => open.saver.take(),
            None => None,
        };
        let place = Arc::new(Place { reached: watch::Sender::new(0), ahead: Mutex::default() });
        all.insert(name.to_owned(), Open { place: Arc::downgrade(&place), saver: None });
        Ok((place, before))
    }

    fn spawn(&self, name: &str, saving: impl Future<Output = ()> + Send + 'static) {
        if let Some(open) = self.all().get_mut(name) {
            open.saver = Some(tokio::spawn(saving));
        }
    }

    /// How far those have come that are open, in a log with this end; by name.
    pub(super) fn places(&self, end: u64) -> Vec<CatchUpStatistics> {
        let all = self.all();
        let open = all.iter().filter_map(|(name, open)| Some((name, open.place.upgrade()?)));
        let mut places: Vec<_> = open
            .map(|(name, place)| {
                let (offset, behind) = place.of(end);
                CatchUpStatistics { name: name.clone(), offset, behind }
            })
            .collect();
        places.sort_by(|one, other| one.name.cmp(&other.name));
        places
    }

    /// Waits for what subscriptions that have gone had to save.
    pub(super) async fn saved(&self) {
        let gone: Vec<JoinHandle<()>> = {
            let mut all = self.all();
            let gone = all.values_mut().filter(|open| open.place.strong_count() == 0);
            gone.filter_map(|open| open.saver.take()).collect()
        };
        for saver in gone {
            // It was not aborted, and does not panic.
            let _ = saver.await;
        }
    }
}

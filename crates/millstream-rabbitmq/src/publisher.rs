//! What is published: a window of messages that are not confirmed, kept until they are.

mod disliked;
mod latency;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millstream_message::{BrokerError, BrokerErrorKind, Publish, PublishOutcome, Refusal, Value};
use tokio::sync::Semaphore;

use self::disliked::Disliked;
pub use self::latency::ConfirmLatency;
use crate::confirms::{Confirms, Entry, GivenUp};
use crate::headers::DELAY_QUEUE;
use crate::hub::Known;
use crate::options::Options;
use crate::proto::properties::USER_ID;
use crate::proto::{Closed, Connection};
use crate::replies;
use crate::told::{Board, Told};

/// Messages on their way to the broker, in order. It outlives connections: what was not confirmed is sent again.
pub(crate) struct Outbox {
    confirms: Confirms,
    window: Arc<Window>,
    board: Arc<Board>,
    known: Arc<Known>,
    /// How many batches were handed over.
    batches: u64,
    confirm_timeout: Option<Duration>,
    /// When the first batch was handed over that the socket's task has not looked at: all of them are counted from then, for a
    /// clock is not read for each.
    handed: Option<Duration>,
    pub(crate) latency: ConfirmLatency,
    /// How many messages were settled when the channel was last closed, and how often it was since.
    closes: (u64, u32),
    /// When to look next whether something holds up what is known behind it, and the first that was not settled at the last look.
    look: (Option<Duration>, u64),
    /// The first that was not settled, if a look found that it holds up what is behind it: until it is settled that is told at once.
    stuck: Option<u64>,
}

/// What is known is told in order, for that costs next to nothing. What has held it up for so long does so no longer.
const LOOK: Duration = Duration::from_millis(100);
/// With so many messages behind one that is not confirmed, which take a bit each, it holds up publishers again.
const BEHIND_MAX: u64 = 1 << 26;

/// How much may be published and not confirmed.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) items: Semaphore,
    pub(crate) bytes: Semaphore,
    pub(crate) items_max: u32,
    pub(crate) bytes_max: u32,
    pub(crate) confirmed: AtomicU64,
}

impl Window {
    pub(crate) fn new(options: &Options) -> Window {
        // A semaphore is asked for at most 2^32 - 1.
        let most = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let (items_max, bytes_max) = (most(options.publish_window), most(options.publish_window_bytes));
        Window {
            items: Semaphore::new(items_max as usize),
            bytes: Semaphore::new(bytes_max as usize),
            items_max,
            bytes_max,
            confirmed: AtomicU64::new(0),
        }
    }

    /// Gives back what batches have taken.
    fn release(&self, (items, bytes): (usize, usize)) {
        if items > 0 {
            self.items.add_permits(items);
            self.bytes.add_permits(bytes);
        }
    }
}

impl Outbox {
    pub(crate) fn new(window: Arc<Window>, known: Arc<Known>, confirm_timeout: Option<Duration>) -> Outbox {
        Outbox {
            confirms: Confirms::default(),
            window,
            board: Arc::default(),
            known,
            batches: 0,
            confirm_timeout,
            handed: None,
            latency: ConfirmLatency::default(),
            closes: (0, 0),
            look: (None, 0),
            stuck: None,
        }
    }

    /// Takes a batch, and sends it if there is a channel. What will become of it. The clock is read once between two looks of the
    /// socket's task, which every batch wakes.
    pub(crate) fn push(
        &mut self,
        mut entry: Entry,
        to: Option<(&mut Connection, u16)>,
        clock: impl FnOnce() -> Duration,
    ) -> Told {
        let now = *self.handed.get_or_insert_with(clock);
        let told = Told::new(self.board.clone(), self.batches, entry.total());
        entry.batch = self.batches;
        entry.handed = now;
        self.batches += 1;
        let entry = self.confirms.push(entry);
        if let Some((connection, channel)) = to {
            send(entry, &self.known, connection, channel);
        }
        self.resolve(now);
        told
    }

    /// A new channel is there: what is not settled is sent on it.
    pub(crate) fn restart(&mut self, connection: &mut Connection, channel: u16, now: Duration) {
        for entry in self.confirms.restart() {
            send(entry, &self.known, connection, channel);
        }
        // Numbers begin again.
        self.stuck = None;
        self.resolve(now);
    }

    pub(crate) fn ack(&mut self, tag: u64, multiple: bool) {
        if !self.confirms.ack(tag, multiple) {
            tracing::warn!(tag, "RabbitMQ confirms what was never published");
        }
    }

    pub(crate) fn nack(&mut self, tag: u64, multiple: bool) {
        if !self.confirms.nack(tag, multiple) {
            tracing::warn!(tag, "RabbitMQ refuses what was never published");
        }
    }

    pub(crate) fn returned(&mut self, exchange: &str, key: &str, body: &[u8], reason: &str) {
        // The queue in which it was to wait for its time: the next one declares it first.
        let waits = exchange.is_empty() && key.starts_with(DELAY_QUEUE);
        let meant = if waits { self.known.waiting.gone(key) } else { None };
        if !self.confirms.returned(exchange, key, body, reason, meant) {
            tracing::warn!(exchange, key, "RabbitMQ returns what was never published");
        }
    }

    /// Tells those who wait for what is known now.
    pub(crate) fn resolve(&mut self, now: Duration) {
        let (mut any, mut others, mut timing) = (false, Vec::new(), self.latency.at(now));
        let (mut count, mut items, mut bytes) = (0, 0, 0);
        while let Some(entry) = self.confirms.pop_known() {
            any = true;
            timing.add(&entry);
            count += entry.publishes().len() as u64;
            items += entry.permits.0 as usize;
            bytes += entry.permits.1 as usize;
            let batch = entry.batch;
            let outcomes = entry.outcomes();
            if !outcomes.all_confirmed() {
                others.push((batch, outcomes));
            }
        }
        drop(timing);
        if any {
            self.window.confirmed.fetch_add(count, Ordering::Relaxed);
            self.window.release((items, bytes));
            self.board.tell(self.mark(), others);
        }
        let (first, next) = self.confirms.open();
        if self.stuck == Some(first) && next - first < BEHIND_MAX {
            self.tell_early(now);
        }
    }

    /// Below it all batches are known.
    fn mark(&self) -> u64 {
        self.confirms.first_batch().unwrap_or(self.batches)
    }

    /// Tells what is known behind what has not been settled since the last look: a queue that does not confirm holds up its own
    /// messages only, until the window is full of those.
    fn look(&mut self, now: Duration) {
        let (at, before) = self.look;
        if at.is_some_and(|at| now < at) {
            return;
        }
        let (first, next) = self.confirms.open();
        let stuck = at.is_some() && first == before && next > first;
        if stuck && next - first < BEHIND_MAX {
            self.tell_early(now);
        }
        self.stuck = stuck.then_some(first);
        self.look = (self.confirms.first_batch().map(|_| now + LOOK), first);
    }

    /// Tells what is known behind the first that is not.
    fn tell_early(&mut self, now: Duration) {
        let entries = self.confirms.take_known();
        if entries.is_empty() {
            return;
        }
        let (mut count, mut items, mut bytes) = (0, 0, 0);
        let mut timing = self.latency.at(now);
        let told = entries.into_iter().map(|entry| {
            timing.add(&entry);
            count += entry.publishes().len() as u64;
            items += entry.permits.0 as usize;
            bytes += entry.permits.1 as usize;
            (entry.batch, entry.outcomes())
        });
        self.board.tell_early(told.collect());
        self.window.confirmed.fetch_add(count, Ordering::Relaxed);
        self.window.release((items, bytes));
    }

    /// The server closed the channel. What it did not like is refused; the rest will be sent again.
    pub(crate) fn channel_closed(&mut self, closed: &Closed) {
        let refused = match Disliked::of(closed) {
            Some(Disliked::Missing(exchange)) => {
                // Whoever publishes to it next looks first, and closes no channel.
                self.known.exchanges.lock().remove(exchange);
                let refusal = || Refusal::NoExchange { exchange: exchange.to_owned() };
                let mut last = true;
                self.confirms.tell(
                    |publish| publish.to.exchange() == exchange,
                    |_| {
                        // The last one was not stored, for it was sent when the exchange was gone; those before it perhaps.
                        if std::mem::take(&mut last) {
                            PublishOutcome::Refused(refusal())
                        } else {
                            maybe(closed)
                        }
                    },
                )
            }
            Some(Disliked::Forbidden { exchange, key }) => self.confirms.tell(
                |publish| publish.to.exchange() == exchange && key.is_none_or(|key| key == publish.to.key()),
                |_| PublishOutcome::Refused(invalid(closed)),
            ),
            Some(Disliked::Larger(max)) => self.confirms.tell(
                |publish| publish.message.body().len() as u64 > max,
                |publish| {
                    let len = publish.message.body().len() as u64;
                    PublishOutcome::Refused(Refusal::TooLarge { len, max })
                },
            ),
            Some(Disliked::User(user)) => self.confirms.tell(
                |publish| publish.message.header(USER_ID).and_then(Value::as_text) == Some(user),
                |_| PublishOutcome::Refused(invalid(closed)),
            ),
            None => false,
        };
        let confirmed = self.window.confirmed.load(Ordering::Relaxed);
        if refused || self.closes.0 != confirmed {
            self.closes = (confirmed, 0);
        }
        if refused {
            return;
        }
        tracing::warn!(error = %closed.text, "the publishing channel was closed; opening another");
        self.closes.1 += 1;
        if self.closes.1 >= CLOSES_MAX {
            // Again and again, and nothing was confirmed between: what is sent first is what it does not like.
            self.confirms.refuse_first(|_| invalid(closed));
            self.closes.1 = 0;
        }
    }

    pub(crate) fn deadline(&self) -> Option<Duration> {
        [self.confirm_deadline(), self.look.0].into_iter().flatten().min()
    }

    /// When the first that waits is to be told that nothing is known.
    fn confirm_deadline(&self) -> Option<Duration> {
        Some(self.confirms.first_handed()? + self.confirm_timeout?)
    }

    /// Gives up what has waited for too long, and tells what something else held up. The socket's task does so at each of its turns.
    pub(crate) fn expire(&mut self, now: Duration) {
        self.handed = None;
        while self.confirm_deadline().is_some_and(|deadline| deadline <= now) {
            let text = "no confirm came within `confirm_timeout`; the message may be stored or not";
            self.give_up_first(&BrokerError::new(BrokerErrorKind::Unavailable, text), now);
        }
        self.look(now);
    }

    /// Gives up the first batch, and tells what was known behind it. False if there was none.
    fn give_up_first(&mut self, error: &BrokerError, now: Duration) -> bool {
        let Some(GivenUp { outcomes, permits, known, batch }) = self.confirms.give_up_first(error) else {
            return false;
        };
        self.window.confirmed.fetch_add(known, Ordering::Relaxed);
        self.window.release((permits.0 as usize, permits.1 as usize));
        self.board.tell(self.mark(), vec![(batch, outcomes)]);
        self.resolve(now);
        true
    }

    /// Nothing will be sent any more.
    pub(crate) fn fail(&mut self, error: &BrokerError, now: Duration) {
        while self.give_up_first(error, now) {}
        self.window.items.close();
        self.window.bytes.close();
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.confirms.in_flight()
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.board.end();
    }
}

fn send(entry: &Entry, known: &Known, connection: &mut Connection, channel: u16) {
    for Publish { to, message } in entry.publishes() {
        if replies::are_asked_for(message)
            && let Some(address) = known.replies.address()
        {
            // Each time it is sent: another connection receives them at another address.
            let message = message.clone().with_reply_to(address);
            connection.publish(channel, to.exchange(), to.key(), &message);
        } else {
            connection.publish(channel, to.exchange(), to.key(), message);
        }
    }
}

/// How often a channel may be closed for a reason that is not known here, with nothing confirmed between.
const CLOSES_MAX: u32 = 3;

/// What may be stored or not, for a reason that has to do with another message.
fn maybe(closed: &Closed) -> PublishOutcome {
    let text =
        format!("{} ({}), and no confirm came before: it may be stored or not", closed.text, closed.code);
    PublishOutcome::Unconfirmed(BrokerError::new(BrokerErrorKind::Unavailable, text))
}

fn invalid(closed: &Closed) -> Refusal {
    let text = format!("{} ({})", closed.text, closed.code);
    Refusal::Broker(BrokerError::new(BrokerErrorKind::Invalid, text))
}

#[cfg(test)]
mod tests;

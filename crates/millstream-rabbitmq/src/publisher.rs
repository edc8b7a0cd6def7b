//! What is published: a window of messages that are not confirmed, kept until they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millstream_message::{BrokerError, BrokerErrorKind, Publish, PublishOutcome, Refusal, Value};
use tokio::sync::Semaphore;

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
    /// How many messages were settled when the channel was last closed, and how often it was since.
    closes: (u64, u32),
}

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
    pub(crate) fn new(window: Arc<Window>, known: Arc<Known>) -> Outbox {
        let (confirms, board) = (Confirms::default(), Arc::default());
        Outbox { confirms, window, board, known, batches: 0, closes: (0, 0) }
    }

    /// Takes a batch, and sends it if there is a channel. What will become of it.
    pub(crate) fn push(&mut self, entry: Entry, to: Option<(&mut Connection, u16)>) -> Told {
        let told = Told::new(self.board.clone(), self.batches, entry.total());
        self.batches += 1;
        let entry = self.confirms.push(entry);
        if let Some((connection, channel)) = to {
            send(entry, &self.known, connection, channel);
        }
        self.resolve();
        told
    }

    /// A new channel is there: what is not settled is sent on it.
    pub(crate) fn restart(&mut self, connection: &mut Connection, channel: u16) {
        for entry in self.confirms.restart() {
            send(entry, &self.known, connection, channel);
        }
        self.resolve();
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
    pub(crate) fn resolve(&mut self) {
        let (mut batches, mut others) = (0, Vec::new());
        let (mut count, mut items, mut bytes) = (0, 0, 0);
        while let Some(entry) = self.confirms.pop_known() {
            count += entry.publishes().len() as u64;
            items += entry.permits.0 as usize;
            bytes += entry.permits.1 as usize;
            let outcomes = entry.outcomes();
            if !outcomes.all_confirmed() {
                others.push((batches, outcomes));
            }
            batches += 1;
        }
        if batches > 0 {
            self.window.confirmed.fetch_add(count, Ordering::Relaxed);
            self.window.release((items, bytes));
            self.board.tell(batches, others);
        }
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
        self.confirms.deadline()
    }

    /// Gives up what has waited for too long.
    pub(crate) fn expire(&mut self, now: Duration) {
        while self.confirms.deadline().is_some_and(|deadline| deadline <= now) {
            let text = "no confirm came within `confirm_timeout`; the message may be stored or not";
            self.give_up_first(&BrokerError::new(BrokerErrorKind::Unavailable, text));
        }
    }

    /// Gives up the first batch, and tells what was known behind it. False if there was none.
    fn give_up_first(&mut self, error: &BrokerError) -> bool {
        let Some(GivenUp { outcomes, permits, known }) = self.confirms.give_up_first(error) else {
            return false;
        };
        self.window.confirmed.fetch_add(known, Ordering::Relaxed);
        self.window.release((permits.0 as usize, permits.1 as usize));
        self.board.tell(1, vec![(0, outcomes)]);
        self.resolve();
        true
    }

    /// Nothing will be sent any more.
    pub(crate) fn fail(&mut self, error: &BrokerError) {
        while self.give_up_first(error) {}
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

/// What the server did not like, as it says.
#[derive(Debug, PartialEq)]
enum Disliked<'a> {
    /// `NOT_FOUND - no exchange 'x' in vhost '/'`.
    Missing(&'a str),
    /// `ACCESS_REFUSED - cannot publish to internal exchange 'x' in vhost '/'`; `access to exchange 'x' in vhost '/' refused for
    /// user 'u'`; `access to topic 'k' in exchange 'x' in vhost …`.
    Forbidden { exchange: &'a str, key: Option<&'a str> },
    /// `PRECONDITION_FAILED - message size 11 is larger than configured max size 10`.
    Larger(u64),
    /// `PRECONDITION_FAILED - user_id property set to 'x' but authenticated user was 'y'`.
    User(&'a str),
}

impl Disliked<'_> {
    fn of(closed: &Closed) -> Option<Disliked<'_>> {
        let text = closed.text.as_str();
        let exchange = || {
            let (_, rest) = text.split_once("exchange '")?;
            let (name, _) = rest.rsplit_once("' in vhost")?;
            Some(if name == "amq.default" { "" } else { name })
        };
        match closed.code {
            404 => exchange().map(Disliked::Missing),
            403 => {
                let topic =
                    text.split_once("topic '").and_then(|(_, rest)| rest.split_once("' in exchange '"));
                exchange().map(|exchange| Disliked::Forbidden { exchange, key: topic.map(|(key, _)| key) })
            }
            406 => match text.split_once("configured max size ") {
                Some((_, max)) => max.trim().parse().ok().map(Disliked::Larger),
                None => {
                    let (_, rest) = text.split_once("user_id property set to '")?;
                    rest.rsplit_once("' but ").map(|(user, _)| Disliked::User(user))
                }
            },
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use millstream_message::{Address, Message};

    fn outbox(known: &Arc<Known>) -> Outbox {
        let options = Options::parse("amqp://localhost").expect("a URL");
        Outbox::new(Arc::new(Window::new(&options)), known.clone())
    }

    /// Hands one message over, as if it was sent.
    fn sent(outbox: &mut Outbox, to: Address, deadline: Option<Duration>) -> Told {
        let publish = Publish { to, message: Message::new("x") };
        outbox.push(Entry::new(vec![publish], Vec::new(), (0, 0), deadline), None)
    }

    fn outcome(told: Told) -> PublishOutcome {
        told.now_or_never().expect("it is known").get(0)
    }

    fn no_exchange(name: &str) -> Closed {
        let text = format!("NOT_FOUND - no exchange '{name}' in vhost '/'");
        Closed { code: 404, text, cause: (60, 40) }
    }

    #[test]
    fn an_exchange_that_has_gone_is_not_known_any_more() {
        let known = Arc::<Known>::default();
        known.exchanges.lock().extend(["gone", "there"].map(str::to_owned));
        outbox(&known).channel_closed(&no_exchange("gone"));
        assert_eq!(known.exchanges.lock().iter().collect::<Vec<_>>(), ["there"]);
    }

    #[test]
    fn only_the_last_one_is_surely_not_stored_when_its_exchange_has_gone() {
        let mut outbox = outbox(&Arc::default());
        let told = ["gone", "there", "gone"].map(|to| sent(&mut outbox, Address::new(to, ""), None));
        outbox.channel_closed(&no_exchange("gone"));
        outbox.fail(&BrokerError::new(BrokerErrorKind::Unavailable, "closed"));
        let [first, other, last] = told.map(outcome);
        assert!(matches!(first, PublishOutcome::Unconfirmed(error) if error.to_string().contains("gone")));
        assert!(matches!(other, PublishOutcome::Unconfirmed(error) if error.to_string().contains("closed")));
        assert!(matches!(last, PublishOutcome::Refused(Refusal::NoExchange { .. })));
    }

    #[test]
    fn what_was_confirmed_behind_what_is_given_up_is_told_as_confirmed() {
        let mut outbox = outbox(&Arc::default());
        let late = Some(Duration::from_secs(1));
        let [first, second] = [0; 2].map(|_| sent(&mut outbox, Address::queue("q"), late));
        outbox.ack(2, false);
        outbox.resolve();
        outbox.expire(Duration::from_secs(2));
        assert!(matches!(outcome(first), PublishOutcome::Unconfirmed(_)));
        assert!(outcome(second).is_confirmed());
        assert_eq!(outbox.window.confirmed.load(Ordering::Relaxed), 1, "whose outcome is known");
    }

    #[test]
    fn a_message_whose_delay_queue_has_gone_comes_back_from_where_it_was_to_go() {
        let known = Arc::<Known>::default();
        let (mut outbox, queue, to) = (outbox(&known), "millstream.delay.5.1..q", Address::queue("q"));
        known.waiting.add(queue, &to);
        let told = sent(&mut outbox, Address::queue(queue), None);
        outbox.returned("", queue, b"x", "NO_ROUTE");
        outbox.ack(1, false);
        outbox.resolve();
        let PublishOutcome::Unroutable(returned) = outcome(told) else { panic!("it came back") };
        assert_eq!(returned.publish.to, to);
        assert_eq!(known.waiting.gone(queue), None, "the next one declares it");
    }

    #[test]
    fn what_the_server_did_not_like_is_read_from_its_words() {
        let of = |code: u16, text: &str| {
            let closed = Closed { code, text: text.to_owned(), cause: (60, 40) };
            format!("{:?}", Disliked::of(&closed))
        };
        assert_eq!(
            of(404, "NOT_FOUND - no exchange 'it's mine' in vhost '/'"),
            "Some(Missing(\"it's mine\"))"
        );
        assert_eq!(of(404, "NOT_FOUND - no queue 'x' in vhost '/'"), "None");
        let text = "ACCESS_REFUSED - cannot publish to internal exchange 'x' in vhost '/'";
        assert_eq!(of(403, text), "Some(Forbidden { exchange: \"x\", key: None })");
        let text = "ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused for user 'u'";
        assert_eq!(of(403, text), "Some(Forbidden { exchange: \"\", key: None })");
        let text = "ACCESS_REFUSED - access to topic 'a.b' in exchange 'x' in vhost '/' refused for user 'u'";
        assert_eq!(of(403, text), "Some(Forbidden { exchange: \"x\", key: Some(\"a.b\") })");
        let text = "PRECONDITION_FAILED - message size 11 is larger than configured max size 10";
        assert_eq!(of(406, text), "Some(Larger(10))");
        let text = "PRECONDITION_FAILED - user_id property set to 'x' but authenticated user was 'y'";
        assert_eq!(of(406, text), "Some(User(\"x\"))");
        assert_eq!(of(541, "INTERNAL_ERROR"), "None");
    }
}

//! Replies that come without a queue: RabbitMQ's direct reply-to.
//!
//! They have a connection of their own, so that nothing that closes the channel of publishers loses them, and nothing that holds
//! them up holds up confirms. RabbitMQ makes the address of a request's replies when the request is published on the channel that
//! receives them, and tells it to whoever answers. So a message that no queue wants is published there, and comes back with the
//! address, which is put into requests when they are sent.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;
use millstream_message::{
    Acker, Address, BrokerError, Consumer, ConsumerSource, Delivery, DirectReplies, Headers, Message, Nack,
    Prefetch, Settle, Settled, StopWhen, Tag,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::proto::Method;

/// What a request names as where its reply is to go. The broker makes an address of it that leads to the channel.
pub(crate) const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// What has the broker send replies on a channel.
pub(crate) fn consume() -> Method {
    Method::BasicConsume {
        reserved_1: 0,
        queue: REPLY_TO.to_owned(),
        consumer_tag: "replies".to_owned(),
        // Nothing is acknowledged: what is not received is gone.
        flags: [false, true, false, false],
        arguments: Headers::new(),
    }
}

/// Whether the replies to a message are to come by [`REPLY_TO`].
pub(crate) fn are_asked_for(message: &Message) -> bool {
    !message.is_plain() && message.properties().reply_to.as_deref() == Some(REPLY_TO)
}

/// Replies that a receiver holds before nothing more is read from the connection, and their bytes.
const READY_MAX: usize = 10_000;
const READY_BYTES_MAX: usize = 16 << 20;

/// Those who wait for replies to what a handle publishes. A channel has one consumer of them, so they are told apart by what their
/// correlation ids begin with.
#[derive(Default)]
pub(crate) struct Replies {
    waiting: Mutex<Waiting>,
    /// What leads, or led, to the channel that receives them.
    address: watch::Sender<ReplyAddress>,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct ReplyAddress {
    last: Option<String>,
    /// The channel is there.
    current: bool,
}

#[derive(Default)]
struct Waiting {
    by_number: HashMap<u64, Weak<Receiver>>,
    next: u64,
    /// No more will come.
    over: bool,
}

/// Closed while a receiver holds as much as it may.
#[derive(Default)]
struct Gate {
    full: AtomicUsize,
    room: AtomicWaker,
}

/// The replies of one of them.
struct Receiver {
    received: Mutex<Received>,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Received {
    ready: VecDeque<Message>,
    bytes: usize,
    /// It keeps the gate closed.
    full: bool,
    waker: Option<Waker>,
    next: Tag,
    over: bool,
}

impl Replies {
    /// Where replies are to be sent, as far as is known.
    pub(crate) fn address(&self) -> Option<String> {
        self.address.borrow().last.clone()
    }

    pub(crate) fn have_address(&self) -> bool {
        self.address.borrow().current
    }

    /// Waits until replies would be received.
    pub(crate) async fn addressed(&self) {
        // It cannot fail: the sender is here.
        let _ = self.address.subscribe().wait_for(|address| address.current).await;
    }

    pub(crate) fn received_at(&self, address: String) {
        self.address.send_replace(ReplyAddress { last: Some(address), current: true });
    }

    pub(crate) fn not_received(&self) {
        self.address.send_modify(|address| address.current = false);
    }

    /// Whether somebody holds as many as may be. If so, who asks is woken when nobody does any more.
    pub(crate) fn poll_full(&self, cx: &Context<'_>) -> bool {
        self.gate.room.register(cx.waker());
        self.is_full()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.gate.full.load(Ordering::Acquire) > 0
    }

    /// One more who waits.
    pub(crate) fn receiver(&self) -> DirectReplies {
        let receiver = Arc::new(Receiver { received: Mutex::default(), gate: self.gate.clone() });
        let mut waiting = self.waiting.lock();
        receiver.received.lock().over = waiting.over;
        waiting.by_number.retain(|_, receiver| receiver.strong_count() > 0);
        waiting.next += 1;
        let number = waiting.next;
        waiting.by_number.insert(number, Arc::downgrade(&receiver));
        drop(waiting);
        let acker = Acker::new(receiver.clone());
        let source = Source { receiver, acker: acker.clone(), address: Address::queue(REPLY_TO) };
        DirectReplies {
            reply_to: REPLY_TO.to_owned(),
            correlation_prefix: format!("{number}."),
            consumer: Consumer::new(Box::new(source), acker),
        }
    }

    /// A reply came. Who is to be woken for it; nobody, if nobody waits for it any more.
    pub(crate) fn deliver(&self, message: Message) -> Option<Waker> {
        let number = message.properties().correlation_id.as_deref()?.split_once('.')?.0.parse().ok()?;
        let receiver = self.waiting.lock().by_number.get(&number)?.upgrade()?;
        let mut received = receiver.received.lock();
        if received.over {
            return None;
        }
        received.bytes += message.size();
        received.ready.push_back(message);
        if !received.full && (received.ready.len() >= READY_MAX || received.bytes >= READY_BYTES_MAX) {
            received.full = true;
            self.gate.full.fetch_add(1, Ordering::Release);
        }
        received.waker.take()
    }

    /// No more come.
    pub(crate) fn end(&self) {
        let mut waiting = self.waiting.lock();
        waiting.over = true;
        let receivers = std::mem::take(&mut waiting.by_number);
        drop(waiting);
        receivers.into_values().filter_map(|receiver| receiver.upgrade()).for_each(|receiver| receiver.end());
    }
}

impl Receiver {
    fn end(&self) {
        let mut received = self.received.lock();
        received.over = true;
        self.open_gate(&mut received);
        let waker = received.waker.take();
        drop(received);
        waker.into_iter().for_each(Waker::wake);
    }

    fn open_gate(&self, received: &mut Received) {
        if std::mem::take(&mut received.full) && self.gate.full.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.gate.room.wake();
        }
    }
}

/// There is nothing to settle: a reply that was sent is off the broker.
impl Settle for Receiver {
    fn queue(&self) -> &str {
        REPLY_TO
    }

    fn ack(&self, tags: &[Range<Tag>]) -> Settled {
        Settled { applied: tags.iter().map(|range| range.end.saturating_sub(range.start)).sum(), stale: 0 }
    }

    fn nack(&self, tags: &[Range<Tag>], _: &Nack) -> Settled {
        self.ack(tags)
    }

    fn stop(&self, _: StopWhen) {
        self.end();
    }

    /// Whoever takes none holds them up.
    fn pause(&self, _: bool) {}

    fn release(&self) {}

    fn prefetch(&self) -> Option<Prefetch> {
        None
    }

    fn set_prefetch(&self, _: NonZeroUsize) {}

    fn unsettled(&self) -> usize {
        0
    }
}

struct Source {
    receiver: Arc<Receiver>,
    acker: Acker,
    address: Address,
}

impl ConsumerSource for Source {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        into: &mut Vec<Delivery>,
    ) -> Poll<Result<usize, BrokerError>> {
        let mut received = self.receiver.received.lock();
        let count = received.ready.len().min(max);
        for _ in 0..count {
            let Some(message) = received.ready.pop_front() else { break };
            received.bytes -= message.size();
            received.next += 1;
            let (address, acker, tag) = (self.address.clone(), self.acker.clone(), received.next);
            into.push(Delivery { message, address, tag, redeliveries: 0, acker });
        }
        if received.ready.len() <= READY_MAX / 2 && received.bytes <= READY_BYTES_MAX / 2 {
            self.receiver.open_gate(&mut received);
        }
        if count > 0 || received.over {
            return Poll::Ready(Ok(count));
        }
        received.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Nobody takes them any more.
impl Drop for Source {
    fn drop(&mut self) {
        self.receiver.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn reply(to: &str) -> Message {
        Message::new(to.to_owned()).with_correlation_id(to)
    }

    #[test]
    fn everybody_gets_the_replies_to_their_own_requests() {
        let replies = Replies::default();
        let (mut one, mut two) = (replies.receiver(), replies.receiver());
        for number in ["1", "2"] {
            replies.deliver(reply(&format!("{}{number}", one.correlation_prefix)));
        }
        replies.deliver(reply(&format!("{}1", two.correlation_prefix)));
        for hostile in ["", "x", "99.1", ".", "1"] {
            replies.deliver(reply(hostile));
        }
        let next = |of: &mut DirectReplies| {
            let delivery = of.consumer.next().now_or_never()?.expect("it goes on").expect("read");
            Some(String::from_utf8_lossy(delivery.message.body()).into_owned())
        };
        assert_eq!(next(&mut one).as_deref(), Some("1.1"));
        assert_eq!(next(&mut one).as_deref(), Some("1.2"));
        assert_eq!(next(&mut two).as_deref(), Some("2.1"));
        assert_eq!((next(&mut one), next(&mut two)), (None, None));
        drop(one);
        assert!(replies.deliver(reply("1.3")).is_none(), "nobody waits for it");
        replies.end();
        assert!(two.consumer.next().now_or_never().expect("it has ended").is_none());
        assert!(replies.receiver().consumer.next().now_or_never().expect("at once").is_none());
    }

    #[test]
    fn who_holds_too_many_closes_the_gate_until_half_are_taken_or_nobody_wants_them() {
        let replies = Replies::default();
        let cx = Context::from_waker(Waker::noop());
        let fill = |of: &DirectReplies| {
            let mut count = 0;
            while !replies.poll_full(&cx) {
                replies.deliver(reply(&format!("{}{count}", of.correlation_prefix)));
                count += 1;
            }
            count
        };
        let (mut one, two) = (replies.receiver(), replies.receiver());
        assert_eq!(fill(&one), READY_MAX);
        let taken = one.consumer.next_chunk(READY_MAX / 2 - 1).now_or_never().expect("ready").expect("read");
        assert!(replies.poll_full(&cx));
        drop(taken);
        one.consumer.next_chunk(1).now_or_never().expect("ready").expect("read");
        assert!(!replies.poll_full(&cx), "half are taken");
        assert_eq!(fill(&two), READY_MAX);
        drop(two);
        assert!(!replies.poll_full(&cx), "nobody wants them");
        let large = Message::new(vec![0; READY_BYTES_MAX]).with_correlation_id("1.x");
        replies.deliver(large);
        assert!(replies.poll_full(&cx), "a large one fills it, too");
    }
}

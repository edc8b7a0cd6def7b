//! Replies that come without a queue: RabbitMQ's direct reply-to. They come on the channel that the requests were published on.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use millstream_message::{
    Acker, Address, BrokerError, Consumer, ConsumerSource, Delivery, DirectReplies, Headers, Message, Nack,
    Settle, Settled, StopWhen, Tag,
};
use parking_lot::Mutex;

use crate::proto::Method;

/// What a request names as where its reply is to go. The broker makes an address of it that leads to the channel.
pub(crate) const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// Those who wait for replies on a link. A channel has one consumer of them, so they are told apart by what their correlation ids
/// begin with.
#[derive(Default)]
pub(crate) struct Replies(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    by_number: HashMap<u64, Weak<Receiver>>,
    next: u64,
    /// No more will come.
    over: bool,
}

/// The replies of one of them.
struct Receiver(Mutex<Received>);

#[derive(Default)]
struct Received {
    ready: VecDeque<Message>,
    waker: Option<Waker>,
    next: Tag,
    over: bool,
}

impl Replies {
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

    /// One more who waits.
    pub(crate) fn receiver(&self) -> DirectReplies {
        let receiver = Arc::new(Receiver(Mutex::default()));
        let mut waiting = self.0.lock();
        receiver.0.lock().over = waiting.over;
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
        let receiver = self.0.lock().by_number.get(&number)?.upgrade()?;
        let mut received = receiver.0.lock();
        if received.over {
            return None;
        }
        received.ready.push_back(message);
        received.waker.take()
    }

    /// No more come.
    pub(crate) fn end(&self) {
        let mut waiting = self.0.lock();
        waiting.over = true;
        let receivers = std::mem::take(&mut waiting.by_number);
        drop(waiting);
        receivers.into_values().filter_map(|receiver| receiver.upgrade()).for_each(|receiver| receiver.end());
    }
}

impl Receiver {
    fn end(&self) {
        let mut received = self.0.lock();
        received.over = true;
        let waker = received.waker.take();
        drop(received);
        waker.into_iter().for_each(Waker::wake);
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

    /// Replies come as fast as there were requests, whether somebody takes them or not.
    fn pause(&self, _: bool) {}

    fn release(&self) {}

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
        let mut received = self.receiver.0.lock();
        let count = received.ready.len().min(max);
        for _ in 0..count {
            let Some(message) = received.ready.pop_front() else { break };
            received.next += 1;
            let (address, acker, tag) = (self.address.clone(), self.acker.clone(), received.next);
            into.push(Delivery { message, address, tag, redeliveries: 0, acker });
        }
        if count > 0 || received.over {
            return Poll::Ready(Ok(count));
        }
        received.waker = Some(cx.waker().clone());
        Poll::Pending
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
}

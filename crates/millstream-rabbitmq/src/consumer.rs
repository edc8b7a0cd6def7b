//! A consumer: what was delivered and not taken, what was taken and not settled, what the broker is to be told.

use std::collections::VecDeque;
use std::ops::Range;
use std::slice;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use millstream_message::{
    Acker, Address, BrokerError, BrokerErrorKind, ConsumeOptions, Consumer, ConsumerSource, Delivery,
    Message, Nack, Settle, Settled, StopWhen, Tag,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::headers;
use crate::hub::{Errand, Hub, Way};
use crate::link::{Channel, Link};
use crate::proto::{Closed, Connection, Content, Method};
use crate::unsettled::{Unsettled, Word};

/// What a consumer's handles, its link and whoever restores it share.
pub(crate) struct ConsumerCore {
    queue: String,
    pub(crate) options: ConsumeOptions,
    /// The name that the broker knows it by.
    pub(crate) name: String,
    link: Arc<Link>,
    hub: Arc<Hub>,
    state: Mutex<State>,
    /// Notified when the consumer has nothing left to give, or has ended.
    pub(crate) drained: Notify,
}

struct State {
    channel: Option<Channel>,
    ready: VecDeque<Ready>,
    unsettled: Unsettled<Kept>,
    /// What a tag of the channel is less than ours.
    offset: Tag,
    /// The last address, which the next delivery often has too.
    address: Address,
    delivered: u64,
    stop: Option<StopWhen>,
    cancel: Cancel,
    /// Nobody is left who could settle anything: the channel can go.
    abandoned: bool,
    /// The broker has taken it once.
    established: bool,
    end: Option<Result<(), BrokerError>>,
    waker: Option<Waker>,
    /// Among those with something to tell the broker.
    talking: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cancel {
    No,
    Wanted,
    Sent,
    Done,
}

/// What was delivered and nobody has taken.
struct Ready {
    tag: Tag,
    kept: Kept,
}

/// What is kept of a delivery until it is settled, to bring it elsewhere if that is what becomes of it.
#[derive(Clone)]
struct Kept {
    message: Message,
    address: Address,
    redeliveries: u32,
}

impl ConsumerCore {
    /// A consumer that has no channel yet.
    pub(crate) fn new(
        queue: String,
        name: String,
        options: ConsumeOptions,
        link: Arc<Link>,
        hub: Arc<Hub>,
    ) -> Arc<ConsumerCore> {
        let stop = options.stop_when_empty.then_some(StopWhen::Empty);
        Arc::new(ConsumerCore {
            queue,
            options,
            name,
            link,
            hub,
            state: Mutex::new(State {
                channel: None,
                ready: VecDeque::new(),
                unsettled: Unsettled::from(1),
                offset: 0,
                address: Address::queue(""),
                delivered: 0,
                stop,
                cancel: Cancel::No,
                abandoned: false,
                established: false,
                end: None,
                waker: None,
                talking: false,
            }),
            drained: Notify::new(),
        })
    }

    pub(crate) fn queue(&self) -> &str {
        &self.queue
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// What users hold.
    pub(crate) fn consumer(self: &Arc<Self>) -> Consumer {
        let acker = Acker::new(Arc::new(Handle(self.clone())));
        Consumer::new(Box::new(Source { core: self.clone(), acker: acker.clone() }), acker)
    }

    /// Whether it wants to go on on another channel.
    pub(crate) fn goes_on(&self) -> bool {
        let state = self.state.lock();
        !state.abandoned && state.end.is_none() && state.cancel == Cancel::No
    }

    /// It has this channel from now on.
    pub(crate) fn opened(&self, channel: Channel) {
        let mut state = self.state.lock();
        state.channel = Some(channel);
        state.offset = state.unsettled.next() - 1;
    }

    /// The broker has taken it.
    pub(crate) fn established(&self) {
        self.state.lock().established = true;
    }

    pub(crate) fn channel(&self) -> Option<Channel> {
        self.state.lock().channel
    }

    /// A message came. Who is to be woken for it.
    pub(crate) fn deliver(
        self: &Arc<Self>,
        redelivered: bool,
        exchange: &str,
        key: &str,
        content: Content,
    ) -> Option<Waker> {
        let mut state = self.state.lock();
        if state.address.key() != key || state.address.exchange() != exchange {
            state.address = Address::new(exchange, key);
        }
        let address = state.address.clone();
        let (message, address, redeliveries) =
            headers::received(content.into_message(), address, redelivered, &self.queue);
        let kept = Kept { message, address, redeliveries };
        let tag = state.unsettled.add(kept.clone());
        state.delivered += 1;
        if state.end.is_some() || state.abandoned {
            // It was on its way when the intake ended. The cancel is before this in the channel: it does not come again.
            state.unsettled.nack(&one(tag), true);
            if self.talks(&mut state) {
                self.link.has_words(self.clone());
            }
            return None;
        }
        state.ready.push_back(Ready { tag, kept });
        state.waker.take()
    }

    /// The connection is lost: the broker gives what is unsettled to somebody again.
    pub(crate) fn lost(&self) {
        let mut state = self.state.lock();
        self.forget(&mut state);
        if self.link.is_closing() {
            state.end.get_or_insert(Ok(()));
        }
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Nothing of the old channel counts any more.
    fn forget(&self, state: &mut State) {
        state.channel = None;
        state.ready.clear();
        state.unsettled.forget();
        state.talking = false;
        if matches!(state.cancel, Cancel::Wanted | Cancel::Sent) {
            state.cancel = Cancel::Done;
            self.hub.cancelled(&self.queue);
        }
        self.drained.notify_one();
    }

    /// The channel was closed: by the server, for this reason, or because we asked. Whether another is wanted, and who is to be
    /// woken.
    pub(crate) fn closed(&self, why: Option<&Closed>) -> (bool, Option<Waker>) {
        let mut state = self.state.lock();
        self.forget(&mut state);
        if let Some(why) = why.filter(|why| why.code == 404) {
            let text = format!("queue `{}`: {}", self.queue, why.text);
            state.end.get_or_insert(Err(BrokerError::new(BrokerErrorKind::NotFound, text)));
        }
        let goes_on = why.is_some() && state.established && state.end.is_none() && !state.abandoned;
        (goes_on, state.waker.take())
    }

    /// The server ended the consumer.
    pub(crate) fn gone(&self) -> Option<Waker> {
        let mut state = self.state.lock();
        let text =
            format!("queue `{}` was deleted, or its node is gone; declare it and consume again", self.queue);
        state.end.get_or_insert(Err(BrokerError::new(BrokerErrorKind::NotFound, text)));
        if matches!(state.cancel, Cancel::Wanted | Cancel::Sent) {
            self.hub.cancelled(&self.queue);
        }
        state.cancel = Cancel::Done;
        self.drained.notify_one();
        state.waker.take()
    }

    /// The server has cancelled the consumer, as we asked.
    pub(crate) fn cancelled(&self) {
        let mut state = self.state.lock();
        if state.cancel == Cancel::Sent {
            state.cancel = Cancel::Done;
            self.hub.cancelled(&self.queue);
        }
    }

    /// Marks it as having something to tell. True if it was not.
    fn talks(&self, state: &mut State) -> bool {
        state.channel.is_some() && !std::mem::replace(&mut state.talking, true)
    }

    /// Tells the broker what there is to tell. The channel, if the consumer is cancelled by that.
    pub(crate) fn talk(&self, connection: &mut Connection) -> Option<u16> {
        let mut state = self.state.lock();
        state.talking = false;
        let channel = state.channel?.number;
        let offset = state.offset;
        // The cancel goes first: an ack makes room, into which the broker would deliver more.
        let cancels = state.cancel == Cancel::Wanted;
        if cancels {
            state.cancel = Cancel::Sent;
            let cancel = Method::BasicCancel { consumer_tag: self.name.clone(), nowait: [false] };
            connection.send(channel, &cancel);
        }
        state.unsettled.words(|word| match word {
            Word::Ack { tag, multiple } => connection.ack(channel, tag - offset, multiple),
            Word::Nack { tag, requeue } => {
                let nack = Method::BasicNack { delivery_tag: tag - offset, flags: [false, requeue] };
                connection.send(channel, &nack);
            }
        });
        if state.abandoned {
            // What is unsettled goes back with the channel.
            connection.close_channel(channel);
        }
        cancels.then_some(channel)
    }

    /// Changes the state, has the broker told and the reader woken.
    fn change(self: &Arc<Self>, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        let talks = self.talks(&mut state);
        let waker = state.waker.take();
        drop(state);
        if talks {
            self.link.has_words(self.clone());
        }
        waker.into_iter().for_each(Waker::wake);
    }

    fn stop(self: &Arc<Self>, when: StopWhen) {
        self.change(|state| match when {
            _ if state.end.is_some() => {}
            StopWhen::Empty => {
                state.stop = Some(StopWhen::Empty);
                self.drained.notify_one();
            }
            StopWhen::Now => self.end(state),
        });
    }

    /// Ends the intake: what came and nobody has taken goes back.
    fn end(&self, state: &mut State) {
        if state.cancel == Cancel::No && state.channel.is_some() && state.end.is_none() {
            state.cancel = Cancel::Wanted;
            self.hub.cancelling(&self.queue);
        }
        if let Some(first) = state.ready.front() {
            let untaken = first.tag..state.unsettled.next();
            state.unsettled.nack(&[untaken], true);
            state.ready.clear();
        }
        state.end.get_or_insert(Ok(()));
        self.drained.notify_one();
    }

    /// Ends it: the handle is closed.
    pub(crate) fn stop_for_good(self: &Arc<Self>) {
        self.stop(StopWhen::Now);
    }

    /// How many messages of its queue wait for their time, of those that are known.
    pub(crate) fn delayed(&self) -> u64 {
        self.hub.delayed(&self.queue)
    }

    /// The queue was found empty, if nothing has come since so much had.
    pub(crate) fn ran_dry(self: &Arc<Self>, delivered: u64) {
        self.change(|state| {
            if state.delivered == delivered && state.stop == Some(StopWhen::Empty) {
                self.end(state);
            }
        });
    }

    /// How many messages have come, if it is to end when the queue is empty, and has nothing left to give.
    pub(crate) fn asks_for_the_end(&self) -> Option<u64> {
        let state = self.state.lock();
        let asks = state.stop == Some(StopWhen::Empty) && state.ready.is_empty() && state.end.is_none();
        asks.then_some(state.delivered)
    }

    pub(crate) fn has_ended(&self) -> bool {
        let state = self.state.lock();
        state.end.is_some() || state.abandoned
    }

    /// How many deliveries the broker counts as not settled.
    pub(crate) fn unacked(&self) -> u64 {
        self.state.lock().unsettled.live() as u64
    }

    /// Applies something to what is unsettled, and has the broker told.
    fn settle(self: &Arc<Self>, apply: impl FnOnce(&mut State) -> Settled) -> Settled {
        let mut state = self.state.lock();
        let settled = apply(&mut state);
        let talks = state.unsettled.has_words() && self.talks(&mut state);
        drop(state);
        if talks {
            self.link.has_words(self.clone());
        }
        settled
    }

    /// What was to be brought elsewhere has arrived; or it has not, and is for the broker to deal with.
    pub(crate) fn unpark(self: &Arc<Self>, tag: Tag, arrived: bool) {
        self.settle(|state| {
            state.unsettled.unpark(tag, arrived);
            Settled::default()
        });
    }

    /// Has deliveries brought elsewhere.
    fn send_away(self: &Arc<Self>, tags: &[Range<Tag>], way: &Way) -> Settled {
        let mut errands = Vec::new();
        // Counted before it is off the queue, so that nobody finds both empty.
        if let Way::Later(delay) = way {
            self.hub.delay(&self.queue, *delay);
        }
        let settled = self.settle(|state| {
            state.unsettled.park(tags, |tag, kept| {
                let Kept { message, address, redeliveries } = kept;
                let consumer = self.clone();
                errands.push(Errand { consumer, tag, message, address, redeliveries, way: way.clone() });
            })
        });
        self.hub.send(errands);
        settled
    }
}

/// The range of one tag.
fn one(tag: Tag) -> [Range<Tag>; 1] {
    std::array::from_fn(|_| tag..tag + 1)
}

/// What deliveries, ackers and the consumer hold: when the last one goes, what is unsettled goes back.
struct Handle(Arc<ConsumerCore>);

impl Drop for Handle {
    fn drop(&mut self) {
        let core = &self.0;
        core.change(|state| {
            core.end(state);
            state.abandoned = true;
        });
    }
}

impl Settle for Handle {
    fn queue(&self) -> &str {
        &self.0.queue
    }

    fn ack(&self, tags: &[Range<Tag>]) -> Settled {
        self.0.settle(|state| state.unsettled.ack(tags))
    }

    fn nack(&self, tags: &[Range<Tag>], how: &Nack) -> Settled {
        match how {
            Nack::Requeue => self.0.settle(|state| state.unsettled.nack(tags, true)),
            Nack::Discard => self.0.settle(|state| state.unsettled.ack(tags)),
            Nack::RequeueAfter(delay) => self.0.send_away(tags, &Way::Later(*delay)),
            Nack::DeadLetter { reason, stage } => match self.0.hub.dead_letters_of(&self.0.queue) {
                Some(to) => {
                    let (reason, stage) = (reason.clone(), stage.clone());
                    self.0.send_away(tags, &Way::DeadLetter { to, reason, stage })
                }
                // The queue was declared by somebody else, or has no dead letters: the broker knows.
                None => self.0.settle(|state| state.unsettled.nack(tags, false)),
            },
        }
    }

    fn stop(&self, when: StopWhen) {
        self.0.stop(when);
    }

    fn release(&self) {
        self.0.settle(|state| {
            state.ready.clear();
            state.unsettled.nack(slice::from_ref(&(0..Tag::MAX)), true)
        });
    }

    fn unsettled(&self) -> usize {
        let state = self.0.state.lock();
        state.unsettled.live() - state.ready.len()
    }
}

/// Where users' consumers take deliveries from.
struct Source {
    core: Arc<ConsumerCore>,
    acker: Acker,
}

impl ConsumerSource for Source {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        into: &mut Vec<Delivery>,
    ) -> Poll<Result<usize, BrokerError>> {
        let mut state = self.core.state.lock();
        let count = state.ready.len().min(max);
        if count > 0 {
            into.extend(state.ready.drain(..count).map(|Ready { tag, kept }| {
                let Kept { message, address, redeliveries } = kept;
                Delivery { message, address, tag, redeliveries, acker: self.acker.clone() }
            }));
            return Poll::Ready(Ok(count));
        }
        match &state.end {
            Some(Ok(())) => Poll::Ready(Ok(0)),
            Some(Err(error)) => {
                let error = error.clone();
                // It is told once; after that the consumer has ended.
                state.end = Some(Ok(()));
                Poll::Ready(Err(error))
            }
            None => {
                if state.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                    state.waker = Some(cx.waker().clone());
                }
                if state.stop == Some(StopWhen::Empty) {
                    self.core.drained.notify_one();
                }
                Poll::Pending
            }
        }
    }
}

//! A consumer: what was delivered and not taken, what was taken and not settled, what the broker is to be told.

mod again;
mod ending;
mod handles;
mod intake;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;

use millstream_message::{
    Acker, Address, BrokerError, ConsumeOptions, Consumer, Message, Settled, StopWhen, Tag,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::again::Again;
use self::handles::{Handle, Source, settle_taken};
pub(crate) use self::intake::FirstWords;
use self::intake::Intake;
use crate::broker::ConsumerStatistics;
use crate::credit::Credit;
use crate::delays;
use crate::headers;
use crate::hub::{Errand, Hub, Way};
use crate::link::{Channel, Link, Waiter};
use crate::proto::{Connection, Content, Method};
use crate::unsettled::{Parked, Unsettled, Word};

/// What a consumer's handles, its link and whoever restores it share.
pub(crate) struct ConsumerCore {
    queue: String,
    pub(crate) options: ConsumeOptions,
    /// The queue delivers to one consumer at a time, which keeps its turn until nothing of it is in hand.
    one_active: bool,
    /// What the names begin with that the broker knows it by.
    name: String,
    link: Arc<Link>,
    hub: Arc<Hub>,
    since: Instant,
    state: Mutex<State>,
    /// Notified when the consumer has nothing left to give, or has ended.
    pub(crate) drained: Notify,
}

struct State {
    channel: Option<Channel>,
    ready: VecDeque<Ready>,
    ready_bytes: u64,
    unsettled: Unsettled<Kept>,
    /// The bytes of what is unsettled, with those of what is ready.
    bytes: u64,
    /// How many deliveries may be with users, and what the broker is asked for so that they are there.
    prefetch: NonZeroUsize,
    credit: Credit,
    intake: Intake,
    /// The answer to the last asking is not there. Until then nothing may be cancelled: the channel of RabbitMQ 3.10 crashes when
    /// it hears of a consumer that has gone already, and takes the connection along (541).
    asking: bool,
    paused: bool,
    is_stream: bool,
    /// What was given back of a stream.
    again: Again,
    /// The offset at which a stream goes on when the connection was lost.
    resume: Option<u64>,
    /// The last offset that came.
    last: Option<u64>,
    /// How often the broker was asked to deliver, for each time has a name of its own.
    asked: u64,
    /// What a tag of the channel is less than ours.
    offset: Tag,
    /// The last address, which the next delivery often has too.
    address: Address,
    delivered: u64,
    redelivered: u64,
    acked: u64,
    nacked: u64,
    stop: Option<StopWhen>,
    cancel: Cancel,
    /// It has ended, and keeps its turn: what nobody has taken stays where it is.
    leaving: bool,
    /// Nobody is left who could settle anything: the channel can go.
    abandoned: bool,
    /// The broker has taken it once.
    established: bool,
    /// How often it has closed its channels since.
    refusals: u32,
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
    bytes: u64,
}

/// Where a message is in its stream, as RabbitMQ tells it.
const STREAM_OFFSET: &str = "x-stream-offset";

impl Kept {
    fn offset(&self) -> Option<u64> {
        self.message.header(STREAM_OFFSET)?.as_int().and_then(|offset| u64::try_from(offset).ok())
    }
}

impl State {
    /// Whether the next delivery may be handed out: there is room for it within both bounds, or it is alone.
    fn has_room(&self, options: &ConsumeOptions) -> bool {
        let waiting = self.ready.front().map(|next| &next.kept);
        let Some(next) = self.again.next().or(waiting) else { return false };
        let items = self.in_hand();
        let bytes = self.bytes - self.ready_bytes;
        !self.paused
            && !self.leaving
            && items < self.prefetch.get()
            && (items == 0 || bytes + next.bytes <= options.prefetch_bytes.get() as u64)
    }

    fn goes_on(&self) -> bool {
        !self.abandoned && self.end.is_none() && self.cancel == Cancel::No
    }

    /// How many deliveries are with users.
    fn in_hand(&self) -> usize {
        self.unsettled.live() - self.ready.len() + self.again.held()
    }
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
        // Asked anew, a stream would begin elsewhere, and a queue with one active consumer would make another one active.
        let (is_stream, one_active) = (options.from.is_some(), hub.has_one_active_consumer(&queue));
        let (prefetch, credit) = (options.prefetch_items, Credit::new(&options, is_stream || one_active));
        Arc::new(ConsumerCore {
            queue,
            options,
            one_active,
            name,
            link,
            hub,
            since: Instant::now(),
            state: Mutex::new(State {
                channel: None,
                ready: VecDeque::new(),
                ready_bytes: 0,
                unsettled: Unsettled::from(1),
                bytes: 0,
                prefetch,
                credit,
                intake: Intake::Opening,
                asking: false,
                paused: false,
                is_stream,
                again: Again::default(),
                resume: None,
                last: None,
                asked: 0,
                offset: 0,
                address: Address::queue(""),
                delivered: 0,
                redelivered: 0,
                acked: 0,
                nacked: 0,
                stop,
                cancel: Cancel::No,
                leaving: false,
                abandoned: false,
                established: false,
                refusals: 0,
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
        Consumer::new(Box::new(Source { core: self.clone(), acker: acker.clone(), due: None }), acker)
    }

    /// Whether it was told where to begin, as only streams are.
    pub(crate) fn is_of_a_stream(&self) -> bool {
        self.options.from.is_some()
    }

    /// Whether it wants to go on on another channel.
    pub(crate) fn goes_on(&self) -> bool {
        self.state.lock().goes_on()
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
        let bytes = message.size() as u64;
        let kept = Kept { message, address, redeliveries, bytes };
        if state.is_stream {
            state.last = kept.offset();
            if state.last.is_none() && state.end.is_none() {
                self.is_no_stream(&mut state);
            }
        }
        let tag = state.unsettled.add(kept.clone());
        state.delivered += 1;
        state.redelivered += u64::from(redelivered);
        state.bytes += bytes;
        state.credit.came(bytes);
        if (state.end.is_some() && !state.leaving) || state.abandoned {
            // It was on its way when the intake ended. The cancel is before this in the channel: it does not come again. To the one
            // active consumer it would, at once: there it goes back with the channel. A stream has it still.
            if !self.one_active && !state.is_stream {
                let State { unsettled, bytes, .. } = &mut *state;
                unsettled.nack(&one(tag), true, |kept| *bytes -= kept.bytes);
            }
            if self.talks(&mut state) {
                self.link.has_words(self.clone());
            }
            return state.waker.take();
        }
        state.ready.push_back(Ready { tag, kept });
        state.ready_bytes += bytes;
        if state.turns_to().is_some() && self.talks(&mut state) {
            self.link.has_words(self.clone());
        }
        if state.has_room(&self.options) { state.waker.take() } else { None }
    }

    /// Marks it as having something to tell. True if it was not.
    fn talks(&self, state: &mut State) -> bool {
        state.channel.is_some() && !std::mem::replace(&mut state.talking, true)
    }

    /// Tells the broker what there is to tell. The channel, if answers are to come, and who waits for them.
    pub(crate) fn talk(&self, connection: &mut Connection) -> Option<(u16, Vec<Waiter>)> {
        let mut state = self.state.lock();
        state.talking = false;
        let channel = state.channel?.number;
        let offset = state.offset;
        let mut waiters = Vec::new();
        // This goes first: an ack makes room, into which the broker would deliver more.
        if state.cancel == Cancel::Wanted && !state.asking {
            state.cancel = Cancel::Sent;
            // What is paused has nothing to cancel; nobody waits longer for that.
            let cancel = Method::BasicCancel { consumer_tag: self.tag(&state), nowait: [false] };
            connection.send(channel, &cancel);
            waiters.push(Waiter::Cancel);
        } else if let Some(to) = state.turns_to() {
            waiters = self.turn(&mut state, to, connection, channel);
        }
        state.unsettled.words(|word| match word {
            Word::Ack { tag, multiple } => connection.ack(channel, tag - offset, multiple),
            Word::Nack { tag, requeue } => {
                let nack = Method::BasicNack { delivery_tag: tag - offset, flags: [false, requeue] };
                connection.send(channel, &nack);
            }
        });
        if state.abandoned && state.unsettled.parked() == 0 {
            // What is unsettled goes back with the channel, on which nothing more is said.
            connection.close_channel(channel);
            state.channel = None;
        }
        (!waiters.is_empty()).then_some((channel, waiters))
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

    /// How many messages of its queue wait for their time, of those that are known.
    pub(crate) fn delayed(&self) -> u64 {
        self.hub.delayed(&self.queue)
    }

    pub(crate) fn statistics(&self) -> ConsumerStatistics {
        let state = self.state.lock();
        ConsumerStatistics {
            queue: self.queue.clone(),
            name: self.options.name.clone(),
            delivered: state.delivered,
            redelivered: state.redelivered,
            acked: state.acked,
            nacked: state.nacked,
            in_flight: state.in_hand() as u64,
            waiting: state.ready.len() as u64,
            paused: state.paused,
            age: self.since.elapsed(),
        }
    }

    /// How many deliveries the broker counts as not settled.
    pub(crate) fn unacked(&self) -> u64 {
        self.state.lock().unsettled.live() as u64
    }

    /// Applies something to what is unsettled, and has the broker told.
    fn settle(self: &Arc<Self>, apply: impl FnOnce(&mut State) -> Settled) -> Settled {
        let mut state = self.state.lock();
        let settled = apply(&mut state);
        self.leave(&mut state);
        let words = state.unsettled.has_words() || state.turns_to().is_some() || state.abandoned;
        let talks = words && self.talks(&mut state);
        // Whoever waits for room has it.
        let comes = state.has_room(&self.options) || state.again.due().is_some();
        let waker = if comes { state.waker.take() } else { None };
        drop(state);
        if talks {
            self.link.has_words(self.clone());
        }
        waker.into_iter().for_each(Waker::wake);
        settled
    }

    /// What has become of what was to be brought elsewhere.
    pub(crate) fn unpark(self: &Arc<Self>, tag: Tag, end: Parked) {
        self.settle(|state| {
            state.unsettled.unpark(tag, end);
            Settled::default()
        });
    }

    /// Has deliveries brought elsewhere.
    fn send_away(self: &Arc<Self>, tags: &[Range<Tag>], way: &Way) -> Settled {
        let mut errands = Vec::new();
        // Counted before it is off the queue, so that nobody finds both empty.
        if let Way::Later(delay) = way {
            self.hub.delay(&self.queue, delays::rounded(*delay));
        }
        let settled = self.settle(|state| {
            settle_taken(state, tags, |state, tags| {
                let State { unsettled, bytes, .. } = state;
                let settled = unsettled.park(tags, |tag, kept| {
                    *bytes -= kept.bytes;
                    let Kept { message, address, redeliveries, .. } = kept;
                    let consumer = self.clone();
                    let (way, _open) = (way.clone(), self.hub.open_errand());
                    errands.push(Errand { consumer, tag, message, address, redeliveries, way, _open });
                });
                state.nacked += settled.applied;
                settled
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

#[cfg(test)]
mod tests;

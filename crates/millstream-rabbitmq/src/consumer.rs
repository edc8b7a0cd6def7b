//! A consumer: what was delivered and not taken, what was taken and not settled, what the broker is to be told.

mod handles;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;
use std::time::SystemTime;

use millstream_message::{
    Acker, Address, BrokerError, BrokerErrorKind, ConsumeOptions, Consumer, Headers, Message, Settled,
    StopWhen, StreamFrom, Tag, Value,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::handles::{Handle, Source};
use crate::credit::Credit;
use crate::headers;
use crate::hub::{Errand, Hub, Way};
use crate::link::{Channel, Link, Waiter};
use crate::proto::{Closed, Connection, Content, Method};
use crate::unsettled::{Unsettled, Word};

/// What a consumer's handles, its link and whoever restores it share.
pub(crate) struct ConsumerCore {
    queue: String,
    pub(crate) options: ConsumeOptions,
    /// What the names begin with that the broker knows it by.
    name: String,
    link: Arc<Link>,
    hub: Arc<Hub>,
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
    credit: Credit,
    intake: Intake,
    /// The answer to the last asking is not there. Until then nothing may be cancelled: the channel of RabbitMQ 3.10 crashes when
    /// it hears of a consumer that has gone already, and takes the connection along (541).
    asking: bool,
    paused: bool,
    is_stream: bool,
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

/// What the broker was asked to do on the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intake {
    /// Nothing yet, or its answer is not there.
    Opening,
    /// To deliver up to so many.
    Running(u16),
    /// To deliver nothing.
    Paused,
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
        let Some(next) = self.ready.front() else { return false };
        let items = self.unsettled.live() - self.ready.len();
        let bytes = self.bytes - self.ready_bytes;
        !self.paused
            && items < options.prefetch_items.get()
            && (items == 0 || bytes + next.kept.bytes <= options.prefetch_bytes.get() as u64)
    }

    /// What to ask the broker for from now on, if it is not what it was asked for.
    fn turns_to(&self) -> Option<Intake> {
        if self.asking || self.cancel != Cancel::No || self.end.is_some() || self.channel.is_none() {
            return None;
        }
        match self.intake {
            Intake::Opening => None,
            Intake::Paused => (!self.paused).then(|| Intake::Running(self.credit.first())),
            // A stream that is paused holds what came, since it must not be asked from elsewhere while more is on its way.
            Intake::Running(_) if self.paused => (!self.is_stream).then_some(Intake::Paused),
            Intake::Running(asked) => {
                let items = self.unsettled.live() as u64;
                self.credit.better(asked, items, self.bytes).map(Intake::Running)
            }
        }
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
        let fixed = options.from.is_some() || hub.has_one_active_consumer(&queue);
        let credit = Credit::new(&options, fixed);
        let is_stream = options.from.is_some();
        Arc::new(ConsumerCore {
            queue,
            options,
            name,
            link,
            hub,
            state: Mutex::new(State {
                channel: None,
                ready: VecDeque::new(),
                ready_bytes: 0,
                unsettled: Unsettled::from(1),
                bytes: 0,
                credit,
                intake: Intake::Opening,
                asking: false,
                paused: false,
                is_stream,
                resume: None,
                last: None,
                asked: 0,
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
        state.intake = Intake::Opening;
        state.offset = state.unsettled.next() - 1;
    }

    /// What has the broker deliver, on a channel that was opened just now; nothing while it is paused.
    pub(crate) fn first_words(&self) -> Option<(u16, [Method; 2])> {
        let mut state = self.state.lock();
        let count = state.credit.first();
        state.asking = !state.paused;
        state.asking.then(|| (count, self.ask(&mut state, count)))
    }

    /// The broker has taken it, and was asked so.
    pub(crate) fn established(self: &Arc<Self>, asked: Option<u16>) {
        let mut state = self.state.lock();
        state.established = true;
        state.intake = asked.map_or(Intake::Paused, Intake::Running);
        drop(state);
        self.asked();
    }

    /// Asks the broker for up to so many deliveries, under a new name.
    fn ask(&self, state: &mut State, prefetch_count: u16) -> [Method; 2] {
        state.asked += 1;
        let consume = Method::BasicConsume {
            reserved_1: 0,
            queue: self.queue.clone(),
            consumer_tag: self.tag(state),
            flags: [false, false, self.options.exclusive, false],
            arguments: self.arguments(state),
        };
        [Method::BasicQos { prefetch_size: 0, prefetch_count, global: [false] }, consume]
    }

    fn arguments(&self, state: &State) -> Headers {
        let mut arguments = Headers::new();
        if self.options.priority != 0 {
            arguments.insert("x-priority".to_owned(), Value::Int(self.options.priority.into()));
        }
        let offset = |offset: u64| Value::Int(i64::try_from(offset).unwrap_or(i64::MAX));
        let from = match (state.resume, self.options.from) {
            (Some(next), Some(_)) => Some(offset(next)),
            (_, from) => from.map(|from| match from {
                StreamFrom::First => "first".into(),
                StreamFrom::Next => "next".into(),
                StreamFrom::Last => "last".into(),
                StreamFrom::Offset(first) => offset(first),
                StreamFrom::Timestamp(time) => {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "the broker counts back from its own clock"
                    )]
                    let ago = SystemTime::now().duration_since(time).unwrap_or_default();
                    Value::Text(format!("{}s", ago.as_secs_f64().ceil() as u64))
                }
            }),
        };
        arguments.extend(from.map(|from| (STREAM_OFFSET.to_owned(), from)));
        arguments
    }

    /// The name by which the broker knows what it was asked last.
    fn tag(&self, state: &State) -> String {
        match state.asked {
            1 => self.name.clone(),
            asked => format!("{}.{asked}", self.name),
        }
    }

    /// Has the broker deliver otherwise than until now. Who waits for its answers.
    fn turn(&self, state: &mut State, to: Intake, connection: &mut Connection, channel: u16) -> Vec<Waiter> {
        let was_running = matches!(state.intake, Intake::Running(_));
        let cancel =
            was_running.then(|| Method::BasicCancel { consumer_tag: self.tag(state), nowait: [false] });
        let ask = match to {
            Intake::Running(count) => Some(self.ask(state, count)),
            Intake::Opening | Intake::Paused => None,
        };
        state.intake = to;
        state.asking = ask.is_some();
        // The new one first, so that the queue is never without: it may go with its last consumer. None may be beside an
        // exclusive one.
        let (before, after) = if self.options.exclusive { (cancel, None) } else { (None, cancel) };
        let methods = before.into_iter().chain(ask.into_iter().flatten()).chain(after);
        let answered = methods.map(|method| {
            connection.send(channel, &method);
            if matches!(method, Method::BasicConsume { .. }) { Waiter::Consume } else { Waiter::Nobody }
        });
        answered.collect()
    }

    /// The broker delivers as it was asked last.
    pub(crate) fn asked(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.asking = false;
        let more = state.cancel == Cancel::Wanted || state.turns_to().is_some();
        if more && self.talks(&mut state) {
            self.link.has_words(self.clone());
        }
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
        }
        let tag = state.unsettled.add(kept.clone());
        state.delivered += 1;
        state.bytes += bytes;
        state.credit.came(bytes);
        if state.end.is_some() || state.abandoned {
            // It was on its way when the intake ended. The cancel is before this in the channel: it does not come again.
            let State { unsettled, bytes, .. } = &mut *state;
            unsettled.nack(&one(tag), true, |kept| *bytes -= kept.bytes);
            if self.talks(&mut state) {
                self.link.has_words(self.clone());
            }
            return None;
        }
        state.ready.push_back(Ready { tag, kept });
        state.ready_bytes += bytes;
        if state.turns_to().is_some() && self.talks(&mut state) {
            self.link.has_words(self.clone());
        }
        if state.has_room(&self.options) { state.waker.take() } else { None }
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
        state.intake = Intake::Opening;
        state.asking = false;
        if state.is_stream {
            // Of what is not settled the oldest; or what comes behind everything that came.
            let oldest = state.unsettled.iter().find_map(|kept| kept.offset());
            state.resume = oldest.or(state.last.map(|last| last + 1)).or(state.resume);
        }
        state.ready.clear();
        state.unsettled.forget();
        (state.ready_bytes, state.bytes) = (0, 0);
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
        if state.abandoned {
            // What is unsettled goes back with the channel.
            connection.close_channel(channel);
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
            let State { unsettled, bytes, .. } = &mut *state;
            unsettled.nack(&[untaken], true, |kept| *bytes -= kept.bytes);
            state.ready.clear();
            state.ready_bytes = 0;
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
        let talks = (state.unsettled.has_words() || state.turns_to().is_some()) && self.talks(&mut state);
        // Whoever waits for room has it.
        let waker = if state.has_room(&self.options) { state.waker.take() } else { None };
        drop(state);
        if talks {
            self.link.has_words(self.clone());
        }
        waker.into_iter().for_each(Waker::wake);
        settled
    }

    /// Has the broker deliver nothing, or again.
    fn pause(self: &Arc<Self>, paused: bool) {
        self.change(|state| state.paused = paused);
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
            let State { unsettled, bytes, .. } = state;
            unsettled.park(tags, |tag, kept| {
                *bytes -= kept.bytes;
                let Kept { message, address, redeliveries, .. } = kept;
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

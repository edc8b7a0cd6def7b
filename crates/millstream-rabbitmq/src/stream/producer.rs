//! Publishing to one stream: batches, confirms, deduplication, and what happens when the connection is lost.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::num::NonZeroU16;
use std::ops::Range;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use millstream_message::{BrokerError, BrokerErrorKind, Confirm, Message, Outcomes, PublishOutcome, Refusal};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::amqp::{self, Mark};
use super::chunk::{BATCH_HEADER, put_batch_header};
use super::client::{Inner, backoff};
use super::command::{Body, Ids, PUBLISH, Request, code};
use super::link::{Link, lost, refused};

/// Before the entries of a publish: length, key, version, publisher, count.
const FRAME_HEAD: usize = 4 + 2 + 2 + 1 + 4;
/// Where the publisher's number is.
const FRAME_PUBLISHER: usize = 8;
const FRAME_COUNT: usize = 9;

/// How to publish to a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerOptions {
    /// The name under which the broker remembers the highest publishing id it has stored, so that what is published
    /// again is stored once: over reconnections, and over restarts of the process when it publishes with its own ids.
    /// One producer at a time may use a name on a stream. A stream remembers the last 255 names. `None`, the default,
    /// is at least once: what was in flight when a connection was lost may be there twice.
    pub name: Option<String>,
    /// How many messages may be unconfirmed. Default 10,000.
    pub in_flight_max: usize,
    /// How many bytes of frames may be unconfirmed; they are kept to be sent again. One batch that is larger goes
    /// alone. What is in flight together may become one chunk, which readers hold in memory as a whole: more than the
    /// default, 1 MiB, made nothing faster where it was measured, and readers larger.
    pub in_flight_bytes_max: usize,
    /// Messages that share one entry, one publishing id and one confirm. More than one makes small messages cheaper
    /// for the broker; only clients of the stream protocol can read them. Default 1.
    pub entry_messages: NonZeroU16,
}

impl Default for ProducerOptions {
    fn default() -> ProducerOptions {
        ProducerOptions {
            name: None,
            in_flight_max: 10_000,
            in_flight_bytes_max: 1 << 20,
            entry_messages: NonZeroU16::MIN,
        }
    }
}

impl ProducerOptions {
    /// Names the producer: what is published again is stored once.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> ProducerOptions {
        self.name = Some(name.into());
        self
    }

    /// Lets so many messages be unconfirmed. Zero is read as one.
    #[must_use]
    pub fn in_flight(mut self, messages: usize) -> ProducerOptions {
        self.in_flight_max = messages.max(1);
        self
    }

    /// Puts so many messages into one entry. Zero is read as one.
    #[must_use]
    pub fn entry_messages(mut self, messages: u16) -> ProducerOptions {
        self.entry_messages = NonZeroU16::new(messages).unwrap_or(NonZeroU16::MIN);
        self
    }
}

/// Publishes to one stream. Made by [`StreamClient::producer`](crate::stream::StreamClient::producer).
///
/// When the connection is lost the producer connects again by itself, to whichever node then leads the stream, and
/// sends what was not confirmed again, in order. Dropping it lets what is in flight be confirmed.
///
/// # Ordering
/// Messages are stored in the order of the calls of [`send`](Producer::send).
pub struct Producer {
    shared: Arc<Shared>,
}

/// What the producer shares with its supervisor and with its link.
pub(crate) struct Shared {
    stream: String,
    options: ProducerOptions,
    state: Mutex<State>,
    /// Held while a batch gets its place.
    sending: tokio::sync::Mutex<()>,
    /// There may be room in the window now.
    room: Notify,
    /// The supervisor has something to look at.
    wake: Notify,
}

struct State {
    next_id: u64,
    frames: VecDeque<Frame>,
    batches: VecDeque<Batch>,
    /// Number of the first of `batches`.
    first_batch: u64,
    messages: usize,
    bytes: usize,
    attached: Option<(Arc<Link>, u8)>,
    frame_max: usize,
    /// Why it can be sent nothing at present.
    away: Option<BrokerError>,
    /// Why it can be sent nothing any more.
    over: Option<BrokerError>,
    closing: bool,
}

/// A frame that is not fully confirmed.
struct Frame {
    bytes: Bytes,
    ids: FrameIds,
    /// So many of the ids, from the first on, are confirmed or refused.
    done: u32,
    /// Those behind them that are, too.
    done_beyond: BTreeSet<u32>,
    batch: u64,
    /// Places of its messages in their batch.
    places: Range<u32>,
    entry_messages: u32,
}

enum FrameIds {
    /// From this one on.
    From(u64, u32),
    Each(Box<[u64]>),
}

impl FrameIds {
    fn len(&self) -> u32 {
        match self {
            FrameIds::From(_, count) => *count,
            FrameIds::Each(ids) => ids.len() as u32,
        }
    }

    fn last(&self) -> u64 {
        match self {
            FrameIds::From(first, count) => first + u64::from(count.saturating_sub(1)),
            FrameIds::Each(ids) => ids.last().copied().unwrap_or(0),
        }
    }

    /// Which of them are these.
    fn places(&self, ids: &Range<u64>) -> Range<u32> {
        match self {
            FrameIds::From(first, count) => {
                let place = |id: u64| id.saturating_sub(*first).min(u64::from(*count)) as u32;
                place(ids.start)..place(ids.end)
            }
            FrameIds::Each(each) => {
                let place = |id: u64| each.partition_point(|other| *other < id) as u32;
                place(ids.start)..place(ids.end)
            }
        }
    }
}

/// What one call of `send` handed over.
struct Batch {
    total: usize,
    frames: u32,
    others: Vec<(usize, PublishOutcome)>,
    confirm: oneshot::Sender<Outcomes>,
}

impl Frame {
    fn is_done(&self) -> bool {
        self.done == self.ids.len()
    }

    /// Marks ids as done; which of them were not yet.
    fn settle(&mut self, places: Range<u32>, mut each: impl FnMut(u32)) {
        if places.start <= self.done && self.done_beyond.is_empty() {
            (self.done.max(places.start)..places.end).for_each(each);
            self.done = self.done.max(places.end);
            return;
        }
        for place in places {
            if place >= self.done && self.done_beyond.insert(place) {
                each(place);
            }
        }
        while self.done_beyond.remove(&self.done) {
            self.done += 1;
        }
    }

    fn is_settled(&self, place: u32) -> bool {
        place < self.done || self.done_beyond.contains(&place)
    }

    /// Places in the batch of the messages under one id.
    fn messages(&self, place: u32) -> Range<u32> {
        let start = self.places.start + place * self.entry_messages;
        start..(start + self.entry_messages).min(self.places.end)
    }

    /// The frame again, without what is confirmed, from this publisher.
    fn again(&self, publisher: u8) -> Bytes {
        if self.done == 0 && self.done_beyond.is_empty() && self.bytes[FRAME_PUBLISHER] == publisher {
            return self.bytes.clone();
        }
        let mut out = Vec::with_capacity(self.bytes.len());
        begin_frame(&mut out, publisher);
        let mut count = 0;
        let mut rest = &self.bytes[FRAME_HEAD..];
        for place in 0..self.ids.len() {
            let len = entry_len(rest);
            let (entry, behind) = rest.split_at(len);
            rest = behind;
            if !self.is_settled(place) {
                out.put_slice(entry);
                count += 1;
            }
        }
        end_frame(&mut out, count);
        out.into()
    }
}

/// Bytes of the entry at the front: id, then a message or a batch of messages.
fn entry_len(entry: &[u8]) -> usize {
    let number =
        |at: usize| u32::from_be_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]) as usize;
    if entry[8] & 0x80 == 0 { 12 + number(8) } else { 8 + BATCH_HEADER + number(8 + 7) }
}

fn begin_frame(out: &mut Vec<u8>, publisher: u8) {
    out.put_u32(0);
    out.put_u16(PUBLISH);
    out.put_u16(1);
    out.put_u8(publisher);
    out.put_u32(0);
}

fn end_frame(out: &mut [u8], count: u32) {
    let len = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&len.to_be_bytes());
    out[FRAME_COUNT..FRAME_HEAD].copy_from_slice(&count.to_be_bytes());
}

/// Messages with ids of their own, or in sequence.
enum Numbered<'a> {
    Next(&'a [Message]),
    Given(&'a [(u64, Message)]),
}

impl<'a> Numbered<'a> {
    fn len(&self) -> usize {
        match self {
            Numbered::Next(messages) => messages.len(),
            Numbered::Given(messages) => messages.len(),
        }
    }

    fn message(&self, at: usize) -> &'a Message {
        match self {
            Numbered::Next(messages) => &messages[at],
            Numbered::Given(messages) => &messages[at].1,
        }
    }
}

impl Producer {
    /// Connects, declares the publisher, and learns how far it came.
    pub(crate) async fn open(
        client: Arc<Inner>,
        stream: &str,
        options: ProducerOptions,
    ) -> Result<Producer, BrokerError> {
        if let Some(name) = &options.name {
            super::client::check_name("producer", name)?;
        }
        let shared = Arc::new(Shared {
            stream: stream.to_owned(),
            options,
            state: Mutex::new(State {
                next_id: 1,
                frames: VecDeque::new(),
                batches: VecDeque::new(),
                first_batch: 0,
                messages: 0,
                bytes: 0,
                attached: None,
                frame_max: 0,
                away: None,
                over: None,
                closing: false,
            }),
            sending: tokio::sync::Mutex::default(),
            room: Notify::new(),
            wake: Notify::new(),
        });
        let mut patience = client.patience();
        let last = loop {
            match attach(&client, &shared, true).await {
                Ok(last) => break last,
                Err(error) => patience.after(error).await?,
            }
        };
        shared.state.lock().next_id = last.saturating_add(1);
        client.spawn(supervise(client.clone(), shared.clone()));
        Ok(Producer { shared })
    }

    /// The stream.
    pub fn stream(&self) -> &str {
        &self.shared.stream
    }

    /// The highest publishing id given so far, by this producer or, under its name, by one before it; 0 when there
    /// was none. A producer that publishes, say, lines of a file with their numbers as ids goes on behind it.
    pub fn last_id(&self) -> u64 {
        self.shared.state.lock().next_id - 1
    }

    /// The largest message that fits into a frame, in bytes, about.
    pub fn message_bytes_max(&self) -> usize {
        self.shared.state.lock().frame_max.saturating_sub(FRAME_HEAD + BATCH_HEADER + 8 + 4 + 8)
    }

    /// Publishes a batch. Returns as soon as it has its place in the order and is on its way; the [`Confirm`]
    /// resolves when the broker has stored all of it, or said what it has not.
    ///
    /// A message that is too large for a frame is refused, and the others are published.
    ///
    /// # Backpressure
    /// Waits while the window (`in_flight_max`, `in_flight_bytes_max`) is full.
    ///
    /// # Cancel safety
    /// Dropped while it waits, nothing is published.
    ///
    /// # Errors
    /// `NotFound` once the stream was deleted. `Unavailable` when the broker has been out of reach for longer than
    /// [`patience`](crate::stream::StreamSettings::patience), or the producer is closed.
    pub async fn send(&self, messages: &[Message]) -> Result<Confirm, BrokerError> {
        self.shared.send(Numbered::Next(messages), None).await
    }

    /// The same with publishing ids of the caller's, which only grow. What the broker has already stored under the
    /// producer's name is confirmed and not stored again.
    ///
    /// # Errors
    /// `Invalid` when an id is not above the ones before it, or entries hold several messages.
    pub async fn send_with_ids(&self, messages: &[(u64, Message)]) -> Result<Confirm, BrokerError> {
        if self.shared.options.entry_messages.get() > 1 {
            let text =
                "an entry of several messages has one publishing id: give ids, or set `entry_messages`";
            return Err(BrokerError::new(BrokerErrorKind::Invalid, text));
        }
        self.shared.send(Numbered::Given(messages), None).await
    }

    /// The same as [`send`](Producer::send), with a mark on the first message.
    pub(crate) async fn send_marked(&self, messages: &[Message], mark: Mark) -> Result<Confirm, BrokerError> {
        self.shared.send(Numbered::Next(messages), Some(mark)).await
    }

    /// Waits until nothing is in flight and ends. What was sent is then confirmed, or its confirm said otherwise.
    pub async fn close(self) {
        self.shared.close();
        loop {
            let room = self.shared.room.notified();
            if self.shared.state.lock().frames.is_empty() {
                return;
            }
            room.await;
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("stream", &self.shared.stream).finish_non_exhaustive()
    }
}

impl State {
    fn check(&self) -> Result<(), BrokerError> {
        if let Some(error) = self.over.as_ref().or(self.away.as_ref()) {
            return Err(error.clone());
        }
        if self.closing {
            return Err(lost("the producer is closed"));
        }
        Ok(())
    }

    fn has_room(&self, options: &ProducerOptions, messages: usize, bytes: usize) -> bool {
        self.frames.is_empty()
            || (self.messages + messages <= options.in_flight_max
                && self.bytes + bytes <= options.in_flight_bytes_max)
    }

    /// Settles these ids; `outcome` tells what became of a message that is not confirmed.
    fn settle(&mut self, ids: Range<u64>, outcome: Option<&PublishOutcome>) {
        let mut at = self.frames.partition_point(|frame| frame.ids.last() < ids.start);
        while let Some(frame) = self.frames.get_mut(at) {
            let places = frame.ids.places(&ids);
            if places.is_empty() {
                break;
            }
            let was_done = frame.is_done();
            let mut refused = Vec::new();
            frame.settle(places, |place| {
                if outcome.is_some() {
                    refused.push(place);
                }
            });
            let is_done = frame.is_done();
            let batch = &mut self.batches[(frame.batch - self.first_batch) as usize];
            if let Some(outcome) = outcome {
                for place in refused.into_iter().flat_map(|place| frame.messages(place)) {
                    batch.others.push((place as usize, outcome.clone()));
                }
            }
            if is_done && !was_done {
                batch.frames -= 1;
                self.messages -= frame.places.len();
                self.bytes -= frame.bytes.len();
                frame.bytes = Bytes::new();
            }
            at += 1;
        }
        self.resolve();
    }

    /// Takes away what is done, in order.
    fn resolve(&mut self) {
        while self.frames.front().is_some_and(Frame::is_done) {
            self.frames.pop_front();
        }
        while self.batches.front().is_some_and(|batch| batch.frames == 0) {
            let Some(mut batch) = self.batches.pop_front() else { break };
            self.first_batch += 1;
            batch.others.sort_by_key(|(place, _)| *place);
            // Nobody may wait any more.
            let _ = batch.confirm.send(Outcomes::with_others(batch.total, batch.others));
        }
    }

    /// Gives up on all that is in flight.
    fn give_up(&mut self, error: &BrokerError) {
        let outcome = PublishOutcome::Unconfirmed(error.clone());
        self.settle(0..u64::MAX, Some(&outcome));
    }
}

impl Shared {
    pub(crate) fn stream(&self) -> &str {
        &self.stream
    }

    fn close(&self) {
        self.state.lock().closing = true;
        self.wake.notify_one();
        self.room.notify_waiters();
    }

    async fn send(&self, messages: Numbered<'_>, mark: Option<Mark>) -> Result<Confirm, BrokerError> {
        let _in_order = self.sending.lock().await;
        let count = messages.len();
        let estimate: usize = (0..count).map(|at| amqp::size_hint(messages.message(at)) + 16).sum();
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            {
                let state = self.state.lock();
                state.check()?;
                if state.has_room(&self.options, count, estimate) {
                    break;
                }
            }
            room.await;
        }
        let (first, publisher, frame_max) = {
            let state = self.state.lock();
            (state.next_id, state.attached.as_ref().map_or(0, |(_, number)| *number), state.frame_max)
        };
        if let Numbered::Given(given) = messages {
            let mut least = first;
            for (id, _) in given {
                if *id < least || *id == u64::MAX {
                    let text = format!("publishing id {id} is not above {}, the last one", least - 1);
                    return Err(BrokerError::new(BrokerErrorKind::Invalid, text));
                }
                least = id + 1;
            }
        }
        // Encoded without the lock, so that confirms go on meanwhile.
        let mut encoder = Encoder { out: Vec::new(), frames: Vec::new(), publisher, frame_max };
        let (next_id, others) = encoder.encode(
            &messages,
            first,
            self.options.entry_messages.get().into(),
            mark.as_ref(),
            estimate,
        );
        let (confirm, outcome) = oneshot::channel();
        {
            let mut state = self.state.lock();
            state.next_id = next_id;
            let number = state.first_batch + state.batches.len() as u64;
            let frames = encoder.frames.len() as u32;
            for mut frame in encoder.frames {
                frame.batch = number;
                state.messages += frame.places.len();
                state.bytes += frame.bytes.len();
                if let Some((link, publisher)) = &state.attached {
                    link.send(frame.again(*publisher));
                }
                state.frames.push_back(frame);
            }
            state.batches.push_back(Batch { total: count, frames, others, confirm });
            state.resolve();
        }
        Ok(Confirm::pending(async move {
            let gone = || PublishOutcome::Unconfirmed(lost("the runtime of the producer is gone"));
            outcome.await.unwrap_or_else(|_| Outcomes::all(count, &gone()))
        }))
    }

    /// The broker has stored these.
    pub(crate) fn confirmed(&self, ids: Ids<'_>) {
        let mut state = self.state.lock();
        let mut run = 0..0;
        for id in ids.iter() {
            // They come in order, up or down, with few gaps.
            if id == run.end && !run.is_empty() {
                run.end = id.saturating_add(1);
            } else if id.saturating_add(1) == run.start {
                run.start = id;
            } else {
                if !run.is_empty() {
                    state.settle(run, None);
                }
                run = id..id.saturating_add(1);
            }
        }
        if !run.is_empty() {
            state.settle(run, None);
        }
        let is_last = state.closing && state.frames.is_empty();
        drop(state);
        self.room.notify_waiters();
        if is_last {
            self.wake.notify_one();
        }
    }

    /// The broker has not stored these. Whether the publisher is unknown there, and is now detached.
    pub(crate) fn refused(&self, errors: &[(u64, u16)]) -> bool {
        let mut unknown = false;
        let mut state = self.state.lock();
        for (id, why) in errors {
            if matches!(*why, code::NO_PUBLISHER | code::NO_STREAM | code::STREAM_NOT_AVAILABLE) {
                unknown = true;
            } else {
                let error = refused(*why, &self.stream);
                let outcome = PublishOutcome::Refused(Refusal::Broker(error));
                state.settle(*id..id.saturating_add(1), Some(&outcome));
            }
        }
        if unknown {
            state.attached = None;
        }
        drop(state);
        self.room.notify_waiters();
        self.wake.notify_one();
        unknown
    }

    /// The link is lost, or the stream is not there any more.
    pub(crate) fn detached(&self, error: &BrokerError) {
        tracing::debug!(stream = self.stream, %error, "a producer is detached");
        self.state.lock().attached = None;
        self.wake.notify_one();
    }
}

/// Makes frames of messages.
struct Encoder {
    out: Vec<u8>,
    frames: Vec<Frame>,
    publisher: u8,
    frame_max: usize,
}

impl Encoder {
    /// Returns the next free id, and what does not fit into a frame.
    fn encode(
        &mut self,
        messages: &Numbered<'_>,
        first: u64,
        entry_messages: usize,
        mark: Option<&Mark>,
        estimate: usize,
    ) -> (u64, Vec<(usize, PublishOutcome)>) {
        let mut next = first;
        let mut others = Vec::new();
        // Ids and places of the frame at hand.
        let (mut ids, mut places) = (Vec::new(), 0..0_u32);
        let (mut from, mut count) = (first, 0_u32);
        let total = messages.len();
        let mut at = 0;
        let is_given = matches!(messages, Numbered::Given(_));
        while at < total {
            if self.out.is_empty() {
                self.out.reserve((estimate + FRAME_HEAD).min(self.frame_max.saturating_add(4)));
                begin_frame(&mut self.out, self.publisher);
                (from, count, places) = (next, 0, at as u32..at as u32);
            }
            let id = match messages {
                Numbered::Given(messages) => messages[at].0,
                Numbered::Next(_) => next,
            };
            let begin = self.out.len();
            let end = (at + entry_messages).min(total);
            self.out.put_u64(id);
            if entry_messages > 1 {
                put_batch_header(&mut self.out, (end - at) as u16, 0);
            }
            for place in at..end {
                let message = self.out.len();
                self.out.put_u32(0);
                amqp::encode(messages.message(place), mark.filter(|_| place == 0), &mut self.out);
                let len = (self.out.len() - message - 4) as u32;
                self.out[message..message + 4].copy_from_slice(&len.to_be_bytes());
            }
            if entry_messages > 1 {
                let body = begin + 8 + BATCH_HEADER;
                let len = ((self.out.len() - body) as u32).to_be_bytes();
                self.out[body - 8..body - 4].copy_from_slice(&len);
                self.out[body - 4..body].copy_from_slice(&len);
            }
            if self.out.len() - 4 > self.frame_max {
                let len = (self.out.len() - begin) as u64;
                self.out.truncate(begin);
                if count > 0 {
                    self.end(&mut ids, from, count, places.clone(), entry_messages, is_given);
                } else {
                    // Alone in its frame, and too large.
                    self.out.clear();
                    let refusal = Refusal::TooLarge { len, max: self.frame_max as u64 };
                    let outcome = PublishOutcome::Refused(refusal);
                    others.extend((at..end).map(|place| (place, outcome.clone())));
                    at = end;
                }
                continue;
            }
            if is_given {
                ids.push(id);
            }
            next = id + 1;
            count += 1;
            places.end = end as u32;
            at = end;
        }
        if count > 0 && !self.out.is_empty() {
            self.end(&mut ids, from, count, places, entry_messages, is_given);
        }
        (next, others)
    }

    fn end(
        &mut self,
        ids: &mut Vec<u64>,
        from: u64,
        count: u32,
        places: Range<u32>,
        entry_messages: usize,
        is_given: bool,
    ) {
        let mut out = std::mem::take(&mut self.out);
        end_frame(&mut out, count);
        let ids =
            if is_given { FrameIds::Each(std::mem::take(ids).into()) } else { FrameIds::From(from, count) };
        self.frames.push(Frame {
            bytes: out.into(),
            ids,
            done: 0,
            done_beyond: BTreeSet::new(),
            batch: 0,
            places,
            entry_messages: entry_messages as u32,
        });
    }
}

/// Finds the stream's leader, declares the publisher there, and sends what is not confirmed. Returns the highest
/// publishing id that is stored under its name, when that is asked for.
async fn attach(client: &Arc<Inner>, shared: &Arc<Shared>, ask: bool) -> Result<u64, BrokerError> {
    let stream = shared.stream.as_str();
    let link = client.leader(stream).await?;
    let number = link.add_publisher(shared);
    let number = number.ok_or_else(|| lost("all publishers of a connection are taken"))?;
    let mut registered = Registered { link, number, keep: false };
    let link = registered.link.clone();
    let reference = shared.options.name.clone().unwrap_or_default();
    let declare = Request::DeclarePublisher {
        publisher: number,
        reference: reference.clone(),
        stream: stream.to_owned(),
    };
    match link.ask(declare).await?.code {
        code::OK => {}
        code::PRECONDITION_FAILED => {
            let text = format!(
                "stream `{stream}`: the broker takes no publisher: it has an alarm (memory, disk), or another \
                 producer of this connection has the name `{reference}`"
            );
            return Err(lost(text));
        }
        other => return Err(refused(other, stream)),
    }
    let mut last = 0;
    if ask && !reference.is_empty() {
        let query = Request::QueryPublisherSequence { reference, stream: stream.to_owned() };
        if let Body::Number(number) = link.request(query, stream).await? {
            last = number;
        }
    }
    let mut state = shared.state.lock();
    // Lost again meanwhile: the next attempt finds out.
    if !link.is_alive() {
        return Err(lost("the connection was lost"));
    }
    state.frame_max = link.server.frame_max as usize;
    state.away = None;
    link.send_all(state.frames.iter().filter(|frame| !frame.is_done()).map(|frame| frame.again(number)));
    state.attached = Some((link.clone(), number));
    registered.keep = true;
    drop(state);
    shared.room.notify_waiters();
    Ok(last)
}

/// A publisher's number, given back if declaring it fails.
struct Registered {
    link: Arc<Link>,
    number: u8,
    keep: bool,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if !self.keep {
            self.link.remove_publisher(self.number);
        }
    }
}

/// Attaches the producer again whenever it is detached, until it is closed and nothing is in flight.
async fn supervise(client: Arc<Inner>, shared: Arc<Shared>) {
    let mut attempts = 0;
    let mut since = None;
    loop {
        let (attached, done) = {
            let state = shared.state.lock();
            (state.attached.is_some(), state.closing && state.frames.is_empty() || state.over.is_some())
        };
        if done {
            break;
        }
        if attached {
            (attempts, since) = (0, None);
            tokio::select! {
                () = shared.wake.notified() => {}
                () = client.closed(), if !shared.state.lock().closing => shared.close(),
            }
            continue;
        }
        let since = *since.get_or_insert_with(Instant::now);
        tokio::time::sleep(backoff(attempts)).await;
        attempts += 1;
        match attach(&client, &shared, false).await {
            Ok(_) => tracing::info!(stream = shared.stream, "a producer is back"),
            Err(error) => {
                let mut state = shared.state.lock();
                if error.kind() == BrokerErrorKind::NotFound || client.is_closed() {
                    state.over = Some(error.clone());
                    state.give_up(&error);
                } else if since.elapsed() >= client.settings.patience {
                    state.away = Some(error.clone());
                    state.give_up(&error);
                }
                drop(state);
                shared.room.notify_waiters();
            }
        }
    }
    let attached = shared.state.lock().attached.take();
    if let Some((link, number)) = attached {
        // Gone or not, the number is free.
        let _ = link.ask(Request::DeletePublisher { publisher: number }).await;
        link.remove_publisher(number);
    }
    shared.room.notify_waiters();
}

//! Reading one stream: chunks come as credit allows, and reading goes on where it was when the connection is lost.

mod attach;
mod options;
mod shared;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use millstream_message::{
    BrokerError, BrokerErrorKind, Message, StreamFrom, StreamItem, StreamReader, StreamSource, Value,
};

use self::attach::{attach, supervise};
pub use self::options::ConsumerOptions;
pub(crate) use self::shared::Shared;
use super::amqp::{self, Mark};
use super::chunk::{Chunk, ChunkError, Entries, Entry, time};
use super::client::{Inner, check_name, store};
use super::command::OffsetSpec;
use super::link::credit;

/// The header that says why a message is handed out as the bytes it is stored as.
pub const UNDECODED: &str = "millstream-undecoded";

/// Reads one stream. Made by [`StreamClient::consumer`](crate::stream::StreamClient::consumer); it is the
/// [`StreamSource`] of a [`StreamReader`].
///
/// When the connection is lost the consumer connects again by itself, to a replica if there is one, and goes on behind
/// the last chunk it was given: nothing is lost and nothing comes twice.
///
/// # Backpressure
/// The broker sends chunks as it is given credit, and credit is given as chunks are read. A message shares the memory of
/// its chunk: whoever keeps one small message keeps a whole chunk, so copy what is kept for long.
pub struct StreamConsumer {
    shared: Arc<Shared>,
    client: Arc<Inner>,
    /// The chunk at hand.
    entries: Option<(Entries, i64)>,
    /// The offset wanted next.
    next: u64,
    /// Nothing written before this time is wanted, in milliseconds.
    not_before: i64,
    /// Which of its turns as the active consumer this is.
    turn: u64,
    /// Whether something was handed out in this turn.
    handed: bool,
    /// The offset that was stored last, by this consumer itself.
    stored: u64,
    /// What broke reading for good.
    broken: Option<BrokerError>,
}

impl StreamConsumer {
    /// Subscribes.
    pub(crate) async fn open(
        client: Arc<Inner>,
        (stream, super_stream): (&str, Option<&str>),
        from: StreamFrom,
        options: ConsumerOptions,
    ) -> Result<StreamConsumer, BrokerError> {
        if let Some(name) = &options.name {
            check_name("consumer", name)?;
        } else if options.single_active {
            let text = "a single active consumer needs a name, by which the others are known";
            return Err(BrokerError::new(BrokerErrorKind::Invalid, text));
        } else if options.store_every.is_some() {
            return Err(nameless());
        }
        let stored = match &options.name {
            Some(name) if options.resume => client.stored_offset(stream, name).await?,
            _ => None,
        };
        // Places that move are looked up once, so that reconnecting cannot move them.
        let resume = match stored.map_or(from, StreamFrom::Offset) {
            StreamFrom::Next => match client.ends(stream).await?.1 {
                Some((first, messages)) => OffsetSpec::Offset(first + u64::from(messages)),
                None => OffsetSpec::First,
            },
            StreamFrom::Last => match client.ends(stream).await?.1 {
                Some((first, messages)) => OffsetSpec::Offset(first + u64::from(messages.saturating_sub(1))),
                None => OffsetSpec::First,
            },
            other => other.into(),
        };
        let shared = Arc::new(Shared::new(stream, super_stream, options, resume, client.counters.consumer()));
        let mut patience = client.patience();
        while let Err(error) = attach(&client, &shared).await {
            patience.after(error).await?;
        }
        client.spawn(supervise(client.clone(), shared.clone()));
        let mut consumer = StreamConsumer {
            shared,
            client,
            entries: None,
            next: 0,
            not_before: i64::MIN,
            turn: 0,
            handed: false,
            stored: 0,
            broken: None,
        };
        consumer.begin(resume);
        Ok(consumer)
    }

    fn begin(&mut self, from: OffsetSpec) {
        (self.next, self.not_before) = match from {
            OffsetSpec::Offset(offset) => (offset, i64::MIN),
            OffsetSpec::Timestamp(time) => (0, time),
            _ => (0, i64::MIN),
        };
        (self.handed, self.stored) = (false, self.next);
    }

    /// Looks after what concerns others of its name: what was handed out is done, and so may be stored; and what is at
    /// hand is void when another one has become the active one.
    fn take_turn(&mut self) {
        let options = &self.shared.options;
        if !options.single_active && options.store_every.is_none() {
            return;
        }
        let mut state = self.shared.state.lock();
        // What was handed out before the turn ended is done, too.
        if self.handed {
            state.done = Some(self.next);
        }
        if state.turn != self.turn {
            (self.turn, self.entries) = (state.turn, None);
            if let Some(election) = &mut state.election {
                election.let_go = true;
                self.shared.wake.notify_one();
            }
            let begin = state.begin;
            drop(state);
            self.begin(begin);
            return;
        }
        let due = options.store_every.is_some_and(|every| self.next - self.stored >= every.get());
        if self.handed
            && due
            && let Some((link, _)) = &state.attached
        {
            self.stored = self.next;
            link.send(store(&self.shared.stream, options.name.as_deref().unwrap_or_default(), self.next));
        }
    }

    /// The stream.
    pub fn stream(&self) -> &str {
        &self.shared.stream
    }

    /// The offset of the message that comes next, at least.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Whether it is given messages: always, unless it is one of several of its name of which one is active.
    pub fn is_active(&self) -> bool {
        self.shared.state.lock().active
    }

    /// Durably remembers, under the consumer's name, the offset it wants next, at the broker. Once every few thousand
    /// messages is enough: each time takes a record in the stream.
    ///
    /// # Errors
    /// `Invalid` without a name; otherwise as every operation.
    pub async fn store_offset(&self, offset: u64) -> Result<(), BrokerError> {
        let link = self.shared.state.lock().attached.as_ref().map(|(link, _)| link.clone());
        self.client.store_offset(link.as_deref(), &self.shared.stream, self.name()?, offset).await
    }

    /// The offset stored under the consumer's name.
    ///
    /// # Errors
    /// `Invalid` without a name; otherwise as every operation.
    pub async fn stored_offset(&self) -> Result<Option<u64>, BrokerError> {
        self.client.stored_offset(&self.shared.stream, self.name()?).await
    }

    fn name(&self) -> Result<&str, BrokerError> {
        self.shared.options.name.as_deref().ok_or_else(nameless)
    }

    /// Up to `max` (at least one) items; waits at the end for more. Empty means that the client is closed.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When the stream was deleted or cannot be read.
    pub async fn next_chunk(&mut self, max: usize) -> Result<Vec<StreamItem>, BrokerError> {
        let mut chunk = Vec::new();
        poll_fn(|cx| self.poll_chunk(cx, max.max(1), &mut chunk)).await?;
        Ok(chunk)
    }

    /// Ends. With [`store_every`](ConsumerOptions::store_every), what was handed out is done, and stored so. Dropping a
    /// consumer stores nothing.
    ///
    /// # Errors
    /// When the offset could not be stored.
    pub async fn close(mut self) -> Result<(), BrokerError> {
        self.take_turn();
        if self.handed && self.shared.options.store_every.is_some() {
            self.store_offset(self.next).await?;
        }
        Ok(())
    }

    /// A reader over this consumer.
    pub fn into_reader(self) -> StreamReader {
        StreamReader::new(Box::new(self))
    }

    /// Takes the next chunk, if there is one and it is of this turn. The broker is then given credit for as many as fit.
    fn take_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, BrokerError>> {
        let (chunk, give) = {
            let mut state = self.shared.state.lock();
            if state.turn != self.turn {
                drop(state);
                self.take_turn();
                return Poll::Ready(Ok(true));
            }
            let Some(chunk) = state.chunks.pop_front() else {
                if let Some(error) = &state.over {
                    return Poll::Ready(Err(error.clone()));
                }
                if state.closing {
                    return Poll::Ready(Ok(false));
                }
                if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    state.waker = Some(cx.waker().clone());
                }
                return Poll::Pending;
            };
            (chunk, state.give(self.shared.options.bytes_max))
        };
        if let Some((link, number, count)) = give {
            link.send(credit(number, count));
        }
        let read = Chunk::read(chunk).and_then(|chunk| {
            let time = chunk.time;
            let mut entries = chunk.entries();
            if time >= self.not_before {
                entries.skip_to(self.next)?;
                self.entries = Some((entries, time));
            }
            Ok(())
        });
        Poll::Ready(read.map(|()| true).map_err(|error| self.fail(error)))
    }

    fn fail(&mut self, error: ChunkError) -> BrokerError {
        let text = format!("stream `{}` cannot be read at offset {}", self.shared.stream, self.next);
        let kind = match error {
            ChunkError::Compression(_) => BrokerErrorKind::Unsupported,
            _ => BrokerErrorKind::Damaged,
        };
        let error = BrokerError::with_source(kind, text, error);
        self.broken = Some(error.clone());
        error
    }

    /// Hands out up to `max` messages with what marks them.
    pub(crate) fn poll_each(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        mut each: impl FnMut(u64, i64, Message, Option<Mark>),
    ) -> Poll<Result<usize, BrokerError>> {
        if let Some(error) = &self.broken {
            return Poll::Ready(Err(error.clone()));
        }
        self.take_turn();
        let mut count = 0;
        loop {
            if let Some((entries, time)) = &mut self.entries {
                while count < max {
                    match entries.next() {
                        Ok(Some(Entry { offset, message, whole })) => {
                            self.next = offset.saturating_add(1);
                            let (message, mark) = amqp::decode(message, whole).unwrap_or_else(|error| {
                                let reason = Value::Text(error.to_string());
                                (Message::new(whole.slice_ref(message)).with_header(UNDECODED, reason), None)
                            });
                            each(offset, *time, message, mark);
                            count += 1;
                        }
                        Ok(None) => {
                            self.entries = None;
                            break;
                        }
                        Err(error) => {
                            let error = self.fail(error);
                            self.entries = None;
                            self.handed |= count > 0;
                            return Poll::Ready(if count > 0 { Ok(count) } else { Err(error) });
                        }
                    }
                }
            }
            if count > 0 {
                self.handed = true;
                return Poll::Ready(Ok(count));
            }
            match self.take_chunk(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(0)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

fn nameless() -> BrokerError {
    BrokerError::new(BrokerErrorKind::Invalid, "offsets are stored by name: give the consumer one")
}

impl StreamSource for StreamConsumer {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        into: &mut Vec<StreamItem>,
    ) -> Poll<Result<usize, BrokerError>> {
        // The time is the chunk's: made once for all of its messages.
        let mut last = (i64::MIN, time(0));
        self.poll_each(cx, max, |offset, millis, message, _| {
            if last.0 != millis {
                last = (millis, time(millis));
            }
            into.push(StreamItem { offset, time: last.1, message });
        })
    }
}

impl Drop for StreamConsumer {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl fmt::Debug for StreamConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamConsumer")
            .field("stream", &self.shared.stream)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

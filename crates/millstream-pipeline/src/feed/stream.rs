//! A stream of a broker, by offset.

use super::{Chunk, Feed};
use crate::intake::{offset_of, position_of};
use crate::item::Raw;
use millstream_flow::BoxError;
use millstream_message::{Broker, StreamFrom, StreamItem, StreamReader};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

/// The messages of a stream, in its order.
pub(crate) struct StreamFeed {
    broker: Arc<dyn Broker>,
    stream: String,
    from: StreamFrom,
    /// Read no further than what the stream holds at the beginning.
    drained: bool,
    /// The most items handed out at once.
    chunk: usize,
    position_name: String,
    reading: Option<Reading>,
}

struct Reading {
    reader: StreamReader,
    /// The end, if there is one: the offset behind the last message wanted.
    end: Option<u64>,
    /// All below was handed out, as far as that is known.
    at: u64,
}

impl StreamFeed {
    pub(crate) fn new(
        pipeline: &str,
        broker: Arc<dyn Broker>,
        stream: &str,
        from: StreamFrom,
        drained: bool,
        chunk: usize,
    ) -> Self {
        let position_name = format!("{pipeline}/stream/{stream}");
        StreamFeed { broker, stream: stream.to_owned(), from, drained, chunk, position_name, reading: None }
    }

    /// When the last message was appended, of a stream that has one.
    async fn newest(&mut self) -> Result<SystemTime, BoxError> {
        let mut reader = self.broker.read(&self.stream, StreamFrom::Last).await?;
        let last = reader.next_chunk(1).await?;
        Ok(last.last().map_or(SystemTime::UNIX_EPOCH, |item| item.time))
    }

    async fn begin(&mut self) -> Result<Reading, BoxError> {
        let (mut end, mut at) = (None, 0);
        if self.drained {
            let stats = self.broker.stream_stats(&self.stream).await?;
            end = Some(stats.next);
            let from = self.from;
            at = match from {
                StreamFrom::Offset(offset) => offset.max(stats.first),
                StreamFrom::Next => stats.next,
                StreamFrom::Timestamp(time) if stats.next > stats.first && self.newest().await? < time => {
                    stats.next
                }
                _ => stats.first,
            };
        }
        let reader = self.broker.read(&self.stream, self.from).await?;
        Ok(Reading { reader, end, at })
    }
}

/// The message as an item, which has a name to be found again by.
fn named(stream: &str, item: StreamItem) -> Raw {
    let StreamItem { offset, message, .. } = item;
    Raw::Message(match message.properties().message_id {
        Some(_) => message,
        None => message.with_message_id(format!("{stream}:{offset}")),
    })
}

impl Feed for StreamFeed {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Result<Option<Chunk>, BoxError>> + Send + '_>> {
        Box::pin(async {
            if self.reading.is_none() {
                self.reading = Some(self.begin().await?);
            }
            let Some(reading) = &mut self.reading else { return Ok(None) };
            if reading.end.is_some_and(|end| reading.at >= end) {
                return Ok(None);
            }
            let mut items = reading.reader.next_chunk(self.chunk).await?;
            let Some(last) = items.last() else {
                return Err(format!("the broker of stream `{}` was closed", self.stream).into());
            };
            reading.at = last.offset + 1;
            if let Some(end) = reading.end {
                items.retain(|item| item.offset < end);
            }
            let position = position_of(reading.end.map_or(reading.at, |end| reading.at.min(end)));
            let items = items.into_iter().map(|item| named(&self.stream, item)).collect();
            Ok(Some(Chunk { items, position: Some(position), reply: None }))
        })
    }

    fn resume(&mut self, position: &[u8]) -> Result<(), BoxError> {
        self.from = StreamFrom::Offset(offset_of(position)?);
        Ok(())
    }

    fn position_name(&self) -> Option<&str> {
        Some(&self.position_name)
    }
}

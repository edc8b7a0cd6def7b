//! A stream of a broker, by offset.

use super::{Chunk, Feed};
use crate::intake::{offset_of, position_of};
use crate::item::Raw;
use millstream_flow::BoxError;
use millstream_message::{Broker, BrokerError, StreamFrom, StreamItem, StreamReader, stream_extent};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

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
    reader: Option<StreamReader>,
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
        StreamFeed { broker, stream: stream.to_owned(), from, drained, chunk, position_name, reader: None }
    }

    async fn begin(&mut self) -> Result<StreamReader, BrokerError> {
        if !self.drained {
            return self.broker.read(&self.stream, self.from).await;
        }
        let held = stream_extent(&*self.broker, &self.stream, self.from).await?;
        Ok(self.broker.read(&self.stream, self.from).await?.until(held))
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
            let reader = match &mut self.reader {
                Some(reader) => reader,
                None => {
                    let reader = self.begin().await?;
                    self.reader.insert(reader)
                }
            };
            let items = reader.next_chunk(self.chunk).await?;
            let Some(last) = items.last() else {
                if self.drained {
                    return Ok(None);
                }
                return Err(format!("the broker of stream `{}` was closed", self.stream).into());
            };
            let position = position_of(last.offset + 1);
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

//! Streams: append-only, read by offset; in memory or in a log of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_message::{
    BrokerError, BrokerErrorKind, Message, StreamFrom, StreamReader, StreamSpec, StreamStats,
};
use parking_lot::Mutex;

use crate::shared::Shared;
use crate::stream_log::LoggedStream;
use crate::stream_memory::MemoryStream;

/// The streams of one broker by name.
#[derive(Default)]
pub(crate) struct Streams {
    by_name: Mutex<BTreeMap<String, Arc<Stream>>>,
}

/// One stream.
pub(crate) enum Stream {
    Memory(Arc<MemoryStream>),
    Logged(Arc<LoggedStream>),
}

impl Streams {
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Stream>> {
        self.by_name.lock().get(name).cloned()
    }

    pub(crate) fn insert(&self, stream: Stream) {
        let name = stream.spec().name.clone();
        self.by_name.lock().insert(name, Arc::new(stream));
    }

    pub(crate) fn remove(&self, name: &str) -> Option<Arc<Stream>> {
        self.by_name.lock().remove(name)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Stream>> {
        self.by_name.lock().values().cloned().collect()
    }

    /// In how many places each is known to be damaged, of those that are.
    pub(crate) fn damaged(&self) -> BTreeMap<String, u64> {
        let places = |(name, stream): (&String, &Arc<Stream>)| match &**stream {
            Stream::Logged(logged) => {
                Some((name.clone(), logged.damaged())).filter(|(_, places)| *places > 0)
            }
            Stream::Memory(_) => None,
        };
        self.by_name.lock().iter().filter_map(places).collect()
    }

    /// Those that are in the log, by number.
    pub(crate) fn logged(&self) -> BTreeMap<u32, StreamSpec> {
        let logged = |stream: &Arc<Stream>| match &**stream {
            Stream::Logged(logged) => Some((logged.id, logged.spec.clone())),
            Stream::Memory(_) => None,
        };
        self.by_name.lock().values().filter_map(logged).collect()
    }
}

impl Stream {
    pub(crate) fn spec(&self) -> &StreamSpec {
        match self {
            Stream::Memory(stream) => &stream.spec,
            Stream::Logged(stream) => &stream.spec,
        }
    }

    pub(crate) async fn append(&self, messages: Vec<Message>, shared: &Shared) -> Result<u64, BrokerError> {
        let max = shared.settings.message_bytes_max;
        if let Some(large) = messages.iter().map(Message::size).find(|size| *size > max) {
            let text = format!(
                "a message of {large} bytes is too large: at most {max} are taken; nothing was appended"
            );
            return Err(BrokerError::new(BrokerErrorKind::Invalid, text));
        }
        let now = shared.clock.now();
        match self {
            Stream::Memory(stream) => Ok(stream.append(messages, now)),
            Stream::Logged(stream) => stream.append(messages, now).await,
        }
    }

    pub(crate) fn read(&self, from: StreamFrom, shared: &Arc<Shared>) -> Result<StreamReader, BrokerError> {
        match self {
            Stream::Memory(stream) => Ok(stream.read(from, shared)),
            Stream::Logged(stream) => stream.read(from),
        }
    }

    pub(crate) fn stats(&self, now: u64) -> Result<StreamStats, BrokerError> {
        match self {
            Stream::Memory(stream) => Ok(stream.stats(now)),
            Stream::Logged(stream) => stream.stats(),
        }
    }

    /// Ends it for its readers; what it had on the disk is removed.
    pub(crate) fn delete(&self) {
        match self {
            Stream::Memory(stream) => stream.delete(),
            Stream::Logged(stream) => stream.delete(),
        }
    }

    /// Wakes readers, which see that the broker is closed.
    pub(crate) fn wake(&self) {
        match self {
            Stream::Memory(stream) => stream.wake(),
            Stream::Logged(stream) => stream.wake(),
        }
    }

    /// Writes what is pending and gives the directory free.
    pub(crate) async fn close(&self) -> Result<(), BrokerError> {
        match self {
            Stream::Memory(_) => Ok(()),
            Stream::Logged(stream) => stream.close().await,
        }
    }

    /// The same without waiting for it to work.
    pub(crate) fn abandon(&self) {
        if let Stream::Logged(stream) = self {
            drop(stream.take());
        }
    }
}

pub(crate) fn deleted(name: &str) -> BrokerError {
    BrokerError::new(BrokerErrorKind::NotFound, format!("stream `{name}` was deleted"))
}

//! Where items come from: each source as a feed of chunks.

mod file;
mod generate;
#[cfg(feature = "http")]
mod http;
mod lines;
mod stdin;
mod stream;

pub(crate) use self::file::FileFeed;
pub(crate) use self::generate::GenerateFeed;
#[cfg(feature = "http")]
pub(crate) use self::http::HttpFeed;
pub(crate) use self::lines::CHUNK_BYTES;
pub(crate) use self::stdin::StdinFeed;
pub(crate) use self::stream::StreamFeed;

use crate::file::model::{Reading, Source};
use crate::item::Raw;
use bytes::Bytes;
use millstream_flow::BoxError;
use std::future::Future;
use std::pin::Pin;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// The most items of a chunk.
pub(crate) const CHUNK_ITEMS: usize = 1024;

/// The same where a chunk's position is kept by itself: a run that is stopped hands the rest of its chunk out, and one that fails or is
/// killed repeats it.
pub(crate) const CHUNK_REMEMBERED: usize = 128;

/// Some items that a source gave at once.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) items: Vec<Raw>,
    /// How far the source has read with these items, to be stored with them.
    pub(crate) position: Option<Bytes>,
    /// Whoever waits for these items to be safe.
    pub(crate) reply: Option<Reply>,
}

/// Told once whether the items of a chunk are safe. Dropping it says that they are not.
#[derive(Debug)]
pub(crate) struct Reply {
    to: oneshot::Sender<Result<(), NotSafe>>,
    /// The room that the items take until then, whether anybody still waits or not.
    _room: Vec<OwnedSemaphorePermit>,
}

/// Why the items of a chunk are not safe.
#[derive(Debug)]
pub(crate) enum NotSafe {
    /// They never will be: the broker does not take as much.
    TooLarge(String),
    /// The run cannot keep them.
    Ended(String),
}

impl Reply {
    #[cfg(feature = "http")]
    pub(crate) fn new(to: oneshot::Sender<Result<(), NotSafe>>, room: Vec<OwnedSemaphorePermit>) -> Self {
        Reply { to, _room: room }
    }

    /// Tells; nobody listens any more when the client has gone.
    pub(crate) fn send(self, safe: Result<(), NotSafe>) {
        let _ = self.to.send(safe);
    }
}

/// A source of chunks.
///
/// # Cancel safety
///
/// Dropping the future of [`next`](Feed::next) loses no item: what was read stays in the feed.
pub(crate) trait Feed: Send {
    /// The next chunk; `None` at the end. An error ends the run.
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Result<Option<Chunk>, BoxError>> + Send + '_>>;

    /// Goes on at a stored position, before the first chunk.
    ///
    /// # Errors
    ///
    /// If the position is not one of this feed's.
    fn resume(&mut self, _position: &[u8]) -> Result<(), BoxError> {
        Ok(())
    }

    /// Whether the source loses nothing and keeps nobody waiting when it is read later.
    fn can_wait(&self) -> bool {
        true
    }

    /// The name its position is stored under, if it has one.
    fn position_name(&self) -> Option<&str> {
        None
    }
}

/// The items that a source would make of `text`; sources that read no text take JSON lines.
///
/// # Errors
///
/// If the text begins with a header that makes no sense.
pub(crate) fn text_items(source: &Source, text: &str) -> Result<Vec<Raw>, BoxError> {
    let ndjson = Reading::ndjson();
    let read = match source {
        Source::File { read, .. } | Source::Stdin { read } => read,
        _ => &ndjson,
    };
    let mut lines = lines::Lines::new(read, "text".into());
    lines.framer.buffer().extend_from_slice(text.as_bytes());
    let mut items = Vec::new();
    lines.take_all(&mut items)?;
    Ok(items)
}

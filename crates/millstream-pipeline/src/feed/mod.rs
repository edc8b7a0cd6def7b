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
pub(crate) use self::stdin::StdinFeed;
pub(crate) use self::stream::StreamFeed;

use crate::file::model::{Reading, Source};
use crate::item::Raw;
use bytes::Bytes;
use millstream_flow::BoxError;
use std::future::Future;
use std::pin::Pin;

/// The most items of a chunk.
pub(crate) const CHUNK_ITEMS: usize = 1024;

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
pub(crate) type Reply = tokio::sync::oneshot::Sender<Result<(), String>>;

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
    lines.take(usize::MAX, true, &mut items)?;
    Ok(items)
}

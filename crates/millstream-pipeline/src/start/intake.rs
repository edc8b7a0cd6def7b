//! Where the items of a run come from, and where the last run stopped.

use super::{StartError, Starting};
use crate::bound;
use crate::feed::{CHUNK_ITEMS, CHUNK_REMEMBERED, Feed, FileFeed, GenerateFeed, StdinFeed, StreamFeed};
use crate::file::model::{Buffer, Prefetch, QueueRef, Source, StreamSource, Then};
use crate::file::units::show_size;
use crate::intake::{self, Ingest, Intake, Keeper, PositionFile, Remembered, position_of};
use crate::run::{Counted, Stored};
use millstream_message::{Address, Broker, ConsumeOptions, Consumer, Overflow, Queue, StreamOffset};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

impl Starting<'_> {
    /// The source's items, for a durable buffer the count of what was stored and found, and the position to be saved
    /// by hand.
    pub(super) async fn intake(
        &self,
    ) -> Result<(Intake, Option<Stored>, Option<Arc<Remembered>>), StartError> {
        let draft = &self.pipeline.draft;
        if let Some(Source::Queue { queue, prefetch, drained }) = draft.source.as_deref() {
            let broker = self.broker(&queue.broker).await?;
            self.declare_unless_there(&broker, &queue.name, self.queue_with_letters(&queue.name)).await?;
            let consumer = self.consume(&broker, queue, prefetch, *drained).await?;
            let dead_letters = matches!(draft.on_error.then, Then::DeadLetter { .. }) && self.queue_fed();
            let intake = intake::queued(consumer, JoinSet::new(), dead_letters, self.trouble.clone());
            return Ok((intake, None, None));
        }
        let mut feed = self.feed().await?;
        let Buffer::Queue { queue, items_max, bytes_max, prefetch } = &draft.buffer.value else {
            let position = self.remembered(&mut *feed).await?;
            return Ok((intake::direct(feed, position.clone(), self.trouble.clone()), None, position));
        };
        let broker = self.broker(&queue.broker).await?;
        let mut declared = self.queue_with_letters(&queue.name).overflow(Overflow::Reject);
        if let Some(max) = items_max {
            declared = declared.max_items(max.value);
        }
        if let Some(max) = bytes_max {
            declared = declared.max_bytes(max.value);
        }
        self.declare(&broker, declared).await?;
        let stats = broker
            .stats(&queue.name)
            .await
            .map_err(|error| self.pipeline.start_error("its queue cannot be read", error))?;
        let feed = self.resumed(feed, &broker).await?;
        let consumer = self.consume(&broker, queue, prefetch, false).await?;
        let stored = Arc::new(AtomicU64::new(0));
        let counted = Counted { found: stats.total(), stored: stored.clone() };
        let ingest = Ingest {
            broker,
            queue: Address::queue(queue.name.value.as_str()),
            stored,
            stop: self.stopped.clone(),
            limited: items_max.is_some() || bytes_max.is_some(),
            ahead_max: bound::AHEAD_BYTES,
            mean_bytes: AtomicU64::new(0),
            trouble: self.trouble.clone(),
        };
        let mut tasks = JoinSet::new();
        let (tell, failed) = oneshot::channel();
        tasks.spawn(async move {
            let Err(error) = ingest.run(feed).await else { return Ok(()) };
            // The flow may not look for long, while its output waits.
            match tell.send(error) {
                Ok(()) => std::future::pending().await,
                Err(error) => Err(error),
            }
        });
        let dead_letters = matches!(draft.on_error.then, Then::DeadLetter { .. });
        let intake = intake::queued(consumer, tasks, dead_letters, self.trouble.clone());
        Ok((intake, Some(Stored { counted, failed }), None))
    }

    async fn feed(&self) -> Result<Box<dyn Feed>, StartError> {
        let pipeline = self.pipeline;
        // Items that are stored together must fit into the queue together.
        let chunk = match &pipeline.draft.buffer.value {
            Buffer::Queue { items_max: Some(max), .. } => CHUNK_ITEMS.min(max.value as usize),
            Buffer::Queue { .. } => CHUNK_ITEMS,
            Buffer::Memory { .. } => match pipeline.draft.source.as_deref() {
                Some(Source::Stream(_) | Source::File { position: Some(_), .. }) => CHUNK_REMEMBERED,
                _ => CHUNK_ITEMS,
            },
        };
        Ok(match &pipeline.source().value {
            Source::File { path, read, follow, .. } => {
                let feed = FileFeed::open(pipeline.name(), &pipeline.base, path, read, follow.value, chunk)
                    .map_err(|error| pipeline.start_error("its source cannot be opened", error))?;
                Box::new(feed)
            }
            Source::Stdin { read } => Box::new(StdinFeed::new(tokio::io::stdin(), read, chunk)),
            Source::Stream(source) => {
                let broker = self.stream(&source.stream).await?;
                let (name, from) = (&source.stream.name, source.from.value);
                Box::new(StreamFeed::new(pipeline.name(), broker, name, from, source.drained, chunk))
            }
            Source::Generate { count, rate, template } => {
                Box::new(GenerateFeed::new(*count, *rate, template.clone(), chunk))
            }
            #[cfg(feature = "http")]
            Source::Http(http) => Box::new(
                crate::feed::HttpFeed::listen(http)
                    .await
                    .map_err(|error| pipeline.start_error("its source cannot listen", error))?,
            ),
            #[cfg(not(feature = "http"))]
            Source::Http(_) => return Err(self.without_http()),
            Source::Queue { .. } => unreachable!("a queue is consumed, not fed"),
        })
    }

    /// Where the position of a source is kept that no queue keeps, with the feed going on where an earlier run stopped.
    async fn remembered(&self, feed: &mut dyn Feed) -> Result<Option<Arc<Remembered>>, StartError> {
        let position = match self.pipeline.draft.source.as_deref() {
            Some(Source::Stream(source)) => return self.remembered_offset(source, feed).await.map(Some),
            Some(Source::File { position: Some(position), .. }) => position,
            _ => return Ok(None),
        };
        let (file, found) = PositionFile::open(&position.value, self.hold.clone())
            .map_err(|error| self.pipeline.start_error("its position cannot be read", error))?;
        if let Some(found) = found {
            feed.resume(&found).map_err(|error| {
                let remedy = "move it away to begin again";
                let what = format!("the position file {}: {error}; {remedy}", position.value.display());
                self.pipeline.start_error("its source cannot go on", what)
            })?;
        }
        Ok(Some(Remembered::new(Keeper::File(file))))
    }

    async fn remembered_offset(
        &self,
        source: &StreamSource,
        feed: &mut dyn Feed,
    ) -> Result<Arc<Remembered>, StartError> {
        let name = &source.stream.name;
        let reader = source.reader.as_ref().map_or(self.pipeline.name(), |reader| reader.value.as_str());
        let broker = self.broker(&source.stream.broker).await?;
        let (offset, stored) = StreamOffset::open(broker, name, reader).await.map_err(|error| {
            self.pipeline.start_error(format!("the offset of its reader `{reader}` cannot be read"), error)
        })?;
        if let Some(stored) = stored {
            feed.resume(&position_of(stored))
                .map_err(|error| self.pipeline.start_error("its source cannot go on", error))?;
        }
        Ok(Remembered::new(Keeper::Stream(offset)))
    }

    /// The feed, going on where an earlier run stopped.
    async fn resumed(
        &self,
        mut feed: Box<dyn Feed>,
        broker: &Arc<dyn Broker>,
    ) -> Result<Box<dyn Feed>, StartError> {
        let Some(name) = feed.position_name().map(str::to_owned) else { return Ok(feed) };
        let position = broker
            .position(&name)
            .await
            .map_err(|error| self.pipeline.start_error("its position cannot be read", error))?;
        if let Some(position) = position {
            feed.resume(&position)
                .map_err(|error| self.pipeline.start_error("its source cannot go on", error))?;
        }
        Ok(feed)
    }

    /// A queue whose dead letters go where `on_error` says.
    fn queue_with_letters(&self, name: &str) -> Queue {
        let queue = Queue::durable(name);
        match &self.pipeline.draft.on_error.then {
            Then::DeadLetter { queue: dead, .. } => queue.dead_letter("", &dead.value),
            _ => queue,
        }
    }

    async fn consume(
        &self,
        broker: &Arc<dyn Broker>,
        queue: &QueueRef,
        prefetch: &Prefetch,
        drained: bool,
    ) -> Result<Consumer, StartError> {
        let bytes = usize::try_from(prefetch.bytes.value).unwrap_or(usize::MAX);
        let items = prefetch.items.value as usize;
        // The printed memory bound counts this many.
        let options = match prefetch.items.at {
            Some(_) => ConsumeOptions::default().prefetch(items),
            None => ConsumeOptions::default().prefetch_auto(items, items),
        };
        let mut options = options.prefetch_bytes(bytes).name(self.pipeline.name());
        if drained {
            options = options.stop_when_empty();
        }
        broker.consume(&queue.name, options).await.map_err(|error| {
            let what = format!(
                "its queue `{}` cannot be consumed ({} prefetched)",
                queue.name.value,
                show_size(bytes as u64)
            );
            self.pipeline.start_error(what, error)
        })
    }
}

//! From a checked file to a running flow.

use crate::batcher::Batcher;
use crate::bound;
use crate::brokers::Brokers;
use crate::feed::{CHUNK_ITEMS, Feed, FileFeed, GenerateFeed, StdinFeed, StreamFeed};
use crate::file::Pipeline;
use crate::file::model::{Buffer, OutputKind, Prefetch, QueueRef, Source, StreamRef, StreamSource, Then};
use crate::file::units::show_size;
use crate::hold::{self, Hold, Released};
use crate::intake::{self, Ingest, Intake, Keeper, PositionFile, Remembered, StreamOffset, position_of};
use crate::item::{Raw, Reporter};
use crate::letters::Letters;
use crate::output::SKIPPED;
use crate::output::file::Files;
use crate::output::{End, Out, Outputs, QueueOutput, StdoutOutput, StreamOutput, Tries};
use crate::ready::{Ready, Writer};
use crate::run::{Counted, Run};
use crate::steps::{self, Passage, Router};
use crate::trouble::Trouble;
use millstream_flow::flows::BoxFlow;
use millstream_flow::{BoxError, Capacity, Clock, PanicPolicy, Pipe, Token};
use millstream_message::{
    Address, Broker, BrokerErrorKind, BrokerUrl, ConsumeOptions, Consumer, Overflow, Queue, StreamSpec,
};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Why a pipeline could not be started. Nothing of it runs.
#[derive(Debug, thiserror::Error)]
#[error("cannot start pipeline `{pipeline}`: {what}")]
pub struct StartError {
    pipeline: String,
    what: String,
    source: Option<BoxError>,
}

impl Pipeline {
    /// Opens everything that the pipeline names and starts it on the current runtime.
    ///
    /// # Errors
    ///
    /// What cannot be opened: a directory that is locked or not writable, a file that is not there, a port
    /// that is taken, a queue that exists with other settings.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn start(&self, brokers: &Brokers) -> Result<Run, StartError> {
        let clock = Clock::system();
        let trouble =
            Arc::new(Trouble::new(self.draft.goals.error_rate_max.as_ref().map(|rate| rate.value), clock));
        let (stop, stopped) = watch::channel(false);
        let (hold, released) = hold::hold();
        let starting = Starting { pipeline: self, brokers, clock, trouble, stopped, hold };
        starting.start(stop, released).await
    }

    pub(crate) fn start_error(&self, what: impl Into<String>, source: impl Into<BoxError>) -> StartError {
        StartError { pipeline: self.name().to_owned(), what: what.into(), source: Some(source.into()) }
    }
}

struct Starting<'a> {
    pipeline: &'a Pipeline,
    brokers: &'a Brokers,
    clock: Clock,
    trouble: Arc<Trouble>,
    stopped: watch::Receiver<bool>,
    hold: Hold,
}

impl Starting<'_> {
    async fn start(self, stop: watch::Sender<bool>, released: Released) -> Result<Run, StartError> {
        let draft = &self.pipeline.draft;
        let reporter = Arc::new(Reporter {
            clock: self.clock,
            trouble: self.trouble.clone(),
            show_place: matches!(draft.on_error.then, Then::Fail),
        });
        // Outputs first: a source that accepts items must have somewhere to put them.
        let letters = self.letters().await?;
        let (writers, outs) = self.outputs().await?;
        let (intake, counted, position) = self.intake().await?;

        let source = draft.source.as_ref().map_or("source", |source| source.kind());
        let pipe = Pipe::from_tracked(intake.account, intake.stream).named(source);
        let pipe = match draft.on_error.then {
            Then::Fail => pipe,
            // A step that panics is its item's error like any other.
            _ => pipe.on_panic(PanicPolicy::Dead),
        };
        let pipe = match (&draft.buffer.value, counted.is_some()) {
            (Buffer::Memory { items, bytes }, false) => {
                let capacity =
                    Capacity::items(*items as usize).bytes(*bytes as usize, |raw: &Raw| raw.footprint());
                pipe.buffer_measured(capacity).boxed()
            }
            _ => pipe.boxed(),
        };
        let mut pipe = steps::add(steps::read(pipe, &reporter), &draft.steps, &reporter);
        if let Some(route) = &draft.route {
            let router = Router::new(route, &draft.outputs, &reporter);
            pipe = pipe.filter_map(move |passing| router.apply(passing)).named("route").boxed();
        }
        let ready = self.ready(pipe, writers, &reporter, letters.as_ref());
        let rule = bound::batching(draft);
        let batches = ready.via("batch", |flow| Batcher::new(flow, rule)).buffer(bound::WAITING_BATCHES);

        let end = match (&draft.on_error.then, letters) {
            (Then::Fail, _) => End::Fail,
            (_, Some(letters)) => End::Letters(letters),
            (Then::Skip, _) => End::Skip,
            (_, None) => End::Settle,
        };
        let tries = Tries::new(draft.on_error.retry);
        let outputs = Outputs::new(outs, tries, end, self.trouble.clone(), position, bound::writing(draft));
        let plan = batches.into_sink(outputs);
        Ok(Run::new(self.pipeline, plan, counted, stop, self.trouble, released))
    }

    /// Whether items come by a queue, whose dead letters the queue itself makes. A stream makes none.
    fn queue_fed(&self) -> bool {
        let draft = &self.pipeline.draft;
        match draft.source.as_deref() {
            Some(Source::Queue { queue, .. }) => !matches!(queue.broker, BrokerUrl::RabbitmqStream(_)),
            _ => matches!(draft.buffer.value, Buffer::Queue { .. }),
        }
    }

    /// The dead-letter queue, declared; given back only where letters are published to it by hand.
    async fn letters(&self) -> Result<Option<Letters>, StartError> {
        let Then::DeadLetter { queue, broker: Some(url) } = &self.pipeline.draft.on_error.then else {
            return Ok(None);
        };
        let broker = self.broker(url).await?;
        self.declare(&broker, Queue::durable(&queue.value)).await?;
        Ok((!self.queue_fed()).then(|| Letters::new(broker, &queue.value, self.clock)))
    }

    async fn outputs(&self) -> Result<(Vec<Writer>, Vec<(Arc<str>, Out)>), StartError> {
        let draft = &self.pipeline.draft;
        let mut writers = Vec::new();
        let mut outs = Vec::new();
        for output in &draft.outputs {
            let mut bytes_max = usize::try_from(draft.batch.bytes.value).unwrap_or(usize::MAX).max(1 << 20);
            let mut writer = None;
            let out = match &output.kind {
                OutputKind::File(file) => {
                    let made = Writer::new(output, &draft.batch, bytes_max);
                    let files = Files::open(file, made.header(), self.hold.clone())
                        .map_err(|error| self.pipeline.start_error("its output cannot be opened", error))?;
                    writer = Some(made);
                    Out::Files(Arc::new(Mutex::new(files)))
                }
                OutputKind::Stdout { .. } => {
                    let made = Writer::new(output, &draft.batch, bytes_max);
                    let stdout = StdoutOutput::new(Box::new(std::io::stdout()), made.header());
                    writer = Some(made);
                    Out::Stdout(stdout)
                }
                OutputKind::Queue(queue) => {
                    let broker = self.broker(&queue.broker).await?;
                    self.declare_unless_there(&broker, &queue.name, Queue::durable(&queue.name.value))
                        .await?;
                    let max = broker.features().max_message_bytes;
                    bytes_max = bytes_max.min(usize::try_from(max).unwrap_or(usize::MAX));
                    Out::Queue(QueueOutput::new(broker, &queue.name))
                }
                OutputKind::Stream(stream) => {
                    let broker = self.stream(stream).await?;
                    let max = broker.features().max_message_bytes;
                    bytes_max = bytes_max.min(usize::try_from(max).unwrap_or(usize::MAX));
                    Out::Stream(StreamOutput::new(broker, &stream.name))
                }
                OutputKind::Http(http) => self.http_output(http)?,
            };
            writers.push(writer.unwrap_or_else(|| Writer::new(output, &draft.batch, bytes_max)));
            outs.push((Arc::from(output.name.value.as_str()), out));
        }
        Ok((writers, outs))
    }

    #[cfg(feature = "http")]
    fn http_output(&self, http: &crate::file::model::HttpOutput) -> Result<Out, StartError> {
        crate::output::HttpClient::new(http)
            .map(Out::Http)
            .map_err(|error| self.pipeline.start_error("its http output cannot be set up", error))
    }

    #[cfg(not(feature = "http"))]
    fn http_output(&self, _: &crate::file::model::HttpOutput) -> Result<Out, StartError> {
        Err(self.without_http())
    }

    #[cfg(not(feature = "http"))]
    fn without_http(&self) -> StartError {
        let what = "it uses http, which this program was built without; build with the feature `http`";
        StartError { pipeline: self.pipeline.name().to_owned(), what: what.to_owned(), source: None }
    }

    /// The source's items, for a durable buffer the count of what was stored and found, and the position to be saved
    /// by hand.
    async fn intake(&self) -> Result<(Intake, Option<Counted>, Option<Arc<Remembered>>), StartError> {
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
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(ingest.run(feed));
        let dead_letters = matches!(draft.on_error.then, Then::DeadLetter { .. });
        let intake = intake::queued(consumer, tasks, dead_letters, self.trouble.clone());
        Ok((intake, Some(counted), None))
    }

    async fn feed(&self) -> Result<Box<dyn Feed>, StartError> {
        let pipeline = self.pipeline;
        // Items that are stored together must fit into the queue together.
        let chunk = match &pipeline.draft.buffer.value {
            Buffer::Queue { items_max: Some(max), .. } => CHUNK_ITEMS.min(max.value as usize),
            _ => CHUNK_ITEMS,
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
        let stored = broker.stored_offset(name, reader).await;
        let failed = |error| {
            self.pipeline.start_error(format!("the offset of its reader `{reader}` cannot be read"), error)
        };
        if let Some(offset) = stored.map_err(failed)? {
            feed.resume(&position_of(offset))
                .map_err(|error| self.pipeline.start_error("its source cannot go on", error))?;
        }
        Ok(Remembered::new(Keeper::Stream(StreamOffset::new(broker, name, reader))))
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

    fn ready(
        &self,
        pipe: Passage,
        mut writers: Vec<Writer>,
        reporter: &Arc<Reporter>,
        letters: Option<&Letters>,
    ) -> Pipe<BoxFlow<Ready, Token>> {
        let draft = &self.pipeline.draft;
        let stages: Vec<Arc<str>> =
            draft.outputs.iter().map(|output| Arc::from(output.name.value.as_str())).collect();
        let reporter = reporter.clone();
        // The place travels on only where it may be needed: in a dead letter, or as the id of a message.
        let kept: Vec<bool> = draft
            .outputs
            .iter()
            .map(|output| {
                letters.is_some() || matches!(output.kind, OutputKind::Queue(_) | OutputKind::Stream(_))
            })
            .collect();
        let written = pipe
            .map(move |passing| {
                let record = passing?;
                let output = record.output;
                writers[output]
                    .write(&record, kept[output])
                    .map_err(|reason| reporter.failure(record.letter(), reason, &stages[output]))
            })
            .named("write");
        match (&draft.on_error.then, letters) {
            (Then::Fail, _) => written.fail_fast().named("on_error").boxed(),
            (Then::Skip, _) => written.skip_errors().named(SKIPPED).boxed(),
            (Then::DeadLetter { .. }, None) => written.reject().named("on_error").boxed(),
            (Then::DeadLetter { .. }, Some(letters)) => {
                let letters = letters.clone();
                written
                    .dead_letter(move |failure| letters.clone().send_failure(failure))
                    .named("on_error")
                    .boxed()
            }
        }
    }

    async fn broker(&self, url: &BrokerUrl) -> Result<Arc<dyn Broker>, StartError> {
        self.brokers.open(url).await.map_err(|error| {
            let place = match url {
                BrokerUrl::Embedded(directory) => format!("in {}", directory.display()),
                other => format!("`{other}`"),
            };
            self.pipeline.start_error(format!("its broker {place} cannot be opened"), error)
        })
    }

    /// The broker of a stream, which is made if it is not there.
    async fn stream(&self, stream: &StreamRef) -> Result<Arc<dyn Broker>, StartError> {
        let broker = self.broker(&stream.broker).await?;
        let name = stream.name.value.as_str();
        let there = match broker.stream_stats(name).await {
            Err(error) if error.kind() == BrokerErrorKind::NotFound => {
                broker.declare_stream(StreamSpec::new(name)).await
            }
            other => other.map(drop),
        };
        match there {
            Ok(()) => Ok(broker),
            Err(error) => {
                Err(self.pipeline.start_error(format!("its stream `{name}` cannot be used"), error))
            }
        }
    }

    async fn declare(&self, broker: &Arc<dyn Broker>, queue: Queue) -> Result<(), StartError> {
        let name = queue.name.clone();
        broker.declare_queue(queue).await.map_err(|error| {
            self.pipeline.start_error(format!("its queue `{name}` cannot be declared"), error)
        })
    }

    /// Takes a queue as it is, where it is there already and its dead letters go where the pipeline says.
    async fn declare_unless_there(
        &self,
        broker: &Arc<dyn Broker>,
        name: &str,
        queue: Queue,
    ) -> Result<(), StartError> {
        if !broker.features().list {
            // It cannot tell how a queue was declared, only whether that is what is asked for.
            let needs_letters = queue.dead_letter_key.is_some();
            return match broker.declare_queue(queue).await {
                Err(error) if error.kind() == BrokerErrorKind::Mismatch && !needs_letters => Ok(()),
                Err(error) => {
                    let what = format!("its queue `{name}` cannot be used as `on_error` says");
                    Err(self.pipeline.start_error(what, error))
                }
                Ok(()) => Ok(()),
            };
        }
        let there = broker.queue(name).await.map_err(|error| {
            self.pipeline.start_error(format!("its queue `{name}` cannot be looked up"), error)
        })?;
        let Some(there) = there else { return self.declare(broker, queue).await };
        if queue.dead_letter_key.is_some() && there.dead_letter_key != queue.dead_letter_key {
            let goes = there.dead_letter_key.unwrap_or_else(|| "nowhere".to_owned());
            let what = format!(
                "dead letters of queue `{name}` go to {goes}; name that queue in `on_error.dead_letter`, or delete and declare `{name}` anew"
            );
            return Err(StartError { pipeline: self.pipeline.name().to_owned(), what, source: None });
        }
        Ok(())
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
        let mut options = ConsumeOptions::default()
            .prefetch(prefetch.items.value as usize)
            .prefetch_bytes(bytes)
            .name(self.pipeline.name());
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

//! From a checked file to a running flow.

mod intake;

use crate::batcher::Batcher;
use crate::bound;
use crate::brokers::Brokers;
use crate::file::Pipeline;
use crate::file::model::{Buffer, OutputKind, Source, StreamRef, Then};
use crate::hold::{self, Hold, Released};
use crate::intake::Items;
use crate::item::{Raw, Reporter};
use crate::letters::Letters;
use crate::output::file::Files;
use crate::output::{End, Out, Outputs, QueueOutput, StdoutOutput, StreamOutput, Tries, Writing};
use crate::output::{ROUTE, SKIPPED};
use crate::ready::{Ready, Writer};
use crate::run::Run;
use crate::steps::{self, Passage, Router};
use crate::trouble::Trouble;
use millstream_flow::flows::BoxFlow;
use millstream_flow::{BoxError, Capacity, Clock, PanicPolicy, Pipe, Token};
use millstream_message::{Broker, BrokerErrorKind, BrokerUrl, Queue, StreamSpec};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

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
        let (intake, stored, position) = self.intake().await?;

        let source = draft.source.as_ref().map_or("source", |source| source.kind());
        let account = intake.account.clone();
        let pipe = match intake.stream {
            Items::Single(items) => Pipe::from_tracked(intake.account, items),
            Items::Chunks(make) => Pipe::from_tracked_until(intake.account, make),
        };
        let pipe = pipe.named(source).knob(intake.prefetch);
        let pipe = match draft.on_error.then {
            Then::Fail => pipe,
            // A step that panics is its item's error like any other.
            _ => pipe.on_panic(PanicPolicy::Dead),
        };
        let pipe = match (&draft.buffer.value, stored.is_some()) {
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
            pipe = pipe.filter_map(move |passing| router.apply(passing)).named(ROUTE).boxed();
        }
        let ready = self.ready(pipe, writers, &reporter, letters.as_ref());
        let rule = bound::batching(draft);
        let knobs = bound::knobs(draft, &rule);
        let batches = ready
            .knob(knobs.count.clone())
            .knob(knobs.bytes.clone())
            .knob(knobs.age.clone())
            .via("batch", |flow| Batcher::new(flow, rule, knobs))
            .buffer(bound::WAITING_BATCHES);

        let end = match (&draft.on_error.then, letters) {
            (Then::Fail, _) => End::Fail,
            (_, Some(letters)) => End::Letters(letters),
            (Then::Skip, _) => End::Skip,
            (_, None) => End::Settle,
        };
        let outputs = Outputs::new(Writing {
            outs,
            tries: Tries::new(draft.on_error.retry),
            end,
            trouble: self.trouble.clone(),
            account,
            position: position.clone(),
            losing: draft.loses(),
            batches_max: bound::writing(draft),
        });
        let plan = batches.into_sink(outputs);
        Ok(Run::new(self.pipeline, plan, stored, position, stop, self.trouble, released))
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
            let bytes_max = usize::try_from(draft.batch.bytes.value).unwrap_or(usize::MAX).max(1 << 20);
            let made = || Writer::new(output, &draft.batch, bytes_max);
            let mut writer = None;
            let out = match &output.kind {
                OutputKind::File(file) => {
                    let made = made();
                    let files = Files::open(file, made.header(), self.hold.clone())
                        .map_err(|error| self.pipeline.start_error("its output cannot be opened", error))?;
                    writer = Some(made);
                    Out::Files(Arc::new(Mutex::new(files)))
                }
                OutputKind::Stdout { .. } => {
                    let made = made();
                    let stdout = StdoutOutput::new(Box::new(std::io::stdout()), made.header());
                    writer = Some(made);
                    Out::Stdout(stdout)
                }
                OutputKind::Queue(queue) => {
                    let broker = self.broker(&queue.broker).await?;
                    self.declare_unless_there(&broker, &queue.name, Queue::durable(&queue.name.value))
                        .await?;
                    writer = Some(made().of_messages(broker.features().max_message_bytes));
                    Out::Queue(QueueOutput::new(broker, &queue.name))
                }
                OutputKind::Stream(stream) => {
                    let broker = self.stream(stream).await?;
                    writer = Some(made().of_messages(broker.features().max_message_bytes));
                    Out::Stream(StreamOutput::new(broker, &stream.name))
                }
                OutputKind::Http(http) => self.http_output(http)?,
            };
            writers.push(writer.unwrap_or_else(made));
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
        let way = |queue: &Queue| (queue.dead_letter_exchange.clone(), queue.dead_letter_key.clone());
        if queue.dead_letter_key.is_some() && way(&there) != way(&queue) {
            let goes = match way(&there) {
                (None, _) => "nowhere".to_owned(),
                (Some(exchange), Some(key)) if exchange.is_empty() => key,
                (Some(exchange), Some(key)) => format!("exchange `{exchange}` under key `{key}`"),
                (Some(exchange), None) => format!("exchange `{exchange}` under their own keys"),
            };
            let what = format!(
                "dead letters of queue `{name}` go to {goes}; name that queue in `on_error.dead_letter`, or delete and declare `{name}` anew"
            );
            return Err(StartError { pipeline: self.pipeline.name().to_owned(), what, source: None });
        }
        Ok(())
    }
}

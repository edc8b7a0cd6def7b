//! What a pipeline file means: the tree as values, with every default applied.

use super::place::{At, Spanned};
use super::template::Template;
use crate::bound::VALUE_FACTOR;
use crate::expr::{Condition, Mapping};
use crate::handlers::Handler;
use millstream_message::{BrokerUrl, StreamFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A setting: its value, and where it was given if it was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) at: Option<At>,
}

/// Everything a pipeline file says. `source` and `outputs` may be missing while the file is being checked.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) name: String,
    pub(crate) source: Option<Spanned<Source>>,
    pub(crate) buffer: Spanned<Buffer>,
    pub(crate) steps: Vec<Step>,
    pub(crate) batch: Batch,
    pub(crate) outputs: Vec<Output>,
    /// The last step, if it is a `route`.
    pub(crate) route: Option<Route>,
    /// Where `output` holds `named`.
    pub(crate) named: Option<At>,
    pub(crate) on_error: OnError,
    pub(crate) goals: Goals,
}

impl Draft {
    /// Whether items that were accepted and not written are gone with the run: the source gives each once, and nothing
    /// durable keeps it.
    pub(crate) fn loses(&self) -> bool {
        let once = matches!(self.source.as_deref(), Some(Source::Stdin { .. } | Source::Generate { .. }));
        once && matches!(self.buffer.value, Buffer::Memory { .. })
    }

    /// Where an item is by which a run ended, and what to do about it.
    pub(crate) fn about_failed_item(&self) -> String {
        let (stays, queue) = match (&self.buffer.value, self.source.as_deref()) {
            (Buffer::Queue { queue, .. }, _) | (_, Some(Source::Queue { queue, .. })) => (
                format!("it stays in queue `{}`, and each run will end at it again: ", queue.name.value),
                true,
            ),
            (_, Some(Source::Stream(source))) => {
                let name = &source.stream.name.value;
                (format!("it stays in stream `{name}`, and each run will end at it again: "), false)
            }
            (_, Some(Source::File { position: Some(_), .. })) => {
                ("the next run begins before it and will end at it again: ".to_owned(), false)
            }
            _ => (String::new(), false),
        };
        // A queue that is there keeps what was declared of its dead letters.
        let letters = match queue {
            true => {
                "`on_error: skip` goes on without it (`dead_letter` keeps it, but is for a queue that is made anew)"
            }
            false => "`on_error: skip` goes on without it, `dead_letter` keeps it in a queue",
        };
        format!("{stays}mend the step, or the item where it comes from; {letters}")
    }
}

#[derive(Debug)]
pub(crate) enum Source {
    File {
        path: Spanned<PathBuf>,
        read: Reading,
        follow: Setting<bool>,
        /// Where to remember how far it was settled, where no queue does.
        position: Option<Spanned<PathBuf>>,
    },
    Stdin {
        read: Reading,
    },
    Http(HttpSource),
    Queue {
        queue: QueueRef,
        prefetch: Prefetch,
        drained: bool,
    },
    Stream(StreamSource),
    Generate {
        count: Option<u64>,
        rate: Option<u64>,
        template: Option<Arc<Mapping>>,
    },
}

impl Source {
    /// What the file calls it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Source::File { .. } => "file",
            Source::Stdin { .. } => "stdin",
            Source::Http(_) => "http",
            Source::Queue { .. } => "queue",
            Source::Stream(_) => "stream",
            Source::Generate { .. } => "generate",
        }
    }
}

#[derive(Debug)]
pub(crate) struct HttpSource {
    pub(crate) listen: Spanned<String>,
    pub(crate) path: Spanned<String>,
    pub(crate) body_max: usize,
    pub(crate) pending_max: Setting<u64>,
    pub(crate) connections_max: Setting<u64>,
}

impl HttpSource {
    /// Memory of requests that may wait to become durable, whatever their number, and of those that are being read.
    pub(crate) fn bytes_max(&self) -> u64 {
        // Sixteen are read at once, one of them becomes values, and what waits takes as much as the largest values can.
        (16 + 2 * VALUE_FACTOR).saturating_mul(self.body_max as u64)
    }
}

/// How bytes become items.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) format: Setting<Format>,
    pub(crate) delimiter: Setting<u8>,
    pub(crate) columns: Option<Spanned<Vec<String>>>,
    pub(crate) line_max: usize,
}

impl Reading {
    /// One JSON value a line, with all defaults.
    pub(crate) fn ndjson() -> Self {
        Reading {
            format: Setting { value: Format::Ndjson, at: None },
            delimiter: Setting { value: b',', at: None },
            columns: None,
            line_max: 1 << 20,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Csv,
    Ndjson,
    Lines,
    /// Neither given nor to be told from the path: a problem of its own.
    Unknown,
}

/// A queue of a broker. A directory is resolved against the pipeline file's.
#[derive(Debug, Clone)]
pub(crate) struct QueueRef {
    pub(crate) broker: BrokerUrl,
    pub(crate) name: Spanned<String>,
}

/// A stream of a broker.
#[derive(Debug, Clone)]
pub(crate) struct StreamRef {
    pub(crate) broker: BrokerUrl,
    pub(crate) name: Spanned<String>,
}

#[derive(Debug)]
pub(crate) struct StreamSource {
    pub(crate) stream: StreamRef,
    /// Where the first run begins.
    pub(crate) from: Setting<StreamFrom>,
    /// What the broker remembers the settled offset under, if not the pipeline's name.
    pub(crate) reader: Option<Spanned<String>>,
    pub(crate) drained: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Prefetch {
    pub(crate) items: Setting<u64>,
    pub(crate) bytes: Setting<u64>,
}

#[derive(Debug)]
pub(crate) enum Buffer {
    Memory {
        items: u64,
        bytes: u64,
    },
    Queue {
        queue: QueueRef,
        items_max: Option<Spanned<u64>>,
        bytes_max: Option<Spanned<u64>>,
        prefetch: Prefetch,
    },
}

#[derive(Debug)]
pub(crate) enum Step {
    Filter {
        name: Spanned<String>,
        keep: Arc<Condition>,
    },
    Map {
        name: Spanned<String>,
        jq: Arc<Mapping>,
    },
    /// A call of a handler of the program's.
    Send {
        name: Spanned<String>,
        request: Spanned<String>,
        handler: Handler,
        at_once: usize,
        /// The field that takes the response, if not the item does.
        into: Option<String>,
        /// How long the handler may take for one item.
        timeout: Option<Duration>,
    },
    Parallel {
        workers: Setting<Option<u64>>,
        ordered: Setting<bool>,
        steps: Vec<Step>,
    },
    /// A route that is not last; the last one stands in [`Draft::route`].
    Misplaced {
        at: At,
    },
}

#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) at: At,
    pub(crate) cases: Vec<(Arc<Condition>, Spanned<String>)>,
    /// The output for the rest; `drop` drops.
    pub(crate) otherwise: Spanned<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) by: Option<Spanned<String>>,
    pub(crate) count: Setting<u64>,
    pub(crate) bytes: Setting<u64>,
    pub(crate) age: Setting<Duration>,
}

#[derive(Debug)]
pub(crate) struct Output {
    /// The name under `named`, else the kind.
    pub(crate) name: Spanned<String>,
    pub(crate) kind: OutputKind,
}

#[derive(Debug)]
pub(crate) enum OutputKind {
    File(FileOutput),
    Stdout { csv: bool },
    Http(HttpOutput),
    Queue(QueueRef),
    Stream(StreamRef),
}

#[derive(Debug)]
pub(crate) struct FileOutput {
    /// The template, resolved against the pipeline file's directory.
    pub(crate) path: Spanned<Template>,
    pub(crate) format: Setting<Format>,
    pub(crate) columns: Option<Spanned<Vec<String>>>,
    pub(crate) rotate_bytes: Option<u64>,
    pub(crate) rotate_every: Option<Duration>,
    /// Where `rotate` stands.
    pub(crate) rotate: Option<At>,
    pub(crate) open_max: Setting<u64>,
}

#[derive(Debug, Clone)]
pub(crate) struct HttpOutput {
    pub(crate) url: Spanned<String>,
    /// Certificates to trust besides the system's.
    pub(crate) ca: Option<Spanned<PathBuf>>,
    pub(crate) ndjson: bool,
    pub(crate) headers: Vec<(Spanned<String>, String)>,
    pub(crate) timeout: Duration,
}

/// What happens to an item that fails.
#[derive(Debug, Clone)]
pub(crate) struct OnError {
    /// Tries of the output beyond the first, if asked for.
    pub(crate) retry: Option<Retry>,
    pub(crate) then: Then,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Retry {
    pub(crate) at: At,
    pub(crate) attempts: u32,
    pub(crate) backoff: Duration,
}

#[derive(Debug, Clone)]
pub(crate) enum Then {
    Fail,
    Skip,
    /// `None` when there is no broker to take; a problem of its own.
    DeadLetter {
        queue: Spanned<String>,
        broker: Option<BrokerUrl>,
    },
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Goals {
    pub(crate) latency: Option<Spanned<Duration>>,
    pub(crate) memory: Option<Spanned<u64>>,
    pub(crate) order: Option<At>,
    pub(crate) error_rate_max: Option<Spanned<f64>>,
}

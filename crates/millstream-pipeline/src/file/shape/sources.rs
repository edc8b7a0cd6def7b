//! Sources and their keys.

use super::{KIB, Key, Kind, Shape, Union, key};

static FORMATS: &[&str] = &["csv", "ndjson", "lines"];

const FORMAT: Key = key(
    "format",
    Kind::Choice(FORMATS),
    "How items are written: csv with a header line, one JSON value a line, or text lines as {\"line\": …}.",
);
const DELIMITER: Key = key("delimiter", Kind::Character, "What separates the fields of a csv row.").or(",");
const COLUMNS: Key = key(
    "columns",
    Kind::List(&Kind::Text),
    "The columns a csv header must have, in any order, no more and no fewer.",
);
const MAX_LINE: Key = key(
    "max_line",
    Kind::Size(64),
    "A longer line or row is that item's error; it is never held in memory whole.",
)
.or("1MiB");

pub(super) static SOURCE: Union = Union {
    what: "a source",
    words: &[],
    tags: &[
        key(
            "file",
            Kind::Object(&SOURCE_FILE),
            "One file, or all files a pattern names, in the order of their names.",
        ),
        key("stdin", Kind::Object(&SOURCE_STDIN), "Standard input, to its end."),
        key(
            "http",
            Kind::Object(&SOURCE_HTTP),
            "POST of one item, a JSON array, or lines of JSON; the reply waits until the items are durable.",
        ),
        key(
            "queue",
            Kind::Object(&SOURCE_QUEUE),
            "A queue of a broker; an item is acknowledged when the output has it.",
        ),
        key(
            "stream",
            Kind::Object(&SOURCE_STREAM),
            "A stream of a broker, from where the last run stopped: its messages stay for other readers.",
        ),
        key("generate", Kind::Object(&SOURCE_GENERATE), "Made-up items, for trying things out."),
    ],
};

static SOURCE_FILE: Shape = Shape {
    keys: &[
        key(
            "path",
            Kind::Text,
            "Path from the pipeline file's directory; `*` in the file name stands for anything.",
        )
        .required(),
        Key { default: Some("by the file's extension"), ..FORMAT },
        DELIMITER,
        COLUMNS,
        key("follow", Kind::Bool, "Wait for more at the end of the file instead of ending the run.")
            .or("false"),
        MAX_LINE,
        key(
            "position",
            Kind::Text,
            "A file, named from the pipeline file's directory, that remembers how far the items were settled: the next \
             run goes on there. With `buffer.queue` the queue remembers. Without either, a run reads from the start.",
        ),
    ],
};

static SOURCE_STDIN: Shape = Shape { keys: &[FORMAT.required(), DELIMITER, COLUMNS, MAX_LINE] };

static SOURCE_HTTP: Shape = Shape {
    keys: &[
        key("listen", Kind::Address, "Address and port to listen on.").required(),
        key("path", Kind::Text, "The path that takes POST.").or("/"),
        key("max_body", Kind::Size(64), "A larger request is refused with 413.").or("1MiB"),
        key(
            "max_pending",
            Kind::Count(1, 1_000_000),
            "Items accepted and not yet durable; beyond it, or when they take 16 times `max_body` of memory, a request \
             gets 503 with Retry-After.",
        )
        .or("1024"),
        key(
            "max_connections",
            Kind::Count(1, 1_000_000),
            "Connections at a time; more wait for one to end. Each takes one of the files that the process may have open.",
        )
        .or("512"),
    ],
};

pub(super) const PREFETCH: Key =
    key("prefetch", Kind::Count(1, 1_000_000), "Messages on their way at once.").or("8192");
pub(super) const PREFETCH_BYTES: Key =
    key("prefetch_bytes", Kind::Size(KIB), "Bytes of messages on their way at once.").or("16MiB");

static SOURCE_QUEUE: Shape = Shape {
    keys: &[
        key("broker", Kind::Broker, "The broker's URL.").required(),
        key("name", Kind::Name, "The queue.").required(),
        PREFETCH,
        PREFETCH_BYTES,
        key(
            "until",
            Kind::Choice(&["stopped", "drained"]),
            "When the run ends: when it is stopped, or when the queue is empty.",
        )
        .or("stopped"),
    ],
};

static SOURCE_STREAM: Shape = Shape {
    keys: &[
        key("broker", Kind::StreamBroker, "The broker's URL.").required(),
        key("name", Kind::Name, "The stream.").required(),
        key(
            "from",
            Kind::From,
            "Where the first run begins: with the `first` message, the `last`, the `next` that comes, at an offset, or so \
             long ago, as in `1h`.",
        )
        .or("first"),
        key(
            "reader",
            Kind::Name,
            "The broker remembers under this name how far the items were settled: the next run goes on there. With \
             `buffer.queue` the queue remembers.",
        )
        .or("the pipeline's name"),
        key(
            "until",
            Kind::Choice(&["stopped", "drained"]),
            "When the run ends: when it is stopped, or when everything was read that the stream held as it began.",
        )
        .or("stopped"),
    ],
};

static SOURCE_GENERATE: Shape = Shape {
    keys: &[
        key("count", Kind::Count(1, u64::MAX), "How many items; without it, no end."),
        key("rate", Kind::Count(1, 10_000_000), "Items a second; without it, as fast as they are taken."),
        key("template", Kind::Jq, "jq; its input is the item's number, from 0.").or("{n: .}"),
    ],
};

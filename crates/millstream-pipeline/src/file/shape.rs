//! What a pipeline file may contain, said once. The check, the JSON Schema and the reference read this.

/// A key of an object, or the tag of a component.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) required: bool,
    /// Shown to people; the model applies it.
    pub(crate) default: Option<&'static str>,
    pub(crate) about: &'static str,
}

impl Key {
    pub(super) const fn required(self) -> Self {
        Key { required: true, ..self }
    }

    pub(super) const fn or(self, default: &'static str) -> Self {
        Key { default: Some(default), ..self }
    }
}

pub(super) const fn key(name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key { name, kind, required: false, default: None, about }
}

/// A map with these keys and no others.
pub(crate) struct Shape {
    pub(crate) keys: &'static [Key],
}

/// A choice: one bare word, one text, or a map with exactly one of the tags.
pub(crate) struct Union {
    /// What is chosen, for messages: `a source`.
    pub(crate) what: &'static str,
    /// Words that stand alone, such as `fail`.
    pub(crate) words: &'static [&'static str],
    pub(crate) tags: &'static [Key],
}

/// What a value may be.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Any text but the empty one.
    Text,
    /// Letters, digits, `.`, `_`, `-`: names of pipelines, queues, outputs.
    Name,
    /// `embedded:PATH`, `amqp://HOST` or `rabbitmq-stream://HOST`.
    Broker,
    /// `embedded:PATH` or `rabbitmq-stream://HOST`.
    StreamBroker,
    /// Where to begin in a stream.
    From,
    /// `host:port`.
    Address,
    /// `http://…` or `https://…`.
    HttpUrl,
    /// A path with `{field}` places.
    Template,
    /// One character.
    Character,
    /// A size with its unit, at least this many bytes.
    Size(u64),
    /// A time with its unit, greater than zero.
    Time,
    /// A whole number in this range.
    Count(u64, u64),
    /// `auto` or a whole number from 1 to this.
    Auto(u64),
    /// A share: `1%`.
    Ratio,
    Bool,
    Choice(&'static [&'static str]),
    Cel,
    Jq,
    Object(&'static Shape),
    OneOf(&'static Union),
    List(&'static Kind),
    /// A map from names of the user's to this.
    Names(&'static Kind),
    /// A jq program, or a map with these keys.
    JqOr(&'static Shape),
    /// Anything: the value of a test's item.
    Any,
}

const KIB: u64 = 1 << 10;

/// The whole file.
pub(crate) static PIPELINE: Shape = Shape {
    keys: &[
        key("name", Kind::Name, "Names the pipeline in reports, metrics and stored positions.").required(),
        key("source", Kind::OneOf(&SOURCE), "Where items come from.").required(),
        key("buffer", Kind::OneOf(&BUFFER), "What stands between the source and the rest.")
            .or("memory, 1024 items, 8MiB"),
        key("process", Kind::List(&Kind::OneOf(&STEP)), "What happens to each item, in this order."),
        key("batch", Kind::Object(&BATCH), "How items are gathered before the output.")
            .or("count 500, bytes 1MiB, age 1s"),
        key("output", Kind::OneOf(&OUTPUT), "Where items go.").required(),
        key("on_error", Kind::OneOf(&ON_ERROR), "What happens to an item that fails.").or("fail"),
        key("goals", Kind::Object(&GOALS), "Promises that lint and the run hold the pipeline to."),
    ],
};

static FORMATS: &[&str] = &["csv", "ndjson", "lines"];
static WRITTEN: &[&str] = &["ndjson", "csv"];

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

static SOURCE: Union = Union {
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
            "Items accepted and not yet durable; beyond it a request gets 503 with Retry-After.",
        )
        .or("1024"),
    ],
};

const PREFETCH: Key = key("prefetch", Kind::Count(1, 1_000_000), "Messages on their way at once.").or("8192");
const PREFETCH_BYTES: Key =
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

static BUFFER: Union = Union {
    what: "a buffer",
    words: &[],
    tags: &[
        key("memory", Kind::Object(&BUFFER_MEMORY), "A bounded hand-over in memory."),
        key(
            "queue",
            Kind::Object(&BUFFER_QUEUE),
            "A queue of a broker: what the source read is stored before it is processed, and a file's position with it.",
        ),
    ],
};

static BUFFER_MEMORY: Shape = Shape {
    keys: &[
        key("items", Kind::Count(1, 10_000_000), "Items it holds; the source waits when it is full.")
            .or("1024"),
        key("bytes", Kind::Size(KIB), "Bytes it holds.").or("8MiB"),
    ],
};

static BUFFER_QUEUE: Shape = Shape {
    keys: &[
        key("broker", Kind::Broker, "The broker's URL.").required(),
        key("name", Kind::Name, "The queue, declared durable.").required(),
        key(
            "max_items",
            Kind::Count(1, u64::MAX),
            "The source waits while the queue holds this many messages.",
        ),
        key("max_bytes", Kind::Size(8 << 20), "The source waits while the queue holds this many bytes."),
        PREFETCH,
        PREFETCH_BYTES,
    ],
};

static STEP: Union = Union {
    what: "a step",
    words: &[],
    tags: &[
        key(
            "filter",
            Kind::Object(&FILTER),
            "Keeps the items for which a CEL expression is true; the others are counted under its name.",
        ),
        key(
            "map",
            Kind::JqOr(&MAP),
            "Reshapes an item by jq, one value out for one in; `empty` drops it, counted under its name.",
        ),
        key("parallel", Kind::Object(&PARALLEL), "Runs steps on several cores."),
        key(
            "send",
            Kind::Object(&SEND),
            "Sends each item to a handler of the program that runs the file; the `millstream` binary has none.",
        ),
        key(
            "route",
            Kind::Object(&ROUTE),
            "Sends each item to one of several outputs by CEL; must be the last step.",
        ),
    ],
};

static FILTER: Shape = Shape {
    keys: &[
        key("name", Kind::Text, "What the report calls the items it drops.").required(),
        key("keep", Kind::Cel, "CEL over `item` that must give true or false.").required(),
    ],
};

static MAP: Shape = Shape {
    keys: &[
        key("name", Kind::Text, "What errors and the report call the step.").or("map"),
        key("jq", Kind::Jq, "jq over the item.").required(),
    ],
};

static SEND: Shape = Shape {
    keys: &[
        key("name", Kind::Text, "What errors and the report call the step.").or("send"),
        key("request", Kind::Text, "The handler's name: of a mediator, the request's.").required(),
        key(
            "at_once",
            Kind::Count(1, 1024),
            "How many items are sent at once; they go on in the order they came.",
        )
        .or("1"),
        key(
            "into",
            Kind::Text,
            "The field of the item that takes the response; without it the item becomes the response.",
        ),
    ],
};

static PARALLEL: Shape = Shape {
    keys: &[
        key("workers", Kind::Auto(256), "How many at once; `auto` is one a core.").or("auto"),
        key("ordered", Kind::Bool, "Whether items leave in the order they came.").or("true"),
        key("steps", Kind::List(&Kind::OneOf(&PARALLEL_STEP)), "The steps.").required(),
    ],
};

static PARALLEL_STEP: Union =
    Union { what: "a step inside parallel", words: &[], tags: &[FILTER_TAG, MAP_TAG] };
const FILTER_TAG: Key = key("filter", Kind::Object(&FILTER), "As outside.");
const MAP_TAG: Key = key("map", Kind::JqOr(&MAP), "As outside.");

static ROUTE: Shape = Shape {
    keys: &[
        key(
            "cases",
            Kind::List(&Kind::Object(&CASE)),
            "Tried in order; the first that is true takes the item.",
        )
        .required(),
        key(
            "else",
            Kind::Name,
            "The output for items no case takes, or `drop`, counted as dropped by `route`.",
        )
        .required(),
    ],
};

static CASE: Shape = Shape {
    keys: &[
        key("when", Kind::Cel, "CEL over `item` that must give true or false.").required(),
        key("to", Kind::Name, "The name of an output under `output.named`.").required(),
    ],
};

static BATCH: Shape = Shape {
    keys: &[
        key("by", Kind::Text, "A field: each batch holds items with one value of it."),
        key("count", Kind::Count(1, 1_000_000), "Items that make a batch full.").or("500"),
        key("bytes", Kind::Size(1), "Bytes that make a batch full.").or("1MiB"),
        key("age", Kind::Time, "How long the first item of a batch may wait for others.").or("1s"),
    ],
};

static OUTPUT: Union = Union {
    what: "an output",
    words: &[],
    tags: &[
        OUTPUT_FILE_TAG,
        OUTPUT_STDOUT_TAG,
        OUTPUT_HTTP_TAG,
        OUTPUT_QUEUE_TAG,
        OUTPUT_STREAM_TAG,
        key(
            "named",
            Kind::Names(&Kind::OneOf(&OUTPUT_ONE)),
            "Several outputs, each with the name that `route` uses.",
        ),
    ],
};

static OUTPUT_ONE: Union = Union {
    what: "an output",
    words: &[],
    tags: &[OUTPUT_FILE_TAG, OUTPUT_STDOUT_TAG, OUTPUT_HTTP_TAG, OUTPUT_QUEUE_TAG, OUTPUT_STREAM_TAG],
};

const OUTPUT_FILE_TAG: Key =
    key("file", Kind::Object(&OUTPUT_FILE), "Files that appear under their name only when they are whole.");
const OUTPUT_STDOUT_TAG: Key = key("stdout", Kind::Object(&OUTPUT_STDOUT), "Standard output.");
const OUTPUT_HTTP_TAG: Key = key("http", Kind::Object(&OUTPUT_HTTP), "A POST for each batch.");
const OUTPUT_QUEUE_TAG: Key = key("queue", Kind::Object(&OUTPUT_QUEUE), "A queue of a broker.");
const OUTPUT_STREAM_TAG: Key = key(
    "stream",
    Kind::Object(&OUTPUT_STREAM),
    "A stream of a broker, in which each reader has a place of its own.",
);

static OUTPUT_FILE: Shape = Shape {
    keys: &[
        key(
            "path",
            Kind::Template,
            "Path from the pipeline file's directory; `{field}` stands for the item's field.",
        )
        .required(),
        key("format", Kind::Choice(WRITTEN), "How items are written.").or("by the path's extension"),
        key("columns", Kind::List(&Kind::Text), "The columns of a csv file, in order.")
            .or("the first item's fields"),
        key("rotate", Kind::Object(&ROTATE), "When a file is finished and the next one begun."),
        key("max_open", Kind::Count(1, 4096), "Files open at once; the one not used longest is set aside.")
            .or("64"),
    ],
};

static ROTATE: Shape = Shape {
    keys: &[
        key("bytes", Kind::Size(1), "When it has this many bytes."),
        key("every", Kind::Time, "When it has been open this long."),
    ],
};

static OUTPUT_STDOUT: Shape =
    Shape { keys: &[key("format", Kind::Choice(WRITTEN), "How items are written.").or("ndjson")] };

static OUTPUT_HTTP: Shape = Shape {
    keys: &[
        key("url", Kind::HttpUrl, "Where each batch is POSTed.").required(),
        key(
            "ca",
            Kind::Text,
            "PEM file of certificates to trust besides the system's, from the pipeline file's directory.",
        ),
        key("format", Kind::Choice(&["array", "ndjson"]), "The body: a JSON array, or one value a line.")
            .or("array"),
        key("headers", Kind::Names(&Kind::Text), "Headers sent with each request."),
        key("timeout", Kind::Time, "How long one request may take.").or("30s"),
    ],
};

static OUTPUT_QUEUE: Shape = Shape {
    keys: &[
        key("broker", Kind::Broker, "The broker's URL.").required(),
        key("name", Kind::Name, "The queue, declared durable.").required(),
    ],
};

static OUTPUT_STREAM: Shape = Shape {
    keys: &[
        key("broker", Kind::StreamBroker, "The broker's URL.").required(),
        key("name", Kind::Name, "The stream; one that is not there is made, and keeps everything.")
            .required(),
    ],
};

static ON_ERROR: Union = Union {
    what: "an error policy",
    words: &["fail", "skip"],
    tags: &[
        DEAD_LETTER,
        key("retry", Kind::Object(&RETRY), "Writes to the output again before the item counts as failed."),
    ],
};

const DEAD_LETTER: Key = key(
    "dead_letter",
    Kind::Object(&DEAD_LETTER_SHAPE),
    "A queue that keeps the failed item with its reason.",
);

static DEAD_LETTER_SHAPE: Shape = Shape {
    keys: &[
        key("queue", Kind::Name, "The queue, declared durable.").required(),
        key("broker", Kind::Broker, "The broker's URL.").or("that of the buffer, the source or the output"),
    ],
};

static RETRY: Shape = Shape {
    keys: &[
        key("attempts", Kind::Count(2, 1000), "How often the output is tried in all.").or("5"),
        key("backoff", Kind::Time, "The wait before the second try; it doubles each time, up to a minute.")
            .or("100ms"),
        key(
            "then",
            Kind::OneOf(&THEN),
            "What happens when no try succeeds, and to items that fail before the output.",
        )
        .or("fail"),
    ],
};

static THEN: Union = Union { what: "an error policy", words: &["fail", "skip"], tags: &[DEAD_LETTER] };

static GOALS: Shape = Shape {
    keys: &[
        key(
            "latency",
            Kind::Time,
            "How long an item may wait in a batch; lint refuses a longer `batch.age`.",
        ),
        key(
            "memory",
            Kind::Size(KIB),
            "The most the items of the run may hold; lint refuses a larger bound.",
        ),
        key(
            "order",
            Kind::Bool,
            "Whether items must leave in the order of the source; lint refuses steps that lose it.",
        )
        .or("false"),
        key(
            "max_error_rate",
            Kind::Ratio,
            "The run fails when a larger share of at least 100 items has failed.",
        ),
    ],
};

/// A file of offline tests.
pub(crate) static CASES: Shape =
    Shape { keys: &[key("cases", Kind::List(&Kind::Object(&TEST_CASE)), "The cases.").required()] };

static TEST_CASE: Shape = Shape {
    keys: &[
        key("name", Kind::Text, "What the case shows.").required(),
        key("items", Kind::Any, "The items, as values."),
        key("text", Kind::Text, "The items, as the source would read them."),
        key("output", Kind::Any, "The items that reach the output, in order."),
        key("dropped", Kind::Any, "How many items each step drops, by its name."),
        key(
            "dead",
            Kind::Any,
            "The items that fail, in order: the reason or a part of it, or `stage` and `reason`.",
        ),
    ],
};

//! What a pipeline file may contain, said once. The check, the JSON Schema and the reference read this.

mod outputs;
mod sources;
mod steps;

use self::outputs::OUTPUT;
use self::sources::{PREFETCH, PREFETCH_BYTES, SOURCE};
use self::steps::STEP;

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

static BATCH: Shape = Shape {
    keys: &[
        key("by", Kind::Text, "A field: each batch holds items with one value of it."),
        key("count", Kind::Count(1, 1_000_000), "Items that make a batch full.").or("500"),
        key("bytes", Kind::Size(1), "Bytes that make a batch full.").or("1MiB"),
        key("age", Kind::Time, "How long the first item of a batch may wait for others.").or("1s"),
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

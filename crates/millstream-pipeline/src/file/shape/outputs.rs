//! Outputs and their keys.

use super::{Key, Kind, Shape, Union, key};

static WRITTEN: &[&str] = &["ndjson", "csv"];

pub(super) static OUTPUT: Union = Union {
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

//! Steps and their keys.

use super::{Key, Kind, Shape, Union, key};

pub(super) static STEP: Union = Union {
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
        key(
            "timeout",
            Kind::Time,
            "How long the handler may take for one item; it is dropped then, and the item has failed. Without it, for ever.",
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

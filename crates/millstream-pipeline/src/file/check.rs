//! Holds a tree against the shape: unknown and missing keys, wrong types, numbers out of range.

use super::problem::{Findings, nearest, one_of};
use super::shape::{Key, Kind, Shape, Union};
use super::tree::{self, Data, Node, Style};
use super::{units, url};

/// Reports everything in `node` that `shape` does not allow. What it leaves unreported, the model may read.
pub(crate) fn object(node: &Node, shape: &Shape, what: &str, findings: &mut Findings) {
    let Data::Map(entries) = &node.data else {
        // `stdout:` with nothing behind it is a component with all its defaults.
        if node.is_null() && shape.keys.iter().all(|key| !key.required) {
            return;
        }
        let keys = one_of(shape.keys.iter().map(|key| key.name));
        let message = format!("{what} must be a map, not {}", node.describe());
        findings.add(node.at, message, format!("write a map with {keys}"));
        return;
    };
    for (key, value) in entries {
        match shape.keys.iter().find(|known| known.name == key.name) {
            Some(known) => value_of(value, &known.kind, known.name, findings),
            None => unknown(key, value, node, what, shape.keys, findings),
        }
    }
    for missing in shape.keys.iter().filter(|key| key.required && node.get(key.name).is_none()) {
        let message = format!("{what} lacks `{}`", missing.name);
        findings.add(node.at, message, format!("add `{}`: {}", missing.name, lower(missing.about)));
    }
}

/// Reports a key of `map` that is not known. What stands below it is checked as what was meant, if that is plain, so
/// that mending the key brings no new problems to light.
fn unknown(key: &tree::Key, value: &Node, map: &Node, what: &str, known: &[Key], findings: &mut Findings) {
    let near = nearest(&key.name, known.iter().map(|key| key.name));
    let remedy = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known here: {}", one_of(known.iter().map(|key| key.name))),
    };
    findings.add(key.at, format!("unknown key `{}` in {what}", key.name), remedy);
    let meant = near.filter(|near| map.get(near).is_none());
    if let Some(meant) = known.iter().find(|known| Some(known.name) == meant) {
        value_of(value, &meant.kind, meant.name, findings);
    }
}

fn union(node: &Node, union: &Union, key: &str, findings: &mut Findings) {
    let known = || one_of(union.words.iter().copied().chain(union.tags.iter().map(|tag| tag.name)));
    match &node.data {
        Data::Map(entries) => {
            for (tag, value) in entries {
                match union.tags.iter().find(|known| known.name == tag.name) {
                    Some(known) => value_of(value, &known.kind, known.name, findings),
                    None if union.words.contains(&tag.name.as_str()) => findings.add(
                        tag.at,
                        format!("`{}` in `{key}` takes no settings", tag.name),
                        format!("write `{key}: {}`", tag.name),
                    ),
                    None => unknown(tag, value, node, &format!("`{key}`"), union.tags, findings),
                }
            }
            let tags: Vec<_> =
                entries.iter().filter(|(tag, _)| union.tags.iter().any(|k| k.name == tag.name)).collect();
            if let [(first, _), (second, _), ..] = tags.as_slice() {
                let message =
                    format!("`{}` beside `{}`: {} is one of them", second.name, first.name, union.what);
                findings.add(second.at, message, side_by_side(&first.name, &second.name));
            }
            if entries.is_empty() {
                findings.add(
                    node.at,
                    format!("`{key}` is an empty map"),
                    format!("write one of {}", known()),
                );
            }
        }
        Data::Scalar { text, .. } if union.words.contains(&text.as_str()) => {}
        Data::Scalar { text, .. } if !node.is_null() => {
            let words = union.words.iter().copied().chain(union.tags.iter().map(|tag| tag.name));
            let remedy = match nearest(text, words) {
                Some(near) if union.words.contains(&near) => format!("did you mean `{near}`?"),
                Some(near) => format!("`{near}` takes a map: `{key}: {{ {near}: {{ … }} }}`"),
                None => format!("{} is one of {}", union.what, known()),
            };
            findings.add(
                node.at,
                format!("`{key}` is {}, which is not {}", node.describe(), union.what),
                remedy,
            );
        }
        _ => {
            let message = format!("`{key}` is {}, not {}", node.describe(), union.what);
            findings.add(node.at, message, format!("write one of {}", known()));
        }
    }
}

/// Two tags in one map. Retry beside dead-letter is the classic: the order would be anyone's guess.
fn side_by_side(first: &str, second: &str) -> String {
    match (first, second) {
        ("retry", "dead_letter") | ("dead_letter", "retry") => {
            "retry comes first and decides what follows: `retry: { attempts: 5, then: { dead_letter: { … } } }`"
                .to_owned()
        }
        ("memory", "queue") | ("queue", "memory") => "keep one; the queue already bounds what is held".to_owned(),
        _ if second == "route" || first == "route" => "make each its own step, with a `-` before it".to_owned(),
        _ => "keep one of the two; in a list, give each its own `-`".to_owned(),
    }
}

fn value_of(node: &Node, kind: &Kind, key: &str, findings: &mut Findings) {
    match kind {
        Kind::Object(shape) => return object(node, shape, &format!("`{key}`"), findings),
        Kind::OneOf(one) => return union(node, one, key, findings),
        Kind::Any => return,
        Kind::List(item) => return list(node, item, key, findings),
        Kind::Names(item) => return names(node, item, key, findings),
        Kind::JqOr(shape) if matches!(node.data, Data::Map(_)) => {
            return object(node, shape, &format!("`{key}`"), findings);
        }
        _ => {}
    }
    let Data::Scalar { text, style } = &node.data else {
        let message = format!("`{key}` is {}", node.describe());
        findings.add(node.at, message, format!("write {}", expected(kind)));
        return;
    };
    if let Err(remedy) = scalar(text, *style, kind) {
        // A password may have come from the environment.
        let is = match kind {
            Kind::HttpUrl | Kind::Broker | Kind::StreamBroker if url::shown(text) != *text => {
                format!("`{}`", url::shown(text))
            }
            _ => node.describe(),
        };
        findings.add(node.at, format!("`{key}` is {is}, which is not {}", expected(kind)), remedy);
    }
}

fn list(node: &Node, item: &'static Kind, key: &str, findings: &mut Findings) {
    match &node.data {
        Data::List(items) if !items.is_empty() => {
            for entry in items {
                value_of(entry, item, key, findings);
            }
        }
        Data::List(_) => {
            findings.add(node.at, format!("`{key}` is an empty list"), "add an entry, or leave the key out")
        }
        _ => findings.add(
            node.at,
            format!("`{key}` must be a list, not {}", node.describe()),
            "put each entry on its own line behind `- `",
        ),
    }
}

fn names(node: &Node, item: &'static Kind, key: &str, findings: &mut Findings) {
    if node.entries().is_empty() {
        let message = format!("`{key}` must be a map of names, not {}", node.describe());
        findings.add(node.at, message, "write `name: value` for each");
    }
    for (name, value) in node.entries() {
        if let Err(remedy) = scalar(&name.name, Style::Plain, &Kind::Name) {
            findings.add(name.at, format!("`{}` is not a name", name.name), remedy);
        }
        value_of(value, item, &name.name, findings);
    }
}

/// Checks one scalar; the error is the remedy.
fn scalar(text: &str, style: Style, kind: &Kind) -> Result<(), String> {
    let ok = |good: bool, remedy: &str| if good { Ok(()) } else { Err(remedy.to_owned()) };
    let filled = !(text.is_empty() || style == Style::Plain && matches!(text, "~" | "null"));
    match kind {
        Kind::Text | Kind::Cel | Kind::Jq | Kind::JqOr(_) => ok(filled, "write some text"),
        Kind::Template => ok(filled, "write a path such as 'out/{field}.ndjson'"),
        Kind::Name => ok(
            filled && text.len() <= 255 && text.chars().all(|c| c.is_alphanumeric() || ".-_".contains(c)),
            "use letters, digits, `.`, `_` and `-`, at most 255 of them",
        ),
        Kind::Broker => broker(text),
        Kind::StreamBroker => stream_broker(text),
        Kind::From => ok(
            units::stream_from(text).is_some(),
            "write `first`, `last`, `next`, an offset such as `0`, or how long ago, as in `1h`",
        ),
        Kind::Address => ok(
            text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()),
            "write host and port, such as `127.0.0.1:8080`",
        ),
        Kind::HttpUrl => url::check(text),
        Kind::Character => ok(
            text.len() == 1 && !"\"\n\r".contains(text),
            "write one ASCII character other than the quote, such as ';' or \"\\t\"",
        ),
        Kind::Size(min) => match units::size(text) {
            Some(bytes) if bytes >= *min => Ok(()),
            Some(_) => Err(format!("at least {}", units::show_size(*min))),
            None => Err("write a number with B, kB, MB, GB, KiB, MiB or GiB, such as `64MiB`".to_owned()),
        },
        Kind::Time => match units::duration(text) {
            Some(time) if !time.is_zero() => Ok(()),
            Some(_) => Err("must be longer than nothing".to_owned()),
            None => Err(format!(
                "write a number with ms, s, m, h or d, such as `500ms` or `1h 30m`, at most `{}`",
                units::DURATION_MAX
            )),
        },
        Kind::Count(min, max) => match text.parse::<u64>() {
            Ok(count) if (*min..=*max).contains(&count) => Ok(()),
            _ if *max == u64::MAX => Err(format!("a whole number from {min}")),
            _ => Err(format!("a whole number from {min} to {max}")),
        },
        Kind::Auto(max) => {
            let number = text.parse::<u64>().is_ok_and(|count| (1..=*max).contains(&count));
            if text == "auto" || number {
                Ok(())
            } else {
                Err(format!("`auto` or a whole number from 1 to {max}"))
            }
        }
        Kind::Ratio => ok(units::ratio(text).is_some(), "write a share such as `1%`"),
        Kind::Bool => {
            ok(style == Style::Plain && matches!(text, "true" | "false"), "write `true` or `false`")
        }
        Kind::Choice(words) if words.contains(&text) => Ok(()),
        Kind::Choice(words) => Err(match nearest(text, words.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("one of {}", one_of(words.iter().copied())),
        }),
        Kind::Object(_) | Kind::OneOf(_) | Kind::List(_) | Kind::Names(_) | Kind::Any => Ok(()),
    }
}

fn broker(text: &str) -> Result<(), String> {
    match text.split_once(':') {
        Some(("embedded", path)) if !path.is_empty() => Ok(()),
        Some(("embedded", _)) => Err("name a directory: `embedded:state`".to_owned()),
        Some(("memory", _)) => Err(
            "a `memory:` broker would be gone with the process and what it holds lost; use `embedded:PATH`"
                .to_owned(),
        ),
        Some(("amqp" | "amqps", _)) => amqp(text),
        Some(("rabbitmq-stream" | "rabbitmq-stream+tls", _)) => rabbitmq_stream(text),
        _ => Err("write `embedded:PATH`, a directory beside the pipeline file, `amqp://HOST`, or `rabbitmq-stream://HOST`"
            .to_owned()),
    }
}

fn stream_broker(text: &str) -> Result<(), String> {
    match text.split_once(':') {
        Some(("rabbitmq-stream" | "rabbitmq-stream+tls", _)) => rabbitmq_stream(text),
        Some(("amqp" | "amqps", _)) => {
            Err("RabbitMQ's streams are reached by their own protocol; use `rabbitmq-stream://HOST`"
                .to_owned())
        }
        Some(("embedded" | "memory", _)) => broker(text),
        _ => Err("write `embedded:PATH`, a directory beside the pipeline file, or `rabbitmq-stream://HOST`"
            .to_owned()),
    }
}

#[cfg(feature = "rabbitmq")]
fn rabbitmq_stream(url: &str) -> Result<(), String> {
    millstream_rabbitmq::stream::StreamSettings::parse(url).map(drop).map_err(|error| error.to_string())
}

#[cfg(feature = "rabbitmq")]
fn amqp(url: &str) -> Result<(), String> {
    millstream_rabbitmq::RabbitMq::check(url).map_err(|error| error.to_string())
}

#[cfg(not(feature = "rabbitmq"))]
fn rabbitmq_stream(url: &str) -> Result<(), String> {
    amqp(url)
}

#[cfg(not(feature = "rabbitmq"))]
fn amqp(_: &str) -> Result<(), String> {
    Err("this program was built without RabbitMQ; build with the feature `rabbitmq`, or use `embedded:PATH`"
        .to_owned())
}

fn expected(kind: &Kind) -> &'static str {
    match kind {
        Kind::Text => "text",
        Kind::Name => "a name",
        Kind::Broker | Kind::StreamBroker => "a broker's URL",
        Kind::From => "a place in a stream",
        Kind::Address => "an address",
        Kind::HttpUrl => "an http URL",
        Kind::Template => "a path",
        Kind::Character => "a single character",
        Kind::Size(_) => "a size such as `64MiB`",
        Kind::Time => "a time such as `500ms`",
        Kind::Count(..) | Kind::Auto(_) => "a whole number in range",
        Kind::Ratio => "a share between 0% and 100%",
        Kind::Bool => "`true` or `false`",
        Kind::Choice(_) => "one of the known words",
        Kind::Cel => "a CEL expression as text",
        Kind::Jq | Kind::JqOr(_) => "a jq program as text",
        Kind::Object(_) | Kind::OneOf(_) | Kind::List(_) | Kind::Names(_) | Kind::Any => "a map or list",
    }
}

fn lower(about: &str) -> String {
    let mut chars = about.trim_end_matches('.').chars();
    chars.next().map(|first| first.to_lowercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}

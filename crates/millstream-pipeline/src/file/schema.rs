//! The JSON Schema of pipeline files, made from the same shape that the check reads.

use super::shape::{Key, Kind, PIPELINE, Shape, Union};
use serde_json::{Map, Value, json};

/// The JSON Schema (draft 2020-12) of a pipeline file, for completion and checks in an editor.
///
/// It knows keys, types and ranges. What one setting means for another, only `lint` knows.
///
/// # Examples
///
/// ```
/// let schema = millstream_pipeline::schema();
/// assert_eq!(schema["required"], serde_json::json!(["name", "source", "output"]));
/// ```
pub fn schema() -> Value {
    let mut root = object(&PIPELINE);
    if let Value::Object(map) = &mut root {
        map.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        map.insert("title".to_owned(), json!("Millstream pipeline"));
    }
    root
}

fn object(shape: &Shape) -> Value {
    let properties: Map<String, Value> =
        shape.keys.iter().map(|key| (key.name.to_owned(), described(key))).collect();
    let required: Vec<&str> = shape.keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    // A component with nothing behind its colon has all its defaults.
    let types = if required.is_empty() { json!(["object", "null"]) } else { json!("object") };
    let mut schema = json!({ "type": types, "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn described(key: &Key) -> Value {
    let mut schema = kind(&key.kind);
    let about = match key.default {
        Some(default) => format!("{} Default: {default}.", key.about),
        None => key.about.to_owned(),
    };
    schema["description"] = json!(about);
    schema
}

fn union(union: &Union) -> Value {
    let words = union.words.iter().map(|word| json!({ "const": word }));
    let tags = union.tags.iter().map(|tag| {
        json!({
            "type": "object",
            "properties": { tag.name: described(tag) },
            "required": [tag.name],
            "additionalProperties": false,
        })
    });
    json!({ "oneOf": words.chain(tags).collect::<Vec<_>>() })
}

/// `${NAME}` may stand for any scalar, so every scalar that is not free text also takes that.
fn or_variable(schema: Value) -> Value {
    json!({ "anyOf": [schema, { "type": "string", "pattern": "\\$\\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\\}" }] })
}

fn kind(kind: &Kind) -> Value {
    let text = |pattern: &str| or_variable(json!({ "type": "string", "pattern": pattern }));
    match kind {
        Kind::Text | Kind::Template | Kind::Cel | Kind::Jq => {
            json!({ "type": ["string", "number", "boolean"], "minLength": 1 })
        }
        Kind::Name => json!({ "type": ["string", "number"], "minLength": 1, "maxLength": 255 }),
        Kind::Broker => text("^(embedded:|amqps?://|rabbitmq-stream(\\+tls)?://).+"),
        Kind::StreamBroker => text("^(embedded:|rabbitmq-stream(\\+tls)?://).+"),
        Kind::From => or_variable(json!({ "anyOf": [
            { "type": "string", "pattern": "^(first|last|next|([0-9.]+(ns|us|ms|s|m|h|d) *)+)$" },
            { "type": "integer", "minimum": 0 },
        ] })),
        Kind::Address => text("^.+:[0-9]{1,5}$"),
        Kind::HttpUrl => text("^https?://.+"),
        Kind::Character => or_variable(json!({ "type": ["string", "number"], "maxLength": 1 })),
        Kind::Size(_) => or_variable(json!({ "anyOf": [
            { "type": "string", "pattern": "^[0-9.]+ *(B|[kKMGT]B|[KMGT]iB)$" }, { "const": 0 }
        ] })),
        Kind::Time => text("^([0-9.]+(ns|us|ms|s|m|h|d) *)+$"),
        Kind::Count(min, max) if *max == u64::MAX => {
            or_variable(json!({ "type": "integer", "minimum": min }))
        }
        Kind::Count(min, max) => or_variable(json!({ "type": "integer", "minimum": min, "maximum": max })),
        Kind::Auto(max) => or_variable(
            json!({ "anyOf": [{ "const": "auto" }, { "type": "integer", "minimum": 1, "maximum": max }] }),
        ),
        Kind::Ratio => or_variable(json!({ "anyOf": [
            { "type": "string", "pattern": "^[0-9.]+ *%$" }, { "type": "number", "minimum": 0, "maximum": 1 }
        ] })),
        Kind::Bool => or_variable(json!({ "type": "boolean" })),
        Kind::Choice(words) => or_variable(json!({ "enum": words })),
        Kind::Object(shape) => object(shape),
        Kind::OneOf(one) => union(one),
        Kind::List(item) => json!({ "type": "array", "items": self::kind(item), "minItems": 1 }),
        Kind::Names(item) => {
            json!({ "type": "object", "additionalProperties": self::kind(item), "minProperties": 1 })
        }
        Kind::Any => json!({}),
        Kind::JqOr(shape) => json!({ "oneOf": [{ "type": "string", "minLength": 1 }, object(shape)] }),
    }
}

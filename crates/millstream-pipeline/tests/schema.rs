//! The JSON Schema says what lint says, as far as a schema can.

use millstream_pipeline::{Pipeline, schema};
use serde_json::{Value, json};

/// Whether `value` fits `schema`: the part of JSON Schema that ours uses, but for most patterns.
fn fits(schema: &Value, value: &Value) -> bool {
    let is = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("unknown type {other}"),
    };
    let all = |key: &str| {
        schema[key]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
            .filter(|s| fits(s, value))
            .count()
    };
    let typed = match &schema["type"] {
        Value::Null => true,
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().any(|name| is(name.as_str().expect("a type"))),
        _ => false,
    };
    let object = value.as_object().is_none_or(|object| {
        object.iter().all(|(key, value)| {
            match (&schema["properties"][key], &schema["additionalProperties"]) {
                (Value::Null, Value::Bool(false)) => false,
                (Value::Null, Value::Null) => true,
                (Value::Null, others) => fits(others, value),
                (property, _) => fits(property, value),
            }
        }) && schema["required"]
            .as_array()
            .is_none_or(|keys| keys.iter().all(|key| object.contains_key(key.as_str().expect("a key"))))
            && (object.len() as u64 >= schema["minProperties"].as_u64().unwrap_or(0))
    });
    let array = value.as_array().is_none_or(|items| {
        items.len() as u64 >= schema["minItems"].as_u64().unwrap_or(0)
            && (schema["items"].is_null() || items.iter().all(|item| fits(&schema["items"], item)))
    });
    let number = value.as_u64().is_none_or(|number| {
        number >= schema["minimum"].as_u64().unwrap_or(0)
            && number <= schema["maximum"].as_u64().unwrap_or(u64::MAX)
    });
    // Of the patterns, the one that lets a variable stand for anything else matters here.
    let variable = schema["pattern"].as_str().is_none_or(|pattern| {
        !pattern.starts_with("\\$") || value.as_str().is_some_and(|text| text.contains("${"))
    });
    typed
        && variable
        && object
        && array
        && number
        && (schema["oneOf"].is_null() || all("oneOf") == 1)
        && (schema["anyOf"].is_null() || all("anyOf") > 0)
        && schema["enum"].as_array().is_none_or(|values| values.contains(value))
        && (schema["const"].is_null() || schema["const"] == *value)
}

fn pipeline() -> Value {
    json!({
        "name": "flights",
        "source": { "file": { "path": "in.csv", "columns": ["a"], "max_line": "1MiB" } },
        "buffer": { "queue": { "broker": "embedded:state", "name": "flights", "max_items": 5000 } },
        "process": [
            { "map": "{a}" },
            { "map": { "name": "typed", "jq": "." } },
            { "filter": { "name": "x", "keep": "item.a > '1'" } },
            { "parallel": { "workers": "auto", "steps": [{ "map": "." }] } },
        ],
        "batch": { "by": "a", "count": 500, "bytes": "1MiB", "age": "1s" },
        "output": { "file": { "path": "out/{a}.ndjson", "rotate": { "bytes": "64MiB", "every": "1h" } } },
        "on_error": { "retry": { "attempts": 5, "then": { "dead_letter": { "queue": "dead" } } } },
        "goals": { "latency": "1s", "memory": "1GiB", "max_error_rate": "5%" },
    })
}

/// Whether lint takes the same value, written as YAML (JSON is YAML).
fn linted(value: &Value) -> bool {
    Pipeline::parse("p.yaml", &value.to_string()).is_ok()
}

#[test]
fn a_full_pipeline_fits_and_lints() {
    assert!(fits(&schema(), &pipeline()));
    assert!(linted(&pipeline()), "{}", Pipeline::parse("p", &pipeline().to_string()).expect_err("problems"));
}

#[test]
fn what_the_schema_refuses_lint_refuses_too() {
    let cases: [(&str, Value); 12] = [
        ("/nmae", json!(1)),
        ("/source/file/pth", json!("x")),
        ("/source/stdin", json!({ "format": "csv" })),
        ("/buffer/queue/max_items", json!(0)),
        ("/buffer/queue/prefetch", json!("many")),
        ("/process", json!([])),
        ("/process/0", json!({ "mapp": "." })),
        ("/batch/count", json!("x")),
        ("/batch/cuont", json!(1)),
        ("/output/file/format", json!("xml")),
        ("/on_error", json!("ignore")),
        ("/goals/order", json!("maybe")),
    ];
    for (path, wrong) in cases {
        let mut value = pipeline();
        let (parent, key) = path.rsplit_once('/').expect("a path");
        match value.pointer_mut(parent).expect("a parent") {
            Value::Array(items) => items[key.parse::<usize>().expect("an index")] = wrong,
            parent => parent[key] = wrong,
        }
        assert!(!fits(&schema(), &value), "the schema takes {path}");
        assert!(!linted(&value), "lint takes {path}");
    }
}

#[test]
fn every_key_is_described() {
    fn walk(schema: &Value, path: &str) {
        if !schema.is_object() {
            return;
        }
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let text = property["description"].as_str().unwrap_or("");
            assert!(text.ends_with('.') && text.len() > 8, "{path}.{key} is described as {text:?}");
            walk(property, &format!("{path}.{key}"));
        }
        for key in ["items", "additionalProperties"] {
            walk(&schema[key], path);
        }
        for key in ["oneOf", "anyOf"] {
            schema[key].as_array().into_iter().flatten().for_each(|one| walk(one, path));
        }
    }
    walk(&schema(), "");
}

//! The reference in `docs/pipeline.md` is what the schema says. `MILLSTREAM_UPDATE=1` writes it anew.

use millstream_pipeline::schema;
use serde_json::Value;

const BEGIN: &str = "<!-- reference: begin -->\n";
const END: &str = "<!-- reference: end -->";

/// What a value may be, in a word or two.
fn kind(schema: &Value) -> String {
    if let Some(words) = schema["enum"].as_array() {
        let words: Vec<String> =
            words.iter().map(|word| format!("`{}`", word.as_str().unwrap_or(""))).collect();
        return words.join(", ");
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let word = choices[0]["const"].is_string();
        // What else is there is a variable in the place of a value.
        let number = choices.iter().filter(|other| word && other["type"] == "integer").map(kind);
        return std::iter::once(kind(&choices[0])).chain(number).collect::<Vec<_>>().join(", ");
    }
    if let Some(word) = schema["const"].as_str() {
        return format!("`{word}`");
    }
    match (schema["type"].as_str(), schema["pattern"].as_str()) {
        (Some("array"), _) => format!("list of {}", kind(&schema["items"])),
        (Some("integer"), _) => "whole number".to_owned(),
        (Some("boolean"), _) => "`true`, `false`".to_owned(),
        (Some("string"), Some(pattern)) if pattern.contains("[KMGT]iB") => "size".to_owned(),
        (Some("string"), Some(pattern)) if pattern.contains("ms|s") => "time".to_owned(),
        (Some("string"), Some(pattern)) if pattern.contains('%') => "share".to_owned(),
        (Some("string"), Some(pattern)) if pattern.contains("first") => {
            "`first`, `last`, `next`, offset, time".to_owned()
        }
        (Some("string"), Some(pattern)) if pattern.contains("amqp") => {
            "`embedded:PATH`, `amqp://HOST`, `rabbitmq-stream://HOST`".to_owned()
        }
        (Some("string"), Some(pattern)) if pattern.contains("rabbitmq-stream") => {
            "`embedded:PATH`, `rabbitmq-stream://HOST`".to_owned()
        }
        (Some("string"), Some(pattern)) if pattern.contains("http") => "URL".to_owned(),
        (Some("string"), Some(_)) => "`HOST:PORT`".to_owned(),
        _ if schema["properties"].is_object() => "map".to_owned(),
        _ if schema["oneOf"].is_array() => "one of".to_owned(),
        _ if schema["additionalProperties"].is_object() => "map of names".to_owned(),
        _ => "text".to_owned(),
    }
}

fn table(schema: &Value, path: &str, out: &mut String, depth: usize) {
    if let Some(properties) = schema["properties"].as_object() {
        let required = schema["required"].as_array();
        // Sorted here, whatever order the JSON library keeps.
        let properties: std::collections::BTreeMap<_, _> = properties.iter().collect();
        out.push_str("| Key | Value | |\n|---|---|---|\n");
        for (key, property) in &properties {
            let needed = required.is_some_and(|keys| keys.iter().any(|name| name == key.as_str()));
            let about = property["description"].as_str().unwrap_or("").replace('|', "\\|");
            let needed = if needed { "**Required.** " } else { "" };
            out.push_str(&format!(
                "| `{key}` | {} | {needed}{about} |\n",
                kind(property).replace('|', "\\|")
            ));
        }
        out.push('\n');
        for (key, property) in &properties {
            inner(property, &format!("{path}{key}"), out, depth);
        }
    }
}

/// The sections below a key: the components it chooses from, or its own keys.
fn inner(property: &Value, path: &str, out: &mut String, depth: usize) {
    let property = if property["type"] == "array" { &property["items"] } else { property };
    // Outputs under a name and steps inside `parallel` are those described already.
    if depth > 3 || path.ends_with(".named") || path.ends_with(".steps") || path.ends_with(".then") {
        return;
    }
    if property["properties"].is_object() {
        out.push_str(&format!("### `{path}`\n\n"));
        table(property, &format!("{path}."), out, depth + 1);
    }
    for choice in property["oneOf"].as_array().into_iter().flatten() {
        for (tag, component) in choice["properties"].as_object().into_iter().flatten() {
            let listed = choice["required"].as_array().is_some_and(|keys| keys.len() == 1 && keys[0] == *tag);
            if listed {
                let about = component["description"].as_str().unwrap_or("");
                out.push_str(&format!("### `{path}.{tag}`\n\n{about}\n\n"));
                let shape = component["oneOf"].as_array().and_then(|forms| forms.last()).unwrap_or(component);
                table(shape, &format!("{path}.{tag}."), out, depth + 1);
            }
        }
    }
}

#[test]
fn the_reference_says_what_the_schema_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/pipeline.md");
    let text = std::fs::read_to_string(path).expect("docs/pipeline.md");
    let (before, rest) = text.split_once(BEGIN).expect("the begin of the reference");
    let (written, after) = rest.split_once(END).expect("the end of the reference");
    let mut reference = String::from("\n");
    table(&schema(), "", &mut reference, 0);
    if std::env::var_os("MILLSTREAM_UPDATE").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{reference}{END}{after}")).expect("written");
    } else {
        assert!(
            written == reference,
            "docs/pipeline.md is behind the schema; run this test with MILLSTREAM_UPDATE=1"
        );
    }
}

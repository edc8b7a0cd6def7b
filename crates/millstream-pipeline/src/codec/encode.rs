//! Items to lines.

use crate::value::{self, Value};
use std::collections::HashSet;

/// Writes items as NDJSON or csv. A csv file's columns are those given, or the first item's fields.
#[derive(Debug, Clone)]
pub(crate) struct Encoder {
    csv: bool,
    columns: Option<Vec<Value>>,
}

impl Encoder {
    pub(crate) fn new(csv: bool, columns: Option<&[String]>) -> Self {
        Encoder { csv, columns: columns.map(|names| names.iter().map(|name| value::text(name)).collect()) }
    }

    /// The header row, once for the whole output: `first` decides the columns where none are given.
    pub(crate) fn header(&mut self, first: &Value) -> Result<Vec<u8>, String> {
        if self.columns.is_none() {
            let Value::Obj(map) = first else { return Err(not_an_object(first)) };
            self.columns = Some(map.keys().cloned().collect());
        }
        let mut out = Vec::new();
        for (index, column) in self.columns.as_deref().unwrap_or_default().iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            field(&mut out, column);
        }
        out.push(b'\n');
        Ok(out)
    }

    /// Writes one item and its line break; on an error nothing is written.
    pub(crate) fn item(&self, item: &Value, out: &mut Vec<u8>) -> Result<(), String> {
        if !self.csv {
            value::write_json(out, item);
            out.push(b'\n');
            return Ok(());
        }
        let Value::Obj(map) = item else { return Err(not_an_object(item)) };
        let columns = self.columns.as_deref().unwrap_or_default();
        let (start, mut written) = (out.len(), 0);
        for (index, column) in columns.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            if let Some(value) = map.get(column) {
                field(out, value);
                written += 1;
            }
        }
        if out.len() == start {
            // A row of one field that is empty: as an empty line it would be no row.
            out.extend_from_slice(b"\"\"");
        }
        out.push(b'\n');
        if written == map.len() {
            return Ok(());
        }
        out.truncate(start);
        let columns: HashSet<&Value> = columns.iter().collect();
        // There is one: columns are all different, by lint or as the keys of a map.
        let unknown = map.keys().find(|key| !columns.contains(key)).unwrap_or(&Value::Null);
        Err(format!("field {unknown} has no column in the csv file; list it under `columns`"))
    }
}

fn not_an_object(item: &Value) -> String {
    let mut text = Vec::new();
    value::write_json(&mut text, item);
    let shown: String = String::from_utf8_lossy(&text).chars().take(60).collect();
    format!("{shown} is not an object, so it is no csv row")
}

fn field(out: &mut Vec<u8>, value: &Value) {
    let start = out.len();
    value::write_plain(out, value);
    let quote = out[start..].iter().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r'));
    if quote {
        let text = out.split_off(start);
        out.push(b'"');
        for byte in text {
            if byte == b'"' {
                out.push(b'"');
            }
            out.push(byte);
        }
        out.push(b'"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(encoder: &mut Encoder, items: &[&str]) -> Result<String, String> {
        let mut out = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let item = value::parse_json(item.as_bytes()).expect("JSON");
            if index == 0 && encoder.csv {
                out = encoder.header(&item)?;
            }
            encoder.item(&item, &mut out)?;
        }
        Ok(String::from_utf8(out).expect("UTF-8"))
    }

    #[test]
    fn csv_quotes_what_needs_it_and_reads_back() {
        let mut encoder = Encoder::new(true, None);
        let rows = written(&mut encoder, &[r#"{"a":"x,\"y\"\n","b":null}"#, r#"{"b":1.5,"a":[1]}"#]);
        assert_eq!(rows.as_deref(), Ok("a,b\n\"x,\"\"y\"\"\n\",\n[1],1.5\n"));
    }

    #[test]
    fn a_csv_row_of_one_field_that_is_empty_is_a_row() {
        let items = [r#"{"a":""}"#, r#"{"a":null}"#, "{}", r#"{"a":"x"}"#];
        let text = written(&mut Encoder::new(true, None), &items);
        assert_eq!(text.as_deref(), Ok("a\n\"\"\n\"\"\n\"\"\nx\n"));
    }

    #[test]
    fn csv_refuses_what_has_no_column() {
        let mut encoder = Encoder::new(true, Some(&["a".to_owned()]));
        assert!(written(&mut encoder, &[r#"{"a":1,"b":2}"#]).expect_err("b").contains("\"b\""));
        assert!(written(&mut Encoder::new(true, None), &["7"]).is_err());
    }

    #[test]
    fn ndjson_is_one_value_a_line() {
        assert_eq!(
            written(&mut Encoder::new(false, None), &["{\"a\": 1}", "[2]"]).as_deref(),
            Ok("{\"a\":1}\n[2]\n")
        );
    }
}

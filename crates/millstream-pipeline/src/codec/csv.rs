//! csv rows: fields between delimiters, quoted when they hold one (RFC 4180, any one-byte delimiter).

use super::decode::Fault;
use crate::value::{self, Map, Value};
use bytes::Bytes;
use std::borrow::Cow;
use std::collections::HashSet;

/// The columns of a csv file, prepared for writing and building rows.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    names: Vec<String>,
    /// `"name":` of each, ready for JSON.
    json: Vec<Vec<u8>>,
    /// Bytes of them, and of what stands around the values.
    json_bytes: usize,
    keys: Vec<Value>,
    delimiter: u8,
}

impl Header {
    /// Reads the header row.
    ///
    /// # Errors
    ///
    /// A malformed row, a column without a name, or two of one name.
    pub(crate) fn parse(row: &[u8], delimiter: u8) -> Result<Self, Fault> {
        let mut names: Vec<String> = Vec::new();
        let mut columns = Vec::new();
        split(row, delimiter, |column, field| {
            names.push(field.into_owned());
            columns.push(column);
        })?;
        let mut known = HashSet::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            // The whole file would be the header, and no row would ever come.
            if name.split("\r\n").any(|line| line.contains('\r')) {
                return Err(Fault::new(
                    columns[index],
                    "lines end with a carriage return alone; end them with a line feed".to_owned(),
                ));
            }
            if name.is_empty() {
                return Err(Fault::new(
                    columns[index],
                    format!("column {} of the header has no name", index + 1),
                ));
            }
            if !known.insert(name) {
                return Err(Fault::new(
                    columns[index],
                    format!("column `{name}` appears twice in the header"),
                ));
            }
        }
        Ok(Self::of(names, delimiter))
    }

    fn of(names: Vec<String>, delimiter: u8) -> Self {
        let json = names.iter().map(|name| {
            let mut key = Vec::new();
            value::write_text(&mut key, name.as_bytes());
            key.push(b':');
            key
        });
        let json: Vec<Vec<u8>> = json.collect();
        Header {
            // Two quotes around a value; the row has the commas.
            json_bytes: json.iter().map(|key| key.len() + 2).sum(),
            json,
            keys: names.iter().map(|name| value::text(name)).collect(),
            names,
            delimiter,
        }
    }

    /// What [`write_json`](Self::write_json) writes more than the row has.
    pub(crate) fn json_bytes(&self) -> usize {
        self.json_bytes
    }

    /// Holds the header against the columns that the pipeline expects.
    pub(crate) fn expect(&self, columns: &[String]) -> Result<(), Fault> {
        if let Some(index) = self.names.iter().position(|name| !columns.contains(name)) {
            return Err(Fault::new(
                1,
                format!("unknown column `{}`; `columns` lists {}", self.names[index], columns.join(", ")),
            ));
        }
        match columns.iter().find(|column| !self.names.contains(column)) {
            Some(missing) => {
                Err(Fault::new(1, format!("column `{missing}`, listed in `columns`, is missing")))
            }
            None => Ok(()),
        }
    }

    /// Writes a row as a JSON object of texts.
    pub(crate) fn write_json(&self, row: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        out.push(b'{');
        let mut index = 0;
        let mut surplus = None;
        split(row, self.delimiter, |column, field| {
            if let Some(key) = self.json.get(index) {
                if index > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(key);
                value::write_text(out, field.as_bytes());
            } else if surplus.is_none() {
                surplus = Some(column);
            }
            index += 1;
        })?;
        out.push(b'}');
        self.check_count(row, index, surplus)
    }

    /// Builds a row as an object of texts.
    pub(crate) fn value(&self, row: &Bytes) -> Result<Value, Fault> {
        let mut map = Map::with_capacity_and_hasher(self.keys.len(), Default::default());
        let mut index = 0;
        let mut surplus = None;
        split(row, self.delimiter, |column, field| {
            if let Some(key) = self.keys.get(index) {
                let text = match field {
                    Cow::Borrowed(field) => row.slice_ref(field.as_bytes()),
                    Cow::Owned(field) => Bytes::from(field),
                };
                map.insert(key.clone(), Value::utf8_str(text));
            } else if surplus.is_none() {
                surplus = Some(column);
            }
            index += 1;
        })?;
        self.check_count(row, index, surplus)?;
        Ok(Value::obj(map))
    }

    fn check_count(&self, row: &[u8], fields: usize, surplus: Option<usize>) -> Result<(), Fault> {
        let expected = self.names.len();
        match surplus {
            Some(column) => Err(Fault::new(
                column,
                format!(
                    "the row has {fields} fields, but the header {expected}; a field with `{}` in it stands in quotes",
                    char::from(self.delimiter).escape_default()
                ),
            )),
            None if fields < expected => {
                let end = String::from_utf8_lossy(row).chars().count() + 1;
                let missing = &self.names[fields];
                Err(Fault::new(
                    end,
                    format!(
                        "the row has {fields} field{}, the header {expected}: `{missing}` is missing",
                        if fields == 1 { "" } else { "s" }
                    ),
                ))
            }
            None => Ok(()),
        }
    }
}

/// Gives each field of a row with its column in characters, from 1.
///
/// # Errors
///
/// What is not UTF-8, a quote that is not closed, text behind a closing quote.
pub(crate) fn split<'r>(
    row: &'r [u8],
    delimiter: u8,
    mut each: impl FnMut(usize, Cow<'r, str>),
) -> Result<(), Fault> {
    let text = std::str::from_utf8(row).map_err(|error| {
        let before = String::from_utf8_lossy(&row[..error.valid_up_to()]).chars().count();
        Fault::new(before + 1, format!("byte 0x{:02x} is not UTF-8", row[error.valid_up_to()]))
    })?;
    // Columns count characters; for the usual ASCII row that is the offset. Each is asked for behind the one before it.
    let ascii = text.is_ascii();
    let (mut counted, mut characters) = (0, 0);
    let mut column = |offset: usize| {
        if ascii {
            return offset + 1;
        }
        characters += text[counted..offset].chars().count();
        counted = offset;
        characters + 1
    };
    let bytes = text.as_bytes();
    let mut start = 0;
    loop {
        let end = if bytes.get(start) == Some(&b'"') {
            let (field, end) = quoted(text, start).ok_or_else(|| {
                Fault::new(column(start), "the quote that opens here is not closed".to_owned())
            })?;
            if end < bytes.len() && bytes[end] != delimiter {
                return Err(Fault::new(column(end), "text stands behind a closing quote".to_owned()));
            }
            each(column(start), field);
            end
        } else {
            let end = memchr::memchr(delimiter, &bytes[start..]).map_or(bytes.len(), |at| start + at);
            each(column(start), Cow::Borrowed(&text[start..end]));
            end
        };
        if end == bytes.len() {
            return Ok(());
        }
        start = end + 1;
    }
}

/// The quoted field that opens at `start`, and where it ends.
fn quoted(text: &str, start: usize) -> Option<(Cow<'_, str>, usize)> {
    let bytes = text.as_bytes();
    let mut from = start + 1;
    let mut owned: Option<String> = None;
    loop {
        let quote = from + memchr::memchr(b'"', &bytes[from..])?;
        let piece = &text[from..quote];
        if bytes.get(quote + 1) == Some(&b'"') {
            let field = owned.get_or_insert_default();
            field.push_str(piece);
            field.push('"');
            from = quote + 2;
        } else {
            let field = match owned {
                Some(field) => Cow::Owned(field + piece),
                None => Cow::Borrowed(piece),
            };
            return Some((field, quote + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header::parse(b"a,b", b',').expect("a good header")
    }

    fn json(row: &[u8]) -> Result<String, (usize, String)> {
        let mut out = Vec::new();
        let written =
            header().write_json(row, &mut out).map(|()| String::from_utf8(out).expect("JSON is UTF-8"));
        let built = header().value(&Bytes::copy_from_slice(row)).map(|value| {
            let mut out = Vec::new();
            value::write_json(&mut out, &value);
            String::from_utf8(out).expect("JSON is UTF-8")
        });
        assert_eq!(written, built, "both ways agree");
        written.map_err(|fault| (fault.column(), fault.to_string()))
    }

    #[test]
    fn lines_that_end_with_a_carriage_return_alone_are_no_header() {
        let fault = Header::parse(b"a,b\r1,2\r3,4", b',').expect_err("three lines");
        assert!(fault.to_string().contains("line feed"), "{fault}");
        assert!(Header::parse(b"\"a\r\nb\",c", b',').is_ok(), "a quoted name may hold a line break");
    }

    #[test]
    fn rows_become_objects_of_texts() {
        assert_eq!(json(b"1,x").as_deref(), Ok(r#"{"a":"1","b":"x"}"#));
        assert_eq!(json(b"\"q,\"\"q\"\"\n\",").as_deref(), Ok(r#"{"a":"q,\"q\"\n","b":""}"#));
    }

    #[test]
    fn a_malformed_row_names_its_column() {
        assert_eq!(json("é,x,y".as_bytes()).map_err(|e| e.0), Err(5));
        assert_eq!(json(b"1").map_err(|e| e.0), Err(2));
        assert_eq!(json(b"1,\"x").map_err(|e| e.0), Err(3));
        assert_eq!(json(b"\"1\"x,2").map_err(|e| e.0), Err(4));
        assert_eq!(json(b"ab\xff,2").map_err(|e| e.0), Err(3));
    }

    #[test]
    fn a_header_is_checked() {
        assert!(Header::parse(b"a,a", b',').is_err());
        assert!(Header::parse(b"a,,b", b',').is_err());
        let columns = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(header().expect(&columns(&["b", "a"])).is_ok());
        assert!(
            header()
                .expect(&columns(&["a"]))
                .expect_err("one more")
                .to_string()
                .contains("unknown column `b`")
        );
        assert!(
            header().expect(&columns(&["a", "b", "c"])).expect_err("one less").to_string().contains("`c`")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_row_or_a_fault(row in proptest::collection::vec(prop_oneof![Just(b'"'), Just(b','), any::<u8>()], 0..40)) {
            let _ = json(&row);
        }
    }
}

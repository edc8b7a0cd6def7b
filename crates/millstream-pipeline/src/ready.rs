//! Items made ready for their output: written as its bytes, with the file and the batch they belong to.
//!
//! Everything that can be wrong with one item for its output shows here, before items are gathered; what is
//! left to go wrong behind is the output's own trouble.

use crate::codec::Encoder;
use crate::file::model::{Batch, Format, Output, OutputKind};
use crate::file::template::Template;
use crate::item::Record;
use crate::output::file::Header;
use crate::output::message_fits;
use crate::value::{self, Value};
use bytes::Bytes;
use millstream_message::TraceContext;
use std::sync::{Arc, OnceLock};

/// An item as its output takes it.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) output: usize,
    /// Items of one batch have the same.
    pub(crate) key: Bytes,
    /// The file, of a file output.
    pub(crate) path: Option<Arc<str>>,
    /// The item's line, with its line break for files and standard output.
    pub(crate) bytes: Vec<u8>,
    /// Where it came from.
    pub(crate) place: String,
    /// The trace of the message it came in, kept as its place is.
    pub(crate) trace: Option<Arc<TraceContext>>,
    /// Bytes of the message it came in.
    pub(crate) size: usize,
}

/// Makes items ready for one output.
pub(crate) struct Writer {
    encoder: Encoder,
    line_break: bool,
    path: Option<Template>,
    last_path: Option<Arc<str>>,
    filled: String,
    header: Header,
    by: Option<(Vec<Value>, String)>,
    bytes_max: usize,
    /// What a broker takes as a message, if one is the output.
    message_max: Option<usize>,
    /// Bytes of the last item, to make room for the next at once.
    expected: usize,
}

impl Writer {
    /// A writer for `output`. Items of more than `bytes_max` bytes are refused.
    pub(crate) fn new(output: &Output, batch: &Batch, bytes_max: usize) -> Self {
        let (csv, columns, path) = match &output.kind {
            OutputKind::File(file) => (
                file.format.value == Format::Csv,
                file.columns.as_ref().map(|columns| columns.value.as_slice()),
                Some(file.path.value.clone()),
            ),
            OutputKind::Stdout { csv } => (*csv, None, None),
            OutputKind::Http(_) | OutputKind::Queue(_) | OutputKind::Stream(_) => (false, None, None),
        };
        let by = batch.by.as_ref().map(|by| (by.split('.').map(value::text).collect(), by.value.clone()));
        Writer {
            encoder: Encoder::new(csv, columns),
            line_break: matches!(output.kind, OutputKind::File(_) | OutputKind::Stdout { .. }),
            path,
            last_path: None,
            filled: String::new(),
            header: csv.then(|| Arc::new(OnceLock::new())),
            by,
            bytes_max,
            message_max: None,
            expected: 128,
        }
    }

    /// The same for a broker that takes messages of up to `max` bytes.
    pub(crate) fn of_messages(self, max: u64) -> Self {
        Writer { message_max: Some(usize::try_from(max).unwrap_or(usize::MAX)), ..self }
    }

    /// Where the header row of csv will be found.
    pub(crate) fn header(&self) -> Header {
        self.header.clone()
    }

    /// Makes one item ready.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the item for this output.
    pub(crate) fn write(&mut self, record: &Record, keep_place: bool) -> Result<Ready, String> {
        let key = self.key(&record.value)?;
        let path = self.path(&record.value)?;
        if let Some(header) = self.header.as_ref().filter(|header| header.get().is_none()) {
            let row = self.encoder.header(&record.value)?;
            // Only this writer sets it.
            let _ = header.set(row);
        }
        let mut bytes = Vec::with_capacity(self.expected);
        self.encoder.item(&record.value, &mut bytes)?;
        if !self.line_break {
            bytes.pop();
        }
        if bytes.len() > self.bytes_max {
            return Err(format!(
                "the item has {} bytes; the output takes {} at most, which is the larger of `batch.bytes` and 1MiB",
                bytes.len(),
                self.bytes_max
            ));
        }
        self.expected = bytes.len() + 16;
        let (place, trace) =
            if keep_place { (record.place.to_string(), record.trace()) } else { (String::new(), None) };
        if let Some(max) = self.message_max
            && !message_fits(&bytes, &place, trace.as_deref(), max)
        {
            return Err(format!(
                "the item has {} bytes, and as a message more than the {max} that its broker takes",
                bytes.len()
            ));
        }
        Ok(Ready { output: record.output, key, path, bytes, place, trace, size: record.size })
    }

    fn key(&self, item: &Value) -> Result<Bytes, String> {
        let Some((path, name)) = &self.by else { return Ok(Bytes::new()) };
        let value = path.iter().try_fold(item, |value, key| value::field(value, key));
        match value {
            Some(Value::TStr(text)) => Ok((**text).clone()),
            Some(other) => {
                let mut key = Vec::new();
                value::write_plain(&mut key, other);
                Ok(key.into())
            }
            None => Err(format!("the item has no field `{name}`, which `batch.by` asks for")),
        }
    }

    fn path(&mut self, item: &Value) -> Result<Option<Arc<str>>, String> {
        let Some(template) = &self.path else { return Ok(None) };
        template.fill(item, &mut self.filled)?;
        // Neighbours mostly go to the same file; they share its name.
        if self.last_path.as_deref() != Some(&*self.filled) {
            self.last_path = Some(self.filled.as_str().into());
        }
        Ok(self.last_path.clone())
    }
}

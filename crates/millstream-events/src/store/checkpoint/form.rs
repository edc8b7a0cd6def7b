//! What stands in a checkpoint: a row of parts, each a message.
//!
//! A part is a byte that says the form and then a [`Part`] as postcard writes it. Places are written as differences, so that a commit
//! takes some three bytes. `docs/events.md` has the rest.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use millstream_message::Message;
use serde::{Deserialize, Serialize};

use crate::store::fold::{Beside, Entry, Fold, Place, Totals};

/// The content type of a part.
const CONTENT_TYPE: &str = "application/vnd.millstream.checkpoint";

/// The version of the form. A checkpoint of another one is passed over.
const FORM: u8 = 1;

/// Roughly how many bytes a part has at most.
pub(super) const PART: usize = 64 << 10;

/// Fewest bytes that what is told of a commit, a name or an offset takes, for a part to end in time.
const PLACES: usize = PART / 20;

/// The entry of the log behind which a checkpoint is: it tells a log from another one of its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) offset: u64,
    id: Option<String>,
    crc: u32,
}

impl Mark {
    pub(super) fn of(offset: u64, message: &Message) -> Mark {
        let id = message.properties().message_id.clone();
        Mark { offset, id, crc: crc32fast::hash(message.body()) }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Part<'a> {
    /// The checkpoint that it belongs to.
    of: &'a str,
    /// Which part of it, from 0.
    number: u32,
    #[serde(borrow)]
    says: Says<'a>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Says<'a> {
    Begin(Totals),
    /// More offsets of entries that do not count, each from the one before.
    Void(Vec<u64>),
    /// More remembered commits, the oldest first: name, first version, number of events.
    #[serde(borrow)]
    Commits(Vec<(Cow<'a, str>, u64, u64)>),
    /// More streams, in the order of their names.
    #[serde(borrow)]
    Streams(Vec<Stream<'a>>),
    /// More places of the last stream.
    Places(Vec<(u64, u64)>),
    /// It is whole. Where it ends: others may have begun between its parts.
    End {
        next_offset: u64,
        mark: Mark,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Stream<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    next: u64,
    first: u64,
    begun: u64,
    gone: bool,
    snapshot: Option<(u64, u64)>,
    /// Offset and first version of its commits, each from the one before.
    places: Vec<(u64, u64)>,
}

/// Writes the parts of a checkpoint.
pub(super) struct Writer {
    of: String,
    number: u32,
    next_offset: u64,
    mark: Mark,
    /// Parts that are whole.
    ready: Vec<Message>,
    streams: Vec<Stream<'static>>,
    /// About what they will take.
    bytes: usize,
}

impl Writer {
    pub(super) fn new(of: String, beside: &Beside, mark: Mark) -> Writer {
        let next_offset = beside.totals.next_offset;
        let mut writer =
            Writer { of, number: 0, next_offset, mark, ready: Vec::new(), streams: Vec::new(), bytes: 0 };
        writer.part(Says::Begin(beside.totals));
        let mut last = 0;
        let offsets = beside.void.iter().map(|offset| offset - std::mem::replace(&mut last, *offset));
        let offsets: Vec<u64> = offsets.collect();
        offsets.chunks(PLACES).for_each(|offsets| writer.part(Says::Void(offsets.to_vec())));
        let names = beside
            .commits
            .iter()
            .map(|(name, versions)| (Cow::Borrowed(&**name), versions.start, versions.end - versions.start));
        let (mut some, mut bytes) = (Vec::new(), 0);
        for name in names {
            bytes += name.0.len() + 8;
            some.push(name);
            if bytes >= PART {
                (bytes, _) = (0, writer.part(Says::Commits(std::mem::take(&mut some))));
            }
        }
        if !some.is_empty() {
            writer.part(Says::Commits(some));
        }
        writer
    }

    /// A further stream. True while the part has room.
    pub(super) fn stream(&mut self, name: &str, entry: &Entry) -> bool {
        let mut last = Place { offset: 0, first: 0 };
        let mut places = entry.commits.iter().map(|place| {
            let last = std::mem::replace(&mut last, *place);
            (place.offset - last.offset, place.first - last.first)
        });
        let stream = Stream {
            name: Cow::Owned(name.to_owned()),
            next: entry.next,
            first: entry.first,
            begun: entry.begun,
            gone: entry.gone,
            snapshot: entry.snapshot,
            places: places.by_ref().take(PLACES).collect(),
        };
        self.bytes += name.len() + 16 + 4 * stream.places.len();
        self.streams.push(stream);
        loop {
            let more: Vec<_> = places.by_ref().take(PLACES).collect();
            if more.is_empty() {
                break;
            }
            self.flush();
            self.part(Says::Places(more));
        }
        if self.bytes >= PART {
            self.flush();
        }
        self.ready.is_empty()
    }

    /// No stream comes any more.
    pub(super) fn end(&mut self) {
        self.flush();
        let (next_offset, mark) = (self.next_offset, self.mark.clone());
        self.part(Says::End { next_offset, mark });
    }

    /// The parts that are whole.
    pub(super) fn ready(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.ready)
    }

    fn flush(&mut self) {
        self.bytes = 0;
        if !self.streams.is_empty() {
            let streams = std::mem::take(&mut self.streams);
            self.part(Says::Streams(streams));
        }
    }

    fn part(&mut self, says: Says<'_>) {
        let part = Part { of: &self.of, number: self.number, says };
        self.number += 1;
        let body = postcard::to_extend(&part, vec![FORM]).expect("numbers and texts can be written");
        self.ready.push(Message::new(body).with_content_type(CONTENT_TYPE));
    }
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FormError {
    #[error("a part of it is not what a store of this version writes")]
    Part,
    #[error("parts of it are missing")]
    Missing,
    #[error("its numbers make no sense")]
    Numbers,
}

/// If this is the end of a checkpoint: what that is called, and behind which entry it is.
pub(super) fn end(message: &Message) -> Option<(String, u64, Mark)> {
    let part = part(message).ok()?;
    let Says::End { next_offset, mark } = part.says else { return None };
    Some((part.of.to_owned(), next_offset, mark))
}

fn part(message: &Message) -> Result<Part<'_>, FormError> {
    let body: &Bytes = message.body();
    match (message.content_type(), body.split_first()) {
        (Some(CONTENT_TYPE), Some((&FORM, part))) => postcard::from_bytes(part).map_err(|_| FormError::Part),
        _ => Err(FormError::Part),
    }
}

/// Reads the parts of one checkpoint.
pub(super) struct Reader {
    of: String,
    number: u32,
    beside: Beside,
    fold: Option<Fold>,
    stream: Option<Arc<str>>,
    whole: bool,
}

impl Reader {
    pub(super) fn new(of: String) -> Reader {
        Reader { of, number: 0, beside: Beside::default(), fold: None, stream: None, whole: false }
    }

    /// The next message; false when the checkpoint is whole. What belongs to another checkpoint is passed over.
    pub(super) fn message(&mut self, message: &Message) -> Result<bool, FormError> {
        let part = part(message)?;
        if self.whole || part.of != self.of {
            return Ok(!self.whole);
        }
        if part.number != self.number {
            return Err(FormError::Missing);
        }
        self.number = self.number.checked_add(1).ok_or(FormError::Numbers)?;
        match part.says {
            Says::Begin(totals) => self.beside.totals = totals,
            Says::Void(offsets) => {
                for more in offsets {
                    let last = self.beside.void.last().copied().unwrap_or(0);
                    self.beside.void.push(sum(last, more)?);
                }
            }
            Says::Commits(names) => {
                for (name, first, events) in names {
                    self.beside.commits.push((name.into(), first..sum(first, events)?));
                }
            }
            Says::Streams(streams) => {
                for stream in streams {
                    self.begin_stream(stream)?;
                }
            }
            Says::Places(places) => self.places(places)?,
            Says::End { .. } => self.whole = true,
        }
        Ok(!self.whole)
    }

    fn fold(&mut self) -> &mut Fold {
        let beside = &mut self.beside;
        self.fold.get_or_insert_with(|| Fold::restored(std::mem::take(beside)))
    }

    fn begin_stream(&mut self, stream: Stream<'_>) -> Result<(), FormError> {
        let Stream { name, next, first, begun, gone, snapshot, places } = stream;
        let name: Arc<str> = name.into();
        let entry = Entry { next, first, begun, gone, commits: Vec::new(), snapshot };
        self.fold().streams.insert(name.clone(), entry);
        self.stream = Some(name);
        self.places(places)
    }

    fn places(&mut self, places: Vec<(u64, u64)>) -> Result<(), FormError> {
        let name = self.stream.clone().ok_or(FormError::Missing)?;
        let entry = self.fold().streams.get_mut(&name).ok_or(FormError::Missing)?;
        entry.commits.reserve_exact(places.len());
        for (offset, first) in places {
            let last = entry.commits.last().copied().unwrap_or(Place { offset: 0, first: 0 });
            let place = Place { offset: sum(last.offset, offset)?, first: sum(last.first, first)? };
            entry.commits.push(place);
        }
        Ok(())
    }

    /// All that it says, if it is whole.
    pub(super) fn end(mut self) -> Result<Fold, FormError> {
        if !self.whole {
            return Err(FormError::Missing);
        }
        self.fold();
        self.fold.ok_or(FormError::Missing)
    }
}

fn sum(last: u64, more: u64) -> Result<u64, FormError> {
    last.checked_add(more).ok_or(FormError::Numbers)
}

//! Compression of bodies.

#[cfg(feature = "gzip")]
mod gzip;
#[cfg(feature = "lz4")]
mod lz4;
#[cfg(feature = "zstd")]
mod zstd;

#[cfg(any(feature = "gzip", feature = "lz4", feature = "zstd"))]
use std::io::{self, Read};

use bytes::Bytes;

use super::{Codec, CodecError, check_length, is_plain, shown};
use crate::message::Message;

/// The most encodings on top of each other that are undone.
pub const ENCODINGS_MAX: usize = 4;

/// When and how bodies are compressed, and how far they may be decompressed.
///
/// A body is compressed if it has at least [`min_bytes`](Compression::min_bytes), and stays compressed if that
/// [saves](Compression::saving) a tenth. Then the message says so in its content encoding: `gzip`, `zstd` or `lz4`.
/// Reading goes by what the message says, and undoes whatever is compiled in.
///
/// ```
/// # #[cfg(feature = "gzip")] {
/// use millstream_message::codec::{Codec, Compressed, Compression, Json};
///
/// let codec = Compressed::new(Json, Compression::gzip().level(9).min_bytes(100));
/// let short = codec.encode(&"z".repeat(50))?;
/// assert_eq!(short.properties().content_encoding, None);
/// let long = codec.encode(&"z".repeat(5000))?;
/// assert_eq!(long.properties().content_encoding.as_deref(), Some("gzip"));
/// assert!(long.body().len() < 100);
/// assert_eq!(Codec::<String>::decode(&codec, &long)?.len(), 5000);
/// # }
/// # Ok::<(), millstream_message::codec::CodecError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Compression {
    algorithm: Option<Algorithm>,
    min: usize,
    saving: u8,
    max: usize,
}

#[derive(Clone, Copy, Debug)]
enum Algorithm {
    /// With its level.
    #[cfg(feature = "gzip")]
    Gzip(u8),
    /// With its level.
    #[cfg(feature = "zstd")]
    Zstd(u8),
    #[cfg(feature = "lz4")]
    Lz4,
}

impl Compression {
    /// Compresses nothing; reading undoes whatever is compiled in. For those who read what others compress.
    pub const fn none() -> Compression {
        Compression { algorithm: None, min: 1024, saving: 10, max: 64 << 20 }
    }

    /// gzip (RFC 1952), level 6: read by everybody.
    #[cfg(feature = "gzip")]
    pub const fn gzip() -> Compression {
        Compression { algorithm: Some(Algorithm::Gzip(6)), ..Compression::none() }
    }

    /// Zstandard (RFC 8878), level 3: smaller than gzip in a fraction of its time.
    #[cfg(feature = "zstd")]
    pub const fn zstd() -> Compression {
        Compression { algorithm: Some(Algorithm::Zstd(3)), ..Compression::none() }
    }

    /// LZ4 frames: the quickest, and larger than the others.
    #[cfg(feature = "lz4")]
    pub const fn lz4() -> Compression {
        Compression { algorithm: Some(Algorithm::Lz4), ..Compression::none() }
    }

    /// How hard to try: gzip has the levels 1 to 9, zstd 1 to 22. Higher is smaller and slower.
    ///
    /// # Panics
    /// If the algorithm has no such level. LZ4 has none at all.
    #[must_use]
    pub fn level(mut self, level: u8) -> Compression {
        let most = match &mut self.algorithm {
            #[cfg(feature = "gzip")]
            Some(Algorithm::Gzip(to)) => {
                *to = level;
                9
            }
            #[cfg(feature = "zstd")]
            Some(Algorithm::Zstd(to)) => {
                *to = level;
                22
            }
            _ => 0,
        };
        assert!((1..=most).contains(&level), "{:?} has no level {level}", self.algorithm);
        self
    }

    /// Leaves bodies shorter than this alone. Default 1,024.
    #[must_use]
    pub const fn min_bytes(mut self, bytes: usize) -> Compression {
        self.min = bytes;
        self
    }

    /// Keeps a body as it was unless it becomes shorter by at least this many per cent. Default 10; with 0 it must
    /// only not become longer.
    ///
    /// # Panics
    /// If `percent` is over 100.
    #[must_use]
    pub const fn saving(mut self, percent: u8) -> Compression {
        assert!(percent <= 100, "nothing becomes shorter than empty");
        self.saving = percent;
        self
    }

    /// Refuses bodies that are longer than this before they are compressed, or after they are decompressed. Default
    /// 64 MiB. Decompressing allocates at most this for the result; besides it zstd may take a window of the same
    /// size (or 8 MiB, if that is more, and at most 128 MiB), LZ4 12 MiB.
    #[must_use]
    pub const fn max_bytes(mut self, bytes: usize) -> Compression {
        self.max = bytes;
        self
    }

    fn pays_off(&self, before: usize, after: usize) -> bool {
        after as u128 * 100 <= before as u128 * u128::from(100 - self.saving)
    }
}

/// A codec whose bodies are compressed where that pays off: see [`Compression`].
///
/// What is not compressed is left to the codec inside, with its own limits.
#[derive(Clone, Debug)]
pub struct Compressed<C> {
    codec: C,
    compression: Compression,
}

impl<C> Compressed<C> {
    /// Compresses what `codec` writes, and decompresses what it reads.
    pub fn new(codec: C, compression: Compression) -> Compressed<C> {
        Compressed { codec, compression }
    }
}

impl<T, C: Codec<T>> Codec<T> for Compressed<C> {
    fn content_type(&self) -> &'static str {
        self.codec.content_type()
    }

    fn encode(&self, value: &T) -> Result<Message, CodecError> {
        compress(self.codec.encode(value)?, &self.compression)
    }

    fn decode(&self, message: &Message) -> Result<T, CodecError> {
        match message.properties().content_encoding {
            None => self.codec.decode(message),
            Some(_) => self.codec.decode(&decompress(message.clone(), self.compression.max)?),
        }
    }
}

/// The message with its body compressed, if that pays off. One that is encoded already is left as it is.
///
/// # Errors
/// When the body is longer than [`Compression::max_bytes`].
pub fn compress(message: Message, compression: &Compression) -> Result<Message, CodecError> {
    let Some(algorithm) = compression.algorithm else { return Ok(message) };
    let encoded = message.properties().content_encoding.as_deref();
    if encoded.is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return Ok(message);
    }
    let before = message.body().len();
    check_length(before, compression.max)?;
    if before < compression.min {
        return Ok(message);
    }
    let (name, body) = algorithm.compress(message.body())?;
    if !compression.pays_off(before, body.len()) {
        return Ok(message);
    }
    Ok(message.with_body(body).with_content_encoding(name))
}

/// The message as it was before it was compressed, by what its content encoding says; several encodings, divided by
/// commas in the order in which they were applied, are undone from the last to the first.
///
/// # Errors
/// When an encoding is not known or not compiled in, there are more than [`ENCODINGS_MAX`], the body is damaged, cut
/// short or followed by something else, or more than `max_bytes` would come out, of any of them.
pub fn decompress(mut message: Message, max_bytes: usize) -> Result<Message, CodecError> {
    if message.properties().content_encoding.is_none() {
        return Ok(message);
    }
    let encodings = message.properties_mut().content_encoding.take().unwrap_or_default();
    let count = encodings.split(',').count();
    if count > ENCODINGS_MAX {
        return Err(CodecError::TooManyEncodings { count, max: ENCODINGS_MAX });
    }
    let mut body = message.body().clone();
    for encoding in encodings.rsplit(',').map(str::trim) {
        if !is_plain(encoding) {
            body = expand(encoding, &body, max_bytes)?.into();
        }
    }
    Ok(message.with_body(body))
}

impl Algorithm {
    /// The encoding's name and the compressed body.
    #[cfg_attr(
        not(any(feature = "gzip", feature = "lz4", feature = "zstd")),
        expect(unused_variables, reason = "nothing is known")
    )]
    fn compress(self, body: &Bytes) -> Result<(&'static str, Vec<u8>), CodecError> {
        match self {
            #[cfg(feature = "gzip")]
            Algorithm::Gzip(level) => Ok((gzip::NAME, gzip::compress(body, level)?)),
            #[cfg(feature = "zstd")]
            Algorithm::Zstd(level) => Ok((zstd::NAME, zstd::compress(body, level)?)),
            #[cfg(feature = "lz4")]
            Algorithm::Lz4 => Ok((lz4::NAME, lz4::compress(body)?)),
        }
    }
}

/// Undoes one encoding.
#[cfg_attr(
    not(any(feature = "gzip", feature = "lz4", feature = "zstd")),
    expect(unused_variables, reason = "nothing is known")
)]
fn expand(encoding: &str, body: &[u8], max: usize) -> Result<Vec<u8>, CodecError> {
    match &*encoding.to_ascii_lowercase() {
        #[cfg(feature = "gzip")]
        // RFC 9110 §8.4.1.3 has both names mean the same.
        gzip::NAME | "x-gzip" => gzip::expand(body, max),
        #[cfg(feature = "zstd")]
        zstd::NAME => zstd::expand(body, max),
        #[cfg(feature = "lz4")]
        lz4::NAME => lz4::expand(body, max),
        other => Err(CodecError::UnknownEncoding { encoding: shown(encoding), feature: feature(other) }),
    }
}

/// The feature that would know this encoding.
fn feature(encoding: &str) -> Option<&'static str> {
    match encoding {
        "gzip" | "x-gzip" => Some("gzip"),
        "zstd" => Some("zstd"),
        "lz4" => Some("lz4"),
        _ => None,
    }
}

#[cfg(any(feature = "gzip", feature = "lz4", feature = "zstd"))]
fn corrupt(encoding: &'static str) -> impl Fn(io::Error) -> CodecError {
    move |error| CodecError::Corrupt { encoding, source: error.into() }
}

/// All that comes out, in a vector that never has room for more than `max` bytes.
#[cfg(any(feature = "gzip", feature = "lz4", feature = "zstd"))]
fn read_all(mut from: impl Read, encoding: &'static str, max: usize) -> Result<Vec<u8>, CodecError> {
    let mut all: Vec<u8> = Vec::new();
    let mut chunk = [0; 16 << 10];
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) => return Err(corrupt(encoding)(error)),
        };
        if max - all.len() < read {
            return Err(CodecError::Expands { encoding, max });
        }
        make_room(&mut all, read, max);
        all.extend_from_slice(&chunk[..read]);
    }
    // The body may be kept for as long as a queue is full.
    all.shrink_to_fit();
    Ok(all)
}

/// Makes room for `more` bytes by doubling, but never for more than `max` in all, which hold them.
#[cfg(any(feature = "gzip", feature = "lz4", feature = "zstd"))]
fn make_room(all: &mut Vec<u8>, more: usize, max: usize) {
    if all.capacity() - all.len() < more {
        all.reserve_exact(all.capacity().max(more).min(max - all.len()));
    }
}

#[cfg(all(test, feature = "gzip", feature = "zstd", feature = "lz4"))]
mod tests;

#[cfg(all(test, not(feature = "zstd")))]
mod without_zstd {
    use super::*;

    #[test]
    fn what_is_not_compiled_in_is_named_with_its_feature() {
        let message = Message::new("x").with_content_encoding("zstd");
        let error = decompress(message, 100).expect_err("not compiled in");
        assert!(matches!(&error, CodecError::UnknownEncoding { feature: Some("zstd"), .. }), "{error}");
    }
}

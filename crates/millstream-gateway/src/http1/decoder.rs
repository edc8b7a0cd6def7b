//! Bodies of HTTP/1 without their framing (RFC 9112, sections 6 and 7). Bytes go in, and where the payload lies comes out.

use std::ops::Range;

use bytes::Bytes;
use http::HeaderMap;

use super::head::trailers;
use crate::head::{Framing, HeadError};

/// The most bytes of one chunk's extensions; they are dropped, never forwarded.
const EXTENSION_MAX: usize = 256;
/// The most bytes of a trailer section.
const TRAILERS_MAX: usize = 8 << 10;

/// Why a body is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FramingError {
    #[error("a chunk's size is no hexadecimal number of 64 bits")]
    Size,
    #[error("a chunk's extension is invalid or longer than {EXTENSION_MAX} bytes")]
    Extension,
    #[error("a chunk does not end where its size says")]
    End,
    #[error("the trailer section is invalid or longer than {TRAILERS_MAX} bytes")]
    Trailers(HeadError),
}

/// What some bytes of a body turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decoded {
    /// Where the payload lies now: chunks that followed each other were moved together.
    pub(crate) payload: Range<usize>,
    /// How many bytes belong to the body; what follows is the next message.
    pub(crate) consumed: usize,
}

/// Takes the framing off a body.
#[derive(Debug)]
pub(crate) enum Decoder {
    Length(u64),
    UntilClose,
    Chunked(Box<Chunks>),
}

#[derive(Debug)]
pub(crate) struct Chunks {
    state: State,
    left: u64,
    digits: usize,
    extension: usize,
    quoted: bool,
    section: Vec<u8>,
    trailers: Option<HeaderMap>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Extension,
    SizeFeed,
    Data,
    DataReturn,
    DataFeed,
    Trailers,
    Done,
}

impl Decoder {
    pub(crate) fn new(framing: Framing) -> Decoder {
        match framing {
            Framing::None => Decoder::Length(0),
            Framing::Length(length) => Decoder::Length(length),
            Framing::UntilClose => Decoder::UntilClose,
            Framing::Chunked => Decoder::Chunked(Box::new(Chunks {
                state: State::Size,
                left: 0,
                digits: 0,
                extension: 0,
                quoted: false,
                section: Vec::new(),
                trailers: None,
            })),
        }
    }

    /// Whether all of the body was seen. A body until the end of the connection never says so.
    pub(crate) fn is_done(&self) -> bool {
        match self {
            Decoder::Length(left) => *left == 0,
            Decoder::UntilClose => false,
            Decoder::Chunked(chunks) => chunks.state == State::Done,
        }
    }

    /// Whether the end of the connection may end the body here.
    pub(crate) fn may_end(&self) -> bool {
        matches!(self, Decoder::UntilClose) || self.is_done()
    }

    /// The most bytes that can still belong to the body.
    pub(crate) fn wants(&self) -> u64 {
        match self {
            Decoder::Length(left) => *left,
            Decoder::UntilClose | Decoder::Chunked(_) => u64::MAX,
        }
    }

    /// The trailers, once the body is done.
    pub(crate) fn trailers(&mut self) -> Option<HeaderMap> {
        match self {
            Decoder::Chunked(chunks) => chunks.trailers.take(),
            _ => None,
        }
    }

    /// Finds the payload in the next bytes.
    pub(crate) fn decode(&mut self, bytes: &mut [u8]) -> Result<Decoded, FramingError> {
        match self {
            Decoder::UntilClose => Ok(Decoded { payload: 0..bytes.len(), consumed: bytes.len() }),
            Decoder::Length(left) => {
                let length = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= length as u64;
                Ok(Decoded { payload: 0..length, consumed: length })
            }
            Decoder::Chunked(chunks) => chunks.decode(bytes),
        }
    }
}

impl Chunks {
    fn decode(&mut self, bytes: &mut [u8]) -> Result<Decoded, FramingError> {
        let mut at = 0;
        let mut payload = 0..0;
        while at < bytes.len() && self.state != State::Done {
            if self.state == State::Data {
                let length =
                    usize::try_from(self.left).map_or(bytes.len() - at, |left| left.min(bytes.len() - at));
                if payload.is_empty() {
                    payload = at..at + length;
                } else {
                    bytes.copy_within(at..at + length, payload.end);
                    payload.end += length;
                }
                at += length;
                self.left -= length as u64;
                if self.left == 0 {
                    self.state = State::DataReturn;
                }
                continue;
            }
            self.step(bytes[at])?;
            at += 1;
        }
        Ok(Decoded { payload, consumed: at })
    }

    fn step(&mut self, byte: u8) -> Result<(), FramingError> {
        match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = (byte as char).to_digit(16).expect("a hexadecimal digit");
                self.digits += 1;
                if self.digits > 16 {
                    return Err(FramingError::Size);
                }
                self.left = (self.left << 4) | u64::from(digit);
            }
            (State::Size, b';') if self.digits > 0 => {
                (self.extension, self.quoted) = (0, false);
                self.state = State::Extension;
            }
            (State::Size, b'\r') if self.digits > 0 => self.state = State::SizeFeed,
            (State::Size, _) => return Err(FramingError::Size),
            (State::Extension, b'\r') if !self.quoted => self.state = State::SizeFeed,
            (State::Extension, b' '..=b'~' | b'\t' | 0x80..) => {
                self.extension += 1;
                self.quoted ^= byte == b'"';
                if self.extension > EXTENSION_MAX {
                    return Err(FramingError::Extension);
                }
            }
            (State::Extension, _) => return Err(FramingError::Extension),
            (State::SizeFeed, b'\n') => {
                self.digits = 0;
                self.state = if self.left == 0 { State::Trailers } else { State::Data };
            }
            (State::DataReturn, b'\r') => self.state = State::DataFeed,
            (State::DataFeed, b'\n') => self.state = State::Size,
            (State::SizeFeed | State::DataReturn | State::DataFeed, _) => return Err(FramingError::End),
            (State::Trailers, _) => self.trailer(byte)?,
            (State::Data | State::Done, _) => unreachable!("the loop of `decode` handles these"),
        }
        Ok(())
    }

    fn trailer(&mut self, byte: u8) -> Result<(), FramingError> {
        self.section.push(byte);
        if self.section.len() > TRAILERS_MAX {
            return Err(FramingError::Trailers(HeadError::TooLarge));
        }
        if byte != b'\n' {
            return Ok(());
        }
        if !self.section.ends_with(b"\r\n") {
            return Err(FramingError::Trailers(HeadError::BareLineFeed));
        }
        if self.section == b"\r\n" {
            self.state = State::Done;
        } else if self.section.ends_with(b"\r\n\r\n") {
            let section = Bytes::from(std::mem::take(&mut self.section));
            self.trailers = Some(trailers(&section).map_err(FramingError::Trailers)?);
            self.state = State::Done;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(decoder: &mut Decoder, pieces: &[&[u8]]) -> Result<(Vec<u8>, usize), FramingError> {
        let (mut body, mut consumed) = (Vec::new(), 0);
        for piece in pieces {
            let mut piece = piece.to_vec();
            let found = decoder.decode(&mut piece)?;
            body.extend_from_slice(&piece[found.payload]);
            consumed += found.consumed;
        }
        Ok((body, consumed))
    }

    proptest! {
        #[test]
        fn chunks_come_out_whole_however_they_are_cut(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..8),
            cuts in proptest::collection::vec(0_usize..600, 0..10),
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend(format!("{:X};a=\"b\"\r\n", chunk.len()).bytes());
                wire.extend(chunk);
                wire.extend(b"\r\n");
            }
            wire.extend(b"0\r\nX-Sum: 7\r\n\r\n");
            let end = wire.len();
            wire.extend(b"GET /");
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(wire.len())).collect();
            cuts.extend([0, wire.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &wire[cut[0]..cut[1]]).collect();
            let mut decoder = Decoder::new(Framing::Chunked);
            let (body, consumed) = decoded(&mut decoder, &pieces).expect("valid chunks");
            prop_assert_eq!(body, chunks.concat());
            prop_assert_eq!(consumed, end);
            prop_assert!(decoder.is_done());
            let trailers = decoder.trailers().expect("trailers");
            prop_assert_eq!(trailers.get("x-sum").expect("the trailer"), "7");
        }

        #[test]
        fn no_bytes_make_it_panic_or_claim_more_than_there_is(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::new(Framing::Chunked);
            let mut copy = bytes.clone();
            if let Ok(found) = decoder.decode(&mut copy) {
                prop_assert!(found.consumed <= bytes.len() && found.payload.end <= found.consumed);
            }
        }
    }

    #[test]
    fn chunks_that_two_readers_could_understand_differently_are_refused() {
        for (wire, error) in [
            (&b"5\nhello\r\n"[..], FramingError::Size),
            (b"\r\n", FramingError::Size),
            (b" 5\r\n", FramingError::Size),
            (b"5 \r\n", FramingError::Size),
            (b"0x5\r\n", FramingError::Size),
            (b"-5\r\n", FramingError::Size),
            (b"11111111111111111\r\n", FramingError::Size),
            (b"5;a\nhello\r\n", FramingError::Extension),
            (b"5;a=\"\r\n\"\r\n", FramingError::Extension),
            (b"5;\x00\r\n", FramingError::Extension),
            (b"5\rhello", FramingError::End),
            (b"5\r\nhelloX\n", FramingError::End),
            (b"5\r\nhello\rX", FramingError::End),
            (b"0\r\n\n", FramingError::Trailers(HeadError::BareLineFeed)),
            (b"0\r\nA: b\n\r\n", FramingError::Trailers(HeadError::BareLineFeed)),
            (b"0\r\nA: b\r\n c\r\n\r\n", FramingError::Trailers(HeadError::Folded)),
        ] {
            let mut decoder = Decoder::new(Framing::Chunked);
            assert_eq!(decoded(&mut decoder, &[wire]), Err(error), "{:?}", String::from_utf8_lossy(wire));
        }
        let long = [&b"1;"[..], &[b'a'; EXTENSION_MAX + 1]].concat();
        assert_eq!(decoded(&mut Decoder::new(Framing::Chunked), &[&long]), Err(FramingError::Extension));
        let long = [&b"0\r\n"[..], &[b'a'; TRAILERS_MAX + 1]].concat();
        let error = FramingError::Trailers(HeadError::TooLarge);
        assert_eq!(decoded(&mut Decoder::new(Framing::Chunked), &[&long]), Err(error));
    }

    #[test]
    fn a_length_takes_its_bytes_and_no_more() {
        let mut decoder = Decoder::new(Framing::Length(7));
        assert_eq!(decoded(&mut decoder, &[b"abcd", b"efgHIJ"]), Ok((b"abcdefg".to_vec(), 7)));
        assert!(decoder.is_done());
    }
}

//! Compressing answers on their way: by the coding that the client prefers, a chunk at a time.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::client::AnswerHead;
use crate::head::{self, Framing, words};

/// Shorter answers are not worth it.
const LENGTH_MIN: u64 = 256;
/// Fast, for texts that are made faster than they can be sent.
const ZSTD_LEVEL: i32 = 1;
/// 64 KiB, an eighth of the level's own: most of what an encoder takes is in proportion to it.
const ZSTD_WINDOW_LOG: u32 = 16;

/// How an answer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Zstd,
    Gzip,
}

impl Coding {
    /// The one that the client accepts with the greatest weight; zstd where they are equal.
    pub(crate) fn accepted(headers: &HeaderMap) -> Option<Coding> {
        let weight = |coding: &str| {
            let lines =
                headers.get_all(header::ACCEPT_ENCODING).into_iter().filter_map(|line| line.to_str().ok());
            let words = lines.flat_map(|line| line.split(','));
            let weight = words.filter_map(|word| {
                let (name, parameter) = word.split_once(';').unwrap_or((word, ""));
                let weight = parameter.trim().strip_prefix("q=").map_or(Some(1.0), |q| q.parse::<f32>().ok());
                weight.filter(|_| name.trim().eq_ignore_ascii_case(coding))
            });
            weight.reduce(f32::max).unwrap_or(0.0)
        };
        match (weight("zstd"), weight("gzip")) {
            (zstd, gzip) if zstd > 0.0 && zstd >= gzip => Some(Coding::Zstd),
            (_, gzip) if gzip > 0.0 => Some(Coding::Gzip),
            _ => None,
        }
    }

    /// Says in the head what is done to the body.
    pub(crate) fn announce(self, head: &mut AnswerHead) {
        let name = match self {
            Coding::Zstd => "zstd",
            Coding::Gzip => "gzip",
        };
        head.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(name));
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.remove(header::ACCEPT_RANGES);
        // What is sent is no longer the same bytes.
        DIGESTS.iter().for_each(|name| drop(head.headers.remove(name)));
        weaken(&mut head.headers);
        if head.framing != Framing::None {
            head.framing = Framing::Chunked;
        }
    }

    pub(crate) fn encoder(self) -> Encoder {
        match self {
            Coding::Gzip => Encoder::Gzip(Box::new(GzEncoder::new(Vec::new(), flate2::Compression::fast()))),
            Coding::Zstd => {
                let encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL);
                let mut encoder = encoder.expect("the level is one that zstd knows");
                encoder.window_log(ZSTD_WINDOW_LOG).expect("the window is one that zstd knows");
                Encoder::Zstd(encoder)
            }
        }
    }
}

/// What says which bytes the body has: RFC 9530, and what was before it.
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// Says that bodies with this tag need not have the same bytes (RFC 9110, 8.8.3.3).
pub(crate) fn weaken(headers: &mut HeaderMap) {
    if let Some(tag) = headers.get(header::ETAG)
        && !tag.as_bytes().starts_with(b"W/")
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat())
    {
        headers.insert(header::ETAG, weak);
    }
}

/// Says in a head whose body is, or for others would be, compressed that it depends on what the client accepts.
pub(crate) fn vary(headers: &mut HeaderMap) {
    if !words(headers, &header::VARY).any(|word| word == "accept-encoding" || word == "*") {
        headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
}

/// Whether compressing this answer would make it smaller, and may be done at all. An answer to HEAD speaks of the one to GET.
pub(crate) fn is_worth_it(head: &AnswerHead, head_only: bool) -> bool {
    let text =
        head.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).is_some_and(|kind| {
            let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
            kind.starts_with("text/")
                || ["json", "xml", "javascript", "ndjson"].iter().any(|word| kind.ends_with(word))
                || kind == "image/svg+xml"
        });
    let no_transform = words(&head.headers, &header::CACHE_CONTROL).any(|word| word == "no-transform");
    let long = match head.framing {
        Framing::None if head_only => {
            head::length(&head.headers).is_ok_and(|length| length.is_none_or(|length| length >= LENGTH_MIN))
        }
        Framing::None => false,
        Framing::Length(length) => length >= LENGTH_MIN,
        Framing::Chunked | Framing::UntilClose => true,
    };
    text && long
        && !no_transform
        && head.status != StatusCode::PARTIAL_CONTENT
        && !head.headers.contains_key(header::CONTENT_ENCODING)
        && !head.headers.contains_key(header::CONTENT_RANGE)
}

/// A body being compressed.
pub(crate) enum Encoder {
    Gzip(Box<GzEncoder<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    /// The compressed form of the next bytes, which can be read at once by who has what came before.
    pub(crate) fn encode(&mut self, bytes: &[u8], last: bool) -> io::Result<Bytes> {
        let out = match self {
            Encoder::Gzip(encoder) => {
                encoder.write_all(bytes)?;
                if last {
                    encoder.try_finish()?
                } else {
                    encoder.flush()?
                }
                encoder.get_mut()
            }
            Encoder::Zstd(encoder) => {
                encoder.write_all(bytes)?;
                if last {
                    encoder.do_finish()?
                } else {
                    encoder.flush()?
                }
                encoder.get_mut()
            }
        };
        Ok(std::mem::take(out).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoder_takes_no_more_than_is_said() {
        use zstd::zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer};
        let mut context = CCtx::create();
        for parameter in [CParameter::CompressionLevel(ZSTD_LEVEL), CParameter::WindowLog(ZSTD_WINDOW_LOG)] {
            context.set_parameter(parameter).expect("a parameter");
        }
        let (text, mut out) = (b"some text, ".repeat(100_000), vec![0; 1 << 20]);
        context
            .compress_stream(&mut OutBuffer::around(&mut out[..]), &mut InBuffer::around(&text))
            .expect("compressed");
        let takes = context.sizeof();
        assert!((1 << 10..=640 << 10).contains(&takes), "{takes} bytes");
    }

    #[test]
    fn the_client_says_which_coding_it_wants() {
        for (accepts, coding) in [
            ("gzip, zstd", Some(Coding::Zstd)),
            ("gzip", Some(Coding::Gzip)),
            ("zstd;q=0.5, gzip;q=0.8", Some(Coding::Gzip)),
            ("zstd;q=0, gzip;q=0", None),
            ("br, identity", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(accepts));
            assert_eq!(Coding::accepted(&headers), coding, "{accepts}");
        }
        assert_eq!(Coding::accepted(&HeaderMap::new()), None);
    }
}

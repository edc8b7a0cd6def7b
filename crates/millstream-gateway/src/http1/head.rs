//! Heads of HTTP/1 messages (RFC 9112), read strictly: what two readers could understand differently is refused.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version};
use httparse::ParserConfig;

use crate::head::{self, Framing, HEADERS_MAX, HeadError, words};

/// So many more lines have room in a request that was read, for what is said of the client and of the connection, and in an answer.
const REQUEST_ROOM: usize = 6;
const ANSWER_ROOM: usize = 2;

/// Where the head ends in `bytes`, if all of it is there: after the empty line. `seen` bytes were looked at before.
pub(crate) fn end_of_head(bytes: &[u8], seen: usize) -> Result<Option<usize>, HeadError> {
    // Three bytes back, because the empty line may have begun in what was seen.
    let mut at = seen.saturating_sub(3);
    while let Some(found) = bytes[at..].iter().position(|byte| *byte == b'\n') {
        let feed = at + found;
        if feed == 0 || bytes[feed - 1] != b'\r' {
            return Err(HeadError::BareLineFeed);
        }
        if feed >= 3 && bytes[feed - 2] == b'\n' {
            return Ok(Some(feed + 1));
        }
        at = feed + 1;
    }
    Ok(None)
}

#[derive(Debug)]
pub(crate) struct RequestHead {
    pub(crate) method: Method,
    pub(crate) target: Uri,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    pub(crate) framing: Framing,
    pub(crate) keep_alive: bool,
}

#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) framing: Framing,
    pub(crate) keep_alive: bool,
}

/// Reads a whole request head, from its first line to its empty line.
pub(crate) fn request(bytes: &Bytes, target_max: usize) -> Result<RequestHead, HeadError> {
    let mut lines = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let read = parsed.parse_with_uninit_headers(bytes, &mut lines);
    match read.map_err(|error| refused(error, bytes))? {
        httparse::Status::Complete(length) if length == bytes.len() => {}
        _ => return Err(HeadError::Malformed),
    }
    let method = parsed.method.ok_or(HeadError::Malformed)?;
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::Malformed)?;
    let target = parsed.path.ok_or(HeadError::Malformed)?;
    if target.len() > target_max {
        return Err(HeadError::TargetTooLong);
    }
    let version = version(parsed.version)?;
    let target = target_of(target, bytes)?;
    let mut headers = headers(parsed.headers, bytes, REQUEST_ROOM)?;
    let framing = head::check(&method, &target, version, &mut headers)?;
    let keep_alive = keeps_alive(&headers, version);
    Ok(RequestHead { method, target, version, headers, framing, keep_alive })
}

/// Reads a whole response head; `to` is the method that was asked with.
pub(crate) fn response(bytes: &Bytes, to: &Method) -> Result<ResponseHead, HeadError> {
    let mut lines = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let read = ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, &mut lines);
    match read.map_err(|error| refused(error, bytes))? {
        httparse::Status::Complete(length) if length == bytes.len() => {}
        _ => return Err(HeadError::Malformed),
    }
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(HeadError::Malformed)?;
    let version = version(parsed.version)?;
    let headers = headers(parsed.headers, bytes, ANSWER_ROOM)?;
    let bodiless = status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || *to == Method::HEAD;
    let framing = match head::check_answer(&headers)? {
        _ if bodiless => Framing::None,
        framing => framing,
    };
    // A server of HTTP/1.0 knows no chunks: the framing is faulty, whoever made it so (RFC 9112, 6.1).
    let faulty = version == Version::HTTP_10 && headers.contains_key(header::TRANSFER_ENCODING);
    let keep_alive = keeps_alive(&headers, version) && framing != Framing::UntilClose && !faulty;
    Ok(ResponseHead { status, headers, framing, keep_alive })
}

/// The header lines of a trailer section, up to and with the empty line.
pub(crate) fn trailers(section: &Bytes) -> Result<HeaderMap, HeadError> {
    let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let (length, parsed) = match httparse::parse_headers(section, &mut lines) {
        Ok(httparse::Status::Complete(done)) => done,
        Ok(httparse::Status::Partial) => return Err(HeadError::Malformed),
        Err(error) => return Err(refused(error, section)),
    };
    if length != section.len() {
        return Err(HeadError::Malformed);
    }
    head::check_trailers(headers(parsed, section, 0)?)
}

fn refused(error: httparse::Error, bytes: &[u8]) -> HeadError {
    let folded = bytes.windows(3).any(|three| three[..2] == *b"\r\n" && matches!(three[2], b' ' | b'\t'));
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooManyHeaders,
        httparse::Error::Version => HeadError::Version,
        _ if folded => HeadError::Folded,
        _ => HeadError::Malformed,
    }
}

fn version(minor: Option<u8>) -> Result<Version, HeadError> {
    match minor {
        Some(0) => Ok(Version::HTTP_10),
        Some(1) => Ok(Version::HTTP_11),
        _ => Err(HeadError::Version),
    }
}

fn target_of(target: &str, head: &Bytes) -> Result<Uri, HeadError> {
    if target.contains('#') {
        return Err(HeadError::Target);
    }
    Uri::from_maybe_shared(head.slice_ref(target.as_bytes())).map_err(|_| HeadError::Target)
}

fn headers(lines: &[httparse::Header<'_>], head: &Bytes, room: usize) -> Result<HeaderMap, HeadError> {
    let mut headers = HeaderMap::with_capacity(lines.len() + room);
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| HeadError::Malformed)?;
        let value = if line.value.is_empty() { Bytes::new() } else { head.slice_ref(line.value) };
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| HeadError::Malformed)?;
        headers.append(name, value);
    }
    Ok(headers)
}

fn keeps_alive(headers: &HeaderMap, version: Version) -> bool {
    let mut keep = version == Version::HTTP_11;
    for word in words(headers, &header::CONNECTION) {
        match word.as_str() {
            "close" => return false,
            "keep-alive" => keep = true,
            _ => {}
        }
    }
    keep
}

/// Appends the first line of a request.
pub(crate) fn write_request_line(out: &mut Vec<u8>, method: &Method, target: &str) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// Appends the first line of a response.
pub(crate) fn write_status_line(out: &mut Vec<u8>, status: StatusCode) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends header lines, without the empty line.
pub(crate) fn write_headers(out: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<RequestHead, HeadError> {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        match end_of_head(&bytes, 0)? {
            Some(end) if end == bytes.len() => request(&bytes, 100),
            _ => Err(HeadError::Malformed),
        }
    }

    fn answered(text: &str, to: &Method) -> Result<Framing, HeadError> {
        response(&Bytes::copy_from_slice(text.as_bytes()), to).map(|head| head.framing)
    }

    #[test]
    fn what_two_readers_could_understand_differently_is_refused() {
        for (head, error) in [
            ("GET / HTTP/1.1\nHost: a\n\n", HeadError::BareLineFeed),
            ("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", HeadError::BareLineFeed),
            ("GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", HeadError::Folded),
            ("GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", HeadError::Malformed),
            ("GET / HTTP/1.1\r\nHost: a\r\nX\x00: b\r\n\r\n", HeadError::Malformed),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: \rb\r\n\r\n", HeadError::Malformed),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", HeadError::Host),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                HeadError::ContentLength,
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", HeadError::ContentLength),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", HeadError::ContentLength),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
                HeadError::ContentLength,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                HeadError::Conflict,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                HeadError::TransferEncoding,
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", HeadError::TransferEncoding),
            ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", HeadError::TransferEncoding),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", HeadError::Version),
            ("GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Target),
            ("GET x HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Target),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Method),
            ("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Host),
            ("GET http://a:b/ HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Host),
            ("GET http://a/ HTTP/1.1\r\n\r\n", HeadError::Host),
            ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Target),
            ("GET / HTTP/1.1\r\nHost: a\";by=evil\r\n\r\n", HeadError::Host),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Target),
        ] {
            assert_eq!(parsed(head).map(|_| ()), Err(error), "{head:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(100));
        assert_eq!(parsed(&long).map(|_| ()), Err(HeadError::TargetTooLong));
        let bytes = Bytes::from_static(b"GET / HTTP/1.1\r\nHost: a\r\nX: \xff\xfe\r\n\r\n");
        assert_eq!(request(&bytes, 100).map(|_| ()), Err(HeadError::NotUtf8));
    }

    #[test]
    fn a_head_says_how_its_body_ends() {
        let head = parsed("POST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n").expect("a head");
        assert_eq!((head.framing, head.keep_alive), (Framing::Length(7), true));
        let head = parsed("POST http://b:1/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nConnection: close\r\n\r\n")
            .expect("a head");
        assert_eq!((head.framing, head.keep_alive), (Framing::Chunked, false));
        assert_eq!(head.headers[header::HOST], "b:1");
        for (text, to, framing) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Method::GET, Framing::UntilClose),
            ("HTTP/1.1 204 No Content\r\n\r\n", Method::GET, Framing::None),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Method::GET, Framing::None),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Method::HEAD, Framing::None),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Method::GET, Framing::Length(5)),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Method::GET, Framing::Chunked),
        ] {
            assert_eq!(answered(text, &to), Ok(framing), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            line in "(GET|POST|X) [ -~]{0,20} HTTP/1\\.[01]",
            fields in "([A-Za-z-]{1,12}: ?[ -~]{0,20}\r\n){0,5}",
        ) {
            let likely = [line.as_bytes(), b"\r\n", fields.as_bytes(), &bytes, b"\r\n\r\n"].concat();
            for bytes in [bytes, likely] {
                if let Ok(Some(end)) = end_of_head(&bytes, 0) {
                    let head = Bytes::copy_from_slice(&bytes[..end]);
                    if let Ok(head) = request(&head, 100) {
                        // What is read is what would be written: no header can end early or begin another.
                        let mut written = Vec::new();
                        write_headers(&mut written, &head.headers);
                        let lines = written.iter().filter(|byte| **byte == b'\n').count();
                        proptest::prop_assert_eq!(lines, head.headers.len());
                    }
                    let _ = response(&head, &Method::GET);
                    let _ = trailers(&head);
                }
            }
        }
    }

    #[test]
    fn the_end_of_a_head_is_found_however_it_is_cut() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        for cut in 0..head.len() {
            let first = end_of_head(&head[..cut], 0).expect("no bare line feed");
            let end = first.map_or_else(|| end_of_head(head, cut), |end| Ok(Some(end)));
            assert_eq!(end, Ok(Some(head.len() - 4)), "cut at {cut}");
        }
    }
}

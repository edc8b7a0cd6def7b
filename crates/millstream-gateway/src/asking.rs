//! What an upstream is asked: heads of requests, and what they say of their bodies.

use std::borrow::Cow;

use http::Uri;
use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http_body::SizeHint;

use crate::exchange::Asked;
use crate::head::Framing;
use crate::http1::head::{write_headers, write_request_line};

/// What the framing says of a body's length.
pub(crate) fn size_of(framing: Framing) -> SizeHint {
    match framing {
        Framing::None => SizeHint::with_exact(0),
        Framing::Length(length) => SizeHint::with_exact(length),
        Framing::Chunked | Framing::UntilClose => SizeHint::default(),
    }
}

/// Path and query, never empty.
pub(crate) fn path_of(target: &Uri) -> &str {
    target.path_and_query().map(PathAndQuery::as_str).filter(|path| !path.is_empty()).unwrap_or("/")
}

/// The path at an upstream whose paths all begin with `base`. `*` is the server itself, and no path.
pub(crate) fn path_below<'a>(base: &str, path: &'a str) -> Cow<'a, str> {
    match path {
        // Of a URI without a path, such as `http://host?query`.
        _ if path.starts_with('?') => Cow::Owned(format!("{base}/{path}")),
        "*" => Cow::Borrowed(path),
        _ if base.is_empty() => Cow::Borrowed(path),
        _ => Cow::Owned(format!("{base}{path}")),
    }
}

/// Appends a request's head for an upstream.
pub(crate) fn write_request_head(
    out: &mut Vec<u8>,
    asked: &Asked<'_>,
    base: &str,
    switching: Option<&HeaderValue>,
) {
    write_request_line(out, &asked.method, &path_below(base, path_of(&asked.target)));
    if !asked.headers.contains_key(header::HOST) {
        // HTTP/1.0 need not say it; the upstream is asked by HTTP/1.1, which must.
        out.extend_from_slice(b"host: \r\n");
    }
    write_headers(out, &asked.headers);
    match asked.framing {
        Framing::Chunked | Framing::UntilClose => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(length) if !asked.headers.contains_key(header::CONTENT_LENGTH) => {
            out.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
        }
        Framing::Length(_) | Framing::None => {}
    }
    if asked.headers.contains_key(header::TE) && switching.is_none() {
        out.extend_from_slice(b"connection: te\r\n");
    }
    if let Some(protocol) = switching {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: ");
        out.extend_from_slice(protocol.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

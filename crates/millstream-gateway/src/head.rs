//! What must hold of a head, whichever version of HTTP it came by: what two readers could understand differently is refused.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, StatusCode, Uri, Version};

use crate::path::leads_elsewhere;
use crate::report::Refusal;

/// The most header lines of one head.
pub(crate) const HEADERS_MAX: usize = 128;

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is no body.
    None,
    Length(u64),
    Chunked,
    /// The end of the connection; responses only.
    UntilClose,
}

/// Why a head is refused. Each names what the peer did, for the answer and the count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("a line ends without a carriage return")]
    BareLineFeed,
    #[error("a header line begins with a space: folded lines are obsolete")]
    Folded,
    #[error("the head is not HTTP/1")]
    Malformed,
    #[error("there are more than {HEADERS_MAX} header lines")]
    TooManyHeaders,
    #[error("the head is larger than allowed")]
    TooLarge,
    #[error("the request target is longer than allowed")]
    TargetTooLong,
    #[error("the request target is neither a path nor a whole URI of http or https")]
    Target,
    #[error("the path has `.` or `..` for a part: whoever resolves them sees another path")]
    Dots,
    #[error("a header value is not UTF-8")]
    NotUtf8,
    #[error("`Content-Length` is repeated or no number")]
    ContentLength,
    #[error("both `Content-Length` and `Transfer-Encoding` are given")]
    Conflict,
    #[error("`Transfer-Encoding` is not just `chunked`")]
    TransferEncoding,
    #[error("the host is missing, repeated, invalid, or another one than the target's")]
    Host,
    #[error("the version is not HTTP/1.0 or HTTP/1.1")]
    Version,
    #[error("this method is not served")]
    Method,
}

impl HeadError {
    /// What a client is answered.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            HeadError::TooManyHeaders | HeadError::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            HeadError::TargetTooLong => StatusCode::URI_TOO_LONG,
            HeadError::TransferEncoding | HeadError::Method => StatusCode::NOT_IMPLEMENTED,
            HeadError::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// As what it is counted.
    pub(crate) fn refusal(self) -> Refusal {
        match self {
            HeadError::TooLarge | HeadError::TooManyHeaders | HeadError::TargetTooLong => Refusal::HeadSize,
            _ => Refusal::Head,
        }
    }
}

/// Checks a request's head and says how its headers frame its body. `Host` is what the target says, if that says anything.
pub(crate) fn check(
    method: &Method,
    target: &Uri,
    version: Version,
    headers: &mut HeaderMap,
) -> Result<Framing, HeadError> {
    if *method == Method::CONNECT {
        return Err(HeadError::Method);
    }
    if headers.len() > HEADERS_MAX {
        return Err(HeadError::TooManyHeaders);
    }
    check_target(method, target)?;
    check_values(headers)?;
    check_host(target, version, headers)?;
    match (length(headers)?, chunked(headers)?) {
        (Some(_), true) => Err(HeadError::Conflict),
        (None, true) if version == Version::HTTP_11 => Ok(Framing::Chunked),
        (None, true) => Err(HeadError::TransferEncoding),
        (Some(0) | None, false) => Ok(Framing::None),
        (Some(length), false) => Ok(Framing::Length(length)),
    }
}

/// Checks an answer's head and says how it frames a body, if it has one.
pub(crate) fn check_answer(headers: &HeaderMap) -> Result<Framing, HeadError> {
    check_values(headers)?;
    match (length(headers)?, chunked(headers)?) {
        (Some(_), true) => Err(HeadError::Conflict),
        (None, true) => Ok(Framing::Chunked),
        (Some(0), false) => Ok(Framing::None),
        (Some(length), false) => Ok(Framing::Length(length)),
        (None, false) => Ok(Framing::UntilClose),
    }
}

/// How long these lines would be over HTTP/1.
pub(crate) fn bytes_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// Trailers without what belongs into a head only (RFC 9110, 6.5.1).
pub(crate) fn check_trailers(mut trailers: HeaderMap) -> Result<HeaderMap, HeadError> {
    check_values(&trailers)?;
    for name in [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::HOST,
        header::TRAILER,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::AUTHORIZATION,
        header::PROXY_AUTHORIZATION,
        header::COOKIE,
        header::SET_COOKIE,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::CONTENT_RANGE,
        header::CACHE_CONTROL,
        header::EXPECT,
        header::MAX_FORWARDS,
    ] {
        trailers.remove(name);
    }
    Ok(trailers)
}

/// The words of a comma-separated header, in all its lines, lower-case.
pub(crate) fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = String> + 'a {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|word| word.trim().to_ascii_lowercase())
}

fn check_target(method: &Method, target: &Uri) -> Result<(), HeadError> {
    let scheme = target.scheme_str().unwrap_or("http");
    let known = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    let path = target.path();
    let valid = known && (path.starts_with('/') || (path == "*" && *method == Method::OPTIONS));
    if !valid {
        return Err(HeadError::Target);
    }
    if leads_elsewhere(path) { Err(HeadError::Dots) } else { Ok(()) }
}

fn check_values(headers: &HeaderMap) -> Result<(), HeadError> {
    let is_text = |value: &HeaderValue| std::str::from_utf8(value.as_bytes()).is_ok();
    if headers.values().all(is_text) { Ok(()) } else { Err(HeadError::NotUtf8) }
}

fn check_host(target: &Uri, version: Version, headers: &mut HeaderMap) -> Result<(), HeadError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => Some(host.to_str().map_err(|_| HeadError::Host)?),
        (Some(_), Some(_)) => return Err(HeadError::Host),
    };
    if host.is_some_and(|host| !host.is_empty() && !is_authority(host)) {
        return Err(HeadError::Host);
    }
    let Some(named) = target.authority().map(|authority| authority.as_str()) else {
        let needed = version != Version::HTTP_10 && host.is_none();
        return if needed { Err(HeadError::Host) } else { Ok(()) };
    };
    let agrees = match (version, host) {
        // Two names are malformed there (RFC 9113, 8.3.1).
        (Version::HTTP_2, Some(host)) => host.eq_ignore_ascii_case(named),
        // Here `Host` must be there, and the target overrules it (RFC 9112, 3.2).
        (Version::HTTP_11, host) => host.is_some(),
        _ => true,
    };
    if !agrees || !is_authority(named) {
        return Err(HeadError::Host);
    }
    let value = HeaderValue::from_str(named).map_err(|_| HeadError::Host)?;
    headers.insert(header::HOST, value);
    Ok(())
}

/// The host and the port of an authority; the port is empty if there is none.
pub(crate) fn host_and_port(authority: &str) -> (&str, &str) {
    match authority.rsplit_once(':') {
        // The last colon of an IPv6 address stands before its `]`.
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (authority, ""),
    }
}

/// Whether this is a host with an optional port, and nothing that ends early or looks like more in a header of an upstream's.
fn is_authority(text: &str) -> bool {
    let (host, port) = host_and_port(text);
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let numbered = |byte: u8| byte.is_ascii_hexdigit() || b":.".contains(&byte);
    let host = match host.strip_prefix('[') {
        None => !host.is_empty() && host.bytes().all(named),
        // What no URI could say cannot be asked of a server that speaks HTTP/2.
        Some(rest) => {
            rest.strip_suffix(']').is_some_and(|inner| inner.bytes().all(numbered))
                && Authority::try_from(text).is_ok()
        }
    };
    host && (port.is_empty() || is_port(port))
}

/// Whether this is the number of a port.
pub(crate) fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// The declared length. A list is refused even where its entries agree: who forwards it may read it differently.
pub(crate) fn length(headers: &HeaderMap) -> Result<Option<u64>, HeadError> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return Ok(None) };
    let digits = length.as_bytes();
    let valid = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) && lengths.next().is_none();
    let number = std::str::from_utf8(digits).ok().filter(|_| valid).and_then(|text| text.parse().ok());
    number.map(Some).ok_or(HeadError::ContentLength)
}

fn chunked(headers: &HeaderMap) -> Result<bool, HeadError> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(true),
        _ => Err(HeadError::TransferEncoding),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, proptest};

    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_a_port_and_nothing_else() {
        for host in ["a", "a.example:80", "a_b-c.d", "[::1]:8080", "[::1]", "127.0.0.1", "a:", "a:65535"] {
            assert!(is_authority(host), "{host}");
        }
        for text in [
            "",
            ":80",
            "u@a",
            "a:b",
            "a\";by=evil",
            "a b",
            "a,b",
            "a/b",
            "[::1",
            "[x]",
            "[::1]x",
            "ä",
            "a:65536",
            "a:99999",
            "[::1]:99999",
            "a:+1",
        ] {
            assert!(!is_authority(text), "{text}");
        }
    }

    #[test]
    fn a_path_that_is_another_to_who_resolves_it_is_refused() {
        let checked = |path: &str| check_target(&Method::GET, &path.parse().expect("a target"));
        for path in [
            "/v1/../admin",
            "/v1/..",
            "/..",
            "/./a",
            "/a/.",
            "/v1/%2e%2e/admin",
            "/v1/.%2E/x",
            "/a%2f..%2Fb",
            "/v1/..%5cadmin",
            "/v1/..;/admin",
            "/v1/%2e;a=b?x",
            "http://a/b/../c",
        ] {
            assert_eq!(checked(path), Err(HeadError::Dots), "{path}");
        }
        for path in [
            "/",
            "/a.b/c..d",
            "/.well-known/x",
            "/...",
            "/a%2fb",
            "/%2e%2e%2e",
            "/a?b=/../c",
            "/..a/a..",
            "/%",
            "/a;..",
            "/%e2%80%a6",
        ] {
            assert_eq!(checked(path), Ok(()), "{path}");
        }
    }

    proptest! {
        /// A server that speaks HTTP/2 can be asked for it.
        #[test]
        fn every_host_is_one_of_a_uri(text in "[a-z0-9._~:\\[\\]@%-]{1,12}|[a-z0-9._~-]{1,300}(:[0-9]{0,30})?") {
            prop_assert!(!is_authority(&text) || Authority::try_from(text.as_str()).is_ok());
        }
    }

    #[test]
    fn trailers_never_say_what_belongs_into_a_head() {
        let mut trailers = HeaderMap::new();
        for name in ["content-length", "transfer-encoding", "host", "authorization", "upgrade", "x-sum"] {
            trailers.insert(name, HeaderValue::from_static("1"));
        }
        let left = check_trailers(trailers.clone()).expect("text");
        assert_eq!(left.keys().collect::<Vec<_>>(), ["x-sum"]);
        trailers.insert("x-sum", HeaderValue::from_bytes(b"\xff").expect("a value"));
        assert_eq!(check_trailers(trailers), Err(HeadError::NotUtf8));
    }
}

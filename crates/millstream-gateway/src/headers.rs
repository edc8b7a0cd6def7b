//! Headers on their way through: what ends at each hop, and what an upstream learns of the client (RFC 9110, 7.6; RFC 7239).

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::head::words;
use crate::settings::Forwarded;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Removes what belongs to one connection: the headers that `Connection` names, and those that always do.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<String> = words(headers, &header::CONNECTION).collect();
        for name in named.iter().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()) {
            // A client could otherwise have these removed before an upstream that relies on them.
            if name != header::HOST && name != header::CONTENT_LENGTH {
                headers.remove(name);
            }
        }
    }
    for name in [
        header::CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// What `Upgrade` asks for, if `Connection` says so too. Never HTTP/2: over a tunnel to it requests would pass unseen.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = words(headers, &header::CONNECTION).any(|word| word == "upgrade");
    let hidden =
        words(headers, &header::UPGRADE).any(|word| word.starts_with("h2") || word.starts_with("http"));
    headers.get(header::UPGRADE).filter(|_| asked && !hidden).cloned()
}

/// Whether the client takes trailers.
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    words(headers, &header::TE).any(|word| word == "trailers")
}

/// Tells the upstream who asks, by which host and protocol.
pub(crate) fn forward(headers: &mut HeaderMap, mode: Forwarded, client: SocketAddr, scheme: &'static str) {
    if mode == Forwarded::Off {
        return;
    }
    if mode == Forwarded::Replace {
        for name in [header::FORWARDED, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST] {
            headers.remove(name);
        }
    }
    let host = headers.get(header::HOST).cloned();
    let address = client.ip().to_canonical();
    append(headers, &X_FORWARDED_FOR, &address.to_string());
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    let mut element = match address {
        IpAddr::V4(address) => format!("for={address}"),
        IpAddr::V6(address) => format!("for=\"[{address}]\""),
    };
    if let Some(host) = host {
        // The head was checked: there is nothing in a host that could end the quotes.
        if let Ok(text) = host.to_str() {
            let _ = write!(element, ";host=\"{text}\"");
        }
        if !headers.contains_key(X_FORWARDED_HOST) {
            headers.insert(X_FORWARDED_HOST, host);
        }
    }
    let _ = write!(element, ";proto={scheme}");
    append(headers, &header::FORWARDED, &element);
}

/// Appends an element to a header that is a list, as one line.
fn append(headers: &mut HeaderMap, name: &HeaderName, element: &str) {
    let mut list: Vec<u8> = Vec::new();
    for value in headers.get_all(name) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(element.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&list) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let entry = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut map = HeaderMap::new();
        for (name, value) in lines.iter().map(entry) {
            map.append(name, value);
        }
        map
    }

    #[test]
    fn what_belongs_to_one_connection_ends_there() {
        let mut headers = map(&[
            ("connection", "close, X-Secret, Host"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("proxy-connection", "keep-alive"),
            ("host", "a"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut headers);
        let names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["host", "accept"]);
    }

    #[test]
    fn the_upstream_learns_of_the_client() {
        let client = "192.0.2.7:1234".parse().expect("an address");
        let told = [("host", "a:1"), ("x-forwarded-for", "10.0.0.1"), ("forwarded", "for=10.0.0.1")];
        let mut headers = map(&told);
        forward(&mut headers, Forwarded::Append, client, "https");
        assert_eq!(headers[X_FORWARDED_FOR], "10.0.0.1, 192.0.2.7");
        assert_eq!(headers[header::FORWARDED], "for=10.0.0.1, for=192.0.2.7;host=\"a:1\";proto=https");
        assert_eq!(
            (&headers[X_FORWARDED_PROTO], &headers[X_FORWARDED_HOST]),
            (&"https".parse().unwrap(), &"a:1".parse().unwrap())
        );

        let mut headers = map(&told);
        forward(&mut headers, Forwarded::Replace, "[::1]:5".parse().expect("an address"), "http");
        assert_eq!(headers[header::FORWARDED], "for=\"[::1]\";host=\"a:1\";proto=http");
        assert_eq!(headers[X_FORWARDED_FOR], "::1");

        let mut headers = map(&told);
        forward(&mut headers, Forwarded::Off, client, "http");
        assert_eq!(headers, map(&told));
    }
}

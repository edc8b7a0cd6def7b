//! Headers on their way through: what ends at each hop, and what an upstream learns of the client (RFC 9110, 7.6; RFC 7239).

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};

use crate::head::words;
use crate::settings::Forwarded;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Parameters of `Forwarded`.
const HOST: &[u8] = b";host=\"";
const PROTO: &[u8] = b";proto=";

/// What always belongs to one connection.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Who asks, as upstreams are told; made once for a connection.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// The number of its connection, from 1.
    pub(crate) connection: u64,
    scheme: &'static str,
    /// The address without its port.
    name: HeaderValue,
}

impl Peer {
    pub(crate) fn new(address: SocketAddr, connection: u64, scheme: &'static str) -> Peer {
        let name = address.ip().to_canonical().to_string();
        Peer { address, connection, scheme, name: HeaderValue::try_from(name).expect("addresses are ASCII") }
    }
}

/// Removes what belongs to one connection: the headers that `Connection` names, and those that always do.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // Most heads have none, and looking is cheaper than removing.
    if !headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        return;
    }
    let named: Vec<String> = words(headers, &header::CONNECTION).collect();
    for name in named.iter().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()) {
        // A client could otherwise have these removed before an upstream that relies on them.
        if name != header::HOST && name != header::CONTENT_LENGTH {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// What `Upgrade` asks for, if `Connection` says so too. Never HTTP/2: over a tunnel to it requests would pass unseen.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(header::UPGRADE)?;
    let asked = words(headers, &header::CONNECTION).any(|word| word == "upgrade");
    let hidden =
        words(headers, &header::UPGRADE).any(|word| word.starts_with("h2") || word.starts_with("http"));
    (asked && !hidden).then(|| protocol.clone())
}

/// Whether the client takes trailers.
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    words(headers, &header::TE).any(|word| word == "trailers")
}

/// Tells the upstream who asks, by which host and protocol.
pub(crate) fn forward(headers: &mut HeaderMap, mode: Forwarded, peer: &Peer) {
    if mode == Forwarded::Off {
        return;
    }
    if mode == Forwarded::Replace {
        for name in [header::FORWARDED, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST] {
            headers.remove(name);
        }
    }
    let host = headers.get(header::HOST).cloned();
    let (before, after): (&[u8], &[u8]) =
        if peer.address.ip().to_canonical().is_ipv4() { (b"for=", b"") } else { (b"for=\"[", b"]\"") };
    // Of just the size that it needs, it becomes a header as it is.
    let host_length = host.as_ref().map_or(0, |host| host.len() + HOST.len() + 1);
    let length = before.len() + peer.name.len() + after.len() + host_length + PROTO.len() + peer.scheme.len();
    let mut element = Vec::with_capacity(length);
    for part in [before, peer.name.as_bytes(), after] {
        element.extend_from_slice(part);
    }
    append(headers, X_FORWARDED_FOR, peer.name.clone());
    headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static(peer.scheme));
    if let Some(host) = host {
        // The head was checked: there is nothing in a host that could end the quotes.
        for part in [HOST, host.as_bytes(), b"\""] {
            element.extend_from_slice(part);
        }
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
    element.extend_from_slice(PROTO);
    element.extend_from_slice(peer.scheme.as_bytes());
    if let Ok(element) = HeaderValue::from_maybe_shared(Bytes::from(element)) {
        append(headers, header::FORWARDED, element);
    }
}

/// Appends an element to a header that is a list, as one line.
fn append(headers: &mut HeaderMap, name: HeaderName, element: HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(none) => drop(none.insert(element)),
        Entry::Occupied(mut lines) => {
            let lines_and_element: Vec<&[u8]> =
                lines.iter().chain([&element]).map(HeaderValue::as_bytes).collect();
            if let Ok(list) = HeaderValue::from_bytes(&lines_and_element.join(&b", "[..])) {
                lines.insert(list);
            }
        }
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
        let peer = |address: &str, scheme| Peer::new(address.parse().expect("an address"), 1, scheme);
        let client = peer("192.0.2.7:1234", "https");
        let told = [("host", "a:1"), ("x-forwarded-for", "10.0.0.1"), ("forwarded", "for=10.0.0.1")];
        let mut headers = map(&told);
        forward(&mut headers, Forwarded::Append, &client);
        assert_eq!(headers[X_FORWARDED_FOR], "10.0.0.1, 192.0.2.7");
        assert_eq!(headers[header::FORWARDED], "for=10.0.0.1, for=192.0.2.7;host=\"a:1\";proto=https");
        assert_eq!(
            (&headers[X_FORWARDED_PROTO], &headers[X_FORWARDED_HOST]),
            (&"https".parse().unwrap(), &"a:1".parse().unwrap())
        );

        let mut headers = map(&told);
        forward(&mut headers, Forwarded::Replace, &peer("[::1]:5", "http"));
        assert_eq!(headers[header::FORWARDED], "for=\"[::1]\";host=\"a:1\";proto=http");
        assert_eq!(headers[X_FORWARDED_FOR], "::1");

        let mut headers = map(&told);
        forward(&mut headers, Forwarded::Off, &client);
        assert_eq!(headers, map(&told));
    }
}

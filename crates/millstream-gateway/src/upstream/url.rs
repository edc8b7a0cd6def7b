//! The addresses of upstreams.

use std::fmt;
use std::str::FromStr;

use http::Uri;

use crate::head::{host_and_port, is_port};

/// The address of an upstream: `http://host:port/base`; `https://…`, which speaks HTTP/2 if it can; `h2c://…`, which speaks
/// HTTP/2 without TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    pub(crate) tls: bool,
    /// HTTP/2 without asking.
    pub(crate) http2: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) authority: String,
    /// What stands before the path of every request, without a slash at its end.
    pub(crate) base: String,
}

/// Why a text is no address of an upstream. No password is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamUrlError {
    /// It is no URL of a scheme that is spoken here, or has a query.
    #[error(
        "`{0}` is no upstream; write `http://host:port`, `https://host:port` or `h2c://host:port`, with a path if every request needs one"
    )]
    Invalid(String),
    /// It names a user or a password.
    #[error(
        "`{0}` names a user or a password, by which no upstream is asked; leave out what stands before the `@`"
    )]
    Credentials(String),
    /// Its port is none.
    #[error(
        "`{0}` names no port that there is; write a number from 1 to 65535 after the `:`, or leave both out"
    )]
    Port(String),
}

impl UpstreamUrl {
    /// Whether it is reached by TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Its name or address, that of IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port, that of its scheme where the address names none.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for UpstreamUrl {
    type Err = UpstreamUrlError;

    fn from_str(text: &str) -> Result<Self, UpstreamUrlError> {
        let shown = text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, rest)| format!("***@{rest}"));
        let error = || UpstreamUrlError::Invalid(shown.clone());
        let uri: Uri = text.parse().map_err(|_| error())?;
        let (tls, http2) = match uri.scheme_str() {
            Some("http") => (false, false),
            Some("https") => (true, false),
            Some("h2c") => (false, true),
            _ => return Err(error()),
        };
        let authority = uri.authority().ok_or_else(error)?;
        if authority.as_str().contains('@') {
            return Err(UpstreamUrlError::Credentials(shown));
        }
        // `Uri` leaves a fragment out.
        if uri.query().is_some() || text.contains('#') {
            return Err(error());
        }
        let port = host_and_port(authority.as_str()).1;
        if !port.is_empty() && (!is_port(port) || authority.port_u16() == Some(0)) {
            return Err(UpstreamUrlError::Port(shown));
        }
        Ok(UpstreamUrl {
            tls,
            http2,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            base: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match (self.tls, self.http2) {
            (true, _) => "https",
            (false, true) => "h2c",
            (false, false) => "http",
        };
        write!(out, "{scheme}://{}{}", self.authority, self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_as_it_was_given_and_a_wrong_one_without_its_password() {
        for text in ["http://a:1", "https://[::1]/base", "h2c://a/@b"] {
            assert_eq!(text.parse::<UpstreamUrl>().expect(text).to_string(), text);
        }
        for (text, complaint) in [
            ("http://u:secret@a:1", "`***@a:1` names a user or a password"),
            ("ftp://u:secret@a:1", "`***@a:1` is no upstream"),
            ("u:secret@a", "`***@a` "),
            ("http://a?b=c", "`http://a?b=c` is no upstream; write `http://host:port`"),
            ("http://a/b#c", "`http://a/b#c` is no upstream"),
            ("a", "`a` is no upstream"),
            (
                "http://h:99999",
                "`http://h:99999` names no port that there is; write a number from 1 to 65535",
            ),
            ("https://[::1]:65536/b", "`https://[::1]:65536/b` names no port"),
            ("h2c://h:0", "`h2c://h:0` names no port"),
        ] {
            let error = text.parse::<UpstreamUrl>().expect_err(text).to_string();
            assert!(error.starts_with(complaint) && !error.contains("secret"), "{error}");
        }
    }
}

//! URLs of http outputs: which of them can be POSTed to, and how they are shown.

use std::borrow::Cow;

/// Checks a URL; the error is the remedy.
pub(crate) fn check(url: &str) -> Result<(), String> {
    const WRITE: &str = "write `http://HOST:PORT/PATH` or `https://HOST/PATH`";
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let written = |rest: &&str| !rest.is_empty() && !rest.contains(char::is_whitespace);
    let Some(rest) = rest.filter(written) else { return Err(WRITE.to_owned()) };
    let (authority, _) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // The colons of an IPv6 address stand between brackets.
    let port =
        host.rsplit_once(']').map_or(host, |(_, behind)| behind).rsplit_once(':').map(|(_, port)| port);
    match port {
        // No port behind the colon is the scheme's own.
        Some(port) if !port.is_empty() && !port.parse::<u16>().is_ok_and(|port| port > 0) => {
            return Err(format!("{WRITE}; a port is a number from 1 to 65535"));
        }
        _ => {}
    }
    // What the client itself would refuse, it would refuse for every batch.
    #[cfg(feature = "http")]
    if let Err(error) = reqwest::Url::parse(url) {
        return Err(format!("{WRITE}: {error}"));
    }
    Ok(())
}

/// A URL, or what was meant as one, without user and password.
pub(crate) fn shown(url: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    // In a good one, what is behind the host may have an `@`; in another one it may be a password's.
    let end = match check(url) {
        Ok(()) => rest.find(['/', '?', '#']).unwrap_or(rest.len()),
        Err(_) => rest.len(),
    };
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://***{}", &rest[at..]).into(),
        None => url.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_user_and_password() {
        for (url, expected) in [
            ("http://host/a", "http://host/a"),
            ("http://user:word@host:8080/a?b=c@d", "http://***@host:8080/a?b=c@d"),
            ("https://host/a@b", "https://host/a@b"),
            ("https://user:p@ss@host?x", "https://***@host?x"),
            ("http://user:pass/word@host/", "http://***@host/"),
            ("http://user:word@host:99999/", "http://***@host:99999/"),
            ("ftp://user:word@host", "ftp://***@host"),
        ] {
            assert_eq!(shown(url), expected);
        }
    }

    #[test]
    fn what_cannot_be_posted_to_is_refused() {
        for good in ["http://h", "https://h:65535/p", "http://[::1]:80/", "http://[::1]/", "http://u:p@h:/"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["h", "ftp://h", "http://", "http://h:99999/", "http://h:0", "http://h:x/", "http://a b/"]
        {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}

//! Which requests a route takes.

use std::fmt;

use http::Method;

use crate::head::host_and_port;
use crate::path::{ends_in_doubt, leads_elsewhere, plain, reads_otherwise};

/// Which requests a route takes: those to a host, at a path or below it, by some methods.
#[derive(Clone, Default)]
pub struct Place {
    host: Option<String>,
    path: String,
    /// The path as it is read by who decodes it.
    plain: Vec<u8>,
    /// Whether those two may differ.
    in_two_ways: bool,
    methods: Vec<Method>,
}

impl fmt::Debug for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, path, methods) = (&self.host, &self.path, &self.methods);
        out.debug_struct("Place").field("host", host).field("path", path).field("methods", methods).finish()
    }
}

impl Place {
    /// Every request.
    pub fn everywhere() -> Place {
        Place::default()
    }

    /// Only requests to this host, without its port; `*.example.org` means every name below `example.org`. With a dot at its end a
    /// name is the same name.
    #[must_use]
    pub fn host(mut self, host: &str) -> Place {
        self.host = Some(same_name(host));
        self
    }

    /// Only requests to this path or below it: `/a` and `/a/` match `/a` and `/a/b`, and not `/ab`.
    #[must_use]
    pub fn path(mut self, path: &str) -> Place {
        self.path = path.strip_suffix('/').unwrap_or(path).to_owned();
        self.plain = plain(path);
        self.in_two_ways = reads_otherwise(path);
        self
    }

    /// Only requests by these methods; none at all means every method.
    #[must_use]
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Place {
        self.methods = methods.into_iter().collect();
        self
    }

    /// Whether it takes every request.
    pub fn takes_all(&self) -> bool {
        self.host.is_none() && self.path.is_empty() && self.methods.is_empty()
    }

    /// Whether any request can reach it: not if its path has a name like `..`, or if it depends on who reads it where a name ends, for such
    /// requests are refused.
    pub fn is_reachable(&self) -> bool {
        !leads_elsewhere(&self.path) && !ends_in_doubt(&self.path)
    }

    /// Whether it takes what `behind` would take, where this comes first. Where it only [covers](Self::covers) it, their paths differ and are
    /// one to who decodes them or leaves out what follows a `;`, so that requests are refused.
    pub fn takes(&self, behind: &Place) -> bool {
        self.covers(behind) && lies_below(behind.path.as_bytes(), self.path.as_bytes())
    }

    /// Whether no request reaches `behind` where this comes first: it takes them all, or they would be at both places, depending on
    /// who reads the path, and are refused.
    pub fn covers(&self, behind: &Place) -> bool {
        let host = match (&self.host, &behind.host) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(wanted), Some(host)) => {
                wanted == host || is_below(host.strip_prefix('*').unwrap_or(host), wanted)
            }
        };
        let methods = self.methods.is_empty()
            || !behind.methods.is_empty()
                && behind.methods.iter().all(|method| self.methods.contains(method));
        host && methods && lies_below(&behind.plain, &self.plain)
    }

    fn matches_host(&self, host: &str) -> bool {
        self.host.as_deref().is_none_or(|wanted| host == wanted || is_below(host, wanted))
    }
}

/// A name without its port and the dot at its end, in lower case.
fn same_name(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Whether `wanted` is `*` with a name that `host` lies below.
fn is_below(host: &str, wanted: &str) -> bool {
    wanted.strip_prefix('*').is_some_and(|suffix| host.len() > suffix.len() && host.ends_with(suffix))
}

fn lies_below(path: &[u8], base: &[u8]) -> bool {
    let below = path.strip_prefix(base);
    below.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/") || base.is_empty())
}

/// What was found for a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The place with this index.
    Place(usize),
    /// There are places for other methods only: these.
    OtherMethods(Vec<Method>),
    Nothing,
    /// It depends on who reads the path.
    Ambiguous,
}

/// Finds the first of these places that takes a request.
pub(crate) fn find<'a>(
    places: impl Iterator<Item = &'a Place> + Clone,
    host: &str,
    path: &str,
    method: &Method,
) -> Found {
    let host = same_name(host_and_port(host).0);
    let found =
        first(places.clone(), &host, method, |place| lies_below(path.as_bytes(), place.path.as_bytes()));
    let in_two_ways = reads_otherwise(path) || places.clone().any(|place| place.in_two_ways);
    if !in_two_ways || places.clone().all(|place| place.path.is_empty()) {
        return found;
    }
    if ends_in_doubt(path) {
        return Found::Ambiguous;
    }
    let plain = plain(path);
    let other = first(places, &host, method, |place| lies_below(&plain, &place.plain));
    match (&found, &other) {
        (Found::Place(one), Found::Place(other)) if one == other => found,
        (Found::Place(_), _) | (_, Found::Place(_)) => Found::Ambiguous,
        _ => found,
    }
}

/// The first place that takes it, where `below` says whether the path lies there.
fn first<'a>(
    places: impl Iterator<Item = &'a Place>,
    host: &str,
    method: &Method,
    below: impl Fn(&Place) -> bool,
) -> Found {
    let mut allowed = Vec::new();
    for (at, place) in places.enumerate() {
        if !place.matches_host(host) || !below(place) {
            continue;
        }
        if place.methods.is_empty() || place.methods.contains(method) {
            return Found::Place(at);
        }
        let others = place.methods.iter().filter(|method| !allowed.contains(*method)).cloned();
        allowed.extend(others.collect::<Vec<_>>());
    }
    if allowed.is_empty() { Found::Nothing } else { Found::OtherMethods(allowed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(places: &[Place], host: &str, path: &str, method: Method) -> String {
        match find(places.iter(), host, path, &method) {
            Found::Place(at) => at.to_string(),
            Found::OtherMethods(methods) => format!("{methods:?}"),
            Found::Nothing => "nothing".into(),
            Found::Ambiguous => "ambiguous".into(),
        }
    }

    #[test]
    fn the_first_place_that_fits_is_taken() {
        let all = Place::everywhere;
        let places = [
            all().host("A.example").path("/x/"),
            all().host("*.example").methods([Method::GET, Method::HEAD]),
            all().path("/y").methods([Method::POST]),
            all().host("dot.test."),
            all().path("/y").methods([Method::POST, Method::PUT]).host("h"),
        ];
        let found = |host, path, method| found(&places, host, path, method);
        assert_eq!(found("A.example:80", "/x", Method::PUT), "0");
        assert_eq!(found("a.example.:80", "/x", Method::PUT), "0");
        assert_eq!(found("a.example", "/x/y", Method::PUT), "0");
        assert_eq!(found("a.example", "/xy", Method::GET), "1");
        assert_eq!(found("a.example", "/xy", Method::PUT), "[GET, HEAD]");
        assert_eq!(found("example", "/", Method::GET), "nothing");
        assert_eq!(found("[::1]:80", "/y", Method::POST), "2");
        assert_eq!(found("[::1]", "/y/z", Method::GET), "[POST]");
        assert_eq!(found("h", "/y", Method::GET), "[POST, PUT]", "each is named once");
        for host in ["dot.test", "dot.test.", "dot.test.:80"] {
            assert_eq!(found(host, "/", Method::GET), "3", "{host}");
        }
    }

    #[test]
    fn a_path_that_is_read_in_two_ways_is_taken_where_both_lead_to_one_place() {
        let all = Place::everywhere;
        let places = [
            all().path("/v1/").methods([Method::GET]),
            all().path("/caf%C3%A9"),
            all().path("/p;q"),
            all().path("/caf%C3%A9").host("late.example"),
            all().host("all.example"),
        ];
        let at = |host, path| found(&places, host, path, Method::GET);
        for path in [
            "/%76%31/x",
            "/%76%31",
            "//v1/x",
            "/v1%2fx",
            "/v1%2Fx",
            "/v1;a=b/x",
            "/v1%3ba/x",
            "/v1%5cx",
            "/\\v1",
            "/;/v1",
            "/caf%c3%a9",
            "/caf\u{e9}/x",
            "/p/x",
            // Who cuts before decoding, or knows no other slash, is elsewhere.
            "/;x%2fy/v1",
            "/;x%2Fy/v2",
            "/;%5cy/v1",
            "/;\\y/v1",
            "/;a%3bb%2fc/v1/users",
            "/%3Bb%2fc/v1",
        ] {
            for host in ["all.example", "h"] {
                assert_eq!(at(host, path), "ambiguous", "{host} {path}");
            }
        }
        for (path, expected) in [
            ("/v1//x", "0"),
            ("/v1/%7Ejoe;a/%2f", "0"),
            ("/caf%C3%A9/%", "1"),
            ("/p;q/%41", "2"),
            ("/v2/%76%31", "4"),
            ("//v2//v1;x", "4"),
            ("/%2576%2531", "4"),
            ("/v%3", "4"),
            ("/", "4"),
            ("/%", "4"),
            ("//", "4"),
            ("/v2%2fx;y", "4"),
            ("/v2;x/%2f", "4"),
        ] {
            assert_eq!(at("all.example", path), expected, "{path}");
        }
        assert_eq!(at("h", "/v2/%76%31"), "nothing");
        // Where no place has a path, it does not matter.
        assert_eq!(found(&places[4..], "all.example", "//%76", Method::GET), "0");
        assert_eq!(found(&places[..1], "h", "//v1/%76", Method::PUT), "nothing");
    }

    #[test]
    fn a_place_whose_requests_are_refused_is_not_reachable() {
        let path = |path: &str| Place::everywhere().path(path);
        for refused in ["/%2e%2e/x", "/..;a", "/\\..", "/a/../b", "/a;b%2fc", "/a%3b%5Cc"] {
            assert!(!path(refused).is_reachable(), "{refused}");
        }
        for reached in ["/", "/a;b/c", "/a%2fb", "/a..b", "/a.", "/...", "/%2fa;b"] {
            assert!(path(reached).is_reachable(), "{reached}");
        }
        assert!(path("/p;q").covers(&path("/p")) && !path("/p;q").takes(&path("/p")));
        assert!(path("/p").covers(&path("/p;q")) && !path("/p").takes(&path("/p;q")));
        assert!(path("/p").takes(&path("/p/q")));
    }

    #[test]
    fn what_is_covered_is_what_no_request_reaches() {
        let all = Place::everywhere;
        let host = |host: &str| all().host(host);
        let path = |path: &str| all().path(path);
        for (first, behind, covers) in [
            (all(), host("a.b").path("/x").methods([Method::GET]), true),
            (path("/"), path("/x"), true),
            (path("/x"), path("/x/y/"), true),
            (path("/x/"), path("/x"), true),
            (path("/x"), path("/xy"), false),
            (path("/a//"), path("/a/b"), true),
            (path("/caf%C3%A9"), path("/caf%c3%a9"), true),
            (host("a.b"), all(), false),
            (host("A.b."), host("a.B"), true),
            (host("*.b"), host("a.b"), true),
            (host("*.b"), host("*.a.b"), true),
            (host("*.a.b"), host("*.b"), false),
            (host("*.b"), host("b"), false),
            (all().methods([Method::GET]), all(), false),
            (all().methods([Method::GET, Method::PUT]), all().methods([Method::GET]), true),
        ] {
            assert_eq!(first.covers(&behind), covers, "{first:?} before {behind:?}");
        }
    }
}

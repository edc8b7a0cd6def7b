//! Routes: which requests go where.

use std::fmt;
use std::sync::Arc;

use http::{Method, Request, Response};

use crate::body::Body;
use crate::head::host_and_port;
use crate::upstream::{UpstreamUrl, Upstreams};

/// Answers requests inside this process.
///
/// Implemented for functions `Fn(Request<Body>) -> impl Future<Output = Response<Body>>`. In the extensions of the request are the
/// client's [`SocketAddr`](std::net::SocketAddr), the gateway's [`BufferPool`](crate::BufferPool), and an
/// [`Upgrade`](crate::Upgrade) where the connection may change its protocol.
///
/// # Cancel safety
/// When the client is gone the future, or the body of the answer, is dropped at once.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request.
    fn handle(&self, request: Request<Body>) -> Answering;
}

/// The future of an answer.
pub type Answering = std::pin::Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

impl<F, R> Handler for F
where
    F: Fn(Request<Body>) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    fn handle(&self, request: Request<Body>) -> Answering {
        Box::pin(self(request))
    }
}

/// Where a route leads.
#[derive(Clone)]
pub enum Target {
    /// To one of these servers.
    Proxy(Arc<Upstreams>),
    /// To a function of this process.
    Handler(Arc<dyn Handler>),
}

/// Which requests, and where they go. The first route that matches is taken.
#[derive(Clone)]
pub struct Route {
    pub(crate) name: String,
    host: Option<String>,
    path: String,
    methods: Vec<Method>,
    pub(crate) compress: bool,
    pub(crate) target: Target,
}

impl Route {
    /// All requests, to these servers; `name` stands in metrics and logs, and no other route of a gateway may have it.
    pub fn proxy(name: impl Into<String>, upstreams: impl IntoIterator<Item = UpstreamUrl>) -> Route {
        Route::to(name, Target::Proxy(Arc::new(Upstreams::new(upstreams))))
    }

    /// All requests, to a function of this process.
    pub fn handler(name: impl Into<String>, handler: impl Handler) -> Route {
        Route::to(name, Target::Handler(Arc::new(handler)))
    }

    /// All requests, to this target.
    pub fn to(name: impl Into<String>, target: Target) -> Route {
        Route {
            name: name.into(),
            host: None,
            path: "/".into(),
            methods: Vec::new(),
            compress: false,
            target,
        }
    }

    /// Only requests to this host, without its port; `*.example.org` means every name below `example.org`.
    #[must_use]
    pub fn host(mut self, host: impl Into<String>) -> Route {
        self.host = Some(host.into().to_ascii_lowercase());
        self
    }

    /// Only requests to this path or below it: `/a` matches `/a` and `/a/b`, and not `/ab`. A request whose path leads to another route
    /// to who decodes it, leaves out what follows a `;`, or takes `//` for `/` is answered 400.
    #[must_use]
    pub fn path(mut self, path: impl Into<String>) -> Route {
        self.path = path.into();
        self
    }

    /// Only requests by these methods.
    #[must_use]
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Route {
        self.methods = methods.into_iter().collect();
        self
    }

    /// Compresses answers on their way to clients that accept it, by zstd or gzip: texts that are not compressed already and are
    /// not parts of ranges. Each chunk goes on at once, so that events are not held back. Those answers, compressed or not, and those to
    /// HEAD say that they depend on what is accepted (`Vary`).
    ///
    /// An encoder takes 0.6 MiB (zstd) or 0.3 MiB (gzip) outside of the pool until its answer ends.
    #[must_use]
    pub fn compress(mut self) -> Route {
        self.compress = true;
        self
    }

    /// The servers it leads to, if it leads to any.
    pub(crate) fn upstreams(&self) -> Option<&Upstreams> {
        match &self.target {
            Target::Proxy(upstreams) => Some(upstreams),
            Target::Handler(_) => None,
        }
    }

    fn matches_host(&self, host: &str) -> bool {
        match self.host.as_deref() {
            None => true,
            Some(wanted) => match wanted.strip_prefix('*') {
                Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
                None => host == wanted,
            },
        }
    }

    /// Its path without a slash at its end: empty where it takes every path.
    fn base(&self) -> &str {
        self.path.strip_suffix('/').unwrap_or(&self.path)
    }

    fn matches_method(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.contains(method)
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Route")
            .field("name", &self.name)
            .field("host", &self.host)
            .field("path", &self.path)
            .field("methods", &self.methods)
            .finish_non_exhaustive()
    }
}

/// What was found for a request.
pub(crate) enum Found {
    /// The route with this index.
    Route(usize),
    /// Routes lead there, for other methods only.
    OtherMethods(Vec<Method>),
    Nothing,
    /// It depends on who reads the path.
    Ambiguous,
}

impl Found {
    fn route(&self) -> Option<usize> {
        match self {
            Found::Route(at) => Some(*at),
            _ => None,
        }
    }
}

pub(crate) fn find(routes: &[Route], host: &str, path: &str, method: &Method) -> Found {
    let host = host_and_port(host).0;
    // With a dot at its end a name is the same name.
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let found = first(routes, &host, method, |base| lies_below(path.as_bytes(), base.as_bytes()));
    if !reads_otherwise(path) || routes.iter().all(|route| route.base().is_empty()) {
        return found;
    }
    let plain = plain(path);
    let other = first(routes, &host, method, |base| lies_below(&plain, &self::plain(base)));
    if found.route() == other.route() { found } else { Found::Ambiguous }
}

/// The first route that fits, where `below` says whether the path lies there.
fn first(routes: &[Route], host: &str, method: &Method, below: impl Fn(&str) -> bool) -> Found {
    let mut allowed = Vec::new();
    for (at, route) in routes.iter().enumerate() {
        if !route.matches_host(host) || !below(route.base()) {
            continue;
        }
        if route.matches_method(method) {
            return Found::Route(at);
        }
        allowed.extend(route.methods.iter().cloned());
    }
    if allowed.is_empty() { Found::Nothing } else { Found::OtherMethods(allowed) }
}

fn lies_below(path: &[u8], base: &[u8]) -> bool {
    let below = path.strip_prefix(base);
    below.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/") || base.is_empty())
}

/// Whether a server may take a path for another one. Looks at each byte without leaving early, which is cheaper for short paths.
fn reads_otherwise(path: &str) -> bool {
    let odd = |pair: &[u8]| matches!(pair[1], b'%' | b'\\' | b';') | (pair == b"//");
    path.as_bytes().windows(2).fold(false, |found, pair| found | odd(pair))
}

/// A path as servers take it that decode it, with `\` as a slash, without what follows a `;`, and with one slash for several.
fn plain(path: &str) -> Vec<u8> {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        let code = digit(at + 1).zip(digit(at + 2)).filter(|_| byte == b'%');
        let (means, len) = code.map_or((byte, 1), |(high, low)| ((high << 4 | low) as u8, 3));
        decoded.push(if means == b'\\' { b'/' } else { means });
        at += len;
    }
    let parts = decoded.split(|byte| *byte == b'/');
    let names = parts.map(|part| part.split(|byte| *byte == b';').next().unwrap_or_default());
    names.filter(|name| !name.is_empty()).flat_map(|name| [b"/", name].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_route_that_fits_is_taken() {
        async fn nothing(_: Request<Body>) -> Response<Body> {
            Response::default()
        }
        let routes = [
            Route::handler("0", nothing).host("a.example").path("/x/"),
            Route::handler("1", nothing).host("*.example").methods([Method::GET]),
            Route::handler("2", nothing).path("/y").methods([Method::POST]),
        ];
        let found = |host: &str, path: &str, method: Method| match find(&routes, host, path, &method) {
            Found::Route(at) => at.to_string(),
            Found::OtherMethods(methods) => format!("{methods:?}"),
            Found::Nothing => "nothing".into(),
            Found::Ambiguous => "ambiguous".into(),
        };
        assert_eq!(found("A.example:80", "/x", Method::PUT), "0");
        assert_eq!(found("a.example.:80", "/x", Method::PUT), "0");
        assert_eq!(found("a.example", "/x/y", Method::PUT), "0");
        assert_eq!(found("a.example", "/xy", Method::GET), "1");
        assert_eq!(found("a.example", "/xy", Method::PUT), "[GET]");
        assert_eq!(found("example", "/", Method::GET), "nothing");
        assert_eq!(found("[::1]:80", "/y", Method::POST), "2");
        assert_eq!(found("[::1]", "/y/z", Method::GET), "[POST]");
    }

    #[test]
    fn a_path_that_is_read_in_two_ways_is_taken_where_both_lead_to_one_route() {
        async fn nothing(_: Request<Body>) -> Response<Body> {
            Response::default()
        }
        let routes = [
            Route::handler("0", nothing).path("/v1/").methods([Method::GET]),
            Route::handler("1", nothing).path("/caf%C3%A9"),
            Route::handler("2", nothing).path("/p;q"),
            Route::handler("3", nothing).host("all.example"),
        ];
        let found = |host: &str, path: &str| match find(&routes, host, path, &Method::GET) {
            Found::Route(at) => at.to_string(),
            Found::OtherMethods(methods) => format!("{methods:?}"),
            Found::Nothing => "nothing".into(),
            Found::Ambiguous => "ambiguous".into(),
        };
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
        ] {
            for host in ["all.example", "h"] {
                assert_eq!(found(host, path), "ambiguous", "{host} {path}");
            }
        }
        for (path, expected) in [
            ("/v1//x", "0"),
            ("/v1/%7Ejoe;a/%2f", "0"),
            ("/caf%C3%A9/%", "1"),
            ("/p;q/%41", "2"),
            ("/v2/%76%31", "3"),
            ("//v2//v1;x", "3"),
            ("/%2576%2531", "3"),
            ("/v%3", "3"),
            ("/", "3"),
            ("/%", "3"),
            ("//", "3"),
        ] {
            assert_eq!(found("all.example", path), expected, "{path}");
        }
        assert_eq!(found("h", "/v2/%76%31"), "nothing");
        // Where no route has a path, it does not matter.
        assert!(matches!(find(&routes[3..], "all.example", "//%76", &Method::GET), Found::Route(0)));
        assert!(matches!(find(&routes[..1], "h", "//v1/%76", &Method::PUT), Found::Nothing));
    }
}

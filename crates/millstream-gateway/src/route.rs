//! Routes: which requests go where.

use std::fmt;
use std::sync::Arc;

use http::{Method, Request, Response};

use crate::body::Body;
use crate::place::Place;
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

    /// The largest body that it takes, if that is known before: a client that asks whether a larger one is wanted (`Expect: 100-continue`)
    /// is answered 413, and need not send it.
    fn body_max(&self) -> Option<u64> {
        None
    }
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
    pub(crate) place: Place,
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
        Route { name: name.into(), place: Place::everywhere(), compress: false, target }
    }

    /// Only requests of this place, instead of all.
    #[must_use]
    pub fn at(mut self, place: Place) -> Route {
        self.place = place;
        self
    }

    /// Only requests to this host, without its port; `*.example.org` means every name below `example.org`.
    #[must_use]
    pub fn host(mut self, host: impl Into<String>) -> Route {
        self.place = self.place.host(&host.into());
        self
    }

    /// Only requests to this path or below it: `/a` matches `/a` and `/a/b`, and not `/ab`. A request whose path, or the path of a route,
    /// leads elsewhere to who decodes it once, takes `\` or `//` for `/`, or leaves out what follows a `;` is answered 400: what this
    /// route guards is not to be had by another one. Servers that decode twice, or tell no case apart, must guard it themselves.
    #[must_use]
    pub fn path(mut self, path: impl Into<String>) -> Route {
        self.place = self.place.path(&path.into());
        self
    }

    /// Only requests by these methods.
    #[must_use]
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Route {
        self.place = self.place.methods(methods);
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
}

impl fmt::Debug for Route {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Route")
            .field("name", &self.name)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

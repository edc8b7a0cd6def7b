//! Servers, gateways and clients of these tests.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use millstream_gateway::{Body, Gateway, Route, Server, Settings};
use tokio::net::TcpStream;

pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("in time")
}

pub(crate) async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Waits until nothing moves any more: on a loaded machine a few looks may see the same while everything does.
pub(crate) async fn silence<T: PartialEq>(mut look: impl FnMut() -> T) {
    let (mut before, mut same) = (look(), 0);
    until("silence", || {
        let now = look();
        same = if now == before { same + 1 } else { 0 };
        before = now;
        same == 10
    })
    .await;
}

pub(crate) fn any() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

/// Answers with what it was sent, as it comes.
pub(crate) async fn echo(request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut response = Response::new(body);
    let seen = format!("{:?} {} {:?}", parts.version, parts.uri.path(), parts.headers.get("host"));
    response.headers_mut().insert("x-seen", seen.parse().expect("a value"));
    if let Some(cookie) = parts.headers.get("cookie") {
        response.headers_mut().insert("x-cookie", cookie.clone());
    }
    response
}

pub(crate) async fn echo_server() -> Server {
    Gateway::new(Settings::default()).route(Route::handler("echo", echo)).listen(any()).await.expect("a port")
}

pub(crate) async fn proxy(to: &[String], settings: Settings) -> Server {
    let urls: Vec<_> = to.iter().map(|url| url.parse().expect("a url")).collect();
    Gateway::new(settings).route(Route::proxy("up", urls)).listen(any()).await.expect("a port")
}

pub(crate) type Sender<B> = hyper::client::conn::http2::SendRequest<B>;

pub(crate) async fn http2<B>(to: SocketAddr) -> Sender<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(to).await.expect("connected");
    stream.set_nodelay(true).expect("a socket");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = within(handshake).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

pub(crate) async fn all(response: Response<hyper::body::Incoming>) -> Bytes {
    within(response.into_body().collect()).await.expect("a body").to_bytes()
}

//! Both ends of the gateway in a test's hands.

use std::net::SocketAddr;
use std::time::Duration;

use millstream_gateway::{Gateway, Route, Server, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// No test waits longer than this for anything.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {LIMIT:?}"),
    }
}

/// A gateway and the upstream that it leads to.
pub(crate) struct Scene {
    pub(crate) server: Server,
    pub(crate) upstream: TcpListener,
}

pub(crate) async fn scene(settings: Settings) -> Scene {
    scene_with(settings, |route| route).await
}

pub(crate) async fn scene_with(settings: Settings, make: impl FnOnce(Route) -> Route) -> Scene {
    let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", upstream.local_addr().expect("an address"));
    let route = Route::proxy("up", [url.parse().expect("an upstream")]);
    let gateway = Gateway::new(settings).route(make(route));
    let server = gateway.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
    Scene { server, upstream }
}

impl Scene {
    pub(crate) async fn client(&self) -> Wire {
        connect(self.server.local_addr()).await
    }

    pub(crate) async fn accept(&self) -> Wire {
        Wire::new(within("a connection to the upstream", self.upstream.accept()).await.expect("accepted").0)
    }

    /// A client that has sent this, and the upstream's connection that has read its head.
    pub(crate) async fn asked(&self, request: &str) -> (Wire, Wire, String) {
        let mut client = self.client().await;
        client.send(request).await;
        let mut up = self.accept().await;
        let head = up.head().await;
        (client, up, head)
    }

    /// The gateway ends, and every buffer has come home.
    pub(crate) async fn end(self) {
        let drained = within("the end of the gateway", self.server.shutdown(Duration::ZERO)).await;
        assert_eq!(drained.leases_left, 0);
    }

    pub(crate) fn refused(&self, why: &str) -> u64 {
        self.server.snapshot().refused[why]
    }
}

pub(crate) async fn connect(to: SocketAddr) -> Wire {
    Wire::new(within("a connection", TcpStream::connect(to)).await.expect("connected"))
}

/// A raw connection that remembers what it has read and not used.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Wire {
        stream.set_nodelay(true).expect("a socket");
        Wire { stream, read: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("a write", self.stream.write_all(bytes.as_ref())).await.expect("written");
    }

    async fn more(&mut self) -> std::io::Result<usize> {
        within("bytes", self.stream.read_buf(&mut self.read)).await
    }

    /// What comes up to and with this text.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|part| part == end.as_bytes()) {
                let rest = self.read.split_off(at + end.len());
                return String::from_utf8_lossy(&std::mem::replace(&mut self.read, rest)).into_owned();
            }
            let read = self.more().await.expect("read");
            assert!(read > 0, "closed before {end:?}: {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    pub(crate) async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// Exactly so many bytes.
    pub(crate) async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            assert!(
                self.more().await.expect("read") > 0,
                "closed after {} of {count} bytes",
                self.read.len()
            );
        }
        let rest = self.read.split_off(count);
        std::mem::replace(&mut self.read, rest)
    }

    /// Everything up to the end of the connection, and whether that was an orderly one.
    pub(crate) async fn rest(&mut self) -> (Vec<u8>, bool) {
        loop {
            match self.more().await {
                Ok(0) => return (std::mem::take(&mut self.read), true),
                Ok(_) => {}
                Err(_) => return (std::mem::take(&mut self.read), false),
            }
        }
    }

    /// Waits for the end of the connection, which brings nothing more.
    pub(crate) async fn ended(&mut self) {
        let (rest, _) = self.rest().await;
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }

    pub(crate) async fn close_sending(&mut self) {
        self.stream.shutdown().await.expect("shut down");
    }
}

pub(crate) fn status(head: &str) -> u16 {
    head.split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no status in {head:?}"))
}

pub(crate) const GET: &str = "GET /a?b=c HTTP/1.1\r\nHost: h\r\n\r\n";

/// A patience for clocks that stand: one that goes passes it on a loaded machine.
pub(crate) const SHORT: Duration = Duration::from_millis(500);

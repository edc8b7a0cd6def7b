//! A gateway and its clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use millstream_gateway::{Gateway, Route, Server, Settings};
use millstream_message::{Broker, BrokerUrl};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("in time")
}

/// Waits until this holds; the clock stands meanwhile.
pub(crate) async fn until(holds: impl Fn() -> bool) {
    let turns = async {
        for _ in 0..1_000_000 {
            if holds() {
                return true;
            }
            tokio::task::yield_now().await;
        }
        false
    };
    assert!(turns.await, "it never came to hold");
}

pub(crate) async fn listen(routes: impl IntoIterator<Item = Route>) -> Server {
    let gateway = routes.into_iter().fold(Gateway::new(Settings::default()), Gateway::route);
    gateway.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a port")
}

pub(crate) async fn memory() -> Arc<dyn Broker> {
    millstream_embedded::open(&BrokerUrl::Memory).await.expect("a broker")
}

pub(crate) struct Client(pub(crate) TcpStream, String);

impl Client {
    pub(crate) async fn asks(to: SocketAddr, request: &str) -> Client {
        let mut stream = TcpStream::connect(to).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("written");
        Client(stream, String::new())
    }

    pub(crate) async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.1.find(end) {
                let rest = self.1.split_off(at + end.len());
                return std::mem::replace(&mut self.1, rest);
            }
            let mut bytes = vec![0; 4096];
            let read = within(self.0.read(&mut bytes)).await.expect("read");
            assert!(read > 0, "closed before {end:?}: {:?}", self.1);
            self.1.push_str(std::str::from_utf8(&bytes[..read]).expect("text"));
        }
    }
}

pub(crate) fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n{more}\r\n")
}

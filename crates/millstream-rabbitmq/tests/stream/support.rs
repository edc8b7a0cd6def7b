//! The node of these tests, and what they share.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use millstream_message::{Message, StreamFrom, StreamItem, StreamReader};
use millstream_rabbitmq::stream::{ConsumerOptions, StreamClient, StreamSettings};
use millstream_testing::{Node, Proxy, Setup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, RwLock};

/// Held by tests that use the node, and alone by one that stops it.
pub(crate) static TURN: RwLock<()> = RwLock::const_new(());

/// The node: one for all tests of this binary.
pub(crate) async fn node() -> &'static Node {
    static NODE: OnceCell<Node> = OnceCell::const_new();
    let start = async || Node::start(Setup::default().plugin("rabbitmq_stream")).await.expect("it starts");
    NODE.get_or_init(start).await
}

/// A URL of the node, with options.
pub(crate) async fn url(options: &str) -> String {
    node().await.stream_url(options)
}

/// A proxy to the node.
pub(crate) async fn proxy() -> Proxy {
    Proxy::to(node().await.stream_port).await
}

/// A URL that leads through a proxy.
pub(crate) fn around(proxy: &Proxy, options: &str) -> String {
    format!("rabbitmq-stream://guest:guest@127.0.0.1:{}/?hosts_only=true&{options}", proxy.port)
}

/// How the node goes away.
#[derive(Clone, Copy)]
pub(crate) enum Down {
    Stopped,
    Killed,
}

/// Stops the node, in this way, and starts it again.
pub(crate) async fn restart(down: Down) {
    let node = node().await;
    match down {
        Down::Stopped => node.stop().await,
        Down::Killed => node.kill(),
    }
    node.run().await.expect("it starts again");
}

/// A server that says these bytes to whoever connects, and nothing else.
pub(crate) async fn says(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            let _ = client.read(&mut buffer).await;
            let _ = client.write_all(bytes).await;
        }
    });
    address
}

/// A client of the node.
pub(crate) async fn client(url: &str) -> StreamClient {
    StreamClient::connect(StreamSettings::parse(url).expect("a URL")).await.expect("connects")
}

/// A stream that nobody else uses.
pub(crate) async fn stream(client: &StreamClient, name: &str) -> String {
    client.delete_stream(name).await.expect("deleted");
    client.create_stream(name, &[]).await.expect("made");
    name.to_owned()
}

/// Numbered messages.
pub(crate) fn numbers(range: Range<u64>) -> Vec<Message> {
    range.map(|number| Message::new(number.to_string())).collect()
}

/// The number of a message.
pub(crate) fn number(item: &StreamItem) -> u64 {
    std::str::from_utf8(item.message.body()).expect("text").parse().expect("a number")
}

/// Reads until `count` items are there.
pub(crate) async fn take(reader: &mut StreamReader, count: usize) -> Vec<StreamItem> {
    let mut items = Vec::new();
    while items.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(60), reader.next_chunk(count - items.len()));
        let chunk = next.await.unwrap_or_else(|_| panic!("{} of {count} items came", items.len()));
        let chunk = chunk.expect("read");
        assert!(!chunk.is_empty(), "the reader goes on");
        items.extend(chunk);
    }
    items
}

/// All that is in a stream now.
pub(crate) async fn all(client: &StreamClient, stream: &str) -> Vec<StreamItem> {
    let next = client.stats(stream).await.expect("stats").next;
    let mut reader = open(client, stream, StreamFrom::First).await;
    let mut items = Vec::new();
    while items.last().is_none_or(|item: &StreamItem| item.offset + 1 < next) && next > 0 {
        items.extend(reader.next_chunk(10_000).await.expect("read"));
    }
    items
}

/// A reader.
pub(crate) async fn open(client: &StreamClient, stream: &str, from: StreamFrom) -> StreamReader {
    client.consumer(stream, from, ConsumerOptions::default()).await.expect("subscribed").into_reader()
}

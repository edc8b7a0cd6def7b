//! What a link does while nobody answers.

use std::time::Duration;

use futures_util::FutureExt;
use millstream_message::{Address, Message, Publish, PublishOutcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;
use crate::confirms::Entry;

/// Nothing is to be restored, for it never gets so far.
struct Nothing;

impl Restore for Nothing {
    fn restore<'a>(&'a self, _: &'a Arc<Link>) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(async { Ok(()) })
    }

    fn repair<'a>(&'a self, _: &'a Arc<Link>) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(async { Ok(()) })
    }
}

#[tokio::test]
async fn a_link_that_is_closed_while_a_host_is_silent_ends_at_once_and_tells_what_is_not_confirmed() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = silent.local_addr().expect("an address").port();
    // TLS begins, and nobody answers.
    let url = format!("amqps://127.0.0.1:{port}?connection_timeout=600000");
    let options = Arc::new(Options::parse(&url).expect("a URL"));
    let link = Link::new(options, "test".to_owned(), Arc::default());
    let starting = link.clone();
    let starting = tokio::spawn(async move { starting.start(Arc::new(Nothing)).await });
    let (_socket, _) = silent.accept().await.expect("it connects");
    let publish = Publish { to: Address::queue("q"), message: Message::new("x") };
    let entry = Entry::new(vec![publish], Vec::new(), (1, 1));
    let (told, _) = link.push(entry).expect("it is open");
    link.close();
    let started = timeout(Duration::from_secs(60), starting).await.expect("at once").expect("no panic");
    assert!(started.is_err(), "it never was there");
    let mut status = link.status();
    let ended = status.wait_for(|state| *state == ConnectionState::Closed);
    timeout(Duration::from_secs(60), ended).await.expect("at once").expect("the link is here");
    let outcomes = told.now_or_never().expect("nobody waits for ever");
    assert!(matches!(outcomes.get(0), PublishOutcome::Unconfirmed(_)));
}

#[tokio::test]
async fn a_port_that_speaks_something_else_is_told_as_that() {
    const CLOSED: &str = "closed the connection within the handshake; is that AMQP's port, 5672";
    for (answer, read, told) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            8,
            "the other side speaks HTTP: port 15672 is for the management",
        ),
        (b"", 8, CLOSED),
        // What it leaves unread has us hear of a reset.
        (b"", 1, CLOSED),
    ] {
        let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = other.local_addr().expect("an address").port();
        let options = Arc::new(Options::parse(&format!("amqp://127.0.0.1:{port}")).expect("a URL"));
        let link = Link::new(options, "test".to_owned(), Arc::default());
        let starting = tokio::spawn(async move { link.start(Arc::new(Nothing)).await });
        let (mut socket, _) = other.accept().await.expect("it connects");
        socket.read_exact(&mut vec![0; read]).await.expect("a protocol header");
        socket.write_all(answer).await.expect("it is read");
        drop(socket);
        let error = starting.await.expect("no panic").expect_err("no AMQP").to_string();
        assert!(error.contains(told) && error.contains(&port.to_string()), "{error}");
    }
}

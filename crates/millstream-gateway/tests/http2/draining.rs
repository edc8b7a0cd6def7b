//! A gateway that is told to go: it says so, and finishes what has begun.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{Method, Request, Response};
use millstream_gateway::{Body, Gateway, Route, Settings};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::raw::*;
use crate::support::*;

/// The number of the last stream that a GOAWAY leaves alive, and its code.
fn goaway(payload: &[u8]) -> (u32, u32) {
    let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"));
    (number(0), number(4))
}

/// What a client hears that has nothing under way.
async fn let_go(mut raw: Raw) -> Vec<(u32, u32)> {
    let mut goaways = Vec::new();
    while let Some((kind, flags, _, payload)) = raw.next().await {
        match kind {
            GOAWAY => goaways.push(goaway(&payload)),
            PING if flags == 0 => drop(raw.send(&frame(PING, ACK, 0, &payload)).await),
            _ => {}
        }
    }
    goaways
}

#[tokio::test]
async fn a_drain_says_so_and_finishes_every_exchange_that_has_begun() {
    let go = Arc::new(Semaphore::new(0));
    let held = go.clone();
    let waits = move |_: Request<Body>| {
        let held = held.clone();
        async move {
            held.acquire().await.expect("open").forget();
            Response::new(Body::from("late"))
        }
    };
    let gateway = Gateway::new(Settings::default())
        .route(Route::handler("waits", waits).methods([Method::GET]))
        .route(Route::handler("echo", echo))
        .listen(any())
        .await
        .expect("a port");
    let address = gateway.local_addr();
    let mut raw = Raw::greeted(address).await;
    let idle = Raw::greeted(address).await;
    // An upload that has come in part, and an answer that has not begun.
    raw.send(&[frame(HEADERS, END_HEADERS, 1, POST), frame(DATA, 0, 1, b"first, ")].concat()).await;
    raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 3, GET)).await;
    let begun = || gateway.snapshot().streams.iter().map(|streams| streams.started).sum::<u64>();
    // The echo begins with what it is sent.
    until("both have begun", || begun() == 3).await;
    until("the other, too", || gateway.snapshot().connections_open == 2).await;
    let draining = tokio::spawn(gateway.shutdown(LIMIT));
    let idle = tokio::spawn(let_go(idle));

    let mut goaways = Vec::new();
    let mut answers = BTreeMap::<u32, Vec<u8>>::new();
    let mut ended = Vec::new();
    while let Some((kind, flags, stream, payload)) = raw.next().await {
        match kind {
            // What was asked before the word came is served, too; the gateway knows that it came by the answer to a ping.
            GOAWAY if goaways.is_empty() => {
                goaways.push(goaway(&payload));
                raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 5, GET)).await;
            }
            GOAWAY => {
                goaways.push(goaway(&payload));
                // Nobody new gets in.
                if let Ok(stream) = TcpStream::connect(address).await {
                    let mut late = Raw(stream);
                    late.send(PREFACE).await;
                    assert_eq!(late.hears().await, Heard::Closed);
                }
                assert!(!draining.is_finished());
                raw.send(&frame(DATA, END_STREAM, 1, b"then the rest")).await;
                go.add_permits(2);
            }
            PING if flags == 0 => assert!(raw.send(&frame(PING, ACK, 0, &payload)).await),
            RST_STREAM => panic!("stream {stream} was reset"),
            DATA => answers.entry(stream).or_default().extend(payload),
            _ => {}
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            ended.push(stream);
        }
    }
    assert_eq!(goaways, [(u32::MAX >> 1, 0), (5, 0)]);
    ended.sort_unstable();
    assert_eq!(ended, [1, 3, 5]);
    let body = |stream| String::from_utf8_lossy(&answers[&stream]).into_owned();
    assert_eq!([body(1), body(3), body(5)], ["first, then the rest", "late", "late"]);
    assert_eq!(within(idle).await.expect("no panic"), [(u32::MAX >> 1, 0), (0, 0)]);
    let drained = within(draining).await.expect("no panic");
    assert_eq!((drained.broken_off, drained.leases_left), (0, 0));
}

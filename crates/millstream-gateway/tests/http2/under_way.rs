//! Streams in the list of what is under way.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use millstream_gateway::{Body, Gateway, Route, Settings};

use crate::support::*;

#[tokio::test]
async fn each_stream_is_listed_until_it_ends_or_is_reset() {
    let never = Route::handler("never", |_: Request<Body>| std::future::pending::<http::Response<Body>>());
    let gateway = Gateway::new(Settings::default())
        .route(never.path("/never"))
        .route(Route::handler("echo", echo))
        .listen(any())
        .await
        .expect("a port");
    let list = || {
        let list = gateway.streams(100);
        assert_eq!(list.total, list.exchanges.len());
        list.exchanges
    };
    let mut sender = http2::<Full<Bytes>>(gateway.local_addr()).await;
    let mut stuck = Vec::new();
    for number in 1..=2 {
        let request =
            Request::get(format!("http://h/never/{number}?x")).body(Full::default()).expect("a request");
        stuck.push(tokio::spawn(sender.send_request(request)));
        until("it is listed", || list().len() == number && list().iter().all(|one| one.request.is_some()))
            .await;
    }
    let echoed = Request::post("http://h/").body(Full::from("hello")).expect("a request");
    assert_eq!(all(within(sender.send_request(echoed)).await.expect("an answer")).await, "hello");
    until("that one has ended", || list().len() == 2).await;
    let listed = list();
    let of =
        |at: usize| (&*listed[at].id, &*listed[at].path, &*listed[at].protocol, listed[at].route.as_deref());
    assert_eq!(of(0), ("1.1", "/never/1", "HTTP/2.0", Some("never")));
    assert_eq!(of(1), ("1.2", "/never/2", "HTTP/2.0", Some("never")));
    assert!(listed.iter().all(|one| one.upstream.is_none() && one.response.is_none()), "{listed:?}");
    stuck.remove(0).abort();
    until("the one that was reset has ended", || list().len() == 1).await;
    assert_eq!(list()[0].id, "1.2");
    stuck.remove(0).abort();
    drop(sender);
    until("all have ended with their connection", || list().is_empty()).await;
}

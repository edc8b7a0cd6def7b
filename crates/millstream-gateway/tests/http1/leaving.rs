//! Clients that leave while nobody reads what they send.

use http::{Request, Response};
use millstream_gateway::{Body, Gateway, HalfClose, Route, Server, Settings};

use crate::support::*;

/// A gateway whose handlers never read a body, nor answer.
async fn dawdler() -> Server {
    let holds = async |request: Request<Body>| {
        let _held = request;
        std::future::pending::<Response<Body>>().await
    };
    Gateway::new(Settings::default())
        .route(Route::handler("holds", holds).path("/holds"))
        .route(Route::handler("drops", |_: Request<Body>| std::future::pending::<Response<Body>>()))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port")
}

async fn gone(server: &Server) {
    within("the end of the exchange", async {
        while server.snapshot().refused["client_gone"] == 0 {
            tokio::time::sleep(SHORT / 20).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_while_its_upload_waits_is_seen_to() {
    for path in ["/holds", "/drops"] {
        let server = dawdler().await;
        let mut client = connect(server.local_addr()).await;
        client.send(format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 999999\r\n\r\n")).await;
        client.send(vec![b'x'; 100_000]).await;
        drop(client);
        gone(&server).await;
    }
}

#[tokio::test]
async fn a_client_that_breaks_off_while_its_upload_waits_takes_its_request_with_it() {
    for half_close in [HalfClose::Cancel, HalfClose::Allow] {
        let scene = scene(Settings { half_close, ..Settings::default() }).await;
        let (mut client, mut up, _) =
            scene.asked("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999\r\n\r\n").await;
        // Until nobody on the way takes more.
        let block = vec![b'x'; 1 << 20];
        while tokio::time::timeout(SHORT, tokio::io::AsyncWriteExt::write_all(&mut client.stream, &block))
            .await
            .is_ok()
        {}
        client.stream.set_zero_linger().expect("a socket");
        drop(client);
        gone(&scene.server).await;
        up.rest().await;
        scene.end().await;
    }
}

#[tokio::test]
async fn a_client_that_has_sent_more_and_leaves_is_seen_to() {
    let scene = scene(Settings::default()).await;
    let (client, mut up, _) = scene.asked(&GET.repeat(2_000)).await;
    drop(client);
    up.ended().await;
    assert_eq!(scene.refused("client_gone"), 1);
    scene.end().await;
}

#[tokio::test]
async fn a_client_that_may_close_its_side_but_breaks_off_is_gone() {
    let scene = scene(Settings { half_close: HalfClose::Allow, ..Settings::default() }).await;
    let (client, mut up, _) = scene.asked(GET).await;
    client.stream.set_zero_linger().expect("a socket");
    drop(client);
    up.ended().await;
    assert_eq!(scene.refused("client_gone"), 1);
    scene.end().await;
}

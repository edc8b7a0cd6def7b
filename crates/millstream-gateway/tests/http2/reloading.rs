//! Another configuration while streams come.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use millstream_gateway::{Body, Gateway, Route, Settings};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::support::*;

#[tokio::test]
async fn the_next_stream_takes_what_is_new_and_the_one_before_ends_by_what_it_began_with() {
    let upstream = echo_server().await;
    let url = format!("h2c://{}", upstream.local_addr());
    let gateway = proxy(std::slice::from_ref(&url), Settings::default()).await;
    let (send, mut sent) = mpsc::channel::<Bytes>(1);
    let body = futures_util::stream::poll_fn(move |cx| {
        sent.poll_recv(cx).map(|next| next.map(|bytes| Ok::<_, std::convert::Infallible>(Frame::data(bytes))))
    });
    let mut sender = http2(gateway.local_addr()).await;
    let request = Request::post("http://h/").body(BodyExt::boxed(StreamBody::new(body))).expect("a request");
    let (answer, ()) = within(async {
        tokio::join!(sender.send_request(request), async { drop(send.send("one".into()).await) })
    })
    .await;
    let mut answer = answer.expect("an answer").into_body();
    assert_eq!(
        within(answer.frame()).await.expect("a frame").expect("whole").into_data().ok(),
        Some("one".into())
    );

    let new = Route::handler("new", async |_: Request<Body>| Response::new(Body::from("new")));
    gateway.reload(Gateway::new(Settings::default()).route(new)).expect("it is well");
    let request = Request::get("http://h/").body(Full::new(Bytes::new()).boxed()).expect("a request");
    let response = within(sender.send_request(request)).await.expect("an answer");
    assert_eq!(all(response).await, "new");
    assert_eq!(gateway.snapshot().connections, 1);

    within(send.send("two".into())).await.expect("taken");
    drop(send);
    assert_eq!(within(answer.collect()).await.expect("whole").to_bytes(), "two");
    // Nobody keeps the connection to a server that is gone.
    until("the upstream's connection ends", || upstream.snapshot().connections_open == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stream_is_lost_while_configurations_come_and_go() {
    let (a, b) = (echo_server().await, echo_server().await);
    let url = |server: &millstream_gateway::Server| {
        format!("h2c://{}", server.local_addr()).parse().expect("a url")
    };
    let made = |turn: u64| {
        let urls = vec![url(if turn.is_multiple_of(2) { &a } else { &b })];
        Gateway::new(Settings::default()).route(Route::proxy("up", urls))
    };
    let gateway = made(0).listen(any()).await.expect("a port");
    let done = CancellationToken::new();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (done, address) = (done.clone(), gateway.local_addr());
            tokio::spawn(async move {
                let mut sender = http2::<Full<Bytes>>(address).await;
                let mut count = 0_u64;
                while !done.is_cancelled() || count < 10 {
                    let body = Bytes::from(vec![7; (count as usize * 701) % 50_000]);
                    let request =
                        Request::post("http://h/").body(Full::new(body.clone())).expect("a request");
                    let response = within(sender.send_request(request)).await.expect("an answer");
                    assert_eq!(response.status(), 200);
                    assert_eq!(all(response).await, body);
                    count += 1;
                }
                count
            })
        })
        .collect();
    let answered = || gateway.snapshot().answers[0].by_class["2xx"];
    for turn in 1..=200 {
        let before = answered();
        gateway.reload(made(turn)).expect("it is well");
        until("requests in between", || answered() > before + 2).await;
    }
    done.cancel();
    let mut asked = 0;
    for client in clients {
        asked += within(client).await.expect("no stream failed");
    }
    // An exchange is counted when it has ended, shortly after its client has its answer.
    let look = gateway.monitor();
    let drained = within(gateway.shutdown(Duration::from_secs(10))).await;
    assert_eq!((drained.broken_off, drained.leases_left), (0, 0));
    assert_eq!(look().answers[0].by_class["2xx"], asked);
    assert_eq!(look().refused.values().sum::<u64>(), 0, "{:?}", look().refused);
}

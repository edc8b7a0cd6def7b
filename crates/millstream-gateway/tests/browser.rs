//! A page in a real browser that reads server-sent events and a WebSocket, and streams an answer as it comes.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::{Request, Response};
use millstream_gateway::websocket::{self, WebSocketMessage};
use millstream_gateway::{Body, Gateway, Route, Serve, Served, Settings};
use millstream_message::{Broker, BrokerUrl, Message, StreamSpec};

/// A browser that starts for the first time takes its time.
const LIMIT: Duration = Duration::from_secs(120);

/// It tells what it saw by a request, so that the test waits for that and for nothing else.
const PAGE: &str = r#"<!doctype html><title>streams</title><script>
const heard = [];
const events = new EventSource('/events?from=first');
const first = new Promise(done => events.onmessage = event => { heard.push(event.lastEventId + event.data); if (heard.length == 2) done(); });
const socket = new WebSocket('ws://' + location.host + '/socket');
const second = new Promise(done => { socket.onopen = () => socket.send('hello'); socket.onmessage = event => done(event.data); });
const third = fetch('/slow').then(async answer => {
  const reader = answer.body.getReader();
  const chunk = await reader.read();
  await fetch('/go', { method: 'POST' });
  const rest = await reader.read();
  return new TextDecoder().decode(chunk.value) + '+' + new TextDecoder().decode(rest.value);
});
Promise.all([first, second, third]).then(all => fetch('/result', { method: 'POST', body: heard.join() + ' ' + all[1] + ' ' + all[2] }),
  error => fetch('/result', { method: 'POST', body: 'failed: ' + error }));
</script>"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_follows_events_a_websocket_and_an_answer_in_parts() {
    let broker: Arc<dyn Broker> = millstream_embedded::open(&BrokerUrl::Memory).await.expect("a broker");
    broker.declare_stream(StreamSpec::new("s")).await.expect("a stream");
    broker.append("s", ["a", "b"].map(Message::new).to_vec()).await.expect("appended");

    let page = |_: Request<Body>| {
        let mut response = Response::new(Body::from(PAGE));
        response.headers_mut().insert("content-type", "text/html".parse().expect("a value"));
        std::future::ready(response)
    };
    let shout = |request: Request<Body>| {
        std::future::ready(websocket::accept(&request, async |mut socket| {
            while let Some(Ok(WebSocketMessage::Text(text))) = socket.next().await {
                if socket.send(WebSocketMessage::text(text.to_uppercase())).await.is_err() {
                    break;
                }
            }
        }))
    };
    // The second part is sent when the page has said that it has the first.
    let go = Arc::new(tokio::sync::Notify::new());
    let wait = go.clone();
    let slow = move |_: Request<Body>| {
        let wait = wait.clone();
        let parts = futures_util::stream::iter(["one", "two"]).then(move |part| {
            let wait = wait.clone();
            async move {
                if part == "two" {
                    wait.notified().await;
                }
                Ok(part.into())
            }
        });
        std::future::ready(Response::new(Body::from_stream(parts)))
    };
    let release = move |_: Request<Body>| {
        go.notify_one();
        std::future::ready(Response::<Body>::default())
    };
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let result = move |request: Request<Body>| {
        let tell = tell.clone();
        async move {
            let text = request.into_body().collect(10_000).await.expect("a body");
            let _ = tell.send(String::from_utf8_lossy(&text).into_owned()).await;
            Response::<Body>::default()
        }
    };
    let server = Gateway::new(Settings::default())
        .route(Route::handler("events", Serve::new(broker, Served::Stream("s".into()))).path("/events"))
        .route(Route::handler("socket", shout).path("/socket"))
        .route(Route::handler("slow", slow).path("/slow"))
        .route(Route::handler("go", release).path("/go"))
        .route(Route::handler("result", result).path("/result"))
        .route(Route::handler("page", page))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a port");

    let home = tempfile::tempdir().expect("a directory");
    let mut browser = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"])
        .args(["--disable-background-networking", "--remote-debugging-port=0"])
        .arg(format!("--user-data-dir={}", home.path().display()))
        .arg(format!("http://{}/", server.local_addr()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("chromium: {error}; `cargo xtask test needs` installs it"));
    let heard = tokio::time::timeout(LIMIT, told.recv()).await;
    let _ = browser.kill();
    let _ = browser.wait();
    assert_eq!(heard.expect("the browser tells in time").as_deref(), Some("0a,1b HELLO one+two"));
}

//! Keys of routes: from the file to what they do.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use millstream_message::{BrokerUrl, Message, StreamSpec};

use crate::process::*;
use crate::support::Place;

fn answered(status: &str, more: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{more}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}").into()
}

fn started(place: &Place, routes: &str) -> Gateway {
    place.write("g.yaml", &format!("routes:\n{routes}"));
    Gateway::start(place, &["g.yaml"], &[])
}

#[test]
fn a_route_takes_the_host_the_path_and_the_methods_that_it_names() {
    let place = Place::new();
    let urls = ["host", "path", "methods", "rest"].map(|name| upstream(name.into()));
    let gateway = started(
        &place,
        &format!(
            "  - {{ host: a.example, upstreams: ['{}'] }}\n  - {{ path: /p, upstreams: ['{}'] }}\n\
             \x20 - {{ path: /m, methods: [PUT], upstreams: ['{}'] }}\n  - {{ path: /r, upstreams: ['{}'] }}\n",
            urls[0], urls[1], urls[2], urls[3]
        ),
    );
    let asked = |method: &str, path: &str, host: &str| {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        ask(&gateway.public, &request)
    };
    for (method, path, host, expected) in [
        ("GET", "/", "a.example", "host"),
        ("GET", "/p/q", "h", "path"),
        ("PUT", "/m", "h", "methods"),
        ("GET", "/r", "h", "rest"),
    ] {
        let answer = asked(method, path, host);
        assert!(answer.ends_with(expected), "{method} {host}{path}: {answer}");
    }
    let answer = asked("GET", "/m", "h");
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: PUT"), "{answer}");
    // Without a name a route is called by its number.
    assert_eq!(metric(&gateway, "millstream_gateway_answers_total{route=\"route-3\",class=\"2xx\"}"), 1.0);
}

#[test]
fn a_breaker_leaves_a_server_alone_that_fails() {
    let place = Place::new();
    let url = serve(|_| answered("503 Service Unavailable", "", ""));
    let gateway = started(
        &place,
        &format!(
            "  - {{ name: with, path: /with, breaker: true, upstreams: ['{url}'] }}\n  - {{ name: without, upstreams: ['{url}'] }}\n"
        ),
    );
    for path in ["/with", "/"] {
        for _ in 0..30 {
            assert!(get(&gateway.public, path).starts_with("HTTP/1.1 503 "));
        }
    }
    let healthy = |route: &str| {
        metric(
            &gateway,
            &format!("millstream_gateway_upstream_healthy{{route=\"{route}\",upstream=\"{url}\"}}"),
        )
    };
    assert_eq!((healthy("with"), healthy("without")), (0.0, 1.0));
}

/// A server whose health is asked for: each question is answered when the test says so.
struct Patient(TcpListener);

impl Patient {
    /// The next question, which comes when what the last answer changed has changed.
    fn asked(&self) -> (TcpStream, String) {
        let (mut stream, _) = self.0.accept().expect("accepted");
        stream.set_read_timeout(Some(LIMIT)).expect("a socket");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            assert!(stream.read(&mut byte).expect("read") > 0, "closed");
            head.push(byte[0]);
        }
        (stream, String::from_utf8(head).expect("text"))
    }
}

fn watched(place: &Place, health: &str) -> (Patient, Gateway, impl Fn(&Gateway) -> bool + use<>) {
    let patient = Patient(TcpListener::bind("127.0.0.1:0").expect("a port"));
    let url = format!("http://{}", patient.0.local_addr().expect("an address"));
    let gateway =
        started(place, &format!("  - {{ name: a, upstreams: ['{url}'], health: {{ {health} }} }}\n"));
    let well = move |gateway: &Gateway| {
        let series = format!("millstream_gateway_upstream_healthy{{route=\"a\",upstream=\"{url}\"}}");
        let shown = get(&gateway.admin, "/health");
        let well = metric(gateway, &series) == 1.0;
        assert_eq!(shown.contains("\"status\": \"ok\""), well, "{shown}");
        assert_eq!(shown.contains("\"status\": \"degraded\"") && shown.contains(&url), !well, "{shown}");
        well
    };
    (patient, gateway, well)
}

#[test]
fn a_server_is_asked_for_its_health_as_often_as_the_route_says_and_judged_by_as_many_answers() {
    let place = Place::new();
    let keys = "path: /healthz, period: 10ms, timeout: 30s, failures: 3, successes: 2";
    let (patient, gateway, well) = watched(&place, keys);
    let started = tokio::time::Instant::now();
    let (bad, good) = ("500 Oh", "200 OK");
    // Each answer, and whether the server counts as well after it.
    let answers = [
        (bad, true),
        (bad, true),
        (good, true),
        (bad, true),
        (bad, true),
        (bad, false),
        (good, false),
        (bad, false),
        (good, false),
        (good, true),
    ];
    let (mut stream, head) = patient.asked();
    assert!(head.starts_with("get /healthz ") || head.starts_with("GET /healthz "), "{head}");
    for (at, (status, expected)) in answers.into_iter().enumerate() {
        stream.write_all(&answered(status, "", "")).expect("written");
        stream = patient.asked().0;
        assert_eq!(well(&gateway), expected, "after answer {at}");
    }
    // By default ten periods are 50 s.
    assert!(started.elapsed() < Duration::from_secs(45), "{:?}", started.elapsed());
}

#[test]
fn a_server_that_does_not_say_in_time_how_it_is_is_not_well() {
    let place = Place::new();
    let (patient, gateway, well) = watched(&place, "timeout: 50ms, period: 10ms, failures: 1");
    let started = tokio::time::Instant::now();
    let mut unanswered: Vec<TcpStream> = (0..20).map(|_| patient.asked().0).collect();
    // By default each would have had 2 s.
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert!(!well(&gateway));
    unanswered.clear();
}

#[test]
fn texts_are_compressed_where_the_route_says_so() {
    let place = Place::new();
    let url = serve(|_| answered("200 OK", "Content-Type: text/plain\r\n", &"text ".repeat(1000)));
    let routes =
        format!("  - {{ path: /c, compress: true, upstreams: ['{url}'] }}\n  - {{ upstreams: ['{url}'] }}\n");
    let gateway = started(&place, &routes);
    let head = |path: &str| {
        let mut stream = connect(&gateway.public);
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("written");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer).split("\r\n\r\n").next().expect("a head").to_lowercase()
    };
    assert!(head("/c").contains("content-encoding: gzip"), "{}", head("/c"));
    assert!(!head("/").contains("content-encoding"), "{}", head("/"));
}

#[test]
fn a_larger_body_than_the_route_publishes_is_refused() {
    let place = Place::new();
    let gateway = started(&place, "  - { broker: 'memory:', publish: { queue: q, max: 4 } }\n");
    let post = |body: &str| {
        let head =
            format!("POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        ask(&gateway.public, &format!("{head}\r\n{body}"))
    };
    assert!(post("four").starts_with("HTTP/1.1 202 "));
    assert!(post("fives").starts_with("HTTP/1.1 413 "));
}

#[test]
fn a_stream_is_served_to_everybody_from_where_he_wants() {
    let place = Place::new();
    let url = format!("embedded:{}", place.path("state").display());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let broker =
            millstream_embedded::open(&url.parse::<BrokerUrl>().expect("a URL")).await.expect("a broker");
        broker.declare_stream(StreamSpec::new("s")).await.expect("a stream");
        broker.append("s", ["a", "b"].map(Message::new).to_vec()).await.expect("appended");
        broker.close().await.expect("closed");
    });
    let gateway = started(&place, &format!("  - {{ broker: '{url}', serve: {{ stream: s }} }}\n"));
    for (path, expected) in
        [("/?from=first", "id: 0\ndata: a\n\n"), ("/?last-event-id=0", "id: 1\ndata: b\n\n")]
    {
        let mut events = connect(&gateway.public);
        events.write_all(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).expect("written");
        let mut seen = String::new();
        while !seen.contains(expected) {
            let mut bytes = [0; 1024];
            let read = events.read(&mut bytes).expect("read");
            assert!(read > 0, "the events ended: {seen}");
            seen.push_str(std::str::from_utf8(&bytes[..read]).expect("text"));
        }
        assert_eq!(seen.matches("id: ").next(), Some("id: "), "{seen}");
    }
}

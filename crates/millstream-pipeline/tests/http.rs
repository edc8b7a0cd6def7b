//! Items by HTTP, in and out: replies wait for safety, refusals say why, tries are made again.

#![cfg(feature = "http")]

mod common;

use common::{BUFFERED, Bench, LONG, asked, until};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, rustls};

/// `curl -d` and its like declare what they do not mean.
#[tokio::test]
async fn a_client_that_says_nothing_of_the_body_is_understood() {
    let bench = Bench::new().await;
    let (port, run) = bench.listening(|port| source(port, "")).await;
    for declared in
        ["application/x-www-form-urlencoded", "text/plain; charset=utf-8", "application/octet-stream", ""]
    {
        for (body, count) in
            [("{\"n\":1}", 1), ("[1,2]", 2), ("{\"n\":1}\n{\"n\":2}\n", 2), ("{\n\"n\": [\n1]}\n", 1)]
        {
            let answer = post(port, "/items", declared, body).await;
            assert!(answer.contains(&format!("{{\"accepted\":{count}}}")), "{declared}: {body}: {answer}");
        }
    }
    run.shutdown(LONG).await.expect("a clean end");
}

#[tokio::test]
async fn a_fault_in_a_body_is_told_with_its_line() {
    let bench = Bench::new().await;
    let (port, run) = bench.listening(|port| source(port, "")).await;
    let pretty = "{\n  \"a\": nope\n}";
    for (declared, body, told) in [
        ("application/json", pretty, "line 2, column 9"),
        ("", pretty, "line 2, column 9"),
        ("", "{\"a\":1}\n{\"a\": nope}\n", "line 2, column 8"),
        ("application/x-ndjson", "{\"a\":1}\n{\"a\": nope}\n", "line 2, column 8"),
        ("", "{\"a\": nope}", "at column 8"),
    ] {
        let answer = post(port, "/items", declared, body).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains(told), "{declared}: {body}: {answer}");
    }
    run.shutdown(LONG).await.expect("a clean end");
}

async fn post(port: u16, path: &str, content_type: &str, body: &str) -> String {
    asked(port, &format!("POST {path}"), content_type, body).await
}

fn source(port: u16, more: &str) -> String {
    format!(
        "source: {{ http: {{ listen: \"127.0.0.1:{port}\", path: /items{more} }} }}\nbatch: {{ count: 1 }}\noutput: {{ file: {{ path: out.ndjson }} }}"
    )
}

#[tokio::test]
async fn one_item_an_array_or_lines_are_accepted_and_safe_when_answered() {
    for buffer in ["", BUFFERED] {
        let bench = Bench::new().await;
        let (port, run) = bench.listening(|port| format!("{}\n{buffer}", source(port, ""))).await;
        let json = "application/json";
        for (content_type, body, count) in [
            (json, "{\"n\":1}", 1),
            ("application/json; charset=utf-8", "[{\"n\":2},{\"n\":3}]", 2),
            ("application/x-ndjson", "{\"n\":4}\n\n{\"n\":5}\n", 2),
            (json, "[]", 0),
            (json, "\u{feff}[]", 0),
            ("text/plain\r\nContent-Encoding: identity", "\u{feff}[]", 0),
        ] {
            let answer = post(port, "/items", content_type, body).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.contains(&format!("{{\"accepted\":{count}}}")), "{answer}");
        }
        if !buffer.is_empty() {
            until(&run, 5).await;
        }
        assert_eq!(run.report().ledger.completed, 5, "an answer without a buffer waits for the output");
        run.shutdown(LONG).await.expect("a clean end");
        assert_eq!(bench.read("out.ndjson").lines().count(), 5);
    }
}

#[tokio::test]
async fn what_cannot_be_accepted_is_refused_whole_with_its_reason() {
    let bench = Bench::new().await;
    let (port, run) = bench.listening(|port| source(port, ", max_body: 100B, max_pending: 2")).await;
    let (json, lines) = ("application/json", "application/x-ndjson");
    let long = format!("\"{}\"", "x".repeat(200));
    for (path, content_type, body, status, part) in [
        ("/items", json, "{\"a\":", "400", "not JSON"),
        ("/items", lines, "{\"a\":1}\n{oops}\n", "400", "line 2, column 2"),
        ("/items", json, "\"\u{1}\"", "400", "not JSON"),
        ("/items", "application/xml", "<x/>", "415", "application/x-ndjson"),
        ("/items", "application/json\r\nContent-Encoding: gzip", "{}", "415", "without `Content-Encoding`"),
        ("/items", "application/json\r\nContent-Encoding: zstd", "{}", "415", "accept-encoding: identity"),
        ("/items", "text/plain\r\nOrigin: http://elsewhere", "{}", "415", "application/json"),
        ("/items", "text/plain", "x", "400", "not JSON"),
        ("/items", "text/plain", "", "400", "not JSON"),
        ("/items", "text/plain", "{\"a\":1}\n{oops}\n", "400", "line 2, column 2"),
        ("/items", json, long.as_str(), "413", "larger than 100 bytes"),
        ("/items", json, "[1,2,3]", "413", "`max_pending` allows 2"),
        ("/other", json, "1", "404", ""),
    ] {
        let answer = post(port, path, content_type, body).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(part),
            "{body}: {answer}"
        );
    }
    for body in ["ZZ\r\n[1]\r\n0\r\n\r\n", "3\r\n[1]oops"] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
        let head = "POST /items HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(format!("{head}{body}").as_bytes()).await.expect("sent");
        let mut answer = [0; 1024];
        let count = stream.read(&mut answer).await.expect("an answer");
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("nothing of it was accepted"),
            "{answer}"
        );
    }
    let report = run.shutdown(LONG).await.expect("a clean end");
    assert_eq!(report.ledger.received, 0, "nothing of a refused request was accepted");
}

#[tokio::test]
async fn a_full_source_says_when_to_come_back() {
    let bench = Bench::new().await;
    // Nothing is settled before the batch has filled or is old, so accepted items stay pending.
    let yaml = |port| source(port, ", max_pending: 2").replace("count: 1", "count: 2, age: 1h");
    let (port, run) = bench.listening(yaml).await;
    let first = tokio::spawn(async move { post(port, "/items", "application/json", "1").await });
    while run.report().ledger.received < 1 {
        tokio::task::yield_now().await;
    }
    let answer = post(port, "/items", "application/json", "[2,3]").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    let report = run.shutdown(LONG).await.expect("a clean end");
    assert_eq!(report.ledger.completed, 1, "what was accepted is finished");
    assert!(first.await.expect("an answer").starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let bench = Bench::new().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let error = bench.try_run(&source(port, "")).await.expect_err("the port is taken").to_string();
    assert!(error.contains(&format!("127.0.0.1:{port}; is the port taken?")), "{error}");
}

/// Reads one request, keeps it, and gives this answer.
async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: String,
    kept: Arc<Mutex<Vec<String>>>,
) {
    let mut request = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).await.expect("a request");
        request.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.to_lowercase().split("content-length: ").nth(1).map(|rest| {
            rest.split("\r\n").next().and_then(|length| length.parse::<usize>().ok()).expect("a length")
        });
        if body.len() >= length.unwrap_or(0) {
            kept.lock().expect("the list").push(text);
            break;
        }
    }
    if answer == "hang" {
        std::future::pending::<()>().await;
    }
    let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nwords");
    stream.write_all(answer.as_bytes()).await.expect("answered");
    // A client that has its answer may be gone already.
    let _ = stream.shutdown().await;
}

type Server = (u16, Arc<Mutex<Vec<String>>>, JoinHandle<()>);

/// A server that gives these answers, one a request, and keeps what it was sent.
async fn server(answers: &[&str]) -> Server {
    server_behind(answers, None).await
}

async fn server_behind(answers: &[&str], tls: Option<TlsAcceptor>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let answers: Vec<String> = answers.iter().map(|answer| (*answer).to_owned()).collect();
    let kept = seen.clone();
    let task = tokio::spawn(async move {
        for answer in answers {
            let (stream, _) = listener.accept().await.expect("a connection");
            match &tls {
                None => serve(stream, answer, kept.clone()).await,
                Some(tls) => {
                    // A client that does not trust us goes away at once.
                    let Ok(stream) = tls.accept(stream).await else { continue };
                    serve(stream, answer, kept.clone()).await;
                }
            }
        }
    });
    (port, seen, task)
}

/// A server's side of TLS for `localhost`, and the certificate that a client must trust.
fn tls() -> (TlsAcceptor, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let key = made.signing_key.serialize_der().try_into().expect("a key");
    let config = versions.expect("versions").with_no_client_auth();
    let config = config.with_single_cert(vec![made.cert.der().clone()], key).expect("a key that fits");
    (TlsAcceptor::from(Arc::new(config)), made.cert.pem())
}

fn sink(port: u16, more: &str, rest: &str) -> String {
    format!(
        "source: {{ generate: {{ count: 4 }} }}\nbatch: {{ count: 2 }}\noutput: {{ http: {{ url: \"http://127.0.0.1:{port}/in\"{more} }} }}\n{rest}"
    )
}

fn bodies(seen: &Mutex<Vec<String>>) -> Vec<String> {
    let seen = seen.lock().expect("the list");
    seen.iter().map(|request| request.split_once("\r\n\r\n").expect("a body").1.to_owned()).collect()
}

#[tokio::test]
async fn each_batch_is_one_post_in_either_format() {
    let bench = Bench::new().await;
    let (port, seen, _server) = server(&["200 OK", "204 No Content"]).await;
    bench.run(&sink(port, ", headers: { X-Key: secret }", "")).await;
    assert_eq!(bodies(&seen), ["[{\"n\":0},{\"n\":1}]", "[{\"n\":2},{\"n\":3}]"]);
    let head = seen.lock().expect("the list")[0].to_lowercase();
    assert!(head.contains("x-key: secret") && head.contains("content-type: application/json"), "{head}");
    let (port, seen, _server) = server(&["200 OK", "200 OK"]).await;
    bench.run(&sink(port, ", format: ndjson", "")).await;
    assert_eq!(bodies(&seen), ["{\"n\":0}\n{\"n\":1}\n", "{\"n\":2}\n{\"n\":3}\n"]);
}

#[tokio::test]
async fn https_is_spoken_with_whom_the_system_or_the_file_trusts() {
    let bench = Bench::new().await;
    let (acceptor, certificate) = tls();
    bench.write("ca.pem", certificate);
    let (port, seen, _server) = server_behind(&["200 OK", "200 OK"], Some(acceptor.clone())).await;
    let secure = |port, more: &str| sink(port, more, "").replace("http://127.0.0.1", "https://localhost");
    bench.run(&secure(port, ", ca: ca.pem")).await;
    assert_eq!(bodies(&seen), ["[{\"n\":0},{\"n\":1}]", "[{\"n\":2},{\"n\":3}]"]);
    let (port, seen, _server) = server_behind(&["200 OK"], Some(acceptor)).await;
    let error = bench.try_run(&secure(port, "")).await.expect_err("a stranger").to_string();
    assert!(error.contains("has signed the certificate") && error.contains("`output.http.ca`"), "{error}");
    assert!(bodies(&seen).is_empty(), "nothing was told to a stranger");
    bench.write("ca.pem", "no certificate");
    let error = bench.try_run(&secure(port, ", ca: ca.pem")).await.expect_err("no certificate").to_string();
    assert!(error.contains("ca.pem: it has no certificate; name a PEM file"), "{error}");
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_may_not_is_not() {
    let bench = Bench::new().await;
    let retry = "on_error: { retry: { attempts: 3, backoff: 1ms, then: skip } }";
    let (port, seen, _server) =
        server(&["503 Busy", "429 Slow\r\nRetry-After: 0", "200 OK", "400 Bad"]).await;
    let report = bench.run(&sink(port, "", retry)).await;
    assert_eq!((report.ledger.completed, report.dropped()["errors"]), (2, 2), "{report:?}");
    assert_eq!(bodies(&seen).len(), 4, "a 400 is not tried again");
    assert!(report.errors[0].reason.contains("answered 400 Bad Request: words"), "{:?}", report.errors);
}

#[tokio::test]
async fn a_refused_batch_fails_the_run_or_becomes_dead_letters() {
    let bench = Bench::new().await;
    let (port, _, _server) = server(&["500 Oh"]).await;
    let error = bench.try_run(&sink(port, "", "")).await.expect_err("a refusal").to_string();
    assert!(error.contains("output `http`") && error.contains("answered 500"), "{error}");
    for buffer in ["", BUFFERED] {
        let (port, _, _server) = server(&["200 OK", "500 Oh", "500 Oh"]).await;
        let letters = "on_error: { retry: { attempts: 2, backoff: 1ms, then: { dead_letter: { queue: dead, broker: \"embedded:s\" } } } }";
        let report = bench.run(&format!("{}\n{buffer}", sink(port, "", letters))).await;
        assert_eq!((report.ledger.completed, report.ledger.dead), (2, 2));
        assert_eq!(bench.bodies("dead").await, ["{\"n\":2}", "{\"n\":3}"]);
        bench.broker.purge("dead").await.expect("the queue");
    }
}

#[tokio::test]
async fn a_refused_batch_is_skipped_like_every_other_error() {
    let bench = Bench::new().await;
    for buffer in ["", BUFFERED] {
        let (port, _, _server) = server(&["200 OK", "400 No"]).await;
        let report = bench.run(&format!("{}\n{buffer}", sink(port, "", "on_error: skip"))).await;
        assert_eq!((report.ledger.completed, report.ledger.dead), (2, 0));
        assert_eq!(report.dropped()["errors"], 2);
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_in_time_is_given_up() {
    let bench = Bench::new().await;
    let (port, _, _server) = server(&["hang"]).await;
    let error = bench.try_run(&sink(port, ", timeout: 50ms", "")).await.expect_err("no answer").to_string();
    assert!(error.contains("did not answer within 50ms, which is `output.http.timeout`"), "{error}");
    assert!(error.contains("; `on_error.retry` would try again"), "{error}");
}

#[tokio::test]
async fn why_nobody_answers_is_told_in_one_sentence() {
    let bench = Bench::new().await;
    let (port, _silent) = common::silent_port();
    let error = bench.try_run(&sink(port, "", "")).await.expect_err("nobody listens").to_string();
    let told = format!("nothing listens at http://127.0.0.1:{port}/in; is the server running");
    assert!(error.contains(&told) && !error.contains("os error"), "{error}");
    let yaml = sink(port, "", "on_error: { retry: { attempts: 2, backoff: 1ms } }");
    let error = bench.try_run(&yaml).await.expect_err("nobody listens").to_string();
    assert!(error.contains("; that was try 2, the last"), "{error}");
    let nowhere = sink(port, "", "").replace("127.0.0.1", "nowhere.invalid");
    let error = bench.try_run(&nowhere).await.expect_err("there is no such host").to_string();
    assert!(error.contains(&format!("the host of http://nowhere.invalid:{port}/in is not known")), "{error}");
    let plain = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = plain.local_addr().expect("an address").port();
    let _server = tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.expect("a connection");
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("it is read");
        stream
    });
    let error = bench
        .try_run(&sink(port, "", "").replace("http:/", "https:/"))
        .await
        .expect_err("no TLS")
        .to_string();
    assert!(error.contains("does not answer by TLS; is it `http://`?"), "{error}");
}

#[tokio::test]
async fn a_password_of_the_url_is_sent_and_never_shown() {
    let bench = Bench::new().await;
    let (port, seen, _server) = server(&["200 OK", "400 No", "hang"]).await;
    let with_password =
        |port| sink(port, ", timeout: 50ms", "on_error: skip").replace("http://", "http://user:hunter2@");
    let yaml = with_password(port);
    let graph = bench.pipeline(&yaml).graph();
    assert!(graph.contains("POST") && !graph.contains("hunter2"), "{graph}");
    let mut told = bench.run(&yaml).await.errors;
    let head = seen.lock().expect("the list")[0].to_lowercase();
    assert!(head.contains("authorization: basic dxnlcjpodw50zxiy"), "{head}");
    told.extend(bench.run(&yaml).await.errors);
    let (port, _silent) = common::silent_port();
    told.extend(bench.run(&with_password(port)).await.errors);
    for part in ["answered 400", "did not answer within", "nothing listens at"] {
        let reason = told.iter().map(|error| &error.reason).find(|reason| reason.contains(part));
        let reason = reason.unwrap_or_else(|| panic!("{part} is not among {told:?}"));
        assert!(reason.contains("http://***@127.0.0.1") && !reason.contains("hunter2"), "{reason}");
    }
}

#[tokio::test]
async fn a_redirect_names_the_url_to_write_instead() {
    let bench = Bench::new().await;
    let (port, _, _server) = server(&["302 Found\r\nLocation: https://user:hunter2@elsewhere/in"]).await;
    let error = bench.try_run(&sink(port, "", "")).await.expect_err("a redirect").to_string();
    assert!(error.contains("answered 302 Found"), "{error}");
    assert!(error.contains("write https://***@elsewhere/in in `output.http.url`"), "{error}");
}

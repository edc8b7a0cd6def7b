//! Clients that others have written: curl, and h2load of nghttp2. `cargo xtask test needs` installs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use futures_util::stream;
use http::{HeaderName, Request, Response};
use millstream_gateway::{Body, BodyError, Gateway, Route, Server, Settings, server_tls};

/// Runs a program for at most a minute, and gives what it says.
async fn run(program: &'static str, arguments: Vec<String>, input: Option<PathBuf>) -> Output {
    let run = move || {
        let input =
            input.map_or(Stdio::null(), |path| fs::File::open(path).expect("the input is there").into());
        let mut command = Command::new("timeout");
        command.arg("60").arg(program).args(&arguments).stdin(input);
        let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
        assert_ne!(
            output.status.code(),
            Some(127),
            "{program} is missing; `cargo xtask test needs` installs it"
        );
        assert_ne!(output.status.code(), Some(124), "{program} {arguments:?} was not done in a minute");
        output
    };
    tokio::task::spawn_blocking(run).await.expect("it does not panic")
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Answers a request with its body, and what asks for something broken with a body that breaks off.
async fn echo(request: Request<Body>) -> Response<Body> {
    if request.uri().path() == "/broken" {
        let parts = [Ok("begun".into()), Err(BodyError::new("the disk is gone"))];
        return Response::new(Body::from_stream(stream::iter(parts)));
    }
    let range = request.headers().get("range").cloned();
    let mut response = Response::new(request.into_body());
    response.headers_mut().extend(range.map(|range| (HeaderName::from_static("x-range"), range)));
    response
}

/// Gateways before one server: in the clear and by TLS, each in front of HTTP/1.1 and of HTTP/2.
struct Places {
    directory: tempfile::TempDir,
    certificate: PathBuf,
    servers: Vec<(String, Server)>,
    _upstream: Server,
}

async fn places() -> Places {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let directory = tempfile::tempdir().expect("a directory");
    let (certificate, key) = (directory.path().join("c.pem"), directory.path().join("k.pem"));
    fs::write(&certificate, made.cert.pem()).expect("written");
    fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let any = "127.0.0.1:0".parse().expect("an address");
    let upstream = Gateway::new(Settings::default())
        .route(Route::handler("echo", echo))
        .listen(any)
        .await
        .expect("a port");
    let mut servers = Vec::new();
    for to in ["http", "h2c"] {
        for secure in [false, true] {
            let url = format!("{to}://{}", upstream.local_addr()).parse().expect("a URL");
            let mut gateway = Gateway::new(Settings::default()).route(Route::proxy("up", [url]));
            if secure {
                gateway = gateway.tls(server_tls(&certificate, &key).expect("TLS"));
            }
            let server = gateway.listen(any).await.expect("a port");
            let scheme = if secure { "https" } else { "http" };
            servers.push((format!("{scheme}://localhost:{}", server.local_addr().port()), server));
        }
    }
    Places { directory, certificate, servers, _upstream: upstream }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_sends_and_gets_whole_bodies_and_is_told_of_broken_ones() {
    let places = places().await;
    let at = |name: &str| places.directory.path().join(name);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    fs::write(at("sent"), &bytes).expect("written");
    for (url, _) in &places.servers {
        let protocols = if url.starts_with("https") {
            ["--http1.1", "--http2"]
        } else {
            ["--http1.1", "--http2-prior-knowledge"]
        };
        for protocol in protocols {
            let curl = |more: &[&str]| {
                let mut all = strings(&["--silent", "--show-error", "--fail", protocol, "--cacert"]);
                all.push(path(&places.certificate));
                all.extend(strings(more));
                all
            };
            let got = at("got");
            // A length and `Expect: 100-continue`; then a body whose length nobody knows.
            for (file, input) in [(path(&at("sent")), None), ("-".to_owned(), Some(at("sent")))] {
                let words = ["--upload-file", &file, "--output", &path(&got), &format!("{url}/echo")];
                let said = run("curl", curl(&words), input).await;
                assert!(said.status.success(), "{url} {protocol}: {said:?}");
                assert!(
                    fs::read(&got).expect("written") == bytes,
                    "{url} {protocol}: another body came back"
                );
                fs::remove_file(&got).expect("removed");
            }
            let headers = run("curl", curl(&["--head", "--range", "5-9", url]), None).await;
            let headers = String::from_utf8_lossy(&headers.stdout).into_owned();
            let version = if protocol == "--http1.1" { "HTTP/1.1 200" } else { "HTTP/2 200" };
            assert!(headers.starts_with(version), "{url} {protocol}: {headers}");
            assert!(headers.contains("x-range: bytes=5-9"), "{url} {protocol}: {headers}");

            // 18: the body is not whole; 56: the connection was reset; 92: the stream was; 22: the server's stream was, before
            // its answer was seen, and the gateway says 502.
            let broken = run("curl", curl(&["--output", &path(&got), &format!("{url}/broken")]), None).await;
            let code = broken.status.code().unwrap_or_default();
            assert!([18, 22, 56, 92].contains(&code), "{url} {protocol}: {broken:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http_2_load_tool_gets_an_answer_for_every_one_of_its_streams() {
    let places = places().await;
    let body = places.directory.path().join("body");
    fs::write(&body, vec![b'x'; 20_000]).expect("written");
    for (url, server) in &places.servers {
        for sends in [false, true] {
            let mut words =
                strings(&["--requests", "2000", "--clients", "10", "--max-concurrent-streams", "20"]);
            if sends {
                words.extend(["--data".to_owned(), path(&body)]);
            }
            words.push(format!("{url}/echo"));
            let said = run("h2load", words, None).await;
            let text = String::from_utf8_lossy(&said.stdout).into_owned();
            let all = "2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout";
            assert!(text.contains(all), "{url}: {text}");
            assert!(text.contains("status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{url}: {text}");
        }
        let streams = server.snapshot().streams;
        let came = 2000 * 20_000;
        assert_eq!((streams[0].bytes, streams[1].bytes), (came, came), "{url}");
        assert!(server.snapshot().refused.values().all(|count| *count == 0), "{url}");
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

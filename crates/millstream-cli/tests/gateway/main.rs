//! `millstream gateway` as a user starts it.

mod ends;
mod process;
mod reloading;
mod routes;
mod settings;
#[path = "../support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::TcpListener;

use process::*;
use support::{Place, ended};

#[test]
fn it_streams_to_the_upstream_and_ends_by_a_signal() {
    let place = Place::new();
    let url = upstream(vec![b'x'; 1 << 20]);
    let gateway = Gateway::start(&place, &["--upstream", &url], &[]);
    let answer = get(&gateway.public, "/");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("xxx"), "{}", &answer[..200]);
    assert!(get(&gateway.public, "/metrics").ends_with("xxx"), "the public address shows metrics");
    assert!(
        metric(&gateway, "millstream_gateway_stream_bytes_total{route=\"all\",direction=\"response\"}")
            >= 2e6
    );
    assert_eq!(gateway.stop(), Some(143));
}

#[test]
fn the_variables_of_the_original_have_their_effect() {
    let place = Place::new();
    let url = upstream(vec![b'x'; 1 << 20]);
    let variables = [("STREAM_RESPONSE_CHUNK_SIZE", "4096"), ("STREAM_BUFFER_POOL_ENABLED", "false")];
    let gateway = Gateway::start(&place, &["--upstream", &url], &variables);
    get(&gateway.public, "/");
    let chunks =
        metric(&gateway, "millstream_gateway_stream_chunks_total{route=\"all\",direction=\"response\"}");
    // What comes with the head is one, and may be larger. Of the usual size they would be sixteen.
    assert!(chunks >= 250.0, "{chunks}");
    assert_eq!(metric(&gateway, "millstream_gateway_pool_enabled"), 0.0);
    assert_eq!(metric(&gateway, "millstream_gateway_pool_hits_total{size=\"4096\"}"), 0.0);
    gateway.stop();

    let gateway = Gateway::start(&place, &["--upstream", &url], &[("STREAM_REQUEST_CHUNK_SIZE", "1000")]);
    let body = "y".repeat(20_000);
    let head =
        format!("POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    ask(&gateway.public, &format!("{head}{body}"));
    let chunks =
        metric(&gateway, "millstream_gateway_stream_chunks_total{route=\"all\",direction=\"request\"}");
    // The first comes with the head, the others by themselves.
    assert!(chunks >= 4.0, "{chunks}");
    gateway.stop();
}

#[test]
fn a_file_may_lead_into_a_queue_and_out_of_it() {
    let place = Place::new();
    // What is not there is made: nobody else could, while the directory is the gateway's.
    place.write(
        "g.yaml",
        "routes:\n  - { path: /in, broker: 'embedded:state', publish: { queue: q } }\n\
         \x20 - { path: /out, broker: 'embedded:state', serve: { queue: q } }\n",
    );
    let gateway = Gateway::start(&place, &["g.yaml"], &[]);
    let post = "POST /in HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";
    assert!(ask(&gateway.public, post).starts_with("HTTP/1.1 202 "));
    let mut events = connect(&gateway.public);
    events.write_all(b"GET /out HTTP/1.1\r\nHost: h\r\n\r\n").expect("written");
    let mut seen = String::new();
    while !seen.contains("data: hello\n\n") {
        let mut bytes = [0; 1024];
        let read = events.read(&mut bytes).expect("read");
        assert!(read > 0, "the events ended: {seen}");
        seen.push_str(std::str::from_utf8(&bytes[..read]).expect("text"));
    }
    drop(events);
    assert_eq!(gateway.stop(), Some(143));
}

#[test]
fn the_configuration_is_printed_with_where_it_comes_from() {
    let place = Place::new();
    place.write("g.yaml", "response:\n  chunk: 64KiB\n");
    let run = place.run(&["gateway", "g.yaml", "--print-config", "--set", "limits.connections=7"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.out.contains("  chunk: 64KiB  # file g.yaml\n"), "{}", run.out);
    assert!(run.out.contains("  connections: 7  # flag --set limits.connections=7\n"), "{}", run.out);
    let run = place.run(&["gateway", "g.yaml"]);
    assert!(run.code == Some(2) && run.err.contains("leads nowhere"), "{}", run.err);
    for (file, told) in [
        ("tls: { certificates: c.pem }\n", "`tls.certificates` and `tls.key` go together"),
        ("routes: [ { path: /a } ]\n", "g.yaml:1:19: `routes.0` leads nowhere"),
    ] {
        place.write("g.yaml", file);
        let run = place.run(&["gateway", "g.yaml", "--print-config"]);
        assert!(run.code == Some(2) && run.err.contains(told), "{}", run.err);
    }
}

#[test]
fn what_is_wrong_at_the_start_comes_with_its_remedy() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let upstream = ["gateway", "--upstream", "http://127.0.0.1:1"];
    for arguments in [&["--listen", &address][..], &["--listen", "localhost:0", "--admin", &address]] {
        let run = place.run(&[&upstream[..], arguments].concat());
        let remedy = "another process listens on 127.0.0.1:";
        assert!(run.code == Some(1) && run.err.contains(remedy), "{arguments:?}: {}", run.err);
    }
    let run = place.run(&["gateway"]);
    assert!(run.code == Some(2) && run.err.contains("give `--upstream"), "{}", run.err);
    let mut misspelt = place.command(&upstream);
    let run = ended(misspelt.env("MILLSTREAM_GATEWAY_LISTN", "1").spawn().expect("the binary starts"));
    let hint = "MILLSTREAM_GATEWAY_LISTN sets nothing; did you mean MILLSTREAM_GATEWAY_LISTEN?";
    assert!(run.code == Some(2) && run.err.contains(hint), "{}", run.err);
}

#[test]
fn routes_that_could_not_be_told_apart_are_refused_with_the_remedy() {
    let place = Place::new();
    place.write(
        "g.yaml",
        "upstream: http://h:1\nroutes:\n  - { name: all, path: /a, upstreams: [http://h:2] }\n",
    );
    let run = place.run(&["gateway", "g.yaml", "--listen", "127.0.0.1:0"]);
    assert_eq!(run.code, Some(2), "{}", run.err);
    assert!(
        run.err.contains("the name `all` is taken already; give each route a name of its own"),
        "{}",
        run.err
    );
}

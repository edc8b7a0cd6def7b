//! How a gateway ends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::process::*;
use crate::support::Place;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";

/// A gateway with one exchange under way: its client, and the upstream that has been asked.
fn under_way(place: &Place, drain: &str) -> (Gateway, TcpStream, TcpStream) {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", upstream.local_addr().expect("an address"));
    let gateway = Gateway::start(place, &["--upstream", &url, "--drain", drain], &[]);
    let mut client = connect(&gateway.public);
    client.write_all(GET).expect("written");
    let (mut up, _) = upstream.accept().expect("accepted");
    up.set_read_timeout(Some(LIMIT)).expect("a socket");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert!(up.read(&mut byte).expect("read") > 0, "closed");
        head.push(byte[0]);
    }
    (gateway, client, up)
}

#[test]
fn what_was_accepted_is_finished_before_it_ends() {
    let place = Place::new();
    let (mut gateway, mut client, mut up) = under_way(&place, "10m");
    gateway.signal();
    assert!(gateway.says("finishing what was accepted").contains("for at most 10m"));
    up.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").expect("written");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer, and the end");
    assert!(answer.ends_with("hello"), "{answer}");
    let (code, lines) = gateway.end();
    assert_eq!(code, Some(143));
    assert!(!lines.iter().any(|line| line.contains("broken off")), "{lines:?}");
}

#[test]
fn what_does_not_end_in_time_is_broken_off_and_said_so() {
    let place = Place::new();
    let (gateway, mut client, _up) = under_way(&place, "100ms");
    gateway.signal();
    let (code, lines) = gateway.end();
    assert_eq!(code, Some(143));
    assert!(lines.iter().any(|line| line == "1 connections were broken off"), "{lines:?}");
    let mut answer = Vec::new();
    // A reset says the same.
    let _ = client.read_to_end(&mut answer);
    assert!(answer.is_empty());
}

#[test]
fn a_second_signal_stops_at_once() {
    let place = Place::new();
    let (mut gateway, _client, _up) = under_way(&place, "10m");
    gateway.signal();
    gateway.says("finishing what was accepted");
    gateway.signal();
    // The test gives up long before ten minutes.
    assert_eq!(gateway.end().0, Some(143));
}

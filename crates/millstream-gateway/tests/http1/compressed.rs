//! Answers that are compressed on their way.

use std::io::Read;

use millstream_gateway::{Route, Settings};

use crate::support::*;

/// A gateway that compresses.
async fn compressing() -> Scene {
    scene_with(Settings::default(), Route::compress).await
}

fn accepting(coding: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: h\r\nAccept-Encoding: {coding}\r\n\r\n")
}

#[tokio::test]
async fn a_text_is_compressed_for_who_accepts_it_a_chunk_at_a_time() {
    let scene = compressing().await;
    for coding in ["zstd", "gzip"] {
        let (mut client, mut up, _) = scene.asked(&accepting(coding)).await;
        up.send(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nETag: \"1\"\r\nConnection: close\r\n\r\n",
        )
        .await;
        let head = client.head().await;
        assert!(
            head.contains(&format!("content-encoding: {coding}")) && head.contains("etag: W/\"1\""),
            "{head}"
        );
        assert!(
            head.contains("vary: accept-encoding") && head.contains("transfer-encoding: chunked"),
            "{head}"
        );
        let mut compressed = Vec::new();
        for event in ["data: one\n\n", "data: two\n\n"] {
            up.send(event).await;
            let size = usize::from_str_radix(client.until("\r\n").await.trim(), 16).expect("a chunk");
            compressed.extend(client.bytes(size + 2).await.split_at(size).0);
            // What has come can be read before the rest.
            let mut text = vec![0; event.len() * if event.contains("two") { 2 } else { 1 }];
            match coding {
                "gzip" => flate2::read::GzDecoder::new(&compressed[..]).read_exact(&mut text),
                _ => zstd::stream::read::Decoder::new(&compressed[..]).expect("zstd").read_exact(&mut text),
            }
            .expect("all of it");
            assert!(text.ends_with(event.as_bytes()));
        }
        drop(up);
        client.until("0\r\n\r\n").await;
    }
}

#[tokio::test]
async fn what_is_no_text_or_compressed_or_a_part_goes_through_as_it_is() {
    let scene = compressing().await;
    let body = "x".repeat(1000);
    for (accepts, answer) in [
        ("gzip", "200 OK\r\nContent-Type: image/png"),
        ("gzip", "200 OK\r\nContent-Type: text/html\r\nContent-Encoding: br"),
        ("gzip", "200 OK\r\nContent-Type: text/html\r\nCache-Control: no-transform"),
        ("gzip", "206 Partial Content\r\nContent-Type: text/html\r\nContent-Range: bytes 0-999/2000"),
        ("identity", "200 OK\r\nContent-Type: text/html"),
    ] {
        let (mut client, mut up, _) = scene.asked(&accepting(accepts)).await;
        up.send(format!("HTTP/1.1 {answer}\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n{body}"))
            .await;
        assert!(client.head().await.contains("content-length: 1000"), "{answer}");
        assert_eq!(client.bytes(1000).await, body.as_bytes());
    }
}

#[tokio::test]
async fn what_would_be_compressed_for_others_says_so() {
    let scene = compressing().await;
    for (method, accepts, coding) in
        [("GET", "identity", None), ("HEAD", "identity", None), ("HEAD", "gzip", Some("gzip"))]
    {
        for kind in ["text/html", "image/png"] {
            let request = accepting(accepts).replace("GET", method);
            let (mut client, mut up, _) = scene.asked(&request).await;
            let body = if method == "GET" { "x".repeat(1000) } else { String::new() };
            up.send(format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n{body}"))
                .await;
            let head = client.head().await;
            let text = kind == "text/html";
            assert_eq!(head.contains("vary: accept-encoding"), text, "{method}, {accepts}: {head}");
            assert_eq!(head.contains("content-encoding: gzip"), text && coding.is_some(), "{head}");
            assert_eq!(head.contains("content-length: 1000"), !text || coding.is_none(), "{head}");
            // No body follows an answer to HEAD.
            drop(up);
            assert_eq!(client.bytes(body.len()).await, body.as_bytes());
            if method == "HEAD" {
                client.send("nonsense\r\n\r\n").await;
                assert_eq!(status(&client.head().await), 400);
            }
        }
    }
}

#[tokio::test]
async fn what_says_which_bytes_a_body_has_does_not_go_with_others() {
    let scene = compressing().await;
    let digests = "Content-MD5: a\r\nDigest: b\r\nContent-Digest: c\r\nRepr-Digest: d\r\nETag: \"1\"\r\n";
    let body = "x".repeat(300);
    let whole = format!("200 OK\r\nContent-Type: text/plain\r\n{digests}Content-Length: 300\r\n\r\n{body}");
    let not_modified = "304 Not Modified\r\nETag: \"1\"\r\n\r\n".to_owned();
    for (accepts, answer, digest, tag) in [
        ("gzip", &whole, false, "W/\"1\""),
        ("br", &whole, true, "\"1\""),
        // Of the body that the client has, which was compressed if this one would be.
        ("gzip", &not_modified, false, "W/\"1\""),
        ("br", &not_modified, false, "\"1\""),
    ] {
        let (mut client, mut up, _) = scene.asked(&accepting(accepts)).await;
        up.send(format!("HTTP/1.1 {answer}")).await;
        drop(up);
        let head = client.head().await;
        assert_eq!(head.contains("digest: ") && head.contains("content-md5: "), digest, "{accepts}: {head}");
        assert!(head.contains(&format!("etag: {tag}\r\n")), "{accepts}: {head}");
        assert!(head.contains("vary: accept-encoding\r\n"), "{accepts}: {head}");
    }
}

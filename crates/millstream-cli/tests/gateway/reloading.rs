//! SIGHUP: the configuration is read again while the gateway runs.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::process::*;
use crate::support::Place;

/// Writes the file and asks for it to be read; what is said of that.
fn reloaded(place: &Place, gateway: &mut Gateway, file: &str) -> String {
    place.write("g.yaml", file);
    gateway.hang_up();
    gateway.says_any(&["reloaded", "not reloaded"])
}

const IN_FORCE: &str = "reloaded: the configuration is in force";

fn leads_to(url: &str) -> String {
    format!("upstream: '{url}'\n")
}

#[test]
fn a_file_that_changed_is_in_force_without_a_dropped_connection() {
    let place = Place::new();
    let (old, new) = (upstream(b"from the old".to_vec()), upstream(b"from the new".to_vec()));
    place.write("g.yaml", &leads_to(&old));
    let mut gateway = Gateway::start(&place, &["g.yaml", "--set", "limits.streams=7"], &[]);
    let mut kept = connect(&gateway.public);
    let mut asks = |expected: &str| {
        kept.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").expect("written");
        let mut seen = Vec::new();
        while !seen.ends_with(expected.as_bytes()) {
            let mut bytes = [0; 1024];
            let read = kept.read(&mut bytes).expect("read");
            assert!(read > 0, "closed: {}", String::from_utf8_lossy(&seen));
            seen.extend(&bytes[..read]);
        }
    };
    asks("from the old");
    let file = leads_to(&new) + "limits: { streams: 8, header: 32KiB }\n";
    assert_eq!(reloaded(&place, &mut gateway, &file), IN_FORCE);
    asks("from the new");
    let shown = get(&gateway.admin, "/config");
    // Flags keep the last word.
    assert!(
        shown.contains("  header: 32KiB  # file g.yaml\n") && shown.contains("streams: 7  # flag"),
        "{shown}"
    );
    assert_eq!(metric(&gateway, "millstream_gateway_connections_total"), 1.0);
    assert_eq!(metric(&gateway, "millstream_gateway_reloads_total{outcome=\"applied\"}"), 1.0);
    assert_eq!(gateway.stop(), Some(143));
}

#[test]
fn a_file_that_is_wrong_changes_nothing_and_is_told_as_at_the_start() {
    let place = Place::new();
    let url = upstream(b"as before".to_vec());
    let well = leads_to(&url) + "limits: { streams: 7 }\n";
    place.write("g.yaml", &well);
    let mut gateway = Gateway::start(&place, &["g.yaml"], &[]);
    let mut refused = 0.0;
    for (file, told) in [
        ("limts: { streams: 8 }".to_owned(), "g.yaml:1:10: unknown key `limts.streams`"),
        (well.clone() + "log: some\n", "`log` cannot be `some`"),
        ("limits: { streams: 8 }".to_owned(), "the gateway leads nowhere"),
        (leads_to(&url) + &leads_to(&url), "g.yaml:2:1"),
        (well.clone() + "tls: { certificates: nowhere.pem, key: nowhere.pem }\n", "nowhere.pem"),
        (
            well.clone() + "routes:\n  - { name: all, path: /a, upstreams: ['http://h:1'] }\n",
            "the name `all` is taken already",
        ),
        (
            well.clone() + "routes:\n  - { path: /p, broker: 'embedded:g.yaml', publish: { queue: q } }\n",
            "cannot open the broker",
        ),
    ] {
        let mut said = reloaded(&place, &mut gateway, &file);
        assert!(said.starts_with("not reloaded, all stays as it was: "), "{said}");
        // The rest of the block.
        while !said.contains(told) {
            said += &gateway.says("");
        }
        refused += 1.0;
        assert!(get(&gateway.public, "/").ends_with("as before"));
        assert!(get(&gateway.admin, "/config").contains("  streams: 7  # file"));
        assert_eq!(metric(&gateway, "millstream_gateway_reloads_total{outcome=\"refused\"}"), refused);
    }
    assert_eq!(reloaded(&place, &mut gateway, &well), IN_FORCE);
    assert_eq!(gateway.stop(), Some(143));
}

#[test]
fn what_cannot_change_is_named_with_both_values() {
    let place = Place::new();
    let url = upstream(b"it".to_vec());
    place.write("g.yaml", &leads_to(&url));
    let mut gateway = Gateway::start(&place, &["g.yaml"], &[]);
    let file = leads_to(&url) + "listen: 127.0.0.1:1\npool: { bytes: 1MiB }\nlimits: { streams: 7 }\n";
    let said = reloaded(&place, &mut gateway, &file);
    // A flag says where it listens, as before.
    assert_eq!(
        said,
        format!("{IN_FORCE}, but until the gateway is started anew `pool.bytes` stays 20MiB, not 1MiB")
    );
    let shown = get(&gateway.admin, "/config");
    assert!(
        shown.contains("  bytes: 20MiB  # default\n") && shown.contains("  streams: 7  # file"),
        "{shown}"
    );
    assert!(metric(&gateway, "millstream_gateway_pool_bytes_max") >= 20e6);
    assert_eq!(gateway.stop(), Some(143));
}

#[test]
fn the_log_and_the_certificate_are_read_again() {
    let place = Place::new();
    let certify = || {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        place.write("certificate.pem", &certified.cert.pem());
        place.write("key.pem", &certified.signing_key.serialize_pem());
    };
    certify();
    let tls = "tls: { certificates: certificate.pem, key: key.pem }\n";
    place.write("g.yaml", &(leads_to(&upstream(b"secret".to_vec())) + tls));
    let mut inner = Gateway::start(&place, &["g.yaml"], &[]);
    let url = format!("https://localhost:{}", inner.public.rsplit(':').next().expect("a port"));
    // Each request comes by another connection, since the route behind it closes each.
    let outer_file =
        leads_to(&url) + "upstream_tls: { authorities: certificate.pem }\nupstream_idle_connections: 0\n";
    place.write("o.yaml", &outer_file);
    let mut outer = Gateway::start(&place, &["o.yaml"], &[]);
    assert!(get(&outer.public, "/").ends_with("secret"));

    // The same files with something else in them.
    certify();
    inner.hang_up();
    assert_eq!(inner.says("reloaded"), IN_FORCE);
    place.write("o.yaml", &(leads_to(&upstream(b"another".to_vec())) + "log: all\n"));
    outer.hang_up();
    outer.says("reloaded");
    assert!(get(&outer.public, "/").ends_with("another"));
    assert!(outer.says("{").contains("\"status\":200"));
    place.write("o.yaml", &(outer_file + "log: off\n"));
    outer.hang_up();
    outer.says("reloaded");
    assert!(get(&outer.public, "/").ends_with("secret"));
    outer.signal();
    let (code, said) = outer.end();
    assert!(code == Some(143) && !said.iter().any(|line| line.starts_with('{')), "{said:?}");
}

#[test]
fn a_queue_behind_a_new_route_takes_what_is_posted_and_what_it_holds_outlives_its_route() {
    let place = Place::new();
    let well = leads_to(&upstream(b"it".to_vec()));
    place.write("g.yaml", &well);
    let mut gateway = Gateway::start(&place, &["g.yaml"], &[]);
    let with_queue = well.clone()
        + "routes:\n  - { path: /in, broker: 'memory:', publish: { queue: q } }\n\
           \x20 - { path: /out, broker: 'memory:', serve: { queue: q } }\n";
    assert_eq!(reloaded(&place, &mut gateway, &with_queue), IN_FORCE);
    let post = "POST /in HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";
    assert!(ask(&gateway.public, post).starts_with("HTTP/1.1 202 "));
    assert_eq!(reloaded(&place, &mut gateway, &well), IN_FORCE);
    assert!(ask(&gateway.public, post).ends_with("it"));
    assert_eq!(reloaded(&place, &mut gateway, &with_queue), IN_FORCE);
    let mut events = connect(&gateway.public);
    events.write_all(b"GET /out HTTP/1.1\r\nHost: h\r\n\r\n").expect("written");
    let until = |events: &mut std::net::TcpStream, text: &str| {
        let mut seen = String::new();
        while !seen.contains(text) {
            let mut bytes = [0; 1024];
            let read = events.read(&mut bytes).expect("read");
            assert!(read > 0, "the events ended: {seen}");
            seen.push_str(std::str::from_utf8(&bytes[..read]).expect("text"));
        }
    };
    until(&mut events, "data: hello\n\n");
    // Who follows goes on following, whatever comes in between.
    assert_eq!(reloaded(&place, &mut gateway, &well), IN_FORCE);
    assert_eq!(reloaded(&place, &mut gateway, &with_queue), IN_FORCE);
    let post = post.replace("hello", "again");
    assert!(ask(&gateway.public, &post).starts_with("HTTP/1.1 202 "));
    until(&mut events, "data: again\n\n");
    drop(events);
    assert_eq!(gateway.stop(), Some(143));
}

#[test]
fn no_request_fails_while_the_file_is_read_again_and_again() {
    let place = Place::new();
    let urls = [upstream(vec![b'x'; 1000]), upstream(vec![b'x'; 1000])];
    place.write("g.yaml", &leads_to(&urls[0]));
    let mut gateway = Gateway::start(&place, &["g.yaml"], &[]);
    let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (done, asked, address) = (done.clone(), asked.clone(), gateway.public.clone());
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let answer = get(&address, "/");
                    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("xxx"), "{answer}");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for turn in 0..50 {
        let before = asked.load(Ordering::Relaxed);
        let file = leads_to(&urls[turn % 2]) + &format!("limits: {{ streams: {} }}\n", turn + 1);
        assert_eq!(reloaded(&place, &mut gateway, &file), IN_FORCE);
        while asked.load(Ordering::Relaxed) == before && !clients.iter().any(|client| client.is_finished()) {
            std::thread::yield_now();
        }
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no request failed");
    }
    assert!(get(&gateway.admin, "/config").contains("  streams: 50  # file"));
    assert_eq!(metric(&gateway, "millstream_gateway_reloads_total{outcome=\"applied\"}"), 50.0);
    assert_eq!(gateway.stop(), Some(143));
}

#[test]
fn a_broker_that_was_opened_for_what_is_refused_is_closed_again() {
    let place = Place::new();
    let well = leads_to(&upstream(b"it".to_vec()));
    place.write("g.yaml", &well);
    let mut gateway = Gateway::start(&place, &["g.yaml"], &[]);
    let broken = "routes:\n  - { path: /in, broker: 'embedded:state', publish: { queue: q } }\n\
                  \x20 - { path: /x, broker: 'embedded:g.yaml', publish: { queue: q } }\n";
    assert!(reloaded(&place, &mut gateway, &(well + broken)).starts_with("not reloaded"));
    // Only one process at a time may have it.
    let run = place.run(&["queue", "list", "embedded:state"]);
    assert!(run.code == Some(0) && run.out.contains('q'), "{}", run.err);
    assert_eq!(gateway.stop(), Some(143));
}

#[test]
fn whoever_asks_for_the_end_does_not_wait_for_a_broker_that_says_nothing() {
    let place = Place::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let well = leads_to(&upstream(b"it".to_vec()));
    place.write("g.yaml", &well);
    let gateway = Gateway::start(&place, &["g.yaml"], &[]);
    let address = silent.local_addr().expect("an address");
    let waits =
        format!("routes:\n  - {{ path: /in, broker: 'amqp://{address}', publish: {{ queue: q }} }}\n");
    place.write("g.yaml", &(well + &waits));
    gateway.hang_up();
    // It is being asked, and never answers.
    let _asked = silent.accept().expect("a connection");
    assert!(get(&gateway.public, "/").ends_with("it"));
    assert_eq!(gateway.stop(), Some(143));
}

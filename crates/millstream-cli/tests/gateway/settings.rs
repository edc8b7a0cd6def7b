//! Settings of which the library knows nothing: what the command makes of them.

use serde_json::Value;

use crate::process::*;
use crate::support::{Place, ended};

/// What stands in the log after a request that is served and one that is not.
fn logged(variables: &[(&str, &str)]) -> Vec<Value> {
    let place = Place::new();
    let file = format!(
        "routes:\n  - {{ name: well, path: /well, upstreams: ['{}'] }}\n",
        upstream(b"hello".to_vec())
    );
    place.write("g.yaml", &file);
    let gateway = Gateway::start(&place, &["g.yaml"], variables);
    assert!(get(&gateway.public, "/well?secret=1").ends_with("hello"));
    assert!(get(&gateway.public, "/lost").starts_with("HTTP/1.1 404 "));
    gateway.signal();
    let (code, lines) = gateway.end();
    assert_eq!(code, Some(143));
    let json = lines.iter().filter(|line| line.starts_with('{'));
    json.map(|line| serde_json::from_str(line).expect("an object a line")).collect()
}

#[test]
fn the_log_holds_what_it_is_told_to() {
    let paths = |log: &str| {
        let exchanges = logged(&[("MILLSTREAM_GATEWAY_LOG", log)]);
        exchanges.iter().map(|exchange| exchange["path"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(paths("off"), []);
    assert_eq!(paths("failures"), [Some("/lost".into())]);
    assert_eq!(paths("all"), [Some("/well".into()), Some("/lost".into())]);
}

#[test]
fn the_log_tells_of_each_exchange_what_became_of_both_its_streams() {
    let exchanges = logged(&[("MILLSTREAM_GATEWAY_LOG", "all")]);
    let [well, lost] = &exchanges[..] else { panic!("{exchanges:?}") };
    assert!(well["client"].as_str().is_some_and(|client| client.starts_with("127.0.0.1:")), "{well}");
    assert_eq!(
        (&well["method"], &well["route"], &well["status"]),
        (&"GET".into(), &"well".into(), &200.into())
    );
    assert!(well["upstream"].as_str().is_some_and(|upstream| upstream.starts_with("http://127")), "{well}");
    assert!(well["failure"].is_null() && well["duration_seconds"].as_f64().is_some_and(|took| took > 0.0));
    assert!(well["timestamp"].as_f64().is_some_and(|time| time > 1.7e9), "{well}");
    let response = &well["response"];
    assert_eq!((&response["direction"], &response["outcome"]), (&"response".into(), &"complete".into()));
    assert_eq!((&response["bytes"], &response["chunks"]), (&5.into(), &1.into()));
    assert_eq!(response["chunk_bytes_average"], 5.0);
    for number in [
        "duration_seconds",
        "first_byte_seconds",
        "bytes_per_second",
        "backpressure_events",
        "backpressure_seconds",
        "source_wait_seconds",
    ] {
        assert!(response[number].is_number(), "{number} is not in {response}");
    }
    assert_eq!((&lost["status"], &lost["failure"]), (&404.into(), &"no route leads there".into()));
}

#[test]
fn the_configuration_is_shown_on_the_admin_address_and_not_on_the_public_one() {
    let place = Place::new();
    place.write(
        "g.yaml",
        "routes:\n  - { path: /q, broker: 'memory:', publish: { queue: q } }\nlimits: { streams: 7 }\n",
    );
    let gateway = Gateway::start(&place, &["g.yaml"], &[]);
    let shown = get(&gateway.admin, "/config");
    assert!(shown.contains("  streams: 7  # file g.yaml\n") && shown.contains("queue: 'q'"), "{shown}");
    assert!(get(&gateway.public, "/config").starts_with("HTTP/1.1 404 "));
    // Who asks for anything else is told what there is, and all of it is there.
    let lost = get(&gateway.admin, "/");
    assert!(lost.starts_with("HTTP/1.1 404 "), "{lost}");
    let (_, views) = lost.split_once("there are ").expect("a list");
    let views: Vec<&str> = views.trim().split(", ").collect();
    assert!(views.contains(&"/config"), "{views:?}");
    for view in views {
        assert!(get(&gateway.admin, view).starts_with("HTTP/1.1 200 "), "{view}");
    }
}

#[test]
fn tls_is_spoken_with_the_certificate_and_the_authorities_that_are_named() {
    let place = Place::new();
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    place.write("certificate.pem", &certified.cert.pem());
    place.write("key.pem", &certified.signing_key.serialize_pem());
    let url = upstream(b"secret".to_vec());
    let certificates = ("MILLSTREAM_GATEWAY_TLS_CERTIFICATES", "certificate.pem");
    let key = ("MILLSTREAM_GATEWAY_TLS_KEY", "key.pem");
    let inner = Gateway::start(&place, &["--upstream", &url], &[certificates, key]);
    let url = format!("https://localhost:{}", inner.public.rsplit(':').next().expect("a port"));
    let authorities = ("MILLSTREAM_GATEWAY_UPSTREAM_TLS_AUTHORITIES", "certificate.pem");
    let outer = Gateway::start(&place, &["--upstream", &url], &[authorities]);
    assert!(get(&outer.public, "/").ends_with("secret"));
    // The authorities of the system know nothing of it.
    let other = Gateway::start(&place, &["--upstream", &url], &[]);
    assert!(get(&other.public, "/").starts_with("HTTP/1.1 502 "));
    assert_eq!(metric(&inner, "millstream_gateway_answers_total{route=\"all\",class=\"2xx\"}"), 1.0);

    for (variable, there) in [certificates, key] {
        let mut alone = place.command(&["gateway", "--upstream", &url]);
        let run = ended(alone.env(variable, there).spawn().expect("the binary starts"));
        assert!(run.code == Some(2) && run.err.contains("set both or neither"), "{}", run.err);
    }
    let stranger = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    place.write("other.pem", &stranger.signing_key.serialize_pem());
    for (certificates, key, told) in [
        ("key.pem", "certificate.pem", "certificate.pem: there is no private key in it; name a PEM file"),
        ("key.pem", "key.pem", "key.pem: there is no certificate in it; name a PEM file"),
        (
            "certificate.pem",
            "other.pem",
            "other.pem: it is not the key of the first certificate in certificate.pem",
        ),
    ] {
        let mut wrong = place.command(&["gateway", "--upstream", &url]);
        wrong.env("MILLSTREAM_GATEWAY_TLS_CERTIFICATES", certificates).env("MILLSTREAM_GATEWAY_TLS_KEY", key);
        let run = ended(wrong.spawn().expect("the binary starts"));
        assert!(run.code == Some(1) && run.err.contains(told), "{}", run.err);
    }
    let mut lost = place.command(&["gateway", "--upstream", &url]);
    lost.env(authorities.0, "nowhere.pem");
    let run = ended(lost.spawn().expect("the binary starts"));
    assert!(run.code == Some(1) && run.err.contains("nowhere.pem"), "{}", run.err);
}

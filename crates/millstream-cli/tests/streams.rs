//! Streams from the command line, embedded and on RabbitMQ.

mod support;

use millstream_testing::{Node, Setup};
use serde_json::Value;
use support::Place;

#[test]
fn a_stream_of_the_embedded_broker_is_declared_and_looked_at() {
    let place = Place::new();
    place.done(&["stream", "declare", "embedded:state", "events", "--max-bytes", "10MiB", "--max-age", "7d"]);
    let stats: Value =
        serde_json::from_str(&place.done(&["stream", "stats", "embedded:state", "events", "--json"]))
            .expect("JSON");
    assert_eq!((&stats["first"], &stats["next"]), (&Value::from(0), &Value::from(0)));
    let shown = place.done(&["stream", "stats", "embedded:state", "events"]);
    assert!(shown.contains("events"), "{shown}");
    let missing = place.run(&["stream", "stats", "embedded:state", "nothing"]);
    assert!(missing.code == Some(1) && missing.err.contains("`nothing`"), "{}", missing.err);
    let none = place.run(&["stream", "declare", "embedded:state", "parts", "--partitions", "3"]);
    assert!(none.code == Some(2) && none.err.contains("rabbitmq-stream://"), "{}", none.err);
}

/// Appends, reads, and pipes a stream through a pipeline into another; the same on every broker.
fn used(place: &Place, url: &str) {
    place.done(&["stream", "declare", url, "in"]);
    place.done(&["stream", "publish", url, "in", "{\"n\":0}", "--header", "tenant=north"]);
    let lines: String = (1..=2500).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let published = place.run_with_input(&["stream", "publish", url, "in", "--lines"], lines.as_bytes());
    assert!(published.code == Some(0) && published.err.contains("published 2,500"), "{}", published.err);
    assert_eq!(place.done(&["stream", "read", url, "in"]), format!("{{\"n\":0}}\n{lines}"));
    assert_eq!(place.done(&["stream", "read", url, "in", "--from", "last"]), "{\"n\":2500}\n");
    assert_eq!(
        place.done(&["stream", "read", url, "in", "--from", "1h", "--max", "2"]),
        "{\"n\":0}\n{\"n\":1}\n"
    );
    assert_eq!(place.done(&["stream", "read", url, "in", "--from", "next"]), "");
    let first: Value =
        serde_json::from_str(&place.done(&["stream", "read", url, "in", "--max", "1", "--json"]))
            .expect("JSON");
    assert_eq!((&first["offset"], &first["headers"]["tenant"]), (&Value::from(0), &Value::from("north")));
    assert!(first["time_ms"].as_u64().is_some_and(|time| time > 1_600_000_000_000), "{first}");

    let pipeline = format!(
        "name: p\nsource: {{ stream: {{ broker: \"{url}\", name: in, until: drained }} }}\n\
         process: [ filter: {{ name: odd, keep: 'item.n % 2 == 0' }} ]\n\
         output: {{ stream: {{ broker: \"{url}\", name: out }} }}\n"
    );
    place.write("p.yaml", &pipeline);
    place.done(&["run", "--quiet", "--report", "r.json", "p.yaml"]);
    let report = |name: &str| -> Value { serde_json::from_str(&place.read(name)).expect("JSON") };
    assert_eq!(report("r.json")["ledger"]["completed"], 1251);
    let even: String = (0..=1250).map(|n| format!("{{\"n\":{}}}\n", 2 * n)).collect();
    assert_eq!(place.done(&["stream", "read", url, "out"]), even);
    place.done(&["stream", "publish", url, "in", "{\"n\":7000}"]);
    place.done(&["run", "--quiet", "--report", "r.json", "p.yaml"]);
    assert_eq!(report("r.json")["ledger"]["received"], 1, "it goes on where it stopped");
    place.done(&["run", "--quiet", "--report", "r.json", "p.yaml"]);
    assert_eq!(report("r.json")["ledger"]["received"], 0);

    let refused = place.run(&["stream", "delete", url, "out"]);
    assert!(refused.code == Some(2) && refused.err.contains("offsets 0 to"), "{}", refused.err);
    place.done(&["stream", "delete", url, "out", "--yes"]);
    assert_eq!(place.run(&["stream", "read", url, "out"]).code, Some(1));
}

#[test]
fn a_stream_of_the_embedded_broker_is_used_by_commands_and_pipelines() {
    used(&Place::new(), "embedded:state");
}

#[tokio::test]
async fn a_stream_of_rabbitmq_is_used_by_commands_and_pipelines() {
    let node = Node::start(Setup::default().plugin("rabbitmq_stream")).await.expect("it starts");
    used(&Place::new(), &node.stream_url(""));
}

#[tokio::test]
async fn streams_and_super_streams_of_rabbitmq_are_declared() {
    let node = Node::start(Setup::default().plugin("rabbitmq_stream")).await.expect("it starts");
    let (place, url) = (Place::new(), node.stream_url(""));
    for _ in 0..2 {
        place.done(&["stream", "declare", &url, "events", "--max-age", "1h"]);
    }
    let other = place.run(&["stream", "declare", &url, "events", "--max-age", "2h"]);
    assert!(other.code == Some(1) && other.err.contains("max-age=7200s"), "{}", other.err);
    let stats: Value =
        serde_json::from_str(&place.done(&["stream", "stats", &url, "events", "--json"])).expect("JSON");
    assert_eq!(stats["next"], 0);

    let declared =
        place.run(&["stream", "declare", &url, "regions", "--keys", "amer,emea", "--max-bytes", "1GiB"]);
    if node.tell("rabbitmqctl", &["version"]).await.starts_with("3.10.") {
        // It can be made another way there.
        assert_eq!(declared.code, Some(1));
        assert!(
            declared.err.contains("add_super_stream regions --routing-keys amer,emea"),
            "{}",
            declared.err
        );
    } else {
        assert_eq!(declared.code, Some(0), "{}", declared.err);
        place.done(&["stream", "stats", &url, "regions-emea"]);
        place.done(&["stream", "declare", &url, "hashed", "--partitions", "3"]);
        place.done(&["stream", "stats", &url, "hashed-2"]);
    }
}

#[tokio::test]
async fn what_asks_for_a_queue_takes_a_stream_of_rabbitmq() {
    let node = Node::start(Setup::default().plugin("rabbitmq_stream")).await.expect("it starts");
    let (place, url) = (Place::new(), node.stream_url(""));
    place.done(&["queue", "declare", &url, "events"]);
    let missing = place.run(&["queue", "publish", &url, "other", "x"]);
    assert!(missing.code == Some(1) && missing.err.contains("no stream `other`"), "{}", missing.err);
    place
        .run_with_input(&["queue", "publish", &url, "events", "--lines"], b"{\"n\":1}\nno json\n{\"n\":3}\n");
    assert_eq!(place.done(&["queue", "peek", &url, "events", "--max", "2"]), "{\"n\":1}\nno json\n");
    let stats: Value =
        serde_json::from_str(&place.done(&["queue", "stats", &url, "events", "--json"])).expect("JSON");
    assert_eq!(stats["stats"]["ready"], 3);
    assert_eq!(place.done(&["queue", "consume", &url, "events", "--max", "1"]), "{\"n\":1}\n");
    assert_eq!(place.done(&["queue", "consume", &url, "events"]), "no json\n{\"n\":3}\n");
    assert_eq!(place.done(&["queue", "consume", &url, "events"]), "");

    // A pipeline is a consumer of its own, and what dies is published with its reason.
    let yaml = format!(
        "name: copy\nsource: {{ queue: {{ broker: '{url}', name: events, until: drained }} }}\n\
         output: {{ queue: {{ broker: '{url}', name: copies }} }}\n\
         on_error: {{ dead_letter: {{ queue: letters }} }}\n"
    );
    place.write("copy.yaml", &yaml);
    let ledger = || -> Value {
        place.done(&["run", "copy.yaml", "--quiet", "--report", "report.json"]);
        let report: Value = serde_json::from_str(&place.read("report.json")).expect("a report");
        report["ledger"].clone()
    };
    let first = ledger();
    assert_eq!((&first["received"], &first["completed"], &first["dead"]), (&3.into(), &2.into(), &1.into()));
    assert_eq!(place.done(&["queue", "consume", &url, "copies"]), "{\"n\":1}\n{\"n\":3}\n");
    let letters = place.done(&["dead-letters", "list", &url, "letters"]);
    assert!(letters.contains("1 dead letter") && letters.contains("no json"), "{letters}");
    assert_eq!(ledger()["received"], 0, "the second run goes on where the first one ended");
    place.done(&["queue", "publish", &url, "events", "{\"n\":4}"]);
    assert_eq!(ledger()["received"], 1);
    assert_eq!(place.done(&["queue", "consume", &url, "copies"]), "{\"n\":4}\n");

    // Letters of a stream are taken in their order, so none is replayed twice.
    let refused = place.run(&["dead-letters", "replay", &url, "letters", "--matching", "json"]);
    assert!(refused.code == Some(2) && refused.err.contains("--max"), "{}", refused.err);
    let replay = |to: &[&str]| place.run(&[&["dead-letters", "replay", &url, "letters"], to].concat());
    for replayed in ["replayed 1 ", "replayed 0 "] {
        let run = replay(&["--to", "copies"]);
        assert!(run.code == Some(0) && run.err.contains(replayed), "{}", run.err);
    }
    assert_eq!(place.done(&["queue", "consume", &url, "copies"]), "no json\n");
    place.done(&["queue", "publish", &url, "letters", "from nowhere"]);
    let headers = ["--header", "millstream-dead-exchange=", "--header", "millstream-dead-key=copies"];
    place.done(&[&["queue", "publish", &url, "letters", "from copies"][..], &headers].concat());
    for _ in 0..2 {
        let run = replay(&[]);
        assert!(run.code == Some(1) && run.err.contains("all behind it in the stream"), "{}", run.err);
    }
    assert_eq!(place.done(&["queue", "consume", &url, "copies"]), "");
    place.done(&["queue", "delete", &url, "events", "--yes"]);
    assert_eq!(place.run(&["queue", "stats", &url, "events"]).code, Some(1));
}

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

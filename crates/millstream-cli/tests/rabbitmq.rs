//! The same commands and the same pipeline file on RabbitMQ: only the URL is another.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use millstream_message::Queue;
use millstream_testing::{Node, Proxy, Setup, shared, unique};
use serde_json::Value;
use support::{Place, announced, ended, got, signal, watched};

/// Rows of the flights, each with how often it is there.
fn written(place: &Place) -> BTreeMap<String, u64> {
    let mut rows = BTreeMap::new();
    for entry in std::fs::read_dir(place.path("examples/out")).expect("an output") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("a file");
        text.lines().for_each(|line| *rows.entry(line.to_owned()).or_insert(0) += 1);
    }
    rows
}

/// The quickstart with RabbitMQ in the place of the directory.
fn quickstart(url: &str, rows: usize) -> Place {
    let place = Place::with_examples();
    let data = "examples/data/flights-2013-01.csv";
    let kept: String = place.read(data).split_inclusive('\n').take(rows + 1).collect();
    place.write(data, &kept);
    let yaml = place.read("examples/quickstart.yaml");
    let name = unique("flights");
    let yaml = yaml.replace("embedded:state", url).replace("flights.dead", &format!("{name}.dead"));
    place.write("examples/quickstart.yaml", &yaml.replace("name: flights", &format!("name: {name}")));
    place
}

/// Runs it to its end, or kills it after so many milliseconds.
fn run(place: &Place, kill_after: Option<u64>) -> Option<i32> {
    let words = ["run", "--quiet", "examples/quickstart.yaml", "--report", "report.json"];
    let mut child = place.command(&words).stderr(Stdio::inherit()).spawn().expect("the binary starts");
    if let Some(millis) = kill_after {
        let time = format!("{:.3}", millis as f64 / 1000.0);
        assert!(Command::new("sleep").arg(time).status().expect("coreutils are there").success());
        let _ = child.kill();
    }
    child.wait().expect("it ends").code()
}

fn ledger(place: &Place) -> Value {
    let report: Value = serde_json::from_str(&place.read("report.json")).expect("a report");
    report["ledger"].clone()
}

#[tokio::test]
async fn the_quickstart_runs_on_rabbitmq_and_does_nothing_twice() {
    let place = quickstart(&shared().await.url(), 5000);
    place.done(&["lint", "examples/quickstart.yaml"]);
    assert_eq!(run(&place, None), Some(0));
    let first = ledger(&place);
    assert_eq!(first["received"], 5000);
    assert_eq!(first["in_flight"], 0);
    let rows = written(&place);
    assert_eq!(rows.values().sum::<u64>(), first["completed"].as_u64().expect("a number"));
    assert_eq!(run(&place, None), Some(0));
    assert_eq!(ledger(&place)["received"], 0, "it goes on where it stopped");
    assert_eq!(written(&place), rows);
}

#[tokio::test]
async fn killed_again_and_again_it_loses_nothing_on_rabbitmq() {
    let url = shared().await.url();
    let whole = quickstart(&url, 5000);
    assert_eq!(run(&whole, None), Some(0));
    let expected = written(&whole);
    let place = quickstart(&url, 5000);
    let mut kills = 0;
    for millis in [150, 300, 450, 600, 750, 900, 400, 500] {
        kills += u32::from(run(&place, Some(millis)).is_none());
    }
    assert_eq!(run(&place, None), Some(0));
    assert!(kills > 2, "there was something to get over: {kills}");
    let found = written(&place);
    for row in expected.keys() {
        assert!(found.contains_key(row), "{row} is lost");
    }
    assert_eq!(found.len(), expected.len(), "and nothing is there that should not be");
}

#[tokio::test]
async fn metrics_tell_of_the_connections_with_the_broker() {
    let url = shared().await.url();
    shown(&url, 1);
}

#[tokio::test]
async fn metrics_tell_of_the_connections_by_the_stream_protocol() {
    let node = Node::start(Setup::default().plugin("rabbitmq_stream")).await.expect("it starts");
    let (place, url) = (Place::new(), node.stream_url(""));
    place.done(&["stream", "declare", &url, "held"]);
    let stats = place.done(&["stream", "stats", &url, "held", "--json"]);
    assert!(stats.contains("\"bytes\":null"), "{stats}");
    assert!(place.done(&["stream", "stats", &url, "held"]).ends_with("?\n"));
    // What is appended is found again by another.
    shown(&node.stream_url(""), 2);
}

/// The proxy answers while this waits for what the process says.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_lost_is_told_and_the_process_is_not_ready_until_it_is_back() {
    let proxy = Proxy::to(shared().await.port).await;
    let (place, queue, url) = (Place::new(), unique("lost"), proxy.url());
    place.done(&["queue", "declare", &url, &queue]);
    place.write(
        "p.yaml",
        &format!(
            "name: lost\nsource: {{ queue: {{ broker: '{url}', name: {queue} }} }}\noutput: {{ stdout: }}\n"
        ),
    );
    let run = ["run", "p.yaml", "--listen", "127.0.0.1:0"];
    let mut child = place.command(&run).spawn().expect("it starts");
    let mut err = BufReader::new(child.stderr.take().expect("it is piped"));
    let address = announced(&mut err);
    let (done, _watch) = watched(&child);
    let mut told = |words: &str| {
        let mut line = String::new();
        while !line.contains(words) {
            line.clear();
            assert!(err.read_line(&mut line).expect("it is text") > 0, "{words:?} is not told");
        }
        line
    };
    while !got(&address, "/health/ready").starts_with("HTTP/1.1 200") {}
    proxy.refuse(true);
    proxy.cut();
    let line = told("is out of reach");
    assert!(line.contains("warning: the broker amqp://***@127.0.0.1"), "{line}");
    let ready = got(&address, "/health/ready");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("amqp://***@127.0.0.1"), "{ready}");
    proxy.refuse(false);
    told("is back");
    assert!(got(&address, "/health/ready").starts_with("HTTP/1.1 200"));
    drop(done);
    signal(&child, "INT");
    assert_eq!(ended(child).code, Some(130));
}

/// Moves three messages with so many consumers, and looks at the metrics meanwhile.
fn shown(url: &str, consumers: u32) {
    let (place, queue) = (Place::new(), unique("moved"));
    place.done(&["queue", "declare", url, &queue]);
    place.done(&["queue", "declare", url, &format!("{queue}.out")]);
    let said = place.run_with_input(&["queue", "publish", url, &queue, "--lines"], b"1\n2\n3\n");
    assert_eq!(said.code, Some(0), "{}", said.err);
    place.write(
        "p.yaml",
        &format!(
            "name: moved\nsource: {{ queue: {{ broker: '{url}', name: {queue} }} }}\n\
             output: {{ queue: {{ broker: '{url}', name: {queue}.out }} }}\nbatch: {{ count: 1 }}\n"
        ),
    );
    let mut child = place.command(&["run", "p.yaml", "--listen", "127.0.0.1:0"]).spawn().expect("it starts");
    let mut err = BufReader::new(child.stderr.take().expect("it is piped"));
    let address = announced(&mut err);
    let (done, _watch) = watched(&child);
    let (metrics, figure) = loop {
        let metrics = got(&address, "/metrics");
        let figures: BTreeMap<String, f64> = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("millstream_broker_")?.split_once("{broker=\""))
            .filter_map(|(name, rest)| Some((name.to_owned(), rest.rsplit_once(' ')?.1.parse().ok()?)))
            .collect();
        let figure = move |name: &str| figures.get(name).copied().unwrap_or_default();
        if figure("published_total") == 3.0 && figure("unconfirmed") == 0.0 {
            break (metrics, figure);
        }
    };
    drop(done);
    let confirms = figure("confirm_seconds_count"); // of batches, which may go together
    assert!((1.0..=3.0).contains(&confirms), "{metrics}");
    assert_eq!(figure("confirm_seconds_bucket"), confirms, "the last has all: {metrics}");
    assert_eq!((figure("consumers"), figure("connect_failures_total")), (consumers.into(), 0.0), "{metrics}");
    assert!(figure("connections") >= 1.0 && figure("connects_total") >= 1.0, "{metrics}");
    assert!(figure("received_bytes_total") > 100.0 && figure("sent_bytes_total") > 100.0, "{metrics}");
    assert!(figure("confirm_seconds_sum") > 0.0, "{metrics}");
    assert!(!metrics.contains("guest"), "no password is shown: {metrics}");
    signal(&child, "INT");
    assert_eq!(ended(child).code, Some(130));
}

#[tokio::test]
async fn queues_are_declared_filled_looked_at_and_emptied() {
    let url = shared().await.url();
    let (place, queue, dead) = (Place::new(), unique("orders"), unique("dead"));
    place.done(&["queue", "declare", &url, &dead]);
    place.done(&["queue", "declare", &url, &queue, "--dead-letters", &dead]);
    let input: String = (0..1200).map(|n| format!("order {n}\n")).collect();
    let end = place.run_with_input(&["queue", "publish", &url, &queue, "--lines"], input.as_bytes());
    assert_eq!(end.code, Some(0), "{}", end.err);
    assert_eq!(
        place.done(&["queue", "peek", &url, &queue, "--max", "2", "--skip", "1"]),
        "order 1\norder 2\n"
    );
    let stats = place.done(&["queue", "stats", &url, &queue, "--json"]);
    let stats: Value = serde_json::from_str(&stats).expect("JSON");
    assert_eq!(stats["stats"]["ready"], 1200);
    assert_eq!(stats["stats"]["ready_bytes"], Value::Null, "AMQP does not tell them");
    assert_eq!(stats["declared"], Value::Null, "nor how it was declared");
    let shown = place.done(&["queue", "stats", &url, &queue]);
    assert!(shown.lines().any(|line| line.starts_with("ready") && line.ends_with('?')), "{shown}");
    assert!(shown.contains("how it was declared is not known") && shown.contains("management"), "{shown}");
    let first = place.done(&["queue", "consume", &url, &queue, "--max", "700"]);
    let rest = place.done(&["queue", "consume", &url, &queue]);
    assert_eq!(first + &rest, input);
    place.done(&["queue", "publish", &url, &queue, "one more", "--header", "tenant=north"]);
    let shown = place.done(&["queue", "peek", &url, &queue, "--json"]);
    assert!(shown.contains("one more") && shown.contains("north"), "{shown}");
    place.done(&["queue", "purge", &url, &queue, "--yes"]);
    assert_eq!(place.done(&["queue", "consume", &url, &queue]), "");

    let gone = place.run(&["queue", "stats", &url, "nowhere"]);
    assert!(gone.code != Some(0) && gone.err.contains("no queue `nowhere`"), "{}", gone.err);
    let wrong = url.replace("guest:guest", "guest:secret");
    let refused = place.run(&["queue", "stats", &wrong, &queue]);
    assert!(refused.code != Some(0) && refused.err.contains("name and password"), "{}", refused.err);
    assert!(!refused.err.contains("secret"), "no password is shown: {}", refused.err);
}

#[tokio::test]
async fn dead_letters_are_listed_shown_and_replayed() {
    let place = quickstart(&shared().await.url(), 2000);
    assert_eq!(run(&place, None), Some(0));
    let dead = ledger(&place)["dead"].as_u64().expect("a number");
    assert!(dead > 10, "{dead}");
    let yaml = place.read("examples/quickstart.yaml");
    let queue = yaml
        .split("dead_letter: { queue: ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .expect("its name");
    let url = shared().await.url();
    let listed = place.done(&["dead-letters", "list", &url, queue]);
    assert!(listed.contains("cancelled") && listed.contains("departure"), "{listed}");
    place.done(&["dead-letters", "discard", &url, queue, "--yes"]);
    let stats = place.done(&["queue", "stats", &url, queue, "--json"]);
    let stats: Value = serde_json::from_str(&stats).expect("JSON");
    assert_eq!(stats["stats"]["ready"], 0);
}

#[tokio::test]
async fn queues_and_dead_letters_are_listed_by_the_management() {
    let setup =
        Setup::default().plugin("rabbitmq_management").configured("collect_statistics_interval = 500");
    let node = Node::start(setup).await.expect("it starts");
    let (url, place) = (node.managed_url(), Place::new());
    place.done(&["queue", "declare", &url, "dead"]);
    place.done(&["queue", "declare", &url, "orders", "--dead-letters", "dead", "--ttl", "100ms"]);
    place.done(&["queue", "declare", &url, "counting", "--delivery-limit", "1", "--kind", "quorum"]);
    place.done(&["queue", "publish", &url, "orders", "tea"]);
    place.done(&["queue", "publish", &url, "counting", "once"]);
    // A process that declared nothing of it.
    let stats = place.done(&["queue", "stats", &url, "orders"]);
    assert!(stats.contains("messages expire after 100ms") && stats.contains("queue `dead`"), "{stats}");
    let listed =
        || -> Value { serde_json::from_str(&place.done(&["queue", "list", &url, "--json"])).expect("JSON") };
    // The management collects figures now and then; what is ready is told as it is.
    place.done(&["queue", "declare", &url, "now"]);
    for so_far in 1..4 {
        place.done(&["queue", "publish", &url, "now", "x"]);
        assert_eq!(listed()[2]["ready"], so_far);
    }
    let listed = async {
        loop {
            let list = listed();
            let names: Vec<_> = list.as_array().expect("a list").iter().map(|queue| &queue["name"]).collect();
            assert_eq!(names, ["counting", "dead", "now", "orders"]);
            if list[1]["ready"] == 1 && list[1]["ready_bytes"] == 3 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(300), listed).await.expect("the letter arrives");
    // A queue that is exclusive to another connection is there, and lets nobody look into it.
    let parsed = url.parse().expect("a URL");
    let owner = millstream_pipeline::open_broker(&parsed, 1 << 20).await.expect("connected");
    owner.declare_queue(Queue::exclusive("own")).await.expect("declared");
    let closed = place.run(&["queue", "stats", &url, "own"]);
    assert!(closed.code == Some(1) && closed.err.contains("another connection"), "{}", closed.err);
    for _ in 0..3 {
        let letters = place.done(&["dead-letters", "list", &url]);
        assert!(letters.contains("dead: 1 dead letter") && letters.contains("expired"), "{letters}");
    }
    assert_eq!(
        place.done(&["queue", "consume", &url, "counting"]),
        "once\n",
        "it was not looked at to death"
    );

    let (url, name) = (shared().await.url(), unique("listed"));
    place.done(&["queue", "declare", &url, &name]);
    let off = place.run(&["queue", "list", &format!("{url}?management=http://127.0.0.1:1")]);
    assert_eq!(off.code, Some(1));
    assert!(off.err.contains("rabbitmq-plugins enable rabbitmq_management"), "{}", off.err);
}

#[tokio::test]
async fn a_topology_is_shown_before_it_is_applied_on_rabbitmq() {
    let (url, place) = (shared().await.url(), Place::new());
    let (queue, exchange) = (unique("north"), unique("orders"));
    let text = |items: u32| {
        format!(
            "exchanges:\n  {exchange}: {{ kind: topic }}\nqueues:\n  {queue}: {{ max_items: {items} }}\n\
             bindings:\n  - {{ from: {exchange}, to: {queue}, key: '*.north' }}\n"
        )
    };
    place.write("topology.yaml", &text(5));
    let check = place.run(&["topology", "check", "topology.yaml", "--broker", &url]);
    assert_eq!(check.code, Some(1));
    assert!(check.out.contains("missing") && check.err.contains("2 missing"), "{}{}", check.out, check.err);
    assert_eq!(place.run(&["queue", "stats", &url, &queue]).code, Some(1), "nothing was declared");
    place.done(&["topology", "apply", "topology.yaml", "--broker", &url]);
    let again = place.done(&["topology", "apply", "topology.yaml", "--broker", &url]);
    assert!(again.contains("as declared") && !again.contains("missing"), "{again}");
    // Without the management nobody knows of bindings: to make one again is fine, and to call it there is not.
    assert!(again.contains("not known"), "{again}");
    let told = place.run(&["topology", "apply", "topology.yaml", "--broker", &url]);
    assert!(told.err.contains("missing: 0, and what may have been there: 1"), "{}", told.err);
    let unsure = place.run(&["topology", "check", "topology.yaml", "--broker", &url]);
    assert_eq!(unsure.code, Some(1));
    assert!(unsure.err.contains("cannot tell") && unsure.err.contains("1 not known"), "{}", unsure.err);
    place.write("topology.yaml", &text(6));
    let other = place.run(&["topology", "apply", "topology.yaml", "--broker", &url]);
    assert_eq!(other.code, Some(1));
    assert!(other.out.contains("max_items: has 5, asked for 6"), "{}", other.out);
    assert!(other.err.contains("nothing was changed"), "{}", other.err);
}

//! Several processes of one pipeline against one RabbitMQ, one of them killed with -9 in the midst of it: the account that is
//! kept outside of them shows that nothing is lost, that each key's order was kept, and how much came twice.
//!
//! The processes are this test's own program, told by its environment to be a worker: see [`a_worker`].

#[path = "../examples/scale_out/account.rs"]
mod account;
#[path = "../examples/scale_out/worker.rs"]
mod worker;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use account::{Account, Verdict};
use millstream::message::Publish;
use millstream::prelude::{Address, Broker, Message};
use millstream::rabbitmq::stream::{Partitions, ProducerOptions, Routing, StreamClient, StreamSettings};
use millstream_testing::{Node, Setup, left_out};
use tokio::sync::OnceCell;

const WORKERS: usize = 3;
const KEYS: u64 = 40;
const EACH: u64 = 100;
/// The longest that one step may take.
const LONG: Duration = Duration::from_secs(300);

/// Roles of workers, and what they take from.
const COMPETING: &str = "jobs";
const KEYED: &str = "orders";
const SUPER_STREAM: &str = "shared";

/// What a worker process is: its role, the broker's URL, the account's file and its name.
const ROLE: &str = "MILLSTREAM_SCALE_OUT_WORKER";

async fn node() -> &'static Node {
    static NODE: OnceCell<Node> = OnceCell::const_new();
    let setup = || Setup::default().plugin("rabbitmq_stream").plugin("rabbitmq_consistent_hash_exchange");
    NODE.get_or_init(async || Node::start(setup()).await.expect("it starts")).await
}

/// No test by itself: what the processes run that the others start.
#[tokio::test]
async fn a_worker() {
    let Ok(words) = std::env::var(ROLE) else { return };
    let words: Vec<String> = words.split('\n').map(str::to_owned).collect();
    let [role, url, account, name] = &words[..] else { panic!("{words:?}") };
    let account = Path::new(account);
    if role == SUPER_STREAM {
        return worker::on_super_stream(url, SUPER_STREAM, account, name).await.expect("it works");
    }
    let (broker, queues) =
        (millstream::open(url).await.expect("opened"), worker::queues(role, role == KEYED));
    worker::on_queues(broker, &queues, account, name).await.expect("it works");
}

/// Processes that are gone with the test.
struct Team(Vec<Child>);

impl Team {
    fn hire(role: &str, url: &str, account: &Path) -> Team {
        let hire = |name: String| {
            let words = [role, url, account.to_str().expect("UTF-8"), &name].join("\n");
            let mut command = Command::new(std::env::current_exe().expect("a program"));
            command.args(["a_worker", "--exact", "--nocapture"]).env(ROLE, words);
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts")
        };
        Team(names().map(hire).collect())
    }

    /// Kills one as `kill -9` does: the one that has done most.
    fn lose_one(&mut self, account: &Account) {
        let busiest = account.busiest().expect("read");
        let lost = names().position(|name| Some(name) == busiest).expect("one works");
        assert!(self.0[lost].try_wait().expect("asked").is_none(), "it still works");
        self.0[lost].kill().expect("killed");
    }
}

fn names() -> impl Iterator<Item = String> {
    (1..=WORKERS).map(|worker| format!("worker-{worker}"))
}

impl Drop for Team {
    fn drop(&mut self) {
        for worker in &mut self.0 {
            let _ = worker.kill();
            let _ = worker.wait();
        }
    }
}

/// All the work in its order, each piece with its key.
fn work() -> impl Iterator<Item = (String, Message)> {
    (0..KEYS * EACH).map(|at| ((at % KEYS).to_string(), Message::new(format!("{} {}", at % KEYS, at / KEYS))))
}

/// Waits until all workers have come: one that starts when the others have done everything has no part in it.
async fn all_take_from(broker: &Arc<dyn Broker>, role: &str) {
    let coming = async {
        for queue in worker::queues(role, role == KEYED) {
            while broker.stats(&queue.name).await.expect("it is there").consumers < WORKERS as u64 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    tokio::time::timeout(LONG, coming).await.expect("all come");
}

/// Publishes while workers of this role take, and kills one when a third is done.
async fn through_queues(role: &str, address: impl Fn(&str) -> Address) -> Verdict {
    let (url, place) = (node().await.url(), tempfile::tempdir().expect("a directory"));
    let path = place.path().join("account");
    let account = Account::open(&path, KEYS, EACH).expect("opened");
    let mut team = Team::hire(role, &url, &path);
    let broker = millstream::open(&url).await.expect("opened");
    all_take_from(&broker, role).await;
    let publishing = async {
        let work: Vec<_> = work().collect();
        for part in work.chunks(200) {
            let publish =
                |(key, message): &(String, Message)| Publish { to: address(key), message: message.clone() };
            let batch: Vec<_> = part.iter().map(publish).collect();
            assert!(broker.publish_batch(batch.into()).await.expect("taken").all_confirmed());
        }
    };
    let losing = async {
        account.reaches(KEYS * EACH / 3, LONG).await.expect("in time");
        team.lose_one(&account);
    };
    tokio::join!(publishing, losing);
    account.verdict(LONG).await.expect("nothing is lost")
}

#[tokio::test]
async fn competing_consumers_lose_nothing_when_one_is_killed() {
    let broker = millstream::open(&node().await.url()).await.expect("opened");
    for queue in worker::queues(COMPETING, false) {
        broker.declare_queue(queue).await.expect("declared");
    }
    let verdict = through_queues(COMPETING, |_| Address::queue(COMPETING)).await;
    eprintln!("competing consumers: {verdict:?}");
    assert_eq!(verdict.by_worker.len(), WORKERS, "all took part");
    assert!(verdict.twice <= worker::PREFETCH as u64, "what it had in hand, at most");
}

#[tokio::test]
async fn behind_a_consistent_hash_exchange_the_order_of_each_key_outlives_a_kill() {
    let queues = worker::queues(KEYED, true);
    let each =
        |line: fn(&str) -> String| queues.iter().map(|queue| line(&queue.name)).collect::<Vec<_>>().join(",");
    let declared = each(|name| {
        format!(
            r#"{{"name": "{name}", "vhost": "/", "durable": true, "auto_delete": false,
                 "arguments": {{"x-single-active-consumer": true}}}}"#
        )
    });
    let bound = each(|name| {
        format!(
            r#"{{"source": "orders", "vhost": "/", "destination": "{name}", "destination_type": "queue",
                 "routing_key": "1", "arguments": {{}}}}"#
        )
    });
    let exchange = r#"{"name": "orders", "vhost": "/", "type": "x-consistent-hash", "durable": true,
                       "auto_delete": false, "internal": false, "arguments": {}}"#;
    let all = format!(r#"{{"exchanges": [{exchange}], "queues": [{declared}], "bindings": [{bound}]}}"#);
    define(node().await, &all).await;
    let verdict = through_queues(KEYED, |key| Address::new("orders", key)).await;
    eprintln!("consistent hash: {verdict:?}");
    assert!(verdict.in_order);
    assert!(verdict.by_worker.len() > 1, "another one took over");
    assert!(verdict.twice <= (worker::PARTS * worker::PREFETCH) as u64, "what it had in hand, at most");
}

/// What RabbitMQ makes of a file of definitions.
async fn define(node: &Node, definitions: &str) {
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("definitions.json");
    std::fs::write(&file, definitions).expect("written");
    node.tell("rabbitmqctl", &["import_definitions", file.to_str().expect("UTF-8")]).await;
}

#[tokio::test]
async fn on_a_super_stream_the_order_of_each_key_outlives_a_kill() {
    let url = node().await.stream_url("");
    let client = StreamClient::connect(StreamSettings::parse(&url).expect("a URL")).await.expect("connects");
    let made = client.create_super_stream(SUPER_STREAM, &Partitions::Count(worker::PARTS as u16), &[]).await;
    if let Err(error) = made {
        // What is left of the claim is that the remedy is told.
        assert!(error.to_string().contains("add_super_stream shared --partitions 4"), "{error}");
        return left_out("on a super stream the order of each key outlives a kill", "3.13");
    }
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("account");
    let account = Account::open(&path, KEYS, EACH).expect("opened");
    let mut team = Team::hire(SUPER_STREAM, &url, &path);
    let producer =
        client.super_producer(SUPER_STREAM, Routing::Hash, ProducerOptions::default()).await.expect("made");
    let publishing = async {
        let work: Vec<_> = work().collect();
        for part in work.chunks(200) {
            assert!(producer.send(part).await.expect("sent").await.all_confirmed());
        }
    };
    let losing = async {
        account.reaches(KEYS * EACH / 3, LONG).await.expect("in time");
        team.lose_one(&account);
    };
    tokio::join!(publishing, losing);
    let verdict = account.verdict(LONG).await.expect("nothing is lost");
    eprintln!("super stream: {verdict:?}");
    assert!(verdict.in_order);
    assert!(verdict.twice <= (worker::PARTS * 5 * worker::CHUNK) as u64, "what was not stored, about");
}

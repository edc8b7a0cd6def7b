//! kill -9 of a process that appends, publishes by an outbox and runs sagas, with the ledger in this one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use millstream_events::{
    Event, EventBus, EventStore, EventStoreOptions, Expected, Filter, Outbox, Saga, SagaStatus, Sagas, Step,
    Subscribe,
};
use millstream_message::{Broker, ConsumeOptions};
use tokio::time::timeout;

use crate::support::{embedded, event, texts};

const DIRECTORY: &str = "MILLSTREAM_TEST_KILLED_EVENTS";
const LIFE: &str = "MILLSTREAM_TEST_KILLED_LIFE";

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(300);

fn tell(line: String) {
    std::io::stdout().write_all((line + "\n").as_bytes()).expect("the parent reads");
}

async fn opened(directory: &str) -> (Arc<dyn Broker>, EventStore, EventBus) {
    let broker = embedded(&format!("embedded:{directory}")).await;
    // So often that some are cut short.
    let options = EventStoreOptions::default().checkpoint_every(7);
    let store = EventStore::open_with(broker.clone(), "log", options).await.expect("opened");
    let bus = EventBus::new(broker.clone(), "shop");
    (broker, store, bus)
}

fn outbox(store: &EventStore, bus: &EventBus) -> Outbox {
    Outbox::new(store.clone(), bus.clone(), "out").filter(Filter::all().types(["said"]))
}

/// Three steps, each of which leaves an event.
async fn sagas(store: &EventStore) -> Sagas {
    let step = |name: &str| {
        Step::new(name, |steps: Vec<String>, step| async move {
            step.emit(Event::new("did", event("").data).with_id(step.key()));
            Ok([steps, vec![step.step.to_string()]].concat())
        })
    };
    let saga = Saga::new("three").step(step("a")).step(step("b")).step(step("c"));
    Sagas::builder(store.clone()).saga(saga).start().await.expect("started")
}

/// What is killed. It does nothing in a run of all tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let (Ok(directory), Ok(life)) = (std::env::var(DIRECTORY), std::env::var(LIFE)) else { return };
    let (_broker, store, bus) = opened(&directory).await;
    let _outbox = outbox(&store, &bus).start().await.expect("started");
    let sagas = sagas(&store).await;
    for number in 0_u32.. {
        let (stream, said) = (format!("s{}", number % 3), format!("{life}.{number}"));
        let expected = Expected::after(store.version(&stream));
        store.append(&stream, expected, [event(&said), event(format!("{said}+"))]).await.expect("stored");
        tell(format!("A {stream} {said}"));
        if number % 4 == 0 {
            sagas.begin("three", &said, &Vec::<String>::new()).await.expect("begun");
            tell(format!("B {said}"));
        }
    }
}

#[test]
fn killed_at_any_moment_no_event_and_no_saga_is_lost() {
    let kills = if std::env::var_os("MILLSTREAM_SOAK").is_some() { 300 } else { 12 };
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("a plain path");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    // The queue is there before the first event.
    runtime.block_on(async {
        let (broker, _store, bus) = opened(path).await;
        let handler = async |_: &Event, _: &millstream_events::EventContext| Ok(());
        let all = bus.subscribe_all(&["#"], Subscribe::new().name("all"), handler).await.expect("subscribed");
        drop(all);
        broker.close().await.expect("closed");
    });
    let (mut appended, mut begun) = (BTreeMap::<String, Vec<String>>::new(), Vec::new());
    for life in 0..kills {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["killed::child", "--exact", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, path)
            .env(LIFE, life.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let moment = ((life as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 300;
        let mut line = String::new();
        for at in 0.. {
            if at == moment {
                child.kill().expect("kill -9");
            }
            line.clear();
            if lines.read_line(&mut line).expect("read") == 0 || !line.ends_with('\n') {
                assert!(at >= moment, "the child ended by itself in life {life}");
                break;
            }
            // The harness writes words of its own before the first line.
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [.., "A", stream, said] => {
                    appended.entry(stream.to_owned()).or_default().push(said.to_owned())
                }
                [.., "B", said] => begun.push(said.to_owned()),
                _ => {}
            }
        }
        child.wait().expect("it is dead");
    }
    runtime.block_on(async {
        let (broker, store, bus) = opened(path).await;
        super::store::says_what_the_log_says(&store).await;
        let mut stored = BTreeSet::new();
        for (stream, said) in &appended {
            let events = store.read(stream).collect().await.expect("read");
            assert!(events.iter().map(|event| event.version).eq(0..events.len() as u64), "no holes");
            let there = texts(&events);
            for pair in there.chunks(2) {
                assert_eq!(format!("{}+", pair[0]), pair[1], "both or neither");
            }
            let firsts: Vec<&String> = there.iter().step_by(2).collect();
            let mut at = 0;
            for said in said {
                at +=
                    firsts[at..].iter().position(|there| *there == said).expect("it is there, in order") + 1;
            }
            stored.extend(there);
        }
        // All that was begun comes to its end, and leaves what its steps say, once.
        let sagas = sagas(&store).await;
        for id in &begun {
            let view = timeout(LONG, sagas.ended("three", id)).await.expect("in time").expect("it is known");
            assert_eq!((view.status, view.done.len()), (SagaStatus::Completed, 3));
            let stream = store.read(&format!("saga/three/{id}")).collect().await.expect("read");
            assert_eq!(stream.iter().filter(|event| event.event.event_type == "did").count(), 3);
        }
        // And all that is stored is heard of.
        let run = outbox(&store, &bus).start().await.expect("started");
        let mut consumer =
            broker.consume("shop.events.all", ConsumeOptions::default()).await.expect("consumed");
        let mut heard = BTreeSet::new();
        let all = async {
            while !heard.is_superset(&stored) {
                let delivery = consumer.next().await.expect("it goes on").expect("it is read");
                heard.insert(String::from_utf8_lossy(delivery.message.body()).into_owned());
                delivery.ack();
            }
        };
        timeout(LONG, all).await.expect("nothing is lost on its way");
        run.shutdown(LONG).await.expect("it ends well");
        assert!(appended.values().map(Vec::len).sum::<usize>() > kills, "the children did some work");
        assert!(!begun.is_empty());
    });
}

//! `millstream queue` and `millstream dead-letters` on an embedded broker.

mod support;

use std::process::Stdio;

use millstream_message::{Address, Binding, ConsumeOptions, Exchange, ExchangeKind, Message, Nack, Queue};
use support::{Place, ended};

const URL: &str = "embedded:state";

fn place(queues: &[&str]) -> Place {
    let place = Place::new();
    for queue in queues {
        place.done(&["queue", "declare", URL, queue]);
    }
    place
}

#[test]
fn what_is_published_is_peeked_counted_and_consumed_in_order() {
    let place = place(&["orders"]);
    let input: String = (0..2500).map(|n| format!("order {n}\n")).collect();
    let end = place.run_with_input(&["queue", "publish", URL, "orders", "--lines"], input.as_bytes());
    assert_eq!(end.code, Some(0), "{}", end.err);
    assert!(end.err.contains("published 2,500 messages"), "{}", end.err);

    assert_eq!(
        place.done(&["queue", "peek", URL, "orders", "--max", "2", "--skip", "1"]),
        "order 1\norder 2\n"
    );
    let stats = place.done(&["queue", "stats", URL, "orders", "--json"]);
    let stats: serde_json::Value = serde_json::from_str(&stats).expect("JSON");
    assert_eq!((&stats["stats"]["ready"], &stats["declared"]["durable"]), (&2500.into(), &true.into()));

    let first = place.done(&["queue", "consume", URL, "orders", "--max", "1500"]);
    let rest = place.done(&["queue", "consume", URL, "orders"]);
    assert_eq!(first + &rest, input);
    assert!(place.done(&["queue", "list", URL]).contains("orders      0"));
}

#[test]
fn a_message_keeps_what_was_said_about_it() {
    let place = place(&["orders"]);
    let words =
        ["--header", "tenant=north", "--content-type", "text/plain", "--priority", "3", "--ttl", "1h"];
    place.done(&[&["queue", "publish", URL, "orders", "hello"], &words[..]].concat());
    let shown = place.done(&["queue", "consume", URL, "orders", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let expected = serde_json::json!({
        "body": "hello", "exchange": "", "key": "orders", "headers": { "tenant": "north" },
        "content_type": "text/plain", "priority": 3, "ttl_seconds": 3600.0,
    });
    assert_eq!(shown, expected);
}

#[test]
fn a_delayed_message_is_not_there_before_it_is_due() {
    let place = place(&["orders"]);
    place.done(&["queue", "publish", URL, "orders", "later", "--delay", "1h"]);
    assert_eq!(place.done(&["queue", "peek", URL, "orders"]), "");
    let stats = place.done(&["queue", "stats", URL, "orders", "--json"]);
    let stats: serde_json::Value = serde_json::from_str(&stats).expect("JSON");
    assert_eq!(stats["stats"]["delayed"], 1);
}

#[test]
fn declaring_otherwise_names_the_differences_and_as_it_is_changes_nothing() {
    let place = Place::new();
    let words = [
        "queue",
        "declare",
        URL,
        "orders",
        "--ttl",
        "1h",
        "--max-items",
        "5",
        "--max-bytes",
        "1MiB",
        "--overflow",
        "drop-head",
        "--dead-letters",
        "orders.dead",
        "--delivery-limit",
        "3",
        "--max-priority",
        "4",
    ];
    place.done(&words);
    place.done(&words);
    let shown = place.done(&["queue", "stats", URL, "orders"]);
    for part in [
        "durable",
        "expire after 1h",
        "at most 5 messages",
        "at most 1MiB",
        "drop-head",
        "queue `orders.dead`",
        "given back at most 3 times",
        "priorities up to 4",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let end = place.run(&["queue", "declare", URL, "orders", "--transient", "--ttl", "2h"]);
    assert_eq!(end.code, Some(1));
    assert!(
        end.err.contains("ttl: has 3600s, asked for 7200s") && end.err.contains("durable"),
        "{}",
        end.err
    );
}

#[test]
fn the_queue_for_dead_letters_is_made_with_the_one_that_names_it() {
    let place = Place::new();
    let words = ["queue", "declare", URL, "small", "--max-items", "1", "--overflow", "drop-head"];
    let end = place.run(&[&words[..], &["--dead-letters", "small.dead"]].concat());
    assert_eq!((end.code, end.err.trim()), (Some(0), "declared `small.dead`, too"));
    place.run_with_input(&["queue", "publish", URL, "small", "--lines"], b"one\ntwo\n");
    assert_eq!(place.done(&["queue", "peek", URL, "small.dead"]), "one\n", "what was driven out is kept");
    let end = place.run(&[&words[..], &["--dead-letters", "small.dead"]].concat());
    assert_eq!((end.code, end.err.as_str()), (Some(0), ""), "it is there already");
}

#[test]
fn a_full_queue_refuses_and_says_what_to_do() {
    let place = Place::new();
    place.done(&["queue", "declare", URL, "small", "--max-items", "1"]);
    place.done(&["queue", "publish", URL, "small", "one"]);
    let end = place.run(&["queue", "publish", URL, "small", "two"]);
    assert_eq!(end.code, Some(1));
    assert!(end.err.contains("full") && end.err.contains("raise its limit"), "{}", end.err);
    let end = place.run_with_input(&["queue", "publish", URL, "small", "--lines"], b"two\nthree\n");
    assert_eq!(end.code, Some(1));
    assert!(end.err.contains("published 0 messages"), "{}", end.err);
}

#[test]
fn what_is_not_there_is_named_with_the_remedy() {
    let place = place(&["orders"]);
    for words in [
        &["queue", "stats", URL, "ordesr"][..],
        &["queue", "consume", URL, "ordesr"],
        &["queue", "peek", URL, "ordesr"],
        &["queue", "purge", URL, "ordesr", "--yes"],
        &["dead-letters", "show", URL, "ordesr"],
        &["dead-letters", "replay", URL, "ordesr"],
    ] {
        let end = place.run(words);
        assert_eq!(end.code, Some(1), "{words:?}: {}", end.err);
        assert!(end.err.starts_with("error: ") && end.err.contains("`ordesr`"), "{words:?}: {}", end.err);
    }
    let end = place.run(&["queue", "publish", URL, "ordesr", "x"]);
    assert_eq!(end.code, Some(1));
    assert!(end.err.contains("millstream queue declare embedded:state ordesr"), "{}", end.err);
}

#[test]
fn removing_for_good_needs_a_yes() {
    let place = place(&["orders"]);
    place.done(&["queue", "publish", URL, "orders", "x"]);
    let end = place.run(&["queue", "purge", URL, "orders"]);
    assert_eq!(end.code, Some(2));
    assert!(end.err.contains("1 message") && end.err.contains("--yes"), "{}", end.err);
    assert_eq!(place.done(&["queue", "peek", URL, "orders"]), "x\n");
    place.done(&["queue", "purge", URL, "orders", "--yes"]);
    assert_eq!(place.done(&["queue", "peek", URL, "orders"]), "");
}

#[test]
fn wrong_arguments_are_refused_with_code_2() {
    let place = Place::new();
    for (words, says) in [
        (&["queue", "list", "embeded:x"][..], "did you mean `embedded:`"),
        (&["queue", "declare", URL, "q", "--ttl", "5"], "with its unit"),
        (&["queue", "declare", URL, "q", "--max-bytes", "much"], "with its unit"),
        (&["queue", "declare", URL, "q", "--overflow", "explode"], "reject-publish"),
        (&["queue", "publish", URL, "q", "x", "--header", "novalue"], "NAME=VALUE"),
        (&["queue", "frobnicate"], "unrecognized subcommand"),
        (&[], "Usage"),
    ] {
        let end = place.run(words);
        assert_eq!(end.code, Some(2), "{words:?}: {}", end.err);
        assert!(end.err.contains(says), "{words:?}: {}", end.err);
    }
}

#[test]
fn a_directory_in_use_names_its_owner() {
    let place = place(&["orders"]);
    place.done(&["queue", "publish", URL, "orders", "x"]);
    let mut holder = place.holding(URL, "orders");
    let refused = place.run(&["queue", "list", URL]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains(&holder.id().to_string()), "{}", refused.err);
    support::signal(&holder, "INT");
    assert_eq!(holder.wait().expect("it ends").code(), Some(130));
}

#[test]
fn a_closed_standard_output_is_a_quiet_end() {
    let place = place(&["orders"]);
    let input: String = (0..20_000).map(|n| format!("a rather long order with the number {n}\n")).collect();
    place.run_with_input(&["queue", "publish", URL, "orders", "--lines"], input.as_bytes());
    let mut child = place.command(&["queue", "consume", URL, "orders"]).spawn().expect("the binary starts");
    drop(child.stdout.take());
    let end = ended(child);
    assert_eq!((end.code, end.err.as_str()), (Some(0), ""));
    // What nobody read is still there.
    let stats = place.done(&["queue", "stats", URL, "orders", "--json"]);
    let stats: serde_json::Value = serde_json::from_str(&stats).expect("JSON");
    assert!(stats["stats"]["ready"].as_u64() > Some(0), "{stats}");
}

#[test]
fn a_full_disk_behind_standard_output_is_an_error_not_a_panic() {
    let place = place(&["orders"]);
    place.done(&["queue", "publish", URL, "orders", "x"]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let child = place.command(&["queue", "consume", URL, "orders"]).stdout(Stdio::from(full)).spawn();
    let end = ended(child.expect("the binary starts"));
    assert_eq!(end.code, Some(1));
    assert!(end.err.contains("cannot write to standard output"), "{}", end.err);
    assert_eq!(place.done(&["queue", "consume", URL, "orders"]), "x\n");
}

/// A place with letters in `orders.dead` that say that they died in `orders`.
fn place_with_letters(letters: &[&str]) -> Place {
    let place = place(&["orders", "orders.dead"]);
    let headers = ["tenant=north", "reason=maxlen", "queue=orders", "exchange=", "key=orders"];
    for letter in letters {
        let mut command = vec!["queue".to_owned(), "publish".into(), URL.into(), "orders.dead".into()];
        command.push((*letter).into());
        for header in headers {
            let death = if header.starts_with("tenant") { "" } else { "millstream-dead-" };
            command.extend(["--header".into(), format!("{death}{header}")]);
        }
        place.done(&command.iter().map(String::as_str).collect::<Vec<_>>());
    }
    place
}

#[test]
fn dead_letters_are_grouped_shown_replayed_and_discarded() {
    let place = place_with_letters(&["one", "two", "three"]);
    let list = place.done(&["dead-letters", "list", URL]);
    assert!(list.contains("orders.dead: 3 dead letters"), "{list}");
    assert!(list.contains("maxlen") && list.contains("orders") && list.contains("one"), "{list}");
    let json = place.done(&["dead-letters", "list", URL, "orders.dead", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("one group, one line");
    assert_eq!((&json["letters"], &json["from"]), (&3.into(), &"orders".into()));

    let show = place.done(&["dead-letters", "show", URL, "orders.dead", "--max", "1"]);
    for part in
        ["letter 1", "reason     maxlen", "came from  queue `orders`", "tenant     north", "body       one"]
    {
        assert!(show.contains(part), "{part}: {show}");
    }
    assert!(!show.contains("letter 2"), "{show}");
    assert_eq!(place.done(&["dead-letters", "show", URL, "orders.dead", "--matching", "no such reason"]), "");

    // Back where it came from, without the headers of its death.
    let end = place.run(&["dead-letters", "replay", URL, "orders.dead", "--max", "1"]);
    assert_eq!((end.code, end.err.trim()), (Some(0), "replayed 1 dead letter"));
    let back = place.done(&["queue", "peek", URL, "orders", "--json"]);
    let back: serde_json::Value = serde_json::from_str(&back).expect("one message");
    let headers = serde_json::json!({ "tenant": "north", "millstream-replays": 1 });
    assert_eq!((&back["body"], &back["headers"]), (&"one".into(), &headers));

    // Or somewhere else, which must be there.
    let end = place.run(&["dead-letters", "replay", URL, "orders.dead", "--max", "1", "--to", "elsewhere"]);
    assert_eq!(end.code, Some(1));
    assert!(end.err.contains("millstream queue declare embedded:state elsewhere"), "{}", end.err);
    place.done(&["queue", "declare", URL, "elsewhere"]);
    place.done(&["dead-letters", "replay", URL, "orders.dead", "--max", "1", "--to", "elsewhere"]);
    assert_eq!(place.done(&["queue", "peek", URL, "elsewhere"]), "two\n");

    assert_eq!(place.run(&["dead-letters", "discard", URL, "orders.dead"]).code, Some(2));
    let end = place.run(&["dead-letters", "discard", URL, "orders.dead", "--matching", "maxlen", "--yes"]);
    assert_eq!((end.code, end.err.trim()), (Some(0), "discarded 1 dead letter"));
    assert!(place.done(&["dead-letters", "list", URL]).contains("holds no dead letters"));
}

#[test]
fn a_reason_is_shown_as_it_is_unless_letters_differ_in_it() {
    let place = place(&["letters"]);
    for detail in ["byte 0xff is not UTF-8", "byte 0xff is not UTF-8", "row 1", "row 2"] {
        let header = format!("millstream-dead-detail={detail}");
        let reason = "millstream-dead-reason=rejected";
        place.done(&["queue", "publish", URL, "letters", "x", "--header", &header, "--header", reason]);
    }
    let list = place.done(&["dead-letters", "list", URL]);
    assert!(list.contains("rejected: byte 0xff is not UTF-8") && list.contains("rejected: row #"), "{list}");
}

#[test]
fn a_letter_that_does_not_say_where_it_came_from_stays_and_is_counted() {
    let place = place(&["letters"]);
    place.done(&["queue", "publish", URL, "letters", "who am I"]);
    let end = place.run(&["dead-letters", "replay", URL, "letters"]);
    assert_eq!(end.code, Some(1));
    assert!(
        end.err.contains("1 dead letter without a word of where") && end.err.contains("--to QUEUE"),
        "{}",
        end.err
    );
    assert_eq!(place.done(&["queue", "peek", URL, "letters"]), "who am I\n");
}

#[test]
fn letters_that_are_not_meant_keep_their_place() {
    let place = place(&["letters"]);
    place.done(&["queue", "publish", URL, "letters", "a", "--header", "millstream-dead-detail=bad row"]);
    place.done(&["queue", "publish", URL, "letters", "b", "--header", "millstream-dead-detail=too late"]);
    place.done(&["queue", "publish", URL, "letters", "c", "--header", "millstream-dead-detail=bad row"]);
    place.done(&["dead-letters", "discard", URL, "letters", "--matching", "too late", "--yes"]);
    assert_eq!(place.done(&["queue", "consume", URL, "letters"]), "a\nc\n");
}

#[test]
fn the_memory_broker_is_empty_and_a_server_is_refused_with_the_reason() {
    let place = Place::new();
    assert!(place.done(&["queue", "list", "memory:"]).contains("memory: has no queue"));
    let end = place.run(&["queue", "list", "amqp://localhost"]);
    assert_eq!(end.code, Some(1));
    assert!(end.err.contains("amqp://localhost"), "{}", end.err);
}

#[test]
fn a_topology_is_declared_from_a_file_and_what_differs_is_shown_first() {
    let place = Place::new();
    let text = "
exchanges:
  orders: { kind: topic, alternate: rest }
  rest: { kind: fanout }
queues:
  north: { max_items: 5 }
  others:
bindings:
  - { from: orders, to: north, key: '*.north' }
  - { from: rest, to: others }
";
    place.write("topology.yaml", text);
    let on = ["topology.yaml", "--broker", URL];
    let check = place.run(&[&["topology", "check"], &on[..]].concat());
    assert_eq!(check.code, Some(1));
    assert!(check.err.contains("6 missing, 0 declared otherwise"), "{}", check.err);
    place.done(&[&["topology", "apply"], &on[..]].concat());
    let all = place.done(&[&["topology", "check"], &on[..]].concat());
    assert_eq!(all.matches("as declared").count(), 6, "{all}");

    place.write("topology.yaml", &text.replace("max_items: 5", "max_items: 6").replace("others", "more"));
    let apply = place.run(&[&["topology", "apply"], &on[..]].concat());
    assert_eq!(apply.code, Some(1));
    assert!(apply.out.contains("max_items: has 5, asked for 6"), "{}", apply.out);
    assert!(!place.done(&["queue", "list", URL]).contains("more"), "nothing was changed");

    place.write("topology.yaml", "queues:\n  north: { max_item: 5 }\n");
    let wrong = place.run(&[&["topology", "apply"], &on[..]].concat());
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.err.contains("topology.yaml:2:12: unknown key `max_item`"), "{}", wrong.err);
}

#[test]
fn a_queue_is_deleted_when_that_is_really_meant() {
    let place = place(&["orders"]);
    place.done(&["queue", "publish", URL, "orders", "tea"]);
    let asked = place.run(&["queue", "delete", URL, "orders"]);
    assert_eq!(asked.code, Some(2));
    assert!(asked.err.contains("1 message") && asked.err.contains("--yes"), "{}", asked.err);
    place.done(&["queue", "delete", URL, "orders", "--yes"]);
    assert!(place.done(&["queue", "list", URL]).contains("has no queue"));
    assert_eq!(place.run(&["queue", "delete", URL, "orders", "--yes"]).code, Some(1), "it is not there");
}

#[test]
fn looking_at_a_directory_without_a_broker_is_refused_and_makes_none() {
    let place = Place::new();
    std::fs::create_dir(place.path("empty")).expect("a directory");
    for url in ["embedded:nosuch", "embedded:empty"] {
        for command in [
            &["queue", "list", url][..],
            &["queue", "stats", url, "q"],
            &["queue", "peek", url, "q"],
            &["queue", "consume", url, "q"],
            &["queue", "purge", url, "q", "--yes"],
            &["queue", "delete", url, "q", "--yes"],
            &["stream", "stats", url, "s"],
            &["stream", "read", url, "s"],
            &["stream", "delete", url, "s", "--yes"],
            &["dead-letters", "list", url],
        ] {
            let end = place.run(command);
            assert_eq!(end.code, Some(2), "{command:?}: {}", end.err);
            let name = url.trim_start_matches("embedded:");
            assert!(
                end.err.contains(&format!("there is no broker in {name}; check the path")),
                "{}",
                end.err
            );
            assert!(!place.path("nosuch").exists(), "{command:?} made it");
            assert!(std::fs::read_dir(place.path("empty")).expect("listed").next().is_none(), "{command:?}");
        }
    }
    place.done(&["queue", "declare", "embedded:nosuch", "q"]);
    assert!(place.done(&["queue", "list", "embedded:nosuch"]).contains('q'));
}

/// A message that two queues have of an exchange, and that died in one of them.
async fn died_in_one_of_two(place: &Place) {
    let url = format!("embedded:{}", place.path("state").display()).parse().expect("a URL");
    let broker = millstream_embedded::open(&url).await.expect("opened");
    broker.declare_exchange(Exchange::durable("orders", ExchangeKind::Fanout)).await.expect("declared");
    broker.declare_queue(Queue::durable("dead")).await.expect("declared");
    for queue in [Queue::durable("one").dead_letter("", "dead"), Queue::durable("two")] {
        let name = queue.name.clone();
        broker.declare_queue(queue).await.expect("declared");
        broker.bind(Binding::new("orders", "", &name)).await.expect("bound");
    }
    let message = Message::new("tea").with_header("amqp-user-id", "somebody");
    assert!(broker.publish(&Address::new("orders", "north"), message).await.expect("taken").is_confirmed());
    let mut consumer = broker.consume("one", ConsumeOptions::default()).await.expect("consumed");
    let delivery = consumer.next().await.expect("it is there").expect("read");
    assert!(delivery.nack(&Nack::dead_letter("not today")));
    drop((delivery, consumer));
    broker.close().await.expect("closed");
}

#[tokio::test]
async fn a_letter_goes_back_into_the_queue_it_died_in_and_into_others_only_if_that_is_said() {
    let place = Place::new();
    died_in_one_of_two(&place).await;
    let same = place.run(&["dead-letters", "replay", URL, "dead", "--to", "dead"]);
    assert!(same.code == Some(2) && same.err.contains("`dead` is where the letters are"), "{}", same.err);
    place.done(&["dead-letters", "replay", URL, "dead"]);
    let back = place.done(&["queue", "peek", URL, "one", "--json"]);
    let back: serde_json::Value = serde_json::from_str(&back).expect("one message");
    assert_eq!(
        (&back["body"], &back["headers"]),
        (&"tea".into(), &serde_json::json!({ "millstream-replays": 1 }))
    );
    assert_eq!(place.done(&["queue", "consume", URL, "two"]), "tea\n", "it is not there twice");

    let place = Place::new();
    died_in_one_of_two(&place).await;
    place.done(&["dead-letters", "replay", URL, "dead", "--as-published"]);
    assert_eq!(place.done(&["queue", "consume", URL, "one"]), "tea\n");
    assert_eq!(place.done(&["queue", "consume", URL, "two"]), "tea\ntea\n");
}

use std::sync::{Arc, Mutex};

use millstream_flow::{BoxError, Pipe};
use millstream_mediator::{
    Authorize, Context, Error, ErrorKind, Mediator, Notification, Request, Scope, StreamRequest, Timeout,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;

#[derive(Deserialize)]
struct Greet {
    name: String,
}
impl Request for Greet {
    type Response = Greeting;
}
#[derive(Serialize)]
struct Greeting {
    text: String,
}
#[derive(Deserialize)]
struct Happened(u32);
impl Notification for Happened {}

#[derive(Deserialize)]
struct Count {
    to: u32,
}
impl StreamRequest for Count {
    type Item = u32;
}

#[tokio::test]
async fn calls_by_name_go_through_the_same_handlers_and_behaviours() {
    let happened = Arc::new(Mutex::new(Vec::new()));
    let mediator = Mediator::builder()
        .behaviour(Timeout::new(Duration::from_secs(1)))
        .request(async |greet: Greet| Ok::<_, BoxError>(Greeting { text: format!("hello {}", greet.name) }))
        .notification_with(happened.clone(), async |all: Arc<Mutex<Vec<u32>>>, one: Arc<Happened>| {
            all.lock().unwrap().push(one.0);
            Ok::<_, BoxError>(())
        })
        .stream(async |count: Count| Ok::<_, Error>(Pipe::from_iter(0..count.to).map(Ok::<_, Error>)))
        .json::<Greet>()
        .json_notification::<Happened>()
        .json_stream::<Count>()
        .build()
        .unwrap();
    let greeting = mediator.send_json("Greet", json!({"name": "Ada"})).await.unwrap();
    assert_eq!(greeting, json!({"text": "hello Ada"}));
    assert!(mediator.publish_json("Happened", json!(3)).await.unwrap().into_result().is_ok());
    assert_eq!(*happened.lock().unwrap(), [3]);
    let (items, _) = mediator.stream_json("Count", json!({"to": 3})).await.unwrap().collect().await.unwrap();
    let items: Vec<_> = items.into_iter().map(Result::unwrap).collect();
    assert_eq!(items, [json!(0), json!(1), json!(2)]);

    let error = mediator.send_json("Greet", json!({"nam": "Ada"})).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Malformed);
    assert!(
        millstream_flow::chain(&error).contains("missing field `name`"),
        "{}",
        millstream_flow::chain(&error)
    );
    for name in ["greet", "Happened"] {
        let error = mediator.send_json(name, json!(null)).await.unwrap_err();
        assert_eq!((error.kind(), error.message()), (&ErrorKind::NoHandler, name));
    }
    let table = mediator.describe().to_string();
    assert!(table.contains("timeout 1s (json)"), "{table}");
}

#[tokio::test]
async fn calls_by_name_bring_along_what_their_caller_gives() {
    struct Ada;
    let mediator = Mediator::builder()
        .behaviour_for(
            Scope::when("all", |_| true),
            Authorize::new(|call| call.context().get::<Ada>().map(drop).ok_or_else(|| "who asks?".into())),
        )
        .request(async |greet: Greet| Ok::<_, BoxError>(Greeting { text: greet.name }))
        .notification(async |_: Arc<Happened>| Ok::<_, BoxError>(()))
        .stream(async |count: Count| Ok::<_, Error>(Pipe::from_iter(0..count.to).map(Ok::<_, Error>)))
        .json::<Greet>()
        .json_notification::<Happened>()
        .json_stream::<Count>()
        .build()
        .unwrap();
    for (context, allowed) in [(Context::new(), false), (Context::new().with(Ada), true)] {
        let sent = mediator.send_json_in(&context, "Greet", json!({"name": "Ada"})).await;
        assert_eq!(sent.is_ok(), allowed);
        let published = mediator.publish_json_in(&context, "Happened", json!(3)).await.unwrap();
        assert_eq!(published.into_result().is_ok(), allowed);
        let opened = mediator.stream_json_in(&context, "Count", json!({"to": 3})).await;
        assert_eq!(opened.is_ok(), allowed);
    }
}

#[tokio::test]
async fn items_that_cannot_be_written_have_the_handlers_position_and_were_not_delivered() {
    use millstream_mediator::{ItemErrors, StreamOptions};
    struct Item(u32);
    impl Serialize for Item {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match self.0 {
                2 => Err(serde::ser::Error::custom("not two")),
                5 => panic!("not five"),
                n => serializer.serialize_u32(n),
            }
        }
    }
    #[derive(Deserialize)]
    struct Items(u32);
    impl StreamRequest for Items {
        type Item = Item;
    }
    let mediator = |errors| {
        Mediator::builder()
            .stream_options::<Items>(StreamOptions::new().item_errors(errors))
            .stream(async |Items(to)| {
                let items = Pipe::from_iter(0..to);
                Ok::<_, Error>(
                    items.map(|n| if n % 3 == 1 { Err(BoxError::from("bad")) } else { Ok(Item(n)) }),
                )
            })
            .json_stream::<Items>()
            .build()
            .unwrap()
    };
    for (errors, failed) in [
        (ItemErrors::skip(), &[(2, 1, false), (5, 2, true)][..]),
        (ItemErrors::pass(), &[(1, 1, false), (2, 1, false), (4, 2, false), (5, 2, true)]),
    ] {
        let stream = mediator(errors).stream_json("Items", json!(9)).await.unwrap();
        let (items, _) = stream.collect().await.unwrap();
        let (good, bad): (Vec<_>, Vec<_>) = items.into_iter().partition(Result::is_ok);
        assert_eq!(good.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [json!(0), json!(3)]);
        let bad: Vec<_> = bad.into_iter().map(Result::unwrap_err).collect();
        let seen: Vec<_> =
            bad.iter().map(|error| (error.position(), error.delivered(), error.is_last())).collect();
        assert_eq!(seen, failed);
        assert_eq!(bad.last().unwrap().error().kind(), &ErrorKind::Panicked);
    }
}

#[test]
fn what_is_opened_to_json_has_a_handler() {
    let error =
        Mediator::builder().json::<Greet>().json_notification::<Happened>().json_stream::<Count>().build();
    assert_eq!(error.unwrap_err().problems().len(), 3);
}

#[tokio::test]
async fn what_the_door_refuses_is_counted_and_logged() {
    let mediator = Mediator::builder()
        .request(async |_: Greet| Err::<Greeting, BoxError>("asleep".into()))
        .notification(async |_: Arc<Happened>| Ok::<_, BoxError>(()))
        .stream(async |count: Count| Ok::<_, Error>(Pipe::from_iter(0..count.to).map(Ok::<_, Error>)))
        .json::<Greet>()
        .json_notification::<Happened>()
        .json_stream::<Count>()
        .build()
        .unwrap();
    let refusals = |labels: &[(&str, &str)]| {
        mediator.metrics().snapshot().number("mediator_json_refusals_total", labels)
    };
    let (text, _guard) = crate::support::logged(tracing::Level::INFO);
    assert!(mediator.send_json("Greet", json!({"name": "Ada"})).await.is_err());
    assert_eq!(refusals(&[]), None, "what a handler refuses is not the door's");
    assert!(mediator.send_json("Greet", json!(1)).await.is_err());
    assert!(mediator.publish_json("Happened", json!("x")).await.is_err());
    assert!(mediator.stream_json("Count", json!([])).await.is_err());
    for name in ["Happened".to_owned(), "x".repeat(1000)] {
        assert!(mediator.send_json(&name, json!(1)).await.is_err());
    }
    for name in ["Greet", "Happened", "Count"] {
        assert_eq!(refusals(&[("type", name), ("status", "malformed")]), Some(1.0), "{name}");
    }
    assert_eq!(refusals(&[("type", ""), ("status", "no_handler")]), Some(2.0), "strangers make no series");
    let text = text();
    assert_eq!(text.matches("a call by name was refused").count(), 5, "{text}");
    assert!(text.contains("invalid type: integer"), "{text}");
}

#[tokio::test]
async fn a_panic_at_a_message_or_a_response_is_an_error_and_an_unwritten_response_no_refusal() {
    struct Odd(u32);
    impl<'de> Deserialize<'de> for Odd {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let n = u32::deserialize(deserializer)?;
            assert!(n != 1, "not one");
            Ok(Odd(n))
        }
    }
    struct Word(u32);
    impl Serialize for Word {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            assert!(self.0 != 2, "not two");
            if self.0 == 3 {
                Err(serde::ser::Error::custom("not three"))
            } else {
                serializer.serialize_u32(self.0)
            }
        }
    }
    impl Request for Odd {
        type Response = Word;
    }
    #[derive(Deserialize)]
    struct Seen(#[expect(dead_code, reason = "read, and then not looked at")] Odd);
    impl Notification for Seen {}
    let mediator = Mediator::builder()
        .request(async |odd: Odd| Ok::<_, BoxError>(Word(odd.0)))
        .notification(async |_: Arc<Seen>| Ok::<_, BoxError>(()))
        .json::<Odd>()
        .json_notification::<Seen>()
        .build()
        .unwrap();
    assert_eq!(mediator.send_json("Odd", json!(0)).await.unwrap(), json!(0));
    for (n, kind) in [(1, ErrorKind::Panicked), (2, ErrorKind::Panicked), (3, ErrorKind::Malformed)] {
        assert_eq!(mediator.send_json("Odd", json!(n)).await.unwrap_err().kind(), &kind, "{n}");
    }
    assert_eq!(mediator.publish_json("Seen", json!(1)).await.unwrap_err().kind(), &ErrorKind::Panicked);
    for (status, count) in [("panicked", Some(1.0)), ("malformed", None)] {
        let labels = [("type", "Odd"), ("status", status)];
        assert_eq!(
            mediator.metrics().snapshot().number("mediator_json_refusals_total", &labels),
            count,
            "{status}"
        );
    }
}

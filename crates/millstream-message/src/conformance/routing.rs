//! Declaring, routing, and the outcomes of publishing.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::{Bench, claims, text, texts};
use crate::error::BrokerErrorKind;
use crate::message::{Message, Properties};
use crate::publish::{Address, Batch, Publish, PublishOutcome, Refusal};
use crate::topology::{Binding, Exchange, ExchangeKind, HeaderMatch, Queue};
use crate::value::{Headers, Value};

claims![
    declaring_twice_is_fine_and_differently_is_not,
    a_direct_exchange_routes_by_key,
    a_fanout_exchange_routes_to_all_once_each,
    a_topic_exchange_routes_by_pattern,
    a_headers_exchange_routes_by_headers,
    an_unbound_queue_gets_nothing_more,
    an_unroutable_message_comes_back,
    an_unknown_exchange_refuses,
    properties_come_back_as_published,
    every_message_of_a_batch_has_its_outcome,
    confirms_resolve_in_order_and_messages_stay_in_order,
    queues_are_listed needs list,
    what_is_deleted_is_gone,
];

async fn exchange(bench: &Bench, kind: ExchangeKind) -> String {
    let name = bench.name("exchange");
    bench
        .broker()
        .declare_exchange(Exchange::transient(&name, kind))
        .await
        .expect("the exchange is declared");
    name
}

async fn bind(bench: &Bench, exchange: &str, key: &str, queue: &str) {
    bench.broker().bind(Binding::new(exchange, key, queue)).await.expect("the binding is made");
}

async fn publish(bench: &Bench, exchange: &str, key: &str, message: Message) -> PublishOutcome {
    bench.broker().publish(&Address::new(exchange, key), message).await.expect("the broker takes it")
}

async fn declaring_twice_is_fine_and_differently_is_not(bench: &mut Bench) {
    let broker = bench.broker();
    let queue = Queue::transient(bench.name("queue")).max_items(5);
    broker.declare_queue(queue.clone()).await.expect("first");
    broker.declare_queue(queue.clone()).await.expect("again");
    let error = broker.declare_queue(queue.max_items(6)).await.expect_err("differs");
    assert_eq!(error.kind(), BrokerErrorKind::Mismatch);
    assert!(error.to_string().contains("max_items: has 5, asked for 6"), "{error}");

    let name = exchange(bench, ExchangeKind::Topic).await;
    broker.declare_exchange(Exchange::transient(&name, ExchangeKind::Topic)).await.expect("again");
    let other = broker.declare_exchange(Exchange::transient(&name, ExchangeKind::Direct)).await;
    assert_eq!(other.expect_err("differs").kind(), BrokerErrorKind::Mismatch);
    let empty = broker.declare_queue(Queue::transient("")).await;
    assert_eq!(empty.expect_err("no name").kind(), BrokerErrorKind::Invalid);
}

async fn a_direct_exchange_routes_by_key(bench: &mut Bench) {
    let name = exchange(bench, ExchangeKind::Direct).await;
    let (red, blue) = (bench.queue(Queue::transient).await, bench.queue(Queue::transient).await);
    bind(bench, &name, "red", &red).await;
    bind(bench, &name, "blue", &blue).await;
    bind(bench, &name, "green", &blue).await;
    for key in ["red", "blue", "green"] {
        assert!(publish(bench, &name, key, Message::new(key)).await.is_confirmed());
    }
    assert_eq!(bench.drain(&red).await, ["red"]);
    assert_eq!(bench.drain(&blue).await, ["blue", "green"]);
}

async fn a_fanout_exchange_routes_to_all_once_each(bench: &mut Bench) {
    let name = exchange(bench, ExchangeKind::Fanout).await;
    let (one, two) = (bench.queue(Queue::transient).await, bench.queue(Queue::transient).await);
    bind(bench, &name, "", &one).await;
    bind(bench, &name, "", &two).await;
    bind(bench, &name, "again", &two).await;
    assert!(publish(bench, &name, "any", Message::new("x")).await.is_confirmed());
    assert_eq!(bench.drain(&one).await, ["x"]);
    assert_eq!(bench.drain(&two).await, ["x"], "a queue bound twice gets one copy");
}

async fn a_topic_exchange_routes_by_pattern(bench: &mut Bench) {
    let name = exchange(bench, ExchangeKind::Topic).await;
    let (star, hash) = (bench.queue(Queue::transient).await, bench.queue(Queue::transient).await);
    bind(bench, &name, "flight.*.late", &star).await;
    bind(bench, &name, "flight.#", &hash).await;
    for key in ["flight.UA.late", "flight.late", "flight", "flight.UA.1.late"] {
        assert!(publish(bench, &name, key, Message::new(key)).await.is_confirmed());
    }
    assert_eq!(bench.drain(&star).await, ["flight.UA.late"]);
    assert_eq!(bench.drain(&hash).await.len(), 4);
}

async fn a_headers_exchange_routes_by_headers(bench: &mut Bench) {
    let name = exchange(bench, ExchangeKind::Headers).await;
    let (all, any) = (bench.queue(Queue::transient).await, bench.queue(Queue::transient).await);
    let wanted = Headers::from([("a".to_owned(), Value::Int(1)), ("b".to_owned(), "x".into())]);
    for (matching, queue) in [(HeaderMatch::All, &all), (HeaderMatch::Any, &any)] {
        let binding = Binding::headers(&name, matching, wanted.clone(), queue);
        bench.broker().bind(binding).await.expect("the binding is made");
    }
    let one = Message::new("one").with_header("a", 1_i64);
    let both = Message::new("both").with_header("a", 1_i64).with_header("b", "x");
    let neither = Message::new("neither").with_header("a", 2_i64);
    assert!(publish(bench, &name, "", one).await.is_confirmed());
    assert!(publish(bench, &name, "", both).await.is_confirmed());
    assert!(matches!(publish(bench, &name, "", neither).await, PublishOutcome::Unroutable(_)));
    assert_eq!(bench.drain(&all).await, ["both"]);
    assert_eq!(bench.drain(&any).await, ["one", "both"]);
}

async fn an_unbound_queue_gets_nothing_more(bench: &mut Bench) {
    let name = exchange(bench, ExchangeKind::Direct).await;
    let queue = bench.queue(Queue::transient).await;
    bind(bench, &name, "k", &queue).await;
    bench.broker().unbind(Binding::new(&name, "k", &queue)).await.expect("unbound");
    bench.broker().unbind(Binding::new(&name, "k", &queue)).await.expect("again is fine");
    let outcome = publish(bench, &name, "k", Message::new("x")).await;
    let PublishOutcome::Unroutable(returned) = outcome else { panic!("{outcome:?}") };
    assert!(returned.reason.contains(&name), "it says where no queue is bound: {}", returned.reason);
}

async fn an_unroutable_message_comes_back(bench: &mut Bench) {
    let missing = bench.name("missing");
    let message = Message::new("x").with_header("h", 1_i64);
    let outcome = publish(bench, "", &missing, message.clone()).await;
    let PublishOutcome::Unroutable(returned) = outcome else { panic!("{outcome:?}") };
    assert_eq!(returned.publish.message, message);
    assert_eq!(returned.publish.to, Address::queue(&missing));
    assert!(returned.reason.contains(&missing), "it says what is missing: {}", returned.reason);
}

async fn an_unknown_exchange_refuses(bench: &mut Bench) {
    let missing = bench.name("missing");
    let outcome = publish(bench, &missing, "k", Message::new("x")).await;
    assert!(
        matches!(&outcome, PublishOutcome::Refused(Refusal::NoExchange { exchange }) if *exchange == missing)
    );
}

async fn properties_come_back_as_published(bench: &mut Bench) {
    let nested = Headers::from([("deep".to_owned(), Value::List(vec![Value::Int(1), Value::Null]))]);
    let properties = Properties {
        headers: Headers::from([
            ("text".to_owned(), "é".into()),
            ("int".to_owned(), Value::Int(-5)),
            ("float".to_owned(), Value::Float(1.5)),
            ("bool".to_owned(), Value::Bool(true)),
            ("bytes".to_owned(), Value::Bytes(Bytes::from_static(&[0, 255]))),
            ("map".to_owned(), Value::Map(nested)),
        ]),
        content_type: Some("application/json".to_owned()),
        content_encoding: Some("gzip".to_owned()),
        message_id: Some("m-1".to_owned()),
        correlation_id: Some("c-1".to_owned()),
        reply_to: Some("answers".to_owned()),
        // Whole seconds: AMQP's timestamps are no finer.
        timestamp: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
        ttl: Some(Duration::from_secs(3600)),
        delay: None,
        priority: 3,
        persistent: true,
    };
    let message = Message::from_parts(Bytes::from_static(&[0, 1, 255]), properties);
    let queue = bench.queue(Queue::durable).await;
    bench.send(&queue, [message.clone()]).await;
    let mut consumer = bench.consumer(&queue).await;
    let delivery = bench.take(&mut consumer, 1).await.remove(0);
    assert_eq!(delivery.message, message);
    assert_eq!(delivery.address, Address::queue(&queue));
    assert_eq!(delivery.queue(), queue);
}

async fn every_message_of_a_batch_has_its_outcome(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    let to = |key: &str, body: &'static str| Publish { to: Address::queue(key), message: Message::new(body) };
    let missing = bench.name("missing");
    let batch = Batch::from(vec![to(&queue, "a"), to(&missing, "b"), to(&queue, "c")]);
    let outcomes = bench.broker().publish_batch(batch).await.expect("the broker takes it");
    assert_eq!((outcomes.len(), outcomes.confirmed_count()), (3, 2));
    assert!(
        matches!(outcomes.get(1), PublishOutcome::Unroutable(returned) if returned.publish.message.body() == "b")
    );
    assert_eq!(bench.drain(&queue).await, ["a", "c"]);
}

async fn confirms_resolve_in_order_and_messages_stay_in_order(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    let to = Address::queue(&queue);
    let mut confirms = Vec::new();
    for batch in 0..20 {
        let messages = (0..10).map(|i| Message::new(format!("{}", batch * 10 + i)));
        confirms.push(bench.broker().submit(Batch::to(&to, messages)).await.expect("the broker takes it"));
    }
    for confirm in confirms {
        assert!(confirm.await.all_confirmed());
    }
    let mut consumer = bench.consumer(&queue).await;
    let got = texts(&bench.take(&mut consumer, 200).await);
    assert_eq!(got, (0..200).map(|i| i.to_string()).collect::<Vec<_>>());
}

async fn queues_are_listed(bench: &mut Bench) {
    let queue = bench.queue(|name| Queue::transient(name).max_items(3)).await;
    assert!(bench.broker().queues().await.expect("listed").contains(&queue));
    let spec = bench.broker().queue(&queue).await.expect("looked up").expect("it is there");
    assert_eq!(spec, Queue::transient(&queue).max_items(3));
    assert_eq!(bench.broker().queue(&bench.name("missing")).await.expect("looked up"), None);
}

async fn what_is_deleted_is_gone(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a", "b"]).await;
    let mut consumer = bench.consume(&queue, crate::ConsumeOptions::default().prefetch(1)).await;
    let first = bench.take(&mut consumer, 1).await.remove(0);
    assert_eq!(text(&first), "a");
    assert_eq!(bench.broker().delete_queue(&queue).await.expect("deleted"), 1, "one was ready");
    assert_eq!(bench.broker().delete_queue(&queue).await.expect("again is fine"), 0);
    let end = super::within(bench.claim, consumer.next()).await;
    assert_eq!(end.expect("it says why").expect_err("the queue is gone").kind(), BrokerErrorKind::NotFound);
    assert!(matches!(publish(bench, "", &queue, Message::new("x")).await, PublishOutcome::Unroutable(_)));
    let error = bench.broker().stats(&queue).await.expect_err("it is gone");
    assert_eq!(error.kind(), BrokerErrorKind::NotFound);

    let exchange = exchange(bench, ExchangeKind::Fanout).await;
    bench.broker().delete_exchange(&exchange).await.expect("deleted");
    let outcome = publish(bench, &exchange, "", Message::new("x")).await;
    assert!(matches!(outcome, PublishOutcome::Refused(Refusal::NoExchange { .. })));
}

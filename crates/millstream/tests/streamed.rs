//! Streams of RabbitMQ where queues are asked for, through [`millstream::open`].

use std::time::Duration;

use millstream::prelude::*;
use millstream_testing::{Node, Setup};
use tokio::time::timeout;

#[tokio::test]
async fn what_is_opened_as_a_broker_of_streams_is_used_like_one_of_queues() {
    let node = Node::start(Setup::default().plugin("rabbitmq_stream")).await.expect("it starts");
    let used = async {
        let broker = millstream::open(&node.stream_url("")).await.expect("opened");
        broker.declare_queue(Queue::durable("events")).await.expect("declared");
        let to = Address::queue("events");
        for body in ["a", "b", "c"] {
            assert!(broker.publish(&to, Message::new(body)).await.expect("taken").is_confirmed());
        }
        let options = || ConsumeOptions::default().name("one").stop_when_empty();
        let mut first = broker.consume("events", options()).await.expect("consumed");
        let second = broker.consume("events", options()).await;
        assert!(second.is_err(), "a second one of this name would get everything again");
        let taken = first.next().await.expect("it goes on").expect("it can be read");
        assert!(taken.message.body() == "a" && taken.ack());
        drop((first, taken));
        let mut next = broker.consume("events", options()).await.expect("consumed");
        let mut rest = Vec::new();
        while let Some(delivery) = next.next().await {
            rest.push(delivery.expect("it can be read").message.body().clone());
        }
        assert_eq!(rest, ["b", "c"]);
        broker.close().await.expect("closed");
    };
    timeout(Duration::from_secs(300), used).await.expect("in time");
}

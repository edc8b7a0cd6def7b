//! Replies that need no queue.

use std::time::Duration;

use millstream_message::{
    Address, Broker, ConsumeOptions, Consumer, Delivery, Exchange, ExchangeKind, Message, PublishOutcome,
    Queue, Refusal,
};
use millstream_rabbitmq::RabbitMq;
use millstream_testing::{shared, unique};
use tokio::time::{sleep, timeout};

const LONG: Duration = Duration::from_secs(60);

async fn connected() -> RabbitMq {
    RabbitMq::connect(&shared().await.url()).await.expect("connected")
}

/// A queue for requests, and who takes them.
async fn served(by: &RabbitMq) -> (Address, Consumer) {
    let queue = unique("requests");
    by.declare_queue(Queue::durable(&queue)).await.expect("declared");
    let requests = by.consume(&queue, ConsumeOptions::default()).await.expect("consumed");
    (Address::queue(queue), requests)
}

async fn next(consumer: &mut Consumer) -> Delivery {
    timeout(LONG, consumer.next()).await.expect("it comes").expect("it goes on").expect("read")
}

/// Where a request's replies go, and what they are told apart by.
fn reply_to(request: &Delivery) -> (Address, String) {
    let properties = request.message.properties();
    let to = properties.reply_to.clone().expect("it asks for a reply");
    (Address::queue(to), properties.correlation_id.clone().expect("it has one"))
}

/// Sends a reply. RabbitMQ says that no queue wants it, which is true.
async fn answer_with(broker: &RabbitMq, to: &Address, reply: Message) {
    let told = broker.publish(to, reply).await.expect("taken");
    assert!(matches!(told, PublishOutcome::Confirmed | PublishOutcome::Unroutable(_)), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_closes_the_channel_of_publishers_loses_no_reply() {
    let (asking, answering) = (connected().await, connected().await);
    let (to, mut requests) = served(&answering).await;
    let (exchange, queue) = (unique("exchange"), unique("queue"));
    let declare = async || {
        let exchange = Exchange::durable(&exchange, ExchangeKind::Fanout);
        answering.declare_exchange(exchange).await.expect("declared");
    };
    declare().await;
    answering.declare_queue(Queue::durable(&queue)).await.expect("declared");
    let there = Address::new(&exchange, "k");
    assert!(matches!(
        asking.publish(&there, Message::new("1")).await.expect("taken"),
        PublishOutcome::Unroutable(_)
    ));

    let mut replies = asking.direct_replies().await.expect("asked").expect("RabbitMQ has them");
    let request = Message::new("?")
        .with_reply_to(&replies.reply_to)
        .with_correlation_id(format!("{}7", replies.correlation_prefix));
    assert!(asking.publish(&to, request).await.expect("taken").is_confirmed());
    let request = next(&mut requests).await;

    // The exchange is known to be there, and is not: the broker closes the channel.
    answering.delete_exchange(&exchange).await.expect("deleted");
    for _ in 0..2 {
        let refused = asking.publish(&there, Message::new("2")).await.expect("taken");
        assert!(matches!(refused, PublishOutcome::Refused(Refusal::NoExchange { .. })), "{refused:?}");
    }
    let (back, id) = reply_to(&request);
    let reply = Message::new("!").with_correlation_id(id).transient();
    answer_with(&answering, &back, reply).await;
    assert_eq!(next(&mut replies.consumer).await.message.body(), "!");

    // An exchange that is declared later is found.
    declare().await;
    answering.bind(millstream_message::Binding::new(&exchange, "k", &queue)).await.expect("bound");
    assert!(asking.publish(&there, Message::new("3")).await.expect("taken").is_confirmed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_nobody_takes_wait_at_the_broker_and_hold_up_nothing_else() {
    const REPLIES: usize = 600;
    const SIZE: usize = 128 << 10;
    let (asking, answering) = (connected().await, connected().await);
    let (to, mut requests) = served(&answering).await;
    let mut replies = asking.direct_replies().await.expect("asked").expect("RabbitMQ has them");
    let id = format!("{}1", replies.correlation_prefix);
    let request = Message::new("?").with_reply_to(&replies.reply_to).with_correlation_id(id);
    assert!(asking.publish(&to, request).await.expect("taken").is_confirmed());
    let (back, id) = reply_to(&next(&mut requests).await);
    let read_before = asking.statistics().bytes_in;
    let answer = async {
        for number in 0..REPLIES {
            let mut body = vec![0; SIZE];
            body[..8].copy_from_slice(&(number as u64).to_le_bytes());
            let reply = Message::new(body).with_correlation_id(&id).transient();
            answer_with(&answering, &back, reply).await;
        }
    };
    timeout(LONG, answer).await.expect("the broker takes them");
    // Until no more is read.
    let mut read = 0;
    loop {
        let now = asking.statistics().bytes_in - read_before;
        if now == read && now > 0 {
            break;
        }
        read = now;
        sleep(Duration::from_millis(300)).await;
    }
    assert!((16 << 20..24 << 20).contains(&read), "{read} of {} bytes were read", REPLIES * SIZE);
    // Confirms come on another connection.
    assert!(asking.publish(&to, Message::new("on")).await.expect("taken").is_confirmed());
    for number in 0..REPLIES {
        let reply = next(&mut replies.consumer).await;
        assert_eq!(reply.message.body()[..8], (number as u64).to_le_bytes(), "in order, and none is lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_replies_up_keeps_the_connection_alive() {
    let asking = format!("{}?heartbeat=1", shared().await.url());
    let (asking, answering) = (RabbitMq::connect(&asking).await.expect("connected"), connected().await);
    let (to, mut requests) = served(&answering).await;
    let mut replies = asking.direct_replies().await.expect("asked").expect("RabbitMQ has them");
    let id = format!("{}1", replies.correlation_prefix);
    let request = Message::new("?").with_reply_to(&replies.reply_to).with_correlation_id(id);
    assert!(asking.publish(&to, request).await.expect("taken").is_confirmed());
    let (back, id) = reply_to(&next(&mut requests).await);
    let answer = async || {
        for _ in 0..3 {
            let reply = Message::new(vec![0; 8 << 20]).with_correlation_id(&id).transient();
            answer_with(&answering, &back, reply).await;
        }
    };
    answer().await;
    let connects = asking.statistics().connects;
    // Several times what either side waits for the other.
    sleep(Duration::from_secs(6)).await;
    for _ in 0..3 {
        assert_eq!(next(&mut replies.consumer).await.message.body().len(), 8 << 20);
    }
    assert_eq!(asking.statistics().connects, connects, "the connection is the same");
    // Nor does who holds them up keep the handle from being closed.
    answer().await;
    sleep(Duration::from_secs(1)).await;
    timeout(LONG, asking.close()).await.expect("it ends").expect("closed");
}

#[tokio::test]
async fn a_request_of_who_receives_no_replies_is_refused_with_the_remedy() {
    let broker = connected().await;
    let (to, _requests) = served(&broker).await;
    let request = Message::new("?").with_reply_to("amq.rabbitmq.reply-to").with_correlation_id("1");
    let refused = broker.publish(&to, request).await.expect("taken");
    let PublishOutcome::Refused(why) = &refused else { panic!("{refused:?}") };
    assert!(format!("{why:?}").contains("direct_replies"), "{why:?}");
    assert!(broker.publish(&to, Message::new("on")).await.expect("taken").is_confirmed());
}

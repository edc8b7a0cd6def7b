//! What other clients publish, and we would not.

use std::time::Duration;

use millstream_message::{
    Address, Binding, Broker, ConsumeOptions, Exchange, ExchangeKind, Message, Queue, Value,
};
use millstream_rabbitmq::RabbitMq;
use millstream_testing::{shared, unique};
use tokio::time::timeout;

/// For what surely comes.
const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_no_text_are_read_and_cost_nobody_the_connection() {
    let node = shared().await;
    let broker = RabbitMq::connect(&node.url()).await.expect("connected");
    let (name, exchange) = (unique("queue"), unique("exchange"));
    broker.declare_queue(Queue::durable(&name)).await.expect("declared");
    broker.declare_exchange(Exchange::durable(&exchange, ExchangeKind::Fanout)).await.expect("declared");
    broker.bind(Binding::new(&exchange, "", &name)).await.expect("bound");
    // Headers, correlation id, message id and key: all of them `\xff`.
    let publish = format!(
        "rabbit_basic:publish(rabbit_misc:r(<<\"/\">>, exchange, <<\"{exchange}\">>), <<255>>, {{'P_basic', undefined, undefined, \
         [{{<<255>>, longstr, <<\"x\">>}}], 2, undefined, <<255>>, undefined, undefined, <<255>>, undefined, undefined, undefined, \
         undefined, undefined}}, <<\"body\">>)."
    );
    node.tell("rabbitmqctl", &["eval", &publish]).await;
    let to = Address::queue(&name);
    assert!(broker.publish(&to, Message::new("after")).await.expect("taken").is_confirmed());
    let mut consumer = broker.consume(&name, ConsumeOptions::default()).await.expect("consumed");
    let mut next = async || {
        timeout(LONG, consumer.next()).await.expect("it comes").expect("it goes on").expect("it is read")
    };
    let odd = next().await;
    assert_eq!((odd.message.body(), odd.address.key()), (&"body".into(), "\u{fffd}"));
    let properties = odd.message.properties();
    assert_eq!(properties.correlation_id.as_deref(), Some("\u{fffd}"));
    assert_eq!(odd.message.header("amqp-message-id"), Some(&Value::Bytes(vec![0xff].into())));
    assert_eq!(odd.message.header("\u{fffd}"), Some(&"x".into()));
    assert!(odd.ack());
    assert_eq!(next().await.message.body(), "after");
    assert_eq!(broker.statistics().connects, 2, "one declares and consumes, one publishes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_body_is_for_what_is_published_and_not_for_what_comes() {
    let url = shared().await.url();
    let small = RabbitMq::connect(&format!("{url}?max_message_bytes=1000")).await.expect("connected");
    let other = RabbitMq::connect(&url).await.expect("connected");
    let name = unique("queue");
    other.declare_queue(Queue::durable(&name)).await.expect("declared");
    let large = Message::new(vec![0; 1001]);
    assert!(other.publish(&Address::queue(&name), large).await.expect("taken").is_confirmed());
    let mut consumer = small.consume(&name, ConsumeOptions::default()).await.expect("consumed");
    let next = timeout(LONG, consumer.next()).await.expect("it comes").expect("on").expect("read");
    assert_eq!(next.message.body().len(), 1001);
}

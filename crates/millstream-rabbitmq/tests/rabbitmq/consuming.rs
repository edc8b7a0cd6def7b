//! Consumers: what bounds them, what ends them, and what they get over.

use std::time::Duration;

use millstream_message::{
    Address, Batch, Broker, BrokerErrorKind, ConsumeOptions, Consumer, Delivery, Message, Nack, Queue,
    QueueKind, StopWhen, StreamFrom,
};
use millstream_rabbitmq::RabbitMq;
use millstream_testing::{Node, Proxy, Setup, shared, unique};
use tokio::time::{sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
/// For what surely comes.
const LONG: Duration = Duration::from_secs(60);

async fn connected() -> RabbitMq {
    RabbitMq::connect(&shared().await.url()).await.expect("connected")
}

async fn filled(broker: &RabbitMq, queue: Queue, sizes: impl IntoIterator<Item = usize>) -> String {
    let name = queue.name.clone();
    broker.declare_queue(queue).await.expect("declared");
    let messages = sizes.into_iter().map(|size| Message::new(vec![b'x'; size]));
    let outcomes = broker.publish_batch(Batch::to(&Address::queue(&name), messages)).await.expect("taken");
    assert!(outcomes.all_confirmed(), "{:?}", outcomes.others());
    name
}

async fn next(consumer: &mut Consumer) -> Delivery {
    let next = timeout(LONG, consumer.next()).await.expect("it comes");
    next.expect("it goes on").expect("it can be read")
}

/// What the broker counts as delivered and not acked.
async fn unacked(queue: &str) -> u64 {
    let listed =
        shared().await.tell("rabbitmqctl", &["list_queues", "name", "messages_unacknowledged"]).await;
    let line = listed.lines().find(|line| line.split('\t').next() == Some(queue)).expect("it is listed");
    line.split('\t').nth(1).and_then(|count| count.trim().parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_stay_at_the_broker_beyond_the_prefetch_in_bytes() {
    let broker = connected().await;
    let queue = filled(&broker, Queue::durable(unique("large")), vec![100_000; 400]).await;
    let options = ConsumeOptions::default().prefetch(1000).prefetch_bytes(1_000_000);
    let mut consumer = broker.consume(&queue, options).await.expect("consumed");
    let mut taken = Vec::new();
    for _ in 0..10 {
        taken.push(next(&mut consumer).await);
    }
    assert!(timeout(SECOND, consumer.next()).await.is_err(), "as many as fit are handed out");
    let held = unacked(&queue).await;
    assert!((10..=20).contains(&held), "the rest has not left the broker: {held}");
    // All of them come in time, and never more than fit at once.
    let mut seen = taken.len();
    while seen < 400 {
        assert!(taken.len() <= 10);
        let oldest = taken.remove(0);
        assert!(oldest.ack(), "the channel stays as it is: {:?}", broker.statistics());
        taken.push(next(&mut consumer).await);
        seen += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_messages_use_the_whole_prefetch_though_it_begins_low() {
    let broker = connected().await;
    let queue = filled(&broker, Queue::durable(unique("small")), vec![10; 3000]).await;
    let options = ConsumeOptions::default().prefetch(2500);
    let mut consumer = broker.consume(&queue, options).await.expect("consumed");
    let mut taken = Vec::new();
    while taken.len() < 2500 {
        taken.push(next(&mut consumer).await);
    }
    assert!(timeout(SECOND / 2, consumer.next()).await.is_err(), "and no more");
    let tags = taken.iter().map(|delivery| delivery.tag).collect::<Vec<_>>();
    assert!(tags.is_sorted(), "in the order of the queue, though it was asked for anew");
    drop(taken);
    drop(consumer);
    // Nothing was lost or doubled by asking anew.
    let all = ConsumeOptions::default().stop_when_empty();
    let mut rest = broker.consume(&queue, all).await.expect("consumed");
    let mut count = 0;
    while let Some(delivery) = timeout(LONG, rest.next()).await.expect("it goes on") {
        assert!(delivery.expect("read").ack());
        count += 1;
    }
    assert_eq!(count, 3000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_grow_are_asked_for_in_smaller_numbers() {
    let broker = connected().await;
    let sizes = std::iter::repeat_n(10, 2000).chain(std::iter::repeat_n(50_000, 2000));
    let queue = filled(&broker, Queue::durable(unique("growing")), sizes).await;
    let options = ConsumeOptions::default().prefetch(500).prefetch_bytes(1_000_000);
    let mut consumer = broker.consume(&queue, options).await.expect("consumed");
    for _ in 0..3000 {
        assert!(next(&mut consumer).await.ack());
    }
    let mut held = u64::MAX;
    for _ in 0..50 {
        held = unacked(&queue).await;
        if held <= 40 {
            break;
        }
        for _ in 0..10 {
            assert!(next(&mut consumer).await.ack());
        }
    }
    assert!(held <= 40, "twenty fit, and five hundred had: {held}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exclusive_consumer_is_asked_anew_without_a_second_one() {
    let broker = connected().await;
    let queue = filled(&broker, Queue::durable(unique("exclusive")), vec![10; 900]).await;
    let options = ConsumeOptions::default().prefetch(900).exclusive();
    let mut consumer = broker.consume(&queue, options).await.expect("consumed");
    let mut taken = Vec::new();
    while taken.len() < 900 {
        taken.push(next(&mut consumer).await);
    }
    let other = broker.consume(&queue, ConsumeOptions::default()).await.expect_err("it stays alone");
    assert_eq!(other.kind(), BrokerErrorKind::InUse);
    assert!(taken.iter().all(Delivery::ack), "all of them are of this life: no channel was closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_consumer_leaves_messages_to_others_and_stays_paused_over_a_lost_connection() {
    let proxy = Proxy::to(shared().await.port).await;
    let broker = RabbitMq::connect(&proxy.url()).await.expect("connected");
    let queue = filled(&broker, Queue::durable(unique("paused")), []).await;
    let mut consumer = broker.consume(&queue, ConsumeOptions::default()).await.expect("consumed");
    let acker = consumer.acker();
    acker.pause();
    let stopped = async {
        while broker.stats(&queue).await.expect("there").consumers > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, stopped).await.expect("the broker is told");
    proxy.cut();
    let outcome = broker.publish(&Address::queue(&queue), Message::new("x")).await.expect("taken");
    assert!(outcome.is_confirmed());
    assert!(timeout(SECOND, consumer.next()).await.is_err());
    assert_eq!(broker.stats(&queue).await.expect("there").ready, 1, "it is there for others");
    acker.resume();
    assert!(next(&mut consumer).await.ack());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_consumer_is_not_taken_for_that_of_a_stream() {
    let broker = connected().await;
    let queue = filled(&broker, Queue::durable(unique("quiet")), [10]).await;
    let options = || ConsumeOptions::default().prefetch(1);
    let mut other = broker.consume(&queue, options()).await.expect("consumed");
    let held = next(&mut other).await;
    let mut consumer = broker.consume(&queue, options()).await.expect("consumed");
    let acker = consumer.acker();
    acker.pause();
    let alone = async {
        while broker.stats(&queue).await.expect("there").consumers > 1 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, alone).await.expect("the broker is told");
    let outcome = broker.publish(&Address::queue(&queue), Message::new("x")).await.expect("taken");
    assert!(outcome.is_confirmed());
    // A message is ready, the broker counts one consumer, which takes no more, and that is not the one that is to end.
    acker.stop(StopWhen::Empty);
    let waits = timeout(8 * SECOND, consumer.next()).await;
    assert!(waits.is_err(), "{waits:?}");
    acker.resume();
    assert!(next(&mut consumer).await.ack());
    assert!(timeout(LONG, consumer.next()).await.expect("it ends").is_none());
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_may_be_paused_and_dropped_as_fast_as_one_likes() {
    // RabbitMQ's channel crashes when it hears of a consumer that was cancelled meanwhile, and takes the connection along.
    let broker = connected().await;
    let queue = filled(&broker, Queue::durable(unique("hurried")), vec![10; 500]).await;
    for round in 0..100 {
        let options = ConsumeOptions::default().prefetch(100 + round);
        let consumer = broker.consume(&queue, options).await.expect("consumed");
        let acker = consumer.acker();
        for _ in 0..round % 7 {
            acker.pause();
            tokio::task::yield_now().await;
            acker.resume();
            if round % 3 == 0 {
                sleep(Duration::from_micros(300)).await;
            }
        }
    }
    let mut consumer = broker.consume(&queue, ConsumeOptions::default()).await.expect("consumed");
    for _ in 0..500 {
        assert!(next(&mut consumer).await.ack());
    }
    assert_eq!(broker.statistics().connects, 2, "one connection consumes and one publishes");
}

/// Who did not declare it cannot know, and a stream that is not told where to begin delivers nothing that is there.
#[tokio::test]
async fn a_stream_that_is_emptied_like_a_queue_is_refused_with_the_remedy() {
    let url = shared().await.url();
    let declaring = RabbitMq::connect(&url).await.expect("connected");
    let stream = Queue::durable(unique("stream")).kind(QueueKind::Stream);
    let queue = stream.name.clone();
    declaring.declare_queue(stream).await.expect("declared");
    let broker = RabbitMq::connect(&url).await.expect("connected");
    // The broker counts what is in a stream by and by.
    let counted = async {
        while broker.stats(&queue).await.expect("stats").ready == 0 {
            let outcome = declaring.publish(&Address::queue(&queue), Message::new("x")).await.expect("taken");
            assert!(outcome.is_confirmed());
        }
    };
    timeout(LONG, counted).await.expect("it is counted");
    let options = ConsumeOptions::default().stop_when_empty();
    let mut consumer = broker.consume(&queue, options).await.expect("consumed");
    let ended = timeout(LONG, consumer.next_chunk(10)).await.expect("it ends");
    let error = ended.expect_err("it is refused").to_string();
    assert!(
        error.contains(&queue) && error.contains("`from`") && error.contains("rabbitmq-stream://"),
        "{error}"
    );
    timeout(LONG, broker.browse(&queue, 0, 10)).await.expect("it ends").expect_err("it is refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_behind_what_was_settled_when_the_connection_was_lost() {
    let proxy = Proxy::to(shared().await.port).await;
    let broker = RabbitMq::connect(&proxy.url()).await.expect("connected");
    let stream = Queue::durable(unique("stream")).kind(QueueKind::Stream);
    let queue = stream.name.clone();
    broker.declare_queue(stream).await.expect("declared");
    let to = Address::queue(&queue);
    let batch = Batch::to(&to, (0..100).map(|n| Message::new(n.to_string())));
    assert!(broker.publish_batch(batch).await.expect("taken").all_confirmed());
    let options = ConsumeOptions::default().from(StreamFrom::First).prefetch(10);
    let mut consumer = broker.consume(&queue, options).await.expect("consumed");
    // Those that were settled, in order.
    let mut settled = Vec::new();
    let (mut held, mut cut) = (None, false);
    while settled.last() != Some(&99) {
        let delivery = next(&mut consumer).await;
        let number = String::from_utf8_lossy(delivery.message.body()).parse::<u32>().expect("a number");
        if number == 40 && held.is_none() {
            // It is in somebody's hands when the connection is lost, so it comes again.
            held = Some(delivery);
            continue;
        }
        if delivery.ack() {
            settled.push(number);
        }
        // Once: the next ones were here before, and are stale.
        if settled.len() == 41 && !std::mem::replace(&mut cut, true) {
            proxy.cut();
            let lost = async {
                while delivery.acker.unsettled() > 0 {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(LONG, lost).await.expect("it is noticed");
        }
    }
    let expected = (0..40).chain([41]).chain(40..100).collect::<Vec<_>>();
    assert_eq!(settled, expected);
    assert!(!held.expect("one was held").ack(), "it is stale");
}

/// RabbitMQ takes nothing back of a stream, and ends the connection, with all consumers on it, of who tries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_back_of_a_stream_comes_again_and_disturbs_nobody() {
    let broker = RabbitMq::connect(&shared().await.url()).await.expect("connected");
    let stream = Queue::durable(unique("stream")).kind(QueueKind::Stream);
    let queue = filled(&broker, stream, vec![10; 20]).await;
    let other = filled(&broker, Queue::durable(unique("other")), [1]).await;
    let mut bystander = broker.consume(&other, ConsumeOptions::default()).await.expect("consumed");
    let held = next(&mut bystander).await;
    let options = ConsumeOptions::default().from(StreamFrom::First).prefetch(10);
    let mut consumer = broker.consume(&queue, options.clone()).await.expect("consumed");
    let give_back = [Nack::Requeue, Nack::RequeueAfter(Duration::from_millis(50))];
    let take_off = [Nack::Discard, Nack::dead_letter("no good")];
    for how in give_back.iter().chain(&take_off) {
        assert!(next(&mut consumer).await.nack(how));
    }
    let mut redeliveries = 0;
    for _ in 0..18 {
        let delivery = next(&mut consumer).await;
        redeliveries += delivery.redeliveries;
        assert!(delivery.ack());
    }
    assert_eq!(redeliveries, 2);
    let nothing = timeout(Duration::from_millis(200), consumer.next()).await;
    assert!(nothing.is_err(), "all is settled: {nothing:?}");
    drop(consumer);
    // Some have come that nobody takes, and one is in hand.
    let mut consumer = broker.consume(&queue, options).await.expect("consumed");
    let first = timeout(LONG, consumer.next_chunk(1)).await.expect("it comes").expect("read");
    assert_eq!(first[0].redeliveries, 0);
    consumer.acker().stop(StopWhen::Now);
    assert!(first[0].ack());
    assert!(timeout(LONG, consumer.next()).await.expect("it ends").is_none());
    drop((consumer, first));

    // The broker has heard all of that when it answers.
    assert!(broker.delete_queue(&queue).await.is_ok());
    assert!(held.ack(), "its connection is still there");
    assert_eq!(broker.statistics().connects, 2, "{:?}", broker.statistics());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_that_is_held_too_long_for_the_broker_comes_again() {
    // RabbitMQ looks every minute by default, and gives half an hour.
    let setup = Setup::default().configured("consumer_timeout = 1000");
    let node = Node::start(setup).await.expect("it starts");
    node.tell("rabbitmqctl", &["eval", "application:set_env(rabbit, channel_tick_interval, 1000)."]).await;
    let broker = RabbitMq::connect(&node.url()).await.expect("connected");
    let queue = filled(&broker, Queue::durable(unique("held")), [1, 2]).await;
    let mut consumer = broker.consume(&queue, ConsumeOptions::default().prefetch(1)).await.expect("consumed");
    let held = next(&mut consumer).await;
    // Nobody settles it: the broker closes the channel, and the consumer gets another.
    let again = timeout(LONG, consumer.next()).await.expect("it comes").expect("on").expect("read");
    assert_eq!((again.message.body().len(), again.redeliveries), (1, 1));
    assert!(!held.ack(), "the late ack changes nothing");
    assert!(again.ack());
    let second = next(&mut consumer).await;
    assert!(second.ack());
    assert_eq!(broker.statistics().connects, 2, "no connection was lost for it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_consumer_has_its_figures() {
    let broker = connected().await;
    let queue = filled(&broker, Queue::durable(unique("figures")), vec![10; 5]).await;
    let options = ConsumeOptions::default().prefetch(3).name("billing");
    let mut consumer = broker.consume(&queue, options).await.expect("consumed");
    let _other = broker.consume(&unique_queue(&broker).await, ConsumeOptions::default()).await.expect("too");
    let (one, two, three) = (next(&mut consumer).await, next(&mut consumer).await, next(&mut consumer).await);
    let figures = || broker.consumers().into_iter().find(|one| one.queue == queue).expect("it is there");
    assert_eq!(broker.consumers().len(), 2);
    let at_first = figures();
    assert_eq!((at_first.name.as_str(), at_first.in_flight, at_first.paused), ("billing", 3, false));
    assert_eq!((at_first.delivered - at_first.waiting, at_first.redelivered), (3, 0));
    assert!(one.ack() && two.ack());
    assert!(three.nack(&Nack::Requeue));
    for _ in 0..3 {
        assert!(next(&mut consumer).await.ack());
    }
    let after = figures();
    assert_eq!((after.delivered, after.redelivered), (6, 1));
    assert_eq!((after.acked, after.nacked, after.in_flight, after.waiting), (5, 1, 0, 0));
    assert!(after.rate() > 0.0 && after.age >= at_first.age);
    consumer.acker().pause();
    assert!(figures().paused);
    drop(consumer);
    // Deliveries keep an acker, and with the last one the consumer is gone.
    drop((one, two, three));
    assert_eq!(broker.consumers().len(), 1);
}

async fn unique_queue(broker: &RabbitMq) -> String {
    filled(broker, Queue::durable(unique("other")), []).await
}

//! What is left when something was lost for a moment, or nobody waited for it: no more and no less than there was.

use std::collections::BTreeSet;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millstream_message::{
    Address, Batch, Broker, BrokerErrorKind, ConsumeOptions, Consumer, Delivery, Message, Nack,
    PublishOutcome, Queue,
};
use millstream_rabbitmq::{ConnectionState, RabbitMq};
use millstream_testing::{Proxy, shared, unique};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
/// For what surely comes.
const LONG: Duration = Duration::from_secs(60);

async fn connected() -> RabbitMq {
    RabbitMq::connect(&shared().await.url()).await.expect("connected")
}

async fn queue(broker: &RabbitMq) -> String {
    let name = unique("queue");
    broker.declare_queue(Queue::durable(&name)).await.expect("declared");
    name
}

async fn publish(broker: &RabbitMq, queue: &str, message: Message) {
    let published = timeout(LONG, broker.publish(&Address::queue(queue), message)).await;
    assert!(published.expect("it is known").expect("taken").is_confirmed());
}

async fn next(consumer: &mut Consumer) -> Delivery {
    timeout(LONG, consumer.next()).await.expect("it comes").expect("it goes on").expect("it can be read")
}

/// Waits until so many consumers of a queue are there.
async fn consumers(broker: &RabbitMq, queue: &str, count: u64) {
    let so = async {
        while broker.stats(queue).await.expect("it is there").consumers != count {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, so).await.unwrap_or_else(|_| panic!("there are no {count} consumers"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_to_be_tried_again_is_not_lost_with_the_queue_it_was_to_wait_in() {
    let broker = connected().await;
    let name = queue(&broker).await;
    let mut consumer = broker.consume(&name, ConsumeOptions::default()).await.expect("consumed");
    let delay = Duration::from_millis(500);
    publish(&broker, &name, Message::new("x")).await;
    // The first time declares the queue; the second finds that somebody has deleted it.
    for _ in 0..2 {
        let slot = || {
            #[expect(clippy::disallowed_methods, reason = "the queue's name has the time in it")]
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
            format!("millstream.delay.500.{}..{name}", now / (6 * 3600))
        };
        let before = slot();
        assert!(next(&mut consumer).await.nack(&Nack::RequeueAfter(delay)));
        let again = next(&mut consumer).await;
        assert!(again.nack(&Nack::Requeue));
        let mut deleted = 0;
        // Two, if the clock's six hours have just turned.
        for waiting in BTreeSet::from([before, slot()]) {
            if let Ok(stats) = broker.stats(&waiting).await {
                assert_eq!(stats.ready, 0);
                broker.delete_queue(&waiting).await.expect("deleted");
                deleted += 1;
            }
        }
        assert!(deleted > 0, "it waited in one of them");
    }
    assert_eq!(next(&mut consumer).await.message.body(), "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_message_for_a_queue_that_is_not_there_is_unroutable() {
    let broker = connected().await;
    let to = Address::queue(unique("nowhere"));
    let message = Message::new("x").with_delay(Duration::from_millis(10));
    let outcome = broker.publish(&to, message).await.expect("taken");
    let PublishOutcome::Unroutable(returned) = outcome else { panic!("{outcome:?}") };
    assert_eq!(returned.publish.to, to);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_delayed_for_as_long_as_was_said() {
    let broker = connected().await;
    let name = queue(&broker).await;
    let mut consumer = broker.consume(&name, ConsumeOptions::default()).await.expect("consumed");
    let (delay, began) = (Duration::from_millis(2345), Instant::now());
    publish(&broker, &name, Message::new("x").with_delay(delay)).await;
    assert!(next(&mut consumer).await.ack());
    // By how much it is rounded up is a claim of its own, without a broker.
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exclusive_consumer_that_is_refused_for_a_while_comes_back_once() {
    let proxy = Proxy::to(shared().await.port).await;
    let broker = RabbitMq::connect(&proxy.url()).await.expect("connected");
    let other = connected().await;
    let name = queue(&broker).await;
    let exclusive = || ConsumeOptions::default().exclusive();
    let mut consumer = broker.consume(&name, exclusive()).await.expect("consumed");
    proxy.refuse(true);
    proxy.cut();
    let taken = async {
        loop {
            if let Ok(taken) = other.consume(&name, exclusive()).await {
                break taken;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let taken = timeout(LONG, taken).await.expect("the lost one is gone");
    proxy.refuse(false);
    // Refused again and again meanwhile.
    sleep(3 * SECOND).await;
    drop(taken);
    publish(&other, &name, Message::new("x")).await;
    assert!(next(&mut consumer).await.ack());
    // Nothing is opened any more, which would be refused and tried again.
    sleep(SECOND).await;
    let before = broker.statistics().bytes_out;
    sleep(SECOND).await;
    let said = broker.statistics().bytes_out - before;
    assert!(said < 100, "{said} bytes");
    for _ in 0..20 {
        publish(&other, &name, Message::new("x")).await;
        assert!(next(&mut consumer).await.ack());
    }
    let empty = broker.stats(&name).await.expect("there");
    assert_eq!((empty.ready, empty.consumers), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exclusive_queue_that_the_broker_keeps_for_a_lost_connection_is_declared_when_it_goes() {
    let (old, new) = (Proxy::to(shared().await.port).await, Proxy::to(shared().await.port).await);
    let url = format!(
        "amqp://guest:guest@127.0.0.1:{},127.0.0.1:{}/%2f?heartbeat=1&reconnect_max=100",
        old.port, new.port
    );
    new.refuse(true);
    let broker = RabbitMq::connect(&url).await.expect("connected");
    let name = unique("exclusive");
    broker.declare_queue(Queue::exclusive(&name)).await.expect("declared");
    let mut consumer = broker.consume(&name, ConsumeOptions::default()).await.expect("consumed");
    // Nothing passes, and the broker is not told that this side has gone; it finds out after two seconds or three.
    let mut state = broker.state();
    new.refuse(false);
    old.freeze(true);
    let back = async {
        let lost = |state: &ConnectionState| matches!(state, ConnectionState::Reconnecting { .. });
        state.wait_for(lost).await.expect("it is open");
        old.refuse(true);
        state.wait_for(|state| *state == ConnectionState::Connected).await.expect("it is open");
    };
    timeout(LONG, back).await.expect("it is back");
    sleep(SECOND).await;
    old.cut();
    publish_until_there(&broker, &name).await;
    assert!(next(&mut consumer).await.ack());
}

/// Publishes again until the queue is there.
async fn publish_until_there(broker: &RabbitMq, queue: &str) {
    let until = Instant::now() + LONG;
    loop {
        let outcome = broker.publish(&Address::queue(queue), Message::new("x")).await.expect("taken");
        if outcome.is_confirmed() {
            return;
        }
        assert!(Instant::now() < until, "{outcome:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_consumes_for_who_does_not_wait_for_it() {
    let broker = connected().await;
    let name = queue(&broker).await;
    for micros in (0..60).map(|n| n * 50) {
        let consuming = broker.consume(&name, ConsumeOptions::default());
        let _ = timeout(Duration::from_micros(micros), consuming).await;
    }
    consumers(&broker, &name, 0).await;
    publish(&broker, &name, Message::new("x")).await;
    assert_eq!(broker.stats(&name).await.expect("there").ready, 1, "nobody took it");
}

/// Notes that a task was woken.
struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

/// Polls something until so many answers have come for it, and does not let it see the last one.
async fn answered(mut asking: Pin<&mut impl Future>, answers: usize) {
    let woken = Arc::new(Woken(Notify::new()));
    let waker = Waker::from(woken.clone());
    for _ in 0..answers {
        let waits = asking.as_mut().poll(&mut Context::from_waker(&waker)).is_pending();
        assert!(waits, "it takes more answers");
        timeout(LONG, woken.0.notified()).await.expect("it is answered");
    }
}

/// Between the broker's answers and the turn of the task that waits for them there is time for anything. On one thread no answer
/// comes while it is polled.
#[tokio::test]
async fn a_consumer_whose_connection_is_lost_as_it_begins_is_there_and_leaves_nothing_behind() {
    let proxy = Proxy::to(shared().await.port).await;
    let broker = RabbitMq::connect(&proxy.url()).await.expect("connected");
    let other = connected().await;
    // The channel is open; it has its prefetch; it consumes.
    for answers in 1..=3 {
        let name = queue(&other).await;
        let mut consuming = pin!(broker.consume(&name, ConsumeOptions::default()));
        answered(consuming.as_mut(), answers).await;
        let counted = other.stats(&name).await.expect("it is there").consumers;
        assert_eq!(counted, u64::from(answers == 3), "after {answers} answers");
        let connects = broker.statistics().connects;
        proxy.cut();
        let back = async {
            while broker.statistics().connects == connects {
                sleep(Duration::from_millis(5)).await;
            }
            let mut state = broker.state();
            state.wait_for(|state| *state == ConnectionState::Connected).await.expect("it is open");
        };
        timeout(LONG, back).await.expect("it connects again");
        let mut consumer = timeout(LONG, consuming).await.expect("it ends").expect("consumed");
        publish(&other, &name, Message::new("x")).await;
        assert!(next(&mut consumer).await.ack(), "after {answers} answers");
        // Nobody is taken for one that is still being cancelled.
        let second = timeout(LONG, broker.consume(&name, ConsumeOptions::default())).await;
        second.expect("it ends").expect("consumed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_connects_for_who_does_not_wait_for_it() {
    let node = shared().await;
    let (proxy, name) = (Proxy::to(node.port).await, unique("unclaimed"));
    proxy.freeze(true);
    let url = format!("{}?name={name}", proxy.url());
    assert!(timeout(SECOND / 4, RabbitMq::connect(&url)).await.is_err());
    proxy.freeze(false);
    sleep(5 * SECOND).await;
    let connections = node.tell("rabbitmqctl", &["list_connections", "client_properties"]).await;
    assert!(!connections.contains(&name), "{connections}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_publish_waits_for_a_broker_that_is_away() {
    let proxy = Proxy::to(shared().await.port).await;
    let broker = Arc::new(RabbitMq::connect(&proxy.url()).await.expect("connected"));
    let name = queue(&broker).await;
    proxy.refuse(true);
    proxy.cut();
    let mut state = broker.state();
    let lost = |state: &ConnectionState| matches!(state, ConnectionState::Reconnecting { .. });
    timeout(LONG, state.wait_for(lost)).await.expect("it is lost").expect("it is open");
    let (publisher, to) = (broker.clone(), Address::queue(&name));
    let publishing = tokio::spawn(async move { publisher.publish(&to, Message::new("x")).await });
    sleep(SECOND / 2).await;
    assert!(!publishing.is_finished());
    proxy.refuse(false);
    let outcome = timeout(LONG, publishing).await.expect("it goes on").expect("no panic");
    assert!(outcome.expect("taken").is_confirmed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_a_handle_whose_broker_is_silent_ends_and_says_what_is_not_confirmed() {
    let proxy = Proxy::to(shared().await.port).await;
    let url = format!("{}?heartbeat=0&operation_timeout=200", proxy.url());
    let broker = RabbitMq::connect(&url).await.expect("connected");
    let name = queue(&broker).await;
    publish(&broker, &name, Message::new("x")).await;
    proxy.freeze(true);
    let batch = Batch::to(&Address::queue(&name), ["a", "b"].map(Message::new));
    let confirm = broker.submit(batch).await.expect("taken");
    let closing = timeout(LONG, broker.close()).await.expect("it ends");
    let error = closing.expect_err("something is not confirmed");
    assert_eq!(error.kind(), BrokerErrorKind::Unavailable);
    assert!(error.to_string().contains("2 publishes"), "{error}");
    let outcomes = timeout(LONG, confirm).await.expect("nothing waits for ever");
    assert!(matches!(outcomes.get(1), PublishOutcome::Unconfirmed(_)));
    assert_eq!(*broker.state().borrow(), ConnectionState::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefetch_priority_and_the_one_active_consumer_are_the_same_after_a_loss() {
    let proxy = Proxy::to(shared().await.port).await;
    // The second consumer is on a further connection.
    let broker = RabbitMq::connect(&format!("{}?connections=2", proxy.url())).await.expect("connected");
    let (plain, alone) = (queue(&broker).await, unique("alone"));
    broker.declare_queue(Queue::durable(&alone).single_active_consumer()).await.expect("declared");
    let few = || ConsumeOptions::default().prefetch(2);
    let mut low = broker.consume(&plain, few()).await.expect("consumed");
    let mut high = broker.consume(&plain, few().priority(5)).await.expect("consumed");
    let mut first = broker.consume(&alone, few()).await.expect("consumed");
    proxy.cut();
    let other = connected().await;
    consumers(&other, &plain, 2).await;
    for n in 0..5 {
        publish(&other, &plain, Message::new(format!("{n}"))).await;
    }
    publish(&other, &alone, Message::new("x")).await;
    assert!(next(&mut first).await.ack());
    // Two for each, the one with priority first, and no more.
    let held = [next(&mut high).await, next(&mut high).await, next(&mut low).await, next(&mut low).await];
    let bodies: Vec<_> = held.iter().map(|delivery| delivery.message.body().clone()).collect();
    assert_eq!(bodies, ["0", "1", "2", "3"]);
    sleep(SECOND / 4).await;
    assert_eq!(other.stats(&plain).await.expect("there").ready, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_does_not_confirm_holds_up_no_other() {
    let node = shared().await;
    let url = format!("{}?publish_window=50", node.url());
    let broker = RabbitMq::connect(&url).await.expect("connected");
    let (stuck, other) = (queue(&broker).await, queue(&broker).await);
    let tell = async |what: &str| {
        let there = "{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"NAME\">>))";
        let there = there.replace("NAME", &stuck);
        node.tell("rabbitmqctl", &["eval", &format!("{there}, sys:{what}(amqqueue:get_pid(Q)).")]).await;
    };
    tell("suspend").await;
    let waiting = Batch::to(&Address::queue(&stuck), [Message::new("x")]);
    let waiting = broker.submit(waiting).await.expect("taken");
    for _ in 0..200 {
        publish(&broker, &other, Message::new("x")).await;
    }
    tell("resume").await;
    assert!(timeout(LONG, waiting).await.expect("it goes on").all_confirmed());
}

//! What goes wrong between client and broker, and what is left of it: every confirmed message arrives, without help.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millstream_message::{
    Address, Batch, Binding, Broker, BrokerErrorKind, Confirm, ConsumeOptions, Exchange, ExchangeKind,
    Message, Nack, PublishOutcome, Queue, Refusal,
};
use millstream_rabbitmq::{ConnectionState, FORMER_USER_ID, RabbitMq, USER_ID};
use millstream_testing::{Node, Proxy, Setup, shared, unique};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
/// For what surely comes.
const LONG: Duration = Duration::from_secs(60);

/// Publishes so many numbers in small batches, a window of them at once. What became of those that were not confirmed.
fn publish_numbers(broker: Arc<RabbitMq>, queue: String, count: u32) -> JoinHandle<Vec<PublishOutcome>> {
    let publishing = publish_until(broker, queue, move |next| next >= count);
    tokio::spawn(async move { publishing.await.expect("no panic").1 })
}

/// Publishes numbers until `stop` says so of the next one. How many there were, and what became of those that were not
/// confirmed.
fn publish_until(
    broker: Arc<RabbitMq>,
    queue: String,
    stop: impl Fn(u32) -> bool + Send + 'static,
) -> JoinHandle<(u32, Vec<PublishOutcome>)> {
    tokio::spawn(async move {
        let to = Address::queue(queue);
        let mut window: std::collections::VecDeque<Confirm> = Default::default();
        let mut others = Vec::new();
        let mut count = 0;
        while !stop(count) {
            let numbers = (count..count + 10).map(|n| Message::new(n.to_be_bytes().to_vec()));
            count += 10;
            window.push_back(broker.submit(Batch::to(&to, numbers)).await.expect("taken"));
            if window.len() > 50 {
                others.extend(window.pop_front().expect("there is one").await.into_others());
            }
        }
        for confirm in window {
            others.extend(confirm.await.into_others());
        }
        (count, others.into_iter().map(|(_, outcome)| outcome).collect())
    })
}

/// The word that ends a consumer.
const END: &str = "end";

/// Consumes until so many different numbers have come, or the last word. How often each came.
fn consume_numbers(broker: Arc<RabbitMq>, queue: String, count: u32) -> JoinHandle<BTreeMap<u32, u32>> {
    tokio::spawn(async move {
        let mut consumer =
            broker.consume(&queue, ConsumeOptions::default().prefetch(100)).await.expect("consumed");
        let mut seen = BTreeMap::new();
        while seen.len() < count as usize {
            let delivery = consumer.next().await.expect("it goes on").expect("it can be read");
            if delivery.message.body() == END {
                delivery.ack();
                break;
            }
            let number = u32::from_be_bytes(delivery.message.body()[..].try_into().expect("four bytes"));
            *seen.entry(number).or_insert(0) += 1;
            delivery.ack();
        }
        seen
    })
}

async fn queue(broker: &RabbitMq) -> String {
    let name = unique("queue");
    broker.declare_queue(Queue::durable(&name)).await.expect("declared");
    name
}

async fn until_connected(broker: &RabbitMq) {
    let mut state = broker.state();
    let connected = state.wait_for(|state| *state == ConnectionState::Connected);
    timeout(LONG, connected).await.expect("it connects").expect("it is open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_again_and_again_in_mid_stream_nothing_is_lost() {
    let proxy = Proxy::to(shared().await.port).await;
    let broker = Arc::new(RabbitMq::connect(&proxy.url()).await.expect("connected"));
    let queue = queue(&broker).await;
    let count = 60_000;
    let consuming = consume_numbers(broker.clone(), queue.clone(), count);
    let publishing = publish_numbers(broker.clone(), queue.clone(), count);
    let mut cuts = 0;
    while !publishing.is_finished() {
        sleep(Duration::from_millis(fastrand::u64(100..400))).await;
        proxy.cut();
        cuts += 1;
    }
    let others = publishing.await.expect("no panic");
    assert!(others.is_empty(), "every message is confirmed in the end: {others:?}");
    let seen = timeout(LONG, consuming).await.expect("all arrive").expect("no panic");
    assert_eq!(seen.len(), count as usize);
    assert!(cuts > 3, "there was something to get over: {cuts} cuts");
    assert!(broker.statistics().connects > 4);
    broker.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_at_every_step_of_the_protocol_it_comes_back() {
    let proxy = Proxy::to(shared().await.port).await;
    let url = format!("{}?reconnect_min=1&reconnect_max=20", proxy.url());
    let broker = RabbitMq::connect(&url).await.expect("connected");
    let queue = queue(&broker).await;
    let exchange = unique("exchange");
    broker.declare_exchange(Exchange::transient(&exchange, ExchangeKind::Fanout)).await.expect("declared");
    broker.bind(Binding::new(&exchange, "", &queue)).await.expect("bound");
    let mut consumer = broker.consume(&queue, ConsumeOptions::default()).await.expect("consumed");
    let to = Address::new(&exchange, "");
    // A handshake is about 600 bytes of the server's, restoring some hundred more, and all of it once more for publishing.
    let steps = [0, 1, 7, 8, 100, 480, 500, 510, 515, 520, 525, 530, 535, 540, 550, 560];
    for bytes in steps.into_iter().chain((570..1500).step_by(15)) {
        proxy.cut_after(bytes);
        proxy.cut();
        sleep(Duration::from_millis(15)).await;
        proxy.let_all_through();
        proxy.cut();
        let body = format!("after {bytes}");
        let published = timeout(LONG, broker.publish(&to, Message::new(body.clone()))).await;
        let outcome = published.unwrap_or_else(|_| panic!("cut after {bytes} bytes, it never came back"));
        assert!(outcome.expect("taken").is_confirmed(), "cut after {bytes} bytes");
        loop {
            let next = timeout(LONG, consumer.next()).await;
            let next = next.unwrap_or_else(|_| panic!("cut after {bytes} bytes, the consumer is silent"));
            let delivery = next.expect("it goes on").expect("it can be read");
            delivery.ack();
            // What was not acked in time comes again.
            if delivery.message.body() == body.as_bytes() {
                break;
            }
        }
    }
    broker.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_stopped_or_killed_and_started_again_has_everything_that_was_confirmed() {
    let node = Node::start(Setup::default()).await.expect("it starts");
    let broker = Arc::new(RabbitMq::connect(&node.url()).await.expect("connected"));
    let queue = queue(&broker).await;
    // Gone with the broker, and declared again with its binding.
    let (exchange, copies) = (unique("exchange"), unique("copies"));
    broker.declare_exchange(Exchange::transient(&exchange, ExchangeKind::Topic)).await.expect("declared");
    broker.declare_queue(Queue::transient(&copies)).await.expect("declared");
    broker.bind(Binding::new(&exchange, "a.*", &copies)).await.expect("bound");
    let mut silent = broker.consume(&copies, ConsumeOptions::default()).await.expect("consumed");

    let enough = Arc::new(AtomicBool::new(false));
    let stop = enough.clone();
    let publishing = publish_until(broker.clone(), queue.clone(), move |_| stop.load(Ordering::SeqCst));
    let consuming = consume_numbers(broker.clone(), queue.clone(), u32::MAX);
    for killed in [false, true] {
        sleep(Duration::from_millis(300)).await;
        if killed {
            node.kill()
        } else {
            node.stop().await
        }
        sleep(Duration::from_millis(500)).await;
        node.run().await.expect("it starts again");
        // Publishing goes on, and the consumer of another queue.
        let to = Address::new(&exchange, "a.b");
        let outcome = timeout(LONG, broker.publish(&to, Message::new("x"))).await.expect("it goes on");
        assert!(outcome.expect("taken").is_confirmed());
        let next = timeout(LONG, silent.next()).await;
        let delivery = next.expect("it is delivered").expect("it goes on").expect("it can be read");
        assert!(delivery.ack());
    }
    enough.store(true, Ordering::SeqCst);
    let (count, others) = timeout(LONG, publishing).await.expect("it goes on").expect("no panic");
    assert!(others.is_empty() && count > 1000, "{count} published, {others:?}");
    // The last one, behind which nothing comes, ends the consumer.
    let end = broker.publish(&Address::queue(&queue), Message::new(END)).await.expect("taken");
    assert!(end.is_confirmed());
    let seen = timeout(LONG, consuming).await.expect("all arrive").expect("no panic");
    assert_eq!(seen.len(), count as usize);
    broker.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_got_over_again_and_again() {
    let proxy = Proxy::to(shared().await.port).await;
    let broker = RabbitMq::connect(&proxy.url()).await.expect("connected");
    let to = Address::queue(queue(&broker).await);
    assert!(broker.publish(&to, Message::new("x")).await.expect("taken").is_confirmed());
    for _ in 0..5 {
        proxy.cut();
        let outcome = timeout(LONG, broker.publish(&to, Message::new("x"))).await.expect("it comes back");
        assert!(outcome.expect("taken").is_confirmed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_noticed_by_heartbeats() {
    let proxy = Proxy::to(shared().await.port).await;
    let broker = RabbitMq::connect(&format!("{}?heartbeat=3", proxy.url())).await.expect("connected");
    let mut state = broker.state();
    // Heartbeats keep a silent connection, for longer than it may be without them.
    sleep(10 * SECOND).await;
    assert_eq!(*state.borrow(), ConnectionState::Connected);
    proxy.freeze(true);
    let lost = state.wait_for(|state| matches!(state, ConnectionState::Reconnecting { .. }));
    let lost = timeout(LONG, lost).await.expect("it is noticed").expect("it is open").clone();
    let ConnectionState::Reconnecting { error, .. } = lost else { panic!("{lost:?}") };
    assert!(error.contains("heartbeat"), "{error}");
    proxy.freeze(false);
    proxy.cut();
    until_connected(&broker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_wait_while_the_broker_is_short_of_memory() {
    let node = Node::start(Setup::default()).await.expect("it starts");
    let url = format!("{}?publish_window=100", node.url());
    let broker = Arc::new(RabbitMq::connect(&url).await.expect("connected"));
    let queue = queue(&broker).await;
    let to = Address::queue(&queue);
    assert!(broker.publish(&to, Message::new("x")).await.expect("taken").is_confirmed());
    let mut publishing = broker.publishing_state().expect("something was published");

    node.tell("rabbitmqctl", &["set_vm_memory_high_watermark", "0.00001"]).await;
    // The alarm is told when somebody publishes.
    let waiting = publish_numbers(broker.clone(), queue.clone(), 5000);
    let blocked = publishing.wait_for(|state| matches!(state, ConnectionState::Blocked { .. }));
    let blocked = timeout(LONG, blocked).await.expect("it is told").expect("it is open").clone();
    assert!(matches!(blocked, ConnectionState::Blocked { reason } if reason.contains("memory")));
    assert!(broker.statistics().blocked.is_some_and(|why| why.contains("memory")));
    sleep(SECOND).await;
    assert!(!waiting.is_finished());
    let in_flight = broker.statistics().in_flight;
    assert!(in_flight > 0 && in_flight <= 100, "no more than the window: {in_flight}");
    // Consumers are on another connection, and go on.
    let mut consumer = broker.consume(&queue, ConsumeOptions::default()).await.expect("consumed");
    timeout(LONG, consumer.next()).await.expect("it is delivered").expect("goes on").expect("read").ack();

    node.tell("rabbitmqctl", &["set_vm_memory_high_watermark", "0.6"]).await;
    let others = timeout(LONG, waiting).await.expect("it goes on").expect("no panic");
    assert!(others.is_empty(), "{others:?}");
    drop(consumer);
    let all = async {
        while broker.stats(&queue).await.expect("there").ready != 5000 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, all).await.expect("one was acked, all others are there");
    broker.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_is_deleted_meanwhile_refuses_its_own_messages_only() {
    let url = shared().await.url();
    let (broker, other) = (
        RabbitMq::connect(&url).await.expect("connected"),
        RabbitMq::connect(&url).await.expect("connected"),
    );
    let queue = queue(&broker).await;
    let exchange = unique("exchange");
    broker.declare_exchange(Exchange::transient(&exchange, ExchangeKind::Fanout)).await.expect("declared");
    broker.bind(Binding::new(&exchange, "", &queue)).await.expect("bound");
    let (gone, there) = (Address::new(&exchange, ""), Address::queue(&queue));
    assert!(broker.publish(&gone, Message::new("x")).await.expect("taken").is_confirmed());
    other.delete_exchange(&exchange).await.expect("deleted");

    let mut confirms = Vec::new();
    for n in 0..30 {
        let to = if n % 3 == 1 { &gone } else { &there };
        confirms.push(broker.submit(Batch::to(to, [Message::new(format!("{n}"))])).await.expect("taken"));
    }
    for (n, confirm) in confirms.into_iter().enumerate() {
        let outcome = timeout(LONG, confirm).await.expect("it is known").get(0);
        match n % 3 {
            // Nobody knows of the first ones whether the exchange was there yet; the last one found none.
            1 if n < 28 && matches!(outcome, PublishOutcome::Unconfirmed(_)) => {}
            1 => assert!(
                matches!(&outcome, PublishOutcome::Refused(Refusal::NoExchange { exchange: e }) if *e == exchange),
                "{n}: {outcome:?}"
            ),
            _ => assert!(outcome.is_confirmed(), "{n}: {outcome:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_deleted_under_its_consumer_ends_that_one_and_no_other() {
    let url = shared().await.url();
    let (broker, other) = (
        RabbitMq::connect(&url).await.expect("connected"),
        RabbitMq::connect(&url).await.expect("connected"),
    );
    let (gone, stays) = (queue(&broker).await, queue(&broker).await);
    let mut ending = broker.consume(&gone, ConsumeOptions::default()).await.expect("consumed");
    let mut going_on = broker.consume(&stays, ConsumeOptions::default()).await.expect("consumed");
    other.delete_queue(&gone).await.expect("deleted");
    let end = timeout(LONG, ending.next()).await.expect("it is told").expect("an error");
    assert_eq!(end.expect_err("it is gone").kind(), BrokerErrorKind::NotFound);
    assert!(timeout(LONG, ending.next()).await.expect("it has ended").is_none());
    assert!(other.publish(&Address::queue(&stays), Message::new("x")).await.expect("taken").is_confirmed());
    let next = timeout(LONG, going_on.next()).await.expect("it is delivered");
    assert!(next.expect("goes on").expect("read").ack());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_wait_for_room_and_hold_back_the_consumer() {
    let broker = RabbitMq::connect(&shared().await.url()).await.expect("connected");
    let (name, dead) = (unique("queue"), unique("dead"));
    broker.declare_queue(Queue::durable(&dead).max_items(1)).await.expect("declared");
    broker.declare_queue(Queue::durable(&name).dead_letter("", &dead)).await.expect("declared");
    let batch = Batch::to(&Address::queue(&name), ["a", "b", "c"].map(Message::new));
    assert!(broker.publish_batch(batch).await.expect("taken").all_confirmed());
    let mut consumer = broker.consume(&name, ConsumeOptions::default()).await.expect("consumed");
    for _ in 0..3 {
        let delivery = timeout(LONG, consumer.next()).await.expect("delivered").expect("on").expect("read");
        assert!(delivery.nack(&Nack::dead_letter("no good")));
    }
    let mut letters = Vec::new();
    let mut dead = broker.consume(&dead, ConsumeOptions::default().prefetch(1)).await.expect("consumed");
    while letters.len() < 3 {
        let letter = timeout(LONG, dead.next()).await.expect("it arrives").expect("on").expect("read");
        letters.push(letter.message.body().clone());
        letter.ack();
    }
    letters.sort();
    assert_eq!(letters, ["a", "b", "c"], "none is lost though there was room for one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_settled_when_a_process_dies_goes_to_another() {
    let url = shared().await.url();
    let broker = RabbitMq::connect(&url).await.expect("connected");
    let queue = queue(&broker).await;
    let batch = Batch::to(&Address::queue(&queue), ["a", "b"].map(Message::new));
    assert!(broker.publish_batch(batch).await.expect("taken").all_confirmed());
    let proxy = Proxy::to(shared().await.port).await;
    let dying = RabbitMq::connect(&proxy.url()).await.expect("connected");
    let mut consumer = dying.consume(&queue, ConsumeOptions::default()).await.expect("consumed");
    let taken = [consumer.next().await, consumer.next().await].map(|next| next.expect("on").expect("read"));
    assert!(taken[0].ack());
    // The ack is on its way before the connection dies.
    timeout(LONG, async {
        while broker.stats(&queue).await.expect("there").ready > 0 || dying.statistics().bytes_out == 0 {
            sleep(Duration::from_millis(5)).await;
        }
        sleep(Duration::from_millis(100)).await;
    })
    .await
    .expect("quiet");
    proxy.refuse(true);
    proxy.cut();
    let mut other = broker.consume(&queue, ConsumeOptions::default()).await.expect("consumed");
    let again = timeout(LONG, other.next()).await.expect("it comes").expect("on").expect("read");
    assert_eq!((again.message.body(), again.redeliveries), (taken[1].message.body(), 1));
    sleep(Duration::from_millis(300)).await;
    assert!(!taken[1].ack(), "a late ack of the lost connection changes nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acked_before_the_handle_was_closed_does_not_come_again() {
    let url = shared().await.url();
    let watching = RabbitMq::connect(&url).await.expect("connected");
    let queue = queue(&watching).await;
    for round in 0..60 {
        let batch = Batch::to(&Address::queue(&queue), (0..50).map(|_| Message::new("x")));
        assert!(watching.publish_batch(batch).await.expect("taken").all_confirmed());
        let broker = RabbitMq::connect(&url).await.expect("connected");
        let mut consumer = broker.consume(&queue, ConsumeOptions::default()).await.expect("consumed");
        let mut taken = 0;
        while taken < 50 {
            taken +=
                consumer.next_chunk(50).await.expect("read").iter().filter(|delivery| delivery.ack()).count();
        }
        drop(consumer);
        broker.close().await.expect("closed");
        assert_eq!(watching.stats(&queue).await.expect("there").ready, 0, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_does_not_like_is_refused_and_all_else_arrives() {
    let setup = Setup::default().configured("max_message_size = 5000");
    let node = Node::start(setup).await.expect("it starts");
    for step in [
        ["add_user", "ada", "pw"].as_slice(),
        &["set_permissions", "ada", ".*", "^(good|amq\\.default)$", ".*"],
    ] {
        node.tell("rabbitmqctl", step).await;
    }
    let admin = RabbitMq::connect(&node.url()).await.expect("connected");
    for (name, internal) in [("good", false), ("bad", false)] {
        let exchange = Exchange::durable(name, ExchangeKind::Fanout);
        admin
            .declare_exchange(if internal { exchange.internal() } else { exchange })
            .await
            .expect("declared");
    }
    admin.declare_queue(Queue::durable("queue")).await.expect("declared");
    admin.bind(Binding::new("good", "", "queue")).await.expect("bound");
    let url = node.url().replace("guest:guest", "ada:pw");
    let broker = RabbitMq::connect(&url).await.expect("connected");
    let (good, bad) = (Address::new("good", ""), Address::new("bad", ""));
    let as_other = Message::new("x").with_header(USER_ID, "somebody");
    let batch = [
        (&good, Message::new("a")),
        (&bad, Message::new("forbidden")),
        (&good, Message::new(vec![0; 5001])),
        (&good, as_other),
        (&good, Message::new("b")),
    ];
    for _ in 0..3 {
        let publishes =
            batch.clone().map(|(to, message)| millstream_message::Publish { to: to.clone(), message });
        let published = broker.publish_batch(Batch::from(publishes.to_vec()));
        let outcomes = timeout(LONG, published).await.expect("it ends").expect("taken");
        let refusal = |at: usize| match outcomes.get(at) {
            PublishOutcome::Refused(Refusal::Broker(error)) => error.to_string(),
            PublishOutcome::Refused(refusal) => refusal.to_string(),
            other => panic!("{at}: {other:?}"),
        };
        assert!(outcomes.get(0).is_confirmed() && outcomes.get(4).is_confirmed(), "{:?}", outcomes.others());
        assert!(refusal(1).contains("refused for user 'ada'"), "{}", refusal(1));
        assert!(refusal(2).contains("5001 bytes, at most 5000"), "{}", refusal(2));
        assert!(refusal(3).contains("somebody"), "{}", refusal(3));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_that_is_closed_has_brought_away_what_was_settled_before() {
    let url = shared().await.url();
    let proxy = Proxy::to(shared().await.port).await;
    let observer = RabbitMq::connect(&url).await.expect("connected");
    let (name, dead) = (unique("queue"), unique("dead"));
    observer.declare_queue(Queue::durable(&dead)).await.expect("declared");
    let ways = [(Nack::dead_letter("no good"), &dead), (Nack::RequeueAfter(Duration::from_millis(1)), &name)];
    for (how, queue) in ways {
        let broker = RabbitMq::connect(&proxy.url()).await.expect("connected");
        broker.declare_queue(Queue::durable(&name).dead_letter("", &dead)).await.expect("declared");
        let batch = Batch::to(&Address::queue(&name), (0..500).map(|n| Message::new(n.to_string())));
        assert!(broker.publish_batch(batch).await.expect("taken").all_confirmed());
        let mut consumer = broker.consume(&name, ConsumeOptions::default()).await.expect("consumed");
        for _ in 0..500 {
            let delivery =
                timeout(LONG, consumer.next()).await.expect("delivered").expect("on").expect("read");
            assert!(delivery.nack(&how));
        }
        drop(consumer);
        broker.close().await.expect("closed");
        let arrived = async {
            // A moment passes until what was to come later is back.
            while observer.stats(queue).await.expect("there").ready < 500 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, arrived).await.expect("all are there");
        assert_eq!(observer.purge(queue).await.expect("purged"), 500);
        assert_eq!(observer.purge(&name).await.expect("purged"), 0, "and nowhere else");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_closes_a_handle_is_told_what_could_not_be_brought_away() {
    let url = format!("{}?operation_timeout=500", shared().await.url());
    let broker = RabbitMq::connect(&url).await.expect("connected");
    let (name, dead) = (unique("queue"), unique("dead"));
    broker.declare_queue(Queue::durable(&dead).max_items(1)).await.expect("declared");
    broker.declare_queue(Queue::durable(&name).dead_letter("", &dead)).await.expect("declared");
    let batch = Batch::to(&Address::queue(&name), ["a", "b", "c"].map(Message::new));
    assert!(broker.publish_batch(batch).await.expect("taken").all_confirmed());
    let mut consumer = broker.consume(&name, ConsumeOptions::default()).await.expect("consumed");
    for _ in 0..3 {
        let delivery = timeout(LONG, consumer.next()).await.expect("delivered").expect("on").expect("read");
        assert!(delivery.nack(&Nack::dead_letter("no good")));
    }
    let error = broker.close().await.expect_err("there is room for one");
    assert!(error.to_string().contains("closed with 2 deliveries that could not be stored"), "{error}");
    let observer = RabbitMq::connect(&shared().await.url()).await.expect("connected");
    let ready = async |queue: &str| observer.stats(queue).await.expect("there").ready;
    let there = async {
        while ready(&name).await + ready(&dead).await < 3 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, there).await.expect("none is lost");
}

/// The server takes a message only from the user that its `user-id` names, and most services consume as another one than they publish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_user_has_published_waits_and_dies_with_its_words() {
    let node = shared().await;
    let user = unique("user");
    node.tell("rabbitmqctl", &["add_user", &user, "pw"]).await;
    node.tell("rabbitmqctl", &["set_permissions", &user, ".*", ".*", ".*"]).await;
    let guest = RabbitMq::connect(&node.url()).await.expect("connected");
    let url = node.url().replace("guest:guest", &format!("{user}:pw"));
    let theirs = RabbitMq::connect(&url).await.expect("connected");
    let (name, dead) = (unique("queue"), unique("dead"));
    theirs.declare_queue(Queue::durable(&dead)).await.expect("declared");
    theirs.declare_queue(Queue::durable(&name).dead_letter("", &dead)).await.expect("declared");
    let message = Message::new("tea").with_header(USER_ID, "guest");
    let published = timeout(LONG, guest.publish(&Address::queue(&name), message)).await.expect("it ends");
    assert!(published.expect("taken").is_confirmed());

    let mut consumer = theirs.consume(&name, ConsumeOptions::default()).await.expect("consumed");
    for redeliveries in 0..3 {
        let delivery = timeout(LONG, consumer.next()).await.expect("delivered").expect("on").expect("read");
        let said = delivery.message.header(USER_ID).and_then(|user| user.as_text());
        assert_eq!((said, delivery.redeliveries), (Some("guest"), redeliveries), "it is as it was");
        let later = Nack::RequeueAfter(Duration::from_millis(20));
        assert!(delivery.nack(&if redeliveries < 2 { later } else { Nack::dead_letter("no good") }));
    }
    drop(consumer);
    let mut letters = theirs.consume(&dead, ConsumeOptions::default()).await.expect("consumed");
    let letter = timeout(LONG, letters.next()).await.expect("delivered").expect("on").expect("read");
    let text = |name: &str| letter.message.header(name).and_then(|value| value.as_text().map(str::to_owned));
    assert_eq!(text(millstream_message::dead::DETAIL).as_deref(), Some("no good"));
    assert_eq!((text(USER_ID), text(FORMER_USER_ID).as_deref()), (None, Some("guest")));
}

//! Connecting: what the URL says has its effect, and what is wrong with it is told.

use std::time::Duration;

use millstream_message::{
    Address, Batch, Broker, BrokerErrorKind, ConsumeOptions, Message, PublishOutcome, Queue, Refusal,
};
use millstream_rabbitmq::{ConnectionState, RabbitMq};
use millstream_testing::{Certificates, Node, Proxy, Setup, free_port, shared, unique};
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
/// For what surely comes.
const LONG: Duration = Duration::from_secs(60);

async fn connected(options: &str) -> RabbitMq {
    let url = format!("{}?{options}", shared().await.url());
    RabbitMq::connect(&url).await.expect("connected")
}

async fn queue(broker: &RabbitMq) -> String {
    let name = unique("queue");
    broker.declare_queue(Queue::durable(&name)).await.expect("declared");
    name
}

#[tokio::test]
async fn wrong_credentials_vhosts_and_hosts_are_told_with_the_remedy() {
    let port = shared().await.port;
    let complaint = async |url: String| RabbitMq::connect(&url).await.expect_err("it cannot connect");
    let wrong = complaint(format!("amqp://guest:nonsense@127.0.0.1:{port}")).await;
    let text = wrong.to_string();
    assert_eq!(wrong.kind(), BrokerErrorKind::Invalid);
    assert!(
        text.contains("guest") && text.contains("name and password") && !text.contains("nonsense"),
        "{text}"
    );
    let wrong = complaint(format!("amqp://127.0.0.1:{port}/nowhere")).await.to_string();
    assert!(wrong.contains("`nowhere`") && wrong.contains("add_vhost"), "{wrong}");
    let wrong = complaint(format!("amqp://127.0.0.1:{}", free_port())).await;
    assert_eq!(wrong.kind(), BrokerErrorKind::Unavailable);
    assert!(wrong.to_string().contains("is RabbitMQ running"), "{wrong}");
    let wrong = complaint("amqp://no-such-host.invalid".to_owned()).await.to_string();
    assert!(wrong.contains("no-such-host.invalid:5672"), "{wrong}");
    // A server that is silent, and one that speaks something else.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = silent.local_addr().expect("an address");
    let wrong = complaint(format!("amqp://{address}?connection_timeout=200")).await.to_string();
    assert!(wrong.contains("connection_timeout"), "{wrong}");
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        // The first is the one that has given up.
        let mut clients = Vec::new();
        while let Ok((mut client, _)) = silent.accept().await {
            let _ = client.write_all(b"AMQP\x00\x01\x00\x00").await;
            clients.push(client);
        }
    });
    let wrong = complaint(format!("amqp://{address}")).await.to_string();
    assert!(wrong.contains("no AMQP 0-9-1"), "{wrong}");
}

#[tokio::test]
async fn the_first_host_that_answers_is_taken_and_the_next_one_when_it_is_lost() {
    let port = shared().await.port;
    let (one, two) = (Proxy::to(port).await, Proxy::to(port).await);
    let url = format!("amqp://127.0.0.1:{},127.0.0.1:{},127.0.0.1:{}", free_port(), one.port, two.port);
    let broker = RabbitMq::connect(&url).await.expect("one of three is enough");
    let queue = queue(&broker).await;
    for refusing in [&one, &two, &one] {
        for proxy in [&one, &two] {
            proxy.refuse(std::ptr::eq(proxy, refusing));
        }
        refusing.cut();
        let to = Address::queue(&queue);
        let published = broker.publish(&to, Message::new("x"));
        let outcome = timeout(LONG, published).await.expect("by the other one").expect("taken");
        assert!(outcome.is_confirmed());
    }
}

#[tokio::test]
async fn the_broker_knows_the_name_and_the_limits_that_were_asked_for() {
    let node = shared().await;
    let broker = connected("name=my%20service&channel_max=3&frame_max=4096&heartbeat=7").await;
    let listed = node
        .tell(
            "rabbitmqctl",
            &["list_connections", "client_properties", "channel_max", "frame_max", "timeout"],
        )
        .await;
    let own = listed.lines().find(|line| line.contains("my service")).expect("it is listed");
    assert!(own.ends_with("3\t4096\t7"), "{own}");
    assert_eq!(broker.frame_max(), 4096);
    let version = shared().await.tell("rabbitmqctl", &["version"]).await;
    assert_eq!(broker.server(), format!("RabbitMQ {}", version.trim()));

    // Bodies and properties of any size go through small frames.
    let queue = queue(&broker).await;
    let message = Message::new(vec![7_u8; 100_000]).with_header("h", "x".repeat(2000));
    assert!(broker.publish(&Address::queue(&queue), message.clone()).await.expect("taken").is_confirmed());
    let mut consumer = broker.consume(&queue, ConsumeOptions::default()).await.expect("consumed");
    assert_eq!(consumer.next().await.expect("on").expect("read").message, message);
    // One channel declares, one consumes; a third can be had and a fourth not.
    let _third = broker.consume(&queue, ConsumeOptions::default()).await.expect("consumed");
    let error = broker.consume(&queue, ConsumeOptions::default()).await.expect_err("no channel is left");
    assert!(error.to_string().contains("channel_max"), "{error}");
}

#[tokio::test]
async fn consumers_are_spread_over_connections() {
    let node = shared().await;
    let broker = connected("name=spread&connections=3").await;
    let queue = queue(&broker).await;
    let mut consumers = Vec::new();
    for _ in 0..6 {
        consumers.push(broker.consume(&queue, ConsumeOptions::default()).await.expect("consumed"));
    }
    let listed = node.tell("rabbitmqctl", &["list_connections", "client_properties", "channels"]).await;
    assert_eq!(listed.lines().filter(|line| line.contains("\"spread")).count(), 3, "{listed}");
    assert_eq!(broker.statistics().connections, 3);
    drop(broker);
    let gone = async {
        while node.tell("rabbitmqctl", &["list_connections", "client_properties"]).await.contains("\"spread")
        {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, gone).await.expect("a handle that is dropped closes its connections");
}

#[tokio::test]
async fn what_amqp_cannot_carry_is_refused_and_nothing_else() {
    let broker = connected("max_message_bytes=1000").await;
    let queue = queue(&broker).await;
    let long = "x".repeat(300);
    let messages = [
        Message::new("good"),
        Message::new(vec![0; 1001]),
        Message::new("name").with_message_id(&long),
        Message::new("headers").with_header("h", "x".repeat(200_000)),
        Message::new("header's name").with_header(&long, 1_i64),
        Message::new("delay").with_delay(Duration::from_secs(60 * 24 * 3600)),
        Message::new("good"),
    ];
    let outcomes = broker.publish_batch(Batch::to(&Address::queue(&queue), messages)).await.expect("taken");
    let refusal = |at: usize| match outcomes.get(at) {
        PublishOutcome::Refused(Refusal::Broker(error)) => error.to_string(),
        PublishOutcome::Refused(refusal) => refusal.to_string(),
        other => panic!("{at}: {other:?}"),
    };
    assert!(outcomes.get(0).is_confirmed() && outcomes.get(6).is_confirmed());
    assert!(refusal(1).contains("1001 bytes, at most 1000"), "{}", refusal(1));
    assert!(refusal(2).contains("message_id") && refusal(2).contains("255"));
    assert!(refusal(3).contains("frame of 131072 bytes"), "{}", refusal(3));
    assert!(refusal(4).contains("header's name"));
    assert!(refusal(5).contains("at most"));
    let far = broker.publish(&Address::queue(&long), Message::new("x")).await.expect("taken");
    assert!(matches!(far, PublishOutcome::Refused(Refusal::Broker(_))), "{far:?}");
    assert_eq!(broker.stats(&queue).await.expect("there").ready, 2);
    let error = broker.declare_queue(Queue::durable(&long)).await.expect_err("too long");
    assert!(error.to_string().contains("300 bytes"), "{error}");
    let lease = ConsumeOptions::default().lease(SECOND);
    assert_eq!(
        broker.consume(&queue, lease).await.expect_err("no leases").kind(),
        BrokerErrorKind::Unsupported
    );
}

#[tokio::test]
async fn a_broker_that_is_away_is_waited_for_as_long_as_was_said() {
    let proxy = Proxy::to(shared().await.port).await;
    let url = format!(
        "{}?operation_timeout=300&confirm_timeout=500&reconnect_min=10&reconnect_max=20",
        proxy.url()
    );
    let broker = RabbitMq::connect(&url).await.expect("connected");
    let queue = queue(&broker).await;
    let to = Address::queue(&queue);
    assert!(broker.publish(&to, Message::new("x")).await.expect("taken").is_confirmed());
    proxy.refuse(true);
    proxy.cut();
    let mut state = broker.state();
    let several =
        state.wait_for(|state| matches!(state, ConnectionState::Reconnecting { attempts: 3.., .. }));
    timeout(LONG, several).await.expect("it goes on trying").expect("it is open");

    let asked = Instant::now();
    let error = broker.declare_queue(Queue::durable("any")).await.expect_err("nobody is there");
    assert_eq!(error.kind(), BrokerErrorKind::Unavailable);
    assert!((Duration::from_millis(290)..LONG).contains(&asked.elapsed()), "{:?}", asked.elapsed());
    let asked = Instant::now();
    let outcome = broker.publish(&to, Message::new("late")).await.expect("taken");
    assert!(matches!(outcome, PublishOutcome::Unconfirmed(_)), "{outcome:?}");
    assert!((Duration::from_millis(490)..LONG).contains(&asked.elapsed()), "{:?}", asked.elapsed());

    proxy.refuse(false);
    let connected = broker.state().wait_for(|state| *state == ConnectionState::Connected).await.is_ok();
    assert!(connected);
    broker.close().await.expect("closed");
    assert_eq!(*broker.state().borrow(), ConnectionState::Closed);
    let closed = broker.publish(&to, Message::new("x")).await.map(|outcome| format!("{outcome:?}"));
    assert!(closed.is_err() || closed.is_ok_and(|outcome| outcome.contains("closed")));
    broker.close().await.expect("once more");
}

#[tokio::test]
async fn what_is_not_confirmed_takes_no_more_bytes_than_were_said() {
    let proxy = Proxy::to(shared().await.port).await;
    let broker =
        RabbitMq::connect(&format!("{}?publish_window_bytes=10000", proxy.url())).await.expect("connected");
    let to = Address::queue(queue(&broker).await);
    assert!(broker.publish(&to, Message::new("x")).await.expect("taken").is_confirmed());
    proxy.freeze(true);
    let mut confirms = Vec::new();
    let one = || Batch::to(&to, [Message::new(vec![0; 1000])]);
    while let Ok(confirm) = timeout(SECOND, broker.submit(one())).await {
        confirms.push(confirm.expect("taken"));
    }
    assert_eq!(confirms.len(), 8, "a message counts with its names and a little more: nine are over 10,000");
    proxy.freeze(false);
    // One that is larger than the window takes all of it, and goes alone.
    confirms.push(broker.submit(Batch::to(&to, [Message::new(vec![0; 50_000])])).await.expect("taken"));
    for confirm in confirms {
        assert!(timeout(LONG, confirm).await.expect("it goes on").all_confirmed());
    }
}

#[tokio::test]
async fn statistics_count_what_happened() {
    let broker = connected("").await;
    let queue = queue(&broker).await;
    let batch = Batch::to(&Address::queue(&queue), (0..50).map(|_| Message::new(vec![0; 1000])));
    assert!(broker.publish_batch(batch).await.expect("taken").all_confirmed());
    let _consumer = broker.consume(&queue, ConsumeOptions::default()).await.expect("consumed");
    let figures = broker.statistics();
    assert_eq!((figures.published, figures.settled, figures.in_flight, figures.consumers), (50, 50, 0, 1));
    assert_eq!((figures.connections, figures.connects, figures.failed_connects), (2, 2, 0));
    assert!(figures.bytes_out > 50_000 && figures.bytes_in > 500, "{figures:?}");
    let latency = &figures.confirm_latency;
    assert!(latency.count() == 1 && !latency.sum.is_zero(), "one batch: {latency:?}");
    assert!(figures.writes < 40, "what is published together is written together: {figures:?}");
}

#[tokio::test]
async fn each_confirm_is_timed_from_its_own_batch() {
    let broker = connected("").await;
    let to = Address::queue(queue(&broker).await);
    for n in 1..20 {
        let (before, began) = (broker.statistics().confirm_latency.sum, Instant::now());
        assert!(broker.publish(&to, Message::new("x")).await.expect("taken").is_confirmed());
        let (latency, took) = (broker.statistics().confirm_latency, began.elapsed());
        assert_eq!(latency.count(), n);
        // Counted from the batch before, it would be longer than this one took.
        assert!(latency.sum > before && latency.sum - before <= took, "{latency:?}");
    }
}

/// A broker that speaks TLS, and its certificates.
async fn secure_node() -> (Node, Certificates, u16) {
    let (certificates, port) = (Certificates::make(), free_port());
    let setup = Setup::default()
        .plugin("rabbitmq_auth_mechanism_ssl")
        .configured(&format!("listeners.ssl.default = 127.0.0.1:{port}\n{}", certificates.configuration()));
    let node = Node::start(setup).await.expect("it starts");
    (node, certificates, port)
}

#[tokio::test]
async fn tls_checks_the_broker_and_shows_the_client() {
    let (_node, certificates, port) = secure_node().await;
    let place = certificates.place().display();
    let proxy = Proxy::to(port).await;
    let port = proxy.port;
    let url = |rest: &str| format!("amqps://localhost:{port}?cacertfile={place}/ca.pem{rest}");
    let certificate = format!("&certfile={place}/client.pem&keyfile={place}/client.key");
    for good in
        [url(""), url("&auth_mechanism=amqplain"), url(&format!("{certificate}&auth_mechanism=external"))]
    {
        let broker = RabbitMq::connect(&good).await.unwrap_or_else(|error| panic!("{good}: {error:?}"));
        let queue = queue(&broker).await;
        let message = Message::new(vec![1; 300_000]);
        assert!(
            broker.publish(&Address::queue(&queue), message.clone()).await.expect("taken").is_confirmed()
        );
        let mut consumer = broker.consume(&queue, ConsumeOptions::default()).await.expect("consumed");
        let first = consumer.next().await.expect("on").expect("read");
        assert_eq!(first.message, message);
        // What was not settled comes again, over a new connection as good as the first.
        proxy.cut();
        let again = timeout(LONG, consumer.next()).await.expect("it comes back");
        assert_eq!(again.expect("on").expect("read").message, message);
        broker.close().await.expect("closed");
    }
    let complaint = async |url: String| RabbitMq::connect(&url).await.expect_err("it is refused").to_string();
    let name = complaint(url("&server_name_indication=other.example")).await;
    assert!(name.contains("other.example") || name.contains("name"), "{name}");
    let unknown = complaint(format!("amqps://localhost:{port}")).await;
    assert!(unknown.to_lowercase().contains("issuer") || unknown.contains("certificate"), "{unknown}");
    let missing = complaint(format!("amqps://localhost:{port}?cacertfile={place}/none.pem")).await;
    assert!(missing.contains("none.pem"), "{missing}");
    let half = complaint(url(&format!("&certfile={place}/client.pem"))).await;
    assert!(half.contains("keyfile"), "{half}");
    let plain = complaint(format!("amqp://localhost:{port}?connection_timeout=2000")).await;
    assert!(!plain.is_empty());
}

//! What AMQP cannot tell.

use std::time::Duration;

use millstream_message::{
    Address, Batch, Binding, Broker, BrokerErrorKind, ConsumeOptions, Declaration, Exchange, ExchangeKind,
    Message, Nack, Overflow, Queue, QueueKind, Standing, dead,
};
use millstream_rabbitmq::RabbitMq;
use millstream_testing::{Certificates, Node, Setup, free_port, shared, unique};
use tokio::time::{sleep, timeout};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_of_others_are_listed_with_their_figures_and_declarations() {
    let setup =
        Setup::default().plugin("rabbitmq_management").configured("collect_statistics_interval = 500");
    let node = Node::start(setup).await.expect("it starts");
    node.tell("rabbitmqctl", &["add_vhost", "a/b c"]).await;
    node.tell("rabbitmqctl", &["set_permissions", "-p", "a/b c", "guest", ".*", ".*", ".*"]).await;
    let url = node.managed_url().replace("%2f", "a%2fb%20c");
    let (owner, other) = (
        RabbitMq::connect(&url).await.expect("connected"),
        RabbitMq::connect(&url).await.expect("connected"),
    );
    assert_eq!(other.queues().await.expect("listed"), Vec::<String>::new());
    let queues = [
        Queue::durable("plain/with a slash"),
        Queue::durable("limited")
            .max_items(5)
            .overflow(Overflow::DropHead)
            .ttl(Duration::from_millis(60_500))
            .dead_letter("", "dead")
            .max_priority(4),
        Queue::durable("quorum").delivery_limit(3).single_active_consumer(),
        Queue::durable("stream").kind(QueueKind::Stream),
        Queue::transient("idle").expires(Duration::from_secs(600)),
    ];
    for queue in &queues {
        owner.declare_queue(queue.clone()).await.expect("declared");
        let told = other.queue(&queue.name).await.expect("looked up").expect("it is there");
        // RabbitMQ 4 says of which kind it is though nobody asked.
        let kind = told.kind.filter(|kind| *kind != QueueKind::Classic);
        assert_eq!(Queue { overflow: queue.overflow, kind, ..told.clone() }, *queue);
        if queue.max_items.is_some() {
            assert_eq!(told.overflow, queue.overflow);
        }
    }
    assert_eq!(other.queue("none").await.expect("looked up"), None);
    let mut names: Vec<_> = queues.iter().map(|queue| queue.name.clone()).collect();
    names.sort();
    assert_eq!(other.queues().await.expect("listed"), names);
    let batch = Batch::to(&Address::queue("limited"), ["a", "bc"].map(Message::new));
    assert!(owner.publish_batch(batch).await.expect("taken").all_confirmed());
    let figures = async {
        loop {
            let all = other.all_stats().await.expect("listed");
            assert_eq!(all.len(), 5);
            let limited = all.into_iter().find(|stats| stats.name == "limited").expect("listed");
            if (limited.ready, limited.ready_bytes) == (2, 3) {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(60), figures).await.expect("the figures come in time");

    // All differences at once, where AMQP tells the first.
    let asked = Declaration::Queue(Queue::durable("limited").max_items(6).dead_letter("", "dead"));
    let Standing::Different(text) = other.standing(&asked).await.expect("asked") else { panic!("same") };
    for part in
        ["max_items: has 5, asked for 6", "ttl in ms: has 60500, asked for none", "overflow", "max_priority"]
    {
        assert!(text.contains(part), "{text}");
    }
    other.declare_exchange(Exchange::durable("e", ExchangeKind::Topic)).await.expect("declared");
    let binding = Binding::new("e", "a.*", "limited");
    let standing = async || other.standing(&Declaration::Binding(binding.clone())).await.expect("asked");
    assert_eq!(standing().await, Standing::Missing);
    other.bind(binding.clone()).await.expect("bound");
    assert_eq!(standing().await, Standing::Same);
    let exchange = Declaration::Exchange(Exchange::transient("e", ExchangeKind::Direct));
    let Standing::Different(text) = other.standing(&exchange).await.expect("asked") else { panic!("same") };
    assert!(text.contains("durable") && text.contains("kind"), "{text}");
    // What is there as it is asked for is the same, in whichever words it is asked for.
    for queue in queues {
        let standing = other.standing(&Declaration::Queue(queue)).await.expect("asked");
        assert_eq!(standing, Standing::Same);
    }
    let spelled = Queue::durable("quorum").kind(QueueKind::Quorum).delivery_limit(3).single_active_consumer();
    assert_eq!(other.standing(&Declaration::Queue(spelled)).await.expect("asked"), Standing::Same);
    node.tell("rabbitmqctl", &["add_vhost", "quorums", "--default-queue-type", "quorum"]).await;
    node.tell("rabbitmqctl", &["set_permissions", "-p", "quorums", "guest", ".*", ".*", ".*"]).await;
    let url = node.managed_url().replace("%2f", "quorums");
    let quorums = RabbitMq::connect(&url).await.expect("connected");
    let unsaid = Queue::durable("unsaid");
    quorums.declare_queue(unsaid.clone()).await.expect("declared");
    assert_eq!(quorums.standing(&Declaration::Queue(unsaid)).await.expect("asked"), Standing::Same);
    let bounded = Queue::durable("bounded").kind(QueueKind::Stream).max_bytes(1 << 30);
    other.declare_queue(bounded.clone()).await.expect("declared");
    assert_eq!(other.standing(&Declaration::Queue(bounded)).await.expect("asked"), Standing::Same);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topology_is_looked_at_by_who_may_configure_nothing() {
    let node = Node::start(Setup::default().plugin("rabbitmq_management")).await.expect("it starts");
    node.tell("rabbitmqctl", &["add_user", "ada", "pw"]).await;
    node.tell("rabbitmqctl", &["set_permissions", "ada", "", "", ".*"]).await;
    let owner = RabbitMq::connect(&node.managed_url()).await.expect("connected");
    owner.declare_queue(Queue::durable("q").max_items(5)).await.expect("declared");
    owner.declare_exchange(Exchange::durable("e", ExchangeKind::Topic)).await.expect("declared");
    let standings = async |url: &str| {
        let ada = RabbitMq::connect(&url.replace("guest:guest", "ada:pw")).await.expect("connected");
        let mut standings = Vec::new();
        for asked in [
            Declaration::Queue(Queue::durable("q").max_items(5)),
            Declaration::Exchange(Exchange::durable("e", ExchangeKind::Topic)),
            Declaration::Queue(Queue::durable("missing")),
        ] {
            standings.push(ada.standing(&asked).await.expect("asked"));
        }
        standings
    };
    let untold = standings(&node.managed_url()).await;
    for standing in &untold[..2] {
        let Standing::Unknown(why) = standing else { panic!("{standing:?}") };
        assert!(why.contains("may configure it") && why.contains("set_user_tags"), "{why}");
    }
    assert_eq!(untold[2], Standing::Missing);
    node.tell("rabbitmqctl", &["set_user_tags", "ada", "management"]).await;
    assert_eq!(
        standings(&node.managed_url()).await,
        [Standing::Same, Standing::Same, Standing::Missing],
        "nothing is declared to compare it"
    );
}

#[tokio::test]
async fn the_management_is_asked_by_https_and_its_certificate_checked() {
    let (certificates, secure, port) = (Certificates::make(), free_port(), free_port());
    let place = certificates.place().display().to_string();
    let setup = Setup::default()
        .plugin("rabbitmq_management")
        .plugin("rabbitmq_auth_mechanism_ssl")
        .configured(&format!("listeners.ssl.default = 127.0.0.1:{port}\n{}", certificates.configuration()))
        .configured(&format!(
            "management.ssl.ip = 127.0.0.1\nmanagement.ssl.port = {secure}\n\
             management.ssl.cacertfile = {place}/ca.pem\nmanagement.ssl.certfile = {place}/server.pem\n\
             management.ssl.keyfile = {place}/server.key"
        ));
    let node = Node::start(setup).await.expect("it starts");
    let url = |management: &str| {
        format!("amqps://localhost:{port}?cacertfile={place}/ca.pem&management=https://{management}:{secure}")
    };
    let broker = RabbitMq::connect(&url("localhost")).await.expect("connected");
    broker.declare_queue(Queue::durable("q").max_items(5)).await.expect("declared");
    assert_eq!(broker.queues().await.expect("listed"), ["q"]);
    let standing = broker.standing(&Declaration::Queue(Queue::durable("q").max_items(5))).await;
    assert_eq!(standing.expect("asked"), Standing::Same);
    // The certificate is for `localhost`.
    let other = RabbitMq::connect(&url("127.0.0.1")).await.expect("connected by AMQP");
    let error = other.queues().await.expect_err("another name").to_string();
    assert!(error.contains("https://127.0.0.1") && error.to_lowercase().contains("certificate"), "{error}");
    // Who answers there speaks no TLS.
    let plain = url("localhost").replace(&secure.to_string(), &node.management_port.to_string());
    let error =
        RabbitMq::connect(&plain).await.expect("connected by AMQP").queues().await.expect_err("no TLS");
    assert_eq!(error.kind(), BrokerErrorKind::Unavailable);
}

#[tokio::test]
async fn a_management_that_does_not_answer_is_waited_for_once() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = silent.local_addr().expect("bound").port();
    let url = format!("{}?connection_timeout=1500&management=http://127.0.0.1:{port}", shared().await.url());
    let broker = RabbitMq::connect(&url).await.expect("connected");
    for part in 0..5 {
        let binding = Declaration::Binding(Binding::new("amq.topic", part.to_string(), "q"));
        let standing = broker.standing(&binding).await.expect("asked");
        assert!(matches!(&standing, Standing::Unknown(why) if why.contains("no answer")), "{standing:?}");
    }
    let mut asked = 0;
    while timeout(Duration::from_millis(200), silent.accept()).await.is_ok() {
        asked += 1;
    }
    assert_eq!(asked, 1);
}

#[tokio::test]
async fn a_queue_that_is_exclusive_to_another_connection_is_there() {
    let name = unique("own");
    let url = shared().await.url();
    let (owner, other) = (
        RabbitMq::connect(&url).await.expect("connected"),
        RabbitMq::connect(&url).await.expect("connected"),
    );
    owner.declare_queue(Queue::exclusive(&name)).await.expect("declared");
    assert_eq!(other.queue(&name).await.expect("looked up"), Some(Queue::exclusive(&name)));
    assert_eq!(other.stats(&name).await.expect_err("nobody else sees").kind(), BrokerErrorKind::InUse);
    let standing = other.standing(&Declaration::Queue(Queue::durable(&name))).await.expect("asked");
    assert!(
        matches!(&standing, Standing::Different(how) if how.contains("another connection")),
        "{standing:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_management_that_is_off_or_lets_nobody_in_is_told_with_the_remedy() {
    let node = shared().await;
    let name = unique("queue");
    let broker = RabbitMq::connect(&node.url()).await.expect("connected");
    broker.declare_queue(Queue::durable(&name).max_items(7)).await.expect("declared");
    let url = format!("{}?management=http://127.0.0.1:{}", node.url(), free_port());
    let off = RabbitMq::connect(&url).await.expect("AMQP is there");
    for error in [
        off.queues().await.expect_err("it is off"),
        off.all_stats().await.expect_err("it is off"),
        off.queue(&name).await.expect_err("somebody else's, and the URL says who knows"),
    ] {
        let text = error.to_string();
        assert_eq!(error.kind(), BrokerErrorKind::Unavailable);
        assert!(text.contains("rabbitmq-plugins enable rabbitmq_management"), "{text}");
        assert!(text.contains("`management`") && !text.contains("guest:guest"), "{text}");
    }
    let asked = Declaration::Queue(Queue::durable(&name).max_items(8));
    let Standing::Different(text) = off.standing(&asked).await.expect("AMQP tells") else { panic!("same") };
    assert!(text.contains("max_items: has 7, asked for 8"), "{text}");
    let binding = Declaration::Binding(Binding::new("amq.topic", "k", &name));
    let standing = off.standing(&binding).await.expect("asked");
    assert!(matches!(&standing, Standing::Unknown(why) if why.contains("management")), "{standing:?}");

    let node = Node::start(Setup::default().plugin("rabbitmq_management")).await.expect("it starts");
    node.tell("rabbitmqctl", &["add_user", "ada", "pw"]).await;
    node.tell("rabbitmqctl", &["set_permissions", "ada", ".*", ".*", ".*"]).await;
    let url = node.managed_url().replace("guest:guest", "ada:pw");
    let broker = RabbitMq::connect(&url).await.expect("AMQP lets her in");
    let error = broker.queues().await.expect_err("no tag");
    assert_eq!(error.kind(), BrokerErrorKind::Invalid);
    assert!(error.to_string().contains("set_user_tags"), "{error}");
    node.tell("rabbitmqctl", &["set_user_tags", "ada", "management"]).await;
    assert_eq!(broker.queues().await.expect("listed"), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_of_a_queue_that_was_looked_at_says_why_it_died() {
    let setup =
        Setup::default().plugin("rabbitmq_management").configured("collect_statistics_interval = 500");
    let node = Node::start(setup).await.expect("it starts");
    let owner = RabbitMq::connect(&node.managed_url()).await.expect("connected");
    owner.declare_queue(Queue::durable("dead")).await.expect("declared");
    owner.declare_queue(Queue::durable("orders").dead_letter("", "dead")).await.expect("declared");
    assert!(owner.publish(&Address::queue("orders"), Message::new("x")).await.expect("taken").is_confirmed());
    let other = RabbitMq::connect(&node.managed_url()).await.expect("connected");
    assert!(other.queue("orders").await.expect("looked up").is_some());
    let mut consumer = other.consume("orders", ConsumeOptions::default()).await.expect("consumed");
    let delivery = consumer.next().await.expect("it is there").expect("read");
    assert!(delivery.nack(&Nack::dead_letter("no such carrier")));
    let mut letters = owner.consume("dead", ConsumeOptions::default()).await.expect("consumed");
    let letter = timeout(Duration::from_secs(60), letters.next()).await.expect("it comes");
    let letter = letter.expect("it is there").expect("read");
    let detail = letter.message.header(dead::DETAIL).and_then(|detail| detail.as_text());
    assert_eq!(detail, Some("no such carrier"));
}

//! Requests and replies over queues, in memory and on RabbitMQ.

use std::sync::Arc;
use std::time::Duration;

use millstream::message::{Broker, Value};
use millstream::prelude::*;
use millstream::queue::{RequestError, Requester, respond};
use millstream_testing::{Proxy, shared, unique};

const SECOND: Duration = Duration::from_secs(1);

/// Squares numbers, slowly if they are large; fails at others, and panics at 13.
async fn square(request: Message) -> Result<Message, BoxError> {
    let n: u64 = std::str::from_utf8(request.body())?.parse()?;
    assert_ne!(n, 13, "bad luck");
    if n >= 1000 {
        tokio::time::sleep(n as u32 * Duration::from_millis(1)).await;
    }
    Ok(Message::new((n * n).to_string()).with_header("asked", n as i64))
}

async fn ask(requester: &Requester, to: &Address, what: &str) -> Result<Message, RequestError> {
    requester.request(to, Message::new(what.to_owned()), 5 * SECOND).await
}

async fn requests_are_answered(url: &str) {
    let broker: Arc<dyn Broker> = millstream::open(url).await.expect("opened");
    let queue = unique("square");
    broker.declare_queue(Queue::durable(&queue)).await.expect("declared");
    let to = Address::queue(&queue);
    let requester = Arc::new(Requester::open(broker.clone()).await.expect("open"));

    // Nobody is there yet: it waits in the queue for as long as the request does.
    let early = requester.request(&to, Message::new("2"), SECOND / 5).await;
    assert!(matches!(early, Err(RequestError::Timeout { .. })), "{early:?}");
    let consumer = broker.consume(&queue, ConsumeOptions::default()).await.expect("consumed");
    let serving =
        respond(broker.clone(), consumer, Concurrency::unordered(100), square).for_each(drop).start();

    let reply = ask(&requester, &to, "12").await.expect("a reply");
    assert_eq!((reply.body(), reply.header("asked")), (&"144".into(), Some(&Value::Int(12))));
    // Many at once, each its own reply, whatever the order in which they are done.
    let asked = (0..500_u64).map(|n| {
        let (requester, to) = (requester.clone(), to.clone());
        tokio::spawn(async move { (n, ask(&requester, &to, &n.to_string()).await) })
    });
    for (n, reply) in
        futures_util::future::join_all(asked.collect::<Vec<_>>()).await.into_iter().map(Result::unwrap)
    {
        match (n, reply) {
            (13, Err(RequestError::Failed { reason })) => assert!(reason.contains("bad luck"), "{reason}"),
            (_, reply) => assert_eq!(reply.expect("a reply").body(), (n * n).to_string().as_bytes()),
        }
    }
    let failed = ask(&requester, &to, "twelve").await.expect_err("it is no number");
    assert!(failed.to_string().contains("invalid digit"), "{failed}");
    let slow = requester.request(&to, Message::new("100000"), SECOND / 5).await;
    assert!(matches!(slow, Err(RequestError::Timeout { .. })), "{slow:?}");
    let nowhere = ask(&requester, &Address::queue("nowhere"), "1").await;
    assert!(matches!(nowhere, Err(RequestError::Unroutable { .. })), "{nowhere:?}");
    assert_eq!(requester.waiting(), 0, "nobody is forgotten there");
    drop(serving);
    broker.close().await.expect("closed");
    assert!(ask(&requester, &to, "1").await.is_err(), "it does not wait for a broker that is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_in_memory() {
    requests_are_answered("memory:").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_on_rabbitmq() {
    requests_are_answered(&shared().await.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_rabbitmq_replies_need_no_queue_and_come_again_after_a_lost_connection() {
    let proxy = Proxy::to(shared().await.port).await;
    let asking: Arc<dyn Broker> = millstream::open(&proxy.url()).await.expect("opened");
    let answering: Arc<dyn Broker> = millstream::open(&shared().await.url()).await.expect("opened");
    let queue = unique("square");
    answering.declare_queue(Queue::durable(&queue)).await.expect("declared");
    let consumer = answering.consume(&queue, ConsumeOptions::default()).await.expect("consumed");
    let serving = respond(answering.clone(), consumer, 8, square).for_each(drop).start();
    let to = Address::queue(&queue);
    // Several on one handle, each with its own replies.
    let (one, two) = (
        Requester::open(asking.clone()).await.expect("open"),
        Requester::open(asking.clone()).await.expect("open"),
    );
    for round in 0..5 {
        let (first, second) = tokio::join!(ask(&one, &to, "3"), ask(&two, &to, "4"));
        assert_eq!(
            (first.expect("a reply").body(), second.expect("a reply").body()),
            (&"9".into(), &"16".into())
        );
        let listed = shared().await.tell("rabbitmqctl", &["list_queues", "name"]).await;
        assert!(!listed.contains("millstream.replies."), "{listed}");
        if round < 4 {
            proxy.cut();
        }
    }
    drop(serving);
    asking.close().await.expect("closed");
    assert!(matches!(ask(&one, &to, "1").await, Err(RequestError::Closed | RequestError::Unconfirmed(_))));
    answering.close().await.expect("closed");
}

#[tokio::test(start_paused = true)]
async fn no_more_requests_are_under_way_than_may_be() {
    let broker: Arc<dyn Broker> = millstream::open("memory:").await.expect("opened");
    broker.declare_queue(Queue::durable("q")).await.expect("declared");
    let requester = Requester::open(broker.clone()).await.expect("open").under_way(2);
    let to = Address::queue("q");
    let ask = |limit| requester.request(&to, Message::new("x").with_ttl(60 * SECOND), limit);
    let (one, two, three) = tokio::join!(ask(SECOND / 2), ask(SECOND / 2), ask(SECOND / 5));
    assert!(one.is_err() && two.is_err() && three.is_err());
    assert_eq!(broker.stats("q").await.expect("there").total(), 2, "the third was never sent");
}

/// Of no use on RabbitMQ, which has no queue for replies.
#[tokio::test(start_paused = true)]
async fn a_requesters_queue_goes_with_it() {
    let broker: Arc<dyn Broker> = millstream::open("memory:").await.expect("opened");
    for _ in 0..5 {
        drop(Requester::open(broker.clone()).await.expect("open"));
    }
    tokio::time::sleep(SECOND).await;
    assert_eq!(broker.queues().await.expect("listed"), Vec::<String>::new());
}

#[tokio::test]
async fn a_requester_that_is_dropped_does_not_keep_its_broker_open() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("embedded:{}", directory.path().display());
    for _ in 0..3 {
        let broker: Arc<dyn Broker> = millstream::open(&url).await.expect("nobody has it");
        let requester = Requester::open(broker.clone()).await.expect("open");
        drop((requester, broker));
    }
}

#[tokio::test]
async fn what_is_settled_too_late_is_told_in_one_line_a_second() {
    #[derive(Clone, Default)]
    struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no writer panics").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let write = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || write.clone()).finish();
    let _told = tracing::subscriber::set_default(subscriber);
    let broker: Arc<dyn Broker> = millstream::open("memory:").await.expect("opened");
    broker.declare_queue(Queue::transient("q")).await.expect("declared");
    for _ in 0..200 {
        let outcome = broker.publish(&Address::queue("q"), Message::new("x")).await.expect("stored");
        assert!(outcome.is_confirmed());
    }
    let consumer = broker.consume("q", ConsumeOptions::default().prefetch(200)).await.expect("consumes");
    let deletes = broker.clone();
    let pipe = millstream::queue::messages(consumer).map_async(4, move |message| {
        let deletes = deletes.clone();
        async move {
            // Once for all: the queue that they would be settled in is gone.
            let _ = deletes.delete_queue("q").await;
            message
        }
    });
    let _ = pipe.for_each(drop).start().join().await;
    let told = String::from_utf8(lines.0.lock().expect("no writer panics").clone()).expect("a text");
    let late: Vec<_> = told.lines().filter(|line| line.contains("settled too late")).collect();
    let count =
        |line: &&str| line.rsplit("deliveries=").next().and_then(|count| count.trim().parse::<u64>().ok());
    let sum: u64 = late.iter().filter_map(count).sum();
    assert!(late.len() <= 3 && sum > 20, "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_holds_no_other_up() {
    let broker: Arc<dyn Broker> = millstream::open("memory:").await.expect("opened");
    broker.declare_queue(Queue::durable("square")).await.expect("declared");
    let consumer = broker.consume("square", ConsumeOptions::default()).await.expect("consumed");
    let _serving = respond(broker.clone(), consumer, 8, square).for_each(drop).start();
    let (requester, to) = (Requester::open(broker.clone()).await.expect("open"), Address::queue("square"));
    let slow = requester.request(&to, Message::new("5000"), 10 * SECOND);
    let fast = requester.request(&to, Message::new("2"), SECOND);
    let (slow, fast) = tokio::join!(slow, fast);
    assert_eq!(fast.expect("at once").body(), "4");
    assert_eq!(slow.expect("at last").body(), "25000000");
}

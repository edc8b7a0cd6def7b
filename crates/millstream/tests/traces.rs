//! What is published because of a message belongs to its trace; in memory and on RabbitMQ.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use millstream::mediator::{Context, Mediator, Notification, to_broker};
use millstream::message::dead::DETAIL;
use millstream::message::{Broker, Consumer, Nack, TRACEPARENT, TraceContext};
use millstream::prelude::*;
use millstream::queue::{ATTEMPTS, Job, Producer, Publisher, Requester, Work, respond};
use millstream_testing::{shared, unique};
use tokio::time::timeout;

const SECOND: Duration = Duration::from_secs(1);
/// Longer than any of these tests takes.
const LONG: Duration = Duration::from_secs(300);
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn trace() -> TraceContext {
    let text = format!("00-{TRACE_ID}-00f067aa0ba902b7-01");
    TraceContext::parse(&text).expect("a trace").with_state("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")
}

async fn queue(broker: &Arc<dyn Broker>, queue: Queue) -> (Address, Consumer) {
    let name = queue.name.clone();
    broker.declare_queue(queue).await.expect("declared");
    let consumer = broker.consume(&name, ConsumeOptions::default()).await.expect("consumed");
    (Address::queue(name), consumer)
}

async fn publish(broker: &Arc<dyn Broker>, to: &Address) {
    let message = Message::new("7").with_content_type("application/json").with_trace(&trace());
    assert!(broker.publish(to, message).await.expect("published").is_confirmed());
}

async fn next(consumer: &mut Consumer) -> millstream::message::Delivery {
    timeout(LONG, consumer.next()).await.expect("one comes").expect("no end").expect("no error")
}

async fn a_trace_outlives_attempts_pauses_and_death(url: &str) {
    let broker: Arc<dyn Broker> = millstream::open(url).await.expect("opened");
    let (dead, mut letters) = queue(&broker, Queue::durable(unique("dead"))).await;
    let jobs = Queue::durable(unique("jobs")).dead_letter("", dead.key());
    let (to, mut consumer) = queue(&broker, jobs).await;

    publish(&broker, &to).await;
    // Given back at once, and later.
    for nack in [Nack::Requeue, Nack::RequeueAfter(SECOND / 50)] {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.message.trace(), Some(trace()));
        delivery.nack(&nack);
    }
    // Tried again, and dead.
    let retry = Retry::attempts(3).expect("some").first_delay(SECOND / 50);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    let run = Work::new(Json)
        .retry(retry)
        .start(broker.clone(), consumer, async move |job: &Job<u32>| {
            noted.lock().expect("no panic").push((job.attempt, job.message.trace()));
            Err::<(), _>(BoxError::from("not today").into())
        })
        .for_each(drop)
        .start();
    let letter = next(&mut letters).await;
    letter.ack();
    run.shutdown(LONG).await.expect("no failure");
    assert_eq!(*seen.lock().expect("no panic"), [1, 2, 3].map(|attempt| (attempt, Some(trace()))));
    let letter = letter.message;
    assert_eq!(letter.header(DETAIL).and_then(|text| text.as_text()), Some("not today"));
    assert_eq!((letter.header(ATTEMPTS), letter.trace()), (Some(&2_u32.into()), Some(trace())));
    broker.close().await.expect("closed");
}

#[tokio::test]
async fn a_trace_outlives_attempts_pauses_and_death_in_memory() {
    a_trace_outlives_attempts_pauses_and_death("memory:").await;
}

#[tokio::test]
async fn a_trace_outlives_attempts_pauses_and_death_on_rabbitmq() {
    a_trace_outlives_attempts_pauses_and_death(&shared().await.url()).await;
}

async fn replies_belong_to_the_trace_of_their_request(url: &str) {
    let broker: Arc<dyn Broker> = millstream::open(url).await.expect("opened");
    let (to, requests) = queue(&broker, Queue::durable(unique("requests"))).await;
    let own = trace().with_parent(1_u64.try_into().expect("not 0"));
    let traced = own.clone();
    let answer = async move |request: Message| match &request.body()[..] {
        b"fail" => Err(BoxError::from("no")),
        b"own" => Ok(Message::new("own").with_trace(&traced)),
        _ => Ok(Message::new("done")),
    };
    let serving = respond(broker.clone(), requests, 4, answer).for_each(drop).start();
    let requester = Requester::open(broker.clone()).await.expect("open");
    let ask = async |request: Message| requester.request(&to, request, LONG).await;
    let reply = |body: &'static str| ask(Message::new(body).with_trace(&trace()));
    assert_eq!(reply("x").await.expect("a reply").trace(), Some(trace()));
    assert_eq!(reply("own").await.expect("a reply").trace(), Some(own));
    assert!(reply("fail").await.expect_err("it fails").to_string().contains("no"));
    let without = ask(Message::new("x")).await.expect("a reply");
    assert_eq!(without.header(TRACEPARENT), None);
    drop(serving);
    broker.close().await.expect("closed");
}

#[tokio::test]
async fn replies_belong_to_the_trace_of_their_request_in_memory() {
    replies_belong_to_the_trace_of_their_request("memory:").await;
}

#[tokio::test]
async fn replies_belong_to_the_trace_of_their_request_on_rabbitmq() {
    replies_belong_to_the_trace_of_their_request(&shared().await.url()).await;
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Placed {
    id: u32,
}
impl Notification for Placed {}

#[tokio::test]
async fn a_notification_takes_the_trace_of_its_call_to_the_broker() {
    let broker: Arc<dyn Broker> = millstream::open("memory:").await.expect("opened");
    let (to, mut consumer) = queue(&broker, Queue::transient("orders")).await;
    let handler = to_broker::<Placed, _>(broker.clone(), to, Json);
    let mediator = Mediator::builder().notification_handler(handler).build().expect("it fits");
    let traced = Context::new().with(trace());
    mediator.publish_in(&traced, Placed { id: 1 }).await.into_result().expect("stored");
    mediator.publish(Placed { id: 2 }).await.into_result().expect("stored");
    assert_eq!(next(&mut consumer).await.message.trace(), Some(trace()));
    assert_eq!(next(&mut consumer).await.message.header(TRACEPARENT), None);
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What was logged by anybody in this process since it was first asked for.
fn logged() -> &'static Lines {
    static LINES: OnceLock<Lines> = OnceLock::new();
    LINES.get_or_init(|| {
        let lines = Lines::default();
        let writer = lines.clone();
        let ends = tracing_subscriber::fmt::format::FmtSpan::CLOSE;
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_span_events(ends)
            .with_writer(move || writer.clone())
            .init();
        lines
    })
}

#[tokio::test]
async fn what_handlers_log_is_found_by_its_trace() {
    let lines = logged();
    let broker: Arc<dyn Broker> = millstream::open("memory:").await.expect("opened");
    let name = unique("logged");
    broker.declare_queue(Queue::durable(&name)).await.expect("declared");
    publish(&broker, &Address::queue(&name)).await;
    let consumer =
        broker.consume(&name, ConsumeOptions::default().stop_when_empty()).await.expect("consumed");
    let run = Work::new(Json)
        .start(broker.clone(), consumer, async |job: &Job<u32>| {
            tokio::task::yield_now().await;
            tracing::info!(value = job.value, "a job of {}", job.queue());
            Ok(())
        })
        .for_each(drop)
        .start();
    let (to, requests) = queue(&broker, Queue::durable(unique("asked"))).await;
    let answer = async |request: Message| {
        tracing::info!("a request of {:?}", request.properties().correlation_id);
        Ok(request)
    };
    let _serving = respond(broker.clone(), requests, 4, answer).for_each(drop).start();
    let requester = Requester::open(broker.clone()).await.expect("open");
    requester.request(&to, Message::new("x").with_trace(&trace()), LONG).await.expect("a reply");
    timeout(LONG, run.join()).await.expect("in time").expect("no failure");

    let all = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("text");
    let line = |what: &str| {
        all.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{all}")).to_owned()
    };
    let job = line(&format!(": a job of {name}"));
    let span = format!("attempt{{queue=\"{name}\" attempt=1 trace_id=\"{TRACE_ID}\"}}");
    assert!(job.contains(&span), "{job}");
    let request = line("a request of");
    assert!(
        request.contains(&format!("trace_id=\"{TRACE_ID}\"")) && request.contains("correlation="),
        "{request}"
    );
}

#[tokio::test]
async fn each_publish_has_a_span_until_it_is_known_what_became_of_it() {
    let lines = logged();
    let broker: Arc<dyn Broker> = millstream::open("memory:").await.expect("opened");
    let name = unique("published");
    broker.declare_queue(Queue::durable(&name)).await.expect("declared");
    let to = Address::queue(&name);
    let ended = |what: &str| {
        let all = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("text");
        let span = format!("publish{{exchange=\"\" key=\"{name}\" messages={what}}}");
        all.lines().filter(|line| line.contains(&span) && line.contains("close")).count()
    };
    let producer = Producer::new(broker.clone(), to.clone(), Json);
    let traced = producer.message(&1_u32).expect("written").with_trace(&trace());
    assert!(producer.publish_message(traced).await.expect("taken").is_confirmed());
    assert_eq!(ended(&format!("1 trace_id=\"{TRACE_ID}\"")), 1);
    assert!(producer.publish_all(&[1, 2, 3]).await.expect("taken").all_confirmed());
    assert!(producer.publish_all(&[]).await.expect("nothing to do").is_empty());
    assert_eq!(ended("3"), 1);

    let mut sending = producer.sending(10);
    sending.send(&4).await.expect("sent");
    assert_eq!(ended("1"), 0, "nobody has asked yet what became of it");
    assert!(sending.finish().await.all_confirmed());
    assert_eq!(ended("1"), 1);

    let messages = [1, 2].map(|_| Message::new("x").with_trace(&trace()));
    Pipe::from_iter(messages).into_sink(Publisher::new(broker, to)).await.expect("no failure");
    assert_eq!(ended("2"), 1);
}

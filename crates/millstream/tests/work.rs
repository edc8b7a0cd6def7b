//! A queue worked on by a handler: attempts, their history, and what becomes of what fails; in memory and on RabbitMQ.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream::message::dead::{DETAIL, STAGE};
use millstream::message::{Binding, Broker, Exchange, ExchangeKind, Overflow, Value};
use millstream::prelude::*;
use millstream::queue::{ATTEMPTS, FAILURES, Failure, Job, Work};
use millstream_testing::{shared, unique};
use tokio::time::{Instant, timeout};

const SECOND: Duration = Duration::from_secs(1);

/// Longer than any of these tests takes.
const LONG: Duration = Duration::from_secs(300);

struct Place {
    broker: Arc<dyn Broker>,
    queue: String,
    dead: String,
    to: Address,
}

impl Place {
    /// A queue bound to an exchange, with dead letters.
    async fn at(url: &str) -> Place {
        let broker: Arc<dyn Broker> = millstream::open(url).await.expect("opened");
        let (queue, dead, exchange) = (unique("jobs"), unique("dead"), unique("exchange"));
        broker.declare_queue(Queue::durable(&dead)).await.expect("declared");
        broker.declare_queue(Queue::durable(&queue).dead_letter("", &dead)).await.expect("declared");
        broker.declare_exchange(Exchange::durable(&exchange, ExchangeKind::Topic)).await.expect("declared");
        broker.bind(Binding::new(&exchange, "job.#", &queue)).await.expect("bound");
        let to = Address::new(exchange, "job.new");
        Place { broker, queue, dead, to }
    }

    async fn publish(&self, jobs: impl IntoIterator<Item = &str>) {
        for job in jobs {
            let message = Message::new(job.to_owned()).with_content_type("application/json");
            assert!(self.broker.publish(&self.to, message).await.expect("published").is_confirmed());
        }
    }

    async fn consumer(&self) -> millstream::message::Consumer {
        self.broker.consume(&self.queue, ConsumeOptions::default().prefetch(16)).await.expect("consumed")
    }

    /// So many dead letters, by their body.
    async fn letters(&self, count: usize) -> BTreeMap<String, Message> {
        let mut consumer =
            self.broker.consume(&self.dead, ConsumeOptions::default()).await.expect("consumed");
        let mut letters = BTreeMap::new();
        while letters.len() < count {
            let letter =
                timeout(LONG, consumer.next()).await.expect("a letter").expect("no end").expect("no error");
            letter.ack();
            letters.insert(String::from_utf8_lossy(letter.message.body()).into_owned(), letter.message);
        }
        letters
    }
}

fn retry(attempts: u32) -> Retry {
    Retry::attempts(attempts).expect("some").first_delay(SECOND / 20).max_delay(SECOND / 20)
}

async fn what_fails_is_tried_again_and_its_letter_tells_of_it(url: &str) {
    let place = Place::at(url).await;
    place
        .publish([r#""fine""#, r#""late""#, r#""never""#, r#""bad""#, r#""panics""#, r#""hangs""#, "garbage"])
        .await;
    let to = place.to.clone();
    let done = Arc::new(Mutex::new(BTreeMap::new()));
    let run = Work::new(Json)
        .concurrency(Concurrency::unordered(8))
        .retry(retry(3).timeout(SECOND / 2))
        .start(place.broker.clone(), place.consumer().await, async move |job: &Job<String>| {
            assert_eq!(job.address, to, "where it was published to at first, however often it was tried");
            match job.value.as_str() {
                "late" if job.attempt < 3 => {
                    return Err(BoxError::from(format!("attempt {}", job.attempt)).into());
                }
                "never" => return Err(BoxError::from(format!("attempt {}", job.attempt)).into()),
                "bad" => return Err(Failure::permanent("no attempt will help")),
                "panics" => panic!("bad luck"),
                "hangs" => pending().await,
                _ => {}
            }
            Ok((job.value.clone(), job.attempt))
        })
        .for_each({
            let done = done.clone();
            move |(name, attempt)| _ = done.lock().unwrap().insert(name, attempt)
        })
        .start();
    let letters = place.letters(5).await;
    let report = run.shutdown(LONG).await.expect("no failure").1;

    assert_eq!(*done.lock().unwrap(), BTreeMap::from([("fine".to_owned(), 1), ("late".to_owned(), 3)]));
    let text =
        |letter: &Message, header| letter.header(header).and_then(Value::as_text).unwrap_or("").to_owned();
    let failures = |letter: &Message| {
        let list = letter.header(FAILURES).and_then(Value::as_list).unwrap_or(&[]).to_vec();
        let field = |map: &Value, name: &str| map.as_map().expect("a map")[name].clone();
        list.iter().map(|map| (field(map, "attempt"), field(map, "reason"))).collect::<Vec<_>>()
    };
    let never = &letters[r#""never""#];
    assert_eq!(text(never, DETAIL), "attempt 3");
    assert_eq!(text(never, STAGE), "handler");
    assert_eq!(never.header(ATTEMPTS), Some(&Value::Int(2)), "that failed before the last");
    assert_eq!(failures(never), [(2_u32.into(), "attempt 2".into()), (1_u32.into(), "attempt 1".into())]);
    let bad = &letters[r#""bad""#];
    assert_eq!((text(bad, DETAIL).as_str(), bad.header(ATTEMPTS)), ("no attempt will help", None));
    assert!(text(&letters[r#""panics""#], DETAIL).contains("bad luck"));
    assert_eq!(failures(&letters[r#""hangs""#]).len(), 2);
    assert!(text(&letters[r#""hangs""#], DETAIL).contains("500ms"), "{:?}", letters[r#""hangs""#]);
    assert_eq!(text(&letters["garbage"], STAGE), "decode");

    let ledger = &report.ledger;
    assert!(ledger.balances(), "{ledger:?}");
    assert_eq!((ledger.completed, ledger.dead, ledger.in_flight), (2, 5, 0), "{ledger:?}");
    assert_eq!(ledger.dropped_total(), 2 * 4, "late, never, panics and hangs were tried again twice");
    place.broker.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_limit_of_the_concurrency_is_one_attempts() {
    let place = Place::at("memory:").await;
    place.publish([r#""hangs""#, r#""fine""#]).await;
    let run = Work::new(Json)
        .concurrency(Concurrency::unordered(8).time_limit(SECOND / 10))
        .retry(retry(2))
        .start(place.broker.clone(), place.consumer().await, async |job: &Job<String>| {
            if job.value == "hangs" { pending().await } else { Ok(()) }
        })
        .for_each(drop)
        .start();
    let letters = place.letters(1).await;
    let ledger = run.shutdown(LONG).await.expect("no failure").1.ledger;
    let detail = letters[r#""hangs""#].header(DETAIL).and_then(Value::as_text).unwrap_or("");
    assert!(detail.contains("100ms"), "{letters:?}");
    assert_eq!((ledger.completed, ledger.dead, ledger.dropped_total()), (1, 1, 1), "{ledger:?}");
    place.broker.close().await.expect("closed");
}

async fn what_is_given_back_comes_again_and_is_no_attempt(url: &str) {
    let place = Place::at(url).await;
    place.publish([r#""a""#]).await;
    let (seen, mut came) = tokio::sync::mpsc::channel(8);
    let work = Work::new(Json).retry(retry(1));
    let handle = async move |job: &Job<String>| {
        seen.send((job.attempt, job.redeliveries)).await?;
        if job.redeliveries == 0 { Err(Failure::give_back("not now")) } else { Ok(()) }
    };
    let run = work.start(place.broker.clone(), place.consumer().await, handle).for_each(drop).start();
    assert_eq!(timeout(LONG, came.recv()).await.expect("in time"), Some((1, 0)));
    assert_eq!(timeout(LONG, came.recv()).await.expect("in time"), Some((1, 1)));
    let ledger = run.shutdown(LONG).await.expect("no failure").1.ledger;
    assert_eq!((ledger.completed, ledger.dropped_total()), (1, 1), "{ledger:?}");
    place.broker.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_tried_again_in_memory() {
    what_fails_is_tried_again_and_its_letter_tells_of_it("memory:").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_tried_again_on_rabbitmq() {
    what_fails_is_tried_again_and_its_letter_tells_of_it(&shared().await.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_back_comes_again_in_memory() {
    what_is_given_back_comes_again_and_is_no_attempt("memory:").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_back_comes_again_on_rabbitmq() {
    what_is_given_back_comes_again_and_is_no_attempt(&shared().await.url()).await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_may_say_when_to_try_again() {
    let place = Place::at("memory:").await;
    place.publish([r#""a""#]).await;
    let began = Instant::now();
    let work = Work::new(Json).retry(retry(2));
    let handle = async |job: &Job<String>| match job.attempt {
        1 => Err(Failure::retry_after("closed until noon", 3600 * SECOND)),
        attempt => Ok(attempt),
    };
    let run = work.start(place.broker.clone(), place.consumer().await, handle).take(1).collect();
    assert_eq!(run.await.expect("no failure").0, [2]);
    assert_eq!(began.elapsed().as_secs(), 3600);
}

#[tokio::test]
async fn jobs_of_one_key_are_worked_on_in_turn() {
    let place = Place::at("memory:").await;
    let jobs: Vec<String> = (0..200).map(|n| format!("[{}, {n}]", n % 3)).collect();
    place.publish(jobs.iter().map(String::as_str)).await;
    let busy = Mutex::new(BTreeSet::new());
    let work = Work::new(Json).concurrency(Concurrency::unordered(16));
    let handle = async move |job: &Job<(u64, u64)>| {
        assert!(busy.lock().unwrap().insert(job.value.0), "one at a time");
        tokio::task::yield_now().await;
        assert!(busy.lock().unwrap().remove(&job.value.0));
        Ok(job.value)
    };
    let run = work
        .start_by_key(place.broker.clone(), place.consumer().await, |job| job.value.0, handle)
        .take(200)
        .collect();
    let mut of_key = HashMap::<u64, Vec<u64>>::new();
    for (key, n) in run.await.expect("no failure").0 {
        of_key.entry(key).or_default().push(n);
    }
    assert!(of_key.len() == 3 && of_key.values().all(|numbers| numbers.is_sorted()), "{of_key:?}");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_keeps_what_is_to_be_tried_again() {
    let broker: Arc<dyn Broker> = millstream::open("memory:").await.expect("opened");
    broker
        .declare_queue(Queue::durable("one").max_items(1).overflow(Overflow::Reject))
        .await
        .expect("declared");
    let to = Address::queue("one");
    let job = |n: u32| Message::new(n.to_string()).with_content_type("application/json");
    assert!(broker.publish(&to, job(1)).await.expect("published").is_confirmed());
    let consumer = broker.consume("one", ConsumeOptions::default().prefetch(1)).await.expect("consumed");
    let others = broker.clone();
    let handle = async move |found: &Job<u64>| {
        if found.value == 1 && found.redeliveries == 0 {
            // Somebody else takes the room.
            assert!(others.publish(&to, job(2)).await?.is_confirmed());
            return Err(Failure::from("busy"));
        }
        Ok((found.value, found.attempt))
    };
    let plan = Work::new(Json).retry(retry(2)).start(broker.clone(), consumer, handle).take(2).collect();
    let (done, report) = timeout(LONG, plan).await.expect("it does not wait for itself").expect("no failure");
    assert_eq!(done, [(2, 1), (1, 1)], "the attempt that found it full is not remembered");
    assert!(report.ledger.balances());
}

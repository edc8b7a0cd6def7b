//! What a consumer makes of its channel and of losing it, without a connection.

use super::*;
use crate::link::CallError;
use crate::options::Options;
use millstream_message::{Nack, StreamFrom, Value};
use std::time::Duration;

fn core(options: ConsumeOptions) -> Arc<ConsumerCore> {
    let hub = Hub::new();
    let url = Arc::new(Options::parse("amqp://localhost").expect("a URL"));
    let link = Link::new(url, "test".to_owned(), hub.known.clone());
    ConsumerCore::new("q".to_owned(), "c".to_owned(), options, link, hub)
}

const CHANNEL: Channel = Channel { number: 1, serial: 1 };

/// A message of a stream comes.
fn deliver(core: &Arc<ConsumerCore>, offset: i64) {
    let message = Message::new("x").with_header(STREAM_OFFSET, offset);
    let content = Content { properties: Some(message.properties().clone()), body: message.body().clone() };
    core.deliver(false, "", "q", content);
}

/// Where a stream is asked to go on.
fn asked_for(core: &ConsumerCore) -> Option<i64> {
    let (_, [_, consume]) = core.opened(CHANNEL).expect("it goes on").expect("it is not paused");
    let Method::BasicConsume { arguments, .. } = consume else { panic!("{consume:?}") };
    arguments[STREAM_OFFSET].as_int()
}

/// A second loss before anything had come took all that the first one had left unsettled for settled, and passed over it.
#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_at_the_oldest_unsettled_however_often_the_connection_is_lost() {
    let core = core(ConsumeOptions::default().from(StreamFrom::First));
    core.opened(CHANNEL).expect("it begins");
    for offset in 0..3 {
        deliver(&core, offset);
    }
    core.lost();
    assert_eq!(asked_for(&core), Some(0));
    core.lost();
    core.lost();
    assert_eq!(asked_for(&core), Some(0), "nothing has come since");
    for offset in 0..2 {
        deliver(&core, offset);
    }
    let mut consumer = core.consumer();
    let taken = consumer.next_chunk(2).await.expect("they are here");
    assert!(taken.len() == 2 && taken.iter().all(millstream_message::Delivery::ack));
    core.lost();
    core.lost();
    assert_eq!(asked_for(&core), Some(2), "all that came was settled");
}

/// What was given back of a stream is no longer with anybody, and was passed over.
#[tokio::test(start_paused = true)]
async fn what_was_given_back_of_a_stream_is_not_behind_it_when_the_connection_is_lost() {
    let core = core(ConsumeOptions::default().from(StreamFrom::First));
    core.opened(CHANNEL).expect("it begins");
    let mut consumer = core.consumer();
    for (offset, how) in [(3, Nack::Requeue), (4, Nack::RequeueAfter(Duration::from_secs(60)))] {
        deliver(&core, offset);
        deliver(&core, 9);
        let taken = consumer.next_chunk(2).await.expect("they are here");
        assert!(taken[0].nack(&how) && taken[1].ack());
        core.lost();
        assert_eq!(asked_for(&core), Some(offset));
        assert!(!taken[0].ack());
    }
    // Nor what was handed out again.
    deliver(&core, 5);
    assert!(consumer.next_chunk(1).await.expect("it is here")[0].nack(&Nack::Requeue));
    let again = consumer.next_chunk(1).await.expect("it is here again").remove(0);
    assert_eq!((again.redeliveries, consumer.acker().unsettled()), (1, 1));
    core.lost();
    assert_eq!(asked_for(&core), Some(5));
    assert!(!again.ack(), "it is stale");
    assert_eq!(consumer.acker().unsettled(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_of_a_stream_comes_again_when_it_is_due_the_oldest_first() {
    let core = core(ConsumeOptions::default().from(StreamFrom::First).prefetch(3));
    core.opened(CHANNEL).expect("it begins");
    (0..4).for_each(|offset| deliver(&core, offset));
    let mut consumer = core.consumer();
    let taken = consumer.next_chunk(9).await.expect("they are here");
    assert_eq!(taken.len(), 3);
    let second = Duration::from_secs(1);
    assert!(taken[2].nack(&Nack::RequeueAfter(second)) && taken[1].nack(&Nack::Requeue));
    assert!(taken[0].nack(&Nack::Requeue));
    let begin = Instant::now();
    let mut order = Vec::new();
    for _ in 0..4 {
        let next = consumer.next_chunk(1).await.expect("it is here").remove(0);
        let offset = next.message.header(STREAM_OFFSET).and_then(Value::as_int);
        order.push((offset.expect("an offset"), next.redeliveries, begin.elapsed() >= second));
        assert!(next.ack() && !next.ack());
    }
    assert_eq!(order, [(0, 1, false), (1, 1, false), (3, 0, false), (2, 1, true)]);
    assert!(taken.iter().all(|delivery| !delivery.ack()), "the old tags are stale");
    // Those in hand are no others' when the consumer is stopped.
    (4..6).for_each(|offset| deliver(&core, offset));
    let taken = consumer.next_chunk(2).await.expect("they are here");
    assert!(taken[0].nack(&Nack::Requeue));
    consumer.acker().stop(StopWhen::Now);
    assert!(consumer.next().await.is_none(), "nothing comes any more");
    assert!(!core.has_left(), "one is in hand");
    assert!(taken[1].nack(&Nack::Requeue));
    assert!(core.has_left());
}

#[tokio::test(start_paused = true)]
async fn what_comes_from_no_stream_is_not_taken_for_one() {
    let core = core(ConsumeOptions::default().from(StreamFrom::First));
    core.opened(CHANNEL).expect("it begins");
    let mut consumer = core.consumer();
    core.deliver(false, "", "q", Content { properties: None, body: "x".into() });
    let error = consumer.next_chunk(1).await.expect_err("it is refused").to_string();
    assert!(error.contains("`q` is no stream") && error.contains("leave `from` out"), "{error}");
    assert!(core.has_left());
}

#[tokio::test(start_paused = true)]
async fn who_was_stopped_while_a_channel_was_opened_does_not_consume_on_it() {
    let core = core(ConsumeOptions::default());
    let consumer = core.consumer();
    let acker = consumer.acker();
    core.opened(CHANNEL).expect("it begins");
    core.lost();
    drop(consumer);
    assert!(matches!(core.opened(CHANNEL), Err(CallError::Lost)), "an acker is left, and it has ended");
    drop(acker);
    assert!(matches!(core.opened(CHANNEL), Err(CallError::Lost)));
    assert!(core.channel().is_none());
}

#[tokio::test(start_paused = true)]
async fn what_waits_and_nobody_has_taken_is_not_settled_by_a_range_that_covers_it() {
    let core = core(ConsumeOptions::default());
    let mut consumer = core.consumer();
    core.opened(CHANNEL).expect("it begins");
    for offset in 0..3 {
        deliver(&core, offset);
    }
    let acker = consumer.acker();
    let first = consumer.next_chunk(1).await.expect("it is here");
    assert_eq!(acker.ack_range(0..u64::MAX), Settled { applied: 1, stale: u64::MAX - 1 });
    assert!(!first[0].ack());
    let rest = consumer.next_chunk(3).await.expect("they are here");
    assert!(rest.len() == 2 && rest.iter().all(millstream_message::Delivery::ack));
}

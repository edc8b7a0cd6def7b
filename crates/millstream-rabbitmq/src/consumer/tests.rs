//! What a consumer makes of its channel and of losing it, without a connection.

use super::*;
use crate::link::CallError;
use crate::options::Options;
use millstream_message::StreamFrom;

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

//! Checkpoints: opened from one, a store knows what it would have read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millstream_events::{
    AppendError, Event, EventStore, EventStoreOptions, EventStoreStatistics, Expected, StoreError,
};
use millstream_message::{Broker, BrokerError, BrokerErrorKind, Message};
use tokio::time::timeout;

use super::faults::damage;
use super::grouped::Picky;
use crate::support::{Kind, Place, event, everywhere, texts};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(300);

fn every(entries: u64) -> EventStoreOptions {
    EventStoreOptions::default().checkpoint_every(entries)
}

async fn opened(broker: &Arc<dyn Broker>, log: &str, options: EventStoreOptions) -> EventStore {
    EventStore::open_with(broker.clone(), log, options).await.expect("opened")
}

async fn knows(store: &EventStore) -> EventStoreStatistics {
    let mut all = store.statistics().await.expect("told");
    all.checkpoint_offset = 0;
    all
}

/// A store, however it was opened, knows what one knows that has read the whole log.
pub(crate) async fn says_what_the_log_says(store: &EventStore) {
    store.refresh().await.expect("read");
    let whole = opened(store.broker(), store.log(), every(0).whole_log()).await;
    assert_eq!(whole.statistics().await.expect("told").checkpoint_offset, 0, "it has read all");
    assert_eq!(knows(store).await, knows(&whole).await);
    assert_eq!(store.streams(""), whole.streams(""));
    for stream in whole.streams("") {
        assert_eq!(store.version(&stream), whole.version(&stream));
        assert_eq!(
            store.snapshot(&stream).await.expect("read"),
            whole.snapshot(&stream).await.expect("read")
        );
        let events = async |store: &EventStore| store.read(&stream).collect().await.expect("read");
        assert_eq!(events(store).await, events(&whole).await);
    }
    let all = async |store: &EventStore| store.read_all().collect().await.expect("read");
    assert_eq!(all(store).await, all(&whole).await);
}

/// Writes of all kinds to some streams, among them those that do not count.
async fn write(store: &EventStore, entries: u64) {
    for at in 0..entries {
        let stream = format!("s{}", at % 7);
        let version = store.version(&stream);
        let done = match at % 10 {
            3 => store.append(&stream, Expected::Version(at + 900), [event("never")]).await.map(drop),
            5 => store.truncate(&stream, version.unwrap_or(0)).await,
            7 => match version {
                Some(version) => store.save_snapshot(&stream, version, Message::new(format!("{at}"))).await,
                None => Ok(()),
            },
            9 if at % 3 == 0 => store.delete(&stream, Expected::Any).await,
            _ => {
                let two = [event(format!("{at}a")), event(format!("{at}b"))];
                store.append(&stream, Expected::Any, two).await.map(drop)
            }
        };
        assert!(matches!(done, Ok(()) | Err(AppendError::Conflict(_))), "{done:?}");
    }
}

#[tokio::test]
async fn a_store_is_opened_from_its_checkpoint_and_knows_the_same() {
    everywhere(async |place| {
        let store = opened(&place.broker, &place.log, every(0)).await;
        write(&store, 60).await;
        store.append_as("named", "s1", Expected::Any, [event("once")]).await.expect("stored");
        let written = store.statistics().await.expect("told");
        assert_eq!(written.checkpoint_offset, 0, "nobody wanted one");
        drop(store);
        // Who opens it has read that much, and writes one.
        let second = opened(&place.broker, &place.log, every(50)).await;
        let at = second.statistics().await.expect("told").checkpoint_offset;
        assert_eq!(at, written.next_offset);
        write(&second, 20).await;
        let third = opened(&place.broker, &place.log, every(50)).await;
        assert_eq!(
            third.statistics().await.expect("told").checkpoint_offset,
            at,
            "it is not time for another"
        );
        says_what_the_log_says(&third).await;
        let again = third.append_as("named", "s1", Expected::Any, [event("once")]).await.expect("told");
        assert!(again.repeated, "commits are remembered by name");
        write(&third, 40).await;
        says_what_the_log_says(&third).await;
        drop(second);
        drop(third);
        let fourth = opened(&place.broker, &place.log, every(50)).await;
        assert!(fourth.statistics().await.expect("told").checkpoint_offset > at);
        says_what_the_log_says(&fourth).await;
    })
    .await;
}

#[tokio::test]
async fn a_running_store_writes_checkpoints_while_others_append() {
    everywhere(async |place| {
        let stores = [
            opened(&place.broker, &place.log, every(30)).await,
            opened(&place.broker, &place.log, every(30)).await,
        ];
        for _ in 0..4 {
            futures_util::future::join(write(&stores[0], 50), write(&stores[1], 50)).await;
        }
        let written = async {
            while stores[0].statistics().await.expect("told").checkpoint_offset == 0 {
                write(&stores[0], 1).await;
            }
        };
        timeout(LONG, written).await.expect("it is written in time");
        stores[0].refresh().await.expect("read");
        says_what_the_log_says(&stores[0]).await;
        let third = opened(&place.broker, &place.log, every(0)).await;
        assert!(third.statistics().await.expect("told").checkpoint_offset > 0);
        says_what_the_log_says(&third).await;
    })
    .await;
}

#[tokio::test]
async fn a_checkpoint_of_another_log_of_that_name_is_passed_over() {
    everywhere(async |place| {
        let store = opened(&place.broker, &place.log, every(0)).await;
        write(&store, 60).await;
        drop(store);
        let store = opened(&place.broker, &place.log, every(10)).await;
        let at = store.statistics().await.expect("told").checkpoint_offset;
        assert!(at > 40);
        drop(store);
        place.broker.delete_stream(&place.log).await.expect("deleted");
        for more in [1, 2 * at] {
            let store = opened(&place.broker, &place.log, every(0)).await;
            assert_eq!(store.statistics().await.expect("told").checkpoint_offset, 0);
            for number in 0..more {
                let said = [event(format!("other {number}"))];
                store.append("other", Expected::Any, said).await.expect("stored");
            }
            drop(store);
            let store = opened(&place.broker, &place.log, every(0)).await;
            assert_eq!(store.streams(""), ["other".into()]);
            says_what_the_log_says(&store).await;
        }
        // And a new one takes its place.
        drop(opened(&place.broker, &place.log, every(10)).await);
        let store = opened(&place.broker, &place.log, every(0)).await;
        assert_eq!(store.statistics().await.expect("told").checkpoint_offset, 2 * at + 1);
        says_what_the_log_says(&store).await;
    })
    .await;
}

fn is_checkpoint(message: &Message) -> bool {
    message.content_type() == Some("application/vnd.millstream.checkpoint")
}

#[tokio::test]
async fn a_checkpoint_that_is_cut_short_leaves_the_one_before() {
    // The parts of a checkpoint that are still let through.
    let left = Arc::new(AtomicUsize::new(usize::MAX));
    let lets = left.clone();
    let broker = Picky::open(move |messages| {
        let take = |left: usize| left.checked_sub(messages.len());
        if is_checkpoint(&messages[0]) && lets.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_err()
        {
            return Err(BrokerError::new(BrokerErrorKind::Unavailable, "gone"));
        }
        Ok(())
    });
    let broker: Arc<dyn Broker> = broker.await;
    let store = opened(&broker, "log", every(0)).await;
    write(&store, 60).await;
    // Names that are remembered make it large: in several appends.
    for at in 0..8_000 {
        let commit = format!("{at:0>200}");
        store.append_as(&commit, "s", Expected::Any, [event("x")]).await.expect("stored");
    }
    drop(opened(&broker, "log", every(10)).await);
    let store = opened(&broker, "log", every(0)).await;
    let first = store.statistics().await.expect("told").checkpoint_offset;
    assert!(first > 8_000);
    // Four times its bytes have to be appended before it is time for another.
    for _ in 0..4 {
        let large = Event::new("large", Message::new(vec![0; 4 << 20]));
        store.append("large", Expected::Any, [large]).await.expect("stored");
    }
    write(&store, 30).await;
    drop(store);
    for let_through in [0, 16, 20] {
        left.store(let_through, Ordering::SeqCst);
        let store = opened(&broker, "log", every(10)).await;
        let at = store.statistics().await.expect("told").checkpoint_offset;
        assert_eq!(at, first, "the next one was not finished with {let_through} parts");
        says_what_the_log_says(&store).await;
        write(&store, 1).await;
    }
    left.store(usize::MAX, Ordering::SeqCst);
    let store = opened(&broker, "log", every(10)).await;
    assert!(store.statistics().await.expect("told").checkpoint_offset > first);
    says_what_the_log_says(&store).await;
}

#[tokio::test]
async fn a_damaged_checkpoint_is_passed_over() {
    let place = Place::of(Kind::Embedded).await;
    let store = opened(&place.broker, &place.log, every(0)).await;
    store.append_as("a name to find", "s", Expected::Any, [event("a")]).await.expect("stored");
    write(&store, 40).await;
    drop(store);
    drop(opened(&place.broker, &place.log, every(10)).await);
    // In the log it stands as JSON, in the checkpoint before the name of the stream.
    let place = place.restarted_after(|at| assert!(damage(at, b"a name to find\0s") > 0)).await;
    let store = opened(&place.broker, &place.log, every(0)).await;
    assert_eq!(store.statistics().await.expect("told").checkpoint_offset, 0);
    says_what_the_log_says(&store).await;
}

#[tokio::test]
async fn what_is_lost_behind_a_checkpoint_is_told_when_it_is_read_or_all_is() {
    let place = Place::of(Kind::Embedded).await;
    let store = opened(&place.broker, &place.log, every(0)).await;
    for number in 0..30 {
        store.append("s", Expected::Any, [event(format!("number {number}."))]).await.expect("stored");
    }
    store.append("t", Expected::Any, [event("whole")]).await.expect("stored");
    drop(store);
    drop(opened(&place.broker, &place.log, every(10)).await);
    let place = place.restarted_after(|at| assert!(damage(at, b"number 7.") > 0)).await;
    let store = opened(&place.broker, &place.log, every(10)).await;
    assert_eq!(texts(&store.read("t").collect().await.expect("read")), ["whole"]);
    let error = store.read("s").collect().await.expect_err("one is lost");
    assert!(matches!(error, StoreError::Broker { .. } | StoreError::Gap { .. }), "{error}");
    let error = store.read_all().collect().await.expect_err("one is lost");
    assert!(matches!(error, StoreError::Gap { from: 7, to: 7, .. }), "{error}");
    drop(store);
    let options = every(10).whole_log();
    let error = EventStore::open_with(place.broker.clone(), &place.log, options).await.expect_err("lost");
    assert!(matches!(error, StoreError::Gap { from: 7, to: 7, .. }), "{error}");
    // Once that is accepted, nobody goes on from what nobody can know any more.
    let options = every(10).accept_gaps();
    let store = opened(&place.broker, &place.log, options).await;
    assert_eq!(store.statistics().await.expect("told").gaps, 1);
    write(&store, 30).await;
    drop(store);
    let error = EventStore::open(place.broker.clone(), &place.log).await.expect_err("lost");
    assert!(matches!(error, StoreError::Gap { from: 7, to: 7, .. }), "{error}");
}

#[tokio::test]
async fn of_several_that_write_a_checkpoint_at_once_one_is_whole() {
    everywhere(async |place| {
        let store = opened(&place.broker, &place.log, every(0)).await;
        write(&store, 100).await;
        for round in 1..4 {
            write(&store, 60).await;
            store.refresh().await.expect("read");
            let at = store.statistics().await.expect("told").next_offset;
            let all = (0..3).map(|_| opened(&place.broker, &place.log, every(40)));
            drop(futures_util::future::join_all(all).await);
            let reader = opened(&place.broker, &place.log, every(0)).await;
            let from = reader.statistics().await.expect("told").checkpoint_offset;
            assert!(from > 0 && from <= at, "in round {round}: {from} of {at}");
            says_what_the_log_says(&reader).await;
        }
    })
    .await;
}

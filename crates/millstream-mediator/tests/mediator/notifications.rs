use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use millstream_flow::BoxError;
use millstream_mediator::{
    ErrorKind, Full, Kind, Mediator, Notification, Outcome, Publish, Scope, Subscribe, Timeout,
};
use tokio::time::{Instant, sleep};

struct Placed(u32);
impl Notification for Placed {}

type Log = Arc<Mutex<Vec<&'static str>>>;

async fn mail(_: Arc<Placed>) -> Result<(), BoxError> {
    sleep(Duration::from_secs(2)).await;
    Ok(())
}
async fn bill(placed: Arc<Placed>) -> Result<(), BoxError> {
    sleep(Duration::from_secs(1)).await;
    if placed.0 == 0 { Err("nothing to bill".into()) } else { Ok(()) }
}
async fn ship(_: Arc<Placed>) -> Result<(), BoxError> {
    sleep(Duration::from_secs(3)).await;
    Ok(())
}

fn with(publish: Publish) -> Mediator {
    Mediator::builder()
        .notification(mail)
        .notification(bill)
        .notification(ship)
        .publish::<Placed>(publish)
        .build()
        .unwrap()
}

fn words(published: &millstream_mediator::Published) -> Vec<String> {
    let word = |(name, outcome): (&str, Outcome<'_>)| match outcome {
        Outcome::Done => format!("{name} done"),
        Outcome::Failed(error) => format!("{name} {}", error.kind().word()),
        Outcome::NotCalled => format!("{name} not called"),
        Outcome::Detached => format!("{name} detached"),
    };
    published.outcomes().map(word).collect()
}

#[tokio::test(start_paused = true)]
async fn each_way_takes_its_time_and_tells_an_outcome_for_each_handler() {
    for (publish, seconds, outcomes) in [
        (Publish::sequential(), 6, ["mail done", "bill failed", "ship done"]),
        (Publish::sequential().stop_on_first(), 3, ["mail done", "bill failed", "ship not called"]),
        (Publish::parallel(3), 3, ["mail done", "bill failed", "ship done"]),
        (Publish::parallel(2), 4, ["mail done", "bill failed", "ship done"]),
        (Publish::parallel(2).stop_on_first(), 2, ["mail done", "bill failed", "ship not called"]),
        (Publish::detached(), 0, ["mail detached", "bill detached", "ship detached"]),
    ] {
        let mediator = with(publish);
        let began = Instant::now();
        let published = mediator.publish(Placed(0)).await;
        assert_eq!(began.elapsed().as_secs(), seconds, "{publish}");
        assert_eq!(words(&published), outcomes, "{publish}");
    }
}

#[tokio::test(start_paused = true)]
async fn failures_become_one_error_or_none() {
    let mediator = with(Publish::sequential());
    assert!(mediator.publish(Placed(1)).await.into_result().is_ok());
    let error = mediator.publish(Placed(0)).await.into_result().unwrap_err();
    assert_eq!(error.to_string(), "1 of 3 handlers failed");
    assert_eq!(millstream_flow::chain(&error).matches("nothing to bill").count(), 1);
    let failures =
        mediator.metrics().snapshot().number("mediator_notification_failures_total", &[("type", "Placed")]);
    assert_eq!(failures, Some(1.0));
}

#[tokio::test(start_paused = true)]
async fn a_mediator_drains_detached_handlers_and_ends_them_with_itself() {
    let ended = Arc::new(AtomicUsize::new(0));
    let build = || {
        Mediator::builder()
            .notification_with(ended.clone(), async |ended: Arc<AtomicUsize>, placed: Arc<Placed>| {
                sleep(Duration::from_secs(u64::from(placed.0))).await;
                ended.fetch_add(1, Ordering::SeqCst);
                Ok::<_, BoxError>(())
            })
            .publish::<Placed>(Publish::detached())
            .detached_max(2)
            .build()
            .unwrap()
    };
    let mediator = build();
    let began = Instant::now();
    for _ in 0..3 {
        let _ = mediator.publish(Placed(5)).await; // the third waits for room
    }
    assert_eq!((began.elapsed().as_secs(), ended.load(Ordering::SeqCst)), (5, 2));
    mediator.drain().await;
    assert_eq!((began.elapsed().as_secs(), ended.load(Ordering::SeqCst)), (10, 3));
    assert_eq!(
        words(&mediator.publish(Placed(1)).await),
        ["closure in a_mediator_drains_detached_handlers_and_ends_them_with_itself not called"]
    );

    let mediator = build();
    let _ = mediator.publish(Placed(5)).await;
    drop(mediator);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(ended.load(Ordering::SeqCst), 3, "it ended with its mediator");
}

#[tokio::test(start_paused = true)]
async fn behaviours_stand_around_each_handler_for_itself() {
    let mediator = Mediator::builder()
        .behaviour_for(Scope::kind(Kind::Notification), Timeout::new(Duration::from_millis(1500)))
        .notification(mail)
        .notification(bill)
        .build()
        .unwrap();
    assert_eq!(words(&mediator.publish(Placed(1)).await), ["mail timed_out", "bill done"]);
}

#[tokio::test]
async fn one_function_is_one_handler_and_two_closures_are_two() {
    let error = Mediator::builder().notification(mail).notification(mail).build().unwrap_err();
    assert_eq!(error.problems(), ["the handler `mail` of Placed is registered twice; remove one of them"]);
    let log = Log::default();
    let note = |word: &'static str| {
        let log = log.clone();
        move |_: Arc<Placed>| {
            log.lock().unwrap().push(word);
            std::future::ready(Ok::<_, BoxError>(()))
        }
    };
    let mediator = Mediator::builder().notification(note("a")).notification(note("b")).build().unwrap();
    let published = mediator.publish(Placed(1)).await;
    assert_eq!(*log.lock().unwrap(), ["a", "b"]);
    let names: Vec<_> = published.outcomes().map(|(name, _)| name).collect();
    let name = "closure in one_function_is_one_handler_and_two_closures_are_two";
    assert_eq!(names, [name.to_owned(), format!("{name} #2")]);
}

#[tokio::test]
async fn a_notification_for_nobody_says_so() {
    let mediator = Mediator::builder().build().unwrap();
    assert!(mediator.publish(Placed(1)).await.is_empty());
    assert_eq!(mediator.subscribe::<Placed>(Subscribe::buffer(1)).unwrap_err().kind(), &ErrorKind::NoHandler);
}

#[tokio::test(start_paused = true)]
async fn subscribers_buffer_and_overflow_as_each_declares() {
    let mediator = Mediator::builder().declare_notification::<Placed>().build().unwrap();
    let subscribe = |full| mediator.subscribe::<Placed>(Subscribe::buffer(4).when_full(full)).unwrap();
    let (oldest, newest) = (subscribe(Full::DropOldest), subscribe(Full::DropNewest));
    let (sampled, ends) = (subscribe(Full::Sample(2.try_into().unwrap())), subscribe(Full::End));
    for n in 0..6 {
        let open = if n < 4 { 4 } else { 3 }; // the one that ends does so at the fifth
        assert_eq!(mediator.publish(Placed(n)).await.subscribers(), open);
    }
    let dropped = [oldest.dropped(), newest.dropped(), sampled.dropped(), ends.dropped()];
    assert_eq!(dropped, [2, 2, 2, 1], "the one that ended is told nothing more");
    let total = mediator.metrics().snapshot().number("mediator_notifications_dropped_total", &[]);
    assert_eq!(total, Some(7.0));
    drop(mediator);
    let read = async |subscriber: millstream_mediator::Notifications<Placed>| {
        subscriber.map(|placed| placed.0).collect::<Vec<_>>().await
    };
    assert_eq!(read(oldest).await, [2, 3, 4, 5]);
    assert_eq!(read(newest).await, [0, 1, 2, 3]);
    assert_eq!(read(sampled).await, [0, 1, 2, 4]);
    assert_eq!(read(ends).await, [0, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_full_subscriber_makes_publishers_wait_until_it_reads_or_goes() {
    let mediator = Mediator::builder().declare_notification::<Placed>().build().unwrap();
    let mut slow = mediator.subscribe::<Placed>(Subscribe::buffer(1)).unwrap();
    let publisher = tokio::spawn({
        let mediator = mediator.clone();
        async move {
            for n in 0..3 {
                let _ = mediator.publish(Placed(n)).await;
            }
        }
    });
    sleep(Duration::from_secs(1)).await;
    assert!(!publisher.is_finished());
    assert_eq!(slow.next().await.unwrap().0, 0);
    sleep(Duration::from_secs(1)).await;
    assert!(!publisher.is_finished());
    drop(slow);
    publisher.await.unwrap();
    assert_eq!(mediator.publish(Placed(9)).await.subscribers(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_way_of_publishing_for_all_types_holds_unless_a_type_has_its_own() {
    struct Other;
    impl Notification for Other {}
    async fn wait(_: Arc<Other>) -> Result<(), BoxError> {
        sleep(Duration::from_secs(3)).await;
        Ok(())
    }
    let mediator = Mediator::builder()
        .publish_default(Publish::detached())
        .publish::<Placed>(Publish::parallel(3))
        .notification(mail)
        .notification(ship)
        .notification(wait)
        .build()
        .unwrap();
    let began = Instant::now();
    assert_eq!(words(&mediator.publish(Other).await), ["wait detached"]);
    assert_eq!(began.elapsed().as_secs(), 0);
    assert_eq!(words(&mediator.publish(Placed(1)).await), ["mail done", "ship done"]);
    assert_eq!(began.elapsed().as_secs(), 3);
}

#[test]
fn no_room_for_detached_publishes_is_refused() {
    let error = Mediator::builder().detached_max(0).build().unwrap_err();
    assert!(error.problems()[0].starts_with("detached_max is 0"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn publishes_are_counted_by_type_also_to_nobody() {
    let mediator = Mediator::builder().declare_notification::<Placed>().build().unwrap();
    for _ in 0..3 {
        assert!(mediator.publish(Placed(1)).await.is_empty());
    }
    let published =
        mediator.metrics().snapshot().number("mediator_notifications_total", &[("type", "Placed")]);
    assert_eq!(published, Some(3.0));
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_failed_to_take_is_told_with_the_reason_however_it_is_published() {
    for publish in [Publish::sequential(), Publish::parallel(2), Publish::detached()] {
        let aside = Arc::new(Mutex::new(Vec::new()));
        let put = aside.clone();
        let mediator = Mediator::builder()
            .notification(mail)
            .notification(ship)
            .notification(bill) // the last one, which else would not share
            .publish::<Placed>(publish)
            .undelivered::<Placed>(move |failed| {
                let why = millstream_flow::chain(failed.error);
                let tenant = failed.context.get::<&str>().copied();
                put.lock().unwrap().push((failed.notification.0, failed.handler.to_owned(), why, tenant));
            })
            .build()
            .unwrap();
        let context = millstream_mediator::Context::new().with("ada");
        let _ = mediator.publish_in(&context, Placed(0)).await;
        let _ = mediator.publish_in(&context, Placed(1)).await;
        mediator.drain().await;
        let why = "Placed: its handler `bill` failed: nothing to bill".to_owned();
        assert_eq!(*aside.lock().unwrap(), [(0, "bill".to_owned(), why, Some("ada"))], "{publish}");
    }
}

#[test]
fn what_is_told_of_handlers_that_there_are_not_is_refused() {
    let error = Mediator::builder().undelivered::<Placed>(|_| ()).build().unwrap_err();
    assert!(error.problems()[0].starts_with("`undelivered` of Placed has no effect"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn who_is_told_of_failures_may_panic_and_the_other_handlers_are_called() {
    let mediator = Mediator::builder()
        .notification(bill)
        .notification(mail)
        .undelivered::<Placed>(|_| panic!("no room aside"))
        .build()
        .unwrap();
    assert_eq!(words(&mediator.publish(Placed(0)).await), ["bill failed", "mail done"]);
}

#[tokio::test(start_paused = true)]
async fn a_detached_handler_that_publishes_does_not_wait_for_the_room_that_it_takes() {
    struct Billed(u32);
    impl Notification for Billed {}
    let (itself, billed) = (Arc::new(OnceLock::<Mediator>::new()), Arc::<Mutex<Vec<u32>>>::default());
    let (publisher, log) = (itself.clone(), billed.clone());
    let mediator = Mediator::builder()
        .notification(move |placed: Arc<Placed>| {
            let publisher = publisher.clone();
            async move {
                let _ = publisher.get().unwrap().publish(Billed(placed.0)).await;
                Ok::<_, BoxError>(())
            }
        })
        .notification(move |billed: Arc<Billed>| {
            log.lock().unwrap().push(billed.0);
            std::future::ready(Ok::<_, BoxError>(()))
        })
        .publish_default(Publish::detached())
        .detached_max(1)
        .build()
        .unwrap();
    assert!(itself.set(mediator.clone()).is_ok());
    let all = async {
        for n in 0..3 {
            let _ = mediator.publish(Placed(n)).await;
        }
        sleep(Duration::from_secs(1)).await;
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), all).await.is_ok(), "each waits for the other");
    assert_eq!(*billed.lock().unwrap(), [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn draining_ends_at_its_deadline_and_drops_the_handlers_that_are_left() {
    let held = Arc::new(());
    // As a handler does that publishes on: the mediator is never dropped as long as it is under way.
    let itself = Arc::new(OnceLock::<Mediator>::new());
    let state = (held.clone(), itself.clone());
    let mediator = Mediator::builder()
        .notification_with(state, async |state: (Arc<()>, Arc<OnceLock<Mediator>>), placed: Arc<Placed>| {
            sleep(Duration::from_secs(u64::from(placed.0))).await;
            if placed.0 == 3 {
                state.1.get().unwrap().drain().await; // waits for itself
            }
            Ok::<_, BoxError>(())
        })
        .publish_default(Publish::detached())
        .detached_max(3)
        .build()
        .unwrap();
    assert!(itself.set(mediator.clone()).is_ok());
    let under_way = Arc::strong_count(&held);
    for seconds in [1, 3, 3600] {
        let _ = mediator.publish(Placed(seconds)).await;
    }
    let began = Instant::now();
    assert_eq!(mediator.drain_within(Duration::from_secs(10)).await, 2, "one has ended");
    assert_eq!(began.elapsed().as_secs(), 10);
    assert_eq!(Arc::strong_count(&held), under_way, "nothing of them is left");
    assert_eq!(mediator.drain_within(Duration::from_secs(10)).await, 0);
    assert_eq!(began.elapsed().as_secs(), 10, "there is nothing to wait for");
}

#[tokio::test(start_paused = true)]
async fn mediators_whose_detached_handlers_wait_for_each_others_room_go_on_when_one_drains() {
    type Other = Arc<OnceLock<Mediator>>;
    let (first, second, told) = (Other::default(), Other::default(), Arc::new(AtomicUsize::new(0)));
    for (itself, other) in [(&first, &second), (&second, &first)] {
        let state = (other.clone(), told.clone());
        let mediator = Mediator::builder()
            .notification_with(state, async |state: (Other, Arc<AtomicUsize>), placed: Arc<Placed>| {
                tokio::task::yield_now().await; // until both are full
                if placed.0 > 0 {
                    let _ = state.0.get().unwrap().publish(Placed(placed.0 - 1)).await;
                }
                state.1.fetch_add(1, Ordering::SeqCst);
                Ok::<_, BoxError>(())
            })
            .publish_default(Publish::detached())
            .detached_max(1)
            .build()
            .unwrap();
        assert!(itself.set(mediator).is_ok());
    }
    let (first, second) = (first.get().unwrap(), second.get().unwrap());
    let _ = first.publish(Placed(1)).await;
    let _ = second.publish(Placed(1)).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(told.load(Ordering::SeqCst), 0, "each waits for the other");
    assert_eq!(first.drain_within(Duration::from_secs(1)).await, 0, "all of the first end");
    assert_eq!(second.drain_within(Duration::from_secs(1)).await, 0);
    assert_eq!(told.load(Ordering::SeqCst), 3, "the second's was not called by the first, which drained");
}

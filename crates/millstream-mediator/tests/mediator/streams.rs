use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use millstream_flow::{BoxError, Concurrency, Flow, Pipe, Step};
use millstream_mediator::{
    Error, ErrorKind, ItemErrors, Kind, Mediator, Scope, StreamOptions, StreamRequest, Timeout,
};
use millstream_resilience::{Backoff, Class, Classified, Retry, Stop, Tried};
use tokio::time::{Instant, sleep};

#[derive(Debug, Clone)]
pub(crate) struct Count(pub(crate) u64);
impl StreamRequest for Count {
    type Item = u64;
    fn repeat(&self) -> Option<Self> {
        Some(self.clone())
    }
}

async fn count(to: Count) -> Result<Pipe<impl Flow<Item = Result<u64, BoxError>, Token = ()>>, Error> {
    Ok(Pipe::from_iter(0..to.0).map(|n| if n % 10 == 3 { Err("three".into()) } else { Ok(n) }))
}

#[tokio::test]
async fn a_stream_takes_what_is_asked_and_is_dropped_with_its_reader() {
    let made = Arc::new(AtomicU64::new(0));
    let alive = Arc::new(());
    let (counter, held) = (made.clone(), alive.clone());
    let mediator = Mediator::builder()
        .stream(move |to: Count| {
            let (counter, held) = (counter.clone(), held.clone());
            std::future::ready(Ok::<_, Error>(Pipe::from_iter(0..to.0).map(move |n| {
                let _ = &held;
                counter.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Error>(n)
            })))
        })
        .build()
        .unwrap();
    let mut stream = mediator.stream(Count(1000)).await.unwrap();
    assert_eq!(made.load(Ordering::SeqCst), 0);
    for n in 0..3 {
        assert_eq!(stream.next().await.unwrap().unwrap(), n);
    }
    assert!(made.load(Ordering::SeqCst) <= 3);
    let before = Arc::strong_count(&alive);
    drop(stream);
    assert_eq!(Arc::strong_count(&alive), before - 1);
}

#[tokio::test]
async fn an_item_that_fails_is_dealt_with_as_declared() {
    let dead = Arc::new(Mutex::new(Vec::new()));
    let put_aside = dead.clone();
    let policies = [
        (ItemErrors::fail(), vec![0, 1, 2], 1),
        (ItemErrors::skip(), vec![0, 1, 2, 4, 5], 0),
        (ItemErrors::pass(), vec![0, 1, 2, 4, 5], 1),
        (
            ItemErrors::fallback(|error, at| 100 * at + error.to_string().len() as u64),
            vec![0, 1, 2, 305, 4, 5],
            0,
        ),
        (
            ItemErrors::dead_letter(move |error, at| put_aside.lock().unwrap().push((error.to_string(), at))),
            vec![0, 1, 2, 4, 5],
            0,
        ),
    ];
    for (policy, items, errors) in policies {
        let words = format!("{policy:?}");
        let options = StreamOptions::new().item_errors(policy);
        let mediator = Mediator::builder().stream_options::<Count>(options).stream(count).build().unwrap();
        let (all, report) = mediator.stream(Count(6)).await.unwrap().collect().await.unwrap();
        let (good, bad): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
        assert_eq!(good.into_iter().map(Result::unwrap).collect::<Vec<_>>(), items, "{words}");
        assert_eq!(bad.len(), errors, "{words}");
        for error in bad.into_iter().map(Result::unwrap_err) {
            assert_eq!((error.position(), error.delivered()), (3, 3), "{words}");
            assert_eq!((error.error().kind(), error.is_last()), (&ErrorKind::Failed, words == "fail"));
            assert_eq!(
                millstream_flow::chain(&error),
                "Count at item 3, 3 delivered: Count: its handler `count` failed: three"
            );
        }
        let dropped =
            mediator.metrics().snapshot().number("mediator_stream_dropped_items", &[("type", "Count")]);
        assert_eq!(
            dropped,
            Some(if words == "skip" || words == "dead letter" { 1.0 } else { 0.0 }),
            "{words}"
        );
        assert!(report.ledger.received <= 6);
    }
    assert_eq!(*dead.lock().unwrap(), [("three".to_owned(), 3)]);
}

#[tokio::test]
async fn a_panic_ends_the_stream_as_an_error_and_not_its_reader() {
    let mediator = Mediator::builder()
        .stream(async |to: Count| {
            Ok::<_, Error>(Pipe::from_iter(0..to.0).map(|n| {
                assert!(n < 2, "two is too many");
                Ok::<_, Error>(n)
            }))
        })
        .build()
        .unwrap();
    let (items, _) = mediator.stream(Count(5)).await.unwrap().collect().await.unwrap();
    assert_eq!(items.len(), 3);
    let error = items.into_iter().next_back().unwrap().unwrap_err();
    assert_eq!((error.error().kind(), error.position()), (&ErrorKind::Panicked, 2));
    assert!(millstream_flow::chain(&error).ends_with("two is too many"));
}

/// Gives all items that it is asked for, and panics then.
struct Breaks;

impl Flow for Breaks {
    type Item = Result<u64, BoxError>;
    type Token = ();

    fn poll_drive<S>(&mut self, _: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Self::Item, ()) -> ControlFlow<()>,
    {
        for n in 0..max as u64 {
            if sink(Ok(n), ()).is_break() {
                break;
            }
        }
        panic!("no more")
    }
}

#[tokio::test]
async fn a_panic_when_there_is_no_more_room_comes_after_the_items() {
    let mediator = Mediator::builder()
        .stream(async |_: Count| Ok::<_, Error>(Pipe::from_iter([0]).via("breaks", |_| Breaks)))
        .build()
        .unwrap();
    let mut stream = mediator.stream(Count(1)).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 0);
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!((error.error().kind(), error.position()), (&ErrorKind::Panicked, 1));
    assert!(stream.next().await.is_none());
    let (mut items, _) = mediator.stream(Count(1)).await.unwrap().collect().await.unwrap();
    assert!(items.pop().is_some_and(|last| last.is_err()), "the last of all is the panic");
}

#[tokio::test]
async fn a_panic_behind_a_buffer_ends_the_stream_as_an_error_too() {
    let panics = async |to: Count| {
        Ok::<_, Error>(Pipe::from_iter(0..to.0).map(|n| {
            assert!(n < 2, "two is too many");
            Ok::<_, Error>(n)
        }))
    };
    let mediator = Mediator::builder()
        .stream_options::<Count>(StreamOptions::new().buffer(4))
        .stream(panics)
        .build()
        .unwrap();
    let mut stream = mediator.stream(Count(5)).await.unwrap();
    let mut items = Vec::new();
    while let Some(item) = stream.next().await {
        items.push(item); // item by item, without a driver that would know of the panic
    }
    assert_eq!(items.len(), 3);
    let error = items.into_iter().next_back().unwrap().unwrap_err();
    assert_eq!((error.error().kind(), error.position(), error.is_last()), (&ErrorKind::Panicked, 2, true));
    assert!(millstream_flow::chain(&error).ends_with("two is too many"));
}

#[tokio::test(start_paused = true)]
async fn buffer_and_concurrency_are_options_of_the_type() {
    let began = Instant::now();
    let options = StreamOptions::new().buffer(4).each(Concurrency::ordered(5), async |n| {
        sleep(Duration::from_secs(1)).await;
        if n == 7 { Err("seven".into()) } else { Ok(n * 10) }
    });
    let mediator = Mediator::builder()
        .stream_options::<Count>(options)
        .stream(async |to: Count| Ok::<_, Error>(Pipe::from_iter(0..to.0).map(Ok::<_, Error>)))
        .build()
        .unwrap();
    let (items, report) = mediator.stream(Count(20)).await.unwrap().collect().await.unwrap();
    assert_eq!(items.len(), 8);
    assert_eq!(began.elapsed().as_secs(), 2, "five at once, and the eighth failed");
    assert_eq!(report.hops[0].capacity, 4);
}

#[tokio::test(start_paused = true)]
async fn an_item_that_takes_too_long_in_each_has_failed_and_the_stream_says_so() {
    let began = Instant::now();
    let calls = Concurrency::ordered(2).time_limit(Duration::from_secs(5));
    let options =
        StreamOptions::new().each(calls, async |n| if n == 3 { std::future::pending().await } else { Ok(n) });
    let mediator = Mediator::builder()
        .stream_options::<Count>(options)
        .stream(async |to: Count| Ok::<_, Error>(Pipe::from_iter(0..to.0).map(Ok::<_, Error>)))
        .build()
        .unwrap();
    let mut stream = mediator.stream(Count(20)).await.unwrap();
    let mut items = Vec::new();
    while let Some(item) = stream.next().await {
        items.push(item);
    }
    let error = items.pop().unwrap().unwrap_err();
    assert_eq!((items.len(), error.position(), error.is_last()), (3, 3, true));
    assert!(millstream_flow::chain(&error).ends_with("it took longer than 5s"), "{error}");
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn what_is_done_with_an_item_is_tried_again_and_then_it_has_failed_with_its_history() {
    let dead = Arc::new(Mutex::new(Vec::new()));
    let put_aside = dead.clone();
    let calls = Arc::new(Mutex::new(vec![0; 6]));
    let called = calls.clone();
    let each = move |n: u64| {
        let called = called.clone();
        async move {
            let attempts = {
                let mut called = called.lock().unwrap();
                called[n as usize] += 1;
                called[n as usize]
            };
            sleep(Duration::from_secs(1)).await;
            match n {
                1 if attempts < 3 => Err("busy".into()),
                2 => Err(Classified::new(Class::Permanent, "never").into()),
                4 => Err(format!("refused {attempts}").into()),
                n => Ok(n * 10),
            }
        }
    };
    let retry = Retry::new(3).backoff(Backoff::fixed(Duration::from_secs(5)));
    let options = StreamOptions::new()
        .each(Concurrency::ordered(6), each)
        .retry_each(retry)
        .item_errors(ItemErrors::dead_letter(move |error, at| put_aside.lock().unwrap().push((error, at))));
    assert!(format!("{options:?}").contains("retry: Some(Retry"), "{options:?}");
    let mediator = Mediator::builder()
        .stream_options::<Count>(options)
        .stream(async |to: Count| Ok::<_, Error>(Pipe::from_iter(0..to.0).map(Ok::<_, Error>)))
        .build()
        .unwrap();
    let began = Instant::now();
    let (items, _) = mediator.stream(Count(6)).await.unwrap().collect().await.unwrap();
    assert_eq!(items.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [0, 10, 30, 50], "in order");
    assert_eq!(began.elapsed().as_secs(), 1 + 5 + 1 + 5 + 1, "all at once, and no other waits for a delay");
    assert_eq!(*calls.lock().unwrap(), [1, 3, 1, 1, 3, 1]);
    let dead = dead.lock().unwrap();
    let [(never, 2), (refused, 4)] = &dead[..] else { panic!("{dead:?}") };
    assert_eq!(never.to_string(), "never", "an error that was not tried again stays as it is");
    let tried: &Tried = refused.downcast_ref().unwrap();
    assert_eq!((tried.attempts(), tried.stop()), (3, Stop::Attempts));
    assert_eq!(tried.earlier(), ["refused 1", "refused 2"]);
    assert!(millstream_flow::chain(&**refused).ends_with("refused 3"), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn all_attempts_of_an_item_share_its_time() {
    let calls = Concurrency::ordered(1).time_limit(Duration::from_secs(8));
    let options = StreamOptions::new()
        .each(calls, async |_| Err::<u64, _>("busy".into()))
        .retry_each(Retry::new(9).backoff(Backoff::fixed(Duration::from_secs(5))));
    let mediator = Mediator::builder().stream_options::<Count>(options).stream(count).build().unwrap();
    let began = Instant::now();
    let error = mediator.stream(Count(1)).await.unwrap().next().await.unwrap().unwrap_err();
    assert!(millstream_flow::chain(&error).ends_with("it took longer than 8s"), "{error}");
    assert_eq!(began.elapsed().as_secs(), 8);
}

#[tokio::test(start_paused = true)]
async fn behaviours_of_requests_stand_around_the_opening_of_a_stream() {
    let mediator = Mediator::builder()
        .behaviour_for(Scope::kind(Kind::Stream), Timeout::new(Duration::from_secs(1)))
        .stream(async |_: Count| {
            sleep(Duration::from_secs(2)).await;
            Ok::<_, Error>(Pipe::from_iter([1]).map(Ok::<_, Error>))
        })
        .build()
        .unwrap();
    let error = mediator.stream(Count(1)).await.map(drop).unwrap_err();
    assert_eq!(error.kind().word(), "timed_out");
}

#[test]
fn options_without_effect_are_refused() {
    let error = Mediator::builder().stream_options::<Count>(StreamOptions::new()).build().unwrap_err();
    assert_eq!(error.problems(), ["options are given for 1 streams without handlers; register them"]);
    let unread = StreamOptions::new().retry_each(Retry::new(3));
    let error = Mediator::builder().stream_options::<Count>(unread).stream(count).build().unwrap_err();
    assert_eq!(
        error.problems(),
        ["`retry_each` of Count has no effect: say what is done with each item by `each`, or remove it"]
    );
    let builder = Mediator::builder().stream(count).stream_options::<Count>(StreamOptions::new());
    assert!(
        builder.build().unwrap_err().problems()[0].starts_with("the options of Count come after its handler")
    );
}

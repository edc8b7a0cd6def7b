//! Streams that are opened again.

use super::*;

/// Counts from a position, and tells items apart by themselves.
#[derive(Clone)]
pub(super) struct Numbers {
    pub(super) from: u64,
}

impl StreamRequest for Numbers {
    type Item = u64;
    fn repeat(&self) -> Option<Self> {
        Some(self.clone())
    }
    fn resume(&self, position: u64) -> Option<Self> {
        Some(Numbers { from: self.from + position })
    }
    fn key(item: &u64) -> Option<u64> {
        Some(*item)
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_broke_goes_on_as_declared() {
    // The first try breaks after 5 items, the second after 7 of its own, the third gives ten from its beginning.
    for (resume, items, failed, duplicates) in [
        (Resume::Never, vec![0, 1, 2, 3, 4], true, 0.0),
        (
            Resume::Restart,
            [&[0, 1, 2, 3, 4][..], &[0, 1, 2, 3, 4, 5, 6], &(0..10).collect::<Vec<_>>()].concat(),
            false,
            0.0,
        ),
        (Resume::Position, (0..10).collect(), false, 0.0),
        (Resume::Skip, (0..10).collect(), false, 12.0),
        (Resume::Dedupe(100), (0..10).collect(), false, 12.0),
        // Of two keys only the newest two are left out.
        (
            Resume::Dedupe(2),
            vec![0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
            false,
            0.0,
        ),
    ] {
        let opened = AtomicU64::new(0);
        let mediator = Mediator::builder()
            .stream_behaviour(StreamRetries::new(retry(3), resume))
            .stream(move |asked: Numbers| {
                let pipe: Items = match opened.fetch_add(1, Ordering::SeqCst) {
                    0 => breaks_at(asked.from, 5),
                    1 => breaks_at(asked.from, 7),
                    _ => Pipe::from_iter(asked.from..10).map(Ok).boxed(),
                };
                std::future::ready(Ok::<_, Error>(pipe))
            })
            .build()
            .unwrap();
        let began = Instant::now();
        let (got, error) = all(mediator.stream(Numbers { from: 0 }).await.unwrap()).await;
        assert_eq!((got, error.is_some()), (items, failed), "{resume:?}");
        assert_eq!(began.elapsed().as_secs(), if failed { 0 } else { 2 }, "{resume:?}");
        let dropped = [("reason", "duplicate")];
        assert_eq!(number(&mediator, "mediator_stream_dropped_items", &dropped), duplicates, "{resume:?}");
        let saved = [("outcome", "saved")];
        let saved = mediator.metrics().snapshot().number("mediator_retry_attempts_total", &saved);
        assert_eq!(saved, if failed { None } else { Some(2.0) }, "{resume:?}");
        assert!(mediator.describe().to_string().contains(resume.delivery()));
    }
}

/// Can go on from anywhere, and so be opened anew; not twice as it is.
struct Onwards(u64);

impl StreamRequest for Onwards {
    type Item = u64;
    fn resume(&self, position: u64) -> Option<Self> {
        Some(Onwards(self.0 + position))
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_can_only_go_on_is_opened_anew_by_position() {
    for (resume, tries) in [(Resume::Position, 4), (Resume::Skip, 1)] {
        let asked = Arc::<Mutex<Vec<u64>>>::default();
        let opened = asked.clone();
        let mediator = Mediator::builder()
            .stream_behaviour(StreamRetries::new(retry(5), resume))
            .stream(move |Onwards(from)| {
                let mut opened = opened.lock().unwrap();
                opened.push(from);
                std::future::ready(match opened.len() {
                    1 => Err("closed"),
                    2 => Ok(breaks_at(from, 10)),
                    3 => Ok(breaks_at(from, 14)),
                    _ => Ok(Pipe::from_iter(from..17).map(Ok).boxed()),
                })
            })
            .build()
            .unwrap();
        match mediator.stream(Onwards(10)).await {
            Err(error) => assert_eq!((error.kind(), tries), (&ErrorKind::Failed, 1)),
            Ok(stream) => {
                let (items, error) = all(stream).await;
                assert_eq!((items, error.is_none()), ((10..17).collect(), true));
                assert_eq!(*asked.lock().unwrap(), [10, 10, 10, 14], "nothing came of the second");
            }
        }
        assert_eq!(asked.lock().unwrap().len(), tries);
        let snapshot = mediator.metrics().snapshot();
        let unrepeatable = snapshot.number("mediator_retry_attempts_total", &[("outcome", "unrepeatable")]);
        assert_eq!(unrepeatable, (tries == 1).then_some(1.0));
    }
}

#[tokio::test(start_paused = true)]
async fn others_have_their_turn_while_what_came_before_is_left_out() {
    let made = Arc::new(AtomicU64::new(0));
    let count = made.clone();
    let mediator = mediator(StreamRetries::new(retry(3), Resume::Skip), move |opened, to| {
        if opened == 0 {
            return breaks_at(0, to - 1);
        }
        let count = count.clone();
        Pipe::from_iter(0..to).inspect(move |_| _ = count.fetch_add(1, Ordering::SeqCst)).map(Ok).boxed()
    });
    let mut stream = mediator.stream(Count(10_001)).await.unwrap();
    for _ in 0..10_000 {
        stream.next().await.unwrap().unwrap();
    }
    let mut next = std::pin::pin!(stream.next());
    assert!(futures_util::poll!(next.as_mut()).is_pending());
    sleep(2 * SECOND).await;
    let mut polls = 0;
    while futures_util::poll!(next.as_mut()).is_pending() {
        polls += 1;
        assert!(made.load(Ordering::SeqCst) <= polls * 1024, "{made:?} in {polls} polls");
    }
    assert_eq!(polls, 9);
    assert_eq!(all(stream).await.0.len(), 0);
}

/// Each try of a stream of ten breaks once, at items 4 and 8, for which it is waited 10 s; every third item fails and is dealt
/// with. Around all tries stands `limit`.
fn broken_with(
    errors: ItemErrors<u64>,
    limit: StreamTimeout,
    resume: Resume,
    asked: Arc<Mutex<Vec<u64>>>,
) -> Mediator {
    let mut broken = std::collections::HashSet::new();
    let broken = Mutex::new(move |n| (n == 4 || n == 8) && broken.insert(n));
    let broken = Arc::new(broken);
    Mediator::builder()
        .stream_behaviour(limit)
        .stream_behaviour(StreamRetries::new(retry(3), resume))
        .stream_behaviour(StreamTimeout::new().next(10 * SECOND))
        .stream_options::<Numbers>(StreamOptions::new().item_errors(errors))
        .stream(move |from: Numbers| {
            asked.lock().unwrap().push(from.from);
            let broken = broken.clone();
            let items = stream::iter(from.from..10).then(move |n| {
                let hangs = (broken.lock().unwrap())(n);
                async move {
                    if hangs {
                        sleep(20 * SECOND).await;
                    }
                    if n % 3 == 2 { Err(BoxError::from(n.to_string())) } else { Ok(n) }
                }
            });
            std::future::ready(Ok::<_, Error>(Pipe::from_stream(items).boxed()))
        })
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_at_its_handlers_position_whatever_became_of_items_that_failed() {
    type Make = fn() -> ItemErrors<u64>;
    let policies: [(&str, Make, &[_]); 4] = [
        ("skip", ItemErrors::skip, &[]),
        ("dead letter", || ItemErrors::dead_letter(|_, _| ()), &[]),
        ("pass", ItemErrors::pass, &[(2, 2), (5, 4), (8, 6)]),
        ("fallback", || ItemErrors::fallback(|_, at| 100 + at), &[]),
    ];
    for (words, errors, failed) in policies {
        for resume in [Resume::Position, Resume::Skip] {
            let asked = Arc::<Mutex<Vec<u64>>>::default();
            let limit = StreamTimeout::new().total(3600 * SECOND);
            let mediator = broken_with(errors(), limit, resume, asked.clone());
            let (items, _) = mediator.stream(Numbers { from: 0 }).await.unwrap().collect().await.unwrap();
            let (good, bad): (Vec<_>, Vec<_>) = items.into_iter().partition(Result::is_ok);
            let good: Vec<u64> = good.into_iter().map(Result::unwrap).filter(|n| *n < 100).collect();
            let bad: Vec<_> = bad.into_iter().map(Result::unwrap_err).collect();
            let bad: Vec<_> = bad.iter().map(|error| (error.position(), error.delivered())).collect();
            assert_eq!((&good[..], &bad[..]), (&[0, 1, 3, 4, 6, 7, 9][..], failed), "{words}, {resume:?}");
            let from = if resume == Resume::Position { vec![0, 4, 8] } else { vec![0, 0, 0] };
            assert_eq!(*asked.lock().unwrap(), from, "{words}, {resume:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_around_retries_tells_the_position_of_the_handlers_present_try() {
    // The first try breaks at 10 s, the second begins a second later, and is not over at 15 s.
    for (resume, between, within, delivered) in [
        (Resume::Position, 4, 8, 6),
        (Resume::Restart, 0, 8, 9),
        (Resume::Skip, 0, 8, 6),
        (Resume::Dedupe(10), 0, 8, 6),
    ] {
        for (limit, position, delivered) in [(SECOND * 21 / 2, between, 3), (15 * SECOND, within, delivered)]
        {
            let total = StreamTimeout::new().total(limit);
            let mediator = broken_with(ItemErrors::skip(), total, resume, Arc::default());
            let (items, error) = all(mediator.stream(Numbers { from: 0 }).await.unwrap()).await;
            let error = error.unwrap();
            assert_eq!(error.error().kind(), &ErrorKind::TimedOut { limit });
            assert_eq!((error.position(), error.delivered()), (position, delivered), "{resume:?}, {limit:?}");
            assert_eq!(items.len() as u64, delivered, "{resume:?}, {limit:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn retries_around_a_limit_around_retries_lose_nothing() {
    let asked = Arc::<Mutex<Vec<u64>>>::default();
    let opened = asked.clone();
    // Odd numbers are left out; the first two openings hang after six numbers.
    let mediator = Mediator::builder()
        .stream_behaviour(StreamRetries::new(retry(2), Resume::Position))
        .stream_behaviour(StreamTimeout::new().total(15 * SECOND))
        .stream_behaviour(StreamRetries::new(retry(2), Resume::Restart))
        .stream_behaviour(StreamTimeout::new().next(10 * SECOND))
        .stream_options::<Numbers>(StreamOptions::new().item_errors(ItemErrors::skip()))
        .stream(move |Numbers { from }| {
            let mut opened = opened.lock().unwrap();
            opened.push(from);
            let items = Pipe::from_iter(from..from + 6);
            let items = items.map(|n| if n % 2 == 1 { Err(BoxError::from("odd")) } else { Ok(n) });
            let hang = stream::iter((opened.len() < 3).then(stream::pending)).flatten();
            std::future::ready(Ok::<_, Error>(items.concat(Pipe::from_stream(hang)).boxed()))
        })
        .build()
        .unwrap();
    let (items, error) = all(mediator.stream(Numbers { from: 0 }).await.unwrap()).await;
    assert_eq!((items, error.is_none()), (vec![0, 2, 4, 0, 2, 4, 6, 8, 10], true));
    assert_eq!(*asked.lock().unwrap(), [0, 0, 6]);
}

#[tokio::test(start_paused = true)]
async fn what_a_stream_inside_of_a_handler_leaves_out_is_not_the_handlers() {
    use millstream_mediator::StreamHandler;
    /// Opens a stream of another mediator, for the same caller, whose items it passes on after one of its own.
    struct Around(Mediator);
    impl StreamHandler<Numbers> for Around {
        type Error = Error;
        type ItemError = StreamError;
        type Flow = BoxFlow<Result<u64, StreamError>>;
        async fn open(&self, _: Numbers, call: &Call<'_>) -> Result<Pipe<Self::Flow>, Error> {
            let inner = self.0.stream_in(call.context(), Count(6)).await?;
            let hang = Pipe::from_stream(stream::pending());
            Ok(inner.concat(hang).boxed())
        }
    }
    let odd = async |to: Count| {
        let items =
            Pipe::from_iter(0..to.0).map(|n| if n % 2 == 1 { Err(BoxError::from("odd")) } else { Ok(n) });
        Ok::<_, Error>(items)
    };
    let inner = Mediator::builder()
        .stream_options::<Count>(StreamOptions::new().item_errors(ItemErrors::skip()))
        .stream(odd)
        .build()
        .unwrap();
    let mediator = Mediator::builder()
        .stream_behaviour(StreamTimeout::new().next(SECOND))
        .stream_handler(Around(inner))
        .build()
        .unwrap();
    let (items, error) = all(mediator.stream(Numbers { from: 0 }).await.unwrap()).await;
    assert_eq!((items, error.unwrap().position()), (vec![0, 2, 4], 3));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_for_good_tells_its_handlers_position() {
    for resume in [Resume::Position, Resume::Skip] {
        let mediator = Mediator::builder()
            .stream_behaviour(StreamRetries::new(retry(2), resume))
            .stream_options::<Numbers>(StreamOptions::new().item_errors(ItemErrors::pass()))
            .stream(async |from: Numbers| {
                let items = Pipe::from_iter(from.from..6).map(|n| {
                    assert!(n < 5, "no more");
                    if n == 2 { Err(BoxError::from("two")) } else { Ok(n) }
                });
                Ok::<_, Error>(items)
            })
            .build()
            .unwrap();
        let (items, _) = mediator.stream(Numbers { from: 0 }).await.unwrap().collect().await.unwrap();
        let last = items.last().unwrap().as_ref().unwrap_err();
        assert_eq!((last.position(), last.delivered()), (5, 4), "{resume:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_out_of_tries_ends_with_an_error_that_says_where() {
    let mediator = mediator(StreamRetries::new(retry(3), Resume::Skip), |opened, _| {
        breaks_at(0, if opened == 0 { 4 } else { 2 })
    });
    let (items, error) = all(mediator.stream(Count(0)).await.unwrap()).await;
    let error = error.unwrap();
    assert_eq!((items, error.position(), error.delivered()), (vec![0, 1, 2, 3], 2, 4));
    assert_eq!(number(&mediator, "mediator_retry_attempts_total", &[("outcome", "given_up")]), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_reader_costs_its_item_and_not_the_rest() {
    let mediator = mediator(StreamRetries::new(retry(3), Resume::Skip), |opened, to| {
        if opened == 0 { breaks_at(0, 5) } else { at_once(to) }
    });
    let stream = mediator.stream(Count(10)).await.unwrap().on_panic(millstream_flow::PanicPolicy::Dead);
    let (items, report) = stream
        .map(|item| {
            let item = item.unwrap();
            assert!(item != 2 && item != 7, "not this one");
            item
        })
        .collect()
        .await
        .unwrap();
    assert_eq!((items, report.ledger.dead), (vec![0, 1, 3, 4, 5, 6, 8, 9], 2));
}

#[tokio::test(start_paused = true)]
async fn tries_are_counted_anew_where_new_items_came_but_not_for_ever() {
    let mediator = mediator(StreamRetries::new(retry(2), Resume::Skip), |opened, to| {
        if opened < to { breaks_at(0, opened + 1) } else { at_once(to) }
    });
    let (items, error) = all(mediator.stream(Count(9)).await.unwrap()).await;
    assert_eq!((items.len(), error.is_none()), (9, true), "each of nine tries brought one more");

    let restarts = self::mediator(StreamRetries::new(retry(4), Resume::Restart), |_, _| breaks_at(0, 1));
    let (items, error) = all(restarts.stream(Count(9)).await.unwrap()).await;
    assert_eq!((items, error.is_some()), (vec![0; 4], true));
}

#[tokio::test(start_paused = true)]
async fn an_opening_is_tried_again_and_permanent_errors_are_not() {
    let opened = Arc::new(AtomicU64::new(0));
    let build = |permanent: bool| {
        let count = opened.clone();
        Mediator::builder()
            .stream_behaviour(StreamRetries::new(retry(3), Resume::Never))
            .stream(move |to: Count| {
                let first = count.fetch_add(1, Ordering::SeqCst) < 2;
                let class = if permanent { Class::Permanent } else { Class::Transient };
                std::future::ready(if first {
                    Err(Classified::new(class, "closed"))
                } else {
                    Ok(at_once(to.0))
                })
            })
            .build()
            .unwrap()
    };
    assert_eq!(all(build(false).stream(Count(2)).await.unwrap()).await.0, [0, 1]);
    assert_eq!(opened.swap(0, Ordering::SeqCst), 3);
    assert!(build(true).stream(Count(2)).await.is_err());
    assert_eq!(opened.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_position_is_not_counted_where_items_are_worked_on_out_of_order() {
    use millstream_flow::Concurrency;
    let build = |resume, concurrency| {
        Mediator::builder()
            .stream_behaviour(StreamRetries::new(retry(3), resume))
            .stream_options::<Numbers>(StreamOptions::new().each(concurrency, async |n| Ok::<_, BoxError>(n)))
            .stream(async |asked: Numbers| Ok::<_, Error>(breaks_at(asked.from, 5)))
            .build()
    };
    for resume in [Resume::Position, Resume::Skip] {
        let error = build(resume, Concurrency::unordered(4)).map(drop).unwrap_err().to_string();
        assert!(error.contains("out of order") && error.contains("Concurrency::ordered"), "{error}");
        assert!(build(resume, Concurrency::ordered(4)).is_ok());
    }
    assert!(build(Resume::Dedupe(10), Concurrency::unordered(4)).is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_is_put_aside_or_replaced_is_told_with_its_position_in_all_of_the_stream() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    for errors in [
        ItemErrors::dead_letter(move |_, position| tell.lock().unwrap().push(position)),
        ItemErrors::fallback(|_, position| 1000 + position),
    ] {
        let replaces = told.lock().unwrap().len() == 2;
        let opened = AtomicU64::new(0);
        let mediator = Mediator::builder()
            .stream_behaviour(StreamRetries::new(retry(3), Resume::Position))
            .stream_behaviour(StreamTimeout::new().next(SECOND))
            .stream_options::<Numbers>(StreamOptions::new().item_errors(errors))
            .stream(move |asked: Numbers| {
                let first = opened.fetch_add(1, Ordering::SeqCst) == 0;
                let items = stream::iter(asked.from..20).then(move |n| async move {
                    if first && n == 10 {
                        std::future::pending().await
                    }
                    if n == 5 || n == 15 { Err(BoxError::from("no")) } else { Ok(n) }
                });
                std::future::ready(Ok::<_, Error>(Pipe::from_stream(items).boxed()))
            })
            .build()
            .unwrap();
        let (items, error) = all(mediator.stream(Numbers { from: 0 }).await.unwrap()).await;
        assert!(error.is_none(), "{error:?}");
        let replaced: Vec<u64> = items.into_iter().filter(|n| *n >= 1000).collect();
        assert_eq!(replaced, if replaces { vec![1005, 1015] } else { vec![] });
    }
    assert_eq!(*told.lock().unwrap(), [5, 15]);
}

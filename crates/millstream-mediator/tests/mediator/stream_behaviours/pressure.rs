//! What happens when a reader is slower than its stream.

use super::*;

/// Reads nothing for a second, so that the handler runs ahead as far as it may, then the rest.
async fn slowly(mediator: &Mediator, to: u64) -> Vec<u64> {
    let mut stream = mediator.stream(Count(to)).await.unwrap();
    let mut items = vec![stream.next().await.unwrap().unwrap()];
    sleep(SECOND).await;
    while let Some(item) = stream.next().await {
        items.push(item.unwrap());
    }
    items
}

#[tokio::test(start_paused = true)]
async fn strategies_that_wait_lose_nothing_and_hold_no_more_than_they_may() {
    for (strategy, ahead) in [(Strategy::Buffer, 10), (Strategy::Block, 8), (Strategy::Throttle, 8)] {
        let made = Arc::new(AtomicU64::new(0));
        let count = made.clone();
        let mediator = mediator(Backpressure::new(strategy, 10), move |_, to| {
            let count = count.clone();
            Pipe::from_iter(0..to).inspect(move |_| _ = count.fetch_add(1, Ordering::SeqCst)).map(Ok).boxed()
        });
        let mut stream = mediator.stream(Count(1000)).await.unwrap();
        assert_eq!(made.load(Ordering::SeqCst), 0, "nothing runs before it is asked");
        stream.next().await.unwrap().unwrap();
        sleep(SECOND).await;
        // What was taken, what waits, and one chunk at either side.
        let most = 1 + ahead + 64 + 64;
        assert!(made.load(Ordering::SeqCst) <= most, "{strategy}: {made:?} items were made");
        let (rest, error) = all(stream).await;
        assert_eq!((rest.len(), error.is_none()), (999, true), "{strategy}");
        assert_eq!(number(&mediator, "mediator_stream_dropped_items", &[("reason", "backpressure")]), 0.0);
        assert!(
            number(&mediator, "mediator_stream_backpressure_events", &[("type", "Count")]) >= 1.0,
            "{strategy}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn strategies_that_drop_count_what_they_dropped_and_nothing_more() {
    for (strategy, first, last) in [
        (Strategy::DropOldest, None, Some(999)),
        (Strategy::DropNewest, Some(1), None),
        (Strategy::Sample(NonZeroU64::new(10).unwrap()), Some(1), None),
    ] {
        let mediator = mediator(Backpressure::new(strategy, 10).marks(0.5, 0.2), |_, to| at_once(to));
        let items = slowly(&mediator, 1000).await;
        assert!(items.is_sorted() && items.len() < 1000, "{strategy}: {items:?}");
        if let Some(last) = last {
            assert_eq!(items.last(), Some(&last), "{strategy}");
        }
        if let Some(first) = first {
            assert_eq!(items.get(1), Some(&first), "{strategy}");
        }
        let dropped = number(&mediator, "mediator_stream_dropped_items", &[("reason", "backpressure")]);
        assert_eq!(dropped as usize + items.len(), 1000, "{strategy}");
        // Room again: nothing is dropped because something once was.
        let slow = self::mediator(Backpressure::new(strategy, 10), |_, to| each(SECOND, to));
        assert_eq!(slowly(&slow, 100).await.len(), 100, "{strategy}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_is_never_dropped() {
    let mediator = mediator(Backpressure::new(Strategy::DropNewest, 2), |_, _| breaks_at(0, 500));
    let mut stream = mediator.stream(Count(0)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    sleep(SECOND).await;
    assert!(all(stream).await.1.is_some());
}

#[tokio::test(start_paused = true)]
async fn pressure_is_told_with_marks_triggers_and_fallback() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let told = events.clone();
    let rule = Backpressure::new(Strategy::Block, 10)
        .marks(0.8, 0.2)
        .fallback(5 * SECOND, Strategy::DropNewest)
        .on_event(move |about, event| {
            let word = match event {
                PressureEvent::Entered(pressure) => format!("entered at {}", pressure.len),
                PressureEvent::Left(pressure) => format!("left at {}", pressure.len),
                PressureEvent::FellBack(strategy, _) => format!("{strategy} for {}", about.name),
                _ => "else".into(),
            };
            told.lock().unwrap().push(word);
        });
    let mediator = mediator(rule, |_, to| at_once(to));
    let mut stream = mediator.stream(Count(1000)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    sleep(SECOND).await;
    assert_eq!(events.lock().unwrap().len(), 1, "{events:?}");
    sleep(5 * SECOND).await;
    let (rest, _) = all(stream).await;
    assert!(rest.len() < 999, "it fell back to dropping");
    assert_eq!(events.lock().unwrap()[..2], ["entered at 8", "drop newest for Count"]);

    let triggered = Arc::new(Mutex::new(Vec::new()));
    let told = triggered.clone();
    let rule = Backpressure::new(Strategy::Block, 1000)
        .trigger(|pressure| pressure.len >= 3)
        .on_event(move |_, event| told.lock().unwrap().push(*event));
    let mediator = self::mediator(rule, |_, to| each(SECOND, to));
    let mut stream = mediator.stream(Count(20)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    sleep(100 * SECOND).await;
    let (rest, _) = all(stream).await;
    assert_eq!(rest.len(), 19, "a trigger holds back and loses nothing");
    assert!(matches!(triggered.lock().unwrap()[0], PressureEvent::Entered(pressure) if pressure.len == 3));
}

#[tokio::test(start_paused = true)]
async fn a_fallback_that_waits_goes_on_by_its_own_rule() {
    for fallback in [Strategy::Buffer, Strategy::Throttle] {
        let made = Arc::new(AtomicU64::new(0));
        let count = made.clone();
        let rule = Backpressure::new(Strategy::Block, 1000).marks(0.8, 0.2).fallback(5 * SECOND, fallback);
        let mediator = mediator(rule, move |_, to| {
            let count = count.clone();
            Pipe::from_iter(0..to).inspect(move |_| _ = count.fetch_add(1, Ordering::SeqCst)).map(Ok).boxed()
        });
        let mut stream = mediator.stream(Count(10_000)).await.unwrap();
        stream.next().await.unwrap().unwrap();
        sleep(6 * SECOND).await;
        let before = made.load(Ordering::SeqCst);
        for _ in 0..300 {
            stream.next().await.unwrap().unwrap();
        }
        sleep(SECOND).await;
        // It is far above the low mark, at which the first strategy would go on.
        let more = made.load(Ordering::SeqCst) - before;
        assert!((128..=384).contains(&more), "{fallback}: {more} more of {before}");
    }
}

#[test]
fn an_admission_around_a_buffer_that_counts_in_its_memory_is_refused() {
    struct Other;
    impl StreamRequest for Other {
        type Item = u64;
    }
    let (memory, another) = (Memory::new(1 << 20), Memory::new(1 << 20));
    let handler = async |to: Count| Ok::<_, Error>(at_once(to.0));
    let buffer = |memory: &Memory| Backpressure::new(Strategy::Buffer, 10).memory(memory.clone());
    let admission = || StreamAdmission::new(memory.clone());
    let error = Mediator::builder()
        .stream_behaviour(admission())
        .stream_behaviour(buffer(&memory))
        .stream(handler)
        .build()
        .unwrap_err();
    let problem = "around the stream Count the behaviour `held back within 1 MiB` waits for the memory in which what is in \
                   `backpressure buffer 10 80%/50%` counts, and would keep it from being read for ever; add it after \
                   `backpressure buffer 10 80%/50%`";
    assert_eq!(error.problems(), [problem]);
    let inside = Mediator::builder().stream_behaviour(buffer(&memory)).stream_behaviour(admission());
    assert!(inside.stream(handler).build().is_ok());
    let apart = Mediator::builder().stream_behaviour(admission()).stream_behaviour(buffer(&another));
    assert!(apart.stream(handler).build().is_ok());
    let elsewhere = Mediator::builder()
        .stream_behaviour_for(Scope::of::<Other>(), admission())
        .stream_behaviour_for(Scope::of::<Count>(), buffer(&memory))
        .stream(async |_: Other| Ok::<_, Error>(at_once(1)))
        .stream(handler);
    assert!(elsewhere.build().is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_waits_in_a_buffer_counts_as_held_memory() {
    let memory = Memory::new(1 << 20);
    let mediator =
        mediator(Backpressure::new(Strategy::Buffer, 100).memory(memory.clone()), |_, to| at_once(to));
    let mut stream = mediator.stream(Count(1000)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    sleep(SECOND).await;
    let items = memory.used() / size_of::<Result<u64, StreamError>>() as u64;
    assert!((88..=100).contains(&items), "{items} wait");
    assert_eq!(number(&mediator, "mediator_stream_buffer_size", &[]), items as f64);
    assert_eq!(number(&mediator, "mediator_stream_buffer_usage", &[]), items as f64);
    drop(stream);
    tokio::task::yield_now().await;
    assert_eq!(memory.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_numbers_of_buffers_are_those_of_all_open_streams_as_they_are_now() {
    let mediator = mediator(Backpressure::new(Strategy::Buffer, 100), |_, to| {
        at_once(to).concat(Pipe::from_stream(stream::pending())).boxed()
    });
    let shown = || {
        ["size", "usage"]
            .map(|name| number(&mediator, &format!("mediator_stream_buffer_{name}"), &[("type", "Count")]))
    };
    let mut open = Vec::new();
    for (items, size, usage) in [(10, 10.0, 10.0), (40, 50.0, 40.0), (20, 70.0, 40.0)] {
        let mut stream = mediator.stream(Count(1 + items)).await.unwrap();
        stream.next().await.unwrap().unwrap();
        sleep(SECOND).await;
        assert_eq!(shown(), [size, usage]);
        open.push(stream);
    }
    for _ in 0..10 {
        open[1].next().await.unwrap().unwrap();
    }
    assert_eq!(shown(), [60.0, 30.0], "what was read waits no more");
    drop(open);
    assert_eq!(shown(), [0.0, 0.0]);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_pressure_is_told_when_it_comes() {
    // Nine items at once, and nothing more for a minute, or for good.
    for ends in [false, true] {
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = events.clone();
        let began = Instant::now();
        let rule = Backpressure::new(Strategy::Buffer, 10).marks(0.8, 0.2).on_event(move |_, event| {
            let word = match event {
                PressureEvent::Entered(_) => "entered".to_owned(),
                PressureEvent::Left(pressure) => format!("left after {:?}", pressure.lasting),
                PressureEvent::Ended(_) => return,
                _ => "else".to_owned(),
            };
            told.lock().unwrap().push((began.elapsed().as_secs(), word));
        });
        let mediator = mediator(rule, move |_, _| {
            let first = stream::iter([0]).chain(stream::once(async {
                sleep(SECOND).await;
                1
            }));
            let items = first.chain(stream::iter(2..10));
            let minute = stream::once(sleep(60 * SECOND)).filter_map(async |()| None::<u64>);
            let rest = stream::iter((!ends).then_some(minute)).flatten();
            Pipe::from_stream(Box::pin(items.chain(rest)).map(Ok::<_, BoxError>)).boxed()
        });
        let mut stream = mediator.stream(Count(0)).await.unwrap();
        stream.next().await.unwrap().unwrap();
        sleep(5 * SECOND).await;
        for _ in 0..9 {
            stream.next().await.unwrap().unwrap();
        }
        sleep(SECOND).await;
        if ends {
            assert!(stream.next().await.is_none());
        }
        let left = if ends { (6, "left after 5s") } else { (5, "left after 4s") };
        let seen = events.lock().unwrap().clone();
        assert_eq!(seen, [(1, "entered".to_owned()), (left.0, left.1.to_owned())], "{ends}");
        drop(stream);
        assert_eq!(events.lock().unwrap().len(), 2, "{ends}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_under_pressure_is_under_none() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let told = events.clone();
    let rule = Backpressure::new(Strategy::Block, 10).on_event(move |_, event| {
        if !matches!(event, PressureEvent::Ended(_)) {
            told.lock().unwrap().push(matches!(event, PressureEvent::Left(_)));
        }
    });
    let mediator = mediator(rule, |_, to| at_once(to));
    let mut stream = mediator.stream(Count(100)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    sleep(SECOND).await;
    assert_eq!(*events.lock().unwrap(), [false]);
    drop(stream);
    assert_eq!(*events.lock().unwrap(), [false, true]);
}

#[tokio::test]
async fn what_is_dropped_is_counted_before_anything_else_may_go_wrong() {
    use std::sync::OnceLock;
    struct Slow;
    impl StreamRequest for Slow {
        type Item = Dropped;
    }
    /// Looks at its own end how many were dropped.
    #[derive(Clone, Default)]
    struct Dropped(Arc<OnceLock<Mediator>>, Arc<Mutex<Vec<f64>>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            if let Some(mediator) = self.0.get() {
                let dropped =
                    number(mediator, "mediator_stream_dropped_items", &[("reason", "backpressure")]);
                self.1.lock().unwrap().push(dropped);
            }
        }
    }
    let item = Dropped::default();
    let items = item.clone();
    let mediator = Mediator::builder()
        .stream_behaviour(Backpressure::new(Strategy::DropNewest, 10))
        .stream(move |_: Slow| {
            let items = items.clone();
            std::future::ready(Ok::<_, Error>(
                Pipe::from_iter(0..50).map(move |_| Ok::<_, BoxError>(items.clone())),
            ))
        })
        .build()
        .unwrap();
    assert!(item.0.set(mediator.clone()).is_ok());
    let mut stream = mediator.stream(Slow).await.unwrap();
    std::mem::forget(stream.next().await.unwrap().unwrap());
    let seen = item.1.lock().unwrap().clone();
    assert_eq!(seen.into_iter().filter(|dropped| *dropped == 40.0).count(), 40);
}

/// Panics at an item, between a buffer and the handler.
struct Fussy(u64);

impl StreamInterceptor for Fussy {
    fn item(&self, _: &Call<'_>, item: &mut dyn Any) {
        assert!(item.downcast_ref() != Some(&self.0), "not this one");
    }
}

#[tokio::test]
async fn a_panic_inside_a_buffer_is_the_last_item_and_not_a_good_end() {
    for strategy in [Strategy::Buffer, Strategy::DropNewest] {
        let mediator = Mediator::builder()
            .stream_behaviour(Backpressure::new(strategy, 10))
            .stream_behaviour(StreamIntercept::new(Fussy(2)))
            .stream(async |to: Count| Ok::<_, Error>(at_once(to.0)))
            .build()
            .unwrap();
        let mut stream = mediator.stream(Count(5)).await.unwrap();
        let mut items = Vec::new();
        while let Some(item) = stream.next().await {
            items.push(item);
        }
        let error = items.pop().unwrap().unwrap_err();
        assert_eq!((error.error().kind(), error.is_last()), (&ErrorKind::Panicked, true), "{strategy}");
        assert_eq!((error.position(), items.len()), (2, 2), "{strategy}");
        assert!(millstream_flow::chain(&error).ends_with("not this one"), "{error:?}");
    }
    let trigger = Backpressure::new(Strategy::Buffer, 10).trigger(|_| panic!("no trigger"));
    let (items, error) = all(mediator(trigger, |_, to| at_once(to)).stream(Count(5)).await.unwrap()).await;
    assert_eq!((items, error.unwrap().error().kind()), (vec![], &ErrorKind::Panicked));
}

#[tokio::test(start_paused = true)]
async fn items_that_failed_are_bounded_like_others() {
    for strategy in
        [Strategy::DropOldest, Strategy::DropNewest, Strategy::Sample(NonZeroU64::new(2).unwrap())]
    {
        let memory = Memory::new(1 << 20);
        let mediator = Mediator::builder()
            .stream_behaviour(Backpressure::new(strategy, 10).memory(memory.clone()))
            .stream_options::<Count>(StreamOptions::new().item_errors(ItemErrors::pass()))
            .stream(async |to: Count| {
                Ok::<_, Error>(Pipe::from_iter(0..to.0).map(|n| Err::<u64, _>(BoxError::from(n.to_string()))))
            })
            .build()
            .unwrap();
        let mut stream = mediator.stream(Count(10_000)).await.unwrap();
        assert!(stream.next().await.unwrap().is_err());
        sleep(SECOND).await;
        let waiting = memory.used() / size_of::<Result<u64, StreamError>>() as u64;
        assert!(waiting <= 10, "{strategy}: {waiting} wait");
        let (rest, _) = stream.collect().await.unwrap();
        let dropped = number(&mediator, "mediator_stream_dropped_items", &[("reason", "backpressure")]);
        assert_eq!(1 + rest.len() + dropped as usize, 10_000, "{strategy}");
        if strategy == Strategy::DropOldest {
            let newest = rest.last().unwrap().as_ref().unwrap_err();
            assert!(millstream_flow::chain(newest).ends_with("9999"), "{newest:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_behind_a_buffer_says_how_many_items_its_reader_got() {
    for strategy in [Strategy::DropOldest, Strategy::DropNewest, Strategy::Block] {
        let mediator = mediator(Backpressure::new(strategy, 10), |_, to| breaks_at(0, to));
        let mut stream = mediator.stream(Count(1000)).await.unwrap();
        let mut got = 0;
        let error = loop {
            match stream.next().await.unwrap() {
                Ok(_) => got += 1,
                Err(error) => break error,
            }
            sleep(SECOND).await;
        };
        assert_eq!((error.delivered(), error.position()), (got, 1000), "{strategy}");
        assert_eq!(got == 1000, strategy == Strategy::Block, "{strategy}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_its_time_is_no_reader_that_has_gone() {
    let pressure = Backpressure::new(Strategy::Block, 64).wait_max(10 * SECOND);
    let mediator = mediator(pressure, |_, to| at_once(to));
    let mut stream = mediator.stream(Count(200)).await.unwrap();
    for n in 0..200 {
        assert_eq!(stream.next().await.unwrap().unwrap(), n);
        sleep(2 * SECOND).await;
    }
    let mut stream = mediator.stream(Count(200)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    sleep(60 * SECOND).await;
    let (_, error) = all(stream).await;
    assert_eq!(error.unwrap().error().kind(), &ErrorKind::TimedOut { limit: 10 * SECOND });
}

#[tokio::test(start_paused = true)]
async fn a_reader_behind_a_stream_that_was_opened_again_has_not_gone_either() {
    let opened = AtomicU64::new(0);
    let again = StreamRetries::new(Retry::new(3).backoff(Backoff::fixed(SECOND)), Resume::Restart);
    let mediator = Mediator::builder()
        .stream_behaviour(again)
        .stream_behaviour(Backpressure::new(Strategy::Block, 64).wait_max(10 * SECOND))
        .stream(move |to: Count| {
            let breaks = opened.fetch_add(1, Ordering::SeqCst) == 0;
            let broken = Pipe::from_iter([Err::<u64, BoxError>("broken".into())]);
            std::future::ready(Ok::<_, Error>(if breaks { broken.boxed() } else { at_once(to.0) }))
        })
        .build()
        .unwrap();
    let mut stream = mediator.stream(Count(300)).await.unwrap();
    for n in 0..300 {
        assert_eq!(stream.next().await.unwrap().unwrap(), n);
        sleep(2 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_waits_as_long_as_it_may_after_the_last_item_that_was_taken() {
    struct Tells(Arc<Mutex<Option<Instant>>>);
    impl Drop for Tells {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = Some(Instant::now());
        }
    }
    let gone = Arc::new(Mutex::new(None));
    let tells = gone.clone();
    let mediator = mediator(Backpressure::new(Strategy::Block, 64).wait_max(10 * SECOND), move |_, to| {
        let tells = Tells(tells.clone());
        let items = stream::iter(0..to).map(move |n| {
            let _ = &tells;
            Ok(n)
        });
        Pipe::from_stream(items).boxed()
    });
    let mut stream = mediator.stream(Count(1000)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    sleep(SECOND / 10).await;
    stream.next().await.unwrap().unwrap();
    let last = Instant::now();
    sleep(60 * SECOND).await;
    assert_eq!(gone.lock().unwrap().unwrap() - last, 10 * SECOND);
    drop(stream);
}

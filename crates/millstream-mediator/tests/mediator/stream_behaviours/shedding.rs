//! What buffers drop, whom they tell, and how they are bounded.

use super::*;

/// A stream of states, of which each says all of itself.
#[derive(Clone, Copy)]
struct States {
    to: u64,
    keys: u64,
    bytes: usize,
}

#[derive(Debug, PartialEq)]
struct State {
    n: u64,
    key: u64,
    text: String,
}

impl StreamRequest for States {
    type Item = State;
    fn key(state: &State) -> Option<u64> {
        Some(state.key)
    }
    fn priority(state: &State) -> u8 {
        state.key as u8
    }
    fn heap_bytes(state: &State) -> usize {
        state.text.capacity()
    }
}

fn states(rule: Backpressure) -> (Mediator, Arc<AtomicU64>) {
    let made = Arc::new(AtomicU64::new(0));
    let count = made.clone();
    let mediator = Mediator::builder()
        .stream_behaviour(rule)
        .stream(move |States { to, keys, bytes }: States| {
            let count = count.clone();
            let state = move |n| {
                count.fetch_add(1, Ordering::SeqCst);
                Ok::<_, BoxError>(State { n, key: n % keys, text: "x".repeat(bytes) })
            };
            std::future::ready(Ok::<_, Error>(Pipe::from_iter(0..to).map(state)))
        })
        .build()
        .unwrap();
    (mediator, made)
}

/// What a reader gets that takes sixteen items in its turn, after the handler has had a long one.
async fn slowly(mediator: &Mediator, request: States) -> Vec<State> {
    let mut stream = mediator.stream(request).await.unwrap();
    let mut items = vec![stream.next().await.unwrap().unwrap()];
    sleep(SECOND).await;
    while let Some(item) = stream.next().await {
        items.push(item.unwrap());
        if items.len().is_multiple_of(16) {
            tokio::task::yield_now().await;
        }
    }
    items
}

fn numbers(items: &[State]) -> Vec<u64> {
    items.iter().map(|state| state.n).collect()
}

fn dropped(mediator: &Mediator) -> u64 {
    number(mediator, "mediator_stream_dropped_items", &[("reason", "backpressure")]) as u64
}

#[tokio::test(start_paused = true)]
async fn a_full_buffer_that_drops_the_lowest_keeps_what_matters_most_in_its_order() {
    let rule = || Backpressure::new(Strategy::DropLowest, 10);
    let (mediator, _) = states(rule());
    let items = slowly(&mediator, States { to: 30, keys: 3, bytes: 0 }).await;
    assert_eq!(numbers(&items), (0..10).map(|n| 3 * n + 2).collect::<Vec<_>>());
    assert_eq!(dropped(&mediator), 20);

    // Of equals those that came first stay; what is higher takes the place of the newest of the lowest.
    let (mediator, _) = states(rule());
    let items = slowly(&mediator, States { to: 12, keys: 11, bytes: 0 }).await;
    assert_eq!(numbers(&items), (1..11).collect::<Vec<_>>());

    let (mediator, _) = states(rule());
    let items = slowly(&mediator, States { to: 10_000, keys: 5, bytes: 0 }).await;
    assert!(items.is_sorted_by_key(|state| state.n), "in their order");
    assert_eq!(dropped(&mediator) as usize + items.len(), 10_000);
    let last = &items[items.len() - 10..];
    assert!(last.iter().all(|state| state.key == 4), "{last:?}");
}

#[tokio::test(start_paused = true)]
async fn the_latest_of_a_key_takes_the_place_of_the_one_that_waits() {
    let (mediator, _) = states(Backpressure::new(Strategy::Latest, 10).marks(0.1, 0.0));
    let items = slowly(&mediator, States { to: 30, keys: 3, bytes: 0 }).await;
    assert_eq!(numbers(&items), [27, 28, 29]);
    assert_eq!(dropped(&mediator), 27);

    // More keys than there are places.
    let items = slowly(&mediator, States { to: 40, keys: 20, bytes: 0 }).await;
    assert_eq!(numbers(&items), (30..40).collect::<Vec<_>>());

    let (mediator, _) = states(Backpressure::new(Strategy::Latest, 50).marks(0.2, 0.1));
    let items = slowly(&mediator, States { to: 20_000, keys: 7, bytes: 0 }).await;
    assert_eq!(dropped(&mediator) as usize + items.len(), 20_000);
    assert!(items.len() < 20_000, "it is never pressed");
    for key in 0..7 {
        let of_key: Vec<u64> = items.iter().filter(|state| state.key == key).map(|state| state.n).collect();
        assert!(of_key.is_sorted(), "an old state comes after a newer one: {of_key:?}");
        assert!(of_key.last().unwrap() + 7 >= 20_000, "the newest comes: {of_key:?}");
    }
    // Without pressure all pass.
    let (mediator, _) = states(Backpressure::new(Strategy::Latest, 1_000));
    assert_eq!(slowly(&mediator, States { to: 500, keys: 1, bytes: 0 }).await.len(), 500);
}

#[tokio::test(start_paused = true)]
async fn a_sample_by_chance_keeps_about_one_in_so_many_under_pressure_and_no_fixed_ones() {
    let one_in = NonZeroU64::new(10).unwrap();
    let rule = Backpressure::new(Strategy::SampleRandom(one_in), 100_000).marks(0.01, 0.005);
    let (mediator, _) = states(rule);
    let items = slowly(&mediator, States { to: 101_000, keys: 1, bytes: 0 }).await;
    assert_eq!(dropped(&mediator) as usize + items.len(), 101_000);
    let numbers = numbers(&items);
    assert!(numbers[..1_000].iter().copied().eq(0..1_000), "all before there is pressure");
    let kept = numbers.len() - 1_000;
    assert!((9_000..=11_100).contains(&kept), "{kept} of 100,000");
    let gaps: std::collections::BTreeSet<u64> =
        numbers[2_000..].windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.len() > 10, "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn a_buffer_is_bounded_in_bytes_with_what_items_point_to() {
    let item = 1_000 + size_of::<Result<State, StreamError>>();
    for strategy in [
        Strategy::Buffer,
        Strategy::Block,
        Strategy::Throttle,
        Strategy::DropOldest,
        Strategy::DropNewest,
        Strategy::DropLowest,
        Strategy::Latest,
    ] {
        let memory = Memory::new(1 << 30);
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = events.clone();
        let rule = Backpressure::new(strategy, 1_000).bytes_max(10 * item).memory(memory.clone());
        let (mediator, made) = states(rule.on_event(move |_, event| told.lock().unwrap().push(*event)));
        let mut stream = mediator.stream(States { to: 200, keys: 200, bytes: 1_000 }).await.unwrap();
        let first = stream.next().await.unwrap().unwrap();
        sleep(SECOND).await;
        let waits = matches!(strategy, Strategy::Buffer | Strategy::Block | Strategy::Throttle);
        let most = if waits { 11 } else { 10 };
        assert!(memory.used() <= (most * item) as u64, "{strategy}: {} bytes wait", memory.used());
        assert!(memory.used() >= (7 * item) as u64, "{strategy}: {} bytes wait", memory.used());
        let entered = events.lock().unwrap()[0];
        assert!(
            matches!(entered, PressureEvent::Entered(pressure) if pressure.bytes >= 8 * item && pressure.len < 800),
            "{strategy}: {entered:?}"
        );
        if waits {
            assert!(made.load(Ordering::SeqCst) <= 64 + 12, "{strategy}: {made:?} were made");
        }
        let rest = stream.collect().await.unwrap().0;
        let numbers: Vec<u64> = rest.iter().map(|state| state.as_ref().unwrap().n).collect();
        assert_eq!(waits, numbers.len() == 199, "{strategy}: {} came", numbers.len());
        if matches!(strategy, Strategy::DropOldest | Strategy::Latest) {
            assert_eq!((first.n, numbers), (190, (191..200).collect()), "{strategy}");
        }
        assert_eq!(memory.used(), 0, "{strategy}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_waits_too_long_for_room_ends_its_stream_after_what_waits() {
    for strategy in [Strategy::Buffer, Strategy::Block, Strategy::Throttle] {
        let alive = Arc::new(());
        let held = alive.clone();
        let rule = Backpressure::new(strategy, 100).wait_max(5 * SECOND);
        let mediator = mediator(rule, move |_, to| {
            let held = held.clone();
            Pipe::from_iter(0..to).inspect(move |_| _ = &held).map(Ok).boxed()
        });
        let mut stream = mediator.stream(Count(1_000)).await.unwrap();
        // A reader that is slow, but not so slow.
        let mut items = Vec::new();
        for _ in 0..200 {
            items.push(stream.next().await.unwrap().unwrap());
            sleep(SECOND / 50).await;
        }
        sleep(4 * SECOND).await;
        assert_eq!(Arc::strong_count(&alive), 3, "{strategy}: it waits");
        // Once more for the few items that the last of the reader's left room for.
        sleep(7 * SECOND).await;
        let after = Arc::strong_count(&alive);
        let (rest, error) = all(stream).await;
        items.extend(rest);
        assert_eq!(after, 2, "{strategy}: the flow is dropped, and not {error:?} after {}", items.len());
        assert_eq!(items, (0..items.len() as u64).collect::<Vec<_>>(), "{strategy}: all before it, in order");
        let error = error.unwrap();
        assert_eq!(error.error().kind(), &ErrorKind::TimedOut { limit: 5 * SECOND }, "{strategy}");
        assert_eq!(error.position(), items.len() as u64, "{strategy}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_is_told_of_one_in_so_many_of_the_items_that_are_dropped() {
    for (one_in, told_of) in [(1, 30), (10, 3)] {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = told.clone();
        let rule = Backpressure::new(Strategy::DropOldest, 10).on_dropped(one_in, move |about, item| {
            let state = item.downcast_ref::<State>().unwrap();
            tell.lock().unwrap().push((about.name.to_string(), state.n));
        });
        let (mediator, _) = states(rule);
        slowly(&mediator, States { to: 40, keys: 1, bytes: 0 }).await;
        let expected: Vec<_> = (0..told_of).map(|n| ("States".to_owned(), n * one_in)).collect();
        assert_eq!(*told.lock().unwrap(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn how_it_was_in_all_is_told_once_at_the_end_and_when_the_reader_goes() {
    for dropped in [false, true] {
        let ends = Arc::new(Mutex::new(Vec::new()));
        let told = ends.clone();
        let rule = Backpressure::new(Strategy::DropOldest, 10).on_event(move |_, event| {
            if let PressureEvent::Ended(pressure) = event {
                told.lock().unwrap().push(*pressure);
            }
        });
        let (mediator, _) = states(rule);
        let mut stream = mediator.stream(States { to: 40, keys: 1, bytes: 0 }).await.unwrap();
        stream.next().await.unwrap().unwrap();
        sleep(3 * SECOND).await;
        assert!(ends.lock().unwrap().is_empty());
        if !dropped {
            while stream.next().await.is_some() {}
        }
        drop(stream);
        let ends = ends.lock().unwrap();
        let [end] = ends[..] else { panic!("it is told once: {ends:?}") };
        assert_eq!((end.dropped, end.lasting, end.capacity), (30, Duration::ZERO, 10));
        let left = if dropped { 9 } else { 0 };
        assert_eq!((end.len, end.delivered, end.total), (left, 10 - left as u64, 3 * SECOND));
    }
}

//! What items carry comes through every operator.

use std::time::Duration;

use millstream_flow::test::{Script, virtual_time};
use millstream_flow::{
    Batch, Capacity, Carry, ContextKey, Count, Debounce, Flow, InContext, Lane, Overflow, Pipe, RateLimit,
    Retry, Window, Workers,
};

static NUMBER: ContextKey<u32> = ContextKey::new("number");
static OTHER: ContextKey<String> = ContextKey::new("other");

/// A hundred numbers that carry themselves, and a word if they are even.
fn carrying() -> Pipe<impl Flow<Item = u32, Token = InContext<()>> + Send + 'static> {
    Pipe::from_iter(0..100u32).with_context().set_context(&NUMBER, |n| *n)
}

/// Fails unless each item still carries the number it was made of.
async fn check<F>(pipe: Pipe<F>, count: usize)
where
    F: Flow<Item = u32, Token: Carry> + Send + 'static,
{
    let (pairs, _) =
        pipe.map_in_context(|n, context| (n, context.get(&NUMBER).copied())).collect().await.unwrap();
    assert_eq!(pairs.len(), count);
    assert!(pairs.iter().all(|(n, carried)| *carried == Some(*n)), "{pairs:?}");
}

#[test]
fn it_comes_through_every_operator() {
    virtual_time(async {
        check(carrying().filter(|n| n % 2 == 0).map(|n| n).skip(3).take(20), 20).await;
        check(carrying().map_async(7, async |n| n), 100).await;
        check(carrying().map_async_by_key(7, |n| n % 3, async |n| n), 100).await;
        check(carrying().parallel(Workers::unordered(2), |n| n), 100).await;
        check(carrying().buffer(3).boxed().buffer_with(Capacity::items(100), Overflow::DropOldest), 100)
            .await;
        check(carrying().conflate(200, |n| *n), 100).await;
        check(carrying().flat_map(|n| [n, n]), 200).await;
        check(carrying().rate_limit(RateLimit::new(10, Duration::from_secs(1))), 100).await;
        check(carrying().debounce(Debounce::both(Duration::from_secs(1))), 2).await;
        check(carrying().per_key(3, 8, |n| *n, |lane| lane.map(|n| n)), 100).await;
        let mut lanes = carrying().broadcast_to(&[Lane::capacity(8), Lane::capacity(8)]).into_iter();
        check(lanes.next().unwrap().merge(lanes.next().unwrap()), 200).await;
        let retry = Retry::attempts(2).unwrap();
        check(
            carrying()
                .try_map_async(
                    3,
                    retry,
                    async |n: &u32| if n.is_multiple_of(2) { Ok(*n) } else { Err("odd") },
                )
                .skip_errors(),
            50,
        )
        .await;
        let odd = carrying().try_map(|n| if n.is_multiple_of(2) { Ok(*n) } else { Err("odd") });
        check(odd.fallback(|failed| failed.input), 100).await;
    });
}

#[test]
fn a_batch_gives_each_item_its_own_back_also_a_batch_of_batches() {
    virtual_time(async {
        check(carrying().batch(Batch::count(7)).unbatch(), 100).await;
        check(
            carrying()
                .batch(Batch::count(7))
                .batch(Batch::count(3))
                .map(|batches| batches.concat())
                .unbatch(),
            100,
        )
        .await;
        // A tracked one too, whose tokens are taken apart the same way.
        let (pipe, outcomes) = Script::new().items(0..100u32).tracked();
        let pipe = pipe.with_context().set_context(&NUMBER, |n| *n);
        check(pipe.batch(Batch::count(7)).unbatch(), 100).await;
        assert_eq!(outcomes.list().len(), 100);
    });
}

#[test]
fn a_batch_shows_what_its_first_item_has_and_what_is_set_for_it_is_set_for_all() {
    virtual_time(async {
        let words = Pipe::from_iter(0..6u32).with_context().set_context(&NUMBER, |n| *n);
        let (seen, _) = words
            .batch(Batch::count(3))
            .set_context(&OTHER, |batch| format!("of {}", batch.len()))
            .map_in_context(|batch, context| {
                (context.get(&NUMBER).copied(), context.get(&OTHER).cloned(), batch)
            })
            .map(|(first, other, batch)| {
                assert_eq!((first, other.as_deref()), (Some(batch[0]), Some("of 3")));
                batch
            })
            .unbatch()
            .map_in_context(|n, context| {
                (n, *context.get(&NUMBER).unwrap(), context.get(&OTHER).unwrap().clone())
            })
            .collect()
            .await
            .unwrap();
        assert!(seen.iter().all(|(n, own, other)| n == own && other == "of 3"), "{seen:?}");
        assert_eq!(seen.len(), 6);
    });
}

#[test]
fn a_window_shows_what_its_first_item_has() {
    virtual_time(async {
        let (seen, _) = carrying()
            .window(Window::sliding_count(4, 2), |_| (), Count)
            .map_in_context(|window, context| (window.value, context.get(&NUMBER).copied()))
            .take(3)
            .collect()
            .await
            .unwrap();
        assert_eq!(seen, [(2, Some(0)), (4, Some(0)), (4, Some(2))]);
    });
}

#[test]
fn a_value_hides_an_older_one_of_its_key_and_keys_of_other_types_do_not_meet() {
    static ALSO_NUMBER: ContextKey<String> = ContextKey::new("number");
    virtual_time(async {
        let (seen, _) = Pipe::from_iter([1u32])
            .with_context()
            .map_in_context(|n, context| (n, context.get(&NUMBER).is_none()))
            .map(|(n, none)| {
                assert!(none);
                n
            })
            .set_context(&NUMBER, |n| *n)
            .set_context(&ALSO_NUMBER, |n| format!("<{n}>"))
            .set_context(&NUMBER, |n| n + 1)
            .map_in_context(|_, context| (context.get(&NUMBER).copied(), context.get(&ALSO_NUMBER).cloned()))
            .collect()
            .await
            .unwrap();
        assert_eq!(seen, [(Some(2), Some("<1>".to_owned()))]);
        // And without it the flow is a stream again.
        use futures_util::StreamExt;
        let mut stream = carrying().without_context();
        assert_eq!(stream.next().await, Some(0));
    });
}

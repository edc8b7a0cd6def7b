//! What was looked up before is not looked up again: bounds, ages, single flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millstream_flow::{Concurrency, Memo, Panicked, Pipe};
use tokio::time::{sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);

async fn echo(key: &u32) -> Result<u32, ()> {
    Ok(*key)
}

#[tokio::test(start_paused = true)]
async fn many_who_ask_at_once_look_up_once() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let look_up = async move |key: &u32| {
        counter.fetch_add(1, Ordering::Relaxed);
        sleep(SECOND).await;
        Ok::<_, std::io::Error>(key * 10)
    };
    let (pairs, report) = Pipe::from_iter(0..300u32)
        .memoize(Concurrency::ordered(100), Memo::new(10), |n| n % 3, look_up)
        .reject()
        .collect()
        .await
        .unwrap();
    assert_eq!(pairs[..4], [(0, 0), (1, 10), (2, 20), (3, 0)]);
    assert_eq!(calls.load(Ordering::Relaxed), 3);
    assert_eq!(report.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn what_was_looked_up_comes_in_order_or_as_it_is_there_as_declared() {
    async fn passed(concurrency: Concurrency) -> Vec<u32> {
        let look_up = async |key: &u32| {
            sleep(SECOND / *key).await;
            Ok::<_, std::io::Error>(())
        };
        let pipe = Pipe::from_iter([1, 2, 3]).memoize(concurrency, Memo::new(10), |n| *n, look_up);
        pipe.reject().map(|(key, ())| key).collect().await.unwrap().0
    }
    assert_eq!(passed(Concurrency::ordered(3)).await, [1, 2, 3]);
    assert_eq!(passed(Concurrency::unordered(3)).await, [3, 2, 1]);
}

#[tokio::test(start_paused = true)]
async fn the_key_that_came_first_is_forgotten_first_when_there_is_no_room() {
    let memo = Memo::new(2);
    for key in [1, 2, 1, 3, 2, 1] {
        memo.get(key, echo).await.unwrap();
    }
    // 3 took the place of 1, and 1 that of 2.
    assert_eq!((memo.misses(), memo.hits(), memo.len()), (4, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_value_is_looked_up_again_when_it_is_too_old_or_was_forgotten_by_hand() {
    let memo = Memo::new(10).age(10 * SECOND);
    for _ in 0..5 {
        memo.get(1, echo).await.unwrap();
        sleep(4 * SECOND).await;
    }
    assert_eq!(memo.misses(), 2, "at 0, 4, 8, 12 and 16 seconds");
    let memo = Memo::new(10);
    let calls = AtomicUsize::new(0);
    let counted = async |key: &u32| {
        calls.fetch_add(1, Ordering::Relaxed);
        echo(key).await
    };
    memo.get(1, counted).await.unwrap();
    memo.forget(&1);
    memo.get(1, counted).await.unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn values_take_no_more_bytes_than_they_may_but_for_a_single_one() {
    let memo = Memo::new(100).bytes(10, |n: &u32| *n as usize);
    for key in [4, 5, 6, 50, 1] {
        memo.get(key, echo).await.unwrap();
        assert!(memo.len() <= 2);
    }
    assert_eq!(memo.len(), 1, "50 went when there was another");
    memo.get(1, echo).await.unwrap();
    assert_eq!(memo.hits(), 1);
    let bound = |memo: Memo<u32, u32>| {
        let pipe = Pipe::from_iter(0..3u32).memoize(1, memo, |n| *n, echo_io);
        pipe.monitor().report().memory_bound_bytes
    };
    assert_eq!(bound(Memo::new(5).bytes(1000, |_| 1)), bound(Memo::new(5)) + 1000);
}

async fn echo_io(key: &u32) -> Result<u32, std::io::Error> {
    Ok(*key)
}

#[tokio::test(start_paused = true)]
async fn errors_and_panics_are_each_items_own_and_not_remembered() {
    let calls = AtomicUsize::new(0);
    let moody = async move |_: &()| match calls.fetch_add(1, Ordering::Relaxed) {
        0 => Err("refused"),
        1 => panic!("a test panics"),
        _ => Ok(7),
    };
    let (results, _) = Pipe::from_iter(0..4)
        .memoize(1, Memo::new(1), |_| (), moody)
        .named("look up")
        .collect()
        .await
        .unwrap();
    let failed = results[0].as_ref().unwrap_err();
    assert_eq!(
        (failed.input, &*failed.stage, failed.error.to_string()),
        (0, "look up", "refused".to_owned())
    );
    assert!(results[1].as_ref().unwrap_err().error.is::<Panicked>());
    assert_eq!(
        results[2..].iter().map(|result| result.as_ref().ok().copied()).collect::<Vec<_>>(),
        [Some((2, 7)), Some((3, 7))]
    );
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_one_that_is_dropped_looks_up_for_himself() {
    let memo = Memo::new(1);
    let slow = memo.get(1, async |_: &u32| {
        sleep(3600 * SECOND).await;
        Ok::<u32, ()>(0)
    });
    let waits = async {
        sleep(SECOND).await;
        memo.get(1, echo).await
    };
    let (dropped, value) = tokio::join!(timeout(2 * SECOND, slow), waits);
    assert!(dropped.is_err());
    assert_eq!(value, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_value_is_weighed_once_and_again_when_it_was_forgotten_or_its_limit_was_said_later() {
    let weighed = Arc::new(AtomicUsize::new(0));
    let count = weighed.clone();
    let size = move |n: &u32| {
        count.fetch_add(1, Ordering::Relaxed);
        *n as usize
    };
    let memo = Memo::new(100);
    memo.get(1, echo).await.unwrap();
    let memo = memo.bytes(10, size);
    for key in [1, 1, 4, 4, 1] {
        memo.get(key, echo).await.unwrap();
    }
    assert_eq!(weighed.load(Ordering::Relaxed), 2);
    memo.forget(&4);
    memo.get(4, echo).await.unwrap();
    assert_eq!((weighed.load(Ordering::Relaxed), memo.len()), (3, 2));
    memo.get(6, echo).await.unwrap();
    assert_eq!(memo.len(), 2, "1, which came first, has gone");
}

#[tokio::test(start_paused = true)]
async fn an_age_that_is_said_later_forgets_what_was_there() {
    let memo = Memo::new(10);
    memo.get(1, echo).await.unwrap();
    let memo = memo.age(10 * SECOND);
    memo.get(1, echo).await.unwrap();
    memo.get(1, echo).await.unwrap();
    assert_eq!((memo.misses(), memo.hits()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_value_is_as_old_as_since_it_was_found_and_none_is_looked_up_twice_at_once() {
    let memo = Memo::new(1).age(10 * SECOND);
    let (at_once, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let slow = async |key: &u32| {
        most.fetch_max(at_once.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        sleep(15 * SECOND).await;
        at_once.fetch_sub(1, Ordering::Relaxed);
        echo(key).await
    };
    let late = async {
        sleep(11 * SECOND).await;
        // Another key, which takes the only place, and its like, which waits.
        memo.get(2, echo).await.unwrap();
        memo.get(1, slow).await
    };
    assert_eq!(tokio::join!(memo.get(1, slow), late), (Ok(1), Ok(1)));
    assert_eq!((most.load(Ordering::Relaxed), memo.misses(), memo.hits()), (1, 2, 1));
    sleep(9 * SECOND).await;
    memo.get(1, slow).await.unwrap();
    assert_eq!(memo.hits(), 2, "it was found nine seconds ago");
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_no_hit_and_takes_nobodys_place() {
    let memo = Memo::new(1);
    memo.get(7, echo).await.unwrap();
    for key in 0..10 {
        memo.get(key % 3, async |_| Err::<u32, _>(())).await.unwrap_err();
    }
    assert_eq!((memo.misses(), memo.hits(), memo.len()), (11, 0, 1));
    memo.get(7, echo).await.unwrap();
    assert_eq!(memo.hits(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_while_it_is_looked_up_is_given_and_not_remembered() {
    let memo = Memo::new(10);
    let slow = async |key: &u32| {
        sleep(SECOND).await;
        echo(key).await
    };
    let forgetting = async {
        sleep(SECOND / 2).await;
        memo.forget(&1);
    };
    assert_eq!(tokio::join!(memo.get(1, slow), forgetting).0, Ok(1));
    assert!(memo.is_empty());
    // What is forgotten and found again is as old as since then.
    let memo = Memo::new(10).age(10 * SECOND);
    for key in [1, 2] {
        memo.get(key, echo).await.unwrap();
    }
    sleep(9 * SECOND).await;
    memo.forget(&1);
    memo.get(1, echo).await.unwrap();
    sleep(9 * SECOND).await;
    memo.get(1, echo).await.unwrap();
    assert_eq!((memo.misses(), memo.hits(), memo.len()), (3, 1, 1));
    memo.get(2, echo).await.unwrap();
    assert_eq!(memo.misses(), 4, "it is too old");
}

#[tokio::test(start_paused = true)]
async fn a_look_up_that_is_dropped_leaves_nothing() {
    let memo = Memo::<u32, u32>::new(10);
    let never = async |_: &u32| std::future::pending::<Result<u32, ()>>().await;
    timeout(SECOND, memo.get(1, never)).await.unwrap_err();
    assert!(memo.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_by_hand_takes_nobodys_place() {
    let memo = Memo::new(3);
    for key in 0..3 {
        memo.get(key, echo).await.unwrap();
    }
    for _ in 0..20 {
        memo.forget(&2);
        memo.get(2, echo).await.unwrap();
    }
    let misses = memo.misses();
    for key in 0..3 {
        memo.get(key, echo).await.unwrap();
    }
    assert_eq!((memo.misses() - misses, memo.len()), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_goes_with_the_next_look_and_what_is_given_up_was_looked_up() {
    let value = Arc::new(());
    let memo = Memo::<u32, Arc<()>>::new(10).age(Duration::from_secs(1));
    let given = value.clone();
    for key in 0..5 {
        memo.get(key, async |_: &u32| Ok::<_, ()>(given.clone())).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    let never = memo.get(0, async |_: &u32| std::future::pending().await);
    let never: Result<Result<_, ()>, _> = timeout(Duration::from_secs(1), async {
        let (got, len) = tokio::join!(never, async { memo.len() });
        assert_eq!(len, 1, "the one that is looked up");
        got
    })
    .await;
    assert!(never.is_err());
    drop(given);
    assert_eq!((Arc::strong_count(&value), memo.len(), memo.misses()), (1, 0, 6));
}

#[tokio::test]
async fn bytes_that_are_limited_late_leave_the_newest_value_though_others_are_hidden() {
    let memo = Memo::<u32, u64>::new(10);
    for key in 0..3 {
        memo.get(key, async |key: &u32| Ok::<_, ()>(u64::from(*key))).await.unwrap();
    }
    memo.forget(&0);
    memo.forget(&2);
    let memo = memo.bytes(10, |_| 100);
    for _ in 0..2 {
        let found = memo.get(1, async |_: &u32| Err("it is there")).await;
        assert_eq!(found, Ok(1));
    }
}

/// A value that asks its memo when it goes.
struct Asks(Memo<u32, Arc<Asks>>, Arc<AtomicUsize>);

impl Drop for Asks {
    fn drop(&mut self) {
        self.1.fetch_add(self.0.len() + 1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_forgotten_may_ask_the_memo_when_it_goes() {
    let gone = Arc::new(AtomicUsize::new(0));
    let memo = Memo::<u32, Arc<Asks>>::new(3).age(SECOND);
    let look_up = async |_: &u32| Ok::<_, ()>(Arc::new(Asks(memo.clone(), gone.clone())));
    for key in 0..5 {
        drop(memo.get(key, look_up).await);
    }
    assert_eq!(gone.load(Ordering::Relaxed), 2 * 4, "two had no place beside three");
    memo.forget(&4);
    assert_eq!(gone.load(Ordering::Relaxed), 8 + 3);
    sleep(SECOND).await;
    // The look that finds them old is the first to know.
    assert!(memo.get(9, async |_: &u32| Err::<Arc<Asks>, ()>(())).await.is_err());
    assert_eq!(memo.len(), 0);
    assert!(gone.load(Ordering::Relaxed) > 11);
}

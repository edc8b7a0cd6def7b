//! Bulkheads, rate limits, timeouts, hedges, fallbacks, and one of them for each key.

use std::cell::Cell;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use millstream_resilience::{
    BoxError, BreakerSettings, BreakerState, Bucket, Budget, Bulkhead, CircuitBreaker, Fallback, Full, Hedge,
    Idle, Keyed, Rate, RateLimiter, TimedOut, Timeout,
};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

fn full(result: Result<(), BoxError>) -> Full {
    *result.unwrap_err().downcast::<Full>().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_bulkhead_runs_so_many_queues_so_many_and_refuses_the_rest() {
    let bulkhead = Bulkhead::new(2).queue(3);
    let (most, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let call = || {
        let (bulkhead, most) = (bulkhead.clone(), most.clone());
        tokio::spawn(async move {
            let running = || bulkhead.running();
            bulkhead
                .call(async || {
                    most.fetch_max(running(), Ordering::Relaxed);
                    sleep(SECOND).await;
                    Ok::<_, BoxError>(began.elapsed().as_secs())
                })
                .await
        })
    };
    let calls: Vec<_> = (0..6).map(|_| call()).collect();
    sleep(MS).await;
    assert_eq!((bulkhead.running(), bulkhead.waiting(), bulkhead.rejected()), (2, 3, 1));
    let mut ends = Vec::new();
    for call in calls {
        ends.push(call.await.unwrap().map_err(|error| error.to_string()));
    }
    assert_eq!(ends[..5], [Ok(1), Ok(1), Ok(2), Ok(2), Ok(3)], "in the order in which they came");
    assert_eq!(ends[5], Err("2 calls are running and 3 wait, as many as may".into()));
    assert_eq!((most.load(Ordering::Relaxed), bulkhead.running(), bulkhead.waiting()), (2, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_bulkhead_ends_at_its_limit_and_leaves_its_place() {
    let bulkhead = Bulkhead::new(1).queue(1).wait_max(SECOND);
    let held = bulkhead.acquire().await.unwrap();
    let began = Instant::now();
    let error = full(bulkhead.call(async || Ok(())).await);
    assert_eq!((began.elapsed(), error.waited), (SECOND, Some(SECOND)));
    assert_eq!(error.to_string(), "none of 1 running calls ended within 1s");
    // Dropped while it waits, and while it runs.
    assert!(timeout(SECOND / 2, bulkhead.acquire()).await.is_err());
    assert_eq!(bulkhead.waiting(), 0);
    drop(held);
    assert!(timeout(SECOND / 2, bulkhead.call(pending::<Result<(), BoxError>>)).await.is_err());
    assert_eq!(bulkhead.running(), 0);
    assert!(bulkhead.is_idle());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn places_are_neither_lost_nor_doubled_by_those_that_come_and_give_up_on_several_threads() {
    let bulkhead = Bulkhead::new(2).queue(5);
    let (inside, entered, gave_up) = <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let caller = |seed| {
        let (bulkhead, inside) = (bulkhead.clone(), inside.clone());
        let (entered, gave_up) = (entered.clone(), gave_up.clone());
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            for _ in 0..10_000 {
                let patience = random.usize(0..6);
                tokio::select! {
                    biased;
                    place = bulkhead.enter() => {
                        let Ok(_place) = place else { continue };
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < 2, "no more than may");
                        entered.fetch_add(1, Ordering::Relaxed);
                        for _ in 0..random.usize(0..3) {
                            yield_now().await;
                        }
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                    () = async { for _ in 0..patience { yield_now().await } } => {
                        gave_up.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        })
    };
    for caller in (0..8).map(caller).collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    let (entered, gave_up) = (entered.load(Ordering::Relaxed), gave_up.load(Ordering::Relaxed));
    assert!(entered > 1000 && gave_up > 1000 && bulkhead.rejected() > 10, "{entered} {gave_up} {bulkhead:?}");
    assert_eq!((bulkhead.running(), bulkhead.waiting()), (0, 0));
    let (one, _other) = (bulkhead.try_acquire().unwrap(), bulkhead.try_acquire().unwrap());
    let mut third = pin!(bulkhead.acquire());
    assert!(poll_once(third.as_mut()).await.is_none(), "no place was left over in the line");
    drop(one);
    assert!(poll_once(third.as_mut()).await.is_some_and(|place| place.is_ok()));
}

#[tokio::test]
async fn a_place_handed_to_one_that_gives_up_goes_to_the_next_and_nobody_passes_those_that_wait() {
    let bulkhead = Bulkhead::new(1).queue(3);
    let held = bulkhead.acquire().await.unwrap();
    let (mut second, mut third) = (Box::pin(bulkhead.acquire()), pin!(bulkhead.acquire()));
    assert!(poll_once(second.as_mut()).await.is_none());
    assert!(poll_once(third.as_mut()).await.is_none());
    drop(held);
    assert!(bulkhead.try_acquire().is_none(), "it is the second's, who has not taken it yet");
    assert_eq!((bulkhead.running(), bulkhead.waiting()), (1, 1));
    drop(second);
    let third = poll_once(third.as_mut()).await.expect("it is the third's").unwrap();
    assert_eq!((bulkhead.running(), bulkhead.waiting()), (1, 0));
    drop(third);
    assert!(bulkhead.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_lets_a_burst_through_and_then_one_at_a_time() {
    let limiter = RateLimiter::new(Rate::new(10, SECOND).burst(3));
    let began = Instant::now();
    let mut ends = Vec::new();
    for _ in 0..6 {
        let call = limiter.call(async || Ok::<_, BoxError>(began.elapsed().as_millis()));
        ends.push(call.await.unwrap());
    }
    assert_eq!(ends, [0, 0, 0, 100, 200, 300]);
    sleep(3600 * SECOND).await;
    assert!((0..3).all(|_| limiter.try_acquire(1).is_ok()), "the bucket is full");
    assert_eq!(limiter.try_acquire(1).unwrap_err().retry_after, 100 * MS);
    assert_eq!(limiter.rejected(), 1);
}

#[tokio::test(start_paused = true)]
async fn more_than_a_bucket_holds_is_paid_for_afterwards() {
    let limiter = RateLimiter::new(Rate::new(10, SECOND).burst(5));
    limiter.acquire(20).await.unwrap();
    let began = Instant::now();
    limiter.acquire(1).await.unwrap();
    assert_eq!(began.elapsed().as_millis(), 1600, "fifteen are owed");
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_rate_keep_their_order_and_leave_it_when_dropped() {
    let limiter = RateLimiter::new(Rate::new(1, SECOND).burst(4));
    limiter.acquire(4).await.unwrap();
    let began = Instant::now();
    let wait = |tokens| {
        let limiter = limiter.clone();
        tokio::spawn(async move {
            limiter.acquire(tokens).await.unwrap();
            began.elapsed().as_secs()
        })
    };
    let (first, dropped, last) = (wait(3), wait(100), wait(1));
    sleep(MS).await;
    assert!(limiter.try_acquire(1).unwrap_err().retry_after > 100 * SECOND, "it does not overtake");
    dropped.abort();
    assert_eq!((first.await.unwrap(), last.await.unwrap()), (3, 4));
    assert!(!limiter.is_idle());
    sleep(4 * SECOND).await;
    assert!(limiter.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_rate_that_would_be_too_long_is_refused_at_once() {
    let limiter = RateLimiter::new(Rate::new(1, SECOND)).wait_max(2 * SECOND);
    limiter.acquire(1).await.unwrap();
    let began = Instant::now();
    let waits: Vec<_> = (0..2)
        .map(|_| {
            let limiter = limiter.clone();
            tokio::spawn(async move { limiter.acquire(1).await })
        })
        .collect();
    yield_now().await;
    let refused = limiter.acquire(1).await.unwrap_err();
    assert_eq!((began.elapsed(), refused.retry_after), (Duration::ZERO, 3 * SECOND));
    for wait in waits {
        wait.await.unwrap().unwrap();
    }
    let never = RateLimiter::new(Rate::new(1, SECOND)).wait_max(Duration::ZERO);
    assert!(never.acquire(1).await.is_ok() && never.acquire(1).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_bucket_never_gives_more_than_its_rate_and_its_burst() {
    let mut dice = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let (count, burst) = (dice.u64(1..50), dice.u64(1..20));
        let mut bucket = Bucket::new(Rate::new(count, SECOND).burst(burst));
        let mut given = vec![(Instant::now(), 0)];
        for _ in 0..200 {
            sleep(Duration::from_micros(dice.u64(..300_000))).await;
            match bucket.tokens(1) {
                Ok(tokens) => {
                    let tokens = dice.u64(1..=tokens);
                    bucket.take(tokens);
                    given.push((Instant::now(), given.last().unwrap().1 + tokens));
                }
                Err(until) => assert!(until > Instant::now()),
            }
        }
        // In any stretch of time: the burst, and what the rate gives in it.
        for (n, (from, before)) in given.iter().enumerate() {
            for (to, after) in &given[n..] {
                let most = burst as f64 + (*to - *from).as_secs_f64() * count as f64 + 1e-6;
                assert!((after - before) as f64 <= most, "{} > {most}", after - before);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_drops_what_takes_longer() {
    let timeout = Timeout::new(SECOND);
    let dropped = Cell::new(false);
    struct Says<'a>(&'a Cell<bool>);
    impl Drop for Says<'_> {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    let began = Instant::now();
    let hangs = timeout.call(async || {
        let _says = Says(&dropped);
        pending::<Result<(), BoxError>>().await
    });
    let error = hangs.await.unwrap_err();
    assert_eq!((began.elapsed(), dropped.get()), (SECOND, true));
    assert_eq!((error.to_string(), error.is::<TimedOut>()), ("it took longer than 1s".into(), true));
    let just = timeout.call(async || {
        sleep(SECOND - MS).await;
        Ok::<_, BoxError>(17)
    });
    assert_eq!(just.await.unwrap(), 17);
    assert_eq!(timeout.limit(), SECOND);
    assert!(std::panic::catch_unwind(|| Timeout::new(Duration::ZERO)).is_err());
}

/// Calls that take these times, in turn, and give their number, or fail if the time ends with a millisecond.
struct Calls {
    times: Vec<Duration>,
    begun: Cell<usize>,
    ended: Cell<usize>,
}

impl Calls {
    fn new(times: &[Duration]) -> Self {
        Calls { times: times.to_vec(), begun: Cell::new(0), ended: Cell::new(0) }
    }

    async fn call(&self) -> Result<usize, String> {
        let number = self.begun.replace(self.begun.get() + 1);
        sleep(self.times[number]).await;
        self.ended.set(self.ended.get() + 1);
        if self.times[number].subsec_millis() == 1 { Err(format!("{number} failed")) } else { Ok(number) }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_calls_again_after_its_delay_and_drops_who_is_late() {
    let hedge = Hedge::after(SECOND);
    let fast = Calls::new(&[SECOND / 2]);
    assert_eq!((hedge.call(|| fast.call()).await, fast.begun.get()), (Ok(0), 1));
    let slow = Calls::new(&[10 * SECOND, SECOND]);
    let began = Instant::now();
    assert_eq!((hedge.call(|| slow.call()).await, began.elapsed()), (Ok(1), 2 * SECOND));
    sleep(100 * SECOND).await;
    assert_eq!((slow.begun.get(), slow.ended.get()), (2, 1), "the first was dropped");
    assert_eq!((hedge.made(), hedge.won()), (1, 1));
    let first_wins = Calls::new(&[2 * SECOND, 9 * SECOND]);
    assert_eq!((hedge.call(|| first_wins.call()).await, hedge.made(), hedge.won()), (Ok(0), 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_hedge_fails_with_the_last_failure_and_only_when_all_have_failed() {
    let hedge = Hedge::after(SECOND).extra(2);
    let early = Calls::new(&[MS]);
    assert_eq!((hedge.call(|| early.call()).await, early.begun.get()), (Err("0 failed".into()), 1));
    let one_good = Calls::new(&[3 * SECOND + MS, SECOND + MS, 8 * SECOND]);
    let began = Instant::now();
    assert_eq!(hedge.call(|| one_good.call()).await, Ok(2));
    assert_eq!(began.elapsed(), 10 * SECOND);
    let all_bad = Calls::new(&[5 * SECOND + MS, SECOND + MS, 2 * SECOND + MS]);
    assert_eq!(hedge.call(|| all_bad.call()).await, Err("0 failed".into()));
    assert_eq!((hedge.made(), hedge.won()), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn hedges_are_paid_from_a_budget() {
    let hedge = Hedge::after(SECOND).budget(Budget::new(1, 0.5));
    let begun = async |times: &[Duration]| {
        let calls = Calls::new(times);
        hedge.call(|| calls.call()).await.unwrap();
        calls.begun.get()
    };
    let slow = [2 * SECOND, 9 * SECOND];
    assert_eq!(begun(&slow).await, 2);
    assert_eq!(begun(&slow).await, 1, "half a success has been earned");
    assert_eq!(begun(&slow).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_can_follow_what_calls_take() {
    let hedge = Hedge::at_percentile(0.9, 5 * SECOND);
    assert_eq!(hedge.delay(), 5 * SECOND);
    for n in 0..100 {
        let time = if n % 20 == 0 { SECOND } else { 10 * MS };
        let called = hedge.call(async || {
            sleep(time).await;
            Ok::<_, BoxError>(())
        });
        called.await.unwrap();
    }
    let delay = hedge.delay();
    assert!(10 * MS <= delay && delay <= 12 * MS, "{delay:?}");
    assert!(hedge.made() > 0);
    assert!(std::panic::catch_unwind(|| Hedge::at_percentile(1.0, SECOND)).is_err());
    assert!(std::panic::catch_unwind(|| Hedge::after(SECOND).extra(0)).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_fallback_answers_for_the_errors_it_is_for() {
    let fallback = Fallback::new(async |error: u32| if error < 10 { Ok(error) } else { Err(error + 1) })
        .when(|error| *error != 3);
    assert_eq!(fallback.call(async || Ok(17)).await, Ok(17));
    assert_eq!(fallback.used(), 0);
    assert_eq!(fallback.call(async || Err(3)).await, Err(3));
    assert_eq!(fallback.call(async || Err(4)).await, Ok(4));
    assert_eq!(fallback.clone().call(async || Err(40)).await, Err(41));
    assert_eq!(fallback.used(), 2);
}

#[tokio::test(start_paused = true)]
async fn each_key_has_its_own_and_only_so_many_have_one() {
    let settings = || BreakerSettings::default().calls_min(1);
    let breakers = Keyed::new(3, move |key: &str| CircuitBreaker::new(settings().name(key)));
    assert!(breakers.is_empty());
    breakers.of("a").trip();
    assert_eq!(breakers.of("a").snapshot().name, "a".into());
    assert_eq!(
        (breakers.of("a").state(), breakers.of("b").state()),
        (BreakerState::Open, BreakerState::Closed)
    );
    for n in 0..1000 {
        breakers.of(&n.to_string());
        assert!(breakers.len() <= 3);
    }
    assert_eq!(breakers.of("a").state(), BreakerState::Open, "what is in use is not forgotten");
    assert_eq!(breakers.list().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_new_key_takes_the_place_of_one_that_is_not_asked_for() {
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let bulkheads = Keyed::new(1000, move |_: &u32| {
        count.fetch_add(1, Ordering::Relaxed);
        Bulkhead::new(1)
    });
    let often = || (0..10).for_each(|key| drop(bulkheads.of(&key)));
    often();
    for key in 10..5000 {
        often();
        let own = bulkheads.of(&key);
        let _place = own.try_acquire().expect("it is its own");
    }
    assert_eq!((bulkheads.len(), made.load(Ordering::Relaxed)), (1000, 5000), "none was made twice");
    // Also when all were asked for lately.
    (0..5000).for_each(|key| drop(bulkheads.of(&key)));
    let (one, other) = (bulkheads.of(&9000), bulkheads.of(&9001));
    assert!(one.try_acquire().is_some_and(|_place| other.try_acquire().is_some()), "each has its own");
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_value_cannot_be_made_harms_no_other() {
    let bulkheads =
        Keyed::new(10, |key: &u32| if *key == 7 { panic!("on purpose") } else { Bulkhead::new(1) });
    let seventh = std::panic::AssertUnwindSafe(|| bulkheads.of(&7));
    assert!(std::panic::catch_unwind(seventh).is_err());
    assert!(bulkheads.of(&8).try_acquire().is_some());
    assert_eq!(bulkheads.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn keys_without_a_place_share_one() {
    let bulkheads = Keyed::new(2, |_: &u32| Bulkhead::new(1));
    let held: Vec<_> = [1, 2].iter().map(|key| bulkheads.of(key).try_acquire().unwrap()).collect();
    let shared = bulkheads.of(&3).try_acquire().unwrap();
    assert!(bulkheads.of(&4).try_acquire().is_none(), "it has the one of 3");
    assert!(bulkheads.of(&1).try_acquire().is_none(), "its own is still in use");
    drop((held, shared));
    assert!(bulkheads.of(&4).try_acquire().is_some());
    assert_eq!(bulkheads.len(), 2);
}

#[test]
fn limits_that_cannot_work_are_refused() {
    let refused = |build: fn()| std::panic::catch_unwind(build).is_err();
    assert!(refused(|| _ = Bulkhead::new(0)));
    assert!(refused(|| _ = Rate::new(0, SECOND)));
    assert!(refused(|| _ = Rate::new(1, Duration::ZERO)));
    assert!(refused(|| _ = Rate::new(1, SECOND).burst(0)));
    assert!(refused(|| _ = Keyed::new(0, |_: &u32| Bulkhead::new(1))));
}

#[tokio::test(start_paused = true)]
async fn a_rate_of_many_a_millisecond_is_kept_and_saves_up_no_more_than_its_burst() {
    let limiter = RateLimiter::new(Rate::new(10_000, SECOND));
    let began = Instant::now();
    for _ in 0..20_000 {
        limiter.acquire(1).await.unwrap();
    }
    assert!((1990..=2010).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    // Whoever does not wait has nothing to make up for.
    while limiter.try_acquire(1).is_ok() {}
    sleep(SECOND).await;
    assert!(limiter.try_acquire(1).is_ok());
    assert!(limiter.try_acquire(1).is_err(), "one at a time");
    let mut bucket = Bucket::new(Rate::new(10_000, SECOND));
    bucket.take(1);
    bucket.wait();
    sleep(10 * MS).await;
    assert!((20..=21).contains(&bucket.tokens(1).unwrap()), "what comes in two milliseconds, and the burst");
}

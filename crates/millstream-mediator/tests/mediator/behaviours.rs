use std::any::Any;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use millstream_flow::{BoxError, Memo};
use millstream_mediator::metrics::Value;
use millstream_mediator::{
    Admission, Authorize, Breaker, Bulkhead, Cache, Call, Check, Context, Dedupe, Error, ErrorKind, Fallback,
    Hedging, InterceptAll, Interceptor, Kind, Mediator, Memory, RateLimit, Retries, Scope, Timeout, Timing,
};
use millstream_resilience::{Backoff, BreakerSettings, CircuitBreaker, Class, Classified, Hedge, Retry};
use tokio::time::{Instant, sleep};

use crate::{Ask, Do};

const SECOND: Duration = Duration::from_secs(1);

/// A handler that fails so many times, each after so long.
fn failing(
    times: u32,
    seconds: u64,
) -> (Arc<AtomicU32>, impl Fn(Ask) -> futures_util::future::BoxFuture<'static, Result<u64, BoxError>> + Clone)
{
    let calls = Arc::new(AtomicU32::new(0));
    let count = calls.clone();
    (calls, move |ask: Ask| {
        let count = count.clone();
        Box::pin(async move {
            if seconds > 0 {
                sleep(Duration::from_secs(seconds)).await;
            }
            if count.fetch_add(1, Ordering::SeqCst) < times { Err("busy".into()) } else { Ok(ask.0) }
        })
    })
}

fn retry(attempts: u32) -> Retries {
    Retries::new(Retry::new(attempts).backoff(Backoff::fixed(SECOND)))
}

fn settings() -> BreakerSettings {
    BreakerSettings::default().calls_min(2).probes(1).pause(10 * SECOND)
}

fn number(mediator: &Mediator, name: &str, labels: &[(&str, &str)]) -> f64 {
    mediator
        .metrics()
        .snapshot()
        .number(name, labels)
        .unwrap_or_else(|| panic!("there is no {name} {labels:?}"))
}

#[tokio::test(start_paused = true)]
async fn a_retry_tries_again_what_may_be_repeated_and_helps() {
    let (calls, handler) = failing(2, 1);
    let mediator = Mediator::builder().behaviour(retry(3)).request(handler).build().unwrap();
    let began = Instant::now();
    assert_eq!(mediator.send(Ask(7)).await.unwrap(), 7);
    assert_eq!((calls.load(Ordering::SeqCst), began.elapsed()), (3, 5 * SECOND));
    let attempts = |outcome, class| {
        number(
            &mediator,
            "mediator_retry_attempts_total",
            &[("operation", "Ask"), ("outcome", outcome), ("class", class)],
        )
    };
    assert_eq!((attempts("again", "transient"), attempts("saved", "")), (2.0, 1.0));
    assert_eq!(number(&mediator, "mediator_retry_success_duration_seconds", &[]), 1.0);

    let (calls, handler) = failing(9, 0);
    let mediator = Mediator::builder().behaviour(retry(3)).request(handler).build().unwrap();
    assert_eq!(mediator.send(Ask(7)).await.unwrap_err().kind(), &ErrorKind::Failed);
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    let given_up = [("outcome", "given_up")];
    assert_eq!(number(&mediator, "mediator_retry_attempts_total", &given_up), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_retry_leaves_alone_what_is_permanent_or_must_not_be_repeated() {
    let calls = Arc::new(AtomicU32::new(0));
    let (permanent, command) = (calls.clone(), calls.clone());
    let mediator = Mediator::builder()
        .behaviour(retry(5))
        .request(move |_: Ask| {
            permanent.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Err::<u64, _>(Classified::new(Class::Permanent, "no such thing")))
        })
        .request(move |_: Do| {
            command.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Err::<(), _>("busy"))
        })
        .build()
        .unwrap();
    assert!(mediator.send(Ask(1)).await.is_err());
    assert_eq!(calls.swap(0, Ordering::SeqCst), 1);
    assert!(mediator.send(Do(String::new())).await.is_err());
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(
        number(
            &mediator,
            "mediator_retry_attempts_total",
            &[("operation", "Do"), ("outcome", "unrepeatable")]
        ),
        1.0
    );
}

#[tokio::test(start_paused = true)]
async fn errors_are_of_the_class_that_a_behaviour_is_told() {
    let (calls, handler) = failing(9, 0);
    let mediator = Mediator::builder()
        .behaviour(Breaker::new(settings()).classify(|_| Class::Permanent))
        .behaviour(retry(5).classify(|_| Class::Permanent))
        .request(handler)
        .build()
        .unwrap();
    for _ in 0..5 {
        assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Failed);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 5);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_and_retries_work_together_whichever_is_outside() {
    // Inside of the breaker retries see the handler's own errors, and the breaker counts what they could not save.
    let (calls, handler) = failing(4, 0);
    let mediator = Mediator::builder()
        .behaviour(Breaker::new(settings()))
        .behaviour(retry(2))
        .request(handler)
        .build()
        .unwrap();
    for _ in 0..2 {
        assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Failed);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 4, "each call was tried twice");
    let error = mediator.send(Ask(1)).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::CircuitOpen { retry_after: Some(10 * SECOND) });
    assert_eq!(calls.load(Ordering::SeqCst), 4);
    let circuit = [("type", "Ask")];
    assert_eq!(number(&mediator, "mediator_circuit_state", &circuit), 2.0);
    assert_eq!(
        number(&mediator, "mediator_circuit_operations", &[("type", "Ask"), ("outcome", "rejected")]),
        1.0
    );
    sleep(10 * SECOND).await;
    assert_eq!(mediator.send(Ask(1)).await.unwrap(), 1);
    assert_eq!(number(&mediator, "mediator_circuit_state", &circuit), 0.0);

    // Outside of the breaker they wait until it lets them try.
    let (calls, handler) = failing(2, 0);
    let mediator = Mediator::builder()
        .behaviour(retry(4))
        .behaviour(Breaker::new(settings()))
        .request(handler)
        .build()
        .unwrap();
    let began = Instant::now();
    assert_eq!(mediator.send(Ask(1)).await.unwrap(), 1);
    assert_eq!((calls.load(Ordering::SeqCst), began.elapsed()), (3, 11 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_breaker_is_each_handlers_own_or_shared_or_by_key() {
    let fail_all = |builder: Breaker| {
        Mediator::builder()
            .behaviour(builder)
            .request(async |_: Ask| Err::<u64, _>("busy"))
            .request(async |_: Do| Ok::<_, BoxError>(()))
            .build()
            .unwrap()
    };
    let is_open = |error: Error| matches!(error.kind(), ErrorKind::CircuitOpen { .. });
    for (breaker, open) in
        [(Breaker::new(settings()), false), (Breaker::shared(CircuitBreaker::new(settings())), true)]
    {
        let mediator = fail_all(breaker);
        for _ in 0..2 {
            assert!(mediator.send(Ask(1)).await.is_err());
        }
        assert!(is_open(mediator.send(Ask(1)).await.unwrap_err()));
        assert_eq!(mediator.send(Do(String::new())).await.is_err(), open);
    }
    let tenant = |call: &Call<'_>| call.context().get::<&str>().map_or_else(String::new, |t| t.to_string());
    let mediator = fail_all(Breaker::by_key(10, settings(), tenant));
    let (a, b) = (Context::new().with("a"), Context::new().with("b"));
    for _ in 0..2 {
        assert!(!is_open(mediator.send_in(&a, Ask(1)).await.unwrap_err()));
    }
    assert!(is_open(mediator.send_in(&a, Ask(1)).await.unwrap_err()));
    assert!(!is_open(mediator.send_in(&b, Ask(1)).await.unwrap_err()));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_drops_the_handler_and_is_retried_if_inside() {
    let mediator = Mediator::builder()
        .behaviour(retry(3))
        .behaviour(Timeout::new(2 * SECOND))
        .request(async |_: Ask| std::future::pending::<Result<u64, BoxError>>().await)
        .build()
        .unwrap();
    let began = Instant::now();
    let error = mediator.send(Ask(1)).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::TimedOut { limit: 2 * SECOND });
    assert_eq!(began.elapsed(), 8 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_bulkhead_runs_so_many_has_so_many_wait_and_refuses_the_rest() {
    let slow = async |ask: Ask| {
        sleep(SECOND * ask.0 as u32).await;
        Ok::<_, BoxError>(ask.0)
    };
    let mediator = Mediator::builder().behaviour(Bulkhead::new(2).queue(1)).request(slow).build().unwrap();
    let sent: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn({
                let m = mediator.clone();
                async move { m.send(Ask(4)).await }
            })
        })
        .collect();
    sleep(SECOND).await;
    let labels = [("type", "Ask"), ("resource", "calls")];
    assert_eq!(number(&mediator, "mediator_resources_available", &labels), 0.0);
    assert_eq!(number(&mediator, "mediator_resources_utilization", &labels), 1.0);
    assert_eq!(number(&mediator, "mediator_requests_queued", &[("type", "Ask")]), 1.0);
    let ended =
        join_all(sent).await.into_iter().map(|ended| ended.unwrap().map_err(|error| error.kind().clone()));
    assert_eq!(ended.collect::<Vec<_>>(), [Ok(4), Ok(4), Ok(4), Err(ErrorKind::Full)]);

    let mediator = Mediator::builder()
        .behaviour(Bulkhead::new(1).queue(9).wait_max(SECOND))
        .request(slow)
        .build()
        .unwrap();
    let (first, second) = tokio::join!(mediator.send(Ask(5)), mediator.send(Ask(5)));
    assert_eq!((first.unwrap(), second.unwrap_err().kind()), (5, &ErrorKind::Full));

    let both = Mediator::builder()
        .behaviour(Bulkhead::new(1).shared())
        .request(slow)
        .request(async |_: Do| Ok::<_, BoxError>(()))
        .build()
        .unwrap();
    let (first, second) = tokio::join!(both.send(Ask(5)), both.send(Do(String::new())));
    assert_eq!((first.unwrap(), second.unwrap_err().kind()), (5, &ErrorKind::Full));
}

#[tokio::test(start_paused = true)]
async fn a_place_in_a_bulkhead_comes_back_when_its_call_is_dropped() {
    let mediator = Mediator::builder()
        .behaviour(Bulkhead::new(1).by_key(8, |_| "all".into()))
        .request(async |_: Ask| std::future::pending::<Result<u64, BoxError>>().await)
        .build()
        .unwrap();
    for _ in 0..3 {
        let ended = tokio::time::timeout(SECOND, mediator.send(Ask(1))).await;
        assert!(ended.is_err(), "it had a place and waited");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_lets_a_burst_pass_and_others_wait_or_fail() {
    let answer = async |ask: Ask| Ok::<_, BoxError>(ask.0);
    let limit = RateLimit::new(10, SECOND).burst(3);
    let mediator = Mediator::builder().behaviour(limit.clone()).request(answer).build().unwrap();
    for _ in 0..3 {
        mediator.send(Ask(1)).await.unwrap();
    }
    let error = mediator.send(Ask(1)).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Throttled { retry_after: SECOND / 10 });

    let mediator =
        Mediator::builder().behaviour(limit.clone().wait_max(SECOND)).request(answer).build().unwrap();
    let began = Instant::now();
    for _ in 0..13 {
        mediator.send(Ask(1)).await.unwrap();
    }
    assert_eq!(began.elapsed(), SECOND);

    for (limit, refused) in
        [(limit.clone().shared(), true), (limit.by_key(4, |call| call.about().name.to_string()), false)]
    {
        let mediator = Mediator::builder()
            .behaviour(limit)
            .request(answer)
            .request(async |_: Do| Ok::<_, BoxError>(()))
            .build()
            .unwrap();
        for _ in 0..3 {
            mediator.send(Ask(1)).await.unwrap();
        }
        assert_eq!(mediator.send(Do(String::new())).await.is_err(), refused);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_calls_a_second_time_what_is_slow_and_may_be_repeated() {
    let calls = Arc::new(AtomicU32::new(0));
    let count = calls.clone();
    let mediator = Mediator::builder()
        .behaviour(Hedging::new(Hedge::after(SECOND)))
        .request(move |ask: Ask| {
            let first = count.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                sleep(if first { 60 * SECOND } else { SECOND }).await;
                Ok::<_, BoxError>(ask.0)
            }
        })
        .build()
        .unwrap();
    let began = Instant::now();
    assert_eq!(mediator.send(Ask(3)).await.unwrap(), 3);
    assert_eq!((calls.load(Ordering::SeqCst), began.elapsed()), (2, 2 * SECOND));
}

#[tokio::test]
async fn checks_refuse_before_the_handler_and_say_why() {
    struct Principal(&'static str);
    let (calls, handler) = failing(0, 0);
    let mediator = Mediator::builder()
        .behaviour(Authorize::new(|call| match call.context().get::<Principal>() {
            Some(_) => Ok(()),
            None => Err("nobody is logged in".into()),
        }))
        .behaviour_of(Check::allowed(|call: &Call<'_>, ask: &Ask| match call.context().get::<Principal>() {
            Some(Principal("root")) => Ok(()),
            _ if ask.0 > 10 => Err("only root asks for more than ten".into()),
            _ => Ok(()),
        }))
        .behaviour_of(Check::valid(|ask: &Ask| if ask.0 == 0 { Err("nothing".into()) } else { Ok(()) }))
        .request(handler)
        .build()
        .unwrap();
    let (ada, root) = (Context::new().with(Principal("ada")), Context::new().with(Principal("root")));
    let kind = async |context: &Context, n| {
        mediator.send_in(context, Ask(n)).await.map_err(|error| error.kind().word())
    };
    assert_eq!(kind(&Context::new(), 1).await, Err("denied"));
    assert_eq!(kind(&ada, 11).await, Err("denied"));
    assert_eq!(kind(&ada, 0).await, Err("invalid"));
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    assert_eq!((kind(&ada, 5).await, kind(&root, 11).await), (Ok(5), Ok(11)));
    let error = mediator.send_in(&ada, Ask(0)).await.unwrap_err();
    assert_eq!(millstream_flow::chain(&error), "Ask: invalid: nothing");
}

#[tokio::test(start_paused = true)]
async fn a_cache_calls_once_for_many_and_forgets_errors() {
    let (calls, handler) = failing(1, 1);
    let memo = Memo::new(100).age(60 * SECOND);
    let mediator = Mediator::builder()
        .behaviour_of(Cache::new(memo.clone(), |ask: &Ask| ask.0))
        .request(handler)
        .build()
        .unwrap();
    assert!(mediator.send(Ask(1)).await.is_err());
    let began = Instant::now();
    let answers = join_all((0..10).map(|_| mediator.send(Ask(1)))).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap() == 1));
    assert_eq!((calls.load(Ordering::SeqCst), began.elapsed()), (2, SECOND), "one flight for all");
    assert_eq!(number(&mediator, "mediator_cache_total", &[("outcome", "hit")]), memo.hits() as f64);
    sleep(61 * SECOND).await;
    mediator.send(Ask(1)).await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn the_flight_that_others_wait_for_may_be_dropped() {
    let (calls, handler) = failing(0, 5);
    let mediator = Mediator::builder()
        .behaviour_of(Cache::new(Memo::new(100), |ask: &Ask| ask.0))
        .request(handler)
        .build()
        .unwrap();
    let other = tokio::spawn({
        let mediator = mediator.clone();
        async move {
            sleep(SECOND).await;
            mediator.send(Ask(1)).await
        }
    });
    assert!(tokio::time::timeout(2 * SECOND, mediator.send(Ask(1))).await.is_err());
    assert_eq!(other.await.unwrap().unwrap(), 1);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_refused_once_its_like_has_succeeded() {
    let (calls, handler) = failing(1, 1);
    let mediator = Mediator::builder()
        .behaviour_of(Dedupe::new(100, 60 * SECOND, |ask: &Ask| ask.0))
        .request(handler)
        .build()
        .unwrap();
    assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Failed);
    let (first, second) = tokio::join!(mediator.send(Ask(1)), mediator.send(Ask(1)));
    assert_eq!((first.unwrap(), second.unwrap_err().kind()), (1, &ErrorKind::Duplicate));
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    sleep(61 * SECOND).await;
    assert_eq!(mediator.send(Ask(1)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_fallback_answers_what_it_is_for() {
    let mediator = Mediator::builder()
        .behaviour_of::<Ask, _>(
            Fallback::new(async |_| Ok(99)).when(|error| error.kind() == &ErrorKind::Failed),
        )
        .behaviour_of(Check::valid(|ask: &Ask| if ask.0 == 0 { Err("nothing".into()) } else { Ok(()) }))
        .request(async |_: Ask| Err::<u64, _>("busy"))
        .build()
        .unwrap();
    assert_eq!(mediator.send(Ask(1)).await.unwrap(), 99);
    assert_eq!(mediator.send(Ask(0)).await.unwrap_err().kind(), &ErrorKind::Invalid);
    assert_eq!(number(&mediator, "mediator_fallbacks_total", &[("type", "Ask")]), 1.0);
}

#[tokio::test]
async fn an_interceptor_of_all_changes_in_place_and_refuses() {
    struct Plus;
    impl Interceptor for Plus {
        fn request(&self, call: &Call<'_>, request: &mut dyn Any) -> Result<(), BoxError> {
            if let Some(Ask(n)) = request.downcast_mut() {
                *n += 1;
            }
            if call.about().kind == Kind::Command { Err("no commands today".into()) } else { Ok(()) }
        }
        fn response(&self, _: &Call<'_>, response: &mut dyn Any) -> Result<(), BoxError> {
            if let Some(n) = response.downcast_mut::<u64>() {
                *n *= 10;
            }
            Ok(())
        }
        fn error(&self, call: &Call<'_>, error: Error) -> Error {
            Error::new(call.about(), ErrorKind::Denied).because(error)
        }
    }
    let mediator = Mediator::builder()
        .behaviour(InterceptAll::new(Plus))
        .request(async |ask: Ask| Ok::<_, BoxError>(ask.0))
        .request(async |_: Do| Ok::<_, BoxError>(()))
        .build()
        .unwrap();
    assert_eq!(mediator.send(Ask(1)).await.unwrap(), 20);
    let error = mediator.send(Do(String::new())).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Denied);
    assert_eq!(error.find::<Error>().unwrap().kind(), &ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn admission_refuses_or_waits_while_memory_is_short() {
    let cleaned = Arc::new(AtomicU32::new(0));
    let count = cleaned.clone();
    let memory = Memory::new(1000).marks(0.9, 0.5).on_short(move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let answer = async |ask: Ask| Ok::<_, BoxError>(ask.0);
    let mediator =
        Mediator::builder().behaviour(Admission::new(memory.clone())).request(answer).build().unwrap();
    let mut held = memory.reserve(899);
    assert_eq!(mediator.send(Ask(1)).await.unwrap(), 1);
    held.set(900);
    assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Shed);
    held.set(501);
    assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Shed, "down to the low mark");
    assert_eq!(cleaned.load(Ordering::SeqCst), 1);
    let labels = [("type", "Ask"), ("resource", "memory")];
    assert_eq!(number(&mediator, "mediator_resources_available", &labels), 499.0);
    assert_eq!(number(&mediator, "mediator_resources_utilization", &labels), 0.501);
    assert_eq!(number(&mediator, "mediator_resource_cleanup_triggered_total", &[]), 1.0);

    let waits = Admission::new(memory).wait_max(10 * SECOND);
    let mediator = Mediator::builder().behaviour(waits).request(answer).build().unwrap();
    let began = Instant::now();
    let release = async {
        sleep(3 * SECOND).await;
        held.set(500);
    };
    assert_eq!(tokio::join!(mediator.send(Ask(1)), release).0.unwrap(), 1);
    assert_eq!(began.elapsed(), 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_asked_no_more_often_than_said() {
    let used = Arc::new(AtomicU64::new(100));
    let asked = Arc::new(AtomicU32::new(0));
    let (read, count) = (used.clone(), asked.clone());
    let memory = Memory::new(1000).probe(SECOND, move || {
        count.fetch_add(1, Ordering::SeqCst);
        Some(read.load(Ordering::SeqCst))
    });
    assert!(!memory.is_short());
    used.store(1000, Ordering::SeqCst);
    assert!(!memory.is_short());
    sleep(SECOND).await;
    assert!(memory.is_short());
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn timing_counts_how_calls_end_and_how_long_they_take() {
    let timing = Timing::new().slow(2 * SECOND).bounds(&[SECOND * 3 / 2, 5 * SECOND]);
    let mediator = Mediator::builder()
        .behaviour(timing)
        .request(async |ask: Ask| {
            sleep(SECOND * ask.0 as u32).await;
            if ask.0 == 3 { Err("three") } else { Ok(ask.0) }
        })
        .build()
        .unwrap();
    for n in [0, 1, 3, 6] {
        let _ = mediator.send(Ask(n)).await;
    }
    let dropped = mediator.send(Ask(9));
    assert!(tokio::time::timeout(SECOND, async {
        let mut dropped = std::pin::pin!(dropped);
        tokio::select! {
            biased;
            _ = &mut dropped => {}
            () = sleep(SECOND / 2) => assert_eq!(number(&mediator, "mediator_active_requests", &[("type", "Ask")]), 1.0),
        }
        dropped.await
    })
    .await
    .is_err());
    let total = |status| number(&mediator, "mediator_requests_total", &[("type", "Ask"), ("status", status)]);
    assert_eq!((total("ok"), total("failed"), total("cancelled")), (3.0, 1.0, 1.0));
    assert_eq!(number(&mediator, "mediator_active_requests", &[]), 0.0);
    assert_eq!(number(&mediator, "mediator_slow_requests_total", &[]), 2.0);
    let snapshot = mediator.metrics().snapshot();
    let metric =
        snapshot.metrics.iter().find(|metric| metric.name == "mediator_request_duration_seconds").unwrap();
    let Value::Histogram { buckets, count, sum } = &metric.series[0].1 else { panic!("it is a histogram") };
    assert_eq!((buckets, *count), (&vec![(1.5, 2), (5.0, 3), (f64::INFINITY, 4)], 4));
    assert!((10.0..10.1).contains(sum), "{sum}");
}

#[tokio::test]
async fn calls_that_never_wait_may_be_timed_in_part() {
    let mediator = Mediator::builder()
        .behaviour(Timing::new().sample(8))
        .request(async |ask: Ask| Ok::<_, BoxError>(ask.0))
        .build()
        .unwrap();
    for n in 0..80 {
        mediator.send(Ask(n)).await.unwrap();
    }
    assert_eq!(number(&mediator, "mediator_request_duration_seconds", &[]), 10.0);
    assert_eq!(number(&mediator, "mediator_requests_total", &[("status", "ok")]), 80.0);
}

#[tokio::test]
async fn a_tower_layer_stands_around_any_request() {
    use millstream_mediator::Tower;
    use tower::ServiceExt;
    let layer = tower::limit::ConcurrencyLimitLayer::new(1);
    let mediator = Mediator::builder()
        .behaviour_for(Scope::kind(Kind::Query), Tower::new("one at once", layer))
        .request(async |ask: Ask| if ask.0 > 0 { Ok(ask.0) } else { Err("zero") })
        .build()
        .unwrap();
    assert_eq!(mediator.send(Ask(2)).await.unwrap(), 2);
    let error = mediator.send(Ask(0)).await.unwrap_err();
    assert_eq!(
        millstream_flow::chain(&error),
        "Ask: its handler `closure in a_tower_layer_stands_around_any_request` failed: zero"
    );
    assert_eq!(mediator.service::<Ask>().unwrap().oneshot(Ask(5)).await.unwrap(), 5);
    assert!(mediator.describe().to_string().contains("one at once"));
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What is logged from the level on, while the guard lives.
pub(crate) fn logged(level: tracing::Level) -> (impl Fn() -> String, tracing::subscriber::DefaultGuard) {
    let lines = Lines::default();
    let write = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .without_time()
        .with_writer(move || write.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    (move || String::from_utf8(lines.0.lock().unwrap().clone()).unwrap(), guard)
}

#[tokio::test]
async fn logging_tells_how_a_call_ended_at_the_declared_levels() {
    use millstream_mediator::Logging;
    use tracing::Level;
    let mediator = Mediator::builder()
        .behaviour(Logging::new().success(Level::INFO).refusal(Level::ERROR).failure(Level::WARN).sample(2))
        .behaviour_of(Check::valid(|ask: &Ask| if ask.0 == 9 { Err("nine".into()) } else { Ok(()) }))
        .request(async |ask: Ask| if ask.0 > 0 { Ok(ask.0) } else { Err("zero") })
        .build()
        .unwrap();
    let (text, _guard) = logged(Level::INFO);
    let context = Context::new().correlation(0xbeef);
    for n in [1, 2, 3, 0, 9] {
        let _ = mediator.send_in(&context, Ask(n)).await;
    }
    let text = text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "every second success and all else: {text}");
    for (line, parts) in lines.iter().zip([
        ["INFO", "a call has ended"],
        ["INFO", "a call has ended"],
        ["WARN", "outcome=\"failed\" error=\"Ask: its handler"],
        ["ERROR", "outcome=\"invalid\" error=\"Ask: invalid: nine\""],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{line} has not {parts:?}");
        assert!(line.contains("message_type=Ask") && line.contains("correlation=000000000000beef"), "{line}");
    }
}

//! Calls that are made again, late, or not at all.

use super::*;

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
async fn an_error_keeps_its_class_through_another_mediator_and_through_a_flow() {
    type Make = fn(&About) -> Error;
    let kinds: [(Make, bool); 5] = [
        (|about| Error::new(about, ErrorKind::Denied).because("not you"), false),
        (|about| Error::new(about, ErrorKind::Invalid).because("not so"), false),
        (|about| Error::new(about, ErrorKind::Duplicate), false),
        (|about| Error::new(about, ErrorKind::Shed), true),
        (|about| Error::new(about, ErrorKind::TimedOut { limit: SECOND }), true),
    ];
    for (make, retryable) in kinds {
        let calls = Arc::new(AtomicU32::new(0));
        let count = calls.clone();
        let inner = Mediator::builder()
            .behaviour(Failing(make))
            .request(move |ask: Ask| {
                count.fetch_add(1, Ordering::SeqCst);
                std::future::ready(Ok::<_, BoxError>(ask.0))
            })
            .build()
            .unwrap();
        let (asked, through) = (inner.clone(), inner.clone());
        let outer = Mediator::builder()
            .behaviour(retry(3))
            .request(move |ask: Ask| {
                let inner = inner.clone();
                async move { inner.send(ask).await }
            })
            .build()
            .unwrap();
        let error = outer.send(Ask(1)).await.unwrap_err();
        let words = millstream_flow::chain(&error);
        assert_eq!(calls.swap(0, Ordering::SeqCst), if retryable { 3 } else { 1 }, "{words}");
        assert_eq!(
            millstream_resilience::class_of(&error).unwrap_or(Class::Transient).is_retryable(),
            retryable
        );

        let retry = millstream_flow::Retry::from(Retry::new(3));
        let (_, report) = millstream_flow::Pipe::from_iter([1])
            .try_map_async(1, retry, async move |ask: &u64| asked.send(Ask(*ask)).await)
            .reject()
            .collect()
            .await
            .unwrap();
        assert_eq!(report.ledger.dead, 1);
        assert_eq!(calls.load(Ordering::SeqCst), if retryable { 3 } else { 1 }, "{words}");
        let cause = through.send(Ask(1)).await.unwrap_err().into_cause();
        assert!(!cause.is::<Classified>(), "the cause is what was given: {cause:?}");
    }
}

/// Fails what comes back, as a behaviour of one's own may.
#[derive(Clone)]
struct Failing(fn(&About) -> Error);

impl Behaviour for Failing {
    fn name(&self) -> Cow<'static, str> {
        "failing".into()
    }
    fn of(&self, _: &About) -> Self {
        self.clone()
    }
    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        next.call(call, request).await?;
        Err((self.0)(call.about()))
    }
}

#[tokio::test]
async fn a_cause_is_found_and_given_back_as_it_was() {
    type Make = fn(&About) -> Error;
    let failed = async |make: Make| {
        let mediator = Mediator::builder()
            .behaviour(Failing(make))
            .request(async |ask: Ask| Ok::<_, BoxError>(ask.0))
            .build()
            .unwrap();
        mediator.send(Ask(1)).await.unwrap_err()
    };
    let own: [(Make, Class); 3] = [
        // Of the kind's own class, so that nothing need be added to it.
        (|about| Error::new(about, ErrorKind::Invalid).because(lost(Class::Permanent)), Class::Permanent),
        (|about| Error::new(about, ErrorKind::Invalid).because(lost(Class::Transient)), Class::Transient),
        (|about| Error::new(about, ErrorKind::Failed).because(lost(Class::Cancelled)), Class::Cancelled),
    ];
    for (make, class) in own {
        let cause = failed(make).await.into_cause();
        let given = cause.downcast::<Classified>().expect("the caller classified it");
        assert_eq!((given.class(), given.into_inner().is::<Lost>()), (class, true));
    }
    let plain = failed(|about| Error::new(about, ErrorKind::Denied).because(Lost)).await;
    assert!(plain.find::<Lost>().is_some() && plain.into_cause().is::<Lost>());
    let twice = failed(|about| {
        let once = Classified::new(Class::Transient, lost(Class::Cancelled));
        Error::new(about, ErrorKind::Invalid).because(once)
    });
    let twice = twice.await;
    assert!(twice.find::<Lost>().is_some(), "{twice:?}");
    assert_eq!(twice.find::<std::io::Error>().map(drop), None);
}

#[derive(Debug)]
struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("lost")
    }
}

impl std::error::Error for Lost {}

fn lost(class: Class) -> Classified {
    Classified::new(class, Lost)
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
async fn a_type_may_have_a_limit_of_its_own_if_somebody_handles_it() {
    let hangs = async |_: Ask| std::future::pending::<Result<u64, BoxError>>().await;
    let limits = || Timeout::new(9 * SECOND).limit_of("Ask", 2 * SECOND);
    let mediator = Mediator::builder()
        .behaviour(limits())
        .request(hangs)
        .request(async |_: Do| std::future::pending::<Result<(), BoxError>>().await)
        .build()
        .unwrap();
    let (one, other) = (mediator.send(Ask(1)).await, mediator.send(Do(String::new())).await);
    assert_eq!(one.unwrap_err().kind(), &ErrorKind::TimedOut { limit: 2 * SECOND });
    assert_eq!(other.unwrap_err().kind(), &ErrorKind::TimedOut { limit: 9 * SECOND });
    let misspelt = limits().limit_of("Aks", SECOND);
    let error = Mediator::builder().behaviour(misspelt).request(hangs).build().unwrap_err();
    let problem = "the behaviour `timeout 9s, Aks 1s, Ask 2s` is set for Aks, around no handler of which it stands; \
                   correct the name, or remove it";
    assert_eq!(error.problems(), [problem]);
    let elsewhere = Mediator::builder()
        .behaviour_for(Scope::kind(Kind::Command), limits())
        .request(hangs)
        .request(async |_: Do| Ok::<_, BoxError>(()));
    assert_eq!(elsewhere.build().unwrap_err().problems().len(), 1, "Ask is a query");
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

#[tokio::test(start_paused = true)]
async fn a_hedge_makes_no_more_calls_than_the_request_may_be_repeated() {
    let calls = Arc::new(AtomicU32::new(0));
    let count = calls.clone();
    let mediator = Mediator::builder()
        .behaviour(Hedging::new(Hedge::after(SECOND).extra(3)))
        .request(move |_: Once| {
            count.fetch_add(1, Ordering::SeqCst);
            async {
                sleep(10 * SECOND).await;
                Ok::<_, BoxError>(7)
            }
        })
        .build()
        .unwrap();
    assert_eq!(mediator.send(Once(true)).await.unwrap(), 7);
    assert_eq!(calls.load(Ordering::SeqCst), 2);
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

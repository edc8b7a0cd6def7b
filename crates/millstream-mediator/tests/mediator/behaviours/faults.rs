//! Handlers that panic, errors without end, and what else is bad.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_handler_that_always_panics_is_not_tried_again_and_opens_its_breaker() {
    let calls = Arc::new(AtomicU32::new(0));
    let count = calls.clone();
    let mediator = Mediator::builder()
        .behaviour(Breaker::new(settings()))
        .behaviour(retry(3))
        .request(move |_: Ask| {
            assert!(count.fetch_add(1, Ordering::SeqCst) > 9, "out of luck");
            std::future::ready(Ok::<u64, BoxError>(0))
        })
        .build()
        .unwrap();
    for _ in 0..2 {
        assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Panicked);
    }
    assert!(matches!(mediator.send(Ask(1)).await.unwrap_err().kind(), ErrorKind::CircuitOpen { .. }));
    assert_eq!(calls.load(Ordering::SeqCst), 2, "one try each");
}

#[tokio::test(start_paused = true)]
async fn a_breaker_opens_also_if_it_is_another_mediators_handler_that_panics() {
    let inner =
        Mediator::builder().request(async |_: Ask| -> Result<u64, BoxError> { panic!("out of luck") });
    let inner = inner.build().unwrap();
    let mediator = Mediator::builder()
        .behaviour(Breaker::new(settings()))
        .behaviour(retry(3))
        .request(move |ask: Ask| {
            let inner = inner.clone();
            async move { inner.send(ask).await }
        })
        .build()
        .unwrap();
    let began = Instant::now();
    for _ in 0..2 {
        assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Failed);
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "it is not tried again");
    assert!(matches!(mediator.send(Ask(1)).await.unwrap_err().kind(), ErrorKind::CircuitOpen { .. }));
}

/// So many errors, each the source of the next.
struct Link {
    left: u64,
    source: Option<BoxError>,
}

fn links(count: u64, root: impl Into<BoxError>) -> BoxError {
    let mut error = root.into();
    for left in 0..count {
        error = Box::new(Link { left, source: Some(error) });
    }
    error
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "link {}", self.left)
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "link {}", self.left)
    }
}

impl std::error::Error for Link {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|error| error as _)
    }
}

impl Drop for Link {
    /// One by one: a call for each would need a deep stack.
    fn drop(&mut self) {
        let mut next = self.source.take();
        while let Some(Ok(mut link)) = next.map(|error| error.downcast::<Link>()) {
            next = link.source.take();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_with_a_chain_without_end_costs_no_more_than_its_first_thousand_links() {
    let mediator = Mediator::builder()
        .behaviour(millstream_mediator::Logging::new())
        .behaviour(Breaker::new(settings().calls_min(3)))
        .behaviour(retry(3))
        .request(async |ask: Ask| match ask.0 {
            0 => Ok(0),
            depth => Err(links(depth, Classified::new(Class::Permanent, "the root"))),
        })
        .build()
        .unwrap();
    let (text, _guard) = logged(tracing::Level::INFO);
    for (depth, tries) in [(500, 1), (10_000, 3)] {
        let began = Instant::now();
        let error = mediator.send(Ask(depth)).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Failed);
        assert_eq!(
            began.elapsed(),
            SECOND * (tries - 1),
            "a class is found within a thousand links: {depth}"
        );
        assert_eq!(error.find::<Classified>().is_some(), depth == 500);
        let text = text();
        let line = text.lines().last().unwrap();
        assert!(line.contains(&format!("link {}", depth - 1)) && line.contains(": …"), "{line}");
        assert!(line.len() < 3000, "{} bytes for {depth} links", line.len());
    }
    assert_eq!(mediator.send(Ask(0)).await.unwrap(), 0);
}

#[tokio::test]
async fn an_interceptor_of_a_type_changes_its_errors_and_answers_after_all() {
    struct Mends;
    impl InterceptorOf<Ask> for Mends {
        async fn request(&self, _: &Call<'_>, ask: Ask) -> Result<Ask, BoxError> {
            if ask.0 == 0 { Err("nothing".into()) } else { Ok(ask) }
        }
        async fn error(&self, call: &Call<'_>, error: Error) -> Result<u64, Error> {
            match error.kind() {
                ErrorKind::Invalid => Ok(100),
                _ => Err(Error::new(call.about(), ErrorKind::Denied).because(error)),
            }
        }
    }
    let (_, handler) = failing(1, 0);
    let mediator = Mediator::builder().behaviour_of(Intercept::new(Mends)).request(handler).build().unwrap();
    assert_eq!(mediator.send(Ask(0)).await.unwrap(), 100, "its own refusals, too");
    assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Denied);
    assert_eq!(mediator.send(Ask(1)).await.unwrap(), 1, "a success is none of its business");
}

#[tokio::test(start_paused = true)]
async fn a_dedupe_remembers_so_many_keys_and_forgets_the_oldest() {
    let (_, handler) = failing(0, 0);
    let mediator = Mediator::builder()
        .behaviour_of(Dedupe::new(2, 60 * SECOND, |ask: &Ask| ask.0))
        .request(handler)
        .build()
        .unwrap();
    for n in [1, 2, 3] {
        mediator.send(Ask(n)).await.unwrap();
    }
    assert_eq!(mediator.send(Ask(3)).await.unwrap_err().kind(), &ErrorKind::Duplicate);
    assert_eq!(mediator.send(Ask(1)).await.unwrap(), 1, "the oldest of three");
}

#[tokio::test(start_paused = true)]
async fn admission_waits_for_memory_no_longer_than_said() {
    let memory = Memory::new(1000);
    let _held = memory.reserve(950);
    let (calls, handler) = failing(0, 0);
    let mediator = Mediator::builder()
        .behaviour(Admission::new(memory).wait_max(7 * SECOND))
        .request(handler)
        .build()
        .unwrap();
    let began = Instant::now();
    assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Shed);
    assert_eq!((began.elapsed(), calls.load(Ordering::SeqCst)), (7 * SECOND, 0));
}

#[test]
#[should_panic(expected = "a probe needs a time")]
fn a_probe_that_is_asked_all_the_time_is_refused() {
    let _ = Memory::new(1000).probe(Duration::ZERO, || None);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_leaves_alone_what_may_not_be_repeated() {
    let calls = Arc::new(AtomicU32::new(0));
    let count = calls.clone();
    let mediator = Mediator::builder()
        .behaviour(Hedging::new(Hedge::after(SECOND)))
        .request(move |_: Do| {
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                sleep(9 * SECOND).await;
                Ok::<_, BoxError>(())
            }
        })
        .build()
        .unwrap();
    let began = Instant::now();
    mediator.send(Do(String::new())).await.unwrap();
    assert_eq!((calls.load(Ordering::SeqCst), began.elapsed()), (1, 9 * SECOND));
}

#[test]
fn a_behaviour_for_a_kind_that_nobody_handles_is_refused() {
    for kind in [Kind::Query, Kind::Notification, Kind::Stream] {
        let error = Mediator::builder()
            .behaviour_for(Scope::kind(kind), Timeout::new(SECOND))
            .request(async |_: Do| Ok::<_, BoxError>(()))
            .build()
            .unwrap_err();
        assert!(error.problems()[0].contains("no handler of such is registered"), "{error}");
    }
    let nothing = Mediator::builder().behaviour(Timeout::new(SECOND));
    let limit = millstream_mediator::StreamTimeout::new().first(SECOND);
    let nothing = nothing.stream_behaviour(limit).build();
    assert!(nothing.is_ok(), "those for all requests and all streams may stand around nothing");
}

#[tokio::test(start_paused = true)]
async fn a_behaviour_that_panics_has_failed_for_the_breakers_around_it_and_is_counted_as_that() {
    struct Falls;
    impl Interceptor for Falls {
        fn request(&self, _: &Call<'_>, _: &mut dyn Any) -> Result<(), BoxError> {
            panic!("out of luck")
        }
    }
    let mediator = Mediator::builder()
        .behaviour(Timing::new())
        .behaviour(Breaker::new(settings()))
        .behaviour(InterceptAll::new(Falls))
        .request(async |Ask(n): Ask| Ok::<_, BoxError>(n))
        .build()
        .unwrap();
    for _ in 0..2 {
        assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Panicked);
    }
    assert!(matches!(mediator.send(Ask(1)).await.unwrap_err().kind(), ErrorKind::CircuitOpen { .. }));
    assert_eq!(number(&mediator, "mediator_requests_total", &[("status", "panicked")]), 2.0);
}

#[tokio::test]
async fn what_has_no_effect_is_not_built() {
    let problems =
        |built: Result<Mediator, millstream_mediator::BuildError>| built.map(drop).unwrap_err().to_string();
    let ask = async |Ask(n): Ask| Ok::<_, BoxError>(n);
    let bulkhead = Bulkhead::new(1).wait_max(SECOND);
    let told = problems(Mediator::builder().behaviour(bulkhead).request(ask).build());
    assert!(told.contains("`wait_max` has no effect without a `queue`"), "{told}");
    let told = problems(
        Mediator::builder().stream_behaviour(millstream_mediator::StreamTimeout::new()).request(ask).build(),
    );
    assert!(told.contains("it has no limit"), "{told}");
    for (useless, words) in [
        (
            Backpressure::new(Strategy::DropOldest, 10).wait_max(SECOND),
            "`wait_max` has no effect: drop oldest makes no handler wait",
        ),
        (
            Backpressure::new(Strategy::Buffer, 10).on_dropped(1, |_, _| {}),
            "`on_dropped` has no effect: buffer drops nothing",
        ),
        (
            Backpressure::new(Strategy::Block, 10).fallback(SECOND, Strategy::Block),
            "`fallback` to block has no effect",
        ),
    ] {
        let told = problems(Mediator::builder().stream_behaviour(useless.clone()).request(ask).build());
        assert!(told.contains(words), "{told}");
        // With a fallback of the other kind both have their effect.
        let other = if words.contains("wait_max") { Strategy::Block } else { Strategy::DropNewest };
        let useful = useless.fallback(SECOND, other);
        assert!(Mediator::builder().stream_behaviour(useful).request(ask).build().is_ok());
    }
    struct Paid;
    impl millstream_mediator::Notification for Paid {}
    let told = problems(
        Mediator::builder()
            .notification(async |_: Arc<Paid>| Ok::<_, BoxError>(()))
            .undelivered::<Paid>(|_| {})
            .undelivered::<Paid>(|_| {})
            .build(),
    );
    assert!(told.contains("`undelivered` of Paid is given twice"), "{told}");
}

/// Panics before it has a future.
#[derive(Clone)]
struct Unlucky;

impl Behaviour for Unlucky {
    fn name(&self) -> Cow<'static, str> {
        "unlucky".into()
    }
    fn of(&self, _: &About) -> Self {
        Unlucky
    }
    fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> impl Future<Output = Result<R::Response, Error>> + Send {
        assert!(call.about().name.is_empty(), "out of luck");
        next.call(call, request)
    }
}

#[tokio::test(start_paused = true)]
async fn a_behaviour_that_panics_before_its_future_has_failed_and_is_counted_so() {
    let mediator = Mediator::builder()
        .behaviour(Timing::new())
        .behaviour(Breaker::new(settings()))
        .behaviour(Unlucky)
        .request(async |ask: Ask| Ok::<_, BoxError>(ask.0))
        .build()
        .unwrap();
    for _ in 0..2 {
        assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Panicked);
    }
    assert!(matches!(mediator.send(Ask(1)).await.unwrap_err().kind(), ErrorKind::CircuitOpen { .. }));
    assert_eq!(number(&mediator, "mediator_requests_total", &[("status", "panicked")]), 2.0);
    assert!(
        mediator.metrics().snapshot().number("mediator_requests_total", &[("status", "cancelled")]).is_none()
    );
}

//! Breakers of streams.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_breaker_opens_when_streams_fail_and_is_left_alone_by_those_that_gave_enough() {
    let settings = BreakerSettings::default().calls_min(2).probes(1).pause(10 * SECOND);
    for (enough, opens) in [(u64::MAX, true), (3, false)] {
        let breaker = StreamBreaker::new(settings.clone()).success_after(enough);
        let mediator = mediator(breaker, |_, to| if to == 0 { breaks_at(0, 3) } else { at_once(to) });
        for _ in 0..2 {
            all(mediator.stream(Count(0)).await.unwrap()).await;
        }
        let refused = mediator.stream(Count(1)).await.map(drop);
        assert_eq!(refused.is_err(), opens);
        if opens {
            assert_eq!(
                refused.unwrap_err().kind(),
                &ErrorKind::CircuitOpen { retry_after: Some(10 * SECOND) }
            );
            assert_eq!(number(&mediator, "mediator_circuit_operations", &[("outcome", "rejected")]), 1.0);
            sleep(10 * SECOND).await;
            assert_eq!(all(mediator.stream(Count(1)).await.unwrap()).await.0, [0]);
            assert_eq!(number(&mediator, "mediator_circuit_state", &[]), 0.0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn retries_inside_a_breaker_retry_what_the_handler_failed_with() {
    let opened = Arc::new(AtomicU64::new(0));
    let count = opened.clone();
    let mediator = Mediator::builder()
        .stream_behaviour(StreamBreaker::new(BreakerSettings::default().calls_min(2)))
        .stream_behaviour(StreamRetries::new(retry(3), Resume::Skip))
        .stream(move |to: Count| {
            let broken = count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
            std::future::ready(Ok::<_, Error>(if broken { breaks_at(0, 2) } else { at_once(to.0) }))
        })
        .build()
        .unwrap();
    for _ in 0..5 {
        assert_eq!(all(mediator.stream(Count(4)).await.unwrap()).await.0, [0, 1, 2, 3]);
    }
    assert_eq!(number(&mediator, "mediator_circuit_failure_rate", &[]), 0.0);
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_fails_is_counted_whoever_shares_the_breaker() {
    let settings = || BreakerSettings::default().calls_min(9);
    for breaker in [
        StreamBreaker::new(settings()),
        StreamBreaker::shared(CircuitBreaker::new(settings())),
        StreamBreaker::by_key(9, settings(), |_| String::new()),
    ] {
        let name = format!("{breaker:?}");
        let mediator = Mediator::builder()
            .stream_behaviour(breaker)
            .stream(async |to: Count| {
                let class = if to.0 == 0 { Class::Transient } else { Class::Permanent };
                Err::<Items, _>(Classified::new(class, "closed"))
            })
            .build()
            .unwrap();
        for to in [0, 1, 0] {
            assert!(mediator.stream(Count(to)).await.is_err());
        }
        let failed = [("type", "Count"), ("outcome", "failed")];
        assert_eq!(number(&mediator, "mediator_circuit_operations", &failed), 2.0, "{name}");
    }
}

/// Endless healthy streams, one of which after the other is opened, behind two that failed.
#[tokio::test(start_paused = true)]
async fn a_healthy_stream_is_no_probe_for_longer_than_until_it_has_given_enough() {
    let settings = BreakerSettings::default().calls_min(2).probes(1).pause(10 * SECOND);
    for (enough, needed) in [(None, 1), (Some(5), 5)] {
        let breaker = StreamBreaker::new(settings.clone());
        let breaker = enough.map_or(breaker.clone(), |items| breaker.success_after(items));
        let mediator = mediator(breaker, |opened, _| match opened {
            0 | 1 => breaks_at(0, 0),
            _ => each(SECOND / 10, u64::MAX),
        });
        for _ in 0..2 {
            all(mediator.stream(Count(0)).await.unwrap()).await;
        }
        sleep(10 * SECOND).await;
        let mut healthy = mediator.stream(Count(1)).await.unwrap();
        for _ in 1..needed {
            healthy.next().await.unwrap().unwrap();
        }
        assert!(mediator.stream(Count(1)).await.is_err(), "the one probe is under way");
        for _ in 0..2 {
            healthy.next().await.unwrap().unwrap();
        }
        assert_eq!(number(&mediator, "mediator_circuit_state", &[]), 0.0, "{needed} items");
        sleep(60 * SECOND).await;
        assert!(mediator.stream(Count(1)).await.is_ok(), "it flows still");
    }
}

/// Panics in the middle of the stream, as a behaviour's own flow may.
#[derive(Clone)]
struct Unlucky;

struct UnluckyFlow<F>(F, u64);

impl<F: Flow<Token = ()>> Flow for UnluckyFlow<F> {
    type Item = F::Item;
    type Token = ();
    fn poll_drive<S>(&mut self, cx: &mut task::Context<'_>, _max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, ()) -> ControlFlow<()>,
    {
        self.1 += 1;
        assert!(self.1 < 4, "out of luck");
        self.0.poll_drive(cx, 1, sink)
    }
}

impl StreamBehaviour for Unlucky {
    type Flow<R: StreamRequest, N: StreamNext<R>> = UnluckyFlow<N::Flow>;
    fn name(&self) -> Cow<'static, str> {
        "unlucky".into()
    }
    fn of(&self, _: &About) -> Self {
        Unlucky
    }
    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        Ok(next.open(call, request).await?.via("unlucky", |flow| UnluckyFlow(flow, 0)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_panics_on_its_way_has_failed_and_one_whose_reader_does_has_not() {
    let breaker = || StreamBreaker::new(BreakerSettings::default().calls_min(2).pause(10 * SECOND));
    let unlucky = Mediator::builder()
        .stream_behaviour(breaker())
        .stream_behaviour(Unlucky)
        .stream(|to: Count| std::future::ready(Ok::<_, Error>(at_once(to.0))))
        .build()
        .unwrap();
    for _ in 0..2 {
        let (items, error) = all(unlucky.stream(Count(9)).await.unwrap()).await;
        assert_eq!((items.len(), error.unwrap().error().kind()), (3, &ErrorKind::Panicked));
    }
    let refused = unlucky.stream(Count(9)).await.map(drop).unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::CircuitOpen { .. }), "{refused}");

    let lucky = mediator(breaker(), |_, to| at_once(to));
    for _ in 0..4 {
        let stream = lucky.stream(Count(9)).await.unwrap();
        let reading = stream.for_each(|_| panic!("the reader's luck")).start();
        assert!(tokio::spawn(reading.join()).await.unwrap().is_err());
    }
    assert_eq!(all(lucky.stream(Count(9)).await.unwrap()).await.0.len(), 9);
}

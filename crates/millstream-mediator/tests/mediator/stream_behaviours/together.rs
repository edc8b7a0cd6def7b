//! Behaviours of streams around one another.

use super::attempts::Numbers;
use super::*;

#[tokio::test(start_paused = true)]
async fn a_limit_inside_of_retries_takes_none_of_their_items() {
    let opened = AtomicU64::new(0);
    let mediator = Mediator::builder()
        .stream_behaviour(StreamRetries::new(retry(3), Resume::Position))
        .stream_behaviour(StreamTimeout::new().total(4 * SECOND))
        .stream(move |Numbers { from }| {
            let first = opened.fetch_add(1, Ordering::SeqCst) == 0;
            let pipe: Items =
                if first { breaks_at(from, 1) } else { Pipe::from_iter(from..20).map(Ok).boxed() };
            std::future::ready(Ok::<_, Error>(pipe))
        })
        .build()
        .unwrap();
    let mut stream = mediator.stream(Numbers { from: 0 }).await.unwrap();
    let mut items = Vec::new();
    while let Some(item) = stream.next().await {
        items.push(item.unwrap());
        sleep(SECOND).await; // so that each try is too late after some items, while the next is there
    }
    assert_eq!(items, (0..20).collect::<Vec<_>>());
}

/// May be opened anew once.
struct Once(bool);

impl StreamRequest for Once {
    type Item = u64;
    fn repeat(&self) -> Option<Self> {
        self.0.then_some(Once(false))
    }
}

fn attempts(mediator: &Mediator) -> [Option<f64>; 4] {
    ["again", "saved", "given_up", "unrepeatable"].map(|outcome| {
        mediator.metrics().snapshot().number("mediator_retry_attempts_total", &[("outcome", outcome)])
    })
}

#[tokio::test(start_paused = true)]
async fn each_stream_that_was_opened_again_has_one_outcome() {
    const ONE: Option<f64> = Some(1.0);
    type Make = fn(u64) -> Result<Items, Classified>;
    let cases: [(&str, Resume, Make, _); 4] = [
        (
            "it ends well without another item",
            Resume::Skip,
            |opened| Ok(if opened == 0 { breaks_at(0, 3) } else { at_once(3) }),
            [ONE, ONE, None, None],
        ),
        (
            "it opens, and is empty",
            Resume::Never,
            |opened| {
                if opened == 0 { Err(Classified::new(Class::Transient, "closed")) } else { Ok(at_once(0)) }
            },
            [ONE, ONE, None, None],
        ),
        (
            "it fails for good",
            Resume::Skip,
            |opened| {
                if opened == 0 {
                    Ok(breaks_at(0, 3))
                } else {
                    Err(Classified::new(Class::Permanent, "wrong"))
                }
            },
            [ONE, None, ONE, None],
        ),
        ("it may not be opened again", Resume::Never, |_| Ok(breaks_at(0, 3)), [None, None, None, ONE]),
    ];
    for (words, resume, make, outcomes) in cases {
        let opened = AtomicU64::new(0);
        let mediator = Mediator::builder()
            .stream_behaviour(StreamRetries::new(retry(3), resume))
            .stream(move |_: Count| std::future::ready(make(opened.fetch_add(1, Ordering::SeqCst))))
            .build()
            .unwrap();
        all(mediator.stream(Count(0)).await.unwrap()).await;
        assert_eq!(attempts(&mediator), outcomes, "{words}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_may_not_be_asked_for_again_fails_at_once() {
    let mediator = Mediator::builder()
        .stream_behaviour(StreamRetries::new(retry(3), Resume::Skip))
        .stream(async |_: Once| Err::<Items, _>("closed"))
        .build()
        .unwrap();
    let began = Instant::now();
    assert!(mediator.stream(Once(true)).await.is_err());
    assert_eq!((began.elapsed(), attempts(&mediator)), (Duration::ZERO, [None, None, None, Some(1.0)]));
}

/// Panics when a stream has ended.
struct NoEnd;

impl StreamInterceptor for NoEnd {
    fn end(&self, _: &Call<'_>, _: Option<&StreamError>) {
        panic!("no end")
    }
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_at_an_error_takes_it_from_nobody() {
    let mediator = mediator(StreamIntercept::new(NoEnd), |_, _| breaks_at(0, 2));
    let (text, _guard) = logged(tracing::Level::ERROR);
    let (items, error) = all(mediator.stream(Count(0)).await.unwrap()).await;
    let error = error.unwrap();
    assert_eq!((items, error.error().kind(), error.position()), (vec![0, 1], &ErrorKind::Failed, 2));
    assert!(text().contains("no end"), "{}", text());

    let mediator = Mediator::builder()
        .stream_behaviour(StreamRetries::new(retry(3), Resume::Skip))
        .stream_behaviour(StreamIntercept::new(NoEnd))
        .stream(async |_: Count| Ok::<_, Error>(breaks_at(0, 2)))
        .build()
        .unwrap();
    assert!(all(mediator.stream(Count(0)).await.unwrap()).await.1.is_some());
    assert_eq!(attempts(&mediator)[0], Some(2.0), "who stands around hears of the failure");
}

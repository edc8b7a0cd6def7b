//! What is told and counted of calls.

use super::*;

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
    assert_eq!(
        number(&mediator, "mediator_request_duration_seconds", &[]),
        80.0,
        "each sample stands for eight"
    );
    assert_eq!(number(&mediator, "mediator_requests_total", &[("status", "ok")]), 80.0);
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

#[tokio::test(start_paused = true)]
async fn a_call_that_is_late_and_ends_when_it_is_next_looked_at_is_warned_of_too() {
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let ended = std::sync::Mutex::new(Some(ended));
    let mediator = Mediator::builder()
        .behaviour(Timing::new().slow(2 * SECOND))
        .request(move |ask: Ask| {
            let ended = ended.lock().unwrap().take();
            async move {
                if let Some(ended) = ended {
                    ended.await?;
                }
                Ok::<_, BoxError>(ask.0)
            }
        })
        .build()
        .unwrap();
    let mut call = std::pin::pin!(mediator.send(Ask(1)));
    assert!(futures_util::poll!(call.as_mut()).is_pending());
    tokio::time::advance(20 * SECOND).await;
    end.send(()).unwrap();
    assert!(futures_util::poll!(call.as_mut()).is_ready());
    assert_eq!(number(&mediator, "mediator_slow_requests_total", &[]), 1.0);
}

mod attempts;
mod packages;
mod profiles;
mod streams;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use millstream_flow::{BoxError, Pipe};
use millstream_mediator::presets::{
    BackpressurePreset, BreakerPreset, Environment, HealthPreset, Profile, ResourcePreset, RetryPreset,
    Service, StreamPackage,
};
use millstream_mediator::{Error, ErrorKind, Mediator, Memory, Resume, Timeout};
use tokio::time::{Instant, sleep};

use crate::Ask;
use crate::streams::Count;
use crate::support::number;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn every_preset_prints_what_it_sets() {
    let printed: Vec<String> = (RetryPreset::ALL.iter().map(ToString::to_string))
        .chain(BreakerPreset::ALL.iter().map(ToString::to_string))
        .chain(ResourcePreset::ALL.iter().map(ToString::to_string))
        .chain(BackpressurePreset::ALL.iter().map(ToString::to_string))
        .chain(HealthPreset::ALL.iter().map(ToString::to_string))
        .collect();
    assert_eq!(
        printed,
        [
            "Conservative: retry up to 3 attempts, 500ms each time, within 10s",
            "Aggressive: retry up to 6 attempts, exponential from 200ms to 30s, full jitter, within 120s",
            "Database: retry up to 4 attempts, exponential from 1s to 30s, within 30s",
            "HttpApi: retry up to 5 attempts, exponential from 750ms to 30s, full jitter, within 45s",
            "Sensitive: breaker opens at 30% failures of at least 3 in 30s; open 15s each time, then 2 probes",
            "Balanced: breaker opens at 50% failures of at least 5 in 60s; open 30s each time, then 3 probes",
            "Resilient: breaker opens at 70% failures of at least 10 in 120s; open 60s each time, then 5 probes",
            "Database: breaker opens at 40% failures of at least 5 in 60s; open 45s each time, then 2 probes",
            "ExternalApi: breaker opens at 60% failures of at least 8 in 180s; open 60s each time, then 3 probes",
            "MemoryConstrained: 256 MiB, short from 70% to 50% or above 5 MiB/s, probed each 15 s",
            "HighPerformance: 1024 MiB, short from 90% to 80% or above 50 MiB/s, probed each 10 s",
            "Balanced: 512 MiB, short from 80% to 60% or above 10 MiB/s, probed each 30 s",
            "Development: 2048 MiB, short from 90% to 80% or above 100 MiB/s, probed each 10 s",
            "NoDataLoss: backpressure throttle 50000 90%/30%",
            "HighThroughput: backpressure drop oldest 10000 70%/30%",
            "MemoryConstrained: backpressure sample 1 in 2 1000 50%/20%",
            "RealTime: backpressure drop oldest 5000 60%/20%",
            "Analytics: backpressure sample 1 in 10 25000 80%/40%",
            "Balanced: backpressure buffer 10000 80%/50%",
            "HighPerformance: health each 5s, stall 10s, at least 1000 items/s, errors 1%, growth 50 MiB",
            "DataProcessing: health each 30s, stall 120s, at least 50 items/s, errors 5%, growth 200 MiB",
            "LongRunning: health each 60s, stall 300s, at least 10 items/s, errors 10%, growth 500 MiB",
            "RealTime: health each 2s, stall 5s, at least 100 items/s, errors 0.1%, growth 25 MiB",
            "Development: health each 10s, stall 30s, at least 1 items/s, errors 20%, growth 100 MiB",
        ]
    );
}

#[test]
fn profiles_print_what_they_stand_around_requests() {
    let text = |service, environment| Profile::new(service, environment, || None).to_string();
    assert_eq!(
        text(Service::Web, Environment::Production),
        "logging 1 in 100\n\
         timing, slow above 200ms\n\
         admission within 512 MiB\n\
         breaker opens at 50% failures of at least 5 in 60s; open 30s each time, then 3 probes\n\
         timeout 30s\n\
         retry up to 4 attempts, exponential from 1s to 30s, within 30s\n"
    );
    assert!(
        text(Service::Microservice, Environment::Staging)
            .contains("slow above 500ms\nadmission within 256 MiB")
    );
    assert!(text(Service::Background, Environment::Staging).starts_with("logging\ntiming, slow above 5s"));
    assert!(text(Service::Background, Environment::Development).contains("within 2048 MiB"));
}

#[tokio::test(start_paused = true)]
async fn retry_presets_try_as_often_and_as_long_as_they_say() {
    for (preset, attempts, delays) in [
        (RetryPreset::Conservative, 3, Some(1.0)),
        (RetryPreset::Database, 4, Some(7.0)),
        (RetryPreset::Aggressive, 6, None),
        (RetryPreset::HttpApi, 5, None),
    ] {
        let calls = Arc::new(AtomicU64::new(0));
        let count = calls.clone();
        let mediator = Mediator::builder()
            .behaviour(preset.behaviour())
            .request(move |_: Ask| {
                count.fetch_add(1, Ordering::SeqCst);
                std::future::ready(Err::<u64, _>("busy"))
            })
            .build()
            .unwrap();
        let began = Instant::now();
        assert!(mediator.send(Ask(1)).await.is_err());
        assert_eq!(calls.load(Ordering::SeqCst), attempts, "{preset}");
        if let Some(delays) = delays {
            assert_eq!(began.elapsed().as_secs_f64(), delays, "{preset}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn breaker_presets_open_close_and_probe_at_their_numbers() {
    for (preset, calls, pause, probes) in [
        (BreakerPreset::Sensitive, 3, 15, 2),
        (BreakerPreset::Balanced, 5, 30, 3),
        (BreakerPreset::Resilient, 10, 60, 5),
        (BreakerPreset::Database, 5, 45, 2),
        (BreakerPreset::ExternalApi, 8, 60, 3),
    ] {
        let mediator = Mediator::builder()
            .behaviour(preset.behaviour())
            .request(async |ask: Ask| if ask.0 == 0 { Err("busy") } else { Ok(ask.0) })
            .build()
            .unwrap();
        let is_open =
            async || mediator.metrics().snapshot().number("mediator_circuit_state", &[]).unwrap() == 2.0;
        for n in 0..calls {
            assert!(!is_open().await, "{preset}: after {n}");
            let _ = mediator.send(Ask(0)).await;
        }
        assert!(is_open().await, "{preset}");
        sleep(pause * SECOND - SECOND / 10).await;
        assert!(
            matches!(mediator.send(Ask(1)).await.unwrap_err().kind(), ErrorKind::CircuitOpen { .. }),
            "{preset}"
        );
        sleep(SECOND).await;
        for _ in 0..probes {
            assert_ne!(mediator.metrics().snapshot().number("mediator_circuit_state", &[]).unwrap(), 0.0);
            assert_eq!(mediator.send(Ask(1)).await.unwrap(), 1, "{preset}");
        }
        assert_eq!(
            mediator.metrics().snapshot().number("mediator_circuit_state", &[]).unwrap(),
            0.0,
            "{preset}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn resource_presets_shed_at_their_marks_and_rates() {
    for (preset, mib, high, low, growth, every) in [
        (ResourcePreset::MemoryConstrained, 256u64, 0.7, 0.5, 5, 15),
        (ResourcePreset::HighPerformance, 1024, 0.9, 0.8, 50, 10),
        (ResourcePreset::Balanced, 512, 0.8, 0.6, 10, 30),
        (ResourcePreset::Development, 2048, 0.9, 0.8, 100, 10),
    ] {
        let memory = preset.memory();
        let bytes = |part: f64| ((mib << 20) as f64 * part) as u64;
        let mut held = memory.reserve(bytes(high) - 1);
        assert!(!memory.is_short(), "{preset}");
        held.set(bytes(high));
        assert!(memory.is_short(), "{preset}");
        held.set(bytes(low));
        assert!(!memory.is_short(), "{preset}");

        let used = Arc::new(AtomicU64::new(0));
        let read = used.clone();
        let probed = preset.memory_probed(move || Some(read.load(Ordering::SeqCst)));
        assert!(!probed.is_short());
        for (mib_per_second, short) in [(growth - 1, false), (growth + 1, true)] {
            // Growth alone, from nothing, so that the marks are not reached.
            used.store(0, Ordering::SeqCst);
            sleep(every * SECOND).await;
            assert!(!probed.is_short(), "{preset}");
            let grown = (mib_per_second * u64::from(every)) << 20;
            assert!(grown < bytes(high), "{preset}: the rate tells before the mark");
            used.store(grown, Ordering::SeqCst);
            sleep(every * SECOND - SECOND / 10).await;
            assert!(!probed.is_short(), "{preset}: it is not asked before it is due");
            sleep(SECOND / 10).await;
            assert_eq!(probed.is_short(), short, "{preset}: {mib_per_second} MiB/s");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_platinum_package_goes_on_when_its_buffer_alone_fills_the_budget() {
    let memory = Memory::new(4096);
    let mediator = Mediator::builder()
        .platinum_package(&StreamPackage::platinum(Resume::Never), BackpressurePreset::Balanced, &memory)
        .stream(async |to: Count| Ok::<_, Error>(Pipe::from_iter(0..to.0).map(Ok::<_, BoxError>)))
        .build()
        .unwrap();
    let mut stream = mediator.stream(Count(100_000)).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 0);
    sleep(SECOND).await;
    assert!(memory.is_short(), "the buffer holds what there is");
    assert!(memory.used() < 8192, "and a chunk more at most, not its ten thousand items: {}", memory.used());
    let rest = tokio::time::timeout(60 * SECOND, stream.count()).await;
    assert_eq!(rest.expect("it does not stop for ever"), 99_999);
    assert_eq!(memory.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_profile_sheds_while_the_process_has_no_memory() {
    for (service, mib) in [(Service::Web, 512u64), (Service::Microservice, 256), (Service::Background, 256)] {
        let used = Arc::new(AtomicU64::new(0));
        let read = used.clone();
        let probe = move || Some(read.load(Ordering::SeqCst));
        let mediator = Mediator::builder()
            .profile(&Profile::new(service, Environment::Production, probe))
            .request(async |ask: Ask| Ok::<_, BoxError>(ask.0))
            .build()
            .unwrap();
        assert_eq!(mediator.send(Ask(1)).await.unwrap(), 1);
        used.store(mib << 20, Ordering::SeqCst);
        sleep(60 * SECOND).await;
        assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Shed, "{service:?}");
        used.store(0, Ordering::SeqCst);
        sleep(60 * SECOND).await;
        assert_eq!(mediator.send(Ask(1)).await.unwrap(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_profile_retries_within_its_timeout_and_counts_in_its_breaker() {
    let calls = Arc::new(AtomicU64::new(0));
    let count = calls.clone();
    let profile = Profile::new(Service::Web, Environment::Staging, || None).timeout(Timeout::new(5 * SECOND));
    let mediator = Mediator::builder()
        .profile(&profile)
        .request(move |ask: Ask| {
            let call = count.fetch_add(1, Ordering::SeqCst);
            std::future::ready(if call.is_multiple_of(2) { Err("busy") } else { Ok(ask.0) })
        })
        .build()
        .unwrap();
    for n in 1..=10 {
        assert_eq!(
            mediator.send(Ask(n)).await.unwrap(),
            n,
            "retries save each call, and the breaker stays closed"
        );
    }
    assert_eq!(calls.load(Ordering::SeqCst), 20);
    let failing =
        Mediator::builder().profile(&profile).request(async |_: Ask| Err::<u64, _>("busy")).build().unwrap();
    let began = Instant::now();
    let error = failing.send(Ask(1)).await.unwrap_err();
    assert_eq!((error.kind(), began.elapsed()), (&ErrorKind::TimedOut { limit: 5 * SECOND }, 5 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_stream_package_retries_what_broke_inside_of_its_breaker() {
    for platinum in [false, true] {
        let opened = Arc::new(AtomicU64::new(0));
        let count = opened.clone();
        let handler = move |to: Count| {
            let broken = count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
            let pipe = Pipe::from_iter(0..to.0).map(move |n| match n {
                50 if broken => Err(BoxError::from("the cursor is gone")),
                n => Ok(n),
            });
            std::future::ready(Ok::<_, Error>(pipe))
        };
        let memory = Memory::new(1 << 30);
        let mediator = if platinum {
            let package = StreamPackage::platinum(Resume::Skip);
            Mediator::builder()
                .platinum_package(&package, BackpressurePreset::NoDataLoss, &memory)
                .stream(handler)
                .build()
                .unwrap()
        } else {
            Mediator::builder()
                .stream_package(&StreamPackage::resilience(Resume::Skip))
                .stream(handler)
                .build()
                .unwrap()
        };
        for _ in 0..5 {
            let items: Vec<_> =
                StreamExt::collect::<Vec<_>>(mediator.stream(Count(100)).await.unwrap()).await;
            let items: Vec<_> =
                items.into_iter().map(|item| item.map_err(|error| error.to_string())).collect();
            assert_eq!(items, (0..100).map(Ok).collect::<Vec<_>>(), "platinum: {platinum}");
        }
        assert_eq!(opened.load(Ordering::SeqCst), 10);
        assert_eq!(mediator.metrics().snapshot().number("mediator_circuit_failure_rate", &[]), Some(0.0));
    }
}

#[tokio::test(start_paused = true)]
async fn the_platinum_package_holds_no_more_than_its_buffer() {
    for (preset, capacity) in
        [(BackpressurePreset::Balanced, 10_000), (BackpressurePreset::NoDataLoss, 50_000)]
    {
        let made = Arc::new(AtomicU64::new(0));
        let count = made.clone();
        let memory = Memory::new(1 << 30);
        let mediator = Mediator::builder()
            .platinum_package(&StreamPackage::platinum(Resume::Never), preset, &memory)
            .stream(move |to: Count| {
                let count = count.clone();
                let pipe =
                    Pipe::from_iter(0..to.0).inspect(move |_| _ = count.fetch_add(1, Ordering::SeqCst));
                std::future::ready(Ok::<_, Error>(pipe.map(Ok::<_, BoxError>)))
            })
            .build()
            .unwrap();
        let mut stream = mediator.stream(Count(1_000_000)).await.unwrap();
        let first = StreamExt::next(&mut stream).await.unwrap().unwrap();
        sleep(60 * SECOND).await;
        let ahead = made.load(Ordering::SeqCst) - first;
        assert!(ahead <= capacity + 2 * 64, "{preset}: {ahead} items ahead");
        assert!(memory.used() <= capacity * 16, "{preset}");
    }
}

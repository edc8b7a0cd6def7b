use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use millstream_flow::{BoxError, Memo, Pipe};
use millstream_mediator::presets::{BackpressurePreset, Environment, Profile, Service, StreamPackage};
use millstream_mediator::{Bulkhead, Cache, Error, Fallback, Mediator, Memory, Notification, Resume};

use crate::streams::Count;
use crate::{Ask, Do};

struct Told;
impl Notification for Told {}

const GUIDE: &str = include_str!("../../../../docs/mediator.md");

/// The names that the guide lists.
fn listed() -> BTreeSet<&'static str> {
    GUIDE
        .lines()
        .filter_map(|line| line.strip_prefix("| `mediator_"))
        .filter_map(|line| line.split('`').next())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn every_metric_is_shown_and_listed_in_the_guide_and_nothing_else_is() {
    let memory = Memory::new(1 << 30).on_short(|| {});
    let profile = Profile::within(Service::Web, Environment::Staging, memory.clone());
    let mediator = Mediator::builder()
        .profile(&profile)
        .behaviour(Bulkhead::new(10))
        .behaviour_of(Cache::new(Memo::new(10), |ask: &Ask| ask.0))
        .behaviour_of::<Ask, _>(Fallback::new(async |_| Ok(0)))
        .platinum_package(&StreamPackage::platinum(Resume::Skip), BackpressurePreset::NoDataLoss, &memory)
        .request(async |ask: Ask| Ok::<_, BoxError>(ask.0))
        .request(async |_: Do| Err::<(), BoxError>("busy".into()))
        .notification(async |_: Arc<Told>| Ok::<_, BoxError>(()))
        .stream(async |to: Count| Ok::<_, Error>(Pipe::from_iter(0..to.0).map(Ok::<_, Error>)))
        .build()
        .unwrap();
    mediator.send(Ask(1)).await.unwrap();
    // What seldom happens is shown once it has.
    assert!(mediator.send(Do("what may not be repeated".into())).await.is_err());
    assert!(mediator.send_json("Nobody", 1.into()).await.is_err());
    let _ = mediator.publish(Told).await;
    let mut stream = mediator.stream(Count(10)).await.unwrap();
    while stream.next().await.is_some() {}
    let text = mediator.metrics().snapshot().to_string();
    let shown = text.lines().filter_map(|line| line.strip_prefix("# TYPE mediator_"));
    let shown: BTreeSet<_> = shown.filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(shown, listed());
    for (line, value) in
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '))
    {
        assert!(value.parse::<f64>().is_ok(), "{line} {value}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_is_registered_once_however_many_handlers_there_are() {
    let mediator = Mediator::builder()
        .profile(&Profile::new(Service::Web, Environment::Staging, || None))
        .request(async |ask: Ask| Ok::<_, BoxError>(ask.0))
        .build()
        .unwrap();
    let before =
        mediator.metrics().snapshot().metrics.iter().map(|metric| metric.series.len()).sum::<usize>();
    for n in 0..1000 {
        mediator.send(Ask(n)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = mediator.metrics().snapshot().metrics.iter().map(|metric| metric.series.len()).sum::<usize>();
    assert_eq!(before, after, "calls add no series");
}

#[tokio::test]
async fn each_handler_of_a_notification_has_its_own_numbers() {
    use millstream_mediator::{Kind, Scope, Timing};
    async fn well(_: Arc<Told>) -> Result<(), BoxError> {
        Ok(())
    }
    async fn badly(_: Arc<Told>) -> Result<(), BoxError> {
        Err("no".into())
    }
    let mediator = Mediator::builder()
        .behaviour_for(Scope::kind(Kind::Notification), Timing::new())
        .notification(well)
        .notification(badly)
        .build()
        .unwrap();
    let _ = mediator.publish(Told).await;
    let snapshot = mediator.metrics().snapshot();
    for (label, status) in [("Told > well", "ok"), ("Told > badly", "failed")] {
        let labels = [("type", label), ("status", status)];
        assert_eq!(snapshot.number("mediator_requests_total", &labels), Some(1.0), "{label}");
        let kind = [("type", label), ("kind", "notification")];
        assert_eq!(snapshot.number("mediator_requests_total", &kind), Some(1.0), "{label}");
        assert_eq!(snapshot.number("mediator_active_requests", &[("type", label)]), Some(0.0), "{label}");
    }
}

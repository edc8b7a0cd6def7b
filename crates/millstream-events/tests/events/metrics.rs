//! Statistics as Prometheus sees them.

use millstream_events::metrics::{EventMetrics, NAMES};
use millstream_events::{Event, EventBus, EventContext, Expected, Saga, SagaStatus, Sagas, Step, Subscribe};

use crate::support::{Kind, Place, event};

#[test]
fn the_reference_lists_every_metric_and_no_other() {
    let reference = include_str!("../../../../docs/events.md");
    let listed: Vec<&str> = reference
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|rest| rest.split('`').next())
        .filter(|name| name.starts_with("millstream_event_"))
        .collect();
    assert_eq!(listed, NAMES);
}

#[tokio::test]
async fn every_metric_is_shown_and_counts_what_has_happened() {
    let place = Place::of(Kind::Memory).await;
    let store = place.store().await;
    store.append("s", Expected::Any, [event("a"), event("b")]).await.expect("stored");
    store.append("s", Expected::NoStream, [event("c")]).await.expect_err("it is there");
    let reading = store.subscribe("projection").open().await.expect("opened");
    let bus = EventBus::new(place.broker.clone(), "shop");
    let (heard, mut hears) = tokio::sync::mpsc::channel(1);
    let handler = async move |_: &Event, _: &EventContext| Ok(heard.send(()).await?);
    let subscription = bus.subscribe_all(&["said"], Subscribe::new(), handler).await.expect("taken").start();
    bus.publish(event("a")).await.expect("taken");
    hears.recv().await.expect("heard");
    while subscription.statistics().handled == 0 {
        tokio::task::yield_now().await;
    }
    let saga = Saga::new("trip").step(Step::new("book", async |state: u32, _| Ok(state + 1)));
    let sagas = Sagas::builder(store.clone()).saga(saga).start().await.expect("started");
    sagas.begin("trip", "1", &0_u32).await.expect("begun");
    assert_eq!(sagas.ended("trip", "1").await.expect("known").status, SagaStatus::Completed);

    let text = EventMetrics::new()
        .store("log", store.statistics().await.expect("told"))
        .bus("shop", bus.statistics())
        .subscription(subscription.queue(), subscription.statistics())
        .sagas("log", sagas.statistics())
        .text();
    for name in NAMES {
        assert!(text.contains(&format!("# TYPE {name} ")), "{name}: {text}");
    }
    let next = store.statistics().await.expect("told").next_offset;
    for line in [
        "store_events_total{log=\"log\"} 5".to_owned(),
        "store_conflicts_total{log=\"log\"} 1".to_owned(),
        format!("subscription_behind{{log=\"log\",subscription=\"projection\"}} {next}"),
        "bus_published_total{service=\"shop\",outcome=\"stored\"} 1".to_owned(),
        format!("bus_ended_total{{queue=\"{}\",outcome=\"handled\"}} 1", subscription.queue()),
        "sagas_ended_total{log=\"log\",outcome=\"completed\"} 1".to_owned(),
        "saga_steps_total{log=\"log\"} 1".to_owned(),
    ] {
        assert!(text.contains(&format!("millstream_event_{line}\n")), "{line}: {text}");
    }
    drop(reading);
}

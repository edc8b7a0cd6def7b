//! The event store, beside the stream that it keeps its events in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millstream_embedded::open;
use millstream_events::{Event, EventStore, EventStoreOptions, Expected};
use millstream_message::{Broker, Message, StreamFrom, StreamSpec};

use super::disk::{RATE, RECORD, directory, noise};
use super::producers::{PRODUCERS, measure};
use super::queue::runtime;
use crate::case::{Absent, Bound, Case, Sample, Scale};
use crate::clock;

const STREAM: &str = "bench";
const RAW: &str = "the broker's stream";

/// Streams of the store over which events are spread, in turns.
const STREAMS: u64 = 1000;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("event store, 64 writers, each waits").floor(RAW, append_raw).ours("ours", append).goal_on(
            RATE,
            Bound::RateOf(0.7, RAW),
            "",
        ),
        Case::new("event store, all events, from disk")
            .floor(RAW, |scale| read(scale.of(200_000), Reading::Raw))
            .ours("ours", |scale| read(scale.of(200_000), Reading::All))
            .goal_on(RATE, Bound::RateOf(0.2, RAW), ""),
        Case::new("event store, opening, 1 KB an event")
            .floor(RAW, |scale| read(scale.of(200_000), Reading::Raw))
            .ours("ours", |scale| read(scale.of(200_000), Reading::Open))
            .goal_on(RATE, Bound::RateOf(0.2, RAW), ""),
        Case::new("event store, opening from a checkpoint")
            .floor(RAW, |scale| read(scale.of(200_000), Reading::Raw))
            .ours("ours", |scale| read(scale.of(200_000), Reading::OpenCheckpoint))
            .goal_on(RATE, Bound::RateOf(2.0, RAW), "opening reads less than the stream holds"),
        Case::new("event store, 1,000 streams one by one, each 1/1000 of the log")
            .ours("ours", |scale| read(scale.of(200_000), Reading::Streams))
            .goal_on(RATE, Bound::AtLeast(10_000.0), "events of one stream lie a thousand entries apart"),
    ]
}

fn text(error: impl std::fmt::Display) -> Absent {
    error.to_string()
}

async fn broker(directory: &std::path::Path) -> Result<Arc<dyn Broker>, Absent> {
    let url = format!("embedded:{}", directory.join("broker").display()).parse().map_err(text)?;
    open(&url).await.map_err(text)
}

fn append_raw(scale: Scale) -> Result<Sample, Absent> {
    let (directory, opening) = (directory()?, runtime()?);
    let broker = opening.block_on(broker(directory.path()))?;
    opening.block_on(broker.declare_stream(StreamSpec::new(STREAM))).map_err(text)?;
    measure(scale, move |body: Arc<[u8]>| {
        let broker = broker.clone();
        async move {
            let message = Message::new(body.to_vec());
            broker.append(STREAM, vec![message]).await.map(drop).map_err(text)
        }
    })
}

fn append(scale: Scale) -> Result<Sample, Absent> {
    let (directory, opening) = (directory()?, runtime()?);
    let broker = opening.block_on(broker(directory.path()))?;
    let store = opening.block_on(EventStore::open(broker, STREAM)).map_err(text)?;
    let next = Arc::new(AtomicU64::new(0));
    measure(scale, move |body: Arc<[u8]>| {
        let (store, next) = (store.clone(), next.clone());
        async move {
            let stream = next.fetch_add(1, Ordering::Relaxed) % (STREAMS * PRODUCERS as u64);
            let event = Event::new("happened", Message::new(body.to_vec()));
            store.append(&format!("s-{stream}"), Expected::Any, [event]).await.map(drop).map_err(text)
        }
    })
}

#[derive(Clone, Copy)]
enum Reading {
    Raw,
    All,
    Open,
    OpenCheckpoint,
    Streams,
}

fn read(count: u64, what: Reading) -> Result<Sample, Absent> {
    let (directory, runtime) = (directory()?, runtime()?);
    runtime.block_on(async {
        let broker = broker(directory.path()).await?;
        let store = EventStore::open(broker.clone(), STREAM).await.map_err(text)?;
        let body = noise(RECORD);
        let events = (0..count).map(|at| (format!("s-{}", at % STREAMS), Message::new(body.clone())));
        let mut appends = Vec::new();
        for (stream, data) in events {
            let store = store.clone();
            appends.push(tokio::spawn(async move {
                store.append(&stream, Expected::Any, [Event::new("happened", data)]).await
            }));
            if appends.len() == 1000 {
                for append in appends.drain(..) {
                    append.await.map_err(text)?.map_err(text)?;
                }
            }
        }
        for append in appends {
            append.await.map_err(text)?.map_err(text)?;
        }
        let uncached = EventStoreOptions::default().cache_bytes(0);
        let store = EventStore::open_with(broker.clone(), STREAM, uncached.clone()).await.map_err(text)?;
        if matches!(what, Reading::OpenCheckpoint) {
            // One at the end: else it depends on the moment how much comes behind it.
            let now = EventStoreOptions::default().cache_bytes(0).checkpoint_every(1);
            drop(EventStore::open_with(broker.clone(), STREAM, now).await.map_err(text)?);
        }
        let began = clock::now();
        let mut read = 0;
        match what {
            Reading::Raw => {
                let mut reader = broker.read(STREAM, StreamFrom::First).await.map_err(text)?;
                while read < count {
                    read += reader.next_chunk(256).await.map_err(text)?.len() as u64;
                }
            }
            Reading::All => {
                let mut events = store.read_all().events();
                while let Some(event) = events.next().await {
                    event.map_err(text)?;
                    read += 1;
                }
            }
            Reading::Open | Reading::OpenCheckpoint => {
                let options = if matches!(what, Reading::Open) { uncached.whole_log() } else { uncached };
                let opened = EventStore::open_with(broker.clone(), STREAM, options).await.map_err(text)?;
                read = opened.statistics().await.map_err(text)?.events;
            }
            Reading::Streams => {
                for stream in (0..STREAMS).step_by(STREAMS as usize / 20) {
                    read += store.read(&format!("s-{stream}")).collect().await.map_err(text)?.len() as u64;
                }
            }
        }
        let expected = if matches!(what, Reading::Streams) { count / 50 } else { count };
        if read != expected {
            return Err(format!("{read} events were read of {expected}"));
        }
        Ok(Sample::new().with(RATE, read as f64 / (clock::now() - began).as_secs_f64()))
    })
}

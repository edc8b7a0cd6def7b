//! The presets of streams, each value by its effect.

use std::sync::{Arc, Mutex};

use futures_util::{StreamExt, stream};
use millstream_flow::{BoxError, Pipe};
use millstream_mediator::presets::{BackpressurePreset, HealthPreset};
use millstream_mediator::{
    About, Error, HealthBoard, ItemErrors, Mediator, Memory, Pressure, PressureEvent, StreamOptions, Warning,
};
use tokio::time::{Instant, sleep};

use super::SECOND;
use crate::streams::Count;

/// A reader that waits a moment for as long as its handler goes on, then counts what is left.
async fn behind_a_slow_reader(preset: BackpressurePreset, to: u64) -> (Vec<Pressure>, Vec<u64>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let told = events.clone();
    let tell = move |_: &About, event: &PressureEvent| match event {
        PressureEvent::Entered(pressure) | PressureEvent::Left(pressure) => {
            told.lock().unwrap().push(*pressure)
        }
        _ => {}
    };
    let mediator = Mediator::builder()
        .stream_behaviour(preset.behaviour().on_event(tell))
        .stream(async |to: Count| Ok::<_, Error>(Pipe::from_iter(0..to.0).map(Ok::<_, BoxError>)))
        .build()
        .unwrap();
    let mut stream = mediator.stream(Count(to)).await.unwrap();
    let mut items = vec![stream.next().await.unwrap().unwrap()];
    sleep(SECOND).await;
    while let Some(item) = stream.next().await {
        items.push(item.unwrap());
        if items.len().is_multiple_of(16) {
            tokio::task::yield_now().await; // the handler's task has its turn
        }
    }
    let events = events.lock().unwrap().clone();
    (events, items)
}

#[tokio::test(start_paused = true)]
async fn backpressure_presets_press_at_their_marks_and_do_what_they_say() {
    // One chunk may come before a look at the marks, and one is taken before the reader is told.
    let near = |len: usize, mark: f64, capacity: usize| {
        let mark = (capacity as f64 * mark) as usize;
        len.abs_diff(mark) <= 64
    };
    for (preset, capacity, high) in [
        (BackpressurePreset::NoDataLoss, 50_000, 0.9),
        (BackpressurePreset::HighThroughput, 10_000, 0.7),
        (BackpressurePreset::MemoryConstrained, 1_000, 0.5),
        (BackpressurePreset::RealTime, 5_000, 0.6),
        (BackpressurePreset::Analytics, 25_000, 0.8),
        (BackpressurePreset::Balanced, 10_000, 0.8),
    ] {
        let to = 200_000;
        let (events, items) = behind_a_slow_reader(preset, to).await;
        assert_eq!(events[0].capacity, capacity, "{preset}");
        assert!(near(events[0].len, high, capacity), "{preset}: pressed at {}", events[0].len);
        let waits = matches!(preset, BackpressurePreset::NoDataLoss | BackpressurePreset::Balanced);
        if waits {
            assert_eq!(items.len() as u64, to, "{preset} loses nothing");
            continue;
        }
        assert!(items.len() >= capacity && (items.len() as u64) < to, "{preset}: {} items", items.len());
        let pressed_from = (capacity as f64 * high) as usize;
        let gap = |at: usize| items[at + 1] - items[at];
        match preset {
            // The newest are there, in a row.
            BackpressurePreset::HighThroughput | BackpressurePreset::RealTime => {
                assert!(
                    items[items.len() - capacity..].iter().copied().eq(to - capacity as u64..to),
                    "{preset}"
                );
            }
            // From the mark on one in so many, whose distance says it.
            _ => {
                let every = if preset == BackpressurePreset::Analytics { 10 } else { 2 };
                assert_eq!(gap(pressed_from / 2), 1, "{preset}");
                assert_eq!(gap(pressed_from + 128), every, "{preset}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn backpressure_presets_are_relieved_at_their_low_marks() {
    for (preset, capacity, low) in [
        (BackpressurePreset::NoDataLoss, 50_000, 0.3),
        (BackpressurePreset::Balanced, 10_000, 0.5),
        (BackpressurePreset::HighThroughput, 10_000, 0.3),
        (BackpressurePreset::MemoryConstrained, 1_000, 0.2),
        (BackpressurePreset::RealTime, 5_000, 0.2),
        (BackpressurePreset::Analytics, 25_000, 0.4),
    ] {
        let left = Arc::new(Mutex::new(None));
        let told = left.clone();
        let tell = move |_: &About, event: &PressureEvent| {
            if let PressureEvent::Left(pressure) = event {
                told.lock().unwrap().get_or_insert(pressure.len);
            }
        };
        // A flood that the buffer is filled by, then an item each millisecond, while the reader takes ten in that time.
        let mediator = Mediator::builder()
            .stream_behaviour(preset.behaviour().on_event(tell))
            .stream(async |to: Count| {
                let flood = stream::iter(0..to.0);
                let drops = stream::unfold(to.0, |n| async move {
                    sleep(SECOND / 1000).await;
                    Some((n, n + 1))
                });
                Ok::<_, Error>(Pipe::from_stream(flood.chain(drops).map(Ok::<_, BoxError>)))
            })
            .build()
            .unwrap();
        let mut stream = mediator.stream(Count(100_000)).await.unwrap();
        let began = Instant::now();
        while left.lock().unwrap().is_none() {
            assert!(began.elapsed() < 1000 * SECOND, "{preset}: it is not relieved");
            for _ in 0..10 {
                stream.next().await.unwrap().unwrap();
            }
            sleep(SECOND / 1000).await;
        }
        let (left, mark) = (left.lock().unwrap().unwrap(), (capacity as f64 * low) as usize);
        assert!(left <= mark && mark - left <= 128, "{preset}: relieved at {left} of {mark}");
    }
}

#[tokio::test(start_paused = true)]
async fn health_presets_warn_at_their_numbers_and_not_before() {
    for (preset, interval, stall, rate, growth_mib, errors) in [
        (HealthPreset::HighPerformance, 5, 10, 1000, 50u64, 0.01),
        (HealthPreset::DataProcessing, 30, 120, 50, 200, 0.05),
        (HealthPreset::LongRunning, 60, 300, 10, 500, 0.1),
        (HealthPreset::RealTime, 2, 5, 100, 25, 0.001),
        (HealthPreset::Development, 10, 30, 1, 100, 0.2),
    ] {
        let interval = interval * SECOND;
        let memory = Memory::new(1 << 40);
        let board = HealthBoard::default();
        // What comes in each tenth of an interval: so many items, of which so many have failed.
        let tick = Arc::new(Mutex::new((0u64, 0u64)));
        let given = tick.clone();
        let mediator = Mediator::builder()
            .stream_behaviour(preset.behaviour(&memory).board(&board))
            .stream_options::<Count>(StreamOptions::new().item_errors(ItemErrors::pass()))
            .stream(move |_: Count| {
                let given = given.clone();
                let ticks = stream::unfold((), move |()| {
                    let given = given.clone();
                    async move {
                        sleep(interval / 10).await;
                        let (items, failed) = *given.lock().unwrap();
                        let item = move |n| if n < failed { Err(BoxError::from("bad")) } else { Ok(n) };
                        Some((stream::iter((0..items).map(item)), ()))
                    }
                });
                std::future::ready(Ok::<_, Error>(Pipe::from_stream(ticks.flatten()).boxed()))
            })
            .build()
            .unwrap();
        let mut reading = mediator.stream(Count(0)).await.unwrap();
        let reader = tokio::spawn(async move { while reading.next().await.is_some() {} });
        // So many intervals later: what the board shows.
        let after = async |intervals: u32| {
            sleep(interval * intervals + interval / 20).await;
            board.open()[0].warnings.clone()
        };
        // The rate that is asked for in each tenth, rounded up, and a little more.
        let enough = (rate * u64::try_from(interval.as_millis()).unwrap()).div_ceil(10_000) + 1;
        *tick.lock().unwrap() = (enough, 0);
        assert_eq!(after(2).await, [], "{preset}: well");

        *tick.lock().unwrap() = (enough - 2, 0);
        let slow = after(2).await;
        assert!(matches!(slow[..], [Warning::LowThroughput { .. }]), "{preset}: {slow:?}");
        let bad = |part: f64| (2_000.0 * part) as u64;
        *tick.lock().unwrap() = (2_000, bad(errors));
        assert_eq!(after(2).await, [], "{preset}: as many errors as may be");
        *tick.lock().unwrap() = (2_000, bad(errors) + 2);
        let wrong = after(2).await;
        assert!(matches!(wrong[..], [Warning::HighErrorRate { .. }]), "{preset}: {wrong:?}");

        *tick.lock().unwrap() = (2_000, 0);
        let mut held = memory.reserve(growth_mib << 20);
        assert_eq!(after(2).await, [], "{preset}: as much memory as may be");
        held.set((growth_mib << 20) + 1);
        let grown = after(2).await;
        assert!(matches!(grown[..], [Warning::MemoryGrowth { .. }]), "{preset}: {grown:?}");
        drop(held);

        *tick.lock().unwrap() = (0, 0);
        let began = Instant::now();
        while !board.open()[0].warnings.iter().any(|warning| matches!(warning, Warning::Stalled { .. })) {
            sleep(SECOND / 10).await;
            assert!(began.elapsed() < 1000 * SECOND, "{preset}: no stall is found");
        }
        let found = began.elapsed();
        assert!(
            stall * SECOND - interval / 5 <= found && found <= stall * SECOND + 2 * interval,
            "{preset}: {found:?}"
        );
        reader.abort();
    }
}

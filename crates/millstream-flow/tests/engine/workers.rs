//! Workers of `parallel` that share what takes long, and what they hold.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use millstream_flow::{PanicPolicy, Pipe, Tick, Workers};

/// Keeps its thread busy.
fn works_for(time: Duration) {
    let began = Tick::now();
    while Tick::now().since(began) < time {
        std::hint::spin_loop();
    }
}

/// Lets workers learn that an item costs nothing, and then sends them as many as this, all of which one of them pulls.
async fn burst<T: Send + 'static>(
    workers: Workers,
    items: u64,
    work: impl Fn(u64) -> T + Send + Sync + 'static,
) -> Vec<T> {
    const CHEAP: u64 = 20_000;
    let (mut sender, pipe) = Pipe::channel(1024);
    let mut results = pipe.parallel(workers, move |n: u64| (n >= CHEAP).then(|| work(n - CHEAP)));
    let send = async {
        for n in 0..CHEAP {
            sender.send(n).await.unwrap();
        }
    };
    let receive = async {
        for _ in 0..CHEAP {
            assert!(results.next().await.unwrap().is_none());
        }
    };
    tokio::join!(send, receive);
    // All workers come to wait.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    // There is room for all: nobody else runs before they are sent.
    for n in 0..items {
        sender.send(CHEAP + n).await.unwrap();
    }
    drop(sender);
    let mut all = Vec::new();
    while let Some(result) = results.next().await {
        all.push(result.unwrap());
    }
    all
}

#[tokio::test]
async fn half_of_what_turns_out_to_take_long_is_taken_by_a_worker_that_is_idle() {
    for workers in [Workers::ordered(2), Workers::unordered(2)] {
        let mut own = 0;
        for _ in 0..5 {
            let by = burst(workers, 60, |n| {
                works_for(Duration::from_micros(if n == 0 { 1000 } else { 1 }));
                tokio::task::id()
            });
            let by = by.await;
            assert_eq!(by.len(), 60);
            own = by.iter().filter(|id| **id == by[0]).count();
            if (29..=32).contains(&own) {
                break;
            }
            // Unless the machine itself took its time while they learned what an item takes.
        }
        assert!((29..=32).contains(&own), "the first did {own} itself");
    }
}

#[tokio::test]
async fn what_is_shared_again_and_again_keeps_its_order() {
    let shared = Arc::new(Mutex::new(HashSet::new()));
    let seen = shared.clone();
    let results = burst(Workers::ordered(5), 60, move |n| {
        seen.lock().unwrap().insert(tokio::task::id());
        works_for(Duration::from_micros(if n % 7 == 0 { 200 } else { 20 }));
        n
    });
    assert_eq!(results.await, (0..60).collect::<Vec<_>>());
    assert!(shared.lock().unwrap().len() > 2, "what was taken over is shared again");

    let mut results = burst(Workers::unordered(5), 60, |n| {
        works_for(Duration::from_micros(if n % 7 == 0 { 200 } else { 20 }));
        n
    })
    .await;
    assert!(!results.is_sorted());
    results.sort_unstable();
    assert_eq!(results, (0..60).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_takes_no_time_is_not_shared() {
    for _ in 0..5 {
        let by = burst(Workers::ordered(2), 4, |_| tokio::task::id()).await;
        if by.iter().collect::<HashSet<_>>().len() == 1 {
            return;
        }
        // Unless the machine itself took its time.
    }
    panic!("a hand-over would cost more than the work");
}

#[tokio::test]
async fn a_panic_in_what_was_shared_costs_one_item() {
    let (mut sender, pipe) = Pipe::channel(1024);
    for n in 0..400u32 {
        sender.send(n).await.unwrap();
    }
    drop(sender);
    let by = Arc::new(Mutex::new(HashSet::new()));
    let seen = by.clone();
    let results = pipe.parallel(3, move |n| {
        seen.lock().unwrap().insert(tokio::task::id());
        works_for(Duration::from_micros(20));
        assert!(n % 100 != 99, "a test panics");
        n
    });
    let (results, _) = results.on_panic(PanicPolicy::Dead).collect().await.unwrap();
    assert_eq!(results, (0..400).filter(|n| n % 100 != 99).collect::<Vec<_>>());
    assert!(by.lock().unwrap().len() > 1, "somebody else has taken a part");
}

#[tokio::test]
async fn workers_hold_as_many_bytes_as_they_may_and_one_item() {
    for workers in [Workers::ordered(3), Workers::unordered(3)] {
        for each in [1, 10, 99, 100, 101, 5000] {
            let (max, pulled) = (600, Arc::new(AtomicUsize::new(0)));
            let counted = pulled.clone();
            let pipe = Pipe::from_iter(0..3000u32).inspect(move |_| {
                counted.fetch_add(each, Ordering::Relaxed);
            });
            let mut pipe = pipe.parallel_measured(workers.bytes(max, move |_: &u32| each), |n| n);
            let (mut read, mut most) = (0, 0);
            while pipe.next().await.is_some() {
                // Workers go on as far as they may.
                for _ in 0..if read % 97 == 0 { 50 } else { 0 } {
                    tokio::task::yield_now().await;
                }
                most = most.max(pulled.load(Ordering::Relaxed) - read * each);
                read += 1;
            }
            assert_eq!(read, 3000, "an item that is larger than all may be passes by itself");
            assert!(most <= max + each, "{most} bytes, of items of {each}");
            assert!(most + each >= max / 2, "{most} bytes only, of items of {each}");
        }
    }
}

#[test]
#[should_panic(expected = "no bytes")]
fn workers_that_may_hold_nothing_are_refused() {
    let _ = Workers::ordered(2).bytes(0, |_: &u32| 1);
}

//! Every interleaving of one writer and one reader, within loom's bounds. Run by `cargo xtask test loom`.
//!
//! Loom reports a lost wake-up as a deadlock, an unordered access of a slot as a race, and an item that is
//! never dropped as a leak.

use std::future::poll_fn;

use loom::future::block_on;
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;

use super::{Reader, ReaderGone, Writer, ring};

/// At most two forced switches a run: enough for every known ring bug, and it ends within a minute.
fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(check);
}

/// Pushes `items` in chunks of up to `chunk`, waiting for room. Each item is its own size in bytes.
fn write(
    mut writer: Writer<Arc<usize>>,
    items: usize,
    chunk: usize,
    limit: usize,
    bytes_max: usize,
) -> usize {
    block_on(async move {
        let mut sent = 0;
        while sent < items {
            let room = match poll_fn(|cx| writer.poll_room(cx, limit, bytes_max)).await {
                Ok(room) => room,
                Err(ReaderGone) => break,
            };
            let mut bytes = 0;
            for _ in 0..room.min(chunk).min(items - sent) {
                writer.push(Arc::new(sent));
                bytes += sent;
                sent += 1;
            }
            writer.publish(if bytes_max == usize::MAX { 0 } else { bytes });
        }
        sent
    })
}

/// Takes up to `most` items, each of them the next.
fn read(mut reader: Reader<Arc<usize>>, most: usize, measured: bool) -> usize {
    block_on(async move {
        let mut read = 0;
        while read < most {
            let Some(available) = poll_fn(|cx| reader.poll_available(cx)).await else { break };
            let mut stock = reader.stock(usize::MAX);
            let mut taking = stock.take();
            for _ in 0..available.min(most - read) {
                let item = taking.next().expect("as many as were available");
                assert_eq!(*item, read, "in order, none lost, none twice");
                if measured {
                    taking.add_bytes(*item);
                }
                read += 1;
            }
        }
        read
    })
}

#[test]
fn loom_items_cross_a_full_ring_in_order_and_nobody_sleeps_for_ever() {
    model(|| {
        let (writer, reader) = ring(2);
        let writing = thread::spawn(move || write(writer, 3, 2, 2, usize::MAX));
        assert_eq!(read(reader, usize::MAX, false), 3);
        assert_eq!(writing.join().unwrap(), 3);
    });
}

#[test]
fn loom_items_cross_a_ring_of_one() {
    model(|| {
        let (writer, reader) = ring(1);
        let writing = thread::spawn(move || write(writer, 3, 1, 1, usize::MAX));
        assert_eq!(read(reader, usize::MAX, false), 3);
        assert_eq!(writing.join().unwrap(), 3);
    });
}

#[test]
fn loom_a_ring_bounded_in_bytes_does_not_lose_the_wake_up() {
    model(|| {
        let (writer, reader) = ring(4);
        // 0 + 1 fill it; item 2 is larger than the bound and passes into an empty ring.
        let writing = thread::spawn(move || write(writer, 3, 1, 4, 1));
        assert_eq!(read(reader, usize::MAX, true), 3);
        assert_eq!(writing.join().unwrap(), 3);
    });
}

#[test]
fn loom_a_reader_that_goes_wakes_the_writer_and_leaks_nothing() {
    model(|| {
        let (writer, reader) = ring(1);
        let writing = thread::spawn(move || write(writer, 3, 1, 1, usize::MAX));
        assert_eq!(read(reader, 1, false), 1);
        assert!(writing.join().unwrap() >= 1);
    });
}

#[test]
fn loom_a_writer_that_goes_hands_over_what_it_pushed() {
    model(|| {
        let (mut writer, reader) = ring(2);
        let writing = thread::spawn(move || {
            writer.push(Arc::new(0));
            writer.push(Arc::new(1));
        });
        assert_eq!(read(reader, usize::MAX, false), 2);
        writing.join().unwrap();
    });
}

#[test]
fn loom_items_filled_in_stretches_and_taken_one_by_one_cross_in_order() {
    model(|| {
        let (mut writer, mut reader) = ring(2);
        let writing = thread::spawn(move || {
            block_on(async move {
                let mut sent = 0;
                while sent < 3 {
                    let Ok(room) = poll_fn(|cx| writer.poll_room(cx, 2, usize::MAX)).await else { break };
                    let mut slots = writer.room(1);
                    let mut left = room.min(3 - sent);
                    while left > 0 {
                        let row = slots.in_a_row().min(left);
                        let mut stretch = slots.stretch(row);
                        for _ in 0..row {
                            stretch.push(Arc::new(sent));
                            sent += 1;
                        }
                        left -= row;
                    }
                    writer.publish(0);
                }
            });
        });
        let read = block_on(async move {
            let mut read = 0;
            while poll_fn(|cx| reader.poll_available(cx)).await.is_some() {
                let item = reader.stock(1).take().next().expect("one was available");
                assert_eq!(*item, read, "in order, none lost, none twice");
                read += 1;
            }
            read
        });
        assert_eq!(read, 3);
        writing.join().unwrap();
    });
}

//! The ring polled by hand, on one thread and on two; small enough for Miri.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use super::{ReaderGone, ring};

/// A bound on bytes that is never reached.
const ANY: usize = usize::MAX;

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

#[test]
fn what_is_pushed_is_seen_only_when_published() {
    let (mut writer, mut reader) = ring(4);
    assert_eq!(writer.poll_room(&mut cx(), 4, ANY), Poll::Ready(Ok(4)));
    writer.push(1);
    assert_eq!(reader.poll_available(&mut cx()), Poll::Pending);
    assert_eq!(writer.publish(0), 1);
    assert_eq!(reader.poll_available(&mut cx()), Poll::Ready(Some(1)));
    assert_eq!(reader.stock(usize::MAX).take().next(), Some(1));
}

#[test]
fn what_is_left_is_dropped_by_the_last_side_to_go_whoever_looks_at_the_ring() {
    for reader_first in [true, false] {
        let item = Arc::new(());
        let (mut writer, reader) = ring(4);
        writer.push(item.clone());
        writer.publish(0);
        // As a gauge does for a moment.
        let looking = writer.shared.clone();
        let gauge = writer.gauge();
        if reader_first {
            drop(reader);
            drop(writer);
        } else {
            drop(writer);
            drop(reader);
        }
        assert_eq!(Arc::strong_count(&item), 1);
        assert_eq!(gauge(), Some((0, 0)));
        drop(looking);
        assert_eq!((gauge(), Arc::strong_count(&item)), (None, 1));
    }
}

#[test]
fn the_limit_holds_below_the_number_of_slots() {
    let (mut writer, mut reader) = ring(8);
    assert_eq!(writer.poll_room(&mut cx(), 3, ANY), Poll::Ready(Ok(3)));
    for item in 0..3 {
        writer.push(item);
    }
    writer.publish(0);
    assert_eq!(writer.poll_room(&mut cx(), 3, ANY), Poll::Pending);
    assert_eq!(writer.poll_room(&mut cx(), 5, ANY), Poll::Ready(Ok(2)), "a raised limit takes effect");
    assert!(reader.poll_available(&mut cx()).is_ready());
    assert_eq!(reader.stock(usize::MAX).take().next(), Some(0));
    assert_eq!(writer.poll_room(&mut cx(), 1, ANY), Poll::Pending, "so does a lowered one");
}

#[test]
fn an_empty_ring_takes_one_item_of_any_size() {
    let (mut writer, mut reader) = ring(8);
    assert_eq!(writer.poll_room(&mut cx(), 8, 10), Poll::Ready(Ok(8)));
    writer.push("large");
    writer.publish(1_000);
    assert_eq!(writer.poll_room(&mut cx(), 8, 10), Poll::Pending);
    assert!(reader.poll_available(&mut cx()).is_ready());
    let mut stock = reader.stock(usize::MAX);
    let mut taking = stock.take();
    taking.next();
    taking.add_bytes(1_000);
    drop(taking);
    assert_eq!(writer.bytes(), 0);
    assert_eq!(writer.poll_room(&mut cx(), 8, 10), Poll::Ready(Ok(8)));
}

#[test]
#[should_panic(expected = "more items than it was asked for")]
fn a_push_into_a_full_ring_panics_rather_than_overwrites() {
    let (mut writer, _reader) = ring(2);
    for item in 0..3 {
        writer.push(item);
    }
}

#[test]
fn items_that_nobody_takes_are_dropped_once() {
    let item = Arc::new(());
    let (mut writer, mut reader) = ring(4);
    for _ in 0..4 {
        writer.push(item.clone());
    }
    writer.publish(0);
    assert!(reader.poll_available(&mut cx()).is_ready());
    drop(reader.stock(usize::MAX).take().next());
    assert_eq!(Arc::strong_count(&item), 4);
    drop(reader);
    assert_eq!(writer.poll_room(&mut cx(), 4, ANY), Poll::Ready(Err(ReaderGone)));
    drop(writer);
    assert_eq!(Arc::strong_count(&item), 1);
}

#[test]
fn a_writer_that_goes_hands_over_what_it_pushed() {
    let (mut writer, mut reader) = ring(4);
    writer.push(7);
    drop(writer);
    assert_eq!(reader.poll_available(&mut cx()), Poll::Ready(Some(1)));
    assert_eq!(reader.stock(usize::MAX).take().next(), Some(7));
    assert_eq!(reader.poll_available(&mut cx()), Poll::Ready(None));
}

#[test]
fn two_threads_move_items_in_order() {
    const ITEMS: usize = if cfg!(miri) { 200 } else { 100_000 };
    let (mut writer, mut reader) = ring(16);
    let writing = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move {
            let mut sent = 0;
            while sent < ITEMS {
                let room = poll_fn(|cx| writer.poll_room(cx, 10, ANY)).await.unwrap();
                for _ in 0..room.min(ITEMS - sent) {
                    writer.push(Box::new(sent));
                    sent += 1;
                }
                writer.publish(0);
            }
        });
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let read = runtime.block_on(async move {
        let mut read = 0;
        while poll_fn(|cx| reader.poll_available(cx)).await.is_some() {
            let mut stock = reader.stock(usize::MAX);
            let mut taking = stock.take();
            while let Some(item) = taking.next() {
                assert_eq!(*item, read);
                read += 1;
            }
        }
        read
    });
    assert_eq!(read, ITEMS);
    writing.join().unwrap();
}

#[test]
fn stretches_end_where_the_ring_begins_again_and_chunks_are_published_as_they_come() {
    let (mut writer, mut reader) = ring(8);
    let mut next = 0;
    let mut read = 0;
    for round in 1..40 {
        let Poll::Ready(Ok(room)) = writer.poll_room(&mut cx(), 8, ANY) else { panic!("there is room") };
        let items = room.min(round % 7 + 1);
        let mut room = writer.room(3);
        let mut left = items;
        while left > 0 {
            let row = room.in_a_row().min(left);
            let mut stretch = room.stretch(row);
            for _ in 0..row {
                stretch.push(Box::new(next));
                next += 1;
            }
            left -= row;
        }
        // The fourth item shows that three are enough.
        let early = (items - 1) / 3 * 3;
        let seen = match reader.poll_available(&mut cx()) {
            Poll::Ready(Some(seen)) => seen,
            _ => 0,
        };
        assert_eq!(seen, early, "of {items}");
        assert_eq!(writer.publish(0), items - early);
        while let Poll::Ready(Some(_)) = reader.poll_available(&mut cx()) {
            let mut stock = reader.stock(1 + round % 3);
            let mut taking = stock.take();
            while let Some(item) = taking.next() {
                assert_eq!(*item, read);
                read += 1;
            }
        }
    }
    assert_eq!((writer.written(), read), (next, next));
    assert!(writer.chunks() >= 39);
}

#[test]
fn who_takes_one_by_one_gives_room_back_by_eighths_and_all_of_it_at_the_end() {
    let (mut writer, mut reader) = ring(16);
    assert_eq!(writer.poll_room(&mut cx(), 16, ANY), Poll::Ready(Ok(16)));
    (0..16).for_each(|item| writer.push(item));
    writer.publish(0);
    assert!(reader.poll_available(&mut cx()).is_ready());
    let mut known = Vec::new();
    for _ in 0..16 {
        reader.stock(1).take().next();
        known.push(writer.shared.head.0.load(Ordering::Relaxed));
    }
    assert_eq!(known, [0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14, 16]);
}

#[test]
fn what_was_taken_and_not_released_is_not_dropped_with_the_ring() {
    let (mut writer, mut reader) = ring(64);
    let item = Arc::new(());
    assert_eq!(writer.poll_room(&mut cx(), 64, ANY), Poll::Ready(Ok(64)));
    (0..8).for_each(|_| writer.push(item.clone()));
    writer.publish(0);
    assert!(reader.poll_available(&mut cx()).is_ready());
    let taken = reader.stock(1).take().next();
    assert_eq!(writer.shared.head.0.load(Ordering::Relaxed), 0, "one is less than an eighth");
    drop((writer, reader));
    assert_eq!(Arc::strong_count(&item), 2, "this one and the one taken");
    drop(taken);
}

//! Appending and waiting: groups, room, order, readers at the tail.

mod log_support;

use std::{
    future::Future,
    path::Path,
    pin::pin,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
    task::{Context, Poll, Wake},
};

use log_support::{DIR, body, entry, small};
use millstream_embedded::log::{
    AppendError, Entry, Log, LogSettings, Position, ReadError, RealDisk, SimDisk,
};

fn open(settings: LogSettings) -> Log {
    Log::open(Path::new(DIR), settings, Arc::new(SimDisk::new()), &mut |_| {}).expect("opens").0
}

fn threaded() -> LogSettings {
    LogSettings { background: true, ..small() }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn an_awaited_commit_means_durable() {
    let log = open(threaded());
    for id in 1..200 {
        let bytes = body(id);
        let appended = log.append(entry(id, &bytes)).await.expect("accepted");
        appended.commit.await.expect("the disk is fine");
        assert!(log.durable() > appended.position);
        assert_eq!(log.read_at(appended.position).expect("reads").body, bytes);
    }
    log.release_before(log.durable());
    log.close().expect("closes");
}

#[test]
fn a_record_left_for_later_goes_with_the_next_group() {
    let log = open(small());
    let lazy = log.append_blocking(entry(1, b"lazy")).expect("accepted");
    let position = lazy.position;
    lazy.commit.later();
    assert_eq!(log.stats().groups, 0, "nobody asked");
    assert!(matches!(log.read_at(position), Err(ReadError::NotDurable(p)) if p == position));
    log.append_blocking(entry(2, b"eager")).expect("accepted").commit.wait().expect("the disk is fine");
    assert_eq!(log.stats().groups, 1, "one write for both");
    assert_eq!(log.read_at(position).expect("is durable").body, "lazy");
}

#[test]
fn a_kick_writes_what_was_left_for_later() {
    let log = open(small());
    log.append_blocking(entry(1, b"lazy")).expect("accepted").commit.later();
    log.kick();
    assert_eq!((log.stats().groups, log.durable()), (1, log.end()));
    log.kick();
    assert_eq!(log.stats().groups, 1, "nothing to write is not written");
}

#[test]
fn dropping_a_commit_takes_nothing_back() {
    let log = open(small());
    drop(log.append_blocking(entry(1, b"kept")).expect("accepted").commit);
    assert_eq!(log.durable(), log.end());
}

#[test]
fn closing_writes_what_was_left_for_later() {
    let disk = SimDisk::new();
    let open = |records: &mut u64| {
        let (log, recovery) =
            Log::open(Path::new(DIR), small(), Arc::new(disk.clone()), &mut |_| {}).expect("opens");
        *records = recovery.records;
        (log, recovery.clean)
    };
    let mut records = 0;
    let (log, clean) = open(&mut records);
    assert!(!clean, "a new log was not closed");
    log.append_blocking(entry(1, b"lazy")).expect("accepted").commit.later();
    log.close().expect("closes");
    let (log, clean) = open(&mut records);
    assert_eq!((records, clean), (1, true));
    drop(log);
    assert!(open(&mut records).1, "dropping closes too");
}

#[test]
fn a_commit_wakes_its_task_once_and_knows_the_outcome() {
    let log = open(small());
    let first = log.append_blocking(entry(1, b"one")).expect("accepted");
    assert!(first.commit.outcome().is_none());
    let flush = log.flush();
    drop(first);
    assert!(matches!(flush.outcome(), Some(Ok(()))));
    let woken = Arc::new(Woken::default());
    let waker = woken.clone().into();
    let mut flush = pin!(flush);
    assert!(matches!(flush.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Ready(Ok(()))));
    assert_eq!(woken.0.load(Ordering::SeqCst), 0, "it was durable already");
    assert!(matches!(log.flush().outcome(), Some(Ok(()))), "nothing is pending");
}

#[test]
fn room_is_limited_and_comes_back_with_durability() {
    let log = open(small());
    let bytes = vec![1; 4000];
    let entry = Entry { body: &bytes, ..Entry::default() };
    let mut accepted = 0;
    loop {
        match log.try_append(entry) {
            Ok(appended) => appended.commit.later(),
            Err(error) => break assert_eq!(error, AppendError::Busy),
        }
        accepted += 1;
    }
    assert_eq!(accepted, small().pending_bytes_max / 4032, "bytes count, headers included");
    assert_eq!(log.try_append_batch(&[entry; 2]).err(), Some(AppendError::Busy));
    assert_eq!(log.stats().records, accepted as u64, "nothing of what was refused was taken");
    // Waiting for room has what takes it written, though nobody awaits any of its commits.
    log.append_blocking(entry).expect("room comes back").commit.wait().expect("the disk is fine");
    assert_eq!(log.stats().groups, 2);
}

#[tokio::test]
async fn waiting_for_room_needs_nobody_else_to_act() {
    let log = open(threaded());
    let bytes = vec![1; 4000];
    for _ in 0..200 {
        log.append(Entry { body: &bytes, ..Entry::default() }).await.expect("accepted").commit.later();
    }
    log.flush().await.expect("the disk is fine");
    assert_eq!(log.durable(), log.end());
}

#[test]
fn a_batch_larger_than_the_room_is_stored_whole() {
    for settings in [small(), threaded()] {
        let log = open(settings);
        let bodies: Vec<_> = (1..400).map(body).collect();
        let entries: Vec<_> = (1..400).zip(&bodies).map(|(id, body)| entry(id, body)).collect();
        assert!(bodies.iter().map(Vec::len).sum::<usize>() > 2 * small().pending_bytes_max);
        let batch = log.append_batch_blocking(&entries).expect("accepted");
        batch.commit.wait().expect("the disk is fine");
        assert!(log.stats().groups > 1);
        for (position, bytes) in batch.positions.iter().zip(&bodies) {
            assert_eq!(log.read_at(*position).expect("reads").body, *bytes);
        }
    }
}

#[test]
fn an_empty_batch_is_durable_at_once() {
    let log = open(small());
    let batch = log.append_batch_blocking(&[]).expect("accepted");
    assert!(batch.positions.is_empty());
    batch.commit.wait().expect("nothing to do");
    log.append_atomic_blocking(&[]).expect("accepted").commit.wait().expect("nothing to do");
    assert_eq!(log.stats().groups, 0);
}

#[test]
fn many_threads_share_syncs_and_every_record_is_there_in_order() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let settings =
        LogSettings { segment_bytes: 1 << 20, record_bytes_max: 64 << 10, ..LogSettings::default() };
    let (log, _) = Log::open(dir.path(), settings.clone(), Arc::new(RealDisk), &mut |_| {}).expect("opens");
    let log = &log;
    std::thread::scope(|scope| {
        for thread in 0..16_u64 {
            scope.spawn(move || {
                let mut last = Position::ZERO;
                for n in 0..100 {
                    let id = thread * 1000 + n;
                    let appended = log.append_blocking(entry(id, &body(id))).expect("accepted");
                    assert!(appended.position > last, "positions grow");
                    last = appended.position;
                    appended.commit.wait().expect("the disk is fine");
                    assert_eq!(log.read_at(last).expect("reads").time, id);
                }
            });
        }
    });
    let stats = log.stats();
    assert_eq!(stats.records, 1600);
    assert!(stats.groups < 1600, "{stats:?}");
    let mut reader = log.reader(Position::ZERO);
    let mut next = [0; 16];
    while let Some(record) = reader.next().expect("sound") {
        let (thread, n) = ((record.time / 1000) as usize, record.time % 1000);
        assert_eq!((n, record.body), (next[thread], &body(record.time)[..]));
        next[thread] += 1;
    }
    assert_eq!(next, [100; 16]);
}

#[test]
fn a_reader_follows_the_tail() {
    let log = open(small());
    let mut reader = log.reader(Position::ZERO);
    for id in 1..300 {
        assert_eq!(reader.next().expect("sound"), None);
        let appended = log.append_blocking(entry(id, &body(id))).expect("accepted");
        assert_eq!(reader.next().expect("sound"), None, "what is not durable is not read");
        appended.commit.wait().expect("the disk is fine");
        let record = reader.next().expect("sound").expect("is durable now");
        assert_eq!((record.position, record.time, record.body), (appended.position, id, &body(id)[..]));
        assert_eq!(record.end(), log.end());
    }
    assert_eq!(reader.position(), log.end());
}

#[test]
fn what_was_released_is_gone_and_readers_pass_over_it() {
    let log = open(small());
    let positions: Vec<_> = (1..200)
        .map(|id| {
            let appended = log.append_blocking(entry(id, &body(id))).expect("accepted");
            appended.commit.wait().expect("the disk is fine");
            appended.position
        })
        .collect();
    let mut reader = log.reader(Position::ZERO);
    assert_eq!(reader.next().expect("sound").map(|r| r.time), Some(1));
    let starts = log.segment_starts();
    let middle = positions[100];
    log.release_before(middle);
    let kept = *starts.iter().rfind(|s| **s <= middle).expect("one holds it");
    assert_eq!(log.start(), kept, "whole segments, and no more than asked for");
    assert!(matches!(log.read_at(positions[0]), Err(ReadError::Gone(p)) if p == positions[0]));
    assert_eq!(log.read_at(middle).expect("is kept").time, 101);
    let fresh = log.reader(Position::ZERO).next().expect("sound").map(|r| r.position);
    assert_eq!(fresh, Some(kept));
    let mut last = 1;
    while let Some(record) = reader.next().expect("released is not damaged") {
        assert!(record.time > last && record.body == body(record.time), "in order");
        last = record.time;
    }
    assert_eq!(last, 199, "the reader that was under way comes to the end");
    log.release_before(log.end());
    let stats = log.stats();
    assert_eq!(stats.segments, 1, "the one being written stays");
    assert!(stats.disk_bytes <= 3 * small().segment_bytes, "{stats:?}");
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    let disk = SimDisk::new();
    for (settings, name) in [
        (LogSettings { segment_bytes: 5000, ..LogSettings::default() }, "segment_bytes is 5000"),
        (
            LogSettings { record_bytes_max: 64 << 20, ..LogSettings::default() },
            "record_bytes_max is 67108864",
        ),
        (LogSettings { pending_bytes_max: 1, ..LogSettings::default() }, "pending_bytes_max is 1"),
    ] {
        let error =
            Log::open(Path::new(DIR), settings, Arc::new(disk.clone()), &mut |_| {}).expect_err("refused");
        assert!(error.to_string().contains(name), "{error}");
    }
}

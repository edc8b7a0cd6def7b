//! What the log does when the disk fails, fills up, or changes bits.

mod log_support;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use log_support::{DIR, body, entry, small};
use millstream_embedded::log::{
    CommitErrorKind, Entry, Fault, Log, LogErrorKind, LogSettings, Position, ReadError, Recovery, Replay,
    SimDisk, stored_len,
};

type Seen = Vec<(Position, u64)>;

fn open(disk: &SimDisk) -> (Log, Recovery, Seen) {
    let mut seen = Vec::new();
    let (log, recovery) = Log::open(Path::new(DIR), small(), Arc::new(disk.clone()), &mut |replay| {
        if let Replay::Record(record) = replay {
            assert_eq!(record.body, body(record.time), "what is handed over is what was stored");
            seen.push((record.position, record.time));
        }
    })
    .expect("opens");
    (log, recovery, seen)
}

/// Appends and confirms records `from..to`, each in a group of its own.
fn store(log: &Log, from: u64, to: u64) -> Seen {
    (from..to)
        .map(|id| {
            let appended = log.append_blocking(entry(id, &body(id))).expect("within limits");
            appended.commit.wait().expect("the disk is fine");
            (appended.position, id)
        })
        .collect()
}

fn ids(seen: &Seen) -> Vec<u64> {
    seen.iter().map(|(_, id)| *id).collect()
}

fn segment_files(disk: &SimDisk) -> Vec<std::path::PathBuf> {
    disk.files()
        .into_iter()
        .map(|(path, _)| path)
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .collect()
}

#[test]
fn a_flipped_bit_anywhere_costs_at_most_its_record_and_is_reported() {
    let disk = SimDisk::new();
    let (log, ..) = open(&disk);
    let stored = store(&log, 1, 60);
    let starts: Vec<u64> = log.segment_starts().iter().map(|p| p.get()).collect();
    log.close().expect("closes");
    assert!(starts.len() > 1, "the workload spans segments");
    let ends: BTreeMap<u64, u64> =
        stored.iter().map(|(p, id)| (p.get(), p.get() + 32 + body(*id).len() as u64)).collect();

    for (path, len) in disk.files() {
        let name = path.file_name().and_then(|n| n.to_str()).expect("ours").to_owned();
        let base: Option<u64> = name.strip_suffix(".log").map(|digits| digits.parse().expect("ours"));
        let mut offset = 0;
        while offset < len {
            let flipped = disk.fork();
            flipped.tamper(&path, |bytes| bytes[offset as usize] ^= 1 << (offset % 8)).expect("is there");
            let (_log, recovery, seen) = open(&flipped);
            let next = base.and_then(|base| starts.iter().copied().find(|s| *s > base));
            let at = base.filter(|_| offset >= 4096).map(|base| base + offset - 4096);
            let at = at.filter(|at| next.is_none_or(|next| *at < next));
            let hit = at.and_then(|at| ends.range(..=at).next_back().filter(|(_, end)| at < **end));
            let expected: Vec<u64> = stored
                .iter()
                .filter(|(p, _)| hit.is_none_or(|(from, _)| p.get() != *from))
                .map(|(_, id)| *id)
                .collect();
            assert_eq!(ids(&seen), expected, "{name}, byte {offset}");
            assert_eq!(
                recovery.damaged.len(),
                usize::from(hit.is_some()),
                "{name}, byte {offset}: {recovery:?}"
            );
            // The bytes that decide are few; of the bodies, a sample.
            offset += if offset < 48 || (4096..4200).contains(&offset) { 1 } else { 61 };
        }
    }
}

#[test]
fn damage_in_a_log_that_was_not_closed_is_told_from_a_torn_tail() {
    let disk = SimDisk::new();
    let (log, ..) = open(&disk);
    let stored = store(&log, 1, 12);
    disk.stop();
    drop(log);
    disk.crash(1);
    let file = segment_files(&disk).pop().expect("one");
    let base: u64 = file.file_stem().and_then(|s| s.to_str()).expect("ours").parse().expect("ours");
    for (index, (position, _)) in stored.iter().enumerate() {
        let flipped = disk.fork();
        flipped.tamper(&file, |bytes| bytes[(position.get() - base + 4096 + 5) as usize] ^= 1);
        let (_log, recovery, seen) = open(&flipped);
        if index + 1 < stored.len() {
            // The record behind it was written after this one's sync, and says so.
            assert_eq!(recovery.damaged.len(), 1, "record {index}");
            assert_eq!(seen.len(), stored.len() - 1, "record {index}");
        } else {
            assert_eq!(
                (recovery.damaged.len(), seen.len()),
                (0, stored.len() - 1),
                "nothing proves the last one"
            );
            assert!(recovery.torn_bytes > 0);
        }
    }
}

#[test]
fn a_damaged_range_is_set_aside_once() {
    let disk = SimDisk::new();
    let (log, ..) = open(&disk);
    let stored = store(&log, 1, 6);
    log.close().expect("closes");
    let file = segment_files(&disk).remove(0);
    disk.tamper(&file, |bytes| bytes[4096 + 40..4096 + 44].fill(0xff));
    for _ in 0..2 {
        let (log, recovery, _) = open(&disk);
        assert_eq!(recovery.damaged, [stored[0].0..stored[1].0]);
        assert!(
            matches!(log.read_at(stored[0].0), Err(ReadError::Damaged(range)) if range == recovery.damaged[0])
        );
        assert_eq!(log.read_at(stored[1].0).expect("is sound").body, body(2));
        let mut reader = log.reader(Position::ZERO);
        assert!(matches!(reader.next(), Err(ReadError::Damaged(_))));
        assert_eq!(reader.next().expect("goes on").map(|r| r.time), Some(2));
        log.close().expect("closes");
        let aside: Vec<_> =
            disk.files().into_iter().filter(|(p, _)| p.extension().is_some_and(|e| e == "bytes")).collect();
        assert_eq!(aside.len(), 1);
        assert_eq!(aside[0].1, stored[1].0.get() - stored[0].0.get());
    }
}

#[test]
fn what_was_cut_off_never_comes_back() {
    // A tears, B behind it does not: both are gone. Then A2, of the same length as A, takes A's place, and B's
    // old bytes follow it at the right position with a right checksum.
    let disk = SimDisk::new();
    let (log, ..) = open(&disk);
    store(&log, 1, 2);
    log.close().expect("closes");

    let times = |disk: &SimDisk| {
        let mut times = Vec::new();
        let opened = Log::open(Path::new(DIR), small(), Arc::new(disk.clone()), &mut |replay| {
            if let Replay::Record(record) = replay {
                times.push(record.time);
            }
        });
        (opened.expect("opens").0, times)
    };
    let (log, _) = times(&disk);
    // A ends with a page: otherwise the zeros that fill up the page behind A2 would wipe B out.
    let same = vec![7; (2 * 4096 - 32 - log.end().get() as usize % 4096) % 4096];
    let make = |time| Entry { kind: 0, time, head: b"", body: &same };
    let b = Entry { kind: 0, time: 101, head: b"", body: b"B" };
    let batch = log.append_batch_blocking(&[make(100), b]).expect("within limits");
    batch.commit.wait().expect("the disk is fine");
    disk.stop();
    drop(log);
    disk.crash(1); // everything was synced
    let file = segment_files(&disk).remove(0);
    disk.tamper(&file, |bytes| bytes[(batch.positions[0].get()) as usize + 100] ^= 1);

    let (log, seen) = times(&disk);
    assert_eq!(seen, [1], "nothing says that the torn group had been durable");
    let again = log.append_blocking(make(200)).expect("within limits");
    assert_eq!(again.position, batch.positions[0], "the same place");
    again.commit.wait().expect("the disk is fine");
    disk.stop();
    drop(log);
    disk.crash(1);
    assert_eq!(times(&disk).1, [1, 200], "the old record behind it stays gone");
}

#[test]
fn records_of_a_recycled_segment_never_come_back() {
    let disk = SimDisk::new();
    let (log, ..) = open(&disk);
    let make = |time| Entry { kind: 0, time, head: b"", body: &[1; 1000] };
    for time in 0..60 {
        log.append_blocking(make(time)).expect("within limits").commit.wait().expect("the disk is fine");
    }
    log.checkpoint(b"", log.durable()).expect("stores");
    log.release_before(log.durable());
    let names: Vec<_> = disk.files();
    assert!(names.iter().any(|(p, _)| p.to_string_lossy().contains("spare-")), "recycled: {names:?}");
    for time in 1000..1020 {
        log.append_blocking(make(time)).expect("within limits").commit.wait().expect("the disk is fine");
    }
    disk.stop();
    drop(log);
    disk.crash(3);
    let mut times = Vec::new();
    let (_log, recovery) = Log::open(Path::new(DIR), small(), Arc::new(disk), &mut |replay| {
        if let Replay::Record(record) = replay {
            times.push(record.time);
        }
    })
    .expect("opens");
    assert_eq!(times, (1000..1020).collect::<Vec<_>>());
    assert!(recovery.damaged.is_empty());
}

#[test]
fn a_failed_sync_gives_up_its_segment_and_nothing_else() {
    for fault in [Fault::Sync, Fault::Write] {
        let disk = SimDisk::new();
        let (log, ..) = open(&disk);
        let mut stored = store(&log, 1, 5);
        disk.inject(fault, 1);
        stored.extend(store(&log, 5, 9));
        let stats = log.stats();
        assert_eq!((stats.failed_syncs, stats.failed_groups, stats.segments), (1, 0, 2), "{fault:?}");
        for (position, id) in &stored {
            assert_eq!(log.read_at(*position).expect("is there").body, body(*id));
        }
        disk.stop();
        drop(log);
        disk.crash(9);
        assert_eq!(open(&disk).2, stored, "{fault:?}");
    }
}

#[test]
fn a_disk_that_fails_for_good_is_reported_as_maybe_stored() {
    let disk = SimDisk::new();
    let (log, ..) = open(&disk);
    store(&log, 1, 3);
    // The first failure is the record's own segment; the next ones those of the fresh segments.
    disk.inject(Fault::Sync, 1000);
    let appended = log.append_blocking(entry(3, &body(3))).expect("accepted");
    let error = appended.commit.wait().expect_err("nothing can be synced");
    assert_eq!(error.kind(), CommitErrorKind::MaybeStored);
    assert!(!error.is_full());
    disk.inject(Fault::Sync, 0);
    let later = store(&log, 4, 6);
    assert_eq!(log.stats().failed_groups, 1);
    let mut reader = log.reader(later[0].0);
    assert_eq!(reader.next().expect("reads").map(|r| r.time), Some(4));
}

#[test]
fn a_full_disk_refuses_keeps_reading_and_recovers_by_itself() {
    let disk = SimDisk::new();
    let (log, ..) = open(&disk);
    let mut stored = store(&log, 1, 3);
    disk.set_capacity(disk.used_bytes() + 100);
    let mut id = 3;
    let error = loop {
        let appended = log.append_blocking(entry(id, &body(id))).expect("accepted");
        match appended.commit.wait() {
            Ok(()) => stored.push((appended.position, id)),
            Err(error) => break error,
        }
        id += 1;
        assert!(id < 1000, "the segment has an end");
    };
    assert_eq!(error.kind(), CommitErrorKind::NotStored);
    assert!(error.is_full());
    assert!(error.to_string().contains("make room"), "{error}");
    let cause = std::error::Error::source(&error).expect("the disk's own").to_string();
    assert!(cause.contains("the next segment of the log needs 1 MiB"), "{cause}");
    for (position, id) in &stored {
        assert_eq!(log.read_at(*position).expect("reads go on").body, body(*id));
    }
    disk.set_capacity(0);
    stored.extend(store(&log, 2000, 2010));
    disk.stop();
    drop(log);
    disk.crash(4);
    assert_eq!(open(&disk).2, stored, "what was confirmed is there, what was refused is not");
}

/// The next segment gets its name: what is released later must not be that one.
#[test]
fn a_segment_with_a_damaged_head_and_no_record_is_in_nobodys_way() {
    let disk = SimDisk::new();
    let (log, ..) = open(&disk);
    let mut stored = Vec::new();
    let full = segment_files(&disk).len() + 2;
    let mut id = 1;
    while segment_files(&disk).len() < full {
        stored.extend(store(&log, id, id + 1));
        id += 1;
    }
    disk.stop();
    drop(log);
    disk.crash(1);
    // The last segment had begun with the last record, which never arrived.
    let last = segment_files(&disk).pop().expect("there are several");
    let (_, lost) = stored.pop().expect("several");
    disk.tamper(&last, |bytes| {
        bytes[4096..].fill(0);
        bytes[20] ^= 1;
    })
    .expect("it is there");
    let (log, ..) = open(&disk);
    let first_new = log.end();
    let new = store(&log, lost, lost + 3);
    log.checkpoint(b"", first_new).expect("stores");
    log.release_before(first_new);
    disk.stop();
    drop(log);
    disk.crash(2);
    assert_eq!(open(&disk).2, new, "what was stored behind it");
}

/// What was written and never synced lies behind the end, and in the system's cache only.
#[test]
fn a_log_that_gave_records_up_is_not_closed_as_clean() {
    let disk = SimDisk::new();
    let (log, ..) = open(&disk);
    store(&log, 1, 3);
    disk.inject(Fault::Sync, 1000);
    log.append_blocking(entry(3, &body(3))).expect("accepted").commit.wait().expect_err("nothing is synced");
    disk.inject(Fault::Sync, 0);
    log.close().expect("closes");
    let (log, recovery, _) = open(&disk);
    assert!(!recovery.clean);
    log.close().expect("closes");
    assert!(open(&disk).1.clean, "settled once, it is");
}

/// A batch over several groups, the first of which is durable: after a crash a part of it is there.
#[test]
fn a_batch_of_which_a_part_is_stored_is_not_called_unstored() {
    let disk = SimDisk::new();
    let (log, ..) = open(&disk);
    store(&log, 1, 3);
    disk.set_capacity(disk.used_bytes() + (40 << 10));
    let bodies = vec![vec![1; 5000]; 20];
    let entries: Vec<_> = bodies.iter().map(|body| Entry { kind: 0, time: 9, head: b"", body }).collect();
    let appended = log.append_batch_blocking(&entries).expect("accepted");
    let error = appended.commit.wait().expect_err("there is no room for all");
    disk.set_capacity(0);
    let mut found = 0;
    disk.stop();
    drop(log);
    disk.crash(3);
    let (_log, _) = Log::open(Path::new(DIR), small(), Arc::new(disk), &mut |replay| {
        found += usize::from(matches!(replay, Replay::Record(record) if record.time == 9));
    })
    .expect("opens");
    assert!(found > 0 && found < 20, "{found}");
    assert_eq!(error.kind(), CommitErrorKind::MaybeStored, "{found} of 20 are there");
}

/// What a full disk refused is behind the last record when the log is closed. Nobody may take it for lost later.
#[test]
fn what_was_given_up_at_the_end_is_no_damage_after_a_checkpoint() {
    let disk = SimDisk::new();
    let (log, ..) = open(&disk);
    let mut stored = store(&log, 1, 3);
    disk.set_capacity(disk.used_bytes() + 500);
    for id in 3.. {
        let appended = log.append_blocking(entry(id, &body(id))).expect("accepted");
        match appended.commit.wait() {
            Ok(()) => stored.push((appended.position, id)),
            Err(error) if error.is_full() => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(log.durable() > stored[stored.len() - 1].0, "positions were given up");
    log.checkpoint(b"state", log.durable()).expect("there is room for it");
    log.close().expect("closes");
    let sound = |when: &str| {
        let report = millstream_embedded::log::verify(Path::new(DIR), &disk).expect("a log");
        assert!(report.is_sound(), "{when}: {report:?}");
    };
    sound("closed with the disk full");
    let (log, recovery, _) = open(&disk);
    assert!(recovery.damaged.is_empty(), "{recovery:?}");
    log.checkpoint(b"state", log.durable()).expect("there is room for it");
    log.close().expect("closes");
    sound("opened and closed again");
    disk.set_capacity(0);
    let (log, ..) = open(&disk);
    let later = store(&log, 2000, 2010);
    log.close().expect("closes");
    sound("gone on with");
    assert_eq!(open(&disk).2, later, "what the checkpoint does not cover");
}

#[test]
fn a_damaged_checkpoint_is_set_aside_and_the_records_replayed() {
    let disk = SimDisk::new();
    let (log, ..) = open(&disk);
    let mut stored = store(&log, 1, 4);
    log.checkpoint(b"state", log.durable()).expect("stores");
    stored.extend(store(&log, 4, 6));
    log.close().expect("closes");
    let (path, _) = disk
        .files()
        .into_iter()
        .find(|(p, _)| p.extension().is_some_and(|e| e == "checkpoint"))
        .expect("one");
    disk.tamper(&path, |bytes| bytes[33] ^= 4);
    let (_log, recovery, seen) = open(&disk);
    assert_eq!((recovery.damaged_files, recovery.checkpoint, seen), (1, None, stored));
}

#[test]
fn a_missing_segment_is_reported_and_passed_over() {
    let disk = SimDisk::new();
    let (log, ..) = open(&disk);
    let stored = store(&log, 1, 200);
    let starts = log.segment_starts();
    log.close().expect("closes");
    assert!(starts.len() > 3);
    for missing in 1..starts.len() {
        let copy = disk.fork();
        millstream_embedded::log::Disk::remove(&copy, &segment_files(&copy)[missing]).expect("is there");
        let (log, recovery, seen) = open(&copy);
        let end = starts.get(missing + 1).copied();
        let expected: Vec<_> = stored
            .iter()
            .copied()
            .filter(|(p, _)| *p < starts[missing] || end.is_some_and(|e| *p >= e))
            .collect();
        assert_eq!(seen, expected, "segment {missing}");
        assert_eq!(recovery.damaged.len(), 1, "segment {missing}: {recovery:?}");
        store(&log, 500, 510);
    }
}

#[test]
fn a_newer_format_is_refused() {
    for name in ["state", "log"] {
        let disk = SimDisk::new();
        open(&disk).0.close().expect("closes");
        let (log, ..) = open(&disk);
        store(&log, 1, 2);
        log.close().expect("closes");
        let (path, _) =
            disk.files().into_iter().find(|(p, _)| p.to_string_lossy().ends_with(name)).expect("one");
        let checked = if name == "state" { 32 } else { 36 };
        disk.tamper(&path, |bytes| {
            bytes[8] = 9;
            let crc = crc32fast::hash(&bytes[..checked]);
            bytes[checked..checked + 4].copy_from_slice(&crc.to_le_bytes());
        });
        let error = Log::open(Path::new(DIR), small(), Arc::new(disk), &mut |_| {}).expect_err("is newer");
        assert_eq!(error.kind(), LogErrorKind::Format);
        assert!(error.to_string().contains("version 9"), "{error}");
    }
}

#[test]
fn a_record_as_large_as_allowed_fits_and_a_larger_one_is_refused() {
    let disk = SimDisk::new();
    let settings = LogSettings { record_bytes_max: (16 << 10) - 8192, ..small() };
    let open =
        || Log::open(Path::new(DIR), settings.clone(), Arc::new(disk.clone()), &mut |_| {}).expect("opens").0;
    let log = open();
    let largest = vec![3; settings.record_bytes_max];
    for _ in 0..5 {
        let appended = log.append_blocking(Entry { body: &largest, ..Entry::default() }).expect("fits");
        appended.commit.wait().expect("the disk is fine");
        assert_eq!(log.read_at(appended.position).expect("reads").body, largest);
    }
    let larger = vec![3; settings.record_bytes_max + 1];
    let error = log.append_blocking(Entry { body: &larger, ..Entry::default() }).expect_err("is too large");
    assert!(error.to_string().contains(&larger.len().to_string()), "{error}");
    let half = vec![3; settings.record_bytes_max / 2];
    let halves = [Entry { body: &half, ..Entry::default() }; 2];
    assert!(2 * stored_len(half.len()) > settings.record_bytes_max);
    log.append_atomic_blocking(&halves).expect_err("headers count for atomic batches");
}

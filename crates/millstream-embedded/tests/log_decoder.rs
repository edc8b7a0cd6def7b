//! Arbitrary and mutilated files: never a panic, never a record that was not stored.

mod log_support;

use std::{collections::HashSet, path::Path, sync::Arc};

use log_support::{DIR, Random, body, entry, small};
use millstream_embedded::log::{Log, Replay, SimDisk, verify};
use proptest::prelude::*;

/// A log of three segments that was closed, or not.
fn sound(closed: bool) -> SimDisk {
    let disk = SimDisk::new();
    let (log, _) = Log::open(Path::new(DIR), small(), Arc::new(disk.clone()), &mut |_| {}).expect("opens");
    for id in 1..40 {
        let bytes = body(id);
        if id % 5 == 0 {
            let pair = [entry(id, &bytes), entry(id, &bytes)];
            log.append_atomic_blocking(&pair[..1])
                .expect("accepted")
                .commit
                .wait()
                .expect("the disk is fine");
        } else {
            log.append_blocking(entry(id, &bytes))
                .expect("accepted")
                .commit
                .wait()
                .expect("the disk is fine");
        }
    }
    log.checkpoint(b"snapshot", log.start()).expect("stores");
    if closed {
        log.close().expect("closes");
    } else {
        disk.stop();
        drop(log);
        disk.crash(1);
    }
    disk
}

/// Opens whatever is there; if it opens, what it hands over was stored.
fn check(disk: &SimDisk) {
    let _ = verify(Path::new(DIR), disk);
    let mut positions = HashSet::new();
    let opened = Log::open(Path::new(DIR), small(), Arc::new(disk.clone()), &mut |replay| {
        if let Replay::Record(record) = replay {
            assert_eq!(record.body, body(record.time));
            assert!(positions.insert(record.position), "once");
        }
    });
    let Ok((log, _)) = opened else { return };
    let mut reader = log.reader(log.start());
    while let Ok(Some(_)) | Err(_) = reader.next().map(|r| r.map(|r| assert_eq!(r.body, body(r.time)))) {}
    for position in positions {
        log.read_at(position).expect("was just read");
    }
    // And it goes on from there.
    let appended = log.append_blocking(entry(5000, &body(5000))).expect("accepted");
    appended.commit.wait().expect("the disk is fine");
    assert_eq!(log.read_at(appended.position).expect("is there").body, body(5000));
}

fn mutilate(bytes: &mut Vec<u8>, random: &mut Random) {
    let len = bytes.len() as u64;
    if len == 0 {
        return;
    }
    let at = random.below(len) as usize;
    let count = (random.below(600) + 1).min(len - at as u64) as usize;
    match random.below(6) {
        0 => bytes.truncate(at),
        1 => bytes[at..at + count].fill(random.next() as u8),
        2 => bytes[at..at + count].iter_mut().for_each(|b| *b = random.next() as u8),
        3 => {
            // A piece of the file at another place, as a misdirected write leaves it.
            let from = random.below(len - count as u64 + 1) as usize;
            bytes.copy_within(from..from + count, at);
        }
        4 => drop(bytes.drain(at..at + count)),
        _ => {
            // Lengths are what hostile files lie about: every aligned word becomes the largest one.
            for word in (at & !7..(at + count) & !7).step_by(8) {
                bytes[word + 4..word + 8].fill(0xff);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn arbitrary_bytes_behind_a_sound_head_are_no_records(
        bytes in proptest::collection::vec(any::<u8>(), 0..12_000), closed: bool
    ) {
        let disk = SOUND.with(|s| s[usize::from(closed)].fork());
        for (path, _) in disk.files() {
            if path.extension().is_some_and(|e| e == "log") {
                disk.tamper(&path, |file| file.splice(4096..4096 + bytes.len(), bytes.iter().copied()).count());
            }
        }
        check(&disk);
    }

    #[test]
    fn mutilated_files_give_up_only_what_was_stored(seed: u64, closed: bool) {
        let disk = SOUND.with(|s| s[usize::from(closed)].fork());
        let mut random = Random(seed);
        let files = disk.files();
        for _ in 0..random.below(4) + 1 {
            let (path, _) = &files[random.below(files.len() as u64) as usize];
            disk.tamper(path, |bytes| mutilate(bytes, &mut random));
        }
        check(&disk);
    }
}

thread_local! {
    static SOUND: [SimDisk; 2] = [sound(false), sound(true)];
}

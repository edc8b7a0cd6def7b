//! The log on the real disk: its lock, its tools, and files written by earlier versions.

mod log_support;

use std::{fs, io::Write, path::Path, sync::Arc};

use log_support::{body, entry, small};
use millstream_embedded::log::{Log, LogErrorKind, LogSettings, Position, RealDisk, Replay, export, verify};

fn open(dir: &Path) -> Log {
    let settings = LogSettings { background: true, ..small() };
    Log::open(dir, settings, Arc::new(RealDisk), &mut |_| {}).expect("opens").0
}

fn store(log: &Log, ids: std::ops::Range<u64>) -> Vec<Position> {
    ids.map(|id| {
        let appended = log.append_blocking(entry(id, &body(id))).expect("accepted");
        appended.commit.wait().expect("the disk is fine");
        appended.position
    })
    .collect()
}

#[test]
fn a_directory_belongs_to_one_log_and_the_error_names_its_process() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = open(dir.path());
    let error = Log::open(dir.path(), small(), Arc::new(RealDisk), &mut |_| {}).expect_err("is in use");
    assert_eq!(error.kind(), LogErrorKind::Locked);
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(log);
    open(dir.path());
}

#[test]
fn two_logs_live_side_by_side() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (one, two) = (open(&dir.path().join("one")), open(&dir.path().join("two")));
    let (a, b) = (store(&one, 1..50), store(&two, 100..150));
    assert_eq!(one.read_at(a[10]).expect("reads").time, 11);
    assert_eq!(two.read_at(b[10]).expect("reads").time, 110);
}

#[test]
fn a_path_that_is_no_directory_is_refused_with_its_name() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("file");
    fs::write(&file, "x").expect("writes");
    let error = Log::open(&file, small(), Arc::new(RealDisk), &mut |_| {}).expect_err("no directory");
    assert_eq!(error.kind(), LogErrorKind::Io);
    assert!(error.to_string().contains(&file.display().to_string()), "{error}");
}

#[test]
fn after_everything_is_released_at_most_three_segments_remain() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = open(dir.path());
    for round in 0..5 {
        store(&log, round * 100..round * 100 + 100);
        log.release_before(log.end());
    }
    log.close().expect("closes");
    let bytes: u64 = fs::read_dir(dir.path())
        .expect("lists")
        .map(|f| f.expect("is there").metadata().expect("has").len())
        .sum();
    assert!(bytes <= 3 * small().segment_bytes + 100, "{bytes} bytes are left");
}

#[test]
fn verify_counts_and_finds_damage_without_changing_anything() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = open(dir.path());
    let positions = store(&log, 1..60);
    log.checkpoint(b"x", positions[20]).expect("stores");
    assert_eq!(verify(dir.path(), &RealDisk).expect_err("is in use").kind(), LogErrorKind::Locked);
    let end = log.end();
    log.close().expect("closes");
    let report = verify(dir.path(), &RealDisk).expect("reads");
    assert!(report.is_sound() && report.clean, "{report:?}");
    assert_eq!((report.records, report.checkpoint, report.end), (59, Some(positions[20]), end));
    assert_eq!(report.body_bytes, (1..60).map(|id| body(id).len() as u64).sum::<u64>());

    let first = dir.path().join(format!("{:020}.log", report.start.get()));
    let mut bytes = fs::read(&first).expect("reads");
    bytes[4096 + 8] ^= 1;
    fs::write(&first, &bytes).expect("writes");
    for _ in 0..2 {
        let report = verify(dir.path(), &RealDisk).expect("reads");
        assert_eq!(report.damaged, [positions[0]..positions[1]]);
        assert!(!report.is_sound());
        assert_eq!(report.records, 58);
        assert_eq!(fs::read(&first).expect("reads"), bytes);
    }
}

#[test]
fn readers_of_a_closed_log_do_not_exclude_each_other_but_a_log_excludes_them() {
    use millstream_embedded::log::{Disk, LockMode};
    let dir = tempfile::tempdir().expect("a temporary directory");
    open(dir.path()).close().expect("closes");
    let reading = RealDisk.lock(&dir.path().join("lock"), LockMode::Shared).expect("nobody writes");
    verify(dir.path(), &RealDisk).expect("a second reader");
    let error = Log::open(dir.path(), small(), Arc::new(RealDisk), &mut |_| {}).expect_err("somebody reads");
    assert_eq!(error.kind(), LogErrorKind::Locked);
    drop(reading);
    open(dir.path());
}

#[test]
fn a_directory_without_a_log_is_said_to_be_none() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let error = verify(dir.path(), &RealDisk).expect_err("is empty");
    assert_eq!(error.kind(), LogErrorKind::Format);
    assert!(error.to_string().contains("holds no log"), "{error}");
}

#[test]
fn files_of_others_are_left_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let others = ["notes.tmp", "spare.tmp", "x.log", "12.checkpoint", "00000000000000004096.log.tmp"];
    let ours = ["state.tmp", "spare-3.tmp", "00000000000000004096.checkpoint.tmp"];
    for name in others.iter().chain(&ours) {
        fs::write(dir.path().join(name), "x").expect("writes");
    }
    open(dir.path());
    assert!(others.iter().all(|name| dir.path().join(name).exists()));
    assert!(ours.iter().all(|name| !dir.path().join(name).exists()));
}

#[test]
fn export_writes_a_line_per_record_and_says_what_is_missing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = open(dir.path());
    let first = log.append_blocking(entry(1, br#"{"a":1}"#)).expect("accepted");
    let second = log.append_blocking(entry(2, &[0, 1, 2])).expect("accepted");
    let third = log.append_blocking(entry(3, b"x")).expect("accepted");
    let positions = [first.position, second.position, third.position];
    log.close().expect("closes");
    let run = || {
        let mut out = Vec::new();
        let decode = |r: millstream_embedded::log::RecordRef<'_>| {
            (r.kind == 1).then(|| String::from_utf8(r.body.to_vec()).expect("was text"))
        };
        let report = export(dir.path(), &RealDisk, &decode, &mut out).expect("exports");
        (String::from_utf8(out).expect("is text"), report)
    };
    let [a, b, c] = positions;
    let lines = [
        format!("{{\"position\":{a},\"time\":1,\"kind\":1,\"body\":{{\"a\":1}}}}\n"),
        format!("{{\"position\":{b},\"time\":2,\"kind\":2,\"body_base64\":\"AAEC\"}}\n"),
        format!("{{\"position\":{c},\"time\":3,\"kind\":3,\"body_base64\":\"eA==\"}}\n"),
    ];
    assert_eq!(run().0, lines.concat());

    let file = dir.path().join(format!("{a:020}.log", a = a.get()));
    let mut bytes = fs::read(&file).expect("reads");
    bytes[b.get() as usize + 33] ^= 1;
    fs::write(&file, bytes).expect("writes");
    let (text, report) = run();
    assert_eq!(text, format!("{}{{\"damaged\":{{\"from\":{b},\"to\":{c}}}}}\n{}", lines[0], lines[2]));
    assert_eq!(report.damaged, [b..c]);
}

#[test]
fn an_export_that_cannot_be_written_says_so() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = open(dir.path());
    store(&log, 1..3);
    log.close().expect("closes");
    let error = export(dir.path(), &RealDisk, &|_| None, &mut Full).expect_err("is full");
    assert_eq!(error.kind(), LogErrorKind::Full);
}

/// `tests/log_data/v1` was written by the first version: 59 records of the model, the twentieth to the
/// twenty-second an atomic batch, a checkpoint before the forty-first, closed.
#[test]
fn a_log_of_version_1_stays_readable() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/log_data/v1");
    for file in fs::read_dir(&data).expect("is checked in") {
        let file = file.expect("is checked in");
        fs::copy(file.path(), dir.path().join(file.file_name())).expect("copies");
    }
    let report = verify(dir.path(), &RealDisk).expect("reads");
    assert!(report.is_sound() && report.clean, "{report:?}");
    assert_eq!((report.records, report.start.get()), (59, 4096));

    let mut seen = Vec::new();
    let mut checkpoint = None;
    let (log, recovery) = Log::open(dir.path(), small(), Arc::new(RealDisk), &mut |replay| match replay {
        Replay::Checkpoint { payload, covers } => checkpoint = Some((payload.to_vec(), covers)),
        Replay::Record(record) => {
            assert_eq!((record.kind, record.body), (record.time as u8, &body(record.time)[..]));
            seen.push(record.time);
        }
    })
    .expect("opens");
    assert_eq!(seen, (41..60).collect::<Vec<_>>());
    let (payload, covers) = checkpoint.expect("is there");
    assert_eq!((&payload[..], recovery.checkpoint), (&b"the fortieth"[..], Some(covers)));
    assert_eq!(log.read_at(covers).expect("reads").time, 41);
    let mut reader = log.reader(Position::ZERO);
    for id in 1..60 {
        let record = reader.next().expect("sound").expect("is there");
        assert_eq!((record.time, record.body), (id, &body(id)[..]));
    }
    store(&log, 60..100);
}

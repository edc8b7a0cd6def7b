//! The log's promise over crashes: what was confirmed is there, in order, whole; what was not is there whole
//! or not at all, and once gone stays gone.

mod log_support;

use log_support::{Model, Random};
use millstream_embedded::log::{Fault, SimDisk};

/// Runs lives of random work, each ended by a crash after `stop` operations of the disk.
fn lives(seed: u64, stops: &[u64], steps: u64) -> Model {
    let disk = SimDisk::new();
    let mut model = Model::new(disk.clone());
    let mut random = Random(seed);
    for stop in stops {
        disk.stop_after(*stop);
        if let Some(log) = model.open() {
            model.work(&log, &mut random, steps);
            disk.stop();
            drop(log);
        }
        if random.below(3) == 0 {
            disk.kill();
            // What is handed over after a kill counts as stored, so it must outlast a crash that follows.
            disk.stop_after(random.below(30));
            drop(model.open());
        }
        disk.crash(random.next());
    }
    let log = model.open().expect("a log always opens after a crash");
    model.check_reader(&log, model.covers());
    model
}

fn operations_of(seed: u64, steps: u64) -> u64 {
    let disk = SimDisk::new();
    let mut model = Model::new(disk.clone());
    let log = model.open().expect("nothing fails");
    assert!(model.work(&log, &mut Random(seed), steps), "nothing fails");
    drop(log);
    disk.operations()
}

/// How many times the usual work; `cargo xtask soak` sets the variable.
fn soak() -> u64 {
    if std::env::var_os("MILLSTREAM_SOAK").is_some() { 40 } else { 1 }
}

#[test]
fn a_crash_at_every_operation_loses_nothing_confirmed() {
    for seed in 0..4 * soak() {
        let operations = operations_of(seed, 60);
        for stop in 0..operations {
            let result = std::panic::catch_unwind(|| lives(seed, &[stop], 60));
            assert!(result.is_ok(), "seed {seed}, crash at operation {stop} of {operations}");
        }
    }
}

#[test]
fn crash_after_crash_loses_nothing_and_revives_nothing() {
    for seed in 1000..1000 + 600 * soak() {
        let mut random = Random(seed);
        let stops: Vec<u64> = (0..6).map(|_| random.below(120)).collect();
        let result = std::panic::catch_unwind(|| lives(seed, &stops, 40));
        assert!(result.is_ok(), "seed {seed}, crashes at {stops:?}");
    }
}

#[test]
fn failing_writes_and_syncs_are_reported_or_survived() {
    for seed in 0..300 * soak() {
        let run = || {
            let disk = SimDisk::new();
            let mut model = Model::new(disk.clone());
            let mut random = Random(seed);
            for _ in 0..3 {
                let Some(log) = model.open() else { panic!("opens: faults are over") };
                for _ in 0..4 {
                    model.work(&log, &mut random, 10);
                    let fault = if random.below(2) == 0 { Fault::Sync } else { Fault::Write };
                    disk.inject(fault, random.below(7) as u32);
                }
                model.work(&log, &mut random, 10);
                disk.inject(Fault::Sync, 0);
                disk.inject(Fault::Write, 0);
                model.check_reader(&log, model.covers());
                disk.stop();
                drop(log);
                if random.below(2) == 0 {
                    disk.kill();
                    drop(model.open());
                }
                disk.crash(random.next());
            }
            model.open().expect("opens");
        };
        assert!(std::panic::catch_unwind(run).is_ok(), "seed {seed}");
    }
}

#[test]
fn a_workload_without_crashes_stores_everything() {
    let model = lives(7, &[u64::MAX / 2], 200);
    assert!(model.stored() > 0);
}

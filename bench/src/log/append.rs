//! Durable appends by one writer, a sync a batch.

use std::sync::Arc;

use millstream_embedded::log::{Entry, Log, LogSettings, RealDisk};

use super::disk::{RATE, Records, directory, rate, raw};
use super::with_peers;
use crate::case::{Absent, Bound, Case, Sample, Scale};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("durable append, batch 1", 1),
        case("durable append, batch 100", 100),
        case("durable append, batch 1000", 1000),
    ]
}

fn case(name: &'static str, batch: usize) -> Case {
    let case = Case::new(name)
        .floor("raw", move |scale| raw(scale, batch))
        .ours("ours", move |scale| ours(scale, batch));
    let case = with_peers!(case, "fjall", move |scale| super::peers::fjall_append(scale, batch));
    let case = with_peers!(case, "raft-engine", move |scale| super::peers::raft_append(scale, batch));
    case.goal_on(RATE, Bound::RateOf(0.85, "raw"), "")
}

/// Opens our log in `directory`.
pub(crate) fn open(directory: &std::path::Path) -> Result<Log, Absent> {
    Log::open(directory, LogSettings::default(), Arc::new(RealDisk), &mut |_| {})
        .map(|(log, _)| log)
        .map_err(|error| format!("opening the log: {error}"))
}

fn ours(scale: Scale, batch: usize) -> Result<Sample, Absent> {
    let directory = directory()?;
    let log = open(directory.path())?;
    let mut records = Records::new();
    let mut written = 0;
    let result = rate(scale, batch, || {
        let places = records.next(batch);
        let entries: Vec<_> = places
            .into_iter()
            .map(|place| Entry { kind: 1, time: 0, head: b"", body: &records.bytes()[place] })
            .collect();
        let appended = log.append_batch_blocking(&entries).map_err(|error| error.to_string())?;
        let last = appended.positions.last().copied();
        appended.commit.wait().map_err(|error| error.to_string())?;
        // As a broker whose messages are consumed: what lies behind is given free, and its files are used again.
        written += batch;
        if written >= 32 << 10
            && let Some(last) = last
        {
            log.release_before(last);
            written = 0;
        }
        Ok(())
    });
    log.close().map_err(|error| error.to_string())?;
    result
}

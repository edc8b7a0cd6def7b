//! The whole: the binary as an operator starts it, against the clock, the memory it may hold, and Redpanda Connect.

mod child;
mod connect;

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use crate::case::{Absent, Bound, Case, Sample, Scale};
use crate::clock::{self, By, Watch};
use child::Child;

const MS: &str = "ms";
const MIB: &str = "MiB";
const OVER_BOUND: &str = "MiB over the printed bound";
const RATE: &str = "items/CPU-s";
const CONNECT: &str = "Redpanda Connect";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("start to first item")
            .floor("the binary printing its version", |_| version())
            .ours("ours", |_| first_item())
            .goal_on(
                MS,
                Bound::AtMost(50.0),
                "from the start of the process to the first item on its output",
            ),
        Case::new("idle, waiting for more of a file").ours("ours", |_| idle()).goal_on(
            MIB,
            Bound::AtMost(25.0),
            "resident, with an embedded broker open",
        ),
        Case::new("more than memory through a slow output")
            .ours("ours", slow_output)
            .goal_on(
                OVER_BOUND,
                Bound::AtMost(64.0),
                "peak of the process; 400 MB by default, 10 GB with --full",
            )
            .remark("Items of 10 KB, made faster than a pipe takes them that is read at a limited pace."),
        Case::new("file, filter, map, batch, file")
            .peer(CONNECT, |scale| connect::run(scale.of(ROWS)))
            .ours("ours", |scale| file_to_file(scale.of(ROWS)))
            .goal_on(RATE, Bound::RateOf(5.0, CONNECT), "")
            .goal_on(MIB, Bound::TimesAtMost(1.0 / 3.0, CONNECT), "peak")
            .remark("NDJSON of 120 bytes a row, half of the rows kept; ours syncs each batch to the disk."),
    ]
}

/// Rows of the file that is read.
const ROWS: u64 = 1_000_000;

type Figures = Result<Sample, Absent>;

fn seconds(watch: &Watch) -> f64 {
    watch.elapsed().as_secs_f64()
}

fn version() -> Figures {
    let watch = Watch::start(By::Wall);
    Child::ours(&["--version"], Path::new("."))?.finish()?;
    Ok(Sample::new().with(MS, seconds(&watch) * 1e3))
}

fn first_item() -> Figures {
    let place = place()?;
    write(place.path(), "in.csv", &("n,text\n".to_owned() + &"1,some text\n".repeat(100_000)))?;
    write(
        place.path(),
        "p.yaml",
        "name: p\nsource: { file: { path: in.csv } }\nprocess: [ map: '{n: (.n | tonumber)}' ]\n\
         batch: { count: 1 }\noutput: { stdout: }\n",
    )?;
    let watch = Watch::start(By::Wall);
    let mut child = Child::ours(&["run", "--quiet", "p.yaml"], place.path())?;
    let mut first = [0; 1];
    child.out().read_exact(&mut first).map_err(|error| format!("nothing came out: {error}"))?;
    let elapsed = seconds(&watch);
    child.drain()?;
    child.finish()?;
    Ok(Sample::new().with(MS, elapsed * 1e3))
}

fn idle() -> Figures {
    let place = place()?;
    write(place.path(), "in.ndjson", "1\n")?;
    write(
        place.path(),
        "p.yaml",
        "name: p\nsource: { file: { path: in.ndjson, follow: true } }\n\
         buffer: { queue: { broker: \"embedded:state\", name: q } }\nbatch: { count: 1 }\noutput: { stdout: }\n",
    )?;
    let mut child = Child::ours(&["run", "--quiet", "p.yaml"], place.path())?;
    let mut line = [0; 2];
    child.out().read_exact(&mut line).map_err(|error| format!("nothing came out: {error}"))?;
    // It has run; now it waits.
    clock::pause(Duration::from_millis(500));
    let resident = child.memory("VmRSS")?;
    child.kill();
    Ok(Sample::new().with(MIB, resident))
}

fn slow_output(scale: Scale) -> Figures {
    const ITEM: u64 = 10_000;
    let megabytes = if scale == Scale::Full { 10_000 } else { scale.of(400) };
    let place = place()?;
    let items = megabytes * 1_000_000 / ITEM;
    write(
        place.path(),
        "p.yaml",
        &format!(
            "name: p\nsource: {{ generate: {{ count: {items}, template: '{{n: ., text: (\"x\" * {ITEM})}}' }} }}\n\
             output: {{ stdout: }}\n"
        ),
    )?;
    let mut child = Child::ours(&["run", "--quiet", "--report", "report.json", "p.yaml"], place.path())?;
    let mut taken = 0u64;
    let mut peak = 0.0f64;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match child.out().read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => taken += count as u64,
            Err(error) => return Err(format!("its output: {error}")),
        }
        // About 100 MB/s: less than it makes.
        if taken % (4 << 20) < (1 << 16) {
            peak = peak.max(child.memory("VmHWM").unwrap_or(0.0));
        }
        clock::pause(Duration::from_micros(500));
    }
    child.finish()?;
    if taken < items * ITEM {
        return Err(format!("{taken} bytes came out of {items} items of {ITEM}"));
    }
    let report: serde_json::Value = fs::read(place.path().join("report.json"))
        .map_err(|error| format!("its report: {error}"))
        .and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()))?;
    let bound = report["memory_bound_bytes"].as_f64().ok_or("the report has no bound")? / f64::from(1 << 20);
    Ok(Sample::new().with(OVER_BOUND, peak - bound).with("peak MiB", peak).with("bound MiB", bound))
}

fn file_to_file(rows: u64) -> Figures {
    let place = place()?;
    rows_of(place.path(), rows)?;
    write(
        place.path(),
        "p.yaml",
        "name: p\nsource: { file: { path: in.ndjson } }\n\
         process:\n  - filter: { name: late, keep: 'item.delay >= 15' }\n  - map: '{carrier, flight, late: .delay}'\n\
         batch: { count: 500 }\noutput: { file: { path: out/out.ndjson } }\n",
    )?;
    let usage = Child::ours(&["run", "--quiet", "p.yaml"], place.path())?.finish()?;
    check(&place.path().join("out/out.ndjson"), rows)?;
    Ok(usage.sample(rows))
}

/// What a child used up to its end.
struct Usage {
    cpu_seconds: f64,
    peak_mib: f64,
}

impl Usage {
    fn sample(&self, rows: u64) -> Sample {
        Sample::new().with(RATE, rows as f64 / self.cpu_seconds).with(MIB, self.peak_mib)
    }
}

/// Rows of which every other is late.
fn rows_of(place: &Path, rows: u64) -> Result<(), Absent> {
    let mut text = String::with_capacity(rows as usize * 128);
    for row in 0..rows {
        let delay = if row % 2 == 0 { 15 + row % 100 } else { row % 15 };
        let _ = writeln!(
            text,
            r#"{{"carrier":"UA","flight":{},"origin":"EWR","dest":"IAH","delay":{delay},"tail":"N{:05}","hour":"2013-01-01T05:00:00Z"}}"#,
            row % 5000,
            row % 99_999,
        );
    }
    write(place, "in.ndjson", &text)
}

/// Whether half of the rows are there.
fn check(path: &Path, rows: u64) -> Result<(), Absent> {
    let text = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let lines = text.iter().filter(|byte| **byte == b'\n').count() as u64;
    if lines == rows.div_ceil(2) { Ok(()) } else { Err(format!("{lines} rows came out of {rows}")) }
}

fn place() -> Result<tempfile::TempDir, Absent> {
    tempfile::tempdir().map_err(|error| format!("a directory to work in: {error}"))
}

fn write(place: &Path, name: &str, text: &str) -> Result<(), Absent> {
    fs::write(place.join(name), text).map_err(|error| format!("{name}: {error}"))
}

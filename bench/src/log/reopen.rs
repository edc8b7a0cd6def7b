//! After much was written: how soon the broker is back, and what the disk still holds.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use millstream_message::ConsumeOptions;

use super::disk::directory;
use super::queue::{BATCH, QUEUE, broker, consume, publish, runtime};
use crate::case::{Absent, Bound, Case, Sample, Scale};
use crate::clock;

const REOPEN: &str = "ms";
const SEGMENTS: &str = "segments";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("reopen after a kill")
            .ours("ours", |scale| reopen(scale, End::Killed))
            .goal_on(REOPEN, Bound::AtMost(300.0), "10 GB written, 1 M unacked, with `--full`; a tenth without")
            .remark("The writing process is killed; the time is from opening the directory until a message arrives."),
        Case::new("reopen after a clean end")
            .ours("ours", |scale| reopen(scale, End::Closed))
            .goal_on(REOPEN, Bound::AtMost(300.0), "as above"),
        Case::new("disk after all is acked")
            .ours("ours", left_on_disk)
            .goal_on(SEGMENTS, Bound::AtMost(3.0), "of 64 MiB"),
    ]
}

/// How the writing process ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    Closed,
}

/// Messages written, and how many of them stay unacked.
fn sizes(scale: Scale) -> (u64, u64) {
    match scale {
        Scale::Tiny | Scale::Small | Scale::Quick => (100_000, 10_000),
        Scale::Default => (1_000_000, 100_000),
        Scale::Full => (10_000_000, 1_000_000),
    }
}

fn url(directory: &Path) -> String {
    format!("embedded:{}", directory.join("broker").display())
}

/// What the process does that [`reopen`] kills: writes `count` messages, acks all but the last `keep`, says so, and
/// waits for its end.
pub(crate) fn populate(directory: &Path, count: u64, keep: u64, close: bool) -> Result<(), String> {
    runtime()?.block_on(async {
        let broker = broker(&url(directory)).await?;
        let publisher = broker.clone();
        let publishing = tokio::spawn(async move { publish(&*publisher, count).await });
        consume(&*broker, count - keep).await?;
        publishing.await.map_err(|error| error.to_string())??;
        if close {
            return broker.close().await.map_err(|error| error.to_string());
        }
        // Acks are written within milliseconds; when the queue's count has been right for a while, they are.
        while broker.stats(QUEUE).await.map_err(|error| error.to_string())?.total() != keep {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        eprintln!("{WRITTEN}");
        std::future::pending().await
    })
}

const WRITTEN: &str = "written";

fn reopen(scale: Scale, end: End) -> Result<Sample, Absent> {
    let directory = directory()?;
    let (count, keep) = sizes(scale);
    let own = std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
    let mut writer = Command::new(own)
        .arg("populate")
        .arg(directory.path())
        .args([count.to_string(), keep.to_string()])
        .args((end == End::Closed).then_some("--close"))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("starting the writing process: {error}"))?;
    let said = writer.stderr.take().map(BufReader::new);
    let mut lines = said.into_iter().flat_map(BufRead::lines).map_while(Result::ok);
    let written = lines.any(|line| line == WRITTEN);
    if end == End::Killed {
        writer.kill().map_err(|error| format!("killing the writing process: {error}"))?;
    }
    let status = writer.wait().map_err(|error| format!("the writing process: {error}"))?;
    if written != (end == End::Killed) || (end == End::Closed && !status.success()) {
        return Err(format!("the writing process ended early, with {status}"));
    }
    runtime()?.block_on(async {
        let began = clock::now();
        let broker = broker(&url(directory.path())).await?;
        let mut consumer =
            broker.consume(QUEUE, ConsumeOptions::default()).await.map_err(|error| error.to_string())?;
        let first = consumer.next_chunk(1).await.map_err(|error| error.to_string())?;
        let milliseconds = (clock::now() - began).as_secs_f64() * 1e3;
        if first.is_empty() {
            return Err("nothing arrived after reopening".to_owned());
        }
        let found = broker.stats(QUEUE).await.map_err(|error| error.to_string())?.total();
        // A kill may lose the last acks, never a message.
        if found < keep || found > keep + 10 * BATCH {
            return Err(format!("{found} messages were found, {keep} were left"));
        }
        drop(consumer);
        broker.close().await.map_err(|error| error.to_string())?;
        Ok(Sample::new().with(REOPEN, milliseconds))
    })
}

fn left_on_disk(scale: Scale) -> Result<Sample, Absent> {
    let directory = directory()?;
    let (count, _) = sizes(scale);
    runtime()?.block_on(async {
        let broker = broker(&url(directory.path())).await?;
        let publisher = broker.clone();
        let publishing = tokio::spawn(async move { publish(&*publisher, count).await });
        consume(&*broker, count).await?;
        publishing.await.map_err(|error| error.to_string())??;
        // Segments are given free in the background; what is still there after a second stays.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let bytes = bytes_below(&directory.path().join("broker")).map_err(|error| error.to_string())?;
        broker.close().await.map_err(|error| error.to_string())?;
        Ok(Sample::new().with(SEGMENTS, bytes as f64 / (64 << 20) as f64))
    })
}

/// The bytes of segment files. The few small files beside them (state, lock, checkpoints) do not count.
fn bytes_below(directory: &Path) -> std::io::Result<u64> {
    const SEGMENT_MIN: u64 = 4 << 20;
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += match metadata.is_dir() {
            true => bytes_below(&entry.path())?,
            false if metadata.len() >= SEGMENT_MIN => metadata.len(),
            false => 0,
        };
    }
    Ok(bytes)
}

//! How groups follow one another, on a disk whose syncs end when the test says so.

mod log_support;

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex},
};

use log_support::{DIR, entry, small};
use millstream_embedded::log::{
    Disk, DiskFile, LockError, LockGuard, LockMode, Log, LogSettings, Position, SimDisk,
};

/// Counts the syncs of files that were begun, and those that may end.
#[derive(Debug, Default)]
struct Gate {
    counts: Mutex<(u64, u64)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut counts = self.counts.lock().expect("no panics");
        counts.0 += 1;
        let mine = counts.0;
        self.changed.notify_all();
        drop(self.changed.wait_while(counts, |c| c.1 < mine).expect("no panics"));
    }

    fn open(&self, syncs: u64) {
        let mut counts = self.counts.lock().expect("no panics");
        counts.1 = counts.1.saturating_add(syncs);
        self.changed.notify_all();
    }

    /// Lets no more syncs end than have begun.
    fn close(&self) {
        let mut counts = self.counts.lock().expect("no panics");
        counts.1 = counts.0;
    }

    /// Waits until a sync waits at the gate.
    fn wait_begun(&self) {
        let counts = self.counts.lock().expect("no panics");
        drop(self.changed.wait_while(counts, |c| c.0 <= c.1).expect("no panics"));
    }
}

#[derive(Debug, Clone)]
struct GatedDisk(SimDisk, Arc<Gate>);

#[derive(Debug)]
struct GatedFile(Arc<dyn DiskFile>, Arc<Gate>);

impl GatedDisk {
    fn gated(&self, file: io::Result<Arc<dyn DiskFile>>) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(GatedFile(file?, self.1.clone())))
    }
}

impl Disk for GatedDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.create_dir(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.gated(self.0.open(path, write))
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.gated(self.0.create(path))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
    fn lock(&self, path: &Path, mode: LockMode) -> Result<LockGuard, LockError> {
        self.0.lock(path, mode)
    }
}

impl DiskFile for GatedFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }
    fn reserve(&self, len: u64) -> io::Result<()> {
        self.0.reserve(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.pass();
        self.0.sync()
    }
}

/// A log with one record stored, whose next sync waits at the gate.
fn gated() -> (Log, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    gate.open(1000);
    let disk = Arc::new(GatedDisk(SimDisk::new(), gate.clone()));
    // Segments so large that none is prepared meanwhile: every sync at the gate is that of a group.
    let settings = LogSettings { segment_bytes: 1 << 20, background: true, ..small() };
    let (log, _) = Log::open(Path::new(DIR), settings, disk, &mut |_| {}).expect("opens");
    log.append_blocking(entry(0, b"")).expect("accepted").commit.wait().expect("the disk is fine");
    gate.close();
    (log, gate)
}

#[test]
fn everything_that_gathers_during_a_sync_is_one_group() {
    let (log, gate) = gated();
    let first = log.append_blocking(entry(1, b"first")).expect("accepted");
    log.kick();
    gate.wait_begun();
    let gathered: Vec<_> =
        (2..50).map(|id| log.append_blocking(entry(id, b"gathered")).expect("accepted")).collect();
    assert!(first.commit.outcome().is_none(), "not durable before its sync");
    assert_eq!(log.durable(), first.position);
    // Nobody polls the commits: that they are held is enough for the group to follow at once.
    gate.open(1);
    gate.wait_begun();
    assert!(matches!(first.commit.outcome(), Some(Ok(()))));
    assert!(gathered.iter().all(|a| a.commit.outcome().is_none()));
    gate.open(1);
    for appended in gathered {
        appended.commit.wait().expect("the disk is fine");
    }
    assert_eq!(log.stats().groups, 3);
    gate.open(1000);
}

#[tokio::test]
async fn waiting_tasks_are_woken_when_their_group_is_durable() {
    let (log, gate) = gated();
    let log = Arc::new(log);
    let tasks: Vec<_> = (1..20_u64)
        .map(|id| {
            let log = log.clone();
            tokio::spawn(async move {
                let appended = log.append(entry(id, b"")).await.expect("accepted");
                appended.commit.await.expect("the disk is fine");
                assert!(log.durable() > appended.position);
            })
        })
        .collect();
    tokio::task::yield_now().await;
    gate.open(1000);
    for task in tasks {
        task.await.expect("no panic");
    }
    assert!(log.stats().groups <= 3, "{:?}", log.stats());
}

#[tokio::test]
async fn a_cancelled_append_stores_nothing_and_takes_no_room() {
    let (log, gate) = gated();
    let large = vec![0; 5000];
    let mut taken = 0;
    while let Ok(appended) = log.try_append(entry(1, &large)) {
        appended.commit.later();
        taken += 1;
    }
    let end = log.end();
    {
        let mut waiting = std::pin::pin!(log.append(entry(2, &large)));
        let polled =
            std::future::poll_fn(|cx| std::task::Poll::Ready(waiting.as_mut().poll(cx).is_ready())).await;
        assert!(!polled, "there is no room");
    }
    assert_eq!(log.end(), end);
    gate.open(1000);
    log.flush().await.expect("the disk is fine");
    gate.open(1000);
    for _ in 0..taken {
        log.try_append(entry(3, &large)).expect("all room is back").commit.later();
    }
    let mut reader = log.reader(Position::ZERO);
    let mut ids = Vec::new();
    while let Some(record) = reader.next().expect("sound") {
        ids.push(record.time);
    }
    assert!(!ids.contains(&2));
}

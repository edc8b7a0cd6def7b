//! Storage engines that others build on.

use std::sync::Arc;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine, LogBatch, MessageExt};
use tokio::sync::{mpsc, oneshot};

use super::acks::{ACK, TOGETHER, shuffled};
use super::disk::{Records, directory, rate};
use super::producers;
use crate::case::{Absent, Sample, Scale};
use crate::clock;

fn fjall(directory: &std::path::Path) -> Result<(Database, Keyspace), Absent> {
    let database = Database::builder(directory).open().map_err(|error| error.to_string())?;
    let keyspace =
        database.keyspace("records", KeyspaceCreateOptions::default).map_err(|error| error.to_string())?;
    Ok((database, keyspace))
}

pub(crate) fn fjall_append(scale: Scale, batch: usize) -> Result<Sample, Absent> {
    let directory = directory()?;
    let (database, keyspace) = fjall(directory.path())?;
    let mut records = Records::new();
    let mut next = 0u64;
    rate(scale, batch, || {
        let places = records.next(batch);
        let mut write = database.batch().durability(Some(PersistMode::SyncData));
        for place in places {
            write.insert(&keyspace, next.to_be_bytes(), &records.bytes()[place]);
            next += 1;
        }
        write.commit().map_err(|error| error.to_string())
    })
}

/// fjall has no group commit: a thread gathers what all producers have sent and commits it at once.
pub(crate) fn fjall_producers(scale: Scale) -> Result<Sample, Absent> {
    let directory = directory()?;
    let (database, keyspace) = fjall(directory.path())?;
    let (tx, mut rx) = mpsc::channel::<(Arc<[u8]>, oneshot::Sender<()>)>(producers::PRODUCERS);
    let batcher = std::thread::spawn(move || -> Result<(), Absent> {
        let mut next = 0u64;
        let mut together = Vec::with_capacity(producers::PRODUCERS);
        while rx.blocking_recv_many(&mut together, producers::PRODUCERS) > 0 {
            let mut write = database.batch().durability(Some(PersistMode::SyncData));
            for (body, _) in &together {
                write.insert(&keyspace, next.to_be_bytes(), &**body);
                next += 1;
            }
            write.commit().map_err(|error| error.to_string())?;
            for (_, done) in together.drain(..) {
                let _ = done.send(());
            }
        }
        Ok(())
    });
    let sample = producers::measure(scale, move |body| {
        let tx = tx.clone();
        async move {
            let (done, is_done) = oneshot::channel();
            tx.send((body, done)).await.map_err(|_| "the batcher has ended".to_owned())?;
            is_done.await.map_err(|_| "the batcher has ended".to_owned())
        }
    });
    batcher.join().map_err(|_| "the batcher panicked".to_owned())??;
    sample
}

/// Acks are removals, a hundred in a durable batch.
pub(crate) fn fjall_acks(count: u64) -> Result<Sample, Absent> {
    let directory = directory()?;
    let (database, keyspace) = fjall(directory.path())?;
    let mut records = Records::new();
    for first in (0..count).step_by(1000) {
        let last = count.min(first + 1000);
        let places = records.next((last - first) as usize);
        let mut write = database.batch();
        for (at, place) in (first..last).zip(places) {
            write.insert(&keyspace, at.to_be_bytes(), &records.bytes()[place]);
        }
        write.commit().map_err(|error| error.to_string())?;
    }
    database.persist(PersistMode::SyncAll).map_err(|error| error.to_string())?;
    let order: Vec<_> = shuffled(count).collect();
    let began = clock::now();
    for together in order.chunks(TOGETHER) {
        let mut write = database.batch().durability(Some(PersistMode::SyncData));
        for at in together {
            write.remove(&keyspace, at.to_be_bytes());
        }
        write.commit().map_err(|error| error.to_string())?;
    }
    let microseconds = (clock::now() - began).as_secs_f64() * 1e6;
    Ok(Sample::new().with(ACK, microseconds / count as f64))
}

/// raft-engine stores protobuf messages that know their index; ours is in their first eight bytes.
struct Indexed;

impl MessageExt for Indexed {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        entry.value.first_chunk().map_or(0, |index| u64::from_be_bytes(*index))
    }
}

pub(crate) fn raft_append(scale: Scale, batch: usize) -> Result<Sample, Absent> {
    let directory = directory()?;
    let config = Config { dir: directory.path().join("raft").display().to_string(), ..Config::default() };
    let engine = Engine::open(config).map_err(|error| error.to_string())?;
    let mut records = Records::new();
    let mut next = 1u64;
    rate(scale, batch, || {
        let entries: Vec<_> = records
            .next(batch)
            .into_iter()
            .map(|place| {
                let mut value = records.bytes()[place].to_vec();
                value[..8].copy_from_slice(&next.to_be_bytes());
                next += 1;
                let mut entry = BytesValue::new();
                entry.value = value;
                entry
            })
            .collect();
        let mut write = LogBatch::with_capacity(1);
        write.add_entries::<Indexed>(1, &entries).map_err(|error| error.to_string())?;
        engine.write(&mut write, true).map_err(|error| error.to_string())?;
        // As ours: what lies far behind is given free.
        if next.is_multiple_of(32 << 10) {
            engine.compact_to(1, next - 1);
            engine.purge_expired_files().map_err(|error| error.to_string())?;
        }
        Ok(())
    })
}

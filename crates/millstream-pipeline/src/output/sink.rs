//! The end of a run: hands each batch to its output and applies the error policy to what an output refuses.

use super::file::{FileError, Files};
use super::{QueueOutput, StdoutOutput, StreamOutput, Tries};
use crate::batch::Batch;
use crate::intake::Remembered;
use crate::item::{ItemError, Letter};
use crate::letters::Letters;
use crate::trouble::Trouble;
use bytes::Bytes;
use millstream_flow::{Account, BoxError, Sink, SinkError};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Why an output did not take a batch.
pub(crate) enum Refused {
    /// Its items are not wanted, now or after all tries: the error policy says what becomes of them.
    Items(String),
    /// The output cannot go on; the run ends and nothing of the batch is settled.
    Broken(BoxError),
}

/// What becomes of items that an output refuses.
pub(crate) enum End {
    Fail,
    /// Dropped, under the name that the steps' errors have.
    Skip,
    /// The source's settler hears of it and dead-letters the message.
    Settle,
    Letters(Letters),
}

/// What the ledger calls items that `on_error: skip` dropped.
pub(crate) const SKIPPED: &str = "errors";

/// What the ledger calls items that a route dropped.
pub(crate) const ROUTE: &str = "route";

/// One output of a run.
pub(crate) enum Out {
    Files(Arc<Mutex<Files>>),
    Stdout(StdoutOutput),
    Queue(QueueOutput),
    Stream(StreamOutput),
    #[cfg(feature = "http")]
    Http(super::HttpClient),
}

/// What a run writes to, and what it must know of the source while it writes.
pub(crate) struct Writing {
    pub(crate) outs: Vec<(Arc<str>, Out)>,
    pub(crate) tries: Tries,
    pub(crate) end: End,
    pub(crate) trouble: Arc<Trouble>,
    /// What the source has received: at most a share of it may fail.
    pub(crate) account: Arc<Account>,
    /// The source's position, saved last of all: it must not run ahead of what the outputs have on the disk.
    pub(crate) position: Option<Arc<Remembered>>,
    /// Whether the source cannot give items again that were not written: what ends the run says so.
    pub(crate) losing: bool,
    /// Batches written at once.
    pub(crate) batches_max: usize,
}

/// All outputs of a run.
pub(crate) struct Outputs {
    writing: Writing,
    /// Finishes files by their age while nothing is written.
    rotation: JoinSet<()>,
    /// Of the rotation: the next write ends the run with it.
    rotation_error: Arc<Mutex<Option<FileError>>>,
}

impl Outputs {
    pub(crate) fn new(writing: Writing) -> Self {
        let mut rotation = JoinSet::new();
        let rotation_error = Arc::new(Mutex::new(None));
        for (_, out) in &writing.outs {
            if let Out::Files(files) = out
                && lock(files).rotates_by_age()
            {
                rotation.spawn(rotate(files.clone(), rotation_error.clone()));
            }
        }
        Outputs { writing, rotation, rotation_error }
    }

    /// Why the rotation ended, if it did.
    fn rotation_failed(&self) -> Option<FileError> {
        let error = self.rotation_error.lock().unwrap_or_else(PoisonError::into_inner).take();
        error.map(|error| error.losing(self.writing.losing))
    }

    async fn write_one(&mut self, batch: &Batch) -> Result<(), Refused> {
        match &mut self.writing.outs[batch.output].1 {
            // Written together with all other batches, by `write`.
            Out::Files(_) => Ok(()),
            Out::Stdout(out) => out.write(batch).map_err(Refused::Broken),
            Out::Queue(out) => out.write(batch).await,
            Out::Stream(out) => out.write(batch).await,
            #[cfg(feature = "http")]
            Out::Http(out) => out.write(batch, self.writing.tries.clone()).await,
        }
    }

    /// Writes the batches of file outputs and returns when they are on the disk.
    async fn write_files(&mut self, batches: &mut Vec<Batch>) -> Result<(), FileError> {
        for (index, (_, out)) in self.writing.outs.iter().enumerate() {
            let Out::Files(files) = out else { continue };
            if !batches.iter().any(|batch| batch.output == index) {
                continue;
            }
            let mut tries = self.writing.tries.clone();
            loop {
                // The disk may take its time: not on a thread that others need.
                let (files, moved) = (files.clone(), std::mem::take(batches));
                let written = tokio::task::spawn_blocking(move || {
                    let written = put(&mut lock(&files), index, &moved);
                    (moved, written)
                });
                let (back, written) = match written.await {
                    Ok(written) => written,
                    Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
                };
                *batches = back;
                match written {
                    Ok(()) => break,
                    Err(error) if !tries.again(None).await => return Err(error),
                    Err(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Applies the policy to a batch that its output refused: what its items are settled with, or the error that ends the run.
    async fn refuse(&self, batch: &Batch, reason: String) -> Result<BoxError, BoxError> {
        let stage = &self.writing.outs[batch.output].0;
        for item in 0..batch.len() {
            self.writing.trouble.note(stage, &reason, batch.place(item));
        }
        match &self.writing.end {
            End::Fail => return Err(ItemError(format!("output `{stage}`: {reason}")).into()),
            End::Skip | End::Settle => {}
            End::Letters(letters) => {
                for (item, line) in batch.lines().enumerate() {
                    let (body, place) = (Bytes::copy_from_slice(line), batch.place(item).to_owned());
                    let trace = batch.trace(item).cloned();
                    let letter = Letter { body, content_type: "application/json", place, trace };
                    letters.send(letter, &reason, stage).await?;
                }
            }
        }
        Ok(ItemError(reason).into())
    }
}

fn put(files: &mut Files, output: usize, batches: &[Batch]) -> Result<(), FileError> {
    for (path, lines) in batches.iter().filter(|batch| batch.output == output).flat_map(Batch::files) {
        if let Err(error) = files.add(path, lines) {
            files.roll_back();
            return Err(error);
        }
    }
    files.sync()
}

/// Finishes files that are due, as long as the run lasts.
async fn rotate(files: Arc<Mutex<Files>>, failed: Arc<Mutex<Option<FileError>>>) {
    loop {
        let due = lock(&files).due();
        // A file that is begun meanwhile is due no earlier than one interval from now.
        let wait = due.unwrap_or_else(|| Instant::now() + lock(&files).interval());
        tokio::time::sleep_until(wait).await;
        let files = files.clone();
        let rotated = tokio::task::spawn_blocking(move || lock(&files).rotate(wait)).await;
        if let Ok(Err(error)) = rotated {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            return;
        }
    }
}

fn lock(files: &Mutex<Files>) -> std::sync::MutexGuard<'_, Files> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sink for Outputs {
    type Item = Batch;

    async fn write(&mut self, batches: &mut Vec<Batch>) -> Result<(), SinkError> {
        if let Some(error) = self.rotation_failed() {
            return Err(SinkError::Failed(error.into()));
        }
        let losing = self.writing.losing;
        self.write_files(batches).await.map_err(|error| SinkError::Failed(error.losing(losing).into()))?;
        let mut rejected = Vec::new();
        for (index, batch) in batches.iter().enumerate() {
            match self.write_one(batch).await {
                Ok(()) => {}
                Err(Refused::Broken(error)) => return Err(SinkError::Failed(error)),
                Err(Refused::Items(reason)) => {
                    rejected.push((index, self.refuse(batch, reason).await.map_err(SinkError::Failed)?));
                }
            }
        }
        match &self.writing.end {
            _ if rejected.is_empty() => Ok(()),
            End::Skip => {
                let skipped = rejected.into_iter().map(|(index, _)| index).collect();
                Err(SinkError::Skipped(skipped, SKIPPED.into()))
            }
            _ => Err(SinkError::Rejected(rejected)),
        }
    }

    async fn close(&mut self) -> Result<(), BoxError> {
        self.rotation.shutdown().await;
        if let Some(error) = self.rotation_failed() {
            return Err(error.into());
        }
        for (_, out) in &self.writing.outs {
            if let Out::Files(files) = out {
                let files = files.clone();
                let closed = tokio::task::spawn_blocking(move || lock(&files).close()).await?;
                closed.map_err(|error| error.losing(self.writing.losing))?;
            }
        }
        if let Some(position) = &self.writing.position {
            position.save().await?;
        }
        // A short run may end before its source has looked.
        match self.writing.trouble.exceeds(self.writing.account.received()) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    /// Batches written at once, so that one sync serves them all.
    fn chunk(&self) -> usize {
        self.writing.batches_max
    }
}

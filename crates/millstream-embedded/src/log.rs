//! A durable, segmented log: what is appended is there again after a crash, in order, or was reported lost.
//!
//! Records go into pre-written segment files of fixed size. Whoever appends encodes into a shared buffer;
//! one writer takes all that is pending, writes it, syncs once, and wakes everybody whose records are now
//! durable. The next group closes when that sync ends, so groups grow with the load and no timer exists.
//! The bytes are drawn in `docs/format.md`.
//!
//! ```
//! use std::sync::Arc;
//! use millstream_embedded::log::{Entry, Log, LogSettings, RealDisk, Replay};
//!
//! # let dir = tempfile::tempdir()?;
//! let (log, _) = Log::open(dir.path(), LogSettings::default(), Arc::new(RealDisk), &mut |_| {})?;
//! let appended = log.append_blocking(Entry { kind: 1, time: 0, head: b"", body: b"hello" })?;
//! appended.commit.wait()?; // durable from here on
//! assert_eq!(log.read_at(appended.position)?.body, "hello");
//! log.close()?;
//!
//! let mut found = Vec::new();
//! Log::open(dir.path(), LogSettings::default(), Arc::new(RealDisk), &mut |seen| {
//!     if let Replay::Record(record) = seen {
//!         found.push(record.body.to_vec());
//!     }
//! })?;
//! assert_eq!(found, [b"hello"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod append;
mod block_on;
mod checkpoint;
mod commit;
mod directory;
mod disk;
mod error;
mod export;
mod handle;
mod pool;
mod reader;
mod record;
mod recovery;
mod scan;
mod segment;
mod settings;
mod shared;
mod survey;
mod verify;
mod writer;

pub use append::{Appended, AppendedBatch};
pub use commit::Commit;
pub use disk::{Disk, DiskFile, LockError, LockGuard, LockMode, RealDisk};
#[cfg(feature = "test-support")]
pub use disk::{Fault, SimDisk};
pub use error::{AppendError, CommitError, CommitErrorKind, LogError, LogErrorKind, ReadError};
pub use export::{BodyDecoder, export};
pub use handle::{Log, LogStats};
pub use reader::Reader;
pub use record::{Entry, Position, Record, RecordRef, stored_len};
pub use recovery::{Recovery, Replay};
pub use settings::LogSettings;
pub(crate) use verify::walk;
pub use verify::{VerifyReport, verify};

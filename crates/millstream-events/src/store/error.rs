//! What can go wrong with a store.

use std::fmt;
use std::sync::Arc;

use millstream_message::{BrokerError, CodecError};

use super::expected::Expected;
use super::record::RecordError;

/// Why a store cannot be opened or read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The broker, or its stream, cannot.
    #[error("the event log `{log}` cannot be used")]
    Broker {
        /// The name of the store.
        log: String,
        /// Why.
        #[source]
        error: BrokerError,
    },
    /// An entry is damaged, or written by a newer Millstream.
    #[error("entry {offset} of the event log `{log}` cannot be read")]
    Entry {
        /// The name of the store.
        log: String,
        /// Its offset.
        offset: u64,
        /// Why.
        #[source]
        error: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Entries are lost: retention removed them, or the disk was damaged.
    #[error(
        "entries {from} to {to} of the event log `{log}` are lost; restore the log, or open it with \
         `EventStoreOptions::accept_gaps` to go on without what they said"
    )]
    Gap {
        /// The name of the store.
        log: String,
        /// The first that is lost.
        from: u64,
        /// The last that is lost.
        to: u64,
    },
    /// What is asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The broker was closed.
    #[error("the event log `{log}` is closed")]
    Closed {
        /// The name of the store.
        log: String,
    },
}

impl StoreError {
    pub(crate) fn broker(log: &str, error: BrokerError) -> StoreError {
        StoreError::Broker { log: log.to_owned(), error }
    }

    pub(crate) fn entry(log: &str, offset: u64, error: RecordError) -> StoreError {
        StoreError::Entry { log: log.to_owned(), offset, error: Arc::new(error) }
    }
}

/// What a writer expected of a stream did not hold. Nothing was appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stream `{stream}` has {}, and {expected} was expected", Version(*.actual))]
#[non_exhaustive]
pub struct Conflict {
    /// The stream.
    pub stream: String,
    /// What was expected.
    pub expected: Expected,
    /// The stream's version, as far as this store has seen; `None` if it has no events.
    pub actual: Option<u64>,
}

struct Version(Option<u64>);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(version) => write!(f, "version {version}"),
            None => f.write_str("no events"),
        }
    }
}

/// Why nothing was appended, or is not known to be. Each variant says what can be done.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The stream is not as expected: read it again, and decide again.
    #[error(transparent)]
    Conflict(Conflict),
    /// The stream was deleted for ever. Use another name.
    #[error("stream `{stream}` was deleted for ever")]
    Gone {
        /// The stream.
        stream: String,
    },
    /// There is nothing to append, or the stream's name is empty or too long. Trying again cannot help.
    #[error("{0}")]
    Invalid(String),
    /// Larger than the broker takes in one message. Fewer events at once, or smaller ones.
    #[error("the events of one append are {len} bytes together, and the broker takes at most {max}")]
    TooLarge {
        /// Bytes, with what is said about the events.
        len: u64,
        /// Bytes.
        max: u64,
    },
    /// A value cannot be written.
    #[error("event {index} cannot be written")]
    Codec {
        /// Which of those that were given, from 0.
        index: usize,
        /// Why.
        #[source]
        error: Arc<CodecError>,
    },
    /// The broker did not say whether it has stored the commit. [Appending](crate::EventStore::append_as) under the same name again is
    /// safe: it counts once.
    #[error("it is not known whether commit `{commit}` was stored")]
    Unknown {
        /// The name of the commit.
        commit: String,
        /// What happened.
        #[source]
        error: BrokerError,
    },
    /// The broker has refused it. Nothing was stored.
    #[error("the broker has refused it")]
    Refused(#[source] BrokerError),
    /// Nothing was stored, since the log cannot be read.
    #[error("nothing was stored, since the log cannot be read")]
    Unreadable(#[source] StoreError),
    /// The log cannot be read, so that what has become of the commit is not known. It is found when the store is opened again.
    #[error("the log cannot be read to see whether commit `{commit}` is stored and counts")]
    Unseen {
        /// The name of the commit.
        commit: String,
        /// Why.
        #[source]
        error: StoreError,
    },
}

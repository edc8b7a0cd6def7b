//! The error of every broker operation.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Why a broker did not do what it was asked. Cheap to clone, so that one failed commit can be told to every
/// publisher that waited for it.
#[derive(Clone)]
pub struct BrokerError(Arc<Inner>);

struct Inner {
    kind: BrokerErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What a caller can do about a [`BrokerError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BrokerErrorKind {
    /// The queue, exchange or stream does not exist. Declare it first.
    NotFound,
    /// It exists with other properties; the message lists the differences. Delete it, or declare it as it is.
    Mismatch,
    /// Somebody else holds it: an exclusive consumer, or a directory locked by another process.
    InUse,
    /// This backend cannot do it; its [`Features`](crate::Features) say so.
    Unsupported,
    /// The request makes no sense (an empty name, a limit of zero). Retrying cannot help.
    Invalid,
    /// The broker is closed or out of reach. The request may be repeated later.
    Unavailable,
    /// The disk failed or is full. What was confirmed before is safe.
    Storage,
    /// Stored data is damaged. `log verify` shows where.
    Damaged,
}

impl BrokerError {
    /// An error of this kind; `message` is a lower-case fragment that names the thing, the value and the remedy.
    pub fn new(kind: BrokerErrorKind, message: impl Into<String>) -> BrokerError {
        BrokerError(Arc::new(Inner { kind, message: message.into(), source: None }))
    }

    /// The same with its cause.
    pub fn with_source(
        kind: BrokerErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> BrokerError {
        BrokerError(Arc::new(Inner { kind, message: message.into(), source: Some(source.into()) }))
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> BrokerErrorKind {
        self.0.kind
    }
}

impl fmt::Display for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerError")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish()
    }
}

impl Error for BrokerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

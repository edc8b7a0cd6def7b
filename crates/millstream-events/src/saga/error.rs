//! What can go wrong with sagas.

use millstream_message::CodecError;

use crate::store::{AppendError, StoreError};

/// Why a saga was not begun.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BeginError {
    /// One of this name was begun before.
    #[error("saga `{saga}` of id `{id}` was begun before")]
    Begun {
        /// The name of its definition.
        saga: String,
        /// Its id.
        id: String,
    },
    /// So many are active that no more may be.
    #[error("{active} sagas are active, and no more may be: begin it later, or raise `active_max`")]
    TooMany {
        /// How many.
        active: usize,
    },
    /// There is no such definition, or its state is of another type; or the sagas have been shut down.
    #[error("{0}")]
    Invalid(String),
    /// The state cannot be written as JSON.
    #[error("the state cannot be written")]
    State(#[source] serde_json::Error),
    /// The store has not stored it, or does not say so.
    #[error("it was not stored")]
    Store(#[source] AppendError),
}

/// Why nothing is known of a saga, or nothing can be done with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SagaError {
    /// It was not begun, or is forgotten.
    #[error("there is no saga `{saga}` of id `{id}`")]
    Unknown {
        /// The name of its definition.
        saga: String,
        /// Its id.
        id: String,
    },
    /// It has ended.
    #[error("saga `{saga}` of id `{id}` has ended")]
    Ended {
        /// The name of its definition.
        saga: String,
        /// Its id.
        id: String,
    },
    /// It has not ended.
    #[error("saga `{saga}` of id `{id}` has not ended")]
    Active {
        /// The name of its definition.
        saga: String,
        /// Its id.
        id: String,
    },
    /// It has heard of so many events that it has not taken that no more are kept.
    #[error("saga `{saga}` of id `{id}` has heard of {heard} events that no step has taken")]
    Full {
        /// The name of its definition.
        saga: String,
        /// Its id.
        id: String,
        /// How many.
        heard: usize,
    },
    /// The sagas have been shut down: another process, or this one when it begins again, goes on with them.
    #[error("the sagas have been shut down")]
    Stopped,
    /// Its stream cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its stream holds what is not a saga's.
    #[error("event {version} of saga `{saga}` of id `{id}` cannot be read")]
    Change {
        /// The name of its definition.
        saga: String,
        /// Its id.
        id: String,
        /// The event's version.
        version: u64,
        /// Why.
        #[source]
        error: CodecError,
    },
    /// The store has not stored it, or does not say so.
    #[error(transparent)]
    Append(#[from] AppendError),
}

//! From feeds and queues into the flow: a token for each item, and what is done when it is settled.

mod direct;
mod ingest;
mod position;
mod queued;
mod remembered;

pub(crate) use self::direct::direct;
pub(crate) use self::ingest::Ingest;
pub(crate) use self::position::{Keeper, PositionFile, offset_of, position_of};
pub(crate) use self::queued::queued;
pub(crate) use self::remembered::Remembered;

use crate::item::Raw;
use crate::trouble::Trouble;
use futures_core::Stream;
use millstream_flow::flows::Stopping;
use millstream_flow::{Account, BoxError, Knob, Tracked};
use std::pin::Pin;
use std::sync::Arc;

/// The items of a source, and the account of what became of them.
pub(crate) struct Intake {
    pub(crate) stream: Items,
    pub(crate) account: Arc<Account>,
    /// Of a queue.
    pub(crate) prefetch: Option<Knob>,
}

/// Items with their tokens.
pub(crate) type TrackedItems = Pin<Box<dyn Stream<Item = Result<Tracked<Raw>, BoxError>> + Send>>;

/// How items come.
pub(crate) enum Items {
    /// One by one: between any two of them the run may stop.
    Single(TrackedItems),
    /// In chunks, each of which may have a position: what is made hears itself that the run is to stop.
    Chunks(Box<dyn FnOnce(Stopping) -> TrackedItems + Send>),
}

/// Ends the stream once too many items have failed.
fn too_many(trouble: &Trouble, account: &Account) -> Option<BoxError> {
    trouble.exceeds(account.received()).map(Into::into)
}

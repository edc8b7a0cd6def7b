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
use millstream_flow::{Account, BoxError, Knob, Tracked};
use std::pin::Pin;
use std::sync::Arc;

/// The items of a source, and the account of what became of them.
pub(crate) struct Intake {
    pub(crate) stream: Pin<Box<dyn Stream<Item = Result<Tracked<Raw>, BoxError>> + Send>>,
    pub(crate) account: Arc<Account>,
    /// Of a queue.
    pub(crate) prefetch: Option<Knob>,
}

/// Ends the stream once too many items have failed.
fn too_many(trouble: &Trouble, account: &Account) -> Option<BoxError> {
    trouble.exceeds(account.received()).map(Into::into)
}

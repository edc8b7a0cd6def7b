//! What a full buffer does, and what it tells.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

/// What happens while a stream's buffer is under pressure: from its high mark on until it is down to the low one.
///
/// What must be thinned out whether there is pressure or not, the operators of [`Pipe`](millstream_flow::Pipe) thin out, at the
/// handler's end or at the reader's: [`sample`](millstream_flow::Pipe::sample), [`throttle`](millstream_flow::Pipe::throttle) for the
/// newest item of each interval, [`latest_by`](millstream_flow::Pipe::latest_by) for that of each key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Strategy {
    /// The handler goes on until the buffer is full, then it waits until an eighth of it is free. Nothing is lost.
    Buffer,
    /// The handler waits from the high mark until the low mark. Nothing is lost.
    Block,
    /// The handler goes on with nine items for ten that the reader takes, until the low mark. Nothing is lost.
    Throttle,
    /// A full buffer drops the item that has waited longest.
    DropOldest,
    /// A full buffer drops the item that has just come.
    DropNewest,
    /// A full buffer drops the item of the lowest [priority](crate::StreamRequest::priority): of several the one that came last, and so
    /// the one that has just come if none is lower. To find another one it looks through the buffer.
    DropLowest,
    /// Under pressure an item takes the place of one of its [key](crate::StreamRequest::key) that waits; a full buffer drops the item
    /// that has waited longest. So a slow reader sees fewer states, but no old one.
    Latest,
    /// Under pressure one item in so many is kept; a full buffer drops what comes.
    Sample(NonZeroU64),
    /// The same by chance: under pressure each item is kept with a probability of one in so many, whatever became of the others.
    SampleRandom(NonZeroU64),
}

impl Strategy {
    /// Whether the handler waits, so that nothing is dropped.
    pub(crate) fn waits(self) -> bool {
        matches!(self, Strategy::Buffer | Strategy::Block | Strategy::Throttle)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Strategy::Buffer => f.write_str("buffer"),
            Strategy::Block => f.write_str("block"),
            Strategy::Throttle => f.write_str("throttle"),
            Strategy::DropOldest => f.write_str("drop oldest"),
            Strategy::DropNewest => f.write_str("drop newest"),
            Strategy::DropLowest => f.write_str("drop lowest"),
            Strategy::Latest => f.write_str("latest"),
            Strategy::Sample(one_in) => write!(f, "sample 1 in {one_in}"),
            Strategy::SampleRandom(one_in) => write!(f, "sample 1 in {one_in} by chance"),
        }
    }
}

/// How full a buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pressure {
    /// Items that wait.
    pub len: usize,
    /// How many may.
    pub capacity: usize,
    /// Bytes that wait; what items point to is among them if the buffer is bounded in bytes or counts in a budget of memory.
    pub bytes: usize,
    /// Items that this stream has dropped so far.
    pub dropped: u64,
    /// Items that its reader has taken so far.
    pub delivered: u64,
    /// How long it has been under pressure; zero if it is not.
    pub lasting: Duration,
    /// How long it has been in all.
    pub total: Duration,
}

/// What a buffer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PressureEvent {
    /// The pressure begins.
    Entered(Pressure),
    /// It is over.
    Left(Pressure),
    /// It has lasted so long that another strategy follows.
    FellBack(Strategy, Pressure),
    /// The stream has ended, or its reader has dropped it: how it was in all. The last that is told; of a reader that leaves just
    /// as the pressure changes, that may come after it.
    Ended(Pressure),
}

//! The engine of Millstream: items flow from a source through typed operators to a sink, with bounded memory,
//! backpressure from the last to the first, and an account of every item.
//!
//! ```
//! use millstream_flow::{Batch, Capacity, Pipe};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let (batches, report) = Pipe::from_iter(1..=10_000u32)
//!     .filter(|n| n % 2 == 0)
//!     .buffer(Capacity::auto()) // another task from here on
//!     .map(|n| n * 2)
//!     .batch(Batch::count(100).age(Duration::from_millis(10)))
//!     .fold(0, |batches, batch| *batches += batch.len() / 100)
//!     .await
//!     .unwrap();
//! assert_eq!(batches, 50);
//! assert_eq!(report.stages.len(), 2);
//! assert!(report.ledger.balances());
//! # }
//! ```
//!
//! All operators are listed in [`operators`].
//!
//! # What it is not
//!
//! It knows no socket, no file and no broker: those are other crates' sources and sinks. It is not a batch engine
//! for columns (use Arrow), and it does not distribute one flow over machines (use a broker between flows).
//!
//! # How it works
//!
//! Inside a stage, operators are nested closures that the source's loop calls ([`Flow`]); between stages, chunks
//! of items cross a bounded ring. `ARCHITECTURE.md` has the whole picture, and `cargo xtask bench engine` the
//! measurements.
//!
//! # Unsafe code
//!
//! In a few small modules, all run under Miri (`cargo xtask miri`): the ring between stages, which loom checks, too, the counted
//! pointer of tokens, the slots of calls in flight, the buffers inside stages, and what a stage holds while it works. One reads
//! the processor's counter, which Miri has not.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod breaker;
mod channel;
mod chunk;
mod clock;
mod context;
mod drive;
mod failure;
mod finish;
mod flow;
mod held;
mod keyed;
mod knob;
mod measure;
mod memo;
mod op;
mod pipe;
mod replay;
mod report;
mod retry;
mod ring;
mod run;
mod scope;
mod sink;
mod source;
mod spawn;
mod stats;
mod sync;
#[cfg(feature = "test")]
#[cfg_attr(docsrs, doc(cfg(feature = "test")))]
pub mod test;
mod timer;
mod token;

pub use breaker::Breaker;
pub use channel::{SendError, Sender};
pub use clock::{Clock, Tick};
pub use context::{Carry, ContextKey, ContextRef, InContext, InContexts};
pub use failure::{BoxError, Failed, Failure, Panicked, chain};
pub use flow::{Flow, Step};
pub use knob::{Frozen, Knob, Setting};
pub use measure::{Capacity, Measure, Unmeasured};
pub use memo::Memo;
pub use millstream_resilience::{BreakerState, TimedOut};
pub use op::batch::Batch;
pub use op::broadcast::Unread;
pub use op::burst::{Debounce, Throttle};
pub use op::dedupe::Dedupe;
pub use op::idle_timeout::Silent;
pub use op::inputs::{Input, Inputs};
pub use op::map_async::Concurrency;
pub use op::meter::Metered;
pub use op::overflow::{Overflow, Overflowed};
pub use op::parallel::Workers;
pub use op::rate_limit::RateLimit;
pub use op::sample::Sample;
pub use op::spill::Spill;
pub use op::switch::Switch;
pub use op::window::aggregate::{Aggregate, Count, Fold, Items, Max, Mean, Min, Sum};
pub use op::window::{Arrival, Closed, EventTime, Key, Patience, TimeOf, Window, Windowed};
pub use pipe::{Lane, Pipe};
pub use replay::Replay;
pub use report::{HopReport, KnobReport, Ledger, OpReport, Report, StageReport};
pub use retry::Retry;
pub use run::{Ended, Monitor, Plan, Run, RunError};
pub use scope::{MemoryUse, PanicPolicy, RunErrorKind};
pub use sink::{Sink, SinkError, TimeLimited};
pub use token::{Account, Outcome, Settle, Settler, Shares, Token, TokenRuns, Tracked, Tracker};

#[doc = include_str!("../docs/operators.md")]
pub mod operators {}

/// The flows that [`Pipe`]'s methods make, for whoever must name their types.
pub mod flows {
    pub use crate::channel::FromChannel;
    pub use crate::op::basic::{Filter, FilterMap, Inspect, Map, Scan, Skip, SkipWhile, Take, TakeWhile};
    pub use crate::op::batch::Batched;
    pub use crate::op::boxed::BoxFlow;
    pub use crate::op::buffer::Hop;
    pub use crate::op::burst::Bursts;
    pub use crate::op::concat::Concat;
    pub use crate::op::conflate::Conflated;
    pub use crate::op::contexts::{MapInContext, SetContext, WithContext, WithoutContext};
    pub use crate::op::dedupe::{Changes, Deduped};
    pub use crate::op::errors::{DeadLetter, FailFast, Fallback, Reject, SkipErrors};
    pub use crate::op::flat_map::{FlatMap, Unbatch};
    pub use crate::op::idle_timeout::IdleTimeout;
    pub use crate::op::inputs::Changing;
    pub use crate::op::latest::Latest;
    pub use crate::op::map_async::MapAsync;
    pub use crate::op::merge::{Either, Merge};
    pub use crate::op::meter::Meter;
    pub use crate::op::overflow::Shedding;
    pub use crate::op::parallel::Parallel;
    pub use crate::op::rate_limit::RateLimited;
    pub use crate::op::sample::{Sampled, SampledByKey};
    pub use crate::op::try_map::TryMap;
    pub use crate::op::zip::Zip;
    pub use crate::pipe::{Buffered, LaneFlow};
    pub use crate::replay::{Recorded, Replayed};
    pub use crate::source::{FromIter, FromStream, FromTracked, Stopping};
}

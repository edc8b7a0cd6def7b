//! Requests to their one handler, notifications to everyone concerned, stream requests answered with flows: through behaviours
//! that are declared once, at the cost of a function call.
//!
//! ```
//! use millstream_flow::BoxError;
//! use millstream_mediator::{Breaker, Kind, Mediator, Request, Retries, Timeout};
//! use millstream_resilience::{BreakerSettings, Retry};
//! use std::time::Duration;
//!
//! #[derive(Clone)]
//! struct PriceOf { article: u32 }
//! impl Request for PriceOf {
//!     type Response = u64;
//!     const KIND: Kind = Kind::Query;
//!     fn repeat(&self) -> Option<Self> { Some(self.clone()) } // it may be asked again
//! }
//! async fn price_of(asked: PriceOf) -> Result<u64, BoxError> { Ok(u64::from(asked.article) * 10) }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let mediator = Mediator::builder()
//!     .behaviour(Breaker::new(BreakerSettings::default())) // outermost: hears of what hangs, too
//!     .behaviour(Timeout::new(Duration::from_secs(5))) // for all tries together
//!     .behaviour(Retries::new(Retry::new(3)))
//!     .request(price_of)
//!     .build()?; // or everything that is wrong with it
//! assert_eq!(mediator.send(PriceOf { article: 7 }).await?, 70);
//! # Ok(()) }
//! ```
//!
//! `docs/mediator.md` is the guide: all behaviours, presets, metrics, and where to find what MediatR and FS.Mediator have. [`Mediator`]
//! is where calls begin, [`Builder`] where everything is declared, [`Behaviour`] and [`StreamBehaviour`] are what stands around
//! handlers, [`presets`] what fits together.
//!
//! # How it works
//!
//! Behaviours are generic over the requests they stand around, and a builder's type says which there are: each handler is compiled
//! with its behaviours into one future, which is the one allocation of a call. A table by type leads to it; what does not apply to
//! a type costs it a branch. Streams are put together the same way, of operators that fuse.
//!
//! # What it is not
//!
//! It sends nothing to other processes (a handler of a notification does that, see `millstream::mediator::to_broker`), finds no
//! handlers by itself, and holds no global state but which threads have counters of their own: two mediators know nothing of
//! each other. It knows no socket and no file: whoever wants `/metrics` prints a [snapshot](metrics::Snapshot).
//!
//! # Features
//!
//! `tower`: any layer of tower as a behaviour, and a mediator as a service of tower.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod behaviour;
mod behaviours;
mod builder;
mod call;
mod describe;
mod error;
mod handler;
mod json;
mod mediator;
mod memory;
mod message;
pub mod metrics;
mod notify;
pub mod presets;
mod stream;
mod streams;
mod supervise;
mod typed;

pub use behaviour::{Behaviour, Next, Scope};
pub use behaviours::{
    Admission, Authorize, Breaker, Bulkhead, Cache, Check, Dedupe, Fallback, Hedging, Intercept,
    InterceptAll, Interceptor, InterceptorOf, Logging, RateLimit, Retries, Timeout, Timing,
};
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use behaviours::{Answering, InTurn, InTurnService, Passing, Tower, TowerNext, TowerService};
pub use builder::{BuildError, Builder};
pub use call::{Call, Context, Correlation, Detached};
pub use describe::{Description, Line};
pub use error::{Error, ErrorKind};
pub use handler::{Handler, Notified};
pub use mediator::{Handle, Mediator};
pub use memory::{Memory, Reserved};
pub use message::{About, Kind, Notification, Request, StreamRequest};
pub use metrics::Metrics;
pub use notify::{Full, Notifications, Outcome, Publish, PublishError, Published, Subscribe, Undelivered};
pub use stream::{
    ItemErrors, ItemFlow, Opening, StreamBehaviour, StreamError, StreamHandler, StreamNext, StreamOptions,
    Streaming,
};
pub use streams::{
    Backpressure, Health, HealthBoard, Pressure, PressureEvent, Resume, Severity, Strategy, StreamAdmission,
    StreamBreaker, StreamBulkhead, StreamHealth, StreamIntercept, StreamInterceptor, StreamLogging,
    StreamRateLimit, StreamRetries, StreamTimeout, StreamTiming, Warning, flows,
};
pub use typed::BehaviourOf;

/// What the builder makes of behaviours, for whoever must name its types.
pub mod stacks {
    pub use crate::behaviour::{Around, Bare, Behaviours, Boxed, BoxedStage, Inside, Shared, Stage};
    pub use crate::stream::{Failing, Guarded, StreamBehaviours, StreamStage};
    pub use crate::typed::Only;
}

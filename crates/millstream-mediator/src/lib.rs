//! Requests to their handlers, notifications to everyone concerned, streams on demand: through behaviours that are declared
//! once, at the cost of a function call.

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
mod message;
pub mod metrics;
pub mod presets;
mod notify;
mod stream;
mod streams;
mod supervise;
mod typed;

pub use behaviour::{Behaviour, Next, Scope};
pub use behaviours::{
    Admission, Authorize, Breaker, Bulkhead, Cache, Check, Dedupe, Fallback, Hedging, Intercept, InterceptAll,
    Interceptor, InterceptorOf, Logging, Memory, RateLimit, Reserved, Retries, Timeout, Timing,
};
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use behaviours::{Passing, Tower, TowerNext, TowerService};
pub use builder::{BuildError, Builder};
pub use call::{Call, Context, Correlation, Detached};
pub use describe::{Description, Line};
pub use error::{Error, ErrorKind};
pub use handler::{Handler, Notified};
pub use mediator::{Handle, Mediator};
pub use message::{About, Kind, Notification, Request, StreamRequest};
pub use metrics::Metrics;
pub use notify::{Full, Notifications, Outcome, Publish, PublishError, Published, Subscribe};
pub use stream::{
    ItemErrors, ItemFlow, Opening, StreamBehaviour, StreamError, StreamHandler, StreamNext, StreamOptions,
    Streaming,
};
pub use streams::{
    Backpressure, Health, HealthBoard, Pressure, PressureEvent, Resume, Severity, Strategy, StreamAdmission,
    StreamBreaker, StreamBulkhead, StreamHealth, StreamIntercept, StreamInterceptor, StreamLogging, StreamRateLimit,
    StreamRetries, StreamTimeout, StreamTiming, Warning, flows,
};
pub use typed::BehaviourOf;

/// What the builder makes of behaviours, for whoever must name its types.
pub mod stacks {
    pub use crate::behaviour::{Around, Bare, Behaviours, Inside, Stage};
    pub use crate::stream::{Failing, Guarded, SharedStream, StreamAround, StreamBehaviours, StreamInside, StreamStage};
    pub use crate::typed::Only;
}

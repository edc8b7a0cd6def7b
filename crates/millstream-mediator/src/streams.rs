//! The behaviours of streams that come with the crate, by what they are about.

mod admission;
mod backpressure;
mod breaker;
mod bulkhead;
mod health;
mod intercept;
mod limits;
mod logging;
mod retry;
mod timing;

pub use admission::StreamAdmission;
pub use backpressure::{Backpressure, Pressure, PressureEvent, Strategy};
pub use breaker::StreamBreaker;
pub use bulkhead::StreamBulkhead;
pub use health::{Health, HealthBoard, Severity, StreamHealth, Warning};
pub use intercept::{StreamIntercept, StreamInterceptor};
pub use limits::{StreamRateLimit, StreamTimeout};
pub use logging::StreamLogging;
pub use retry::{Resume, StreamRetries};
pub use timing::StreamTiming;

/// The flows that behaviours make, for whoever must name their types.
pub mod flows {
    pub use super::admission::Gated;
    pub use super::backpressure::Pressed;
    pub use super::breaker::Judged;
    pub use super::bulkhead::Placed;
    pub use super::intercept::Seen;
    pub use super::limits::Timed;
    pub use super::retry::Reopening;
    pub use crate::stream::progress::Watched;
}

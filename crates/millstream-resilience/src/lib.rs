//! Calls that fail, hang, or come too often: what every service does about them, each as a plain value with one method around an
//! async call, all speaking of errors in the same four words ([`Class`]).
//!
//! | | |
//! |---|---|
//! | [`Retry`] | makes a call again, after a [`Backoff`], from a [`Budget`] |
//! | [`CircuitBreaker`] | stops calls to what fails or dawdles too often; can pause a source |
//! | [`Timeout`] | gives a call so long |
//! | [`Hedge`] | makes a slow call a second time |
//! | [`Bulkhead`] | makes so many calls at once |
//! | [`RateLimiter`] | makes so many calls in a time |
//! | [`Fallback`] | has another answer |
//! | [`Keyed`] | one of these for each key |
//! | [`Policy`] | several of these, in the order in which they work together |
//!
//! ```
//! use millstream_resilience::{Backoff, BreakerSettings, CircuitBreaker, Policy, Retry, Timeout};
//! use std::time::Duration;
//! # use std::io;
//! # async fn fetch(n: u32) -> io::Result<u32> { Ok(n) }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let policy = Policy::new()
//!     .retry(Retry::new(4).backoff(Backoff::exponential(Duration::from_millis(50)).full_jitter()))
//!     .breaker(CircuitBreaker::new(BreakerSettings::default().name("prices").failure_rate(0.5)))
//!     .attempt_timeout(Timeout::new(Duration::from_secs(2)));
//! let price = policy.call(async || fetch(17).await).await.unwrap();
//! # assert_eq!(price, 17);
//! # }
//! ```
//!
//! # Errors
//!
//! A policy returns the call's own error type, if that can be made of the policy's error: [`TimedOut`], [`Open`], [`Full`],
//! [`Limited`]. A box can be; [`Error`] is a ready-made type that keeps yours as it is. So policies nest in any order without
//! wrapping errors twice, and a retry sees what its attempts really failed with.
//!
//! # Time
//!
//! is tokio's, monotonic, and can be paused by tests. Retries and timeouts count from when a call first *waits*: a call that is ready
//! at once costs no look at the clock.
//!
//! # What it is not
//!
//! It knows no socket, no file and no broker, and does not decide what may be called twice: you do. It spawns no task and has no
//! global state.
//!
//! # Features
//!
//! `tower`: the policies as layers of tower, in the module of this name.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backoff;
mod breaker;
mod budget;
mod bulkhead;
mod class;
mod clock;
mod error;
mod fallback;
mod hedge;
mod keyed;
mod policy;
mod rate_limit;
mod retry;
mod timeout;
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub mod tower;

pub use backoff::{Backoff, Delays, Jitter};
pub use breaker::{
    BreakerEvent, BreakerSettings, BreakerSnapshot, BreakerState, Cause, CircuitBreaker, Mode, Open, Permit,
    Window,
};
pub use budget::Budget;
pub use bulkhead::{Bulkhead, Full, Place};
pub use class::{AllTransient, ByTrait, Class, Classified, Classifier, Classify, class_of};
// How policies look at the clock, for those of other crates of this workspace.
#[doc(hidden)]
pub use clock::{bounded, later, noting};
pub use error::Error;
pub use fallback::Fallback;
pub use hedge::Hedge;
pub use keyed::{Idle, Keyed};
pub use policy::Policy;
pub use rate_limit::{Bucket, Limited, Rate, RateLimiter};
pub use retry::{Attempts, Failure, FromRetry, Retry, RetryError, Retrying, Stop, Tried};
pub use timeout::{Timed, TimedOut, Timeout};

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

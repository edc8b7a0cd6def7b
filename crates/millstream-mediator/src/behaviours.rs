//! The behaviours that come with the crate, a file each; beside them who shares what they hold.

mod admission;
mod breaker;
mod bulkhead;
mod cache;
mod checks;
mod fallback;
mod hedging;
mod intercept;
mod logging;
mod rate_limit;
mod retries;
mod sharing;
mod timeout;
mod timing;
#[cfg(feature = "tower")]
mod tower;

pub use admission::Admission;
pub use breaker::Breaker;
pub(crate) use breaker::Judge;
pub use bulkhead::Bulkhead;
pub(crate) use bulkhead::{Places, full, register_resource};
pub use cache::{Cache, Dedupe};
pub use checks::{Authorize, Check};
pub use fallback::Fallback;
pub use hedging::Hedging;
pub use intercept::{Intercept, InterceptAll, Interceptor, InterceptorOf};
pub use logging::Logging;
pub(crate) use logging::log;
pub use rate_limit::RateLimit;
pub(crate) use retries::Counted;
pub use retries::Retries;
pub(crate) use sharing::Who;
pub use timeout::Timeout;
pub use timing::Timing;
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use tower::{Answering, InTurn, InTurnService, Passing, Tower, TowerNext, TowerService};

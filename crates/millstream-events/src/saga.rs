//! Sagas: work of several steps over several services, each of which can be undone.

mod acting;
mod builder;
mod change;
mod definition;
mod driver;
mod error;
mod progress;
mod running;
mod sagas;

use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::Value;

pub use self::builder::SagasBuilder;
pub use self::change::{Ending, SagaChange, Why};
pub use self::definition::{Saga, Step, StepContext, StepError, Wait};
pub use self::error::{BeginError, SagaError};
pub use self::sagas::{Sagas, SagasStatistics};

/// What all streams of sagas begin with. A saga's stream is `saga/NAME/ID`.
pub const SAGA_STREAMS: &str = "saga/";

/// The name of a saga's stream.
fn stream(saga: &str, id: &str) -> String {
    format!("{SAGA_STREAMS}{saga}/{id}")
}

/// The saga and the id of a stream's name.
pub(crate) fn names(stream: &str) -> Option<(&str, &str)> {
    stream.strip_prefix(SAGA_STREAMS)?.split_once('/')
}

/// What a saga is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SagaStatus {
    /// A step is under way, or will be tried again.
    Running,
    /// It waits for an event.
    Waiting,
    /// Steps are being undone.
    Compensating,
    /// All steps are done.
    Completed,
    /// It failed, or was told to, and what was done is undone.
    Compensated,
    /// It did not end in time, and what was done is undone.
    TimedOut,
    /// It was told to stop. Nothing was undone.
    Aborted,
    /// A step cannot be undone: somebody has to look.
    Failed,
}

impl SagaStatus {
    /// Whether nothing more happens.
    pub fn is_ended(self) -> bool {
        !matches!(self, SagaStatus::Running | SagaStatus::Waiting | SagaStatus::Compensating)
    }
}

/// How a saga stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SagaView {
    /// The name of its definition.
    pub saga: String,
    /// Its id.
    pub id: String,
    /// What it is doing.
    pub status: SagaStatus,
    /// The steps that are done, in order.
    pub done: Vec<String>,
    /// Those of them that are undone, in order.
    pub undone: Vec<String>,
    /// The step that is under way, is waited for, or is being undone.
    pub step: Option<String>,
    /// How often that has failed.
    pub failures: u32,
    /// Why it is or was undone, stopped or given up.
    pub reason: Option<String>,
    /// Its state, as JSON.
    pub state: Value,
    /// By which events find it.
    pub correlation_id: String,
    /// When it must be done, if it must.
    pub deadline: Option<SystemTime>,
}

/// Milliseconds since 1970, in which times are stored.
type Millis = u64;

fn millis(time: SystemTime) -> Millis {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn later(now: Millis, time: Duration) -> Millis {
    // At least as late as is asked for.
    let time = time.as_nanos().div_ceil(1_000_000);
    now.saturating_add(u64::try_from(time).unwrap_or(u64::MAX))
}

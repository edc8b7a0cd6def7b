//! skeleton
use crate::core::NewPosition;
use crate::plan::{Plan, Target};
use crate::queue::Queue;
use crate::run::Stored;
use millstream_message::{BrokerError, Outcomes, Publish, PublishOutcome, Refusal};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;

pub(crate) struct Journal {}
pub(crate) struct Submission {
    pub(crate) targets: Vec<Target>,
    pub(crate) stored: Arc<Stored>,
    pub(crate) position: Option<NewPosition>,
    pub(crate) others: BTreeMap<usize, PublishOutcome>,
    pub(crate) reply: oneshot::Sender<Outcomes>,
    pub(crate) time: u64,
}
impl Journal {
    pub(crate) fn read(&self, _positions: &[u64]) -> Result<Vec<Option<Publish>>, BrokerError> {
        Ok(vec![])
    }
    pub(crate) fn count_damaged(&self) {}
    pub(crate) fn kick(&self) {}
    pub(crate) fn append_settled(&self, _queue: &Arc<Queue>, _now: u64) -> bool {
        true
    }
    pub(crate) fn wants(_plan: &Plan, _publishes: &[Publish], _position: bool) -> bool {
        false
    }
    pub(crate) async fn submit(
        &self,
        _p: Vec<Publish>,
        _pos: Option<NewPosition>,
        plan: Plan,
        _reply: oneshot::Sender<Outcomes>,
        _now: u64,
    ) -> Result<(), (Refusal, BTreeMap<usize, PublishOutcome>)> {
        Err((Refusal::Atomic { index: 0 }, plan.others))
    }
}

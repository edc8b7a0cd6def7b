//! How messages reach the broker: at a rate, and again if need be.

use std::sync::Arc;

use millstream_resilience::{Class, RateLimiter, Retry};
use tokio::time::{Instant, sleep};
use tracing::{Instrument, Span};

use super::super::span;
use super::ProduceError;
use crate::{Batch, Broker, BrokerErrorKind, Confirm, Outcomes, Publish, PublishOutcome, Refusal};

/// How messages reach the broker.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) rate: Option<RateLimiter>,
    /// Whether what may be stored is published again, too.
    pub(super) retry: Option<(Retry, bool)>,
}

impl Way {
    /// Waits for the turn of so many messages. Whoever gives up leaves it to the next.
    async fn turn(&self, count: usize) {
        if let Some(rate) = &self.rate {
            rate.acquire(count as u64).await.expect("it was not said how long to wait at most");
        }
    }

    pub(super) async fn submit(&self, publishes: Vec<Publish>) -> Result<Confirm, ProduceError> {
        self.turn(publishes.len()).await;
        let messages = publishes.iter().map(|publish| &publish.message);
        let span = publishes.first().map_or_else(Span::none, |first| span::publish(&first.to, messages));
        let submitted = self.broker.submit(Batch::from(publishes)).instrument(span.clone()).await;
        let confirm = submitted.map_err(ProduceError::Broker)?;
        Ok(if span.is_disabled() { confirm } else { Confirm::pending(confirm.instrument(span)) })
    }

    pub(super) async fn publish(&self, publishes: Vec<Publish>) -> Result<Outcomes, ProduceError> {
        let kept = self.kept(&publishes);
        let began = Instant::now();
        let outcomes = self.submit(publishes).await?.await;
        Ok(self.again(kept, outcomes, began).await)
    }

    /// What may have to be published again.
    pub(super) fn kept(&self, publishes: &[Publish]) -> Vec<Publish> {
        if self.retry.is_some() { publishes.to_vec() } else { Vec::new() }
    }

    /// Publishes again what can be, until all is stored or the policy says no. What it leaves has its last outcome.
    pub(super) async fn again(
        &self,
        publishes: Vec<Publish>,
        outcomes: Outcomes,
        began: Instant,
    ) -> Outcomes {
        let Some((retry, unconfirmed)) = &self.retry else { return outcomes };
        let class = |outcome: &PublishOutcome| class(outcome, *unconfirmed);
        let total = outcomes.len();
        let mut attempts = retry.attempts(Some(began));
        let (mut failed, mut left) = (outcomes.into_others(), Vec::new());
        loop {
            let (again, ended): (Vec<_>, Vec<_>) =
                failed.into_iter().partition(|(_, outcome)| class(outcome).is_retryable());
            left.extend(ended);
            let Some((_, first)) = again.first() else { break };
            let Ok(delay) = attempts.failed(retry, class(first)) else {
                left.extend(again);
                break;
            };
            sleep(delay).await;
            let batch = again.iter().map(|(at, _)| publishes[*at].clone()).collect();
            let Ok(confirm) = self.submit(batch).await else {
                // The broker was closed: what was known is all that is.
                left.extend(again);
                break;
            };
            let others = confirm.await.into_others();
            failed = others.into_iter().map(|(at, outcome)| (again[at].0, outcome)).collect();
        }
        if left.is_empty() {
            retry.succeeded();
        }
        left.sort_unstable_by_key(|(at, _)| *at);
        Outcomes::with_others(total, left)
    }
}

/// Whether to publish again can help.
fn class(outcome: &PublishOutcome, unconfirmed: bool) -> Class {
    match outcome {
        PublishOutcome::Unroutable(_) => Class::Transient,
        PublishOutcome::Refused(Refusal::Full { .. } | Refusal::NoExchange { .. }) => Class::Transient,
        PublishOutcome::Refused(Refusal::Broker(error)) => match error.kind() {
            BrokerErrorKind::Unavailable | BrokerErrorKind::Storage => Class::Transient,
            _ => Class::Permanent,
        },
        PublishOutcome::Unconfirmed(_) if unconfirmed => Class::Transient,
        _ => Class::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Address, BrokerError, Message, Returned};

    #[test]
    fn only_what_is_not_stored_is_published_again_unless_twice_is_fine() {
        let error = |kind| BrokerError::new(kind, "x");
        let publish = Publish { to: Address::queue("q"), message: Message::new("x") };
        let full = Refusal::Full { queue: "q".into(), limit: "max_items 1".into() };
        let again =
            |outcome: &PublishOutcome| [false, true].map(|twice| class(outcome, twice).is_retryable());
        let returned = Returned { publish, reason: "no queue".into() };
        for outcome in [
            PublishOutcome::Unroutable(Box::new(returned)),
            PublishOutcome::Refused(full),
            PublishOutcome::Refused(Refusal::NoExchange { exchange: "e".into() }),
            PublishOutcome::Refused(Refusal::Broker(error(BrokerErrorKind::Unavailable))),
        ] {
            assert_eq!(again(&outcome), [true, true], "{outcome:?}");
        }
        let unconfirmed = PublishOutcome::Unconfirmed(error(BrokerErrorKind::Unavailable));
        assert_eq!(again(&unconfirmed), [false, true]);
        for outcome in [
            PublishOutcome::Confirmed,
            PublishOutcome::Refused(Refusal::TooLarge { len: 2, max: 1 }),
            PublishOutcome::Refused(Refusal::Broker(error(BrokerErrorKind::Invalid))),
        ] {
            assert_eq!(again(&outcome), [false, false], "{outcome:?}");
        }
    }
}

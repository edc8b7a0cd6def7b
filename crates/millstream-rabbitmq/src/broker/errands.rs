//! Deliveries that are brought elsewhere before they are acked: dead letters, and what comes back later.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millstream_message::dead::{self, DeadReason, Death};
use millstream_message::{
    Address, Batch, BrokerError, BrokerErrorKind, Outcomes, Publish, PublishOutcome, Refusal,
};
use tokio::time::sleep;

use super::Inner;
use crate::headers;
use crate::hub::{Errand, Way};
use crate::unsettled::Parked;

/// Brings deliveries elsewhere and then has them acked, as long as the handle is open.
pub(super) async fn run(inner: Arc<Inner>) {
    let hub = inner.hub.clone();
    let user = inner.options.login.user();
    loop {
        let errands: Vec<Errand> = hub.take_errands().into();
        if errands.is_empty() {
            if inner.main.is_closing() {
                return;
            }
            hub.any_errands.notified().await;
            continue;
        }
        let publishes = errands.iter().map(|errand| publish_of(errand, user)).collect::<Vec<_>>();
        let outcomes = match inner.submit(Batch::from(publishes)).await {
            Ok(confirm) => confirm.await,
            Err(error) => Outcomes::all(errands.len(), &PublishOutcome::Unconfirmed(error)),
        };
        let (mut again, mut known) = (Vec::new(), HashMap::new());
        for (at, errand) in errands.into_iter().enumerate() {
            let outcome = if at < outcomes.len() { outcomes.get(at) } else { continue };
            if matches!(outcome, PublishOutcome::Unroutable(_)) && is_away(&inner, &errand, &mut known).await
            {
                again.push(errand);
                continue;
            }
            let end = match outcome {
                PublishOutcome::Confirmed => Parked::Arrived,
                // A dead letter that no queue wants is dropped, as the broker does it. Of what comes back later it is the queue in
                // which it was to wait that is not there: it is declared again.
                PublishOutcome::Unroutable(_) | PublishOutcome::Refused(Refusal::NoExchange { .. })
                    if matches!(errand.way, Way::DeadLetter { .. }) =>
                {
                    Parked::Rejected
                }
                PublishOutcome::Refused(refusal) if is_final(&refusal) => {
                    let queue = errand.consumer.queue();
                    tracing::warn!(%queue, %refusal, "a message cannot be brought elsewhere as it is; the broker deals with it");
                    match errand.way {
                        // To where the queue's dead letters go by themselves, without our words.
                        Way::DeadLetter { .. } => Parked::Rejected,
                        Way::Later(_) => Parked::Back,
                    }
                }
                PublishOutcome::Refused(_)
                | PublishOutcome::Unroutable(_)
                | PublishOutcome::Unconfirmed(_) => {
                    again.push(errand);
                    continue;
                }
            };
            errand.consumer.unpark(errand.tag, end);
        }
        if !again.is_empty() {
            if inner.main.is_closing() {
                return;
            }
            // The dead letters' queue is full, or the broker away: nothing is lost, it holds back the consumer.
            sleep(Duration::from_millis(250)).await;
            hub.send(again);
        }
    }
}

/// Whether a dead letter is for a queue that is there, on a node of the cluster that is not. Each queue is looked at once.
async fn is_away(inner: &Inner, errand: &Errand, known: &mut HashMap<String, bool>) -> bool {
    let Way::DeadLetter { to: (exchange, Some(queue)), .. } = &errand.way else { return false };
    if !exchange.is_empty() {
        return false;
    }
    if let Some(known) = known.get(queue) {
        return *known;
    }
    let unreachable = |error: BrokerError| error.kind() == BrokerErrorKind::Unavailable;
    let away = inner.look_at(queue).await.is_err_and(unreachable);
    known.insert(queue.clone(), away);
    away
}

/// Whether the same message would be refused for ever.
fn is_final(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::TooLarge { .. } => true,
        Refusal::Broker(error) => error.kind() == BrokerErrorKind::Invalid,
        _ => false,
    }
}

fn publish_of(errand: &Errand, user: Option<&str>) -> Publish {
    let Errand { consumer, message, address, redeliveries, way, .. } = errand;
    let message = headers::published_by(user, message.clone());
    match way {
        Way::Later(delay) => {
            let message = headers::given_back(message, address, *redeliveries).with_delay(*delay);
            Publish { to: Address::queue(consumer.queue()), message }
        }
        Way::DeadLetter { to: (exchange, key), reason, stage } => {
            #[expect(clippy::disallowed_methods, reason = "a death's time is told to people")]
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let death = Death {
                reason: DeadReason::Rejected,
                detail: Some(reason),
                stage: stage.as_deref(),
                queue: consumer.queue(),
                address,
                time: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            };
            let key = key.clone().unwrap_or_else(|| address.key().to_owned());
            Publish { to: Address::new(exchange.clone(), key), message: dead::letter(message, &death) }
        }
    }
}

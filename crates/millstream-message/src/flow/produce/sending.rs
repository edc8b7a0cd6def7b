//! Values one after the other, with some on their way.

use std::collections::VecDeque;
use std::fmt;

use tokio::time::Instant;

use super::{ProduceError, Producer};
use crate::{BoxFuture, Codec, Confirm, Outcomes, Publish, PublishOutcome};

/// Outcomes of messages that were not confirmed, of which no more are kept before somebody takes them.
const OTHERS_MAX: usize = 1000;

/// Values on their way: see [`Producer::sending`].
#[must_use = "what became of them is known only at the end"]
pub struct Sending<'a, T, C> {
    producer: &'a Producer<T, C>,
    in_flight: usize,
    sent: usize,
    waiting: VecDeque<Waiting>,
    again: Option<Again>,
    others: Vec<(usize, PublishOutcome)>,
}

impl<'a, T, C> Sending<'a, T, C> {
    pub(super) fn new(producer: &'a Producer<T, C>, in_flight: usize) -> Self {
        Sending { producer, in_flight, sent: 0, waiting: VecDeque::new(), again: None, others: Vec::new() }
    }
}

/// One of whom it is not known what becomes of it.
struct Waiting {
    confirm: Confirm,
    /// It, if it may have to be published again.
    kept: Vec<Publish>,
    began: Instant,
}

/// Those that were on their way when the first of them turned out not to be stored: what is not is published again together.
struct Again {
    /// Which of all that were sent the first is.
    from: usize,
    publishes: Vec<Publish>,
    others: Vec<(usize, PublishOutcome)>,
    began: Instant,
    under_way: Option<BoxFuture<'static, Outcomes>>,
}

impl<T, C: Codec<T>> Sending<'_, T, C> {
    /// Sends a value. Waits while there are as many on their way as may be, and while some of them are
    /// [published again](Producer::retry).
    ///
    /// # Errors
    /// As [`Producer::publish`], and [`Untaken`](ProduceError::Untaken) when the outcomes of a thousand messages that were not
    /// confirmed are kept; those that were sent before are on their way all the same.
    ///
    /// # Cancel safety
    /// The value was sent or not; nothing else is lost.
    pub async fn send(&mut self, value: &T) -> Result<(), ProduceError> {
        let message = self.producer.numbered(self.sent, value)?;
        while self.waiting.len() >= self.in_flight || self.again.is_some() {
            self.settle_first().await;
        }
        if self.others.len() >= OTHERS_MAX {
            return Err(ProduceError::Untaken { kept: self.others.len() });
        }
        let publish = vec![self.producer.addressed(message)];
        let (kept, began) = (self.producer.way.kept(&publish), Instant::now());
        let confirm = self.producer.way.submit(publish).await?;
        self.waiting.push_back(Waiting { confirm, kept, began });
        self.sent += 1;
        Ok(())
    }

    /// Waits for the outcome of the first, or of all if some are to be published again.
    async fn settle_first(&mut self) {
        if self.again.is_none() {
            let index = self.sent - self.waiting.len();
            let Some((outcomes, first)) = self.first().await else { return };
            if first.kept.is_empty() || outcomes.all_confirmed() {
                self.others.extend(outcomes.into_others().into_iter().map(|(_, outcome)| (index, outcome)));
                return;
            }
            let Waiting { kept, began, .. } = first;
            let others = outcomes.into_others();
            self.again = Some(Again { from: index, publishes: kept, others, began, under_way: None });
        }
        while let Some((outcomes, next)) = self.first().await {
            let Some(again) = &mut self.again else { return };
            let at = again.publishes.len();
            again.others.extend(outcomes.into_others().into_iter().map(|(_, outcome)| (at, outcome)));
            again.publishes.extend(next.kept);
        }
        let Some(again) = &mut self.again else { return };
        let under_way = again.under_way.get_or_insert_with(|| {
            let (way, began) = (self.producer.way.clone(), again.began);
            let publishes = std::mem::take(&mut again.publishes);
            let outcomes = Outcomes::with_others(publishes.len(), std::mem::take(&mut again.others));
            Box::pin(async move { way.again(publishes, outcomes, began).await })
        });
        let outcomes = under_way.await;
        let from = again.from;
        self.again = None;
        self.others.extend(outcomes.into_others().into_iter().map(|(at, outcome)| (from + at, outcome)));
    }

    /// Waits for the outcome of the first, and takes it out.
    async fn first(&mut self) -> Option<(Outcomes, Waiting)> {
        let outcomes = (&mut self.waiting.front_mut()?.confirm).await;
        Some((outcomes, self.waiting.pop_front()?))
    }

    /// What became of those that were not confirmed, of which it is known by now, by their place among all that were sent.
    /// It is forgotten here.
    pub fn take_others(&mut self) -> Vec<(usize, PublishOutcome)> {
        std::mem::take(&mut self.others)
    }

    /// Waits until it is known what became of all of them. Those that were [taken](Sending::take_others) count as confirmed.
    pub async fn finish(mut self) -> Outcomes {
        while !self.waiting.is_empty() || self.again.is_some() {
            self.settle_first().await;
        }
        Outcomes::with_others(self.sent, self.others)
    }
}

impl<T, C> fmt::Debug for Sending<'_, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").field("sent", &self.sent).field("waiting", &self.waiting.len()).finish()
    }
}

//! Items of a queue, acknowledged when they are settled.

use super::{Intake, too_many};
use crate::item::Raw;
use crate::trouble::Trouble;
use futures_core::Stream;
use millstream_flow::{Account, BoxError, Outcome, Settler, Tracked, Tracker};
use millstream_message::{Acker, Consumer, Delivery, Nack, StopWhen, Tag};
use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::task::JoinSet;

/// Deliveries taken from the consumer at once.
const CHUNK: usize = 256;

struct Queued {
    consumer: Consumer,
    ready: VecDeque<Delivery>,
    scratch: Vec<Delivery>,
    tracker: Tracker,
    account: Arc<Account>,
    trouble: Arc<Trouble>,
    /// What still puts items into the queue; dropping it stops it.
    ingest: JoinSet<Result<(), BoxError>>,
    ended: bool,
}

/// Items of `consumer`. When `ingest` has ended, and had been there, the queue is read until it is empty.
///
/// With `dead_letters`, an item that died is given to the queue's dead-letter exchange with its reason;
/// otherwise it is acknowledged.
pub(crate) fn queued(
    consumer: Consumer,
    ingest: JoinSet<Result<(), BoxError>>,
    dead_letters: bool,
    trouble: Arc<Trouble>,
) -> Intake {
    let tracker = Tracker::new(Acknowledge { acker: consumer.acker(), dead_letters });
    let account = tracker.account();
    let stream = Queued {
        consumer,
        ready: VecDeque::new(),
        scratch: Vec::new(),
        tracker,
        account: account.clone(),
        trouble,
        ingest,
        ended: false,
    };
    Intake { stream: Box::pin(stream), account }
}

impl Queued {
    fn end(&mut self, error: BoxError) -> Poll<Option<Result<Tracked<Raw>, BoxError>>> {
        self.ended = true;
        Poll::Ready(Some(Err(error)))
    }
}

impl Stream for Queued {
    type Item = Result<Tracked<Raw>, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(delivery) = self.ready.pop_front() {
                let token = self.tracker.issue();
                debug_assert_eq!(delivery.tag, tag(token.item()), "a consumer's tags have no gaps");
                return Poll::Ready(Some(Ok(Tracked { value: Raw::Message(delivery.message), token })));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            if let Some(error) = too_many(&self.trouble, &self.account) {
                return self.end(error);
            }
            while let Poll::Ready(Some(ended)) = self.ingest.poll_join_next(cx) {
                match ended {
                    Ok(Ok(())) => self.consumer.acker().stop(StopWhen::Empty),
                    Ok(Err(error)) => return self.end(error),
                    Err(panicked) => return self.end(panicked.into()),
                }
            }
            let this = &mut *self;
            match this.consumer.poll_chunk(cx, CHUNK, &mut this.scratch) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return self.end(error.into()),
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) => this.ready.extend(this.scratch.drain(..)),
            }
        }
    }
}

/// The tag of the tracker's item: both count a consumer's deliveries, one from 0 and the other from 1.
fn tag(item: u64) -> Tag {
    item + 1
}

struct Acknowledge {
    acker: Acker,
    dead_letters: bool,
}

impl Settler for Acknowledge {
    fn settle(&self, items: Range<u64>, outcome: &Outcome) {
        let tags = tag(items.start)..tag(items.end);
        let settled = match outcome {
            Outcome::Dead(failure) if self.dead_letters => {
                let how = Nack::DeadLetter {
                    reason: failure.reason.clone(),
                    stage: Some(failure.stage.to_string()),
                };
                self.acker.nack_ranges(&[tags], &how)
            }
            // An abandoned item stays unsettled: it returns to its place when the consumer goes.
            Outcome::Abandoned => return,
            _ => self.acker.ack_range(tags),
        };
        // A stale one was given to somebody else meanwhile, who settles it.
        let _ = settled;
    }
}

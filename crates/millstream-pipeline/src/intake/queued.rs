//! Items of a queue, acknowledged when they are settled.

use super::{Intake, Items, too_many};
use crate::item::Raw;
use crate::trouble::Trouble;
use futures_core::Stream;
use millstream_flow::{Account, BoxError, Tracked};
use millstream_message::flow::Messages;
use millstream_message::{Consumer, StopWhen};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::task::JoinSet;

struct Queued {
    messages: Messages,
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
    let messages = match dead_letters {
        true => Messages::new(consumer),
        false => Messages::without_dead_letters(consumer),
    };
    let (account, prefetch) = (messages.account(), messages.prefetch());
    let stream = Queued { messages, account: account.clone(), trouble, ingest, ended: false };
    Intake { stream: Items::Single(Box::pin(stream)), account, prefetch }
}

impl Queued {
    /// What is looked at before the queue is: whether so much failed that the run must end, and whether items still
    /// come.
    fn look(&mut self, cx: &mut Context<'_>) -> Result<(), BoxError> {
        if let Some(error) = too_many(&self.trouble, &self.account) {
            return Err(error);
        }
        while let Poll::Ready(Some(ended)) = self.ingest.poll_join_next(cx) {
            ended??;
            self.messages.acker().stop(StopWhen::Empty);
        }
        Ok(())
    }
}

impl Stream for Queued {
    type Item = Result<Tracked<Raw>, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.messages.waiting() == 0
            && let Err(error) = self.look(cx)
        {
            self.ended = true;
            return Poll::Ready(Some(Err(error)));
        }
        let next = ready!(Pin::new(&mut self.messages).poll_next(cx));
        self.ended = !matches!(next, Some(Ok(_)));
        let raw = |tracked: Tracked<_>| Tracked { value: Raw::Message(tracked.value), token: tracked.token };
        Poll::Ready(next.map(|next| next.map(raw)))
    }
}

//! A feed straight into the flow, with nothing durable between.

use super::{Intake, Items, Remembered, TrackedItems, too_many};
use crate::feed::{Chunk, Feed, NotSafe, Reply};
use crate::item::Raw;
use crate::trouble::Trouble;
use futures_core::Stream;
use millstream_flow::flows::Stopping;
use millstream_flow::{Account, BoxError, Outcome, Settler, Tracked, Tracker};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

type Next = Pin<Box<dyn Future<Output = (Box<dyn Feed>, Result<Option<Chunk>, BoxError>)> + Send>>;

struct Direct {
    next: Next,
    ready: VecDeque<Raw>,
    tracker: Tracker,
    account: Arc<Account>,
    replies: Arc<Replies>,
    trouble: Arc<Trouble>,
    remembered: Option<Arc<Remembered>>,
    /// Saves the position; dropping it stops that.
    keeping: JoinSet<Result<(), BoxError>>,
    stopping: Stopping,
    /// Until when the rest of a chunk is handed out though the run is to stop.
    rest_until: Option<Instant>,
    ended: bool,
}

/// How long the rest of a chunk is handed out when the run is to stop: a slow one shall end in time, and repeats it.
const REST_MAX: Duration = Duration::from_secs(3);

/// Items of `feed`, in its order. With `remembered`, how far they are settled is saved there.
pub(crate) fn direct(
    feed: Box<dyn Feed>,
    remembered: Option<Arc<Remembered>>,
    trouble: Arc<Trouble>,
) -> Intake {
    let replies = Arc::new(Replies::default());
    let tracker = Tracker::new(Told { replies: replies.clone(), remembered: remembered.clone() });
    let mut keeping = JoinSet::new();
    if let Some(remembered) = &remembered {
        keeping.spawn(remembered.clone().keep());
    }
    let account = tracker.account();
    let counted = account.clone();
    let make = move |stopping| -> TrackedItems {
        Box::pin(Direct {
            next: next(feed),
            ready: VecDeque::new(),
            tracker,
            account: counted,
            replies,
            trouble,
            remembered,
            keeping,
            stopping,
            rest_until: None,
            ended: false,
        })
    };
    Intake { stream: Items::Chunks(Box::new(make)), account, prefetch: None }
}

fn next(mut feed: Box<dyn Feed>) -> Next {
    Box::pin(async move {
        let chunk = feed.next().await;
        (feed, chunk)
    })
}

impl Stream for Direct {
    type Item = Result<Tracked<Raw>, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stopping = self.stopping.is_stopping();
        loop {
            if stopping {
                // The items of a chunk have one position: the next run would repeat those that were handed out.
                let until = *self.rest_until.get_or_insert_with(|| Instant::now() + REST_MAX);
                if self.remembered.is_none() || self.ready.is_empty() || Instant::now() >= until {
                    return Poll::Ready(None);
                }
            }
            if let Some(value) = self.ready.pop_front() {
                let token = self.tracker.issue();
                return Poll::Ready(Some(Ok(Tracked { value, token })));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            if let Some(error) = too_many(&self.trouble, &self.account) {
                self.ended = true;
                return Poll::Ready(Some(Err(error)));
            }
            if let Poll::Ready(Some(ended)) = self.keeping.poll_join_next(cx) {
                // It ends only by an error or a panic.
                self.ended = true;
                let error = ended.map_or_else(|panicked| Some(panicked.into()), Result::err);
                return Poll::Ready(error.map(Err));
            }
            let Poll::Ready((feed, chunk)) = self.next.as_mut().poll(cx) else {
                return self.stopping.poll_stopping(cx).map(|()| None);
            };
            match chunk {
                Ok(Some(chunk)) => {
                    let first = self.tracker.issued();
                    if let (Some(remembered), Some(position)) = (&self.remembered, chunk.position) {
                        remembered.mark(first + chunk.items.len() as u64, position);
                    }
                    if let Some(reply) = chunk.reply {
                        self.replies.expect(first..first + chunk.items.len() as u64, reply);
                    }
                    self.ready.extend(chunk.items);
                    self.next = next(feed);
                }
                Ok(None) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

/// Those who wait for items to be settled, by the number of the chunk's first item.
#[derive(Default)]
struct Replies(Mutex<BTreeMap<u64, Waiting>>);

struct Waiting {
    left: u64,
    failed: bool,
    reply: Reply,
}

impl Replies {
    fn expect(&self, items: Range<u64>, reply: Reply) {
        let waiting = Waiting { left: items.end - items.start, failed: false, reply };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(items.start, waiting);
    }
}

struct Told {
    replies: Arc<Replies>,
    remembered: Option<Arc<Remembered>>,
}

impl Settler for Told {
    fn settle(&self, items: Range<u64>, outcome: &Outcome) {
        if let Some(remembered) = &self.remembered
            && !matches!(outcome, Outcome::Abandoned)
        {
            remembered.settle(items.clone());
        }
        let mut replies = self.replies.0.lock().unwrap_or_else(PoisonError::into_inner);
        if replies.is_empty() {
            return;
        }
        let mut item = items.start;
        while item < items.end {
            // Every item of a chunk with a reply lies between its first number and the next chunk's.
            let Some((&first, _)) = replies.range(..=item).next_back() else { return };
            let next = replies.range(first + 1..).next().map_or(u64::MAX, |(next, _)| *next);
            let waiting = replies.get_mut(&first).expect("found just above");
            let count = items.end.min(next) - item;
            waiting.left = waiting.left.saturating_sub(count);
            waiting.failed |= matches!(outcome, Outcome::Abandoned);
            if waiting.left == 0
                && let Some(waiting) = replies.remove(&first)
            {
                let told = if waiting.failed {
                    Err(NotSafe::Ended("the run ended before the items were safe".to_owned()))
                } else {
                    Ok(())
                };
                waiting.reply.send(told);
            }
            item += count;
        }
    }
}

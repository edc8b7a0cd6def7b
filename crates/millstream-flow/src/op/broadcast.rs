//! One flow to several tasks: every item to all of them, or each to the lane of its key.

use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::drive::{Driver, Turn};
use crate::flow::Flow;
use crate::knob::Knob;
use crate::op::Tally;
use crate::op::buffer::chunk_items;
use crate::ring::{ReaderGone, Writer};
use crate::stats::HopStats;
use crate::token::Settle;

/// One lane of a fan-out: the writing end of its hop.
pub(crate) struct Lane<T, K> {
    /// `None` once its reader is gone.
    pub(crate) writer: Option<Writer<(T, K)>>,
    pub(crate) capacity: Knob,
    pub(crate) stats: Arc<HopStats>,
}

/// Decides where an item goes. Called only while every lane that is still read has room.
pub(crate) trait Route<T, K>: Send + 'static {
    /// Pushes `item`; adds to `sent` how many lanes got it. Adds before it calls what may panic: the driver counts
    /// a death for that.
    fn route(&mut self, item: T, token: K, lanes: &mut [Lane<T, K>], sent: &mut u64);
}

/// Every item to every lane.
pub(crate) struct ToAll;

impl<T: Clone, K: Settle> Route<T, K> for ToAll {
    #[inline]
    fn route(&mut self, item: T, token: K, lanes: &mut [Lane<T, K>], sent: &mut u64) {
        let mut writers = lanes.iter_mut().filter_map(|lane| lane.writer.as_mut()).peekable();
        while let Some(writer) = writers.next() {
            *sent += 1;
            if writers.peek().is_none() {
                writer.push((item, token));
                break;
            }
            writer.push((item.clone(), token.share()));
        }
    }
}

/// Each item to the lane that the function names.
pub(crate) struct ToLane<N>(pub(crate) N);

impl<T, K: Settle, N: FnMut(&T) -> usize + Send + 'static> Route<T, K> for ToLane<N> {
    #[inline]
    fn route(&mut self, item: T, token: K, lanes: &mut [Lane<T, K>], sent: &mut u64) {
        *sent += 1;
        let lane = (self.0)(&item) % lanes.len();
        // If nobody reads that lane any more, dropping the token gives the item back; the ledger keeps it as one
        // that nobody ended.
        if let Some(writer) = &mut lanes[lane].writer {
            writer.push((item, token));
        }
    }
}

/// The task on the filling side of a fan-out.
pub(crate) struct FanOut<F: Flow, R> {
    pub(crate) flow: F,
    pub(crate) route: R,
    pub(crate) lanes: Vec<Lane<F::Item, F::Token>>,
    pub(crate) driver: Driver,
}

impl<F: Flow, R> Unpin for FanOut<F, R> {}

impl<F: Flow, R> FanOut<F, R> {
    /// How many items every lane can take: the slowest sets the pace. `None` if no lane is read any more.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        let mut room = usize::MAX;
        let mut read = false;
        for lane in &mut self.lanes {
            let Some(writer) = &mut lane.writer else { continue };
            match writer.poll_room(cx, lane.capacity.value(), usize::MAX) {
                Poll::Ready(Ok(free)) => {
                    room = room.min(free);
                    read = true;
                }
                Poll::Ready(Err(ReaderGone)) => lane.writer = None,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(read.then_some(room))
    }
}

impl<F: Flow, R: Route<F::Item, F::Token>> Future for FanOut<F, R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.driver.begin();
        loop {
            let room = match self.poll_room(cx) {
                Poll::Ready(Some(room)) => room,
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => {
                    self.driver.blocked();
                    return Poll::Pending;
                }
            };
            let FanOut { flow, route, lanes, driver } = &mut *self;
            let scope = driver.scope.clone();
            let mut split = Tally::new::<F::Token>(&scope.counts.split);
            let mut merged = Tally::new::<F::Token>(&scope.counts.merged);
            let turn =
                driver.turn(flow, cx, room.min(chunk_items::<(F::Item, F::Token)>()), |item, token| {
                    merged.count += 1;
                    route.route(item, token, lanes, &mut split.count);
                    ControlFlow::Continue(())
                });
            drop((split, merged));
            for lane in lanes {
                if let Some(writer) = &mut lane.writer {
                    let chunk = writer.publish(0);
                    if chunk > 0 {
                        lane.stats.published(chunk, writer.len(), 0);
                    }
                }
            }
            match turn {
                Turn::Again => {}
                Turn::Wait => return Poll::Pending,
                Turn::End | Turn::Failed => return Poll::Ready(()),
            }
        }
    }
}

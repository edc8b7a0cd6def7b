//! A buffer that goes on elsewhere when memory is full: a disk, a broker.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::drive::{Driver, Turn};
use crate::failure::BoxError;
use crate::flow::Flow;
use crate::knob::Knob;
use crate::op::buffer::chunk_items;
use crate::ring::{ReaderGone, Writer};
use crate::scope::RunErrorKind;
use crate::sink::TimeLimited;
use crate::stats::HopStats;

/// Where a buffer's items go that memory has no room for: [`Pipe::buffer_spilling`](crate::Pipe::buffer_spilling).
///
/// It need not outlive the process: tokens stay in memory, so that what a crash takes is delivered again by its source. One flow
/// uses it, and takes back everything it put there, in order.
pub trait Spill<T>: Send + 'static {
    /// Stores items behind those that are there.
    ///
    /// # Errors
    /// End the run; its items are given back to their source.
    fn push(&mut self, items: Vec<T>) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Takes back the oldest items: at least one, and at most `max`. Called only when there is one.
    ///
    /// # Errors
    /// End the run; its items are given back to their source.
    fn pop(&mut self, max: usize) -> impl Future<Output = Result<Vec<T>, BoxError>> + Send;

    /// This spill with a limit for how long each `push` and each `pop` may take. One that takes longer is dropped where it waits
    /// and ends the run with [`TimedOut`](crate::TimedOut). Without a limit one that never returns holds the flow for ever.
    ///
    /// # Panics
    /// If `limit` is zero.
    fn time_limit(self, limit: Duration) -> TimeLimited<Self>
    where
        Self: Sized,
    {
        TimeLimited::new(self, limit)
    }
}

/// What the spiller does next.
enum Next {
    /// Put what was taken from upstream into the spill.
    Store,
    /// Take so many items back.
    Load(usize),
    End,
}

/// The task on the filling side.
pub(crate) struct Spiller<F: Flow> {
    pub(crate) flow: F,
    pub(crate) writer: Writer<(F::Item, F::Token)>,
    pub(crate) capacity: Knob,
    /// How many items may be in the spill.
    pub(crate) spilled_max: usize,
    pub(crate) stats: Arc<HopStats>,
    pub(crate) driver: Driver,
    /// Taken from upstream and neither in memory nor in the spill yet.
    pub(crate) chunk: VecDeque<(F::Item, F::Token)>,
    /// The tokens of what is in the spill.
    pub(crate) tokens: VecDeque<F::Token>,
    pub(crate) ended: bool,
}

impl<F: Flow> Spiller<F> {
    /// Moves items from upstream into memory, as long as that is all there is to do.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let Spiller { flow, writer, capacity, spilled_max, stats, driver, chunk, tokens, ended } = self;
        driver.begin();
        let most = chunk_items::<(F::Item, F::Token)>();
        let mut waits = false;
        loop {
            let room = match writer.poll_room(cx, capacity.value(), usize::MAX) {
                Poll::Ready(Ok(room)) => room,
                Poll::Ready(Err(ReaderGone)) => return Poll::Ready(Next::End),
                Poll::Pending => 0,
            };
            if !tokens.is_empty() && room > 0 {
                return Poll::Ready(Next::Load(room.min(most)));
            }
            let free = if tokens.is_empty() { room.min(chunk.len()) } else { 0 };
            if free > 0 {
                chunk.drain(..free).for_each(|item| writer.push(item));
                writer.publish(0);
                stats.published(writer);
                continue;
            }
            if !*ended && !waits && chunk.len() < most {
                let turn = driver.turn(flow, cx, most - chunk.len(), |item, token| {
                    chunk.push_back((item, token));
                    ControlFlow::Continue(())
                });
                match turn {
                    Turn::Again => {}
                    Turn::Wait => waits = true,
                    Turn::End => *ended = true,
                    Turn::Failed => return Poll::Ready(Next::End),
                }
                continue;
            }
            // Memory has no room for what is in hand, or something older is in the spill.
            if *ended && chunk.is_empty() && tokens.is_empty() {
                return Poll::Ready(Next::End);
            }
            if chunk.len().min(spilled_max.saturating_sub(tokens.len())) > 0 {
                return Poll::Ready(Next::Store);
            }
            if room == 0 {
                driver.blocked();
            }
            return Poll::Pending;
        }
    }

    /// Runs the buffer until upstream has ended and everything was handed on.
    pub(crate) async fn run<S: Spill<F::Item>>(mut self, mut spill: S) {
        loop {
            let done = match poll_fn(|cx| self.poll_next(cx)).await {
                Next::End => return,
                Next::Store => {
                    let count = self.chunk.len().min(self.spilled_max - self.tokens.len());
                    let (items, tokens): (Vec<_>, Vec<_>) = self.chunk.drain(..count).unzip();
                    let stored = spill.push(items).await;
                    self.tokens.extend(tokens);
                    stored
                }
                Next::Load(room) => self.load(&mut spill, room.min(self.tokens.len())).await,
            };
            if let Err(error) = done {
                self.driver.scope.fail(RunErrorKind::Stage(error));
                return;
            }
        }
    }

    async fn load<S: Spill<F::Item>>(&mut self, spill: &mut S, room: usize) -> Result<(), BoxError> {
        let items = spill.pop(room).await?;
        let count = items.len();
        if count == 0 || count > room {
            return Err(
                format!("the spill gave {count} items back when it was asked for up to {room}").into()
            );
        }
        for (item, token) in items.into_iter().zip(self.tokens.drain(..count)) {
            self.writer.push((item, token));
        }
        self.writer.publish(0);
        self.stats.published(&self.writer);
        Ok(())
    }
}

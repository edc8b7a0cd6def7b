//! The hop: a bounded hand-over to another task, in chunks.

use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::drive::{Driver, Taken, Turn};
use crate::flow::{Flow, Step};
use crate::knob::Knob;
use crate::measure::Measure;
use crate::ring::{Reader, Writer};
use crate::spawn::Tasks;
use crate::stats::HopStats;
use crate::token::Settle;

/// The most items of one chunk; fat items publish earlier, at about 64 KiB.
const CHUNK_ITEMS: usize = 256;
const CHUNK_BYTES: usize = 64 << 10;

/// How many items of a size make a chunk.
#[inline(always)]
pub(crate) fn chunk_items<T>() -> usize {
    (CHUNK_BYTES / size_of::<T>().max(1)).clamp(1, CHUNK_ITEMS)
}

/// The most items of a quantum of a stage before a hop. One that counts bytes makes a chunk a quantum.
const QUANTUM_MAX: usize = 1024;

pub(crate) fn quantum_max<T, W: Measure<T>>(chunk: usize) -> usize {
    if W::MEASURES { chunk } else { QUANTUM_MAX }
}

/// The task on the filling side of a hop.
pub(crate) struct Pump<F: Flow, W> {
    pub(crate) flow: F,
    pub(crate) measure: W,
    pub(crate) writer: Writer<(F::Item, F::Token)>,
    pub(crate) capacity: Knob,
    pub(crate) bytes_max: usize,
    pub(crate) stats: Arc<HopStats>,
    pub(crate) driver: Driver,
}

// Nothing is pinned in place: operators that need pinning box what they pin.
impl<F: Flow, W> Unpin for Pump<F, W> {}

impl<F: Flow, W: Measure<F::Item>> Future for Pump<F, W> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Pump { flow, measure, writer, capacity, bytes_max, stats, driver } = &mut *self;
        driver.begin();
        loop {
            let room = match writer.poll_room(cx, capacity.value(), *bytes_max) {
                Poll::Ready(Ok(room)) => room,
                // Nobody reads any more. What was not read is given back by its tokens.
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {
                    driver.blocked();
                    return Poll::Pending;
                }
            };
            let mut bytes = 0;
            let bytes_room = bytes_max.saturating_sub(if W::MEASURES { writer.bytes() } else { 0 });
            let chunk = chunk_items::<(F::Item, F::Token)>();
            let (gathered, measure) = (&mut bytes, &*measure);
            let mut slots = writer.room(if W::MEASURES { usize::MAX } else { chunk });
            let turn = driver.turn_in_stretches(flow, cx, room, |flow, cx, max, taken| {
                let items = slots.in_a_row().min(max);
                let mut stretch = slots.stretch(items);
                let mut taken = Taken::new(taken);
                let step = flow.poll_drive(cx, items, &mut |item, token| {
                    if W::MEASURES {
                        *gathered += measure.measure(&item);
                    }
                    stretch.push((item, token));
                    taken.items += 1;
                    if W::MEASURES && *gathered >= bytes_room {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                });
                (step, items)
            });
            // Published at the end of each quantum and before any wait: an item never lingers.
            if writer.publish(bytes) > 0 {
                stats.published(writer);
            }
            match turn {
                Turn::Again => {}
                Turn::Wait => return Poll::Pending,
                Turn::End | Turn::Failed => return Poll::Ready(()),
            }
        }
    }
}

/// The reading side of a hop. See [`Pipe::buffer`](crate::Pipe::buffer).
pub struct Hop<T, K, W> {
    pub(crate) reader: Reader<(T, K)>,
    pub(crate) measure: W,
    pub(crate) tasks: Tasks,
}

impl<T, K: Settle, W: Measure<T>> Flow for Hop<T, K, W> {
    type Item = T;
    type Token = K;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(T, K) -> ControlFlow<()>,
    {
        self.tasks.start();
        let mut room = max;
        while room > 0 {
            let Some(available) = ready!(self.reader.poll_available(cx)) else {
                return Poll::Ready(Step::End);
            };
            let mut stock = self.reader.stock(available.min(room));
            room -= stock.len();
            let mut taking = stock.take();
            let mut flow = ControlFlow::Continue(());
            while let Some((item, token)) = taking.next() {
                if W::MEASURES {
                    taking.add_bytes(self.measure.measure(&item));
                }
                flow = sink(item, token);
                if flow.is_break() {
                    break;
                }
            }
            drop(taking);
            if flow.is_break() {
                break;
            }
        }
        Poll::Ready(Step::More)
    }
}

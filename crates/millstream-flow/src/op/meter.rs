//! How many items pass, told as they do.

use std::ops::ControlFlow;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::drive::without_item;
use crate::flow::{Flow, Step};
use crate::timer::{Timer, bounded};

/// What passed in one interval.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Metered {
    /// Items that passed in it.
    pub items: u64,
    /// How long it was: the last one is shorter.
    pub time: Duration,
    /// Items that have passed since the first.
    pub total: u64,
}

impl Metered {
    /// Items a second in the interval; 0 if it took no time.
    pub fn rate(&self) -> f64 {
        if self.time.is_zero() { 0.0 } else { self.items as f64 / self.time.as_secs_f64() }
    }
}

/// See [`Pipe::meter`](crate::Pipe::meter).
pub struct Meter<F, N> {
    upstream: F,
    interval: Duration,
    tell: N,
    /// When the interval began. Only once an item has come.
    began: Option<Instant>,
    items: u64,
    total: u64,
    timer: Timer,
    ended: bool,
}

impl<F, N: FnMut(Metered)> Meter<F, N> {
    pub(crate) fn new(upstream: F, interval: Duration, tell: N) -> Self {
        let timer = Timer::default();
        Meter {
            upstream,
            interval: bounded(interval),
            tell,
            began: None,
            items: 0,
            total: 0,
            timer,
            ended: false,
        }
    }

    /// Tells what there is to tell of the time up to `now`.
    fn tell_due(&mut self, now: Instant) {
        while let Some(began) = self.began.filter(|began| *began + self.interval <= now) {
            self.began = Some(began + self.interval);
            self.tell_of(self.interval);
        }
    }

    fn tell_of(&mut self, time: Duration) {
        let items = std::mem::take(&mut self.items);
        let metered = Metered { items, time, total: self.total };
        without_item(|| (self.tell)(metered));
    }
}

impl<F: Flow, N: FnMut(Metered)> Flow for Meter<F, N> {
    type Item = F::Item;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        if self.ended {
            return Poll::Ready(Step::End);
        }
        let now = Instant::now();
        self.tell_due(now);
        let (items, total) = (&mut self.items, &mut self.total);
        let step = self.upstream.poll_drive(cx, max, &mut |item, token| {
            *items += 1;
            *total += 1;
            sink(item, token)
        });
        if self.items > 0 {
            self.began.get_or_insert(now);
        }
        match step {
            Poll::Ready(Step::End) => {
                self.ended = true;
                if let Some(began) = self.began {
                    self.tell_of(now - began);
                }
            }
            Poll::Pending => {
                while let Some(began) = self.began {
                    if self.timer.poll_until(cx, began + self.interval).is_pending() {
                        break;
                    }
                    self.tell_due(Instant::now());
                }
            }
            Poll::Ready(Step::More) => {}
        }
        step
    }
}

//! How a flow ends: in a function, a value, a vector, a sink, or as a stream.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use futures_core::Stream;

use super::{Pipe, QUANTUM_MAX};
use crate::drive::Driver;
use crate::finish::{Alarm, Drain, run_sink};
use crate::flow::{Flow, Step};
use crate::run::Plan;
use crate::sink::Sink;
use crate::stats::{OpStats, StageStats};

impl<F: Flow> Pipe<F> {
    fn driver(self, kind: &'static str) -> (F, Driver) {
        let Pipe { flow, scope, mut ops, .. } = self;
        let scope = scope.root();
        ops.push(OpStats::new(kind));
        let stats = Arc::new(StageStats::new(ops));
        scope.add_stage(stats.clone());
        (flow, Driver::new(scope, stats, QUANTUM_MAX))
    }

    /// Ends the flow in a function. An item is confirmed when the function returns.
    pub fn for_each(self, mut each: impl FnMut(F::Item) + Send + 'static) -> Plan<()>
    where
        F: Send + 'static,
    {
        self.end("for_each", (), move |(), item| each(item))
    }

    /// Ends the flow in one value.
    pub fn fold<A: Send + 'static>(
        self,
        initial: A,
        each: impl FnMut(&mut A, F::Item) + Send + 'static,
    ) -> Plan<A>
    where
        F: Send + 'static,
    {
        self.end("fold", initial, each)
    }

    /// Ends the flow in a vector of its items, which is bounded by nothing but their number.
    pub fn collect(self) -> Plan<Vec<F::Item>>
    where
        F: Send + 'static,
        F::Item: Send,
    {
        self.end("collect", Vec::new(), |items: &mut Vec<_>, item| items.push(item))
    }

    fn end<A: Send + 'static>(
        self,
        kind: &'static str,
        state: A,
        each: impl FnMut(&mut A, F::Item) + Send + 'static,
    ) -> Plan<A>
    where
        F: Send + 'static,
    {
        let (flow, driver) = self.driver(kind);
        let (scope, stage) = (driver.scope.clone(), driver.stats.clone());
        let alarm = Alarm::new(&scope);
        Plan::new(scope, stage, Drain { flow, state: Some(state), each, alarm, driver })
    }

    /// Ends the flow in a sink, which confirms items to their source as it writes them. The run gives the sink
    /// back.
    pub fn into_sink<S: Sink<Item = F::Item>>(self, sink: S) -> Plan<S>
    where
        F: Send + 'static,
        F::Item: Send,
    {
        let chunk = sink.chunk().max(1);
        let (flow, driver) = self.driver("sink");
        let (scope, stage) = (driver.scope.clone(), driver.stats.clone());
        scope.add_memory("sink".into(), chunk.saturating_mul(size_of::<(F::Item, F::Token)>()));
        Plan::new(scope, stage, run_sink(flow, sink, driver))
    }
}

/// How many items a stream's flow may drop in one poll before it lets others run.
const STREAM_MAX: usize = 8192;

/// A flow *is* a stream: exact, without read-ahead. Polling it for one item takes one item from the source.
///
/// If the run can fail (a tracked source's error, [`fail_fast`](Pipe::fail_fast), a panic in another stage), a
/// stream's end does not say so; end the flow with [`collect`](Pipe::collect) or a sink to be told.
impl<F: Flow<Token = ()>> Stream for Pipe<F> {
    type Item = F::Item;

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<F::Item>> {
        let this = self.get_mut();
        let mut next = None;
        let step = this.flow.poll_drive(cx, STREAM_MAX, &mut |item, ()| {
            next = Some(item);
            ControlFlow::Break(())
        });
        if next.is_some() {
            let counts = &this.scope.counts;
            if counts.several_ends.load(Ordering::Relaxed) {
                counts.completed.fetch_add(1, Ordering::Release);
            } else {
                // Alone, this needs no read-modify-write, which would be most of the cost of an item.
                counts.completed.store(counts.completed.load(Ordering::Relaxed) + 1, Ordering::Release);
            }
            return Poll::Ready(next);
        }
        match step {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Step::End) => Poll::Ready(None),
            Poll::Ready(Step::More) => {
                // So many were dropped by a filter that others must have their turn.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

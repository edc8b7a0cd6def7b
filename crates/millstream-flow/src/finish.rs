//! The futures at the end of a flow.

use std::future::{Future, poll_fn};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;

use crate::chunk::VecFilling;
use crate::clock::Tick;
use crate::drive::{Driver, Turn};
use crate::failure::{Failure, Panicked};
use crate::flow::Flow;
use crate::held::Held;
use crate::scope::{RunErrorKind, Scope};
use crate::sink::{Sink, SinkError};
use crate::stats::{OpStats, STALL};
use crate::token::{Outcome, Settle};

/// Tells an end of a run that a stage elsewhere has failed.
pub(crate) struct Alarm {
    bell: Arc<AtomicWaker>,
    /// Who is told: a task that is polled again and again need not say so each time.
    registered: Option<Waker>,
}

impl Alarm {
    pub(crate) fn new(scope: &Scope) -> Self {
        Alarm { bell: scope.alarm(), registered: None }
    }

    /// True if a stage of the run has failed; registers to be told.
    fn poll_failed(&mut self, scope: &Scope, cx: &Context<'_>) -> bool {
        if !self.registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.bell.register(cx.waker());
            self.registered = Some(cx.waker().clone());
        }
        scope.has_failed()
    }
}

fn add_completed<K: Settle>(scope: &Scope, items: u64) {
    if !K::TRACKED && items > 0 {
        // Not alone: a broadcast's lanes may end in several tasks.
        scope.counts.completed.fetch_add(items, Ordering::Release);
    }
}

/// Ends a flow in a closure: the terminal stage of `for_each` and `fold`.
pub(crate) struct Drain<F, A, E> {
    pub(crate) flow: F,
    pub(crate) state: Option<A>,
    pub(crate) each: E,
    pub(crate) alarm: Alarm,
    pub(crate) driver: Driver,
}

impl<F, A, E> Unpin for Drain<F, A, E> {}

impl<F, A, E> Future for Drain<F, A, E>
where
    F: Flow,
    E: FnMut(&mut A, F::Item),
{
    type Output = Option<A>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<A>> {
        let Drain { flow, state, each, alarm, driver } = &mut *self;
        if alarm.poll_failed(&driver.scope, cx) {
            return Poll::Ready(None);
        }
        driver.begin();
        let accumulator = state.as_mut().expect("a finished run is not polled again");
        loop {
            let mut tokens = <F::Token as Settle>::Group::default();
            let (gathered, place, each) = (&mut tokens, &mut *accumulator, &mut *each);
            let turn = driver.turn_with(flow, cx, usize::MAX, |_| {
                let mut accumulator = Held::new(place);
                let mut each = Held::new(each);
                move |item, token: F::Token| {
                    each(&mut accumulator, item);
                    token.join(gathered);
                    ControlFlow::Continue(())
                }
            });
            add_completed::<F::Token>(&driver.scope, driver.taken());
            if F::Token::TRACKED {
                tokens.settle(&Outcome::Completed);
            }
            match turn {
                Turn::Again => {}
                Turn::Wait => return Poll::Pending,
                Turn::End => return Poll::Ready(state.take()),
                Turn::Failed => return Poll::Ready(None),
            }
        }
    }
}

/// Ends a flow in a sink, chunk by chunk.
pub(crate) async fn run_sink<F, S>(mut flow: F, mut sink: S, mut driver: Driver) -> Option<S>
where
    F: Flow,
    S: Sink<Item = F::Item>,
{
    let scope = driver.scope.clone();
    let mut alarm = Alarm::new(&scope);
    let chunk = sink.chunk().max(1);
    let mut skipping = Skipping::default();
    let mut items: Vec<F::Item> = Vec::with_capacity(chunk);
    let mut tokens: Vec<F::Token> = Vec::with_capacity(chunk);
    loop {
        let turn = poll_fn(|cx| {
            if alarm.poll_failed(&scope, cx) {
                return Poll::Ready(Turn::Failed);
            }
            driver.begin();
            loop {
                let room = chunk - items.len();
                let turn = driver.turn_with(&mut flow, cx, room, |max| {
                    let mut items = VecFilling::new(&mut items, max);
                    let mut tokens = VecFilling::new(&mut tokens, max);
                    move |item, token| {
                        items.push(item);
                        tokens.push(token);
                        ControlFlow::Continue(())
                    }
                });
                match turn {
                    Turn::Wait if items.is_empty() => return Poll::Pending,
                    Turn::Again if items.len() < chunk => {}
                    turn => return Poll::Ready(turn),
                }
            }
        })
        .await;
        if turn == Turn::Failed {
            return None;
        }
        if !items.is_empty() {
            driver.blocked();
            let written = unless_failed(&driver, &mut alarm, sink.write(&mut items)).await?;
            driver.begin();
            settle_written(&scope, &driver, written, &mut skipping, &mut tokens)?;
            items.clear();
        }
        if turn == Turn::End {
            break;
        }
    }
    match unless_failed(&driver, &mut alarm, sink.close()).await? {
        Ok(()) => Some(sink),
        Err(error) => {
            scope.fail(RunErrorKind::Sink(error));
            None
        }
    }
}

/// Settles the items of a write. `None` if the run fails by it.
fn settle_written<K: Settle>(
    scope: &Arc<Scope>,
    driver: &Driver,
    written: Result<(), SinkError>,
    skipping: &mut Skipping,
    tokens: &mut Vec<K>,
) -> Option<()> {
    // What became of the items that were not written, by their index.
    let mut others: Vec<(usize, Outcome)> = match written {
        Ok(()) => Vec::new(),
        Err(SinkError::Rejected(rejected)) => rejected
            .into_iter()
            .map(|(index, error)| {
                let failure = Failure::new(driver.stats.name(), &*error, scope.clock().now());
                (index, Outcome::Dead(Arc::new(failure)))
            })
            .collect(),
        Err(SinkError::Skipped(skipped, name)) => {
            skipped.into_iter().map(|index| (index, Outcome::Dropped(name.clone()))).collect()
        }
        Err(SinkError::Failed(error)) => {
            tokens.clear(); // dropped unsettled: to be delivered again
            scope.fail(RunErrorKind::Sink(error));
            return None;
        }
    };
    others.sort_by_key(|(index, _)| *index);
    if let Some((index, _)) = others.last().filter(|(index, _)| *index >= tokens.len()) {
        // Which item it meant is unknown, so none of them is known to be safe.
        let error = format!("it rejected item {index} of a write of {} items", tokens.len());
        tokens.clear();
        scope.fail(RunErrorKind::Sink(error.into()));
        return None;
    }
    let mut others = others.into_iter().peekable();
    let mut done = K::Group::default();
    let mut completed = 0;
    for (index, token) in tokens.drain(..).enumerate() {
        let mut other = None;
        while let Some((_, outcome)) = others.next_if(|(at, _)| *at == index) {
            other = Some(outcome);
        }
        let Some(outcome) = other else {
            completed += 1;
            token.join(&mut done);
            continue;
        };
        match &outcome {
            _ if K::TRACKED => {}
            Outcome::Dropped(name) => skipping.count(scope, name),
            _ => _ = scope.counts.dead.fetch_add(1, Ordering::Relaxed),
        }
        token.settle(&outcome);
    }
    add_completed::<K>(scope, completed);
    done.settle(&Outcome::Completed);
    Some(())
}

/// Where an untracked flow counts what its sink skips: an operator of its own for each name.
#[derive(Default)]
struct Skipping(Vec<Arc<OpStats>>);

impl Skipping {
    fn count(&mut self, scope: &Scope, name: &Arc<str>) {
        let op = match self.0.iter().find(|op| op.name() == *name) {
            Some(op) => op,
            None => {
                let op = OpStats::new("skipped");
                op.rename(name.clone());
                scope.add_untracked_op(op.clone());
                self.0.push(op);
                self.0.last().expect("just pushed")
            }
        };
        op.add_dropped(1);
    }
}

/// Awaits the sink's `future`, giving up when the run fails elsewhere. Its panic is the sink's error.
async fn unless_failed<T>(driver: &Driver, alarm: &mut Alarm, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let (scope, stats) = (&driver.scope, &driver.stats);
    poll_fn(|cx| {
        if alarm.poll_failed(scope, cx) {
            return Poll::Ready(None);
        }
        // A sink may block its thread like any other function.
        let began = Tick::now();
        stats.work(Some(began));
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        stats.work(None);
        let took = Tick::now().since(began);
        if took >= STALL {
            stats.add_stall(took);
        }
        match polled {
            Ok(polled) => polled.map(Some),
            Err(payload) => {
                scope.fail(RunErrorKind::Sink(Panicked::new(payload).into()));
                Poll::Ready(None)
            }
        }
    })
    .await
}

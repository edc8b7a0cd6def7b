//! What the tests of the engine share.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use millstream_flow::{Account, BoxError, Flow, Pipe, Settle, Step, Token, TokenRuns, Tracked, Tracker};

pub(crate) use millstream_flow::test::{End, Outcomes as Ear};
use millstream_flow::test::{Faults, Fitful};

/// A tracked flow of `items`, and who hears of them.
pub(crate) fn tracked<T: Send + 'static>(
    items: impl IntoIterator<Item = T, IntoIter: Send + 'static>,
) -> (Pipe<impl Flow<Item = T, Token = Token> + Send + 'static>, Ear, Arc<Account>) {
    tracked_stream(futures_util::stream::iter(items))
}

/// A tracked flow of a stream's items, and who hears of them.
pub(crate) fn tracked_stream<S: Stream<Item: Send> + Send + 'static>(
    stream: S,
) -> (Pipe<impl Flow<Item = S::Item, Token = Token> + Send + 'static>, Ear, Arc<Account>) {
    use futures_util::StreamExt;
    let ear = Ear::default();
    let mut tracker = ear.tracker();
    let account = tracker.account();
    let stream = stream.map(move |value| Ok::<_, BoxError>(Tracked { value, token: tracker.issue() }));
    (Pipe::from_tracked(account.clone(), stream), ear, account)
}

/// A stream of the items that is not ready at random moments, and wakes itself then.
pub(crate) fn fitful<I: IntoIterator>(
    items: I,
    seed: u64,
) -> Fitful<futures_util::stream::Iter<I::IntoIter>> {
    Faults::new(seed).pending(0.25).around(futures_util::stream::iter(items))
}

/// Pending so many times, waking itself, then ready.
pub(crate) async fn yields(times: u64) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}

/// A source's token, for flows whose token stays of one type whatever is done to it.
pub(crate) trait Issue: Settle<Group = Self> {
    fn issue(tracker: &mut Tracker) -> Self;
}

impl Issue for TokenRuns {
    fn issue(tracker: &mut Tracker) -> Self {
        let mut group = TokenRuns::default();
        tracker.issue().join(&mut group);
        group
    }
}

impl Issue for () {
    fn issue(_: &mut Tracker) {}
}

/// Any flow as one type that, unlike `BoxFlow`, passes every push and every break straight through, and that
/// fails the test when the flow behind it breaks the contract of `Flow`.
pub(crate) struct Checked<T, K> {
    flow: Box<dyn Drive<T, K> + Send>,
    name: String,
    ended: bool,
}

trait Drive<T, K> {
    fn drive(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        sink: &mut dyn FnMut(T, K) -> ControlFlow<()>,
    ) -> Poll<Step>;
}

impl<F: Flow> Drive<F::Item, F::Token> for F {
    fn drive(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        mut sink: &mut dyn FnMut(F::Item, F::Token) -> ControlFlow<()>,
    ) -> Poll<Step> {
        self.poll_drive(cx, max, &mut sink)
    }
}

impl<T, K: Settle> Flow for Checked<T, K> {
    type Item = T;
    type Token = K;

    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(T, K) -> ControlFlow<()>,
    {
        let name = &self.name;
        let (mut pushed, mut broke) = (0, false);
        assert!(max > 0, "{name} was asked for no items");
        let step = self.flow.drive(cx, max, &mut |item, token| {
            breach_unless(!broke, name, "pushed after the sink broke off");
            pushed += 1;
            breach_unless(pushed <= max, name, "pushed more than it was asked for");
            let flow = sink(item, token);
            broke = flow.is_break();
            flow
        });
        breach_unless(!(broke && step.is_pending()), name, "answered Pending to a break");
        breach_unless(
            !self.ended || (pushed == 0 && step == Poll::Ready(Step::End)),
            name,
            "did not stay ended",
        );
        self.ended = step == Poll::Ready(Step::End);
        step
    }
}

/// Notes a breach of contract; a panic would be caught as that item's failure.
fn breach_unless(kept: bool, name: &str, what: &str) {
    if !kept && !std::thread::panicking() {
        BREACHES.with_borrow_mut(|breaches| breaches.push(format!("{name} {what}")));
    }
}

thread_local! {
    static BREACHES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Fails if any flow behind a [`Checked`] has broken the contract.
pub(crate) fn no_breaches() {
    let breaches = BREACHES.take();
    assert!(breaches.is_empty(), "the contract of Flow was broken: {breaches:?}");
}

/// The pipe behind a check of its contract.
pub(crate) fn checked<F: Flow + Send + 'static>(
    pipe: Pipe<F>,
    name: &str,
) -> Pipe<Checked<F::Item, F::Token>> {
    pipe.via("checked", |flow| Checked { flow: Box::new(flow), name: name.to_owned(), ended: false })
}

/// The flow of a pipe, to be driven by hand.
pub(crate) fn flow_of<F: Flow>(pipe: Pipe<F>) -> F {
    let mut taken = None;
    drop(pipe.via("hand", |flow| {
        taken = Some(flow);
        Nothing::<F>(PhantomData)
    }));
    taken.unwrap()
}

/// What is left of a pipe whose flow was taken.
struct Nothing<F>(PhantomData<F>);

impl<F: Flow> Flow for Nothing<F> {
    type Item = F::Item;
    type Token = F::Token;
    fn poll_drive<S>(&mut self, _: &mut Context<'_>, _: usize, _: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, F::Token) -> ControlFlow<()>,
    {
        Poll::Ready(Step::End)
    }
}

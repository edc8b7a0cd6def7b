//! A source that does what a test says.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use futures_util::StreamExt as _;
use tokio::time::{Instant, Sleep, sleep};

use super::Outcomes;
use crate::failure::BoxError;
use crate::flow::Flow;
use crate::pipe::Pipe;
use crate::timer::later;
use crate::token::{Token, Tracked};

/// What a source does, step by step.
#[derive(Debug, Clone)]
pub struct Script<T> {
    steps: VecDeque<Step<T>>,
}

#[derive(Debug, Clone)]
enum Step<T> {
    Item(T),
    Wait(Duration),
    Stall,
    Fail(String),
}

impl<T> Default for Script<T> {
    fn default() -> Self {
        Script { steps: VecDeque::new() }
    }
}

impl<T: Send + 'static> Script<T> {
    /// Nothing yet: a source that ends at once.
    pub fn new() -> Self {
        Script::default()
    }

    fn then(mut self, step: Step<T>) -> Self {
        self.steps.push_back(step);
        self
    }

    /// Gives an item.
    #[must_use]
    pub fn item(self, item: T) -> Self {
        self.then(Step::Item(item))
    }

    /// Gives items, one after the other.
    #[must_use]
    pub fn items(mut self, items: impl IntoIterator<Item = T>) -> Self {
        self.steps.extend(items.into_iter().map(Step::Item));
        self
    }

    /// Gives nothing for a while.
    #[must_use]
    pub fn wait(self, time: Duration) -> Self {
        self.then(Step::Wait(time))
    }

    /// Gives nothing for ever: the source never ends.
    #[must_use]
    pub fn stall(self) -> Self {
        self.then(Step::Stall)
    }

    /// Fails, and with it the run. Only for [`tracked`](Self::tracked) sources, which can.
    #[must_use]
    pub fn fail(self, reason: &str) -> Self {
        self.then(Step::Fail(reason.to_owned()))
    }

    /// A flow of it, without tokens.
    ///
    /// # Panics
    /// When it comes to a step that [fails](Self::fail).
    pub fn pipe(self) -> Pipe<impl Flow<Item = T, Token = ()> + Send + 'static> {
        Pipe::from_stream(self.stream().map(|item| item.expect("a source without tokens cannot fail")))
    }

    /// A flow of it whose items are settled, and what becomes of them.
    pub fn tracked(self) -> (Pipe<impl Flow<Item = T, Token = Token> + Send + 'static>, Outcomes) {
        let outcomes = Outcomes::default();
        let mut tracker = outcomes.tracker();
        let account = tracker.account();
        let stream =
            self.stream().map(move |item| item.map(|value| Tracked { value, token: tracker.issue() }));
        (Pipe::from_tracked(account, stream), outcomes)
    }

    /// The script as a stream, in which what the script fails with is an error; as the items of a flow those are results.
    pub fn stream(self) -> ScriptStream<T> {
        ScriptStream { steps: self.steps, waiting: None }
    }
}

/// A [`Script`] as a stream.
#[derive(Debug)]
pub struct ScriptStream<T> {
    steps: VecDeque<Step<T>>,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<T> Unpin for ScriptStream<T> {}

impl<T> Stream for ScriptStream<T> {
    type Item = Result<T, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                std::task::ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            match self.steps.front() {
                None => return Poll::Ready(None),
                Some(Step::Stall) => return Poll::Pending,
                Some(Step::Wait(time)) => {
                    let mut timer = Box::pin(sleep(*time));
                    // From the moment at which the flow comes to this step.
                    timer.as_mut().reset(later(Instant::now(), *time));
                    self.waiting = Some(timer);
                    self.steps.pop_front();
                }
                Some(Step::Item(_) | Step::Fail(_)) => match self.steps.pop_front() {
                    Some(Step::Item(item)) => return Poll::Ready(Some(Ok(item))),
                    Some(Step::Fail(reason)) => return Poll::Ready(Some(Err(reason.into()))),
                    _ => unreachable!("it was looked at just now"),
                },
            }
        }
    }
}

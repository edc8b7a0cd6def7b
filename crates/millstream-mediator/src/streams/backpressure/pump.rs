//! The task between a handler and its buffer.

use std::any::Any;
use std::future::{pending, poll_fn};
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use millstream_flow::{BoxError, Panicked, Step};
use millstream_resilience::later;
use tokio::time::{Instant, sleep_until};

use super::shelf::{CHUNK, Shelf};
use super::{Backpressure, Pressure, PressureEvent, Strategy};
use crate::error::{Error, ErrorKind};
use crate::handler::Catching;
use crate::message::About;
use crate::stream::progress::Task;
use crate::stream::{ItemFlow, StreamError};

type TellShed<T> = Box<dyn FnMut(&[Result<T, StreamError>]) + Send>;

/// The handler's side of the buffer.
pub(super) struct Pump<T, F> {
    flow: F,
    shelf: Arc<Shelf<T>>,
    rule: Backpressure,
    about: Arc<About>,
    chunk: Vec<Result<T, StreamError>>,
    /// Items that have come out of the flow.
    position: u64,
    /// Looks at items that are dropped.
    tell_dropped: Option<TellShed<T>>,
    /// Under pressure and above the low mark: the reader may end it.
    above: bool,
    /// The reader has been told how it ended, or need not be.
    ended: bool,
}

impl<T: Send + 'static, F: ItemFlow<T>> Pump<T, F> {
    /// Begins to fill the shelf.
    pub(super) fn spawn(flow: F, shelf: Arc<Shelf<T>>, rule: Backpressure, about: Arc<About>) -> Task {
        let tell_dropped = rule.tell_dropped.clone().map(|(one_in, tell)| {
            let (about, mut count) = (about.clone(), 0u64);
            let tell_shed: TellShed<T> = Box::new(move |shed| {
                for item in shed {
                    if count.is_multiple_of(one_in) {
                        match item {
                            Ok(item) => tell(&about, item),
                            Err(error) => tell(&about, error),
                        }
                    }
                    count += 1;
                }
            });
            tell_shed
        });
        let mut pump = Pump {
            flow,
            shelf,
            rule,
            about,
            chunk: Vec::new(),
            position: 0,
            tell_dropped,
            above: false,
            ended: false,
        };
        Task::spawn(async move {
            let ended = { Catching(pin!(pump.run())).await };
            pump.end(ended);
        })
    }
}

impl<T, F> Pump<T, F> {
    fn end(&mut self, ended: Result<(), Box<dyn Any + Send>>) {
        match ended {
            Ok(()) => self.ended = true,
            Err(payload) => self.broken(ErrorKind::Panicked, Panicked::new(payload)),
        }
    }

    /// Ends the stream with an error, after what came before it.
    #[cold]
    fn broken(&mut self, kind: ErrorKind, cause: impl Into<BoxError>) {
        self.ended = true;
        let error = Error::new(&self.about, kind).because(cause);
        self.chunk.push(Err(StreamError::new(error, self.position, true)));
        self.put(self.rule.strategy);
    }

    /// Hands on what there is, and counts what is dropped of it at once: the task may end at its next await.
    fn put(&mut self, strategy: Strategy) {
        if self.chunk.is_empty() {
            return;
        }
        let shed = self.shelf.put(&mut self.chunk, &self.rule.marks, &strategy);
        if let Some(stats) = self.rule.stats.as_ref().filter(|_| !shed.is_empty()) {
            stats.dropped.add(shed.len() as u64);
        }
        if let Some(tell) = &mut self.tell_dropped {
            tell(&shed);
        }
    }
}

/// Closes the shelf however its writer ends, and never as if the stream were complete when it is not.
impl<T, F> Drop for Pump<T, F> {
    fn drop(&mut self) {
        if !self.ended {
            self.broken(ErrorKind::Failed, "its task was ended from outside");
        }
        self.shelf.close();
    }
}

impl<T: Send + 'static, F: ItemFlow<T>> Pump<T, F> {
    async fn run(&mut self) {
        // Until when it waits for room, whatever strategy it falls back to meanwhile.
        let mut given_up = None;
        loop {
            let strategy = self.look();
            let Pump { flow, shelf, rule, chunk, position, above, .. } = &mut *self;
            let falls_back = rule.fallback.and_then(|(after, _)| shelf.state().falls_back_at(after));
            let room = poll_fn(|cx| shelf.poll_room(cx, &rule.marks, &strategy));
            let fall_back = async {
                match falls_back {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            let give_up = async {
                match rule.wait_max {
                    Some(limit) => {
                        let until = given_up.get_or_insert_with(|| later(Instant::now(), limit));
                        loop {
                            sleep_until(*until).await;
                            // A reader who takes some, and not yet enough, is there.
                            match later(shelf.asked(), limit) {
                                asked if asked <= *until => break limit,
                                asked => *until = asked,
                            }
                        }
                    }
                    None => pending().await,
                }
            };
            let room = tokio::select! {
                biased;
                room = room => room,
                () = fall_back => continue,
                limit = give_up => {
                    self.broken(ErrorKind::TimedOut { limit }, "its reader left no room for so long");
                    return;
                }
            };
            given_up = None;
            let room = room.min(CHUNK);
            let ended = poll_fn(|cx| {
                let step = flow.poll_drive(cx, room, &mut |item, ()| {
                    *position += 1;
                    chunk.push(item);
                    ControlFlow::Continue(())
                });
                match step {
                    Poll::Ready(step) => Poll::Ready(step == Step::End),
                    // What there is goes on before it waits for more.
                    Poll::Pending if !chunk.is_empty() => Poll::Ready(false),
                    // The end of the pressure is told when it comes, and not with the next item.
                    Poll::Pending if *above => shelf.poll_low(cx, &rule.marks).map(|()| false),
                    Poll::Pending => Poll::Pending,
                }
            })
            .await;
            self.put(strategy);
            if ended {
                self.look();
                return;
            }
            tokio::task::coop::consume_budget().await;
        }
    }

    /// Looks how full it is, tells whom it concerns, and says what to do.
    fn look(&mut self) -> Strategy {
        let Backpressure { marks, trigger, fallback, strategy, stats, .. } = &self.rule;
        let mut state = self.shelf.state();
        let before = state.pressure(marks.capacity);
        let triggered = trigger.as_ref().is_some_and(|trigger| trigger(&before));
        let changed = state.press(marks, triggered);
        let (pressure, pressed) = (state.pressure(marks.capacity), state.pressed.is_some());
        drop(state);
        self.above = pressed && pressure.len > marks.low;
        if let Some(stats) = stats.as_ref().filter(|_| changed && pressed) {
            stats.events.add(1);
        }
        let tell = |event| self.rule.tell(&self.about, event);
        if changed {
            tell(if pressed {
                PressureEvent::Entered(pressure)
            } else {
                PressureEvent::Left(Pressure { lasting: before.lasting, ..pressure })
            });
        }
        match fallback {
            Some((after, other)) if pressed && pressure.lasting >= *after => {
                if !self.shelf.state().falls_back() {
                    tell(PressureEvent::FellBack(*other, pressure));
                }
                *other
            }
            _ => *strategy,
        }
    }
}

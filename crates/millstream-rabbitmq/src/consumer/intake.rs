//! What the broker is asked to deliver: how many, from where, and nothing while the consumer is paused.

use std::sync::Arc;
use std::time::SystemTime;

use millstream_message::{Headers, StreamFrom, Value};

use super::{Cancel, ConsumerCore, STREAM_OFFSET, State};
use crate::link::{CallError, Channel, Waiter};
use crate::proto::{Connection, Method};

/// What is said first on a channel, and up to how many deliveries it asks for.
pub(crate) type FirstWords = (u16, [Method; 2]);

/// What the broker was asked to do on the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intake {
    /// Nothing yet, or its answer is not there.
    Opening,
    /// To deliver up to so many.
    Running(u16),
    /// To deliver nothing.
    Paused,
}

impl State {
    /// What to ask the broker for from now on, if it is not what it was asked for.
    pub(super) fn turns_to(&self) -> Option<Intake> {
        if self.asking || self.cancel != Cancel::No || self.end.is_some() || self.channel.is_none() {
            return None;
        }
        match self.intake {
            Intake::Opening => None,
            Intake::Paused => (!self.paused).then(|| Intake::Running(self.credit.first())),
            // A stream that is paused holds what came, since it must not be asked from elsewhere while more is on its way; and who
            // has the turn keeps it.
            Intake::Running(_) if self.paused => (!self.credit.is_fixed()).then_some(Intake::Paused),
            Intake::Running(asked) => {
                let items = self.unsettled.live() as u64;
                self.credit.better(asked, items, self.bytes).map(Intake::Running)
            }
        }
    }
}

impl ConsumerCore {
    /// It has this channel from now on, which was opened just now. What has the broker deliver on it; nothing while it is paused.
    ///
    /// # Errors
    /// `Lost` if it wants none any more: it was stopped, or its last handle went, while the channel was being opened.
    pub(crate) fn opened(&self, channel: Channel) -> Result<Option<FirstWords>, CallError> {
        let mut state = self.state.lock();
        if !state.goes_on() {
            return Err(CallError::Lost);
        }
        state.channel = Some(channel);
        state.intake = Intake::Opening;
        state.offset = state.unsettled.next() - 1;
        let count = state.credit.first();
        state.asking = !state.paused;
        Ok(state.asking.then(|| (count, self.ask(&mut state, count))))
    }

    /// The broker has taken it, and was asked so.
    pub(crate) fn established(self: &Arc<Self>, asked: Option<u16>) {
        let mut state = self.state.lock();
        state.established = true;
        if std::mem::take(&mut state.refusals) > 0 {
            tracing::info!(queue = self.queue, "a consumer is served again");
        }
        state.intake = asked.map_or(Intake::Paused, Intake::Running);
        drop(state);
        self.asked();
    }

    /// Asks the broker for up to so many deliveries, under a new name.
    fn ask(&self, state: &mut State, prefetch_count: u16) -> [Method; 2] {
        state.asked += 1;
        let consume = Method::BasicConsume {
            reserved_1: 0,
            queue: self.queue.clone(),
            consumer_tag: self.tag(state),
            flags: [false, false, self.options.exclusive, false],
            arguments: self.arguments(state),
        };
        [Method::BasicQos { prefetch_size: 0, prefetch_count, global: [false] }, consume]
    }

    fn arguments(&self, state: &State) -> Headers {
        let mut arguments = Headers::new();
        if self.options.priority != 0 {
            arguments.insert("x-priority".to_owned(), Value::Int(self.options.priority.into()));
        }
        let offset = |offset: u64| Value::Int(i64::try_from(offset).unwrap_or(i64::MAX));
        let from = match (state.resume, self.options.from) {
            (Some(next), Some(_)) => Some(offset(next)),
            (_, from) => from.map(|from| match from {
                StreamFrom::First => "first".into(),
                StreamFrom::Next => "next".into(),
                StreamFrom::Last => "last".into(),
                StreamFrom::Offset(first) => offset(first),
                StreamFrom::Timestamp(time) => {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "the broker counts back from its own clock"
                    )]
                    let ago = SystemTime::now().duration_since(time).unwrap_or_default();
                    Value::Text(format!("{}s", ago.as_secs_f64().ceil() as u64))
                }
            }),
        };
        arguments.extend(from.map(|from| (STREAM_OFFSET.to_owned(), from)));
        arguments
    }

    /// The name by which the broker knows what it was asked last.
    pub(super) fn tag(&self, state: &State) -> String {
        match state.asked {
            1 => self.name.clone(),
            asked => format!("{}.{asked}", self.name),
        }
    }

    /// Has the broker deliver otherwise than until now. Who waits for its answers.
    pub(super) fn turn(
        &self,
        state: &mut State,
        to: Intake,
        connection: &mut Connection,
        channel: u16,
    ) -> Vec<Waiter> {
        let was_running = matches!(state.intake, Intake::Running(_));
        let cancel =
            was_running.then(|| Method::BasicCancel { consumer_tag: self.tag(state), nowait: [false] });
        let ask = match to {
            Intake::Running(count) => Some(self.ask(state, count)),
            Intake::Opening | Intake::Paused => None,
        };
        state.intake = to;
        state.asking = ask.is_some();
        // The new one first, so that the queue is never without: it may go with its last consumer. None may be beside an
        // exclusive one.
        let (before, after) = if self.options.exclusive { (cancel, None) } else { (None, cancel) };
        let methods = before.into_iter().chain(ask.into_iter().flatten()).chain(after);
        let answered = methods.map(|method| {
            connection.send(channel, &method);
            if matches!(method, Method::BasicConsume { .. }) { Waiter::Consume } else { Waiter::Nobody }
        });
        answered.collect()
    }

    /// The broker delivers as it was asked last.
    pub(crate) fn asked(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.asking = false;
        let more = state.cancel == Cancel::Wanted || state.turns_to().is_some();
        if more && self.talks(&mut state) {
            self.link.has_words(self.clone());
        }
    }

    /// Has the broker deliver nothing, or again.
    pub(super) fn pause(self: &Arc<Self>, paused: bool) {
        self.change(|state| state.paused = paused);
    }
}

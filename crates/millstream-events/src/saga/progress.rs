//! How far a saga is, and what comes next: no I/O and no clock.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::change::{Ending, SagaChange, Why, unheard};
use super::definition::{Info, Kind};
use super::{Millis, SagaStatus, SagaView, later};
use crate::event::Event;

/// What a saga's stream says.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// The versions of the first and of the last event.
    pub(super) begun: u64,
    pub(super) version: u64,
    pub(super) state: Value,
    pub(super) correlation_id: String,
    pub(super) deadline: Option<Millis>,
    pub(super) done: Vec<String>,
    undone: Vec<String>,
    /// Failures of what is tried now, and when it is tried again; if never, it has failed for good.
    pub(super) failures: u32,
    failed: Option<(String, Option<Millis>)>,
    waiting: Option<(String, Option<Millis>)>,
    /// Events that were heard of and are not taken.
    pub(super) heard: Vec<Event>,
    heard_ids: BTreeSet<String>,
    undoing: Option<(Why, String)>,
    pub(super) ended: Option<(Ending, Option<String>)>,
}

/// What is to be done with a saga.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Next {
    /// Do the step, or undo it, for this attempt.
    Act { step: usize, undo: bool, attempt: u32 },
    /// Nothing until then, or until something is heard; `None` if there is no such time.
    Wait(Option<Millis>),
    /// Give the step the event.
    Hear { step: usize, event: Box<Event> },
    /// Store this.
    Store(SagaChange),
    /// It has ended.
    Nothing,
}

impl Progress {
    /// What has happened, in order. `None` for events that are none of a saga's own.
    pub(super) fn apply(&mut self, version: u64, change: Option<SagaChange>, event: &Event) {
        self.version = version;
        let Some(change) = change else { return };
        match change {
            SagaChange::Begun { state, correlation_id, deadline } => {
                *self = Progress {
                    begun: version,
                    version,
                    state,
                    correlation_id,
                    deadline,
                    ..Progress::default()
                };
            }
            SagaChange::StepFailed { attempt, error, again, .. }
            | SagaChange::UndoFailed { attempt, error, again, .. } => {
                self.failures = attempt;
                self.failed = Some((error, again));
            }
            SagaChange::StepDone { step, state, event } => {
                if let Some(at) = event.and_then(|id| self.heard.iter().position(|heard| heard.id == id)) {
                    self.heard.remove(at);
                }
                self.state = state;
                if !self.done.contains(&step) {
                    self.done.push(step);
                }
                self.next_step();
            }
            SagaChange::Waiting { step, until } => self.waiting = Some((step, until)),
            SagaChange::Heard { id, .. } => {
                self.heard.push(unheard(event));
                self.heard_ids.insert(id);
            }
            SagaChange::Compensating { why, reason } => {
                self.undoing = Some((why, reason));
                self.next_step();
            }
            SagaChange::Undone { step, state } => {
                self.state = state;
                self.undone.push(step);
                self.next_step();
            }
            SagaChange::Ended { how, reason } => self.ended = Some((how, reason)),
        }
    }

    fn next_step(&mut self) {
        (self.failures, self.failed, self.waiting) = (0, None, None);
    }

    pub(super) fn is_undoing(&self) -> bool {
        self.undoing.is_some()
    }

    /// Whether this saga wants to hear of an event of this type and id.
    pub(super) fn wants(&self, steps: &[Info], event: &Event) -> bool {
        let waits = |step: &Info| match &step.kind {
            Kind::Wait { types, .. } => types.contains(&event.event_type) && !self.done.contains(&step.name),
            Kind::Step(_) => false,
        };
        self.ended.is_none()
            && self.undoing.is_none()
            && !self.heard_ids.contains(&event.id)
            && steps.iter().any(waits)
    }

    pub(super) fn next(&self, steps: &[Info], now: Millis) -> Next {
        if self.ended.is_some() {
            return Next::Nothing;
        }
        if let Some((why, reason)) = &self.undoing {
            return self.next_undo(steps, *why, reason, now);
        }
        let Some((at, step)) = steps.iter().enumerate().find(|(_, step)| !self.done.contains(&step.name))
        else {
            return Next::Store(SagaChange::Ended { how: Ending::Completed, reason: None });
        };
        let undo = |why, reason| Next::Store(SagaChange::Compensating { why, reason });
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            return undo(Why::TimedOut, format!("it was not done in time, at step `{}`", step.name));
        }
        match &self.failed {
            Some((error, None)) => {
                let reason = format!("step `{}` failed for good: {error}", step.name);
                return undo(Why::StepFailed, reason);
            }
            Some((_, Some(again))) if *again > now => {
                return Next::Wait(earlier(Some(*again), self.deadline));
            }
            _ => {}
        }
        match &step.kind {
            Kind::Step(_) => Next::Act { step: at, undo: false, attempt: self.failures + 1 },
            Kind::Wait { types, timeout, go_on } => {
                if let Some(event) = self.heard.iter().find(|event| types.contains(&event.event_type)) {
                    return Next::Hear { step: at, event: Box::new(event.clone()) };
                }
                let name = || step.name.clone();
                let until = match &self.waiting {
                    Some((_, until)) => *until,
                    None => {
                        let until = timeout.map(|time| later(now, time));
                        return Next::Store(SagaChange::Waiting { step: name(), until });
                    }
                };
                if until.is_none_or(|until| until > now) {
                    return Next::Wait(earlier(until, self.deadline));
                }
                match go_on {
                    true => Next::Store(SagaChange::StepDone {
                        step: name(),
                        state: self.state.clone(),
                        event: None,
                    }),
                    false => undo(Why::TimedOut, format!("what step `{}` waits for did not come", step.name)),
                }
            }
        }
    }

    fn next_undo(&self, steps: &[Info], why: Why, reason: &str, now: Millis) -> Next {
        let ended = |how, reason: String| Next::Store(SagaChange::Ended { how, reason: Some(reason) });
        let left = self.done.iter().rev().filter(|done| !self.undone.contains(done));
        for done in left {
            let Some((at, step)) = steps.iter().enumerate().find(|(_, step)| step.name == *done) else {
                let reason =
                    format!("{reason}; step `{done}` is to be undone, and the saga has none of that name");
                return ended(Ending::Failed, reason);
            };
            if !step.undoable {
                continue;
            }
            return match &self.failed {
                Some((error, None)) => {
                    ended(Ending::Failed, format!("{reason}; step `{done}` cannot be undone: {error}"))
                }
                Some((_, Some(again))) if *again > now => Next::Wait(Some(*again)),
                _ => Next::Act { step: at, undo: true, attempt: self.failures + 1 },
            };
        }
        let how = match why {
            Why::TimedOut => Ending::TimedOut,
            Why::StepFailed | Why::Asked => Ending::Compensated,
        };
        ended(how, reason.to_owned())
    }

    pub(super) fn status(&self) -> SagaStatus {
        match (&self.ended, &self.undoing, &self.waiting) {
            (Some((how, _)), ..) => match how {
                Ending::Completed => SagaStatus::Completed,
                Ending::Compensated => SagaStatus::Compensated,
                Ending::TimedOut => SagaStatus::TimedOut,
                Ending::Aborted => SagaStatus::Aborted,
                Ending::Failed => SagaStatus::Failed,
            },
            (None, Some(_), _) => SagaStatus::Compensating,
            (None, None, Some(_)) => SagaStatus::Waiting,
            (None, None, None) => SagaStatus::Running,
        }
    }

    pub(super) fn view(&self, saga: &str, id: &str, steps: &[Info]) -> SagaView {
        let left = |name: &&String| {
            let undoable = steps.iter().any(|step| step.name == **name && step.undoable);
            undoable && !self.undone.contains(name)
        };
        let step = match (&self.ended, &self.undoing) {
            (Some(_), _) => None,
            (None, Some(_)) => self.done.iter().rev().find(left).cloned(),
            (None, None) => {
                steps.iter().map(|step| &step.name).find(|name| !self.done.contains(name)).cloned()
            }
        };
        let reason = match (&self.ended, &self.undoing) {
            (Some((_, reason)), _) => reason.clone(),
            (None, undoing) => undoing.as_ref().map(|(_, reason)| reason.clone()),
        };
        SagaView {
            saga: saga.to_owned(),
            id: id.to_owned(),
            status: self.status(),
            done: self.done.clone(),
            undone: self.undone.clone(),
            step,
            failures: self.failures,
            reason,
            state: self.state.clone(),
            correlation_id: self.correlation_id.clone(),
            deadline: self.deadline.map(|at| SystemTime::UNIX_EPOCH + Duration::from_millis(at)),
        }
    }
}

fn earlier(one: Option<Millis>, other: Option<Millis>) -> Option<Millis> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

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
    /// What has failed and is tried now, or has failed for good.
    failed: Option<Failed>,
    waiting: Option<(String, Option<Millis>)>,
    /// Events that were heard of and are not taken.
    pub(super) heard: Vec<Event>,
    heard_ids: BTreeSet<String>,
    undoing: Option<(Why, String)>,
    /// The step that was under way when it was asked to undo all: that is done first, if it can be.
    under_way: Option<String>,
    pub(super) ended: Option<(Ending, Option<String>)>,
}

/// A step that was tried in vain, to be done or undone.
#[derive(Debug, Clone)]
struct Failed {
    step: String,
    attempts: u32,
    error: String,
    /// When it is tried again; if never, it has failed for good.
    again: Option<Millis>,
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
            // What two processes have stored of one step counts once.
            SagaChange::StepFailed { step, .. } if self.done.contains(&step) => {}
            SagaChange::UndoFailed { step, .. } if !self.is_to_be_undone(&step) => {}
            SagaChange::StepFailed { step, attempt, error, again }
            | SagaChange::UndoFailed { step, attempt, error, again } => {
                if self.under_way.as_ref() == Some(&step) {
                    // It is not tried again: there is nothing of it to undo.
                    self.under_way = None;
                }
                self.failed = Some(Failed { step, attempts: attempt, error, again });
            }
            SagaChange::StepDone { step, state, event } => {
                if let Some(at) = event.and_then(|id| self.heard.iter().position(|heard| heard.id == id)) {
                    self.heard.remove(at);
                }
                if !self.done.contains(&step) {
                    self.state = state;
                    self.done.push(step);
                    self.next_step();
                }
            }
            SagaChange::Waiting { step, until } => self.waiting = Some((step, until)),
            SagaChange::Heard { id, .. } => {
                self.heard.push(unheard(event));
                self.heard_ids.insert(id);
            }
            SagaChange::Compensating { why, reason, under_way } => {
                self.undoing = Some((why, reason));
                self.under_way = under_way;
                self.next_step();
            }
            SagaChange::Undone { step, state } => {
                if self.is_to_be_undone(&step) {
                    self.state = state;
                    self.undone.push(step);
                    self.next_step();
                }
            }
            SagaChange::Ended { how, reason } => self.ended = Some((how, reason)),
        }
    }

    fn next_step(&mut self) {
        (self.failed, self.waiting) = (None, None);
    }

    /// How this step has failed, if it has: a new version of the program may have another one in the place of one that has.
    fn failed_at(&self, step: &str) -> Option<&Failed> {
        self.failed.as_ref().filter(|failed| failed.step == step)
    }

    pub(super) fn attempt(&self, step: &str) -> u32 {
        self.failed_at(step).map_or(0, |failed| failed.attempts).saturating_add(1)
    }

    /// Whether a step is done and not undone, of a saga that is being undone.
    pub(super) fn is_to_be_undone(&self, step: &String) -> bool {
        self.undoing.is_some() && self.done.contains(step) && !self.undone.contains(step)
    }

    /// Whether this step was under way when all was to be undone, and nothing has come of it yet.
    pub(super) fn is_under_way(&self, step: &str) -> bool {
        self.under_way.as_deref() == Some(step) && !self.done.iter().any(|done| done == step)
    }

    /// Whether the step that is next would take this event at once.
    pub(super) fn takes_now(&self, steps: &[Info], event: &Event) -> bool {
        let next = steps.iter().find(|step| !self.done.contains(&step.name));
        next.is_some_and(|step| match &step.kind {
            Kind::Step(_) => false,
            Kind::Wait { types, .. } => {
                types.contains(&event.event_type)
                    && !self.heard.iter().any(|heard| types.contains(&heard.event_type))
            }
        })
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
            let is_step = |step: &Info| matches!(step.kind, Kind::Step(_));
            if let Some(at) = steps.iter().position(|step| is_step(step) && self.is_under_way(&step.name)) {
                return Next::Act { step: at, undo: false, attempt: 1 };
            }
            return self.next_undo(steps, *why, reason, now);
        }
        let Some((at, step)) = steps.iter().enumerate().find(|(_, step)| !self.done.contains(&step.name))
        else {
            return Next::Store(SagaChange::Ended { how: Ending::Completed, reason: None });
        };
        let undo = |why, reason| Next::Store(SagaChange::Compensating { why, reason, under_way: None });
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            return undo(Why::TimedOut, format!("it was not done in time, at step `{}`", step.name));
        }
        match self.failed_at(&step.name) {
            Some(Failed { again: None, error, .. }) => {
                let reason = format!("step `{}` failed for good: {error}", step.name);
                return undo(Why::StepFailed, reason);
            }
            Some(Failed { again: Some(again), .. }) if *again > now => {
                return Next::Wait(earlier(Some(*again), self.deadline));
            }
            _ => {}
        }
        match &step.kind {
            Kind::Step(_) => Next::Act { step: at, undo: false, attempt: self.attempt(&step.name) },
            Kind::Wait { types, timeout, go_on } => {
                if let Some(event) = self.heard.iter().find(|event| types.contains(&event.event_type)) {
                    return Next::Hear { step: at, event: Box::new(event.clone()) };
                }
                let name = || step.name.clone();
                let until = match &self.waiting {
                    Some((waiting, until)) if *waiting == step.name => *until,
                    _ => {
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
            return match self.failed_at(done) {
                Some(Failed { again: None, error, .. }) => {
                    ended(Ending::Failed, format!("{reason}; step `{done}` cannot be undone: {error}"))
                }
                Some(Failed { again: Some(again), .. }) if *again > now => Next::Wait(Some(*again)),
                _ => Next::Act { step: at, undo: true, attempt: self.attempt(done) },
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
        let failures = step.as_ref().map_or(0, |step| self.attempt(step) - 1);
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
            failures,
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

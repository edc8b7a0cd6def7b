//! A saga whose state's type nobody needs to know.

use std::any::TypeId;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use millstream_flow::{Panicked, Retry};
use millstream_message::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Part, Saga, StepContext, StepError};
use crate::event::Event;

impl<S> Saga<S>
where
    S: Serialize + DeserializeOwned + Send + 'static,
{
    pub(in crate::saga) fn erased(self) -> Result<Arc<dyn Definition>, String> {
        let Saga { name, parts, timeout } = self;
        if name.is_empty() || name.contains('/') || name.len() > 100 {
            return Err(format!("`{name}`: a saga's name has 1 to 100 bytes, and no `/`"));
        }
        if parts.is_empty() {
            return Err(format!("saga `{name}` has no steps"));
        }
        let info = |part: &Part<S>| match part {
            Part::Step(step) => Info {
                name: step.name.clone(),
                undoable: step.undo.is_some(),
                kind: Kind::Step(Arc::new(Retries {
                    act: step.retry.clone(),
                    undo: step.undo_retry.clone(),
                })),
            },
            Part::Wait(wait) => Info {
                name: wait.name.clone(),
                undoable: false,
                kind: Kind::Wait { types: wait.types.clone(), timeout: wait.timeout, go_on: wait.go_on },
            },
        };
        let steps: Vec<Info> = parts.iter().map(info).collect();
        for (at, step) in steps.iter().enumerate() {
            if step.name.is_empty() {
                return Err(format!("step {at} of saga `{name}` has no name"));
            }
            if steps[..at].iter().any(|before| before.name == step.name) {
                return Err(format!("saga `{name}` has two steps `{}`", step.name));
            }
        }
        Ok(Arc::new(Typed { name, steps, parts, timeout, state: PhantomData::<fn(S)> }))
    }
}

/// What is known of a step without knowing the state's type.
#[derive(Debug, Clone)]
pub(in crate::saga) struct Info {
    pub(in crate::saga) name: String,
    pub(in crate::saga) undoable: bool,
    pub(in crate::saga) kind: Kind,
}

#[derive(Debug, Clone)]
pub(in crate::saga) enum Kind {
    Step(Arc<Retries>),
    Wait { types: Arc<[String]>, timeout: Option<Duration>, go_on: bool },
}

/// How a step is tried again.
#[derive(Debug)]
pub(in crate::saga) struct Retries {
    pub(in crate::saga) act: Retry,
    pub(in crate::saga) undo: Retry,
}

/// A saga whose state is JSON.
pub(in crate::saga) trait Definition: Send + Sync {
    fn name(&self) -> &str;
    fn steps(&self) -> &[Info];
    fn timeout(&self) -> Option<Duration>;
    fn state_type(&self) -> TypeId;
    /// Does the step, or undoes it. A panic is an error.
    fn act(
        &self,
        step: usize,
        undo: bool,
        state: &Value,
        context: StepContext,
    ) -> BoxFuture<'static, Result<Value, StepError>>;
    /// The state after an event that the step waited for.
    fn hear(&self, step: usize, state: &Value, event: &Event) -> Result<Value, StepError>;
}

struct Typed<S> {
    name: String,
    steps: Vec<Info>,
    parts: Vec<Part<S>>,
    timeout: Option<Duration>,
    state: PhantomData<fn(S)>,
}

/// A state that is not the definition's will never be.
fn read<S: DeserializeOwned>(state: &Value) -> Result<S, StepError> {
    S::deserialize(state).map_err(StepError::permanent)
}

fn write<S: Serialize>(state: S) -> Result<Value, StepError> {
    let state = serde_json::to_value(state).map_err(StepError::permanent)?;
    if is_deep(&state) {
        return Err(StepError::permanent(TOO_DEEP));
    }
    Ok(state)
}

/// What is nested deeper than this cannot be read again: readers of JSON bound their own depth, at 128.
const DEPTH_MAX: usize = 100;
pub(in crate::saga) const TOO_DEEP: &str =
    "the state is nested deeper than 100 levels, and could not be read again";

/// Whether a state could not be read again.
pub(in crate::saga) fn is_deep(state: &Value) -> bool {
    fn is_deeper(value: &Value, than: usize) -> bool {
        match value {
            Value::Array(items) => than == 0 || items.iter().any(|item| is_deeper(item, than - 1)),
            Value::Object(entries) => than == 0 || entries.values().any(|entry| is_deeper(entry, than - 1)),
            _ => false,
        }
    }
    is_deeper(state, DEPTH_MAX)
}

/// What a function of the program gives. A panic is an error.
fn caught<T>(function: impl FnOnce() -> Result<T, StepError>) -> Result<T, StepError> {
    let caught = catch_unwind(AssertUnwindSafe(function));
    caught.unwrap_or_else(|panic| Err(Panicked::new(panic).into()))
}

impl<S> Definition for Typed<S>
where
    S: Serialize + DeserializeOwned + Send + 'static,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn steps(&self) -> &[Info] {
        &self.steps
    }

    fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    fn state_type(&self) -> TypeId {
        TypeId::of::<S>()
    }

    fn act(
        &self,
        step: usize,
        undo: bool,
        state: &Value,
        context: StepContext,
    ) -> BoxFuture<'static, Result<Value, StepError>> {
        let act = match &self.parts[step] {
            Part::Step(step) if undo => step.undo.clone(),
            Part::Step(step) => Some(step.act.clone()),
            Part::Wait(_) => None,
        };
        let act = act.expect("only what can be done or undone is asked for");
        let state = caught(|| read::<S>(state));
        let acted = async move { write(act(state?, context).await?) };
        Box::pin(async move {
            let acted = AssertUnwindSafe(acted).catch_unwind().await;
            acted.unwrap_or_else(|panic| Err(Panicked::new(panic).into()))
        })
    }

    fn hear(&self, step: usize, state: &Value, event: &Event) -> Result<Value, StepError> {
        let Part::Wait(wait) = &self.parts[step] else { unreachable!("only waits hear") };
        caught(|| write((wait.hear)(read::<S>(state)?, event)?))
    }
}

//! Sagas: steps, waiting, undoing, and going on after a crash.

mod crashes;
mod events;
mod odd;
mod steps;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream_events::{EventStore, Sagas, SagasBuilder, Step, StepError};
use millstream_flow::Retry;
use serde::{Deserialize, Serialize};

use crate::support::{Kind, Place};

const SECOND: Duration = Duration::from_secs(1);

/// A state that remembers what was done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Done(Vec<String>);

/// What steps have really done, in order.
#[derive(Clone, Default)]
struct World(Arc<Mutex<Vec<String>>>);

impl World {
    fn does(&self, what: impl Into<String>) {
        self.0.lock().expect("no panic").push(what.into());
    }

    fn done(&self) -> Vec<String> {
        self.0.lock().expect("no panic").clone()
    }

    /// A step that does and undoes something.
    fn step(&self, name: &str) -> Step<Done> {
        let (does, undoes) = (self.clone(), self.clone());
        Step::new(name, move |mut state: Done, context| {
            let does = does.clone();
            async move {
                does.does(&*context.step);
                state.0.push(context.step.to_string());
                Ok(state)
            }
        })
        .undo(move |mut state: Done, context| {
            let undoes = undoes.clone();
            async move {
                undoes.does(format!("-{}", context.step));
                assert_eq!(state.0.pop().as_deref(), Some(&*context.step), "the last one first");
                Ok(state)
            }
        })
    }

    /// A step that fails so many times, then does something.
    fn failing(&self, name: &str, times: u32, error: fn() -> StepError) -> Step<Done> {
        let does = self.clone();
        Step::new(name, move |mut state: Done, context| {
            let does = does.clone();
            async move {
                does.does(format!("{}#{}", context.step, context.attempt));
                if context.attempt <= times {
                    return Err(error());
                }
                state.0.push(context.step.to_string());
                Ok(state)
            }
        })
    }
}

fn no_luck() -> StepError {
    "no luck".into()
}

fn retry(attempts: u32) -> Retry {
    Retry::attempts(attempts).expect("it is not 0").first_delay(SECOND)
}

async fn store() -> EventStore {
    Place::of(Kind::Memory).await.store().await
}

async fn started(sagas: SagasBuilder) -> Sagas {
    sagas.start().await.expect("started")
}

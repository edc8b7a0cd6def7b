//! The step that is being done of a saga, for whoever wants to have it undone.

use std::sync::{Arc, Mutex, PoisonError};

#[derive(Clone, Default)]
pub(super) struct Acting(Arc<Mutex<Option<String>>>);

/// A step is being done until this is dropped.
pub(super) struct Doing<'a>(&'a Acting);

impl Acting {
    pub(super) fn begin(&self, step: &str) -> Doing<'_> {
        self.set(Some(step.to_owned()));
        Doing(self)
    }

    /// The name of the step.
    pub(super) fn step(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, step: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }
}

impl Drop for Doing<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

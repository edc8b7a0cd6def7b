//! Why a mediator was not built.

use std::fmt;

/// Why a mediator was not built: every problem, each with its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildError {
    pub(super) problems: Vec<String>,
}

impl BuildError {
    /// The problems.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the mediator cannot be built: {}", self.problems.join("; "))
    }
}

impl std::error::Error for BuildError {}

//! Expressions: CEL to keep and to route, jq to reshape. Compiled once, run for each item.

mod blame;
mod cel;
mod depth;
mod jq;
mod plain;
mod view;

pub use self::cel::Condition;
pub use self::jq::Mapping;

/// Why an expression does not compile: line and column inside the expression, from 1, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (line {line}, column {column} of the expression)")]
pub struct CompileError {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) message: String,
}

/// Why an expression failed on an item.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ExpressionError(pub(crate) String);

/// Characters of an error that are told: values of the item may be in it, and be as long as the item.
const TOLD: usize = 400;

impl ExpressionError {
    pub(crate) fn bounded(mut text: String) -> Self {
        if let Some((end, _)) = text.char_indices().nth(TOLD) {
            text.truncate(end);
            text.push('…');
        }
        ExpressionError(text)
    }
}

/// Line and column, from 1 and in characters, of byte `offset` of `source`.
fn position(source: &str, offset: usize) -> (usize, usize) {
    let mut end = offset.min(source.len());
    while !source.is_char_boundary(end) {
        end -= 1;
    }
    let before = &source[..end];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

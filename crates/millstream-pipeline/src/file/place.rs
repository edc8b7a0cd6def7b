//! Where something stands: a line and a column of the pipeline file, or a `--set` of the command line.

/// A stretch of one line of the pipeline file or of a `--set` argument. Lines and columns count from 1,
/// columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    /// 0 for the pipeline file, `n` for the `n`-th `--set`.
    pub(crate) origin: u16,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Characters the caret underlines, at least 1.
    pub(crate) length: u32,
}

impl At {
    /// The first character of the file: where a missing top-level key is reported.
    pub(crate) const START: At = At { origin: 0, line: 1, column: 1, length: 1 };
}

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spanned<T> {
    /// The value.
    pub(crate) value: T,
    /// Where it was written.
    pub(crate) at: At,
}

impl<T> Spanned<T> {
    pub(crate) fn new(value: T, at: At) -> Self {
        Spanned { value, at }
    }
}

impl<T> std::ops::Deref for Spanned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// The text that places refer to: the file and the `--set` arguments, kept to show the offending line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Texts {
    pub(crate) file: String,
    pub(crate) source: String,
    pub(crate) sets: Vec<String>,
}

impl Texts {
    /// `flights.yaml:3:5`, or `--set batch.count=0` for an override.
    pub(crate) fn place(&self, at: At) -> String {
        match self.set(at) {
            Some(set) => format!("--set {set}"),
            None => format!("{}:{}:{}", self.file, at.line, at.column),
        }
    }

    /// The line `at` points into, if there is one.
    pub(crate) fn line(&self, at: At) -> Option<&str> {
        match self.set(at) {
            Some(set) => Some(set),
            None => self.source.lines().nth(at.line.saturating_sub(1) as usize),
        }
    }

    fn set(&self, at: At) -> Option<&str> {
        self.sets.get(usize::from(at.origin.checked_sub(1)?)).map(String::as_str)
    }
}

//! What is wrong with a pipeline file: all of it at once, each with its place and its remedy.

use super::place::{At, Texts};
use std::fmt;

/// One thing wrong with a pipeline file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub at: At,
    /// What is wrong, with the value that is wrong in it: a lower-case fragment without a full stop.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
    pub(crate) place: String,
    pub(crate) line: Option<String>,
}

impl fmt::Display for Problem {
    /// Four lines: place and message, the line of the file, a caret under the spot, the remedy.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)?;
        if let Some(line) = &self.line {
            let number = if self.at.origin == 0 { self.at.line.to_string() } else { String::new() };
            let gutter = " ".repeat(number.len());
            let (line, column) = around(line, self.at.column.saturating_sub(1) as usize);
            // Tabs stay tabs under the caret, so that it stands below its character at any tab width.
            let lead: String =
                line.chars().take(column).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let room = line.chars().count().saturating_sub(column).max(1);
            let carets = "^".repeat((self.at.length as usize).clamp(1, room));
            write!(f, "\n  {number} | {line}\n  {gutter} | {lead}{carets}")?;
        }
        write!(f, "\n  = {}", self.remedy)
    }
}

/// Characters of a line that are shown.
const SHOWN: usize = 200;

/// What is shown of a line, around a column from 0, and where in it the column is.
fn around(line: &str, column: usize) -> (String, usize) {
    let length = line.chars().count();
    if length <= SHOWN {
        return (line.to_owned(), column);
    }
    let start = column.saturating_sub(SHOWN / 2).min(length - SHOWN);
    let part = line.chars().skip(start).take(SHOWN);
    let (before, after) = (start > 0, start + SHOWN < length);
    let shown = before.then_some('…').into_iter().chain(part).chain(after.then_some('…')).collect();
    (shown, column - start + usize::from(before))
}

/// Everything that is wrong with a pipeline file, in the order of the file. Never empty when returned as
/// an error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems {
    problems: Vec<Problem>,
}

impl Problems {
    /// The problems, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter()
    }

    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "an error that is empty does not exist")]
    pub fn len(&self) -> usize {
        self.problems.len()
    }

    /// One problem that has no place in the text, such as a file that cannot be read.
    pub(crate) fn of(place: String, message: String, remedy: String) -> Self {
        Problems { problems: vec![Problem { at: At::START, message, remedy, place, line: None }] }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{problem}\n")?;
        }
        match self.problems.len() {
            1 => write!(f, "1 problem"),
            n => write!(f, "{n} problems"),
        }
    }
}

impl std::error::Error for Problems {}

/// Collects problems while a file is checked.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    found: Vec<(At, String, String)>,
    /// Places of values that are not known: the first findings there, which say why, are all there is to say.
    unknown: Vec<At>,
}

impl Findings {
    pub(crate) fn add(&mut self, at: At, message: impl Into<String>, remedy: impl Into<String>) {
        self.found.push((at, message.into(), remedy.into()));
    }

    /// Adds why the value at this place is not known. Whatever else is found wrong with it later follows from that,
    /// and is not told.
    pub(crate) fn add_unknown(&mut self, at: At, message: impl Into<String>, remedy: impl Into<String>) {
        self.unknown.push(at);
        self.add(at, message, remedy);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(crate) fn into_problems(mut self, texts: &Texts) -> Problems {
        // The sort is stable: at one place, why a value is not known was found first.
        self.found.sort_by_key(|(at, ..)| *at);
        self.found.dedup();
        let mut left: Vec<At> = self.unknown.clone();
        self.found.retain(|(at, ..)| match left.iter().position(|unknown| unknown == at) {
            Some(one) => {
                left.swap_remove(one);
                true
            }
            None => !self.unknown.contains(at),
        });
        let problems = self
            .found
            .into_iter()
            .map(|(at, message, remedy)| Problem {
                at,
                message,
                remedy,
                place: texts.place(at),
                line: texts.line(at).map(str::to_owned),
            })
            .collect();
        Problems { problems }
    }
}

/// The entry of `known` nearest to `word`, when near enough to be what was meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    known
        .into_iter()
        .map(|candidate| {
            // Jaro-Winkler finds what begins alike; a swap in a short word (`cvs`) is one edit, yet scores low.
            let one_edit = lower.len() > 2 && strsim::osa_distance(&lower, candidate) <= 1;
            (strsim::jaro_winkler(&lower, candidate).max(if one_edit { 0.9 } else { 0.0 }), candidate)
        })
        .filter(|(score, _)| *score >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// `a`, `b` or `c`, for remedies.
pub(crate) fn one_of<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

//! The pipeline file: its tree, its shape, what is wrong with it, and what it means.

mod apart;
pub(crate) mod check;
pub(crate) mod draft;
pub(crate) mod model;
pub(crate) mod place;
pub(crate) mod problem;
pub(crate) mod rules;
pub(crate) mod schema;
pub(crate) mod shape;
pub(crate) mod template;
pub(crate) mod topology;
pub(crate) mod tree;
pub(crate) mod units;
pub(crate) mod url;
pub(crate) mod weave;

use self::model::{Buffer, Draft, OutputKind, Source};
use self::place::{At, Spanned, Texts};
use self::problem::{Findings, Problems};
use self::template::Template;
use crate::handlers::Handlers;
use std::path::{Path, PathBuf};

/// The largest file that is read.
const FILE_MAX: u64 = 1 << 20;

/// A pipeline file that has been checked: it parses, its settings agree, its expressions compile.
///
/// # Examples
///
/// ```
/// use millstream_pipeline::Pipeline;
///
/// let problems = Pipeline::parse("demo.yaml", "name: demo\nsource: { stdin: { format: ndjson } }\noutptu: { stdout: }")
///     .expect_err("two problems");
/// let text = problems.to_string();
/// assert!(text.contains("demo.yaml:3:1: unknown key `outptu`"));
/// assert!(text.contains("did you mean `output`?"));
/// assert!(text.contains("lacks `output`"));
/// ```
#[derive(Debug)]
pub struct Pipeline {
    pub(crate) draft: Draft,
    pub(crate) base: PathBuf,
    pub(crate) file: PathBuf,
}

impl Pipeline {
    /// Reads and checks a pipeline file. `overrides` are `KEY=VALUE` with dotted keys, as of `--set`;
    /// `${NAME}` takes its value from the process's environment.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the file, each with its place and its remedy.
    pub fn open(file: &Path, overrides: &[String]) -> Result<Self, Problems> {
        Self::open_with(file, overrides, &Handlers::new())
    }

    /// As [`open`](Self::open), for files whose `send` steps call these handlers.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open); a `send` to a name that is none of theirs is wrong too.
    pub fn open_with(file: &Path, overrides: &[String], handlers: &Handlers) -> Result<Self, Problems> {
        let source = read(file)?;
        let base = file.parent().unwrap_or(Path::new("")).to_owned();
        let environment = |name: &str| std::env::var_os(name);
        Self::check(file.to_owned(), base, source, overrides, &environment, handlers)
    }

    /// Checks the text of a pipeline file. Relative paths start from the current directory, `name` stands
    /// in messages, and the environment is empty.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the text.
    pub fn parse(name: &str, source: &str) -> Result<Self, Problems> {
        Self::parse_with(name, source, &Handlers::new())
    }

    /// As [`parse`](Self::parse), for texts whose `send` steps call these handlers.
    ///
    /// # Errors
    ///
    /// As [`open_with`](Self::open_with).
    pub fn parse_with(name: &str, source: &str, handlers: &Handlers) -> Result<Self, Problems> {
        Self::check(PathBuf::from(name), PathBuf::new(), source.to_owned(), &[], &|_| None, handlers)
    }

    /// The one check that `lint` and `run` share.
    pub(crate) fn check(
        file: PathBuf,
        base: PathBuf,
        source: String,
        overrides: &[String],
        environment: weave::Environment<'_>,
        handlers: &Handlers,
    ) -> Result<Self, Problems> {
        let mut findings = Findings::default();
        let texts = Texts { file: file.display().to_string(), source, sets: overrides.to_vec() };
        let Some(mut root) = tree::read(&texts.source, 0, &mut findings) else {
            if findings.is_empty() {
                findings.add(At::START, "the file is empty", "begin with `name:`, `source:` and `output:`");
            }
            return Err(findings.into_problems(&texts));
        };
        for (index, argument) in overrides.iter().enumerate() {
            weave::set(&mut root, argument, index as u16 + 1, &mut findings);
        }
        weave::interpolate(&mut root, environment, &mut findings);
        check::object(&root, &shape::PIPELINE, "the pipeline", &mut findings);
        let mut drafter =
            draft::Drafter { base: &base, source: &texts.source, handlers, findings: &mut findings };
        let draft = drafter.draft(&root);
        rules::all(&draft, &mut findings);
        let bound = crate::bound::memory(&draft);
        if let Some(goal) = draft.goals.memory.as_ref().filter(|goal| goal.value < bound) {
            let (goal, bound, at) = (units::show_size(goal.value), units::show_size(bound), goal.at);
            findings.add(
                at,
                format!("the pipeline may hold {bound}, more than `goals.memory` {goal}"),
                "lower `prefetch_bytes`, `buffer.memory.bytes`, `batch.bytes` or `max_line`, or raise the goal",
            );
        }
        if findings.is_empty() {
            Ok(Pipeline { draft, base, file })
        } else {
            Err(findings.into_problems(&texts))
        }
    }

    /// The pipeline's name.
    pub fn name(&self) -> &str {
        &self.draft.name
    }

    /// The most bytes that the items of a run hold at once: every buffer, batch and line being read.
    pub fn memory_bound_bytes(&self) -> u64 {
        crate::bound::memory(&self.draft)
    }

    /// Whether its items come from standard input, which one pipeline of a process can have.
    pub fn reads_stdin(&self) -> bool {
        matches!(self.source().value, Source::Stdin { .. })
    }

    /// The name of the queue that is the buffer of both, if it is: each would get some of the other's items.
    pub fn buffer_shared_with(&self, other: &Pipeline) -> Option<&str> {
        match (&self.draft.buffer.value, &other.draft.buffer.value) {
            (Buffer::Queue { queue: ours, .. }, Buffer::Queue { queue: theirs, .. })
                if (&ours.broker, &ours.name.value) == (&theirs.broker, &theirs.name.value) =>
            {
                Some(&ours.name.value)
            }
            _ => None,
        }
    }

    /// The path, as this file writes it, of an output that can be the same file as one of `other`'s. Two that run side by
    /// side would be refused it when they start.
    pub fn output_shared_with(&self, other: &Pipeline) -> Option<&str> {
        let theirs: Vec<Template> = other.paths().map(Template::of_absolute_root).collect();
        let shared = self.paths().find(|ours| {
            let ours = ours.of_absolute_root();
            theirs.iter().any(|theirs| theirs.overlaps(&ours))
        });
        shared.map(Template::source)
    }

    /// Where it writes files.
    fn paths(&self) -> impl Iterator<Item = &Template> {
        self.draft.outputs.iter().filter_map(|output| match &output.kind {
            OutputKind::File(file) => Some(&file.path.value),
            _ => None,
        })
    }

    pub(crate) fn source(&self) -> &Spanned<Source> {
        self.draft.source.as_ref().expect("a checked pipeline has a source: the shape requires it")
    }
}

/// The text of a file.
fn read(file: &Path) -> Result<String, Problems> {
    let place = file.display().to_string();
    let unreadable = |message: String, remedy: &str| Problems::of(place.clone(), message, remedy.to_owned());
    let length = std::fs::metadata(file).map_err(|error| {
        unreadable(format!("cannot be read: {error}"), "check the path, and that you may read the file")
    })?;
    if length.len() > FILE_MAX {
        return Err(unreadable(
            format!("has {} bytes; {FILE_MAX} is the most", length.len()),
            "such a file is a page or two; check that this is one",
        ));
    }
    let source = std::fs::read(file).map_err(|error| {
        unreadable(format!("cannot be read: {error}"), "check the path, and that you may read the file")
    })?;
    String::from_utf8(source).map_err(|error| {
        let line =
            error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        unreadable(format!("is not UTF-8 on line {}", line + 1), "save the file as UTF-8")
    })
}

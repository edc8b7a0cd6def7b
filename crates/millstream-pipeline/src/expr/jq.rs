//! jq programs that turn one item into one item.

use super::depth;
use super::plain::Plain;
use super::{CompileError, ExpressionError, position};
use crate::value::Value;
use jaq_core::data::JustLut;
use jaq_core::load::{Arena, File, Loader};
use jaq_core::{Compiler, Ctx, Filter, Vars};

type Data = JustLut<Value>;

/// Definitions beside jaq's.
const MORE: &str = include_str!("more.jq");

/// A compiled jq program. Cloning is not needed: it can be shared between threads.
pub struct Mapping {
    filter: Filter<Data>,
    plain: Option<Plain>,
}

impl Mapping {
    /// Compiles a jq program.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with its place.
    pub fn compile(source: &str) -> Result<Self, CompileError> {
        let compiled = Self::compile_only(source)?;
        Ok(Mapping { plain: Plain::of(source), ..compiled })
    }

    /// Compiles for jq alone.
    pub(super) fn compile_only(source: &str) -> Result<Self, CompileError> {
        let mapping = Self::compile_as(source)?;
        // With places as they are in the source; what runs has its functions checked.
        Ok(match depth::checked(source) {
            Some(checked) => Self::compile_as(&checked)?,
            None => mapping,
        })
    }

    fn compile_as(source: &str) -> Result<Self, CompileError> {
        let more = jaq_core::load::parse(MORE, |parser| parser.defs()).expect("they parse");
        let defs = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs()).chain(more);
        let funs = jaq_core::funs::<Data>().chain(jaq_std::funs::<Data>()).chain(depth::funs::<Data>());
        let arena = Arena::default();
        let modules = Loader::new(defs)
            .load(&arena, File { path: (), code: source })
            .map_err(|errors| first_load_error(source, errors))?;
        let filter = Compiler::default().with_funs(funs).compile(modules).map_err(|errors| {
            let undefined = errors.into_iter().flat_map(|(_, errors)| errors).next();
            match undefined {
                Some((name, kind)) => at(source, name, format!("unknown {} `{name}`", kind.as_str())),
                None => at(source, source, "does not compile".to_owned()),
            }
        })?;
        Ok(Mapping { filter, plain: None })
    }

    /// Runs the program on one value. `None` when it gives `empty`.
    ///
    /// # Errors
    ///
    /// The program's error, or more than one value: an item in is at most an item out.
    pub fn apply(&self, value: Value) -> Result<Option<Value>, ExpressionError> {
        match self.plain.as_ref().and_then(|plain| plain.value(&value)) {
            Some(value) => Ok(Some(value)),
            None => self.run(value),
        }
    }

    /// Runs jq on one value.
    pub(super) fn run(&self, value: Value) -> Result<Option<Value>, ExpressionError> {
        depth::begin();
        let context = Ctx::<Data>::new(&self.filter.lut, Vars::new([]));
        let mut values = self.filter.id.run((context, value));
        let first = match values.next() {
            None => return Ok(None),
            Some(first) => first.map_err(explain)?,
        };
        match values.next() {
            None => depth::bounded(first).map(Some),
            Some(Err(error)) => Err(explain(error)),
            Some(Ok(_)) => Err(ExpressionError(
                "gave more than one value for one item; wrap the program in [ ] to make them a list"
                    .to_owned(),
            )),
        }
    }
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mapping")
    }
}

fn explain(exception: jaq_core::Exn<'_, Value>) -> ExpressionError {
    ExpressionError::bounded(match exception.get_err() {
        // `error("text")` says it as it is; jq itself would print it quoted.
        Ok(error) => match error.into_val() {
            Value::TStr(text) => String::from_utf8_lossy(&text).into_owned(),
            other => other.to_string(),
        },
        Err(_) => depth::ended().unwrap_or("the program halted; `error` fails one item").to_owned(),
    })
}

fn at(source: &str, part: &str, message: String) -> CompileError {
    let start = (part.as_ptr() as usize).wrapping_sub(source.as_ptr() as usize);
    // A name from jq's own definitions does not lie inside the source.
    let offset = if start <= source.len() { start } else { 0 };
    let (line, column) = position(source, offset);
    CompileError { line, column, message }
}

fn first_load_error(source: &str, errors: jaq_core::load::Errors<&str, ()>) -> CompileError {
    use jaq_core::load::Error;
    let show = |found: &str| match found.split_whitespace().next() {
        Some(word) => format!("`{word}`"),
        None => "the end".to_owned(),
    };
    match errors.into_iter().map(|(_, error)| error).next() {
        Some(Error::Lex(errors)) => match errors.into_iter().next() {
            Some((expected, found)) => {
                at(source, found, format!("expected {} but found {}", expected.as_str(), show(found)))
            }
            None => at(source, source, "does not parse".to_owned()),
        },
        Some(Error::Parse(errors)) => match errors.into_iter().next() {
            Some((expected, found)) => {
                at(source, found, format!("expected {} but found {}", expected.as_str(), show(found)))
            }
            None => at(source, source, "does not parse".to_owned()),
        },
        Some(Error::Io(_)) => at(source, source, "imports other modules, which a pipeline cannot".to_owned()),
        None => at(source, source, "does not parse".to_owned()),
    }
}

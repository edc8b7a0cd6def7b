//! Offline tests: items in, what should become of them, and no source or output touched.

use crate::feed::text_items;
use crate::file::Pipeline;
use crate::file::check;
use crate::file::model::{Draft, Step};
use crate::file::place::{At, Texts};
use crate::file::problem::{Findings, Problems};
use crate::file::shape::CASES;
use crate::file::tree::{self, Data, Node, Style};
use crate::item::{Raw, Reporter};
use crate::output::ROUTE;
use crate::ready::Writer;
use crate::steps::{Passing, Router, Simple};
use crate::trouble::Trouble;
use crate::value::{self, Map, Num, Value};
use millstream_flow::Clock;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the cases of a test file went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tested {
    /// Names of the cases that went as expected.
    pub passed: Vec<String>,
    /// The others.
    pub failed: Vec<FailedCase>,
}

/// A case that did not go as expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedCase {
    /// Its name.
    pub name: String,
    /// Where it stands, as `file:line`.
    pub place: String,
    /// What differs, a sentence each.
    pub differences: Vec<String>,
}

struct Case {
    name: String,
    at: At,
    items: Vec<Raw>,
    output: Vec<Value>,
    dropped: BTreeMap<String, u64>,
    dead: Vec<Dead>,
}

/// An item that is expected to fail: at this step, with a reason that holds these words.
struct Dead {
    stage: Option<String>,
    reason: Option<String>,
}

/// What the steps made of a case's items.
#[derive(Default)]
struct Made {
    output: Vec<Value>,
    dropped: BTreeMap<String, u64>,
    dead: Vec<(String, String)>,
}

impl Pipeline {
    /// The file with the cases of `pipeline.yaml`: `pipeline.test.yaml` beside it.
    pub fn cases_file(&self) -> PathBuf {
        let stem = self.file.file_stem().unwrap_or_default().to_string_lossy();
        self.file.with_file_name(format!("{stem}.test.yaml"))
    }

    /// Runs the cases in `file` through the pipeline's steps.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the file of cases.
    pub fn test(&self, file: &Path) -> Result<Tested, Problems> {
        let place = file.display().to_string();
        let source = std::fs::read_to_string(file).map_err(|error| {
            let remedy = "write the cases into that file; `docs/pipeline.md` shows how";
            Problems::of(place.clone(), format!("cannot be read: {error}"), remedy.to_owned())
        })?;
        let mut findings = Findings::default();
        let texts = Texts { file: place.clone(), source, sets: Vec::new() };
        let cases = match tree::read(&texts.source, 0, &mut findings) {
            Some(root) => {
                check::object(&root, &CASES, "the test file", &mut findings);
                self.cases(&root, &mut findings)
            }
            None => Vec::new(),
        };
        if cases.is_empty() && findings.is_empty() {
            findings.add(At::START, "there is no case in the file", "add `cases:` with at least one");
        }
        if let Some(Step::Send { request, .. }) =
            self.draft.steps.iter().find(|step| matches!(step, Step::Send { .. }))
        {
            findings.add(
                At::START,
                format!("the pipeline sends items to `{}`, and these tests call no handlers", request.value),
                "test the handler in its program, and the pipeline by running it there",
            );
        }
        if !findings.is_empty() {
            return Err(findings.into_problems(&texts));
        }
        let mut tested = Tested { passed: Vec::new(), failed: Vec::new() };
        for case in cases {
            let differences = case.differences(&self.apply(&case.items));
            if differences.is_empty() {
                tested.passed.push(case.name);
            } else {
                let place = format!("{place}:{}", case.at.line);
                tested.failed.push(FailedCase { name: case.name, place, differences });
            }
        }
        Ok(tested)
    }

    fn cases(&self, root: &Node, findings: &mut Findings) -> Vec<Case> {
        let cases = root.get("cases").map(Node::items).unwrap_or_default();
        cases.iter().filter_map(|node| self.case(node, findings)).collect()
    }

    fn case(&self, node: &Node, findings: &mut Findings) -> Option<Case> {
        let name = node.get("name")?.text()?.to_owned();
        let items = match (node.get("items"), node.get("text")) {
            (Some(items), None) => {
                items.items().iter().map(|item| Raw::Value(value_of(item), None)).collect()
            }
            (None, Some(text)) => text_items(self.source(), text.text()?).unwrap_or_else(|error| {
                findings.add(text.at, error.to_string(), "give `text` as the source would read it");
                Vec::new()
            }),
            _ => {
                let remedy =
                    "give the items as values under `items`, or as the source reads them under `text`";
                findings.add(node.at, format!("case `{name}` must have `items` or `text`"), remedy);
                return None;
            }
        };
        let dropped =
            node.get("dropped").map(Node::entries).unwrap_or_default().iter().filter_map(|(key, count)| {
                let number = count.text().and_then(|text| text.parse().ok());
                if number.is_none() {
                    findings.add(
                        count.at,
                        format!("`{}` is {}", key.name, count.describe()),
                        "write how many items it drops",
                    );
                }
                Some((key.name.clone(), number?))
            });
        Some(Case {
            dropped: dropped.collect(),
            at: node.at,
            items,
            output: node.get("output").map(Node::items).unwrap_or_default().iter().map(value_of).collect(),
            dead: node.get("dead").map(Node::items).unwrap_or_default().iter().map(Dead::of).collect(),
            name,
        })
    }

    /// Runs items through the steps, one after the other.
    fn apply(&self, items: &[Raw]) -> Made {
        let draft = &self.draft;
        let clock = Clock::system();
        let trouble = Arc::new(Trouble::new(None, clock));
        let reporter = Arc::new(Reporter { clock, trouble, show_place: false });
        let mut steps = Vec::new();
        flatten(&draft.steps, &reporter, &mut steps);
        let router = draft.route.as_ref().map(|route| Router::new(route, &draft.outputs, &reporter));
        let mut writers: Vec<Writer> =
            draft.outputs.iter().map(|output| Writer::new(output, &draft.batch, usize::MAX)).collect();
        let read: Arc<str> = "read".into();
        let mut made = Made::default();
        for item in items {
            let mut passing: Option<Passing> = Some(item.clone().read(&read, &reporter));
            for step in &steps {
                passing =
                    passing.and_then(|passing| step.apply(passing).or_else(|| made.drop_by(&step.name)));
            }
            if let Some(router) = &router {
                passing = passing.and_then(|passing| router.apply(passing).or_else(|| made.drop_by(ROUTE)));
            }
            match passing {
                None => {}
                Some(Err(failure)) => made.dead.push((failure.stage.to_string(), failure.error.to_string())),
                Some(Ok(record)) => match writers[record.output].write(&record, false) {
                    Ok(_) => made.output.push(shown(record.value, record.output, draft)),
                    Err(reason) => made.dead.push((draft.outputs[record.output].name.value.clone(), reason)),
                },
            }
        }
        made
    }
}

impl Made {
    fn drop_by(&mut self, name: &str) -> Option<Passing> {
        *self.dropped.entry(name.to_owned()).or_default() += 1;
        None
    }
}

/// With several outputs, a case expects `{output: NAME, item: …}`.
fn shown(value: Value, output: usize, draft: &Draft) -> Value {
    if draft.named.is_none() {
        return value;
    }
    let mut map = Map::default();
    map.insert(value::text("output"), value::text(&draft.outputs[output].name.value));
    map.insert(value::text("item"), value);
    Value::obj(map)
}

fn flatten(steps: &[Step], reporter: &Arc<Reporter>, into: &mut Vec<Simple>) {
    for step in steps {
        match step {
            Step::Parallel { steps, .. } => flatten(steps, reporter, into),
            simple => into.extend(Simple::of(simple, reporter)),
        }
    }
}

impl Dead {
    fn of(node: &Node) -> Self {
        let text = |key| node.get(key).and_then(Node::text).map(str::to_owned);
        Dead { stage: text("stage"), reason: text("reason").or_else(|| node.text().map(str::to_owned)) }
    }

    fn matches(&self, (stage, reason): &(String, String)) -> bool {
        self.stage.as_ref().is_none_or(|expected| expected == stage)
            && self.reason.as_ref().is_none_or(|expected| reason.contains(expected.as_str()))
    }
}

impl Case {
    fn differences(&self, made: &Made) -> Vec<String> {
        let mut differences = Vec::new();
        for index in 0..self.output.len().max(made.output.len()) {
            let number = index + 1;
            match (self.output.get(index), made.output.get(index)) {
                (Some(expected), Some(made)) if expected == made => {}
                (Some(expected), Some(made)) => {
                    differences.push(format!(
                        "item {number} of the output is {}, expected {}",
                        json(made),
                        json(expected)
                    ));
                }
                (Some(expected), None) => {
                    differences.push(format!("item {number} of the output is missing: {}", json(expected)))
                }
                (None, Some(made)) => {
                    differences.push(format!("item {number} of the output is not expected: {}", json(made)))
                }
                (None, None) => {}
            }
        }
        let names: std::collections::BTreeSet<&String> =
            self.dropped.keys().chain(made.dropped.keys()).collect();
        for name in names {
            let (expected, dropped) =
                (self.dropped.get(name).copied().unwrap_or(0), made.dropped.get(name).copied().unwrap_or(0));
            if expected != dropped {
                differences.push(format!("`{name}` dropped {dropped}, expected {expected}"));
            }
        }
        for index in 0..self.dead.len().max(made.dead.len()) {
            match (self.dead.get(index), made.dead.get(index)) {
                (Some(expected), Some(dead)) if expected.matches(dead) => {}
                (None, Some((stage, reason))) => {
                    differences.push(format!("an item failed at `{stage}`: {reason}"))
                }
                (Some(expected), made) => {
                    let (stage, reason) = (
                        expected.stage.as_deref().unwrap_or("any step"),
                        expected.reason.as_deref().unwrap_or("any reason"),
                    );
                    let made = made.map_or("none did".to_owned(), |(stage, reason)| {
                        format!("it failed at `{stage}` with \"{reason}\"")
                    });
                    differences.push(format!("an item should fail at `{stage}` with \"{reason}\"; {made}"));
                }
                (None, None) => {}
            }
        }
        differences
    }
}

fn json(value: &Value) -> String {
    let mut out = Vec::new();
    value::write_json(&mut out, value);
    String::from_utf8_lossy(&out).into_owned()
}

/// A YAML node as a value, by YAML's core rules: quoted scalars are text, plain ones what they look like.
fn value_of(node: &Node) -> Value {
    match &node.data {
        Data::List(items) => Value::Arr(items.iter().map(value_of).collect::<Vec<_>>().into()),
        Data::Map(entries) => {
            Value::obj(entries.iter().map(|(key, node)| (value::text(&key.name), value_of(node))).collect())
        }
        Data::Scalar { text, style: Style::Plain } => match text.as_str() {
            "" | "~" | "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            text => match text.parse::<i64>() {
                Ok(int) => Value::Num(Num::from_integral(int)),
                Err(_) => match text.parse::<f64>() {
                    Ok(float) if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
                        Value::Num(Num::Float(float))
                    }
                    _ => value::text(text),
                },
            },
        },
        Data::Scalar { text, .. } => value::text(text),
    }
}

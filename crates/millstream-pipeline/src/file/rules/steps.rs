//! Rules of steps.

use super::super::model::*;
use super::super::place::At;
use super::super::problem::{Findings, nearest, one_of};
use crate::output::{ROUTE, SKIPPED};
use std::collections::HashMap;

pub(super) fn all(draft: &Draft, findings: &mut Findings) {
    names(&draft.steps, &mut HashMap::new(), findings);
    reserved_names(&draft.steps, draft.route.is_some(), findings);
    parallel(&draft.steps, findings);
    constant_filters(&draft.steps, findings);
    routes(draft, findings);
}

/// The ledger counts by name, so two filters of one name could not be told apart.
fn names<'d>(steps: &'d [Step], seen: &mut HashMap<&'d str, At>, findings: &mut Findings) {
    for step in steps {
        match step {
            Step::Filter { name, .. } => {
                if let Some(first) = seen.insert(&name.value, name.at) {
                    findings.add(
                        name.at,
                        format!(
                            "two filters are named `{}`; the first is on line {}",
                            name.value, first.line
                        ),
                        "give each its own name: the report counts what they drop by name",
                    );
                }
            }
            Step::Parallel { steps, .. } => names(steps, seen, findings),
            _ => {}
        }
    }
}

/// The ledger has names of its own for what `on_error: skip` and a route drop.
fn reserved_names(steps: &[Step], routed: bool, findings: &mut Findings) {
    for step in steps {
        match step {
            Step::Filter { name, .. } | Step::Map { name, .. } | Step::Send { name, .. } => {
                let what = match name.value.as_str() {
                    SKIPPED => "items that `on_error: skip` drops",
                    ROUTE if routed => "items that the `route` drops",
                    _ => continue,
                };
                findings.add(
                    name.at,
                    format!("`{}` is what the report calls {what}", name.value),
                    "choose another name: the report counts what is dropped by name",
                );
            }
            Step::Parallel { steps, .. } => reserved_names(steps, routed, findings),
            Step::Misplaced { .. } => {}
        }
    }
}

fn parallel(steps: &[Step], findings: &mut Findings) {
    for step in steps {
        if let Step::Parallel { workers: Setting { value: Some(1), at: Some(at) }, .. } = step {
            findings.add(
                *at,
                "`parallel` with one worker has no effect",
                "use `auto` or a larger number, or take the steps out of `parallel`",
            );
        }
    }
}

fn constant_filters(steps: &[Step], findings: &mut Findings) {
    for step in steps {
        match step {
            Step::Filter { name, keep } => {
                if let Some(always) = keep.constant() {
                    let what = if always { "keeps every item" } else { "drops every item" };
                    findings.add(
                        name.at,
                        format!("filter `{}` {what}, whatever the item", name.value),
                        "compare a field, or take the filter out",
                    );
                }
            }
            Step::Parallel { steps, .. } => constant_filters(steps, findings),
            _ => {}
        }
    }
}

fn routes(draft: &Draft, findings: &mut Findings) {
    for step in &draft.steps {
        if let Step::Misplaced { at } = step {
            findings.add(
                *at,
                "`route` is not the last step",
                "move it to the end of `process`: behind it items are already on their way out",
            );
        }
    }
    match (&draft.route, draft.named) {
        (None, Some(at)) => findings.add(
            at,
            "`output.named` without a `route` that chooses among them",
            "end `process` with a `route` step, or keep one output without `named`",
        ),
        (Some(route), None) if !draft.outputs.is_empty() => findings.add(
            route.at,
            "`route` has no outputs to choose from",
            "put the outputs under `output.named`, each with its name",
        ),
        (Some(route), Some(_)) => {
            let names: Vec<&str> = draft.outputs.iter().map(|output| output.name.value.as_str()).collect();
            let targets = route.cases.iter().map(|(_, to)| to).chain([&route.otherwise]);
            for target in targets.clone() {
                let dropping = std::ptr::eq(target, &route.otherwise) && target.value == "drop";
                if !dropping && !names.contains(&target.value.as_str()) {
                    let remedy = match nearest(&target.value, names.iter().copied()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("known under `output.named`: {}", one_of(names.iter().copied())),
                    };
                    findings.add(target.at, format!("no output is named `{}`", target.value), remedy);
                }
            }
            for output in &draft.outputs {
                if !targets.clone().any(|target| target.value == output.name.value) {
                    findings.add(
                        output.name.at,
                        format!("output `{}` is never routed to", output.name.value),
                        "add a case for it to `route`, or take it out",
                    );
                }
            }
        }
        _ => {}
    }
}

//! What a reader sees: one line a goal, and the same as JSON.

use std::io::{Write, stdout};

use serde_json::json;

use crate::case::{Bound, Case, Goal, NS, Role, Scale};
use crate::machine::Machine;
use crate::runner::{Measured, Measurements};

/// Prints a line. A reader that has gone away (`| head`) ends the table, not the run.
fn line(text: &str) {
    let mut out = stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

pub(crate) fn list(cases: &[Case]) {
    for case in cases {
        let contestants: Vec<_> = case.contestants.iter().map(|contestant| contestant.name).collect();
        line(&format!("{}: {}", case.name, contestants.join(", ")));
    }
}

pub(crate) fn heading(section: &str, machine: &Machine, rounds: u32, scale: Scale) {
    let Machine { cpu, cores, memory_gib, kernel, rustc, load } = machine;
    line(&format!("# {section}\n"));
    line(&format!("{cpu}, {cores} cores, {memory_gib} GiB, Linux {kernel}, {rustc}; load before {load}; "));
    line(&format!(
        "{rounds} rounds in turns, every contestant in a process of its own, size `{}`; a figure is the median of \
         the rounds' own ratios, the spread the middle half of them.\n",
        scale.name()
    ));
    line("| case | floor | best peer | ours | figure | goal | | spread | others' load |");
    line("|---|---|---|---|---|---|---|---|---|");
}

/// The middle of `values`, and half the width of their middle half relative to it.
fn middle(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let place = part * (values.len() - 1) as f64;
        let (low, high) = (values[place.floor() as usize], values[place.ceil() as usize]);
        low + (high - low) * place.fract()
    };
    if values.is_empty() {
        return None;
    }
    let median = at(0.5);
    Some((median, if median == 0.0 { 0.0 } else { (at(0.75) - at(0.25)) / 2.0 / median }))
}

fn median(measured: &Measured, metric: &str) -> Option<f64> {
    let values = measured.rounds.iter().filter_map(|round| round.get(metric).copied()).collect();
    middle(values).map(|(median, _)| median)
}

/// Three significant digits, with the thousands that people say.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 1e6 => format!("{:.2} M", value / 1e6),
        size if size >= 1e4 => format!("{:.0} k", value / 1e3),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.001 => format!("{value:.2}"),
        _ => format!("{value:.5}"),
    }
}

/// What a goal came to.
pub(crate) struct Verdict {
    pub(crate) figure: f64,
    pub(crate) spread: f64,
    pub(crate) met: bool,
}

/// The median, over the rounds, of the figure that each round gives by itself.
fn judge(goal: &Goal, results: &Measurements) -> Option<Verdict> {
    let ours = ours(results)?;
    let value = |measured: &Measured, round: usize| {
        measured.rounds.get(round).and_then(|round| round.get(goal.metric).copied())
    };
    let other = match goal.bound.other() {
        Some(name) => Some(results.of(name)?),
        None => None,
    };
    let figures = (0..ours.rounds.len())
        .filter_map(|round| {
            let other = other.map_or(Some(f64::NAN), |other| value(other, round))?;
            Some(goal.bound.figure(value(ours, round)?, other))
        })
        .collect();
    let (figure, spread) = middle(figures)?;
    Some(Verdict { figure, spread, met: goal.bound.is_met(figure) })
}

fn ours(results: &Measurements) -> Option<&Measured> {
    results.contestants.iter().find(|measured| measured.role == Role::Ours)
}

fn is_rate(goal: &Goal) -> bool {
    matches!(goal.bound, Bound::RateOf(..) | Bound::AtLeast(_))
}

/// The best of a role by a goal's metric, as text.
fn best(goal: &Goal, results: &Measurements, role: Role) -> String {
    let mut values: Vec<_> = results
        .contestants
        .iter()
        .filter(|measured| measured.role == role)
        .filter_map(|measured| Some((median(measured, goal.metric)?, measured.name)))
        .collect();
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let best = if is_rate(goal) { values.last() } else { values.first() };
    best.map_or("–".to_owned(), |(value, name)| format!("{name} {}", number(*value)))
}

fn goal_text(goal: &Goal) -> String {
    let bound = match goal.bound {
        Bound::TimesAtMost(limit, other) => format!("≤ {} × {other}", number(limit)),
        Bound::TimesFaster(limit, other) => format!("≥ {} × faster than {other}", number(limit)),
        Bound::RateOf(limit, other) => format!("≥ {} × {other}", number(limit)),
        Bound::AtMost(limit) => format!("≤ {}", number(limit)),
        Bound::AtLeast(limit) => format!("≥ {}", number(limit)),
    };
    if goal.note.is_empty() { bound } else { format!("{bound} ({})", goal.note) }
}

fn figure_text(goal: &Goal, verdict: &Verdict) -> String {
    match goal.bound {
        Bound::AtMost(_) | Bound::AtLeast(_) => number(verdict.figure),
        _ => format!("{} ×", number(verdict.figure)),
    }
}

pub(crate) fn rows(case: &Case, results: &Measurements) {
    for (at, goal) in case.goals.iter().enumerate() {
        let name = if at == 0 { case.name } else { "" };
        let metric = if goal.metric == NS { String::new() } else { format!(" {}", goal.metric) };
        let ours = ours(results);
        let value = ours.and_then(|ours| median(ours, goal.metric)).map_or("–".to_owned(), number);
        let (figure, met, spread) = match judge(goal, results) {
            Some(verdict) => (
                figure_text(goal, &verdict),
                if verdict.met { "met" } else { "**missed**" },
                format!("± {:.0} %", verdict.spread * 100.0),
            ),
            None => ("–".to_owned(), "not measured", "–".to_owned()),
        };
        line(&format!(
            "| {name}{metric} | {} | {} | {value} | {figure} | {} | {met} | {spread} | {:.1} |",
            best(goal, results, Role::Floor),
            best(goal, results, Role::Peer),
            goal_text(goal),
            results.foreign_cores,
        ));
    }
}

pub(crate) fn summary(measured: &[(&Case, Measurements)]) {
    let (mut met, mut missed, mut absent) = (0, Vec::new(), Vec::new());
    for (case, results) in measured {
        for goal in &case.goals {
            match judge(goal, results) {
                Some(verdict) if verdict.met => met += 1,
                Some(verdict) => missed.push(format!(
                    "- {}{}: {}, goal {}",
                    case.name,
                    if goal.metric == NS { String::new() } else { format!(", {}", goal.metric) },
                    figure_text(goal, &verdict),
                    goal_text(goal)
                )),
                None => absent.push(format!("- {}: {}", case.name, goal_text(goal))),
            }
        }
    }
    line(&format!("\n{met} goals met, {} missed, {} not measured.", missed.len(), absent.len()));
    for (title, lines) in [("Missed:", &missed), ("Not measured:", &absent)] {
        if !lines.is_empty() {
            line(&format!("\n{title}\n{}", lines.join("\n")));
        }
    }
    line("\nAll contestants (medians):");
    for (case, results) in measured {
        let mut metrics: Vec<&str> = case.goals.iter().map(|goal| goal.metric).collect();
        metrics.sort_unstable();
        metrics.dedup();
        for metric in metrics {
            let values: Vec<_> = results
                .contestants
                .iter()
                .filter_map(|measured| Some((measured.name, median(measured, metric)?)))
                .map(|(name, value)| format!("{name} {}", number(value)))
                .collect();
            line(&format!("- {} [{metric}]: {}", case.name, values.join(", ")));
        }
        if !case.remark.is_empty() {
            line(&format!("  {}", case.remark));
        }
        for measured in &results.contestants {
            if let Some(why) = &measured.absent {
                line(&format!("  {} left out: {why}", measured.name));
            }
        }
    }
}

pub(crate) fn json(
    section: &str,
    machine: &Machine,
    rounds: u32,
    scale: Scale,
    measured: &[(&Case, Measurements)],
) -> String {
    let cases: Vec<_> = measured
        .iter()
        .map(|(case, results)| {
            let goals: Vec<_> = case
                .goals
                .iter()
                .map(|goal| {
                    let verdict = judge(goal, results);
                    json!({
                        "metric": goal.metric,
                        "goal": goal_text(goal),
                        "figure": verdict.as_ref().map(|verdict| verdict.figure),
                        "spread": verdict.as_ref().map(|verdict| verdict.spread),
                        "met": verdict.as_ref().map(|verdict| verdict.met),
                    })
                })
                .collect();
            json!({ "case": case.name, "remark": case.remark, "goals": goals, "measured": results })
        })
        .collect();
    let all = json!({
        "section": section, "machine": machine, "rounds": rounds, "scale": scale.name(), "cases": cases,
    });
    format!("{all:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn measured(name: &'static str, role: Role, values: &[f64]) -> Measured {
        let rounds = values.iter().map(|value| BTreeMap::from([(NS.to_owned(), *value)])).collect();
        Measured { name, role, rounds, absent: None }
    }

    fn verdict(bound: Bound, ours: &[f64], other: &[f64]) -> Verdict {
        let contestants = vec![measured("ours", Role::Ours, ours), measured("peer", Role::Peer, other)];
        let results = Measurements { contestants, foreign_cores: 0.0 };
        judge(&Goal { metric: NS, bound, note: "" }, &results).expect("both were measured")
    }

    #[test]
    fn a_figure_is_the_median_of_the_rounds_own_ratios() {
        // The second round ran on a machine at half speed; its ratio is none the worse.
        let verdict = verdict(Bound::TimesAtMost(2.0, "peer"), &[3.0, 6.0, 5.0], &[2.0, 4.0, 2.0]);
        assert_eq!((verdict.figure, verdict.met), (1.5, true));
    }

    #[test]
    fn every_bound_is_judged_in_its_own_direction() {
        assert!(verdict(Bound::TimesFaster(4.0, "peer"), &[1.0], &[4.0]).met);
        assert!(!verdict(Bound::TimesFaster(4.0, "peer"), &[1.1], &[4.0]).met);
        assert!(verdict(Bound::RateOf(0.85, "peer"), &[90.0], &[100.0]).met);
        assert!(!verdict(Bound::RateOf(0.85, "peer"), &[80.0], &[100.0]).met);
        assert!(!verdict(Bound::TimesAtMost(1.2, "peer"), &[1.3], &[1.0]).met);
        assert!(verdict(Bound::AtMost(5.0), &[5.0], &[1.0]).met);
        assert!(!verdict(Bound::AtLeast(5.0), &[4.9], &[9.0]).met);
    }

    #[test]
    fn a_contestant_that_is_left_out_is_not_judged() {
        let mut peer = measured("peer", Role::Peer, &[]);
        peer.absent = Some("not installed".to_owned());
        let results = Measurements {
            contestants: vec![measured("ours", Role::Ours, &[1.0]), peer],
            foreign_cores: 0.0,
        };
        let goal = Goal { metric: NS, bound: Bound::TimesFaster(2.0, "peer"), note: "" };
        assert!(judge(&goal, &results).is_none());
    }

    #[test]
    fn numbers_keep_three_digits() {
        let shown = [0.0, 0.45, 12.34, 123.4, 12_345.0, 3_190_000.0].map(number);
        assert_eq!(shown, ["0", "0.45", "12.3", "123", "12 k", "3.19 M"]);
    }
}

//! The status page: HTML without scripts, which reloads itself.

use std::fmt::Write;
use std::time::Duration;

use crate::history::{Rates, StageRates};
use crate::process::Process;
use crate::{BrokerSnapshot, HopSnapshot, RunSnapshot, RunState, StageSnapshot};

/// The most errors shown of a run; the newest.
const ERRORS_MAX: usize = 10;
/// From this share of its time on, the busiest stage is named as what the others wait for.
const BUSY_NAMED: f64 = 0.5;

/// The page for these runs and brokers; `rates` belong to the runs, in their order.
pub(crate) fn page(runs: &[RunSnapshot], brokers: &[BrokerSnapshot], rates: &[Rates]) -> String {
    let title = runs.iter().map(|run| run.name.as_str()).collect::<Vec<_>>().join(", ");
    let mut out = String::with_capacity(16 * 1024);
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"refresh\" content=\"2\">\n\
         <title>{} · millstream</title>\n<style>\n{}</style>\n</head>\n<body>\n",
        escaped(&title),
        include_str!("page.css"),
    );
    if runs.is_empty() {
        out.push_str("<h1>No run has been started.</h1>\n");
    }
    for (run, rates) in runs.iter().zip(rates) {
        article(&mut out, run, rates);
    }
    if !brokers.is_empty() {
        out.push_str("<article>\n<h2>Brokers</h2>\n");
        brokers.iter().for_each(|one| broker(&mut out, one));
        out.push_str("</article>\n");
    }
    out.push_str("<footer>");
    if let Some(process) = Process::now() {
        let (memory, cpu) = (bytes(process.resident_bytes), process.cpu.as_secs_f64());
        let _ = write!(out, "The process holds {memory} and has used {cpu:.1} s of CPU. ");
    }
    out.push_str(
        "Reloads every two seconds. <a href=\"/metrics\">metrics</a> · <a href=\"/health/ready\">ready</a> · \
         <a href=\"/status.json\">as JSON</a></footer>\n</body>\n</html>\n",
    );
    out
}

fn article(out: &mut String, run: &RunSnapshot, rates: &Rates) {
    let state = run.state.word();
    let _ = write!(
        out,
        "<article>\n<div class=\"head\"><h1>{}</h1><span class=\"state {state}\">{state}</span>\
         <span class=\"dim\">{:.1} s</span></div>\n",
        escaped(&run.name),
        run.elapsed.as_secs_f64(),
    );
    if let RunState::Failed(reason) = &run.state {
        let _ = writeln!(out, "<p class=\"failed-reason\">{}</p>", escaped(reason));
    }
    if let Some(why) = &run.refusing {
        let _ = writeln!(out, "<p class=\"failed-reason\">It refuses items: {}</p>", escaped(why));
    }
    figures(out, run, rates);
    line(out, &rates.line);
    stages(out, run, rates);
    ledger(out, run);
    knobs(out, run);
    errors(out, run);
    out.push_str("</article>\n");
}

/// Whether a broker is there, and what it has not answered.
fn broker(out: &mut String, broker: &BrokerSnapshot) {
    let address = escaped(&broker.broker);
    if broker.away {
        let tries = count(broker.failed_connects);
        let _ = writeln!(
            out,
            "<p class=\"failed-reason\">{address} is out of reach; connections tried in vain so far: {tries}</p>"
        );
        return;
    }
    if let Some(why) = &broker.blocked {
        let why = escaped(why);
        let _ = writeln!(
            out,
            "<p class=\"failed-reason\">{address} takes nothing for now, and what is published waits: {why}</p>"
        );
    }
    let (connections, unconfirmed) = (count(broker.connections), count(broker.unconfirmed));
    let _ = writeln!(
        out,
        "<p>{address} <span class=\"dim\">connections {connections} · messages not confirmed {unconfirmed}</span></p>"
    );
}

fn figures(out: &mut String, run: &RunSnapshot, rates: &Rates) {
    out.push_str("<div class=\"figures\">");
    figure(out, &count(rates.received.round() as u64), "in, items/s");
    figure(out, &count(rates.settled.round() as u64), "settled, items/s");
    figure(out, &count(run.ledger.in_flight), "in flight");
    if let Some(bound) = run.memory_bound_bytes {
        figure(out, &bytes(bound), "memory bound of its items");
    }
    out.push_str("</div>\n");
}

fn figure(out: &mut String, number: &str, label: &str) {
    let _ = write!(out, "<div><b>{number}</b><span class=\"dim\">{label}</span></div>");
}

/// The last minute of settled items as a line, from nothing to the most.
fn line(out: &mut String, line: &[f64]) {
    let most = line.iter().copied().fold(0.0, f64::max);
    if line.len() < 2 || most <= 0.0 {
        return;
    }
    let width = line.len() - 1;
    let _ = write!(
        out,
        "<svg class=\"spark\" viewBox=\"0 -2 {width} 104\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"items settled a second over the last {width} seconds\">\
         <line x1=\"0\" y1=\"100\" x2=\"{width}\" y2=\"100\"/><polyline points=\""
    );
    for (at, rate) in line.iter().enumerate() {
        let _ = write!(out, "{at},{:.1} ", 100.0 - rate / most * 100.0);
    }
    let most = count(most.round() as u64);
    let _ = writeln!(
        out,
        "\"/></svg>\n<p class=\"dim\">settled a second over the last {width} s, at most {most}</p>"
    );
}

fn stages(out: &mut String, run: &RunSnapshot, rates: &Rates) {
    if run.stages.is_empty() {
        return;
    }
    let slowest = rates
        .stages
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.busy.total_cmp(&b.1.busy))
        .filter(|(_, stage)| stage.busy >= BUSY_NAMED)
        .map(|(at, _)| at);
    out.push_str("<h2>Stages</h2>\n<ol class=\"flow\">\n");
    for (at, stage) in run.stages.iter().enumerate() {
        let rates = rates.stages.get(at).copied().unwrap_or_default();
        // Between each two stages stands their hop, unless stages run side by side: then they do not pair up.
        let hop = if run.hops.len() + 1 == run.stages.len() { run.hops.get(at) } else { None };
        self::stage(out, stage, rates, slowest == Some(at), hop);
    }
    out.push_str(
        "</ol>\n<p class=\"legend\"><i class=\"busy\"></i>busy <i class=\"blocked\"></i>blocked by the next \
         <i class=\"starved\"></i>waiting for items</p>\n",
    );
    if let Some(at) = slowest
        && matches!(run.state, RunState::Running | RunState::Draining)
    {
        let name = escaped(&run.stages[at].name);
        let _ = writeln!(out, "<p>The busiest stage is <b>{name}</b>: the others wait for it.</p>");
    }
    blocking(out, run);
}

/// A stage that has been working for so long in one go is told of before it comes back.
const LONG: Duration = Duration::from_secs(1);

/// What keeps a stage's thread from all others, in words.
fn blocking(out: &mut String, run: &RunSnapshot) {
    for stage in run.stages.iter().filter(|stage| stage.stalls > 0 || stage.working >= LONG) {
        let name = escaped(&stage.name);
        let _ = write!(out, "<p>A step of <b>{name}</b> blocks its thread");
        if stage.stalls > 0 {
            let _ = write!(out, ": {} times for 100 ms or longer", count(stage.stalls));
        }
        if stage.working >= LONG {
            let _ = write!(out, ", and now for {} s", stage.working.as_secs());
        }
        out.push_str(".</p>\n");
    }
}

fn stage(
    out: &mut String,
    stage: &StageSnapshot,
    rates: StageRates,
    slowest: bool,
    hop: Option<&HopSnapshot>,
) {
    let class = if slowest { "stage slowest" } else { "stage" };
    let (busy, blocked, starved) = (rates.busy * 100.0, rates.blocked * 100.0, rates.starved * 100.0);
    let _ = write!(
        out,
        "<li><div class=\"{class}\"><b>{}</b>{} items/s\
         <div class=\"bar\" title=\"busy {busy:.0} %, blocked {blocked:.0} %, waiting {starved:.0} %\">\
         <i class=\"busy\" style=\"width:{busy:.1}%\"></i><i class=\"blocked\" style=\"width:{blocked:.1}%\"></i>\
         <i class=\"starved\" style=\"width:{starved:.1}%\"></i></div>\
         <span class=\"dim\">{} out</span></div>",
        escaped(&stage.name),
        count(rates.out.round() as u64),
        count(stage.items_out),
    );
    if let Some(hop) = hop {
        self::hop(out, hop);
    }
    out.push_str("</li>\n");
}

fn hop(out: &mut String, hop: &HopSnapshot) {
    let full = hop.occupancy() * 100.0;
    let _ = write!(
        out,
        "<div class=\"hop\" title=\"{} of {} items, {}\">{full:.0} % full<div class=\"bar\">\
         <i class=\"blocked\" style=\"width:{full:.1}%\"></i></div></div>",
        count(hop.items),
        count(hop.items_max),
        bytes(hop.bytes),
    );
}

/// The ledger as a sum that a reader can check.
fn ledger(out: &mut String, run: &RunSnapshot) {
    let ledger = &run.ledger;
    out.push_str("<h2>Ledger</h2>\n<table>\n");
    row(out, "", ledger.completed, "completed");
    for (name, items) in &ledger.dropped {
        row(out, "+", *items, &format!("dropped by “{name}”"));
    }
    row(out, "+", ledger.dead, "dead");
    row(out, "+", ledger.in_flight, "in flight");
    let received = count(ledger.received);
    let _ = writeln!(
        out,
        "<tr class=\"sum\"><td class=\"sign\">=</td><td class=\"n\">{received}</td><td>received</td></tr>\n</table>"
    );
}

fn row(out: &mut String, sign: &str, items: u64, label: &str) {
    let (items, label) = (count(items), escaped(label));
    let _ =
        writeln!(out, "<tr><td class=\"sign\">{sign}</td><td class=\"n\">{items}</td><td>{label}</td></tr>");
}

/// The numbers that may be moved, as they stand.
fn knobs(out: &mut String, run: &RunSnapshot) {
    if run.knobs.is_empty() {
        return;
    }
    out.push_str("<h2>Knobs</h2>\n<table>\n");
    for knob in &run.knobs {
        let (name, value) = (escaped(&knob.name), count(knob.value));
        let may = match knob.fixed {
            true => "fixed".to_owned(),
            false => format!("of {} to {}", count(knob.min), count(knob.max)),
        };
        let _ =
            writeln!(out, "<tr><td class=\"n\">{value}</td><td>{name}</td><td class=\"dim\">{may}</td></tr>");
    }
    out.push_str("</table>\n");
}

fn errors(out: &mut String, run: &RunSnapshot) {
    if run.errors.is_empty() {
        return;
    }
    out.push_str("<h2>Last errors</h2>\n<table class=\"errors\">\n");
    for error in run.errors.iter().take(ERRORS_MAX) {
        let _ = writeln!(
            out,
            "<tr><td class=\"dim n\">{}</td><td>{}</td><td class=\"dim\">{}</td><td>{}</td></tr>",
            time_of_day(error.at_millis),
            escaped(&error.stage),
            escaped(&error.origin),
            escaped(&error.message),
        );
    }
    out.push_str("</table>\n");
}

/// The time of day of a moment in milliseconds since 1970, in UTC: a page has no other time zone at hand.
fn time_of_day(millis: u64) -> String {
    let second = millis / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}\u{202f}UTC", second / 3600, second / 60 % 60, second % 60)
}

/// A number with thin spaces between the thousands.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len());
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// A number of bytes in the unit that a person would choose.
fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = number as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{number} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Text as HTML: names come from pipeline files, and errors may quote what came over the network.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorSnapshot, LedgerSnapshot};

    fn run() -> RunSnapshot {
        RunSnapshot {
            name: "flights".into(),
            state: RunState::Running,
            ledger: LedgerSnapshot {
                received: 27_004,
                completed: 12_000,
                dropped: vec![("short delays".into(), 15_000)],
                dead: 4,
                in_flight: 0,
            },
            ..Default::default()
        }
    }

    #[test]
    fn the_ledger_is_shown_as_a_sum() {
        let page = page(&[run()], &[], &[Rates::default()]);
        let rows: Vec<&str> = page.lines().filter(|line| line.contains("class=\"sign\"")).collect();
        assert_eq!(rows.len(), 5, "{page}");
        assert!(rows[1].contains("15\u{202f}000") && rows[1].contains("dropped by “short delays”"));
        assert!(rows[4].contains('=') && rows[4].contains("27\u{202f}004"));
    }

    #[test]
    fn no_markup_of_a_name_or_an_error_reaches_the_page() {
        let mut run = run();
        let hostile = "<script>alert('x')</script>\"&".to_owned();
        run.name = hostile.clone();
        run.state = RunState::Failed(hostile.clone());
        run.ledger.dropped[0].0 = hostile.clone();
        run.stages.push(StageSnapshot { name: hostile.clone(), ..Default::default() });
        run.errors.push(ErrorSnapshot {
            stage: hostile.clone(),
            origin: hostile.clone(),
            message: hostile,
            ..Default::default()
        });
        let rates =
            Rates { stages: vec![StageRates { busy: 1.0, ..Default::default() }], ..Default::default() };
        let page = page(&[run], &[], &[rates]);
        assert!(!page.contains("<script"), "{page}");
        assert_eq!(page.matches("&lt;script&gt;").count(), 8, "{page}");
    }

    #[test]
    fn the_busiest_stage_is_named_only_when_it_is_busy() {
        let mut run = run();
        run.stages =
            ["read", "write"].map(|name| StageSnapshot { name: name.into(), ..Default::default() }).into();
        run.hops = vec![HopSnapshot { items: 1, items_max: 4, ..Default::default() }];
        let rates = |busy| Rates {
            stages: vec![StageRates::default(), StageRates { busy, ..Default::default() }],
            ..Default::default()
        };
        assert!(!page(&[run.clone()], &[], &[rates(0.9)]).contains("blocks its thread"));
        run.stages[1].stalls = 3;
        run.stages[1].working = Duration::from_millis(2_400);
        let shown = page(&[run.clone()], &[], &[rates(0.9)]);
        let blocks =
            "A step of <b>write</b> blocks its thread: 3 times for 100 ms or longer, and now for 2 s.";
        assert!(shown.contains(blocks), "{shown}");
        assert!(
            shown.contains("The busiest stage is <b>write</b>") && shown.contains("25 % full"),
            "{shown}"
        );
        assert!(!page(&[run], &[], &[rates(0.2)]).contains("The busiest stage is"));
    }

    #[test]
    fn a_broker_is_there_or_out_of_reach() {
        let mut broker = BrokerSnapshot {
            broker: "amqp://***@<host>".into(),
            connections: 2,
            failed_connects: 4,
            unconfirmed: 1234,
            ..Default::default()
        };
        let shown = page(&[run()], &[broker.clone()], &[Rates::default()]);
        assert!(shown.contains("amqp://***@&lt;host&gt;"), "{shown}");
        assert!(shown.contains("connections 2 · messages not confirmed 1\u{202f}234"), "{shown}");
        (broker.away, broker.connections) = (true, 0);
        let shown = page(&[run()], &[broker], &[Rates::default()]);
        assert!(
            shown.contains("&lt;host&gt; is out of reach; connections tried in vain so far: 4"),
            "{shown}"
        );
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(time_of_day(86_400_000 * 3 + 3_723_999), "01:02:03\u{202f}UTC");
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(64 * 1024 * 1024), "64.0 MiB");
    }
}

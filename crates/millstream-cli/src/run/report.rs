//! The report at the end of a run, as a table whose ledger can be added up by eye.

use millstream_observe::{RunSnapshot, RunState, StageSnapshot};

use crate::table::count;

/// The account of one run.
pub(crate) fn text(run: &RunSnapshot) -> String {
    let mut text = heading(run);
    text.push_str("\n\n");
    text.push_str(&ledger(run));
    for stage in &run.stages {
        text.push('\n');
        text.push_str(&self::stage(stage));
    }
    text
}

fn heading(run: &RunSnapshot) -> String {
    let ended = match &run.state {
        RunState::Completed => "completed",
        RunState::Failed(_) => "failed",
        RunState::Starting | RunState::Running | RunState::Draining => "stopped",
    };
    let bound = run.memory_bound_bytes.map_or_else(String::new, |bytes| {
        format!(", its items within {}", millstream_pipeline::show_size(bytes))
    });
    format!("{}: {ended} after {:.2} s{bound}", run.name, run.elapsed.as_secs_f64())
}

fn ledger(run: &RunSnapshot) -> String {
    let ledger = &run.ledger;
    let mut rows = vec![(' ', ledger.completed, "completed".to_owned())];
    rows.extend(ledger.dropped.iter().map(|(name, items)| ('+', *items, format!("dropped by `{name}`"))));
    rows.push(('+', ledger.dead, "dead letters".to_owned()));
    rows.push(('+', ledger.in_flight, "in flight".to_owned()));
    rows.push(('=', ledger.received, "received".to_owned()));
    let width = rows.iter().map(|(_, items, _)| count(*items).len()).max().unwrap_or(0);
    let lines = rows.iter().map(|(sign, items, label)| {
        let rule = if *sign == '=' { format!("  {}\n", "─".repeat(width + 2)) } else { String::new() };
        format!("{rule}  {sign} {:>width$}  {label}\n", count(*items))
    });
    lines.collect()
}

/// A stage on two lines: its operators can be many.
fn stage(stage: &StageSnapshot) -> String {
    let time = |time: std::time::Duration| format!("{:.2} s", time.as_secs_f64());
    format!(
        "  {}\n    {} out · busy {} · blocked {} · starved {}\n",
        stage.name,
        count(stage.items_out),
        time(stage.busy),
        time(stage.blocked),
        time(stage.starved),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use millstream_observe::LedgerSnapshot;

    use super::*;

    #[test]
    fn the_ledger_is_a_sum_in_a_column() {
        let run = RunSnapshot {
            name: "flights".into(),
            state: RunState::Completed,
            elapsed: Duration::from_millis(1500),
            ledger: LedgerSnapshot {
                received: 27_004,
                completed: 12_000,
                dropped: vec![("short delays".into(), 14_500)],
                dead: 504,
                in_flight: 0,
            },
            stages: vec![StageSnapshot { name: "read".into(), items_out: 27_004, ..Default::default() }],
            memory_bound_bytes: Some(9 << 20),
            ..Default::default()
        };
        let expected = "\
flights: completed after 1.50 s, its items within 9MiB

    12,000  completed
  + 14,500  dropped by `short delays`
  +    504  dead letters
  +      0  in flight
  ────────
  = 27,004  received

  read
    27,004 out · busy 0.00 s · blocked 0.00 s · starved 0.00 s
";
        assert_eq!(text(&run), expected);
    }
}

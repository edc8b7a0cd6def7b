//! How far the runs are, on standard error.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use millstream_observe::RunSnapshot;
use tokio::time::Instant;

use crate::table::count;

/// How often a terminal is redrawn: often enough to look alive, seldom enough to cost nothing.
const REDRAW: Duration = Duration::from_millis(200);
/// How often a line is written where nobody redraws, such as a log file.
const LINE: Duration = Duration::from_secs(10);

/// Where progress goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// One line a run, redrawn in place.
    Terminal,
    /// A line a run from time to time.
    Plain,
    /// Nowhere.
    Quiet,
}

/// The progress of all runs of this process.
pub(crate) struct Progress {
    manner: Manner,
    /// How many lines are drawn and would be drawn over.
    drawn: usize,
    /// What was settled at the last look, for the rates.
    before: Option<(Instant, Vec<u64>)>,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Progress {
        let manner = match quiet {
            true => Manner::Quiet,
            false if std::io::stderr().is_terminal() => Manner::Terminal,
            false => Manner::Plain,
        };
        Progress { manner, drawn: 0, before: None }
    }

    /// How long to wait until the next [`Progress::show`].
    pub(crate) fn period(&self) -> Duration {
        if self.manner == Manner::Terminal { REDRAW } else { LINE }
    }

    /// Shows the runs as they are now.
    pub(crate) fn show(&mut self, runs: &[RunSnapshot]) {
        let text = self.text(Instant::now(), runs);
        // Where standard error is closed there is nobody to show it to.
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }

    /// Clears what was drawn, so that something else can be printed there.
    pub(crate) fn clear(&mut self) {
        let text = self.over();
        self.drawn = 0;
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }

    fn text(&mut self, now: Instant, runs: &[RunSnapshot]) -> String {
        if self.manner == Manner::Quiet {
            return String::new();
        }
        let settled: Vec<u64> = runs.iter().map(settled).collect();
        let mut text = self.over();
        for (at, run) in runs.iter().enumerate() {
            let rate = match &self.before {
                Some((then, before)) => rate(settled[at] - before[at].min(settled[at]), now - *then),
                None => rate(settled[at], run.elapsed),
            };
            let line = line(run, rate);
            if self.manner == Manner::Terminal {
                // Without wrapping a long line is cut at the edge, and the next redraw finds it where it was.
                text.push_str(&format!("\x1b[?7l{line}\x1b[?7h\n"));
            } else {
                text.push_str(&line);
                text.push('\n');
            }
        }
        self.drawn = if self.manner == Manner::Terminal { runs.len() } else { 0 };
        self.before = Some((now, settled));
        text
    }

    /// What leads back to the first line that was drawn, and clears from there on.
    fn over(&self) -> String {
        if self.drawn == 0 { String::new() } else { format!("\x1b[{}A\r\x1b[J", self.drawn) }
    }
}

fn settled(run: &RunSnapshot) -> u64 {
    run.ledger.completed + run.ledger.dropped_total() + run.ledger.dead
}

fn rate(items: u64, time: Duration) -> u64 {
    if time.is_zero() { 0 } else { (items as f64 / time.as_secs_f64()) as u64 }
}

/// What changes most stands first: a narrow terminal cuts the line at its end.
fn line(run: &RunSnapshot, rate: u64) -> String {
    let ledger = &run.ledger;
    format!(
        "{}: {}/s · {} received · {} completed · {} dropped · {} dead · {} in flight",
        run.name,
        count(rate),
        count(ledger.received),
        count(ledger.completed),
        count(ledger.dropped_total()),
        count(ledger.dead),
        count(ledger.in_flight),
    )
}

#[cfg(test)]
mod tests {
    use millstream_observe::{LedgerSnapshot, RunState};

    use super::*;

    fn run(completed: u64, seconds: u64) -> RunSnapshot {
        RunSnapshot {
            name: "flights".into(),
            state: RunState::Running,
            elapsed: Duration::from_secs(seconds),
            ledger: LedgerSnapshot {
                received: 2000,
                completed,
                in_flight: 2000 - completed,
                ..Default::default()
            },
            ..Default::default()
        }
    }

    fn progress(manner: Manner) -> Progress {
        Progress { manner, drawn: 0, before: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_plain_line_has_no_escapes_and_the_rate_since_the_last_one() {
        let mut progress = progress(Manner::Plain);
        assert_eq!(progress.period(), LINE);
        let start = Instant::now();
        let first = progress.text(start, &[run(1000, 10)]);
        assert!(
            first.ends_with(
                "100/s · 2,000 received · 1,000 completed · 0 dropped · 0 dead · 1,000 in flight\n"
            ),
            "{first}"
        );
        let second = progress.text(start + LINE, &[run(1500, 20)]);
        assert!(second.contains("flights: 50/s · "), "{second}");
        assert!(!second.contains('\x1b'));
    }

    #[tokio::test(start_paused = true)]
    async fn a_terminal_is_drawn_over_in_place() {
        let mut progress = progress(Manner::Terminal);
        let first = progress.text(Instant::now(), &[run(1, 1), run(2, 1)]);
        assert!(first.starts_with("\x1b[?7lflights"), "{first:?}");
        let second = progress.text(Instant::now() + REDRAW, &[run(1, 1), run(2, 1)]);
        assert!(second.starts_with("\x1b[2A\r\x1b[J"), "{second:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_says_nothing() {
        assert_eq!(progress(Manner::Quiet).text(Instant::now(), &[run(1, 1)]), "");
    }
}

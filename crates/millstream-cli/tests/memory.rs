//! The bound that `lint` prints, against what the process takes: small items, large ones, dead ones, and an output
//! that takes nothing.

mod support;

use std::process::Child;
use std::time::Duration;

use support::{Place, taken};

/// What a process may take besides its items: code, runtime, what the allocator keeps.
const BASE: u64 = 64 << 20;

/// Rows of one digit.
fn digits(rows: usize) -> String {
    (0..rows).map(|row| format!("{}\n", row % 10)).collect()
}

/// The most that the process takes until it ends, or has taken no more for two seconds once it holds `least`: on a
/// machine that is busy otherwise, it may take its time to begin.
fn peak(child: &mut Child, least: u64) -> u64 {
    let (mut peak, mut same) = (0, 0);
    while (same < 100 || peak < least && same < 15_000) && child.try_wait().expect("it is a child").is_none()
    {
        let now = taken(child).unwrap_or(peak);
        same = if now > peak { 0 } else { same + 1 };
        peak = peak.max(now);
        #[expect(
            clippy::disallowed_methods,
            reason = "the process that is watched lives by the clock on the wall"
        )]
        std::thread::sleep(Duration::from_millis(20));
    }
    peak
}

/// Runs a pipeline, leaving what it writes to standard output unread, and holds its peak against the printed bound.
fn stays_within_its_bound(place: &Place, yaml: &str, least: u64) {
    place.write("p.yaml", yaml);
    let lint = place.done(&["lint", "p.yaml"]);
    let bound = lint.split("at most ").nth(1).and_then(|rest| rest.trim().strip_suffix("MiB"));
    let bound = bound.and_then(|mib| mib.parse::<f64>().ok()).unwrap_or_else(|| panic!("{lint}"));
    let bound = (bound * f64::from(1 << 20)) as u64;
    let mut child = place.command(&["run", "p.yaml"]).spawn().expect("it starts");
    let peak = peak(&mut child, least);
    child.kill().expect("it is a child, which may have ended by itself");
    child.wait().expect("it ends");
    assert!(peak >= least, "it held {} KiB only: the test does not show anything", peak >> 10);
    assert!(peak <= bound + BASE, "{} KiB, and the bound is {} KiB", peak >> 10, bound >> 10);
}

#[test]
fn small_items_in_large_batches_stay_within_the_bound() {
    let place = Place::new();
    place.write("in.ndjson", &digits(2_000_000));
    let yaml = "
name: p
source: { file: { path: in.ndjson } }
batch: { count: 100000 }
output: { stdout: }
";
    stays_within_its_bound(&place, yaml, 4 << 20);
}

#[test]
fn small_items_of_many_keys_stay_within_the_bound() {
    let place = Place::new();
    place.write("in.ndjson", &digits(1_000_000));
    let yaml = "
name: p
source: { file: { path: in.ndjson } }
process: [ { map: '{k: ., v: 1}' } ]
batch: { count: 50000, by: k }
output: { stdout: }
";
    stays_within_its_bound(&place, yaml, 4 << 20);
}

#[test]
fn a_large_buffer_of_small_items_stays_within_the_bound() {
    let place = Place::new();
    place.write("in.ndjson", &digits(2_000_000));
    let yaml = "
name: p
source: { file: { path: in.ndjson } }
buffer: { memory: { items: 500000, bytes: 64MiB } }
output: { stdout: }
";
    stays_within_its_bound(&place, yaml, 30 << 20);
}

#[test]
fn long_nested_rows_stay_within_the_bound() {
    let place = Place::new();
    let row = format!("[{}{{}}]\n", r#"{"a":1,"b":"text"},"#.repeat(50_000));
    place.write("in.ndjson", &row.repeat(30));
    let yaml = "
name: p
source: { file: { path: in.ndjson } }
process: [ { map: '[.[] | select(.a != 2)]' } ]
output: { stdout: }
";
    stays_within_its_bound(&place, yaml, 8 << 20);
}

#[test]
fn rows_that_are_far_larger_than_their_text_stay_within_the_bound() {
    for value in [r#"{"":{"":0}}"#, "[0]", "{}"] {
        let place = Place::new();
        let row = format!("[{}0]\n", format!("{value},").repeat((1 << 20) / (value.len() + 1) - 1));
        place.write("in.ndjson", &row.repeat(12));
        let yaml = "
name: p
source: { file: { path: in.ndjson } }
process: [ { map: '.' } ]
output: { file: { path: out.ndjson } }
";
        stays_within_its_bound(&place, yaml, 32 << 20);
    }
}

#[test]
fn large_values_at_several_workers_stay_within_the_bound() {
    let place = Place::new();
    // A step that looks at one field of a large value takes so little time that workers go far ahead.
    let row = format!("{{\"n\":1,\"text\":\"{}\"}}\n", "x".repeat(190_000));
    place.write("in.ndjson", &row.repeat(1500));
    let yaml = "
name: p
source: { file: { path: in.ndjson, max_line: 200KiB } }
process: [ { parallel: { workers: 256, steps: [ { filter: { name: all, keep: item.n > 0 } } ] } } ]
batch: { count: 100, bytes: 1MiB }
output: { stdout: }
";
    stays_within_its_bound(&place, yaml, 8 << 20);
}

#[test]
fn a_queue_full_of_dead_letters_stays_within_the_bound() {
    let place = Place::new();
    place.write("in.ndjson", &digits(150_000));
    let yaml = "
name: p
source: { file: { path: in.ndjson } }
buffer: { queue: { broker: 'embedded:state', name: q } }
process: [ { map: { name: never, jq: 'error(\"not this one\")' } } ]
output: { stdout: }
on_error: { dead_letter: { queue: dead } }
";
    stays_within_its_bound(&place, yaml, 32 << 20);
}

#[test]
fn a_queue_ahead_of_its_output_stays_within_the_bound() {
    let place = Place::new();
    place.write("in.ndjson", &digits(400_000));
    let yaml = "
name: p
source: { file: { path: in.ndjson } }
buffer: { queue: { broker: 'embedded:state', name: q } }
output: { stdout: }
";
    stays_within_its_bound(&place, yaml, 8 << 20);
}

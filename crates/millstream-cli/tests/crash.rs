//! `kill -9` in the middle of the quickstart, again and again, and an account of every row that is kept apart
//! from the program's own: what the data says must arrive, against what is found in the outputs and in the
//! dead-letter queue.

mod support;

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::Place;

/// Kills in the ordinary test; each is followed by a restart. `cargo xtask soak` makes hundreds.
const KILLS: u32 = 24;
const KILLS_SOAK: u32 = 300;

/// Rows of the data in the ordinary test; all 27,004 in the long one.
const ROWS: usize = 6000;

/// The most deliveries that may be unsettled, hence come twice after a kill. Less than the default, so that the
/// data holds many of these windows.
const IN_FLIGHT_MAX: u64 = 500;

const DATA: &str = "examples/data/flights-2013-01.csv";

/// Rows by what identifies them, with how often they are there.
type Rows = BTreeMap<String, u64>;

#[test]
fn killed_at_any_moment_the_quickstart_loses_nothing() {
    let soak = std::env::var_os("MILLSTREAM_SOAK").is_some();
    let kills_wanted = if soak { KILLS_SOAK } else { KILLS };
    let seed = RandomState::new().build_hasher().finish();
    eprintln!("seed {seed}");
    let mut random = seed | 1;

    let rows = if soak { usize::MAX } else { ROWS };
    let place = place(rows);
    let expected = expected(&place.read(DATA));
    let start = now();
    assert_eq!(run(&place, None), Some(0));
    let whole = start.elapsed();
    check(&place, &expected, 0);

    let (mut kills, mut finished) = (0, 0);
    while kills < kills_wanted {
        let place = self::place(rows);
        let mut kills_here = 0;
        loop {
            // Somewhere between its first instruction and a little after its end.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let share = f64::from((random >> 40) as u32) / f64::from(1 << 24) * 1.1;
            match run(&place, Some(whole.mul_f64(share))) {
                Some(0) => break,
                None => kills_here += 1,
                code => panic!("after {kills_here} kills it ended with {code:?}"),
            }
            if kills + kills_here >= kills_wanted {
                assert_eq!(run(&place, None), Some(0), "after {kills_here} kills");
                break;
            }
        }
        check(&place, &expected, kills_here);
        kills += kills_here;
        finished += 1;
    }
    eprintln!("{kills} kills, {finished} finished runs, nothing lost");
}

#[test]
fn killed_at_any_moment_a_file_with_a_position_loses_nothing_and_is_done_once() {
    let place = Place::with_examples();
    const LINES: u64 = 40_000;
    place.write("in.ndjson", &(0..LINES).map(|n| format!("{n}\n")).collect::<String>());
    place.write(
        "p.yaml",
        "name: p\nsource: { file: { path: in.ndjson, position: state/p } }\noutput: { file: { path: out/n.ndjson } }\n",
    );
    let run = |time: Option<Duration>| run_file(&place, &["p.yaml", "--report", "report.json"], time);
    for kill in 0..12 {
        // From before it has read to after it has saved.
        run(Some(Duration::from_millis(20 + 25 * kill)));
    }
    assert_eq!(run(None), Some(0));
    let mut found = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(place.path("out")).expect("an output") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("a file");
        found.extend(text.lines().map(|line| line.parse::<u64>().expect("whole lines")));
    }
    assert_eq!(found.len() as u64, LINES, "nothing is lost");
    assert_eq!(run(None), Some(0));
    let report: Value = serde_json::from_str(&place.read("report.json")).expect("a report");
    assert_eq!(report["ledger"]["received"], 0, "what is settled does not come again");
}

/// The examples, with so many rows of data.
fn place(rows: usize) -> Place {
    let place = Place::with_examples();
    let data = place.read(DATA);
    let kept: String = data.split_inclusive('\n').take(rows.saturating_add(1)).collect();
    place.write(DATA, &kept);
    place
}

/// Runs the quickstart to its end, or kills it after this time; its exit code, `None` if it was killed.
fn run(place: &Place, time: Option<Duration>) -> Option<i32> {
    let prefetch = format!("buffer.queue.prefetch={IN_FLIGHT_MAX}");
    run_file(place, &["examples/quickstart.yaml", "--set", &prefetch], time)
}

/// As [`run`], of any pipeline file and with any arguments.
fn run_file(place: &Place, arguments: &[&str], time: Option<Duration>) -> Option<i32> {
    let mut command = place.command(&[&["run", "--quiet"], arguments].concat());
    let mut child = command.stderr(Stdio::inherit()).spawn().expect("the binary starts");
    if let Some(time) = time {
        let time = format!("{:.4}", time.as_secs_f64());
        assert!(Command::new("sleep").arg(time).status().expect("coreutils are there").success());
        // It may have ended by itself.
        let _ = child.kill();
    }
    child.wait().expect("it is ours").code()
}

/// What must arrive: the rows that the filter keeps, and those that cannot be processed.
struct Expected {
    completed: Rows,
    dead: Rows,
}

/// Reads the data without any of the program's code. It has no quoted fields.
fn expected(csv: &str) -> Expected {
    let mut lines = csv.lines();
    let names: Vec<&str> = lines.next().expect("a header").split(',').collect();
    let at = |name: &str| names.iter().position(|found| *found == name).expect(name);
    let [dep, arr] = ["dep_delay", "arr_delay"].map(at);
    let identity = ["carrier", "flight", "origin", "dest", "time_hour"].map(at);
    let (mut completed, mut dead) = (Rows::new(), Rows::new());
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let key = identity.map(|at| cells[at]).join("|");
        match (cells[dep].parse::<f64>(), cells[arr].parse::<f64>()) {
            (Ok(dep), Ok(arr)) if dep >= 15.0 || arr >= 15.0 => *completed.entry(key).or_default() += 1,
            (Ok(_), Ok(_)) => {}
            _ => *dead.entry(key).or_default() += 1,
        }
    }
    Expected { completed, dead }
}

/// Compares what is there with what must be there: nothing is missing, nothing is there that must not be, and
/// what is there twice was in flight when it was killed.
fn check(place: &Place, expected: &Expected, kills: u32) {
    let mut written = Rows::new();
    for entry in std::fs::read_dir(place.path("examples/out")).expect("the outputs are there") {
        let path = entry.expect("it can be listed").path();
        assert_eq!(path.extension().and_then(|found| found.to_str()), Some("ndjson"), "{}", path.display());
        for line in std::fs::read_to_string(&path).expect("it is text").lines() {
            let item: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
            *written.entry(key(&item, ["carrier", "flight", "from", "to", "scheduled"])).or_default() += 1;
        }
    }
    compare("outputs", &written, &expected.completed, kills);

    let letters = place.done(&[
        "queue",
        "peek",
        "embedded:examples/state",
        "flights.dead",
        "--json",
        "--max",
        "1000000",
    ]);
    let mut dead = Rows::new();
    for line in letters.lines() {
        let letter: Value = serde_json::from_str(line).expect("JSON");
        assert!(letter["headers"]["millstream-dead-reason"].is_string(), "a letter says why: {letter}");
        let item: Value = serde_json::from_str(letter["body"].as_str().expect("text")).expect("JSON");
        *dead.entry(key(&item, ["carrier", "flight", "origin", "dest", "time_hour"])).or_default() += 1;
    }
    compare("dead letters", &dead, &expected.dead, kills);
}

fn key(item: &Value, fields: [&str; 5]) -> String {
    fields.map(|field| item[field].as_str().map_or_else(|| item[field].to_string(), str::to_owned)).join("|")
}

fn compare(what: &str, found: &Rows, expected: &Rows, kills: u32) {
    let lost: Vec<&String> = expected
        .iter()
        .filter(|(row, times)| found.get(*row).unwrap_or(&0) < times)
        .map(|(row, _)| row)
        .collect();
    assert!(
        lost.is_empty(),
        "{what}: {} rows are lost after {kills} kills, such as {:?}",
        lost.len(),
        lost[0]
    );
    let strange = found.keys().find(|row| !expected.contains_key(*row));
    assert_eq!(strange, None, "{what}: a row that must not be there");
    let twice = found.values().sum::<u64>() - expected.values().sum::<u64>();
    assert!(twice <= u64::from(kills) * IN_FLIGHT_MAX, "{what}: {twice} rows twice after {kills} kills");
}

#[expect(clippy::disallowed_methods, reason = "when to kill depends on how long a run takes on this machine")]
fn now() -> Instant {
    Instant::now()
}

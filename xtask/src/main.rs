//! Chores with branches in them: `cargo xtask test | bench | soak | miri | ci`.
//!
//! Everything a check needs is here, so that a newcomer, the CI and a maintainer run the same thing.

mod examples;
mod licences;
mod needs;
mod quickstart;
mod rabbitmq;
mod readme;
mod steps;
mod weight;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use steps::{Steps, cargo};

const USAGE: &str = "\
usage: cargo xtask <chore>

  test          everything a change must pass: format, lints, licences, all tests, examples, the README's
                commands and the quickstart's ledger; at most 30 minutes on two cores from a clean clone
  test NAME...  only the steps of these names (they are printed as they run)
  bench ARGS... the benchmarks, with profile `bench`; `cargo xtask bench --help` lists the workloads
  soak          the tests with their long versions: hundreds of kills, every crash point (tens of minutes)
  miri          what has `unsafe`, by Miri, which wants `rustup component add miri rust-src --toolchain nightly`
  ci            `test`, and `cargo deny check` where cargo-deny is installed";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let chore = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    let outcome = match chore.as_str() {
        "test" => test(&rest),
        "bench" => bench(&rest),
        "soak" => soak(),
        "miri" => miri(),
        "ci" => ci(),
        "help" | "--help" | "-h" => {
            eprintln!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        other => {
            eprintln!("xtask: no chore is called `{other}`\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("xtask: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// What a chore ends with: nothing, or the sentence that says which step failed and where to look.
type Outcome = Result<(), String>;

fn test(only: &[String]) -> Outcome {
    let mut steps = Steps::new(only);
    everything(&mut steps);
    steps.finish()
}

fn ci() -> Outcome {
    let mut steps = Steps::new(&[]);
    everything(&mut steps);
    if steps::command("cargo").args(["deny", "--version"]).output().is_ok() {
        steps.run("deny", || cargo(&["deny", "--all-features", "check", "bans", "licenses", "sources"]));
    } else {
        eprintln!(
            "xtask: cargo-deny is not installed; `licences` above checked licences and sources without it"
        );
    }
    steps.finish()
}

/// Builds the binary as users have it.
const RELEASE: [&str; 5] = ["build", "--release", "--locked", "--package", "millstream-cli"];

/// The steps of `test`, cheapest first, so that a slip shows before the long builds.
fn everything(steps: &mut Steps) {
    steps.run("needs", needs::install);
    steps.run("fmt", || cargo(&["fmt", "--all", "--check"]));
    steps.run("licences", licences::check);
    steps.run("weight", weight::check);
    steps.run("clippy", || {
        cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])
    });
    // Many tests wait for a broker. What is slowest to build has the processor meanwhile, behind everything else.
    let both = steps.has("tests") && steps.has("release");
    let ahead = both.then(|| steps::Ahead::cargo(&RELEASE));
    steps.run("tests", || cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]));
    steps.run("docs", docs);
    steps.run("loom", loom);
    steps.run("examples", examples::run);
    // One release build serves the README's commands and the quickstart.
    steps.run("release", || {
        ahead.into_iter().for_each(steps::Ahead::join);
        cargo(&RELEASE)
    });
    steps.run("readme", readme::run);
    steps.run("quickstart", quickstart::run);
}

/// The interleavings of the ring between stages. `--cfg loom` changes every dependency, hence a target directory of
/// its own, which keeps the other steps' builds.
fn loom() -> Outcome {
    steps::command("cargo")
        .args(["test", "--package", "millstream-flow", "--lib", "--release", "--locked", "loom"])
        .args(["--target-dir", "target/loom"])
        .env("RUSTFLAGS", "--cfg loom")
        .run()
}

fn bench(arguments: &[String]) -> Outcome {
    let section = arguments.first().map_or("", String::as_str);
    let measures = !arguments.iter().any(|argument| argument == "--help" || argument == "--list");
    let mut words = vec!["run", "--profile", "bench", "--package", "millstream-bench"];
    // Peers take minutes to build, so only their section has them.
    let features = match section {
        "log" => Some("peers-log"),
        "rabbitmq" => Some("peers-rabbitmq"),
        "resilience" => Some("peers-resilience"),
        _ => None,
    };
    words.extend(features.iter().flat_map(|features| ["--features", features]));
    // What is measured there is the binary, beside the benchmarks.
    if section == "whole" && measures {
        cargo(&RELEASE)?;
    }
    // The table names what could not be had.
    if section == "gateway" && measures {
        for need in needs::PROXIES {
            if let Err(why) = needs::meet(need) {
                eprintln!("xtask: without {}: {why}", need.name);
            }
        }
    }
    words.push("--");
    words.extend(arguments.iter().map(String::as_str));
    let given = std::env::var_os(AMQP).is_some();
    let compares = matches!(section, "log" | "rabbitmq");
    let node = if compares && measures && !given { started() } else { None };
    let mut command = steps::command("cargo").args(words).unhurried();
    if let Some(node) = &node {
        command = command.env(AMQP, &node.url()).env(STREAM, &node.stream_url(""));
    }
    command.run()
}

/// Every link of the documentation leads somewhere, those of optional features too. (What its examples say, `tests` has run.)
fn docs() -> Outcome {
    steps::command("cargo")
        .args([
            "doc",
            "--workspace",
            "--locked",
            "--no-deps",
            "--quiet",
            "--features",
            "millstream-flow/test,millstream-events/metrics,millstream-message/msgpack,millstream-message/postcard,\
             millstream-message/protobuf,millstream-message/gzip,millstream-message/zstd,millstream-message/lz4",
        ])
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()
}

/// Where the benchmarks find RabbitMQ.
const AMQP: &str = "MILLSTREAM_BENCH_AMQP";
const STREAM: &str = "MILLSTREAM_BENCH_STREAM";

/// A RabbitMQ to compare with, where one can be had; the table names what could not be measured.
fn started() -> Option<millstream_testing::Node> {
    rabbitmq::start().inspect_err(|why| eprintln!("xtask: without RabbitMQ: {why}")).ok()
}

fn soak() -> Outcome {
    steps::command("cargo")
        .args([
            "test",
            "--workspace",
            "--locked",
            "--no-fail-fast",
            "--tests",
            "--release",
            "--",
            "--nocapture",
        ])
        .env("MILLSTREAM_SOAK", "1")
        // Optimised for the number of cases, with every check that an unoptimised build has, and linked quickly.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true")
        // Users' functions panic by the thousand there.
        .env("RUST_BACKTRACE", "0")
        .unhurried()
        .run()
}

/// The engine's modules with `unsafe`: those that have tests of their own, and the slots of calls with the stages around them by tests
/// that end calls in every way. Elsewhere there is none.
fn miri() -> Outcome {
    let run = |tests: &[&str]| {
        let miri = ["+nightly", "miri", "test", "--package", "millstream-flow", "--locked"];
        let command = steps::command("cargo").args(miri.iter().chain(tests));
        // The engine asks for the time.
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation").unhurried().run()
    };
    run(&["--lib"])?;
    run(&["--test", "engine", "time_limits"])
}

/// The root of the workspace: the parent of this crate's directory.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

//! Workloads, peers and limits of Millstream, as ratios in one run.
//!
//! `cargo xtask bench engine`, `gateway`, `log`, `mediator`, `rabbitmq`, `resilience` and `whole`; `README.md` says how to read what they
//! print.

mod alloc;
mod case;
mod clock;
mod engine;
mod gateway;
mod instructions;
mod log;
mod machine;
mod mediator;
mod rabbitmq;
mod resilience;
mod runner;
mod table;
mod whole;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::case::{Case, Scale};
use crate::runner::Plan;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

/// Measures Millstream against the floor of the machine and against other libraries, in one run.
#[derive(Parser)]
#[command(name = "cargo xtask bench", version)]
struct Arguments {
    #[command(subcommand)]
    section: Section,
}

#[derive(Subcommand)]
enum Section {
    /// The engine: fused operators, hops, concurrency, latency, fairness, allocations.
    Engine(Options),
    /// The log and the broker on it: durable appends, acknowledgements, reopening, disk use.
    Log(Options),
    /// The mediator: what dispatch, behaviours, notifications and streams cost over direct calls.
    Mediator(Options),
    /// The RabbitMQ client: publishing, consuming and both, against a raw socket and other clients.
    Rabbitmq(Options),
    /// Retries, circuit breakers and their like around a call that is ready at once.
    Resilience(Options),
    /// The gateway: bodies, small requests, events, slow clients, the buffer pool, against nginx, haproxy and hyper.
    Gateway(Options),
    /// The binary: start, memory, and a pipeline file against Redpanda Connect.
    Whole(Options),
    /// Instructions an item of the engine's cases, by callgrind.
    Instructions {
        /// Only the cases whose name contains one of these words.
        filter: Vec<String>,
    },
    /// One contestant, once: what the runner starts as a process for every measurement.
    #[command(hide = true)]
    Contestant { section: String, case: String, contestant: String, scale: String },
    /// A proxy to be measured, on a port, in front of another.
    #[command(hide = true)]
    Proxy { name: String, port: u16, upstream: u16 },
    /// Fills a broker for the cases that reopen one.
    #[command(hide = true)]
    Populate {
        directory: PathBuf,
        count: u64,
        keep: u64,
        #[arg(long)]
        close: bool,
    },
}

#[derive(Args)]
struct Options {
    /// Only the cases whose name contains one of these words.
    filter: Vec<String>,
    /// How often every contestant of a case is measured, in turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// A tenth of the work: for a first look, not for a claim.
    #[arg(long)]
    quick: bool,
    /// The sizes of the goals where the default is scaled down (reopening after 10 GB).
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// Also write everything that was measured, every contestant and every round, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print the cases and their contestants, and measure nothing.
    #[arg(long)]
    list: bool,
}

fn section(name: &str) -> Option<Vec<Case>> {
    match name {
        "engine" => Some(engine::cases()),
        "log" => Some(log::cases()),
        "mediator" => Some(mediator::cases()),
        "rabbitmq" => Some(rabbitmq::cases()),
        "resilience" => Some(resilience::cases()),
        "gateway" => Some(gateway::cases()),
        "whole" => Some(whole::cases()),
        _ => None,
    }
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().section {
        Section::Engine(options) => measure("engine", options),
        Section::Log(options) => measure("log", options),
        Section::Mediator(options) => measure("mediator", options),
        Section::Rabbitmq(options) => measure("rabbitmq", options),
        Section::Resilience(options) => measure("resilience", options),
        Section::Gateway(options) => measure("gateway", options),
        Section::Whole(options) => measure("whole", options),
        Section::Instructions { filter } => {
            cases("engine", &filter).and_then(|cases| instructions::print(&cases))
        }
        Section::Contestant { section, case, contestant, scale } => {
            runner::contest(&section, &case, &contestant, &scale)
        }
        Section::Proxy { name, port, upstream } => {
            gateway::serve(&name, port, upstream).map(|()| ExitCode::SUCCESS)
        }
        Section::Populate { directory, count, keep, close } => {
            log::populate(&directory, count, keep, close).map(|()| ExitCode::SUCCESS)
        }
    };
    match outcome {
        Ok(code) => code,
        Err(problem) => {
            eprintln!("bench: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// The cases of a section whose names contain one of these words, or all if there is none.
fn cases(section: &str, filter: &[String]) -> Result<Vec<Case>, String> {
    let mut cases = self::section(section).expect("the sections of the command line exist");
    cases.retain(|case| filter.is_empty() || filter.iter().any(|word| case.name.contains(word)));
    if cases.is_empty() {
        return Err(format!("no case of `{section}` contains {}; `--list` prints them", filter.join(" or ")));
    }
    Ok(cases)
}

fn measure(section: &'static str, options: Options) -> Result<ExitCode, String> {
    let Options { filter, rounds, quick, full, json, list } = options;
    let cases = cases(section, &filter)?;
    if list {
        table::list(&cases);
        return Ok(ExitCode::SUCCESS);
    }
    let scale = match (quick, full) {
        (true, _) => Scale::Quick,
        (_, true) => Scale::Full,
        _ => Scale::Default,
    };
    let machine = machine::Machine::read();
    table::heading(section, &machine, rounds, scale);
    let mut measured = Vec::new();
    for case in &cases {
        let result = runner::run(&Plan { section, rounds, scale }, case)?;
        table::rows(case, &result);
        measured.push((case, result));
    }
    table::summary(&measured);
    if let Some(path) = json {
        let text = table::json(section, &machine, rounds, scale, &measured);
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

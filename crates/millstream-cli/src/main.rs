//! The `millstream` binary: parse, build, announce, wait, drain. Everything else is in the libraries.
#![forbid(unsafe_code)]

mod args;
mod broker;
mod dead_letters;
mod failure;
mod gateway;
mod input;
mod lint;
mod log;
mod out;
mod queue;
mod run;
mod signals;
mod stream;
mod table;
mod topology;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Command, Millstream};
use failure::Failure;
use out::Out;

/// Items are many small allocations, made on one thread and freed on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Clap prints help with code 0, and what is wrong with an argument with code 2.
    let arguments = Millstream::parse();
    match dispatch(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.report()),
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(run) => wait(run::run(run)),
        Command::Lint(lint) => lint::lint(&lint),
        Command::Graph(file) => lint::graph(&file),
        Command::Test(test) => lint::test(&test),
        Command::Gateway(command) => wait(gateway::gateway(command)),
        Command::Queue(command) => wait(queue::queue(command)),
        Command::Stream(command) => wait(stream::stream(command)),
        Command::Topology(command) => wait(topology::topology(command)),
        Command::DeadLetters(command) => wait(dead_letters::dead_letters(command)),
        Command::Log(command) => log::log(command),
        Command::Schema => schema(),
        Command::Completions { shell } => completions(shell),
    }
}

/// Runs a command that waits for things.
fn wait(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::of("cannot start the runtime", &error))?;
    let done = runtime.block_on(command);
    // A read of standard input cannot be taken back; it must not keep the process from ending.
    runtime.shutdown_background();
    done
}

fn schema() -> Result<(), Failure> {
    let mut out = Out::new();
    out.line(format!("{:#}", millstream_pipeline::schema()))?;
    out.flush()
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Millstream::command(), "millstream", &mut text);
    let mut out = Out::new();
    out.bytes(&text)?;
    out.flush()
}

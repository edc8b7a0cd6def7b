//! `millstream run`: check, build, announce, wait, drain, report.

mod file;
mod progress;
mod reach;
mod report;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millstream_observe::{Server, Snapshot};
use millstream_pipeline::{Brokers, Pipeline, Report, RunError, show_duration};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

use crate::args;
use crate::broker;
use crate::failure::Failure;
use crate::lint;
use crate::out::complain;
use crate::signals::Signals;
use crate::table::counted;
use file::ReportFile;
use progress::Progress;
use reach::Reach;
use watch::Watch;

/// How long an answer that is being given to a browser may take once the runs have ended.
const SERVER_DRAIN: Duration = Duration::from_secs(1);

/// The runs of this process: each task tells its number and how it ended.
type Runs = JoinSet<(usize, Result<Report, RunError>)>;

pub(crate) async fn run(asked: args::Run) -> Result<(), Failure> {
    // Everything that can be refused is refused before anything starts.
    let pipelines = lint::open_all(&asked.files, &asked.settings)?;
    named_apart(&asked.files, &pipelines)?;
    apart(&asked.files, &pipelines)?;
    let report = asked.report.as_deref().map(|path| ReportFile::create(path, &asked.files)).transpose()?;
    let mut signals = Signals::new()?;
    let watch = Arc::new(Watch::default());
    let brokers = Arc::new(Brokers::new());
    let server = serve(&asked, &watch, &brokers).await?;

    let mut runs = Runs::new();
    let mut failures = Vec::new();
    let mut signal = None;
    let numbered: Vec<_> = pipelines.iter().map(|pipeline| (watch.add(pipeline), pipeline)).collect();
    for (number, pipeline) in numbered {
        tokio::select! {
            biased;
            // A start may take its time: a broker that does not answer, a long log. One that is given up has accepted nothing.
            caught = signals.next() => {
                signal = Some(caught);
                announce_drain(&asked);
                break;
            }
            started = start(number, pipeline, &brokers, &watch, &mut runs) => failures.extend(started.err()),
        }
    }
    // Those that did start are not to run for long without the others.
    let stop = signal.is_some() || !failures.is_empty();
    let signal =
        wait(&mut runs, (&watch, &brokers), &mut signals, &asked, (stop, signal), &mut failures).await;

    if !asked.quiet {
        for run in watch.started() {
            complain(&format!("\n{}", report::text(&run).trim_end()));
        }
    }
    let written = report.map_or(Ok(()), |file| write(file, &watch));
    broker::warn_of_damage(&brokers).await;
    let closed = close(&brokers, &mut signals, signal.is_some()).await;
    if let Some(server) = server {
        server.shutdown(SERVER_DRAIN).await;
    }
    let others = [written, closed].into_iter().filter_map(Result::err);
    let failures: Vec<Failure> = failures.into_iter().chain(others).collect();
    for failure in &failures {
        failure.report();
    }
    match signal {
        _ if !failures.is_empty() => Err(Failure::Said),
        Some(signal) => Err(Failure::Signal(signal)),
        None => Ok(()),
    }
}

/// Refuses two pipelines of one name: they could not be told apart in reports and metrics, and would go on at each
/// other's positions.
fn named_apart(files: &[PathBuf], pipelines: &[Pipeline]) -> Result<(), Failure> {
    for (at, pipeline) in pipelines.iter().enumerate() {
        let name = pipeline.name();
        if let Some(first) = pipelines[..at].iter().position(|other| other.name() == name) {
            let (first, second) = (files[first].display(), files[at].display());
            return Err(Failure::Refused(format!(
                "{first} and {second} both name their pipeline `{name}`; what runs side by side needs names of its own"
            )));
        }
    }
    Ok(())
}

/// Refuses two pipelines that would take each other's items, or write each other's files.
fn apart(files: &[PathBuf], pipelines: &[Pipeline]) -> Result<(), Failure> {
    for (at, pipeline) in pipelines.iter().enumerate() {
        for (other, first) in pipelines[..at].iter().zip(files) {
            let both = format!("{} and {} both", first.display(), files[at].display());
            if pipeline.reads_stdin() && other.reads_stdin() {
                return Err(Failure::Refused(format!(
                    "{both} read standard input, and each would get some of its items; \
                     run one of them, or let one read `source.file` or a queue"
                )));
            }
            if let Some(queue) = pipeline.buffer_shared_with(other) {
                return Err(Failure::Refused(format!(
                    "{both} have queue `{queue}` as their buffer, and each would get some of the other's items; \
                     give each its own `buffer.queue.name`"
                )));
            }
            if let Some(path) = pipeline.output_shared_with(other) {
                return Err(Failure::Refused(format!(
                    "{both} can write {path}; give each its own `output.file.path`, as a directory of its own"
                )));
            }
        }
    }
    Ok(())
}

fn write(file: ReportFile, watch: &Watch) -> Result<(), Failure> {
    let report = watch.report().map_err(|error| Failure::of("the report is no JSON", &error))?;
    file.write(&report)
}

/// Starts the server, if one is asked for, and announces it.
async fn serve(
    asked: &args::Run,
    watch: &Arc<Watch>,
    brokers: &Arc<Brokers>,
) -> Result<Option<Server>, Failure> {
    let Some(address) = asked.listen else { return Ok(None) };
    let (watch, brokers) = (watch.clone(), brokers.clone());
    let look = move || Snapshot { runs: watch.snapshots(), brokers: watch::brokers(&brokers) };
    let server = Server::bind(address, look).await;
    let server = server.map_err(|error| Failure::of("cannot serve the status page", &error))?;
    if !asked.quiet {
        complain(&format!("status page: http://{}/", server.local_addr()));
    }
    Ok(Some(server))
}

/// Closes the brokers, or stops at once at the second signal; `signalled` says that there was a first one.
async fn close(brokers: &Brokers, signals: &mut Signals, mut signalled: bool) -> Result<(), Failure> {
    let closing = brokers.close();
    tokio::pin!(closing);
    loop {
        tokio::select! {
            biased;
            _ = signals.next() => {
                if std::mem::replace(&mut signalled, true) {
                    return Ok(());
                }
            }
            closed = &mut closing => {
                return closed.map_err(|error| Failure::of("cannot close the broker", &error));
            }
        }
    }
}

fn announce_drain(asked: &args::Run) {
    if !asked.quiet {
        let time = show_duration(asked.drain);
        complain(&format!("finishing what was accepted, for at most {time}; a second one stops at once"));
    }
}

async fn start(
    number: usize,
    pipeline: &Pipeline,
    brokers: &Brokers,
    watch: &Watch,
    runs: &mut Runs,
) -> Result<(), Failure> {
    match pipeline.start(brokers).await {
        Ok(run) => {
            watch.started_one(number, run.monitor());
            runs.spawn(async move { (number, run.join().await) });
            Ok(())
        }
        Err(error) => {
            let failure = Failure::of("nothing was read", &error);
            watch.failed(number, failure.text().to_owned());
            Err(failure)
        }
    }
}

/// Waits until all runs have ended, or until a signal and then a deadline or another signal end them. With `stop`, as if
/// a signal had come already; beside it is the one that has. Returns the signal, if there was one, and adds what failed.
async fn wait(
    runs: &mut Runs,
    (watch, brokers): (&Watch, &Brokers),
    signals: &mut Signals,
    asked: &args::Run,
    (stop, mut signal): (bool, Option<u8>),
    failures: &mut Vec<Failure>,
) -> Option<u8> {
    let mut progress = Progress::new(asked.quiet);
    let (mut reach, mut looks) = (Reach::default(), every(reach::LOOK));
    let mut shows = every(progress.period());
    let mut deadline = None;
    if stop {
        watch.drain();
        deadline = Instant::now().checked_add(asked.drain);
    }
    loop {
        tokio::select! {
            // A signal before everything else: with a run that ends at the same moment it is still what ended it.
            biased;
            number = signals.next() => {
                if signal.is_some() {
                    break;
                }
                signal = Some(number);
                deadline = Instant::now().checked_add(asked.drain);
                watch.drain();
                progress.clear();
                announce_drain(asked);
            }
            () = until(deadline) => break,
            ended = runs.join_next() => match ended {
                Some(Ok((number, result))) => {
                    let failed = ended_one(watch, number, result);
                    // At once: the others may go on for long.
                    if let Some(failure) = failed.as_ref().filter(|_| !runs.is_empty()) {
                        progress.clear();
                        let others = counted(runs.len() as u64, "other pipeline");
                        complain(&format!("error: {}\n{others} of this run still at work", failure.text()));
                    }
                    failures.extend(failed);
                }
                Some(Err(error)) => failures.push(Failure::of("a run was lost", &error)),
                None => break,
            },
            _ = looks.tick() => {
                let told = reach.look(&watch::brokers(brokers), &watch.snapshots());
                if !told.is_empty() {
                    progress.clear();
                }
                told.iter().for_each(|line| complain(line));
            }
            _ = shows.tick() => progress.show(&watch.snapshots()),
        }
    }
    progress.clear();
    watch.freeze();
    // What still runs is dropped: it gives what is not settled back to its source.
    runs.shutdown().await;
    signal
}

/// Ticks from one period on.
fn every(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Until then; for ever without a deadline.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Remembers how a run ended; the failure, if it is one.
fn ended_one(watch: &Watch, number: usize, result: Result<Report, RunError>) -> Option<Failure> {
    match result {
        Ok(report) => {
            watch.ended(number, report, None);
            None
        }
        // It ends quietly then, as every command does.
        Err(error) if error.nobody_reads() => {
            watch.stopped(number, error.report().clone());
            None
        }
        Err(error) => {
            watch.ended(number, error.report().clone(), Some(error.to_string()));
            Some(Failure::Failed(error.to_string()))
        }
    }
}

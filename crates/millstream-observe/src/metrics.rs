//! The metrics of runs, of brokers and of the process. `docs/metrics.md` lists them; a test holds the two together.

use crate::exposition::{Durations, Exposition, Labels, Metric, Value};
use crate::process::Process;
use crate::{
    BrokerSnapshot, HopSnapshot, KnobSnapshot, LatencySnapshot, RunSnapshot, RunState, Snapshot,
    StageSnapshot,
};

/// Labels of what a run has one of.
#[derive(Clone, Copy, Debug)]
pub struct ByPipeline<'a> {
    /// The name of the pipeline.
    pub pipeline: &'a str,
}

impl Labels for ByPipeline<'_> {
    const NAMES: &'static [&'static str] = &["pipeline"];
    fn values(&self) -> Vec<&str> {
        vec![self.pipeline]
    }
}

/// Labels of a run's state.
#[derive(Clone, Copy, Debug)]
pub struct ByState<'a> {
    /// The name of the pipeline.
    pub pipeline: &'a str,
    /// One of [`RunState::WORDS`].
    pub state: &'a str,
}

impl Labels for ByState<'_> {
    const NAMES: &'static [&'static str] = &["pipeline", "state"];
    fn values(&self) -> Vec<&str> {
        vec![self.pipeline, self.state]
    }
}

/// Labels of dropped items.
#[derive(Clone, Copy, Debug)]
pub struct ByStep<'a> {
    /// The name of the pipeline.
    pub pipeline: &'a str,
    /// The name of the step that drops.
    pub step: &'a str,
}

impl Labels for ByStep<'_> {
    const NAMES: &'static [&'static str] = &["pipeline", "step"];
    fn values(&self) -> Vec<&str> {
        vec![self.pipeline, self.step]
    }
}

/// Labels of what a stage has one of.
#[derive(Clone, Copy, Debug)]
pub struct ByStage<'a> {
    /// The name of the pipeline.
    pub pipeline: &'a str,
    /// The name of the stage.
    pub stage: &'a str,
}

impl Labels for ByStage<'_> {
    const NAMES: &'static [&'static str] = &["pipeline", "stage"];
    fn values(&self) -> Vec<&str> {
        vec![self.pipeline, self.stage]
    }
}

/// Labels of what a hop has one of.
#[derive(Clone, Debug)]
pub struct ByHop<'a> {
    /// The name of the pipeline.
    pub pipeline: &'a str,
    /// Which hop of the pipeline, counted from 1 at the source.
    pub hop: String,
}

impl Labels for ByHop<'_> {
    const NAMES: &'static [&'static str] = &["pipeline", "hop"];
    fn values(&self) -> Vec<&str> {
        vec![self.pipeline, &self.hop]
    }
}

/// Labels of a knob.
#[derive(Clone, Copy, Debug)]
pub struct ByKnob<'a> {
    /// The name of the pipeline.
    pub pipeline: &'a str,
    /// What the knob sets.
    pub knob: &'a str,
}

impl Labels for ByKnob<'_> {
    const NAMES: &'static [&'static str] = &["pipeline", "knob"];
    fn values(&self) -> Vec<&str> {
        vec![self.pipeline, self.knob]
    }
}

/// Labels of what a broker has one of.
#[derive(Clone, Copy, Debug)]
pub struct ByBroker<'a> {
    /// Its address, without a password.
    pub broker: &'a str,
}

impl Labels for ByBroker<'_> {
    const NAMES: &'static [&'static str] = &["broker"];
    fn values(&self) -> Vec<&str> {
        vec![self.broker]
    }
}

type Run = ByPipeline<'static>;
type Broker = ByBroker<'static>;
type Stage = ByStage<'static>;
type Hop = ByHop<'static>;
type Knob = ByKnob<'static>;

/// 1 for the state a run is in, 0 for the others.
pub const RUN_STATE: Metric<ByState<'static>> =
    Metric::gauge("millstream_run_state", "1 for the state the run is in, 0 for the others.");
/// 1 while a run refuses items, though it goes on.
pub const RUN_REFUSING: Metric<Run> = Metric::gauge(
    "millstream_run_refusing",
    "1 while the run refuses what is sent to it, though it goes on, as with a full disk, and for ten seconds more; 0 otherwise.",
);
/// How long a run has run.
pub const RUN_ELAPSED: Metric<Run> =
    Metric::gauge("millstream_run_elapsed_seconds", "How long the run has run, or ran if it has ended.");
/// Items that entered.
pub const RECEIVED: Metric<Run> = Metric::counter(
    "millstream_items_received_total",
    "Items that entered; the sum of completed, dropped, dead and in flight.",
);
/// Items that the sink confirmed.
pub const COMPLETED: Metric<Run> =
    Metric::counter("millstream_items_completed_total", "Items that the output confirmed.");
/// Items that a step dropped on purpose.
pub const DROPPED: Metric<ByStep<'static>> =
    Metric::counter("millstream_items_dropped_total", "Items that a step dropped on purpose.");
/// Items that failed and were put aside.
pub const DEAD: Metric<Run> =
    Metric::counter("millstream_items_dead_total", "Items that failed and were put aside.");
/// Items received and not yet settled.
pub const IN_FLIGHT: Metric<Run> =
    Metric::gauge("millstream_items_in_flight", "Items received and not yet completed, dropped or dead.");
/// The most memory the items of a run can take.
pub const MEMORY_BOUND: Metric<Run> =
    Metric::gauge("millstream_memory_bound_bytes", "The most memory the items of the run can take.");
/// Items that left a stage.
pub const STAGE_OUT: Metric<Stage> = Metric::counter(
    "millstream_stage_items_out_total",
    "Items that left the stage, for the next one or the sink.",
);
/// Time a stage worked.
pub const STAGE_BUSY: Metric<Stage> =
    Metric::counter("millstream_stage_busy_seconds_total", "Time the stage spent working.");
/// Time a stage waited for the next.
pub const STAGE_BLOCKED: Metric<Stage> = Metric::counter(
    "millstream_stage_blocked_seconds_total",
    "Time the stage waited for the one after it to take items.",
);
/// Time a stage waited for the one before.
pub const STAGE_STARVED: Metric<Stage> = Metric::counter(
    "millstream_stage_starved_seconds_total",
    "Time the stage waited for items from the one before it.",
);
/// Times a stage blocked its thread.
pub const STAGE_STALLS: Metric<Stage> = Metric::counter(
    "millstream_stage_stalls_total",
    "Times the stage worked for 100 ms or longer in one go, and so kept its thread from others.",
);
/// How long a stage has been at it.
pub const STAGE_WORKING: Metric<Stage> = Metric::gauge(
    "millstream_stage_working_seconds",
    "How long the stage has been working in one go, now: ever more if it never returns.",
);
/// Items waiting in a hop.
pub const HOP_ITEMS: Metric<Hop> =
    Metric::gauge("millstream_hop_items", "Items that wait between two stages.");
/// Items that fit into a hop.
pub const HOP_ITEMS_MAX: Metric<Hop> = Metric::gauge("millstream_hop_items_max", "Items that fit there.");
/// Bytes waiting in a hop.
pub const HOP_BYTES: Metric<Hop> = Metric::gauge("millstream_hop_bytes", "Bytes that wait there.");
/// Bytes that fit into a hop.
pub const HOP_BYTES_MAX: Metric<Hop> =
    Metric::gauge("millstream_hop_bytes_max", "Bytes that fit there, if the hop is bounded in bytes.");
/// Numbers that may be moved.
pub const KNOB_VALUE: Metric<Knob> =
    Metric::gauge("millstream_knob_value", "The number in force, of those that may be moved in a run.");
/// The lowest that they take.
pub const KNOB_MIN: Metric<Knob> = Metric::gauge("millstream_knob_min", "The lowest that it takes.");
/// The highest that they take.
pub const KNOB_MAX: Metric<Knob> = Metric::gauge("millstream_knob_max", "The highest that it takes.");
/// Those that somebody fixed.
pub const KNOB_FIXED: Metric<Knob> =
    Metric::gauge("millstream_knob_fixed", "1 if the number was given and is not moved, 0 if it may be.");
/// Connections with a broker.
pub const BROKER_CONNECTIONS: Metric<Broker> =
    Metric::gauge("millstream_broker_connections", "Connections with the broker that are there now.");
/// Connections that were made.
pub const BROKER_CONNECTS: Metric<Broker> =
    Metric::counter("millstream_broker_connects_total", "How often a connection was made.");
/// Connections that could not be made.
pub const BROKER_CONNECT_FAILURES: Metric<Broker> =
    Metric::counter("millstream_broker_connect_failures_total", "How often one was tried in vain.");
/// Bytes from a broker.
pub const BROKER_RECEIVED: Metric<Broker> =
    Metric::counter("millstream_broker_received_bytes_total", "Bytes that came from the broker.");
/// Bytes to a broker.
pub const BROKER_SENT: Metric<Broker> =
    Metric::counter("millstream_broker_sent_bytes_total", "Bytes that went to the broker.");
/// Messages handed over.
pub const BROKER_PUBLISHED: Metric<Broker> =
    Metric::counter("millstream_broker_published_total", "Messages handed over to be published.");
/// Messages not confirmed.
pub const BROKER_UNCONFIRMED: Metric<Broker> = Metric::gauge(
    "millstream_broker_unconfirmed",
    "Messages handed over of which the broker has not said yet what became.",
);
/// Consumers.
pub const BROKER_CONSUMERS: Metric<Broker> = Metric::gauge(
    "millstream_broker_consumers",
    "Consumers of the broker's queues or streams in this process.",
);
/// How long confirms took.
pub const BROKER_CONFIRM: Metric<Broker> = Metric::histogram(
    "millstream_broker_confirm_seconds",
    "How long batches took from when they were handed to the connection to when all their messages were confirmed.",
);
/// Resident memory of the process.
pub const PROCESS_MEMORY: Metric<()> =
    Metric::gauge("process_resident_memory_bytes", "Resident memory of the process.");
/// CPU time of the process.
pub const PROCESS_CPU: Metric<()> =
    Metric::counter("process_cpu_seconds_total", "User and system CPU time of the process.");
/// Series that did not fit into this exposition.
pub const SERIES_OMITTED: Metric<()> = Metric::gauge(
    "millstream_metrics_series_omitted",
    "Series left out of this exposition because a metric had more than 500.",
);

/// The exposition of these runs and brokers, and of this process where the system tells (Linux).
pub fn exposition(Snapshot { runs, brokers }: &Snapshot) -> String {
    let mut out = Exposition::default();
    out.show(&RUN_STATE, runs.iter().flat_map(states));
    show_runs(&mut out, runs, &RUN_REFUSING, |run| Value::Count(run.refusing.is_some().into()));
    show_runs(&mut out, runs, &RUN_ELAPSED, |run| Value::Number(run.elapsed.as_secs_f64()));
    show_runs(&mut out, runs, &RECEIVED, |run| Value::Count(run.ledger.received));
    show_runs(&mut out, runs, &COMPLETED, |run| Value::Count(run.ledger.completed));
    out.show(&DROPPED, runs.iter().flat_map(drops));
    show_runs(&mut out, runs, &DEAD, |run| Value::Count(run.ledger.dead));
    show_runs(&mut out, runs, &IN_FLIGHT, |run| Value::Count(run.ledger.in_flight));
    let bounds = runs.iter().filter_map(|run| Some((pipeline(run), Value::Count(run.memory_bound_bytes?))));
    out.show(&MEMORY_BOUND, bounds);

    show_stages(&mut out, runs, &STAGE_OUT, |stage| Value::Count(stage.items_out));
    show_stages(&mut out, runs, &STAGE_BUSY, |stage| Value::Number(stage.busy.as_secs_f64()));
    show_stages(&mut out, runs, &STAGE_BLOCKED, |stage| Value::Number(stage.blocked.as_secs_f64()));
    show_stages(&mut out, runs, &STAGE_STARVED, |stage| Value::Number(stage.starved.as_secs_f64()));
    show_stages(&mut out, runs, &STAGE_STALLS, |stage| Value::Count(stage.stalls));
    show_stages(&mut out, runs, &STAGE_WORKING, |stage| Value::Number(stage.working.as_secs_f64()));
    show_hops(&mut out, runs, &HOP_ITEMS, |hop| Some(hop.items));
    show_hops(&mut out, runs, &HOP_ITEMS_MAX, |hop| Some(hop.items_max));
    show_hops(&mut out, runs, &HOP_BYTES, |hop| Some(hop.bytes));
    show_hops(&mut out, runs, &HOP_BYTES_MAX, |hop| hop.bytes_max);

    show_knobs(&mut out, runs, &KNOB_VALUE, |knob| knob.value);
    show_knobs(&mut out, runs, &KNOB_MIN, |knob| knob.min);
    show_knobs(&mut out, runs, &KNOB_MAX, |knob| knob.max);
    show_knobs(&mut out, runs, &KNOB_FIXED, |knob| u64::from(knob.fixed));

    show_brokers(&mut out, brokers, &BROKER_CONNECTIONS, |broker| broker.connections);
    show_brokers(&mut out, brokers, &BROKER_CONNECTS, |broker| broker.connects);
    show_brokers(&mut out, brokers, &BROKER_CONNECT_FAILURES, |broker| broker.failed_connects);
    show_brokers(&mut out, brokers, &BROKER_RECEIVED, |broker| broker.bytes_in);
    show_brokers(&mut out, brokers, &BROKER_SENT, |broker| broker.bytes_out);
    show_brokers(&mut out, brokers, &BROKER_PUBLISHED, |broker| broker.published);
    show_brokers(&mut out, brokers, &BROKER_UNCONFIRMED, |broker| broker.unconfirmed);
    show_brokers(&mut out, brokers, &BROKER_CONSUMERS, |broker| broker.consumers);
    out.show_durations(&BROKER_CONFIRM, brokers.iter().map(confirms));

    if let Some(process) = Process::now() {
        out.show(&PROCESS_MEMORY, [((), Value::Count(process.resident_bytes))]);
        out.show(&PROCESS_CPU, [((), Value::Number(process.cpu.as_secs_f64()))]);
    }
    out.finish()
}

fn show_brokers(
    out: &mut Exposition,
    brokers: &[BrokerSnapshot],
    metric: &Metric<Broker>,
    value: fn(&BrokerSnapshot) -> u64,
) {
    let each =
        brokers.iter().map(|broker| (ByBroker { broker: &broker.broker }, Value::Count(value(broker))));
    out.show(metric, each);
}

fn confirms(broker: &BrokerSnapshot) -> (ByBroker<'_>, Durations<'_>) {
    let LatencySnapshot { bounds, counts, sum } = &broker.confirms;
    (ByBroker { broker: &broker.broker }, Durations { bounds, counts, sum: *sum })
}

fn pipeline(run: &RunSnapshot) -> ByPipeline<'_> {
    ByPipeline { pipeline: &run.name }
}

fn states(run: &RunSnapshot) -> impl Iterator<Item = (ByState<'_>, Value)> {
    RunState::WORDS.into_iter().map(|state| {
        (ByState { pipeline: &run.name, state }, Value::Count(u64::from(state == run.state.word())))
    })
}

fn drops(run: &RunSnapshot) -> impl Iterator<Item = (ByStep<'_>, Value)> {
    run.ledger
        .dropped
        .iter()
        .map(|(step, items)| (ByStep { pipeline: &run.name, step }, Value::Count(*items)))
}

fn show_runs(
    out: &mut Exposition,
    runs: &[RunSnapshot],
    metric: &Metric<Run>,
    value: fn(&RunSnapshot) -> Value,
) {
    out.show(metric, runs.iter().map(|run| (pipeline(run), value(run))));
}

fn show_stages(
    out: &mut Exposition,
    runs: &[RunSnapshot],
    metric: &Metric<Stage>,
    value: fn(&StageSnapshot) -> Value,
) {
    let stages = runs.iter().flat_map(|run| run.stages.iter().map(move |stage| (run, stage)));
    out.show(
        metric,
        stages.map(|(run, stage)| (ByStage { pipeline: &run.name, stage: &stage.name }, value(stage))),
    );
}

fn show_hops(
    out: &mut Exposition,
    runs: &[RunSnapshot],
    metric: &Metric<Hop>,
    value: fn(&HopSnapshot) -> Option<u64>,
) {
    let hops = runs.iter().flat_map(|run| run.hops.iter().enumerate().map(move |(at, hop)| (run, at, hop)));
    out.show(
        metric,
        hops.filter_map(|(run, at, hop)| {
            let labels = ByHop { pipeline: &run.name, hop: (at + 1).to_string() };
            Some((labels, Value::Count(value(hop)?)))
        }),
    );
}

fn show_knobs(
    out: &mut Exposition,
    runs: &[RunSnapshot],
    metric: &Metric<Knob>,
    value: fn(&KnobSnapshot) -> u64,
) {
    let knobs = runs.iter().flat_map(|run| run.knobs.iter().map(move |knob| (run, knob)));
    out.show(
        metric,
        knobs
            .map(|(run, knob)| (ByKnob { pipeline: &run.name, knob: &knob.name }, Value::Count(value(knob)))),
    );
}

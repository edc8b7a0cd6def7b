//! Runs: how they end, are stopped and dropped, and what they report.

use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use millstream_flow::{
    BoxError, Capacity, Ended, Pipe, Run, RunError, RunErrorKind, Sink, SinkError, Tracked, Tracker,
};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{Ear, End, tracked, tracked_stream};

const SOON: Duration = Duration::from_secs(60);

/// Counts those of its clones that are alive, and tells when the last has gone.
#[derive(Clone)]
struct Guard(Arc<(AtomicUsize, Notify)>);

impl Guard {
    fn new() -> Self {
        Guard(Arc::default())
    }
    fn one(&self) -> Held {
        self.0.0.fetch_add(1, Ordering::SeqCst);
        Held(self.clone())
    }
    fn alive(&self) -> usize {
        self.0.0.load(Ordering::SeqCst)
    }
    async fn all_gone(&self) {
        while self.alive() > 0 {
            self.0.1.notified().await;
        }
    }
}

/// What a function of the flow owns.
struct Held(Guard);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.0.fetch_sub(1, Ordering::SeqCst);
        self.0.0.1.notify_one();
    }
}

/// A run with a task of every kind, each of whose functions owns something; and a way to feed it.
fn every_kind_of_task(guard: &Guard) -> (mpsc::Sender<u32>, Run<()>) {
    let (feed, fed) = mpsc::channel(8);
    let own = |held: Held| move |n: u32| (&held, n).1;
    let pipe = Pipe::from_stream(ReceiverStream::new(fed)).map(own(guard.one())).buffer(4);
    let pipe = pipe.map(own(guard.one())).parallel(2, own(guard.one()));
    let pipe = Pipe::merge_all(pipe.map(own(guard.one())).broadcast(2, 4));
    let pipe = pipe.per_key(2, 4, |n| *n, |lane| lane.map(own(guard.one())));
    let held = guard.one();
    let pipe = pipe.map_async(4, move |n| {
        let own = held.0.one();
        async move {
            let _own = own;
            pending::<()>().await;
            n
        }
    });
    (
        feed,
        pipe.for_each({
            let own = own(guard.one());
            move |n| drop(own(n).to_string())
        })
        .start(),
    )
}

#[tokio::test(start_paused = true)]
async fn dropping_a_run_stops_every_task_and_runs_their_clean_up() {
    let guard = Guard::new();
    let (feed, run) = every_kind_of_task(&guard);
    let at_rest = guard.alive();
    for n in 0..8 {
        feed.send(n).await.unwrap();
    }
    while guard.alive() < at_rest + 4 {
        tokio::task::yield_now().await;
    }
    drop(run);
    timeout(SOON, guard.all_gone()).await.expect("everything is dropped");
    assert!(feed.is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_past_its_deadline_has_stopped_every_task_when_it_returns() {
    let guard = Guard::new();
    let (feed, run) = every_kind_of_task(&guard);
    let at_rest = guard.alive();
    feed.send(1).await.unwrap();
    while guard.alive() == at_rest {
        tokio::task::yield_now().await;
    }
    let began = Instant::now();
    let error = run.shutdown(Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    assert!(matches!(error.ended(), Ended::Deadline(_)));
    assert_eq!(guard.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_finishes_what_was_accepted_and_accepts_nothing_more() {
    let (feed, fed) = mpsc::channel(8);
    let (pipe, ear, _) = tracked_stream(ReceiverStream::new(fed));
    let slow = pipe.buffer(4).map_async(2, async |n: u32| {
        tokio::time::sleep(Duration::from_secs(3)).await;
        n
    });
    let run = slow.collect().start();
    for n in 0..5 {
        feed.send(n).await.unwrap();
    }
    let monitor = run.monitor();
    while monitor.report().ledger.received < 5 {
        tokio::task::yield_now().await;
    }
    let began = Instant::now();
    let (items, report) = run.shutdown(Duration::from_secs(60)).await.unwrap();
    assert_eq!(items, [0, 1, 2, 3, 4]);
    assert_eq!(began.elapsed(), Duration::from_secs(9), "two at a time");
    assert_eq!((report.ledger.completed, report.ledger.in_flight), (5, 0));
    assert_eq!(ear.list(), vec![End::Completed; 5]);
    assert!(feed.is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_past_its_deadline_reports_what_was_left_and_gives_it_back() {
    let (pipe, ear, _) = tracked(0..3u32);
    let stuck = pipe.map_async(3, async |n| if n == 0 { n } else { pending().await });
    let error = stuck.collect().start().shutdown(Duration::from_secs(1)).await;
    // The shutdown came before anything ran: nothing was accepted.
    assert_eq!(error.unwrap().1.ledger.received, 0);
    ear.list();

    let (pipe, ear, account) = tracked(stream::iter(0..3u32).collect::<Vec<_>>().await);
    let stuck = pipe.map_async(3, async |n| if n == 0 { n } else { pending().await });
    let run = stuck.collect().start();
    while account.completed() == 0 {
        tokio::task::yield_now().await;
    }
    let error = run.shutdown(Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.report().ledger.in_flight, 2);
    assert_eq!(error.to_string(), "2 items were still under way when the shutdown's deadline of 1s passed");
    assert_eq!(ear.list(), [End::Completed, End::Abandoned, End::Abandoned]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_a_source_that_waits() {
    let run = Pipe::from_stream(stream::pending::<u32>()).buffer(2).collect().start();
    tokio::task::yield_now().await;
    run.monitor().stop();
    let (items, _) = timeout(SOON, run.join()).await.expect("the run ends").unwrap();
    assert!(items.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_sources_that_never_wait_and_whose_items_are_all_dropped() {
    let endless = || Pipe::from_iter(0..u64::MAX).filter(|_| false);
    let runs = [
        endless().collect().start(),
        endless().merge(endless()).collect().start(),
        endless().boxed().merge(endless().boxed()).boxed().collect().start(),
        endless().buffer(3).batch(millstream_flow::Batch::count(2)).unbatch().collect().start(),
        endless().parallel(2, |n| n).map_async(2, async |n| n).take(3).collect().start(),
    ];
    for run in runs {
        tokio::task::yield_now().await;
        timeout(SOON, run.shutdown(SOON)).await.expect("the run ends").unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_monitor_of_any_part_stops_the_whole_run() {
    let first = Pipe::from_stream(stream::pending::<u32>());
    let second = Pipe::from_stream(stream::pending::<u32>());
    let monitor = second.monitor();
    let run = first.merge(second).collect().start();
    tokio::task::yield_now().await;
    monitor.stop();
    timeout(SOON, run.join()).await.expect("the run ends").unwrap();
}

#[tokio::test(start_paused = true)]
async fn lanes_that_meet_again_by_way_of_another_flow_are_one_run() {
    let mut lanes = Pipe::from_iter(0..10u32).broadcast(2, 4).into_iter();
    let (left, right) = (lanes.next().unwrap(), lanes.next().unwrap());
    let mixed = Pipe::from_iter(100..105u32).merge(left);
    let (mut items, report) =
        timeout(SOON, async { right.merge(mixed).collect().await.unwrap() }).await.unwrap();
    items.sort_unstable();
    assert_eq!(items.len(), 25);
    assert_eq!((report.ledger.received, report.ledger.completed, report.ledger.in_flight), (15, 25, 0));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_fails_the_run_with_its_cause() {
    let ear = Ear::default();
    let mut tracker = ear.tracker();
    let account = tracker.account();
    let first = Tracked { value: 1u32, token: tracker.issue() };
    let items = stream::iter([Ok(first), Err(BoxError::from("the disk is gone"))]);
    let error = Pipe::from_tracked(account, items).buffer(2).collect().await.unwrap_err();
    assert!(matches!(error.ended(), Ended::Failed(RunErrorKind::Source(_))));
    assert_eq!(error.to_string(), "the source failed: the disk is gone");
    ear.list();
}

/// A sink that answers as it is told.
struct Told {
    answers: Vec<Result<(), SinkError>>,
    closed: Arc<AtomicBool>,
    writes: Arc<Mutex<Vec<Vec<u32>>>>,
}

impl Sink for Told {
    type Item = u32;
    async fn write(&mut self, items: &mut Vec<u32>) -> Result<(), SinkError> {
        self.writes.lock().unwrap().push(items.clone());
        self.answers.pop().unwrap_or(Ok(()))
    }
    async fn close(&mut self) -> Result<(), BoxError> {
        self.closed.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn chunk(&self) -> usize {
        3
    }
}

type Writes = Arc<Mutex<Vec<Vec<u32>>>>;

async fn sink_says(answer: Result<(), SinkError>) -> (Vec<End>, Result<(), RunError>, bool, Writes) {
    let (closed, writes) = (Arc::new(AtomicBool::new(false)), Writes::default());
    let sink = Told { answers: vec![answer], closed: closed.clone(), writes: writes.clone() };
    let (pipe, ear, _) = tracked(0..5u32);
    let ended = pipe.into_sink(sink).await.map(drop);
    (ear.list(), ended, closed.load(Ordering::SeqCst), writes)
}

#[tokio::test(start_paused = true)]
async fn a_sink_gets_chunks_of_its_size_and_confirms_them() {
    let (ends, ended, closed, writes) = sink_says(Ok(())).await;
    ended.unwrap();
    assert_eq!(ends, vec![End::Completed; 5]);
    assert_eq!(*writes.lock().unwrap(), [vec![0, 1, 2], vec![3, 4]]);
    assert!(closed);
}

#[tokio::test(start_paused = true)]
async fn items_that_a_sink_rejects_are_dead_and_the_others_of_the_write_confirmed() {
    let rejected = vec![(2, "too late".into()), (0, "too early".into())];
    let (ends, ended, closed, _) = sink_says(Err(SinkError::Rejected(rejected))).await;
    ended.unwrap();
    let dead = |reason: &str| End::Dead(reason.into());
    let done = End::Completed;
    assert_eq!(ends, [dead("too early"), done.clone(), dead("too late"), done.clone(), done]);
    assert!(closed);
}

#[tokio::test(start_paused = true)]
async fn items_that_a_sink_skips_are_dropped_by_its_word_for_it() {
    let skipped = || Err(SinkError::Skipped(vec![2, 0], "stale".into()));
    let (ends, ended, closed, _) = sink_says(skipped()).await;
    ended.unwrap();
    let (stale, done) = (End::Dropped("stale".into()), End::Completed);
    assert_eq!(ends, [stale.clone(), done.clone(), stale, done.clone(), done]);
    assert!(closed);
    // Without tokens they are counted all the same.
    let sink =
        Told { answers: vec![skipped(), skipped()], closed: Default::default(), writes: Writes::default() };
    let (_, report) = Pipe::from_iter(0..9u32).into_sink(sink).await.unwrap();
    assert_eq!((report.ledger.completed, report.ledger.dropped["stale"]), (5, 4));
    assert!(report.ledger.balances(), "{:?}", report.ledger);
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_rejects_what_it_was_not_given_fails_the_run() {
    let (ends, ended, closed, _) = sink_says(Err(SinkError::Rejected(vec![(3, "what?".into())]))).await;
    assert_eq!(ended.unwrap_err().to_string(), "the sink failed: it rejected item 3 of a write of 3 items");
    assert!(ends.iter().all(|end| *end == End::Abandoned));
    assert!(!closed);
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_fails_confirms_nothing_of_its_write_and_is_not_closed() {
    let (ends, ended, closed, _) = sink_says(Err(SinkError::Failed("disk full".into()))).await;
    assert_eq!(ended.unwrap_err().to_string(), "the sink failed: disk full");
    assert!(ends.iter().all(|end| *end == End::Abandoned));
    assert!(!closed);
}

/// A sink whose first write never ends.
struct Stuck;

impl Sink for Stuck {
    type Item = u32;
    async fn write(&mut self, _: &mut Vec<u32>) -> Result<(), SinkError> {
        pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn who_feeds_a_source_fails_its_run_though_the_sink_writes_for_ever_and_the_first_failure_counts() {
    let (pipe, ear, _) = tracked([1u32, 2, 3]);
    let monitor = pipe.monitor();
    let run = pipe.buffer(1).into_sink(Stuck).start();
    tokio::task::yield_now().await;
    monitor.fail("the disk is full");
    monitor.fail("and another thing");
    let Err(error) = timeout(SOON, run.join()).await.expect("the run ends") else { panic!("it fails") };
    assert!(matches!(error.ended(), Ended::Failed(RunErrorKind::Source(_))));
    assert_eq!(error.to_string(), "the source failed: the disk is full");
    let ends = ear.list();
    assert!(!ends.is_empty() && ends.iter().all(|end| *end == End::Abandoned), "{ends:?}");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_has_ended_does_not_fail() {
    let pipe = Pipe::from_iter([1u32]);
    let monitor = pipe.monitor();
    let run = pipe.for_each(drop).start();
    while monitor.report().ledger.completed < 1 {
        tokio::task::yield_now().await;
    }
    tokio::time::advance(SOON).await;
    monitor.fail("too late");
    run.join().await.expect("it had ended");
}

#[tokio::test(start_paused = true)]
async fn a_failure_elsewhere_ends_a_sink_that_writes_for_ever() {
    let (feed, fed) = mpsc::channel(4);
    let source = Pipe::from_stream(ReceiverStream::new(fed)).map(|n| {
        assert!(n < 2, "a test panics");
        n
    });
    let run = source.buffer(4).into_sink(Stuck).start();
    feed.send(1).await.unwrap();
    tokio::task::yield_now().await;
    feed.send(2).await.unwrap();
    let Err(error) = timeout(SOON, run.join()).await.expect("the run ends") else { panic!("it fails") };
    assert!(error.to_string().contains("a test panics"));
}

#[tokio::test(start_paused = true)]
async fn a_failure_in_one_lane_ends_the_runs_of_all_lanes_and_each_is_told_why() {
    for failing in [0, 1] {
        let (feed, fed) = mpsc::channel(4);
        let lanes = Pipe::from_stream(ReceiverStream::new(fed)).broadcast(2, 4);
        let runs: Vec<_> = lanes
            .into_iter()
            .enumerate()
            .map(|(lane, pipe)| {
                pipe.for_each(move |n: u32| assert!(lane != failing || n < 2, "a test panics"))
            })
            .map(|plan| plan.start())
            .collect();
        for n in 0..3 {
            feed.send(n).await.unwrap();
        }
        for run in runs {
            let error = timeout(SOON, run.join()).await.expect("the run ends").unwrap_err();
            assert!(error.to_string().contains("a test panics"), "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lanes_run_does_not_wait_for_the_other_lanes() {
    let mut lanes = Pipe::from_stream(stream::pending::<u32>()).broadcast(2, 4).into_iter();
    let run = lanes.next().unwrap().for_each(drop).start();
    let other = lanes.next().unwrap();
    tokio::task::yield_now().await;
    timeout(SOON, run.shutdown(Duration::ZERO)).await.expect("the shutdown returns").ok();
    drop(other);
}

#[test]
fn the_ledger_of_lanes_that_end_in_several_threads_is_exact() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async {
        const ITEMS: u64 = 100_000;
        let runs: Vec<_> = Pipe::from_iter(0..ITEMS)
            .broadcast(2, 64)
            .into_iter()
            .map(|lane| lane.for_each(drop).start())
            .collect();
        let monitor = runs[0].monitor();
        for run in runs {
            run.join().await.unwrap();
        }
        let ledger = monitor.report().ledger;
        assert_eq!((ledger.completed, ledger.in_flight), (2 * ITEMS, 0), "{ledger:?}");

        let lanes = Pipe::from_iter(0..ITEMS).broadcast(2, 64);
        let monitor = lanes[0].monitor();
        let streams: Vec<_> = lanes.into_iter().map(|lane| tokio::spawn(lane.count())).collect();
        for stream in streams {
            assert_eq!(stream.await.unwrap() as u64, ITEMS);
        }
        assert_eq!(monitor.report().ledger.completed, 2 * ITEMS);
    });
}

#[tokio::test(start_paused = true)]
async fn the_report_names_the_stages_hops_and_the_memory_bound() {
    let measured = Capacity::items(8).bytes(1000, |n: &u64| *n as usize);
    let plan =
        Pipe::from_iter(0..100u64).filter(|n| n % 2 == 0).named("even").buffer_measured(measured).collect();
    let before = plan.report();
    assert_eq!(before.memory_bound_bytes, before.memory.iter().map(|part| part.bytes).sum::<u64>());
    assert_eq!(before.memory_bound_bytes, 8 * 8 + 1000, "eight slots of eight bytes, and the items' own");
    let (items, report) = plan.await.unwrap();
    assert_eq!(items.len(), 50);
    let names: Vec<_> = report.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["iter → even → buffer", "collect"]);
    assert_eq!((report.stages[0].items_out, report.stages[1].items_out), (50, 50));
    let even = &report.stages[0].operators[1];
    assert_eq!((even.name.as_str(), even.kind.as_str(), even.dropped), ("even", "filter", 50));
    let hop = &report.hops[0];
    assert_eq!((hop.items, hop.capacity, hop.bytes_max, hop.len), (50, 8, Some(1000), 0));
    assert!(hop.chunks > 0 && hop.chunks <= 50 && (1..=8).contains(&hop.len_max));
    assert_eq!(report.memory_bound_bytes, before.memory_bound_bytes);
}

#[tokio::test(start_paused = true)]
async fn waiting_is_accounted_to_whoever_waits() {
    let (feed, fed) = mpsc::channel(4);
    let run = Pipe::from_stream(ReceiverStream::new(fed)).buffer(1).into_sink(Gate).start();
    for n in 0..4u32 {
        feed.send(n).await.unwrap();
        tokio::task::yield_now().await;
    }
    drop(feed);
    let (_, report) = run.join().await.unwrap();
    assert!(report.stages.iter().all(|stage| stage.busy_seconds > 0.0 && stage.quanta > 0));
    assert!(report.stages[1].blocked_seconds > 0.0, "its sink was writing");
    assert!(report.stages.iter().any(|stage| stage.starved_seconds > 0.0));
}

/// A sink that gives way once a write.
struct Gate;

impl Sink for Gate {
    type Item = u32;
    async fn write(&mut self, _: &mut Vec<u32>) -> Result<(), SinkError> {
        crate::support::yields(3).await;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn elapsed_time_is_the_paused_clocks() {
    let run = Pipe::from_iter(0..2).map_async(1, async |_| tokio::time::sleep(Duration::from_secs(30)).await);
    let (_, report) = run.collect().await.unwrap();
    assert_eq!(report.elapsed(), Duration::from_secs(60));
}

#[test]
fn a_run_whose_runtime_goes_away_gives_its_items_back() {
    let (pipe, ear, account) = tracked(0..3u32);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let run = runtime.block_on(async {
        let run = pipe.buffer(4).map_async(3, |_| pending::<()>()).for_each(drop).start();
        while account.received() < 3 {
            tokio::task::yield_now().await;
        }
        run
    });
    drop(runtime);
    assert_eq!(ear.list(), vec![End::Abandoned; 3]);
    let waiting = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = waiting.block_on(run.join()).unwrap_err();
    assert!(matches!(error.ended(), Ended::Failed(RunErrorKind::Cancelled)), "{error}");
}

#[test]
fn a_tracker_outlives_its_source_and_its_tokens_the_tracker() {
    let ear = Ear::default();
    let mut tracker: Tracker = ear.tracker();
    let tokens: Vec<_> = (0..5000).map(|_| tracker.issue()).collect();
    drop(tracker);
    drop(tokens);
    assert_eq!(ear.list(), vec![End::Abandoned; 5000]);
}

#[tokio::test(start_paused = true)]
async fn a_flow_in_which_nothing_is_under_way_ends_well_whatever_the_deadline() {
    let run = Pipe::from_stream(stream::iter(0..3u32).chain(stream::pending())).buffer(2).collect().start();
    while run.report().ledger.completed < 3 {
        tokio::task::yield_now().await;
    }
    let (items, report) = run.shutdown(Duration::ZERO).await.expect("there is nothing to wait for");
    assert_eq!((items, report.ledger.in_flight), (vec![0, 1, 2], 0));
}

/// Looking at a run must not take longer than as it grows: this one took minutes.
#[test]
fn a_report_of_many_joined_flows_names_each_knob_and_is_made_at_once() {
    let pipe = Pipe::merge_all((0..3_000u32).map(|n| Pipe::from_iter([n]).buffer(4)));
    let report = pipe.for_each(drop).report();
    let names: std::collections::HashSet<_> = report.knobs.iter().map(|knob| &knob.name).collect();
    assert_eq!((report.knobs.len(), names.len()), (3_000, 3_000));
    let first: Vec<_> = report.knobs.iter().take(3).map(|knob| &knob.name[..]).collect();
    assert_eq!(first, ["buffer 1 capacity", "buffer 1 capacity 2", "buffer 1 capacity 3"]);
}

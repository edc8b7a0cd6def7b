//! Random chains against the model: driven by hand in random quanta, run on a runtime, and stopped anywhere.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use millstream_flow::{
    BoxError, Flow, Outcome, PanicPolicy, Pipe, Sink, SinkError, Step, TokenRuns, Tracked,
};
use proptest::prelude::*;
use tokio::time::timeout;

use crate::chain::{Collected, Op, build, chains};
use crate::model::expect;
use crate::support::{Checked, Ear, End, Issue, fitful, flow_of, no_breaches};

/// Longer than any flow of these tests waits, in virtual time: reaching it means that a wake-up was lost.
const FOREVER: Duration = Duration::from_secs(3600);

/// Some hundreds of cases, or what a soak takes time for.
fn cases() -> u32 {
    if std::env::var_os("MILLSTREAM_SOAK").is_some() { 200_000 } else { 300 }
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// A source of the numbers that is not ready at random moments, behind its chain.
fn chain<K: Issue>(
    numbers: &[u64],
    ops: &[Op],
    seed: u64,
    ear: &Ear,
) -> (Pipe<Checked<u64, K>>, Arc<millstream_flow::Account>) {
    let mut tracker = ear.tracker();
    let account = tracker.account();
    let items = Vec::from(numbers)
        .into_iter()
        .map(move |value| Ok::<_, BoxError>(Tracked { value, token: K::issue(&mut tracker) }));
    let source = Pipe::from_tracked(account.clone(), fitful(items, seed));
    (build(source.on_panic(PanicPolicy::Dead), ops), account)
}

/// Drives the flow in quanta of random size, breaking off at random, for at most `rounds` of them.
async fn by_hand(mut flow: Checked<u64, TokenRuns>, mut dice: Rng, rounds: usize) -> (Vec<u64>, bool) {
    use millstream_flow::Settle;
    let mut out = Vec::new();
    for _ in 0..rounds {
        let step = poll_fn(|cx| {
            let max = 1 + dice.u64(..if dice.clone().u64(..3) == 0 { 300 } else { 8 }) as usize;
            flow.poll_drive(cx, max, &mut |number, token: TokenRuns| {
                out.push(number);
                token.settle(&Outcome::Completed);
                if dice.u64(..5) == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        });
        if step.await == Step::End {
            return (out, true);
        }
    }
    (out, false)
}

fn numbers() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(0..1000u64, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_quanta_and_any_breaks_give_what_the_vectors_give(
        ops in chains(false), numbers in numbers(), seed in any::<u64>(),
    ) {
        let expected = expect(&ops, &numbers);
        let ear = Ear::default();
        let (pipe, account) = chain::<TokenRuns>(&numbers, &ops, seed, &ear);
        let flow = flow_of(pipe);
        let run = by_hand(flow, Rng::with_seed(!seed), usize::MAX);
        let (out, ended) = paused().block_on(async { timeout(FOREVER, run).await.expect("a wake-up was lost") });
        no_breaches();
        assert!(ended);
        expected.check_out(out, true);
        expected.check_ends(&ear.ends(), true);
        assert_eq!(ear.ends().len() as u64, account.received(), "every issued token is settled");
    }

    #[test]
    fn a_flow_dropped_anywhere_gives_every_token_back_once(
        ops in chains(false), numbers in numbers(), seed in any::<u64>(), rounds in 0..60usize,
    ) {
        let expected = expect(&ops, &numbers);
        let ear = Ear::default();
        let (pipe, account) = chain::<TokenRuns>(&numbers, &ops, seed, &ear);
        let flow = flow_of(pipe);
        let run = by_hand(flow, Rng::with_seed(!seed), rounds);
        let (out, ended) = paused().block_on(async { timeout(FOREVER, run).await.expect("a wake-up was lost") });
        no_breaches();
        expected.check_out(out, ended);
        expected.check_ends(&ear.ends(), ended);
        assert_eq!(ear.ends().len() as u64, account.received(), "every issued token is settled");
    }

    #[test]
    fn a_tracked_run_gives_what_the_vectors_give_and_its_ledger_is_exact(
        ops in chains(true), numbers in numbers(), seed in any::<u64>(), sink in any::<bool>(),
    ) {
        let expected = expect(&ops, &numbers);
        let ear = Ear::default();
        let out = Collected::default();
        let report = paused().block_on(async {
            let (pipe, _) = chain::<TokenRuns>(&numbers, &ops, seed, &ear);
            let run = run(pipe, &out, sink.then(|| Rng::with_seed(seed)));
            timeout(FOREVER, run).await.expect("a wake-up was lost")
        });
        no_breaches();
        expected.check_out(out.lock().unwrap().clone(), true);
        let ends = ear.ends();
        expected.check_ends(&ends, true);
        let count = |which: fn(&End) -> bool| ends.values().filter(|end| which(end)).count() as u64;
        let ledger = &report.ledger;
        assert!(ledger.balances(), "{ledger:?}");
        assert_eq!(ledger.received, ends.len() as u64, "every issued token is settled");
        assert_eq!(ledger.completed, count(|end| matches!(end, End::Completed)));
        assert_eq!(ledger.dead, count(|end| matches!(end, End::Dead(_))));
        assert_eq!(ledger.dropped_total(), count(|end| matches!(end, End::Dropped(_))));
        assert_eq!(ledger.in_flight, count(|end| matches!(end, End::Abandoned)));
    }

    #[test]
    fn an_untracked_run_gives_what_the_vectors_give_and_its_ledger_is_exact(
        ops in chains(true), numbers in numbers(), seed in any::<u64>(), sink in any::<bool>(),
    ) {
        let expected = expect(&ops, &numbers);
        let out = Collected::default();
        let report = paused().block_on(async {
            let source = Pipe::from_stream(fitful(numbers.clone().into_iter(), seed));
            let pipe = build(source.on_panic(PanicPolicy::Dead), &ops);
            let run = run(pipe, &out, sink.then(|| Rng::with_seed(seed)));
            timeout(FOREVER, run).await.expect("a wake-up was lost")
        });
        no_breaches();
        let out = out.lock().unwrap().clone();
        let ledger = &report.ledger;
        assert!(ledger.balances(), "{ledger:?}");
        assert_eq!(ledger.completed, out.len() as u64);
        if !expected.takes {
            assert_eq!((ledger.received, ledger.in_flight), (numbers.len() as u64, 0), "{ledger:?}");
        }
        expected.check_out(out, true);
    }

    #[test]
    fn a_run_dropped_anywhere_gives_every_token_back_once(
        ops in chains(true), numbers in numbers(), seed in any::<u64>(), turns in 0..40usize, how in 0..3u8,
    ) {
        let expected = expect(&ops, &numbers);
        let ear = Ear::default();
        let out = Collected::default();
        paused().block_on(async {
            let (pipe, _) = chain::<TokenRuns>(&numbers, &ops, seed, &ear);
            let seen = out.clone();
            let run = pipe.for_each(move |number| seen.lock().unwrap().push(number)).start();
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            match how {
                0 => drop(run),
                1 => drop(run.shutdown(Duration::ZERO).await),
                _ => {
                    let (_, report) = run.shutdown(FOREVER).await.expect("what was accepted flows to its end");
                    assert!(expected.takes || report.ledger.in_flight == 0, "{:?}", report.ledger);
                }
            }
            timeout(FOREVER, ear.all_ended()).await.expect("every issued token is settled");
        });
        no_breaches();
        let ends = ear.ends();
        if !ops.iter().any(|op| op.needs_order()) {
            // A stopped source cuts batches short, and so changes their sums; other items are the same ones.
            expected.check_ends(&ends, false);
            expected.check_out(out.lock().unwrap().clone(), false);
        }
    }
}

/// Runs the pipe to its end, into a function or into a sink that takes its time.
async fn run<K: Issue>(
    pipe: Pipe<Checked<u64, K>>,
    out: &Collected,
    sink: Option<Rng>,
) -> millstream_flow::Report {
    let seen = out.clone();
    match sink {
        None => pipe.for_each(move |number| seen.lock().unwrap().push(number)).await.unwrap().1,
        Some(dice) => pipe.into_sink(Slow { seen, dice }).await.unwrap().1,
    }
}

/// A sink that is not ready at once.
struct Slow {
    seen: Arc<Mutex<Vec<u64>>>,
    dice: Rng,
}

impl Sink for Slow {
    type Item = u64;
    async fn write(&mut self, items: &mut Vec<u64>) -> Result<(), SinkError> {
        crate::support::yields(self.dice.u64(..3)).await;
        self.seen.lock().unwrap().append(items);
        Ok(())
    }
    fn chunk(&self) -> usize {
        7
    }
}

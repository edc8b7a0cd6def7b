//! Gathers items into batches, one open batch for each key, all of them within one bound.

use crate::batch::{Batch, weight};
use crate::ready::Ready;
use bytes::Bytes;
use millstream_flow::{Flow, Knob, Setting, Settle, Step, Token, TokenRuns};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// When a batch is complete, and how much may be held in incomplete ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) count: usize,
    pub(crate) bytes: usize,
    pub(crate) age: Duration,
    /// Items held in all open batches; beyond it the largest one goes, so that sources which wait for their
    /// items to be settled are never all waiting for a batch to fill.
    pub(crate) held_items: usize,
    /// Bytes of memory held in all open batches.
    pub(crate) held_bytes: usize,
    /// Bytes of the messages behind the items of all open batches.
    pub(crate) held_size: usize,
}

impl Rule {
    fn is_full(&self, batch: &Batch) -> bool {
        batch.len() >= self.count || batch.weight() >= self.bytes
    }
}

/// The numbers of a rule that may be moved while the pipeline runs.
#[derive(Debug, Clone)]
pub(crate) struct Knobs {
    pub(crate) count: Knob,
    pub(crate) bytes: Knob,
    /// In whole milliseconds: timers are no more exact.
    pub(crate) age: Knob,
}

impl Knobs {
    /// Knobs that stand where the rule does: frozen where the file `gives` the count, the bytes or the age; others go no higher, so that
    /// the bound that was printed holds.
    pub(crate) fn new(rule: &Rule, gives: [bool; 3]) -> Self {
        let knob = |name: &str, number: usize, given: bool| {
            let setting = if given { Setting::Fixed(number) } else { Setting::Auto };
            Knob::new(name, setting, number, 1..=number.max(1))
        };
        let age = usize::try_from(rule.age.as_nanos().div_ceil(1_000_000)).unwrap_or(usize::MAX);
        Knobs {
            count: knob("batch count", rule.count, gives[0]),
            bytes: knob("batch bytes", rule.bytes, gives[1]),
            age: knob("batch age ms", age, gives[2]),
        }
    }

    /// The rule as the knobs stand. A frozen age is what the file says, to the nanosecond.
    fn apply(&self, rule: &Rule) -> Rule {
        let age =
            if self.age.is_frozen() { rule.age } else { Duration::from_millis(self.age.value() as u64) };
        Rule { count: self.count.value(), bytes: self.bytes.value(), age, ..*rule }
    }
}

struct Open {
    batch: Batch,
    tokens: TokenRuns,
    /// Bytes of the messages behind its items.
    size: usize,
    since: Instant,
}

/// The operator.
pub(crate) struct Batcher<F> {
    upstream: F,
    /// As the knobs stood when it was last looked at.
    rule: Rule,
    knobs: Knobs,
    gathered: Gathered,
    timer: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

/// The open batches, and the complete ones that wait to be handed on.
struct Gathered {
    open: HashMap<(usize, Bytes), Open>,
    items: usize,
    bytes: usize,
    size: usize,
    complete: VecDeque<(Batch, TokenRuns)>,
}

impl<F> Batcher<F> {
    pub(crate) fn new(upstream: F, rule: Rule, knobs: Knobs) -> Self {
        let gathered =
            Gathered { open: HashMap::new(), items: 0, bytes: 0, size: 0, complete: VecDeque::new() };
        Batcher { upstream, rule, knobs, gathered, timer: None, ended: false }
    }

    /// Obeys the knobs. What is more than they allow now is complete.
    fn tune(&mut self) {
        let rule = self.knobs.apply(&self.rule);
        if rule != self.rule {
            self.rule = rule;
            self.gathered.complete_where(|open| rule.is_full(&open.batch));
        }
    }

    /// Completes the batches that have reached their age; leaves the timer set for the next.
    fn poll_age(&mut self, cx: &mut Context<'_>) {
        while let Some(due) = self.gathered.open.values().map(|open| open.since + self.rule.age).min() {
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            let now = Instant::now();
            self.gathered.complete_where(|open| open.since + self.rule.age <= now);
        }
    }
}

impl Gathered {
    fn add(&mut self, item: Ready, token: Token, rule: &Rule) {
        let bytes = weight(&item);
        let key = (item.output, item.key.clone());
        if self.open.get(&key).is_some_and(|open| open.batch.weight() + bytes > rule.bytes) {
            self.complete(&key);
        }
        let open = self.open.entry(key.clone()).or_insert_with(|| Open {
            batch: Batch::new(item.output),
            tokens: TokenRuns::default(),
            size: 0,
            since: Instant::now(),
        });
        let held = open.batch.held();
        open.batch.push(&item, rule.count, rule.bytes);
        token.join(&mut open.tokens);
        open.size += item.size;
        let full = rule.is_full(&open.batch);
        self.items += 1;
        self.bytes += open.batch.held() - held;
        self.size += item.size;
        let held =
            self.items >= rule.held_items || self.bytes >= rule.held_bytes || self.size >= rule.held_size;
        if full {
            self.complete(&key);
        } else if held {
            let largest =
                self.open.iter().max_by_key(|(_, open)| open.batch.len()).map(|(key, _)| key.clone());
            if let Some(largest) = largest {
                self.complete(&largest);
            }
        }
    }

    fn complete(&mut self, key: &(usize, Bytes)) {
        if let Some(open) = self.open.remove(key) {
            self.items -= open.batch.len();
            self.bytes -= open.batch.held();
            self.size -= open.size;
            self.complete.push_back((open.batch, open.tokens));
        }
    }

    fn complete_where(&mut self, due: impl Fn(&Open) -> bool) {
        let mut keys: Vec<_> = self
            .open
            .iter()
            .filter(|(_, open)| due(open))
            .map(|(key, open)| (open.since, key.clone()))
            .collect();
        keys.sort_by_key(|(since, _)| *since);
        keys.iter().for_each(|(_, key)| self.complete(key));
    }
}

impl<F: Flow<Item = Ready, Token = Token>> Flow for Batcher<F> {
    type Item = Batch;
    type Token = TokenRuns;

    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Batch, TokenRuns) -> ControlFlow<()>,
    {
        self.tune();
        let mut room = max;
        loop {
            while let Some((batch, tokens)) = self.gathered.complete.pop_front() {
                room -= 1;
                if sink(batch, tokens).is_break() || room == 0 {
                    return Poll::Ready(Step::More);
                }
            }
            if self.ended {
                return Poll::Ready(Step::End);
            }
            let Batcher { upstream, rule, gathered, .. } = self;
            let step = upstream.poll_drive(cx, rule.count, &mut |item, token| {
                gathered.add(item, token, rule);
                if gathered.complete.len() >= room {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            match step {
                Poll::Ready(Step::End) => {
                    self.ended = true;
                    self.gathered.complete_where(|_| true);
                }
                Poll::Ready(Step::More) => {
                    self.poll_age(cx);
                    if self.gathered.complete.is_empty() {
                        return Poll::Ready(Step::More);
                    }
                }
                Poll::Pending => {
                    self.poll_age(cx);
                    if self.gathered.complete.is_empty() {
                        return Poll::Pending;
                    }
                    // Hand on what there is, then come back to wait: the wakers are registered anew.
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_flow::{Pipe, Tracked, Tracker};
    use millstream_message::TraceContext;
    use std::sync::Arc;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    const LARGE: usize = usize::MAX;

    fn rule() -> Rule {
        Rule {
            count: 3,
            bytes: LARGE,
            age: Duration::from_secs(10),
            held_items: LARGE,
            held_bytes: LARGE,
            held_size: LARGE,
        }
    }

    fn item(key: &str, bytes: usize) -> Ready {
        let (key, bytes) = (Bytes::copy_from_slice(key.as_bytes()), key.repeat(bytes).into_bytes());
        Ready { output: 0, key, path: None, bytes, place: String::new(), trace: None, size: 10 }
    }

    /// Sends each item after its pause; gives the keys of each batch with the second it came at.
    async fn batches(rule: Rule, items: Vec<(u64, Ready)>) -> Vec<(String, u64)> {
        batches_tuned(rule, items, |_, _| {}).await
    }

    /// As [`batches`]; `tune` may move the knobs before each item, of which it is told how many were before.
    async fn batches_tuned(
        rule: Rule,
        items: Vec<(u64, Ready)>,
        tune: impl Fn(usize, &Knobs),
    ) -> Vec<(String, u64)> {
        let (sender, receiver) = mpsc::channel(1);
        let mut tracker = Tracker::new(|_: std::ops::Range<u64>, _: &millstream_flow::Outcome| {});
        let account = tracker.account();
        let knobs = Knobs::new(&rule, [false; 3]);
        let moved = knobs.clone();
        let feeder = async move {
            for (number, (pause, value)) in items.into_iter().enumerate() {
                tokio::time::sleep(Duration::from_secs(pause)).await;
                tune(number, &moved);
                let token = tracker.issue();
                sender.send(Ok(Tracked { value, token })).await.expect("the flow takes it");
            }
        };
        let start = Instant::now();
        let plan = Pipe::from_tracked(account, ReceiverStream::new(receiver))
            .via("batch", |flow| Batcher::new(flow, rule, knobs));
        let collected = plan.fold(Vec::new(), move |all, batch: Batch| {
            let keys: String = batch.lines().map(|line| String::from_utf8_lossy(&line[..1])).collect();
            all.push((keys, start.elapsed().as_secs()));
        });
        let ((), ended) = tokio::join!(feeder, collected);
        let (batches, report) = ended.expect("a clean end");
        assert!(report.ledger.balances() && report.ledger.in_flight == 0, "{:?}", report.ledger);
        batches
    }

    fn at_once(keys: &str) -> Vec<(u64, Ready)> {
        keys.chars().map(|key| (0, item(&key.to_string(), 10))).collect()
    }

    fn of(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
        expected.iter().map(|(keys, second)| ((*keys).to_owned(), *second)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn each_key_fills_its_own_batch_by_count() {
        assert_eq!(batches(rule(), at_once("abababb")).await, of(&[("aaa", 0), ("bbb", 0), ("b", 0)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_complete_before_it_exceeds_its_bytes() {
        assert_eq!(batches(Rule { bytes: 25, ..rule() }, at_once("aaaa")).await, of(&[("aa", 0), ("aa", 0)]));
        assert_eq!(batches(Rule { bytes: 5, ..rule() }, at_once("ab")).await, of(&[("a", 0), ("b", 0)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_trace_counts_with_the_bytes_of_its_item() {
        let trace = TraceContext::new(1.try_into().expect("not 0"), 1.try_into().expect("not 0"));
        let traced = || (0, Ready { trace: Some(Arc::new(trace.clone())), ..item("a", 1) });
        let two = Rule { count: 10, bytes: 2 * weight(&traced().1), ..rule() };
        assert_eq!(batches(two, vec![traced(), traced(), traced()]).await, of(&[("aa", 0), ("a", 0)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_goes_when_its_first_item_is_old() {
        let items = vec![
            (0, item("a", 1)),
            (4, item("b", 1)),
            (4, item("a", 1)),
            (8, item("c", 1)),
            (20, item("d", 1)),
        ];
        assert_eq!(batches(rule(), items).await, of(&[("aa", 10), ("b", 14), ("c", 26), ("d", 36)]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_more_than_a_lowered_knob_allows_is_complete() {
        let rule = Rule { count: 10, bytes: 1000, ..rule() };
        let items =
            || [(1, "a"), (1, "a"), (1, "b"), (1, "c"), (5, "d")].map(|(pause, key)| (pause, item(key, 10)));
        let lowered = async |lower: fn(&Knobs)| {
            batches_tuned(rule, items().into(), |number, knobs| {
                if number == 3 {
                    lower(knobs)
                }
            })
            .await
        };
        let complete = of(&[("aa", 4), ("b", 9), ("c", 9), ("d", 9)]);
        assert_eq!(lowered(|knobs| drop(knobs.count.set(2))).await, complete);
        assert_eq!(lowered(|knobs| drop(knobs.bytes.set(20))).await, complete);
        let later = vec![(0, item("a", 1)), (4, item("b", 1)), (1, item("b", 1)), (3, item("c", 1))];
        let younger = |number, knobs: &Knobs| {
            if number == 2 {
                drop(knobs.age.set(2000));
            }
        };
        assert_eq!(batches_tuned(rule, later, younger).await, of(&[("a", 5), ("bb", 6), ("c", 8)]));
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_batch_goes_when_too_much_is_held() {
        let keys = "abbcd";
        for rule in [
            Rule { held_items: 4, ..rule() },
            Rule { held_bytes: 130, ..rule() },
            Rule { held_size: 40, ..rule() },
        ] {
            let made = batches(rule, at_once(keys)).await;
            assert_eq!(made[0], ("bb".to_owned(), 0), "{made:?}");
        }
    }
}

//! What a chain of operators means, said with vectors.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::mem;

use crate::chain::{Edge, Op, Policy, parts, size};
use crate::support::End;

/// One number under way, and the source's items that end with it: one entry for each handle of a token.
#[derive(Debug, Clone)]
struct Element {
    number: u64,
    sources: Vec<u64>,
}

/// What must come out, and how each of the source's items must end.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    pub(crate) out: Vec<u64>,
    pub(crate) ordered: bool,
    /// Whether a `Take` may leave items unasked for, or give them back.
    pub(crate) takes: bool,
    ends: HashMap<u64, Vec<End>>,
}

/// What the chain makes of the numbers, when nothing stops it.
pub(crate) fn expect(ops: &[Op], numbers: &[u64]) -> Expected {
    let mut expected = Expected { ordered: true, ..Expected::default() };
    let mut flow: Vec<_> =
        (0..).zip(numbers).map(|(source, &number)| Element { number, sources: vec![source] }).collect();
    for (at, op) in ops.iter().enumerate() {
        flow = expected.apply(*op, &format!("{at}:{op:?}"), flow);
        expected.ordered &= !op.loses_order();
        expected.takes |= matches!(op, Op::Take(_) | Op::TakeWhile(_));
    }
    for element in flow {
        expected.out.push(element.number);
        expected.end(&element, &End::Completed);
    }
    expected
}

impl Expected {
    fn end(&mut self, element: &Element, end: &End) {
        for source in &element.sources {
            self.ends.entry(*source).or_default().push(end.clone());
        }
    }

    fn apply(&mut self, op: Op, name: &str, flow: Vec<Element>) -> Vec<Element> {
        let dropped = End::Dropped(name.to_owned());
        let dead = End::Dead(String::new());
        let mut out = Vec::new();
        let mut pass = |element: Element, number: u64| out.push(Element { number, ..element });
        match op {
            Op::Map | Op::MapAsync { .. } | Op::Parallel { .. } | Op::PerKey(_) | Op::Retry(_) => {
                flow.into_iter().for_each(|e| {
                    let number = e.number + 1;
                    pass(e, number);
                });
            }
            Op::Boxed
            | Op::Replay
            | Op::Buffer(_)
            | Op::BufferBytes(..)
            | Op::RateLimit
            | Op::Split
            | Op::Deal(_)
            | Op::Switch(_, true) => return flow,
            Op::Filter(m) | Op::FilterMap(m) => {
                let plus = u64::from(matches!(op, Op::FilterMap(_)));
                for e in flow {
                    match e.number % m {
                        0 => self.end(&e, &dropped),
                        _ => pass(e.clone(), e.number + plus),
                    }
                }
            }
            Op::FlatMap(m) => {
                for e in flow {
                    let mut parts = parts(e.number, m).peekable();
                    if parts.peek().is_none() {
                        self.end(&e, &dropped);
                    }
                    parts.for_each(|number| pass(e.clone(), number));
                }
            }
            Op::Skip(n) => {
                for (at, e) in flow.into_iter().enumerate() {
                    if at < n { self.end(&e, &dropped) } else { pass(e.clone(), e.number) }
                }
            }
            Op::Take(n) => {
                for (at, e) in flow.into_iter().enumerate() {
                    if at < n { pass(e.clone(), e.number) } else { self.end(&e, &End::Abandoned) }
                }
            }
            Op::Sums(count) => return batches(flow, count, usize::MAX).map(|batch| sum(&batch)).collect(),
            Op::SumsBytes(count, bytes) => {
                return batches(flow, count, bytes).map(|batch| sum(&batch)).collect();
            }
            Op::Rebatch(count) => {
                return batches(flow, count, usize::MAX)
                    .flat_map(|batch| unbatch(batch.iter().map(|e| e.number).collect(), &batch))
                    .collect();
            }
            Op::Shorten(count) => {
                let short = |batch: Vec<Element>| {
                    let numbers: Vec<_> = batch.iter().map(|e| e.number).collect();
                    let left = numbers.len().saturating_sub(1).max(1);
                    unbatch(numbers[..left].to_vec(), &batch)
                };
                return batches(flow, count, usize::MAX).flat_map(short).collect();
            }
            Op::TryMap(m, policy) | Op::TryMapAsync(m, _, policy) | Op::TryLate(m, _, policy) => {
                for e in flow {
                    match policy {
                        _ if e.number % m != 0 => pass(e.clone(), e.number + 1),
                        Policy::Skip => self.end(&e, &dropped),
                        Policy::Fallback => pass(e.clone(), e.number + 5),
                        Policy::Reject | Policy::DeadLetter => self.end(&e, &dead),
                    }
                }
            }
            Op::Panic(m) | Op::PanicAsync { every: m, .. } | Op::LateAsync { every: m, .. } => {
                for e in flow {
                    match e.number % m {
                        0 => self.end(&e, &dead),
                        _ => pass(e.clone(), e.number + 1),
                    }
                }
            }
            Op::PanicParts(m) => {
                for e in flow {
                    match e.number % m {
                        0 => self.end(&e, &dead),
                        _ => (0..2).for_each(|_| pass(e.clone(), e.number + 1)),
                    }
                }
            }
            Op::Scan => {
                let mut sum = 0u64;
                for e in flow {
                    sum = sum.wrapping_add(e.number) % 10_000;
                    pass(e, sum);
                }
            }
            Op::TakeWhile(m) => {
                let mut flow = flow.into_iter();
                for e in flow.by_ref() {
                    if e.number % m == 0 {
                        self.end(&e, &dropped);
                        break;
                    }
                    pass(e.clone(), e.number);
                }
                flow.for_each(|e| self.end(&e, &End::Abandoned));
            }
            Op::SkipWhile(m) => {
                let mut passing = false;
                for e in flow {
                    passing |= e.number % m == 0;
                    if passing { pass(e.clone(), e.number) } else { self.end(&e, &dropped) }
                }
            }
            Op::OneIn(n) => {
                for (at, e) in flow.into_iter().enumerate() {
                    if at % n == 0 { pass(e.clone(), e.number) } else { self.end(&e, &dropped) }
                }
            }
            Op::Dedupe(keys) => {
                let mut seen = VecDeque::new();
                for e in flow {
                    let key = e.number % 10;
                    if seen.contains(&key) {
                        self.end(&e, &dropped);
                        continue;
                    }
                    seen.push_back(key);
                    if seen.len() > keys {
                        seen.pop_front();
                    }
                    pass(e.clone(), e.number);
                }
            }
            Op::Changes => {
                let mut last = None;
                for e in flow {
                    if last.replace(e.number % 3) == Some(e.number % 3) {
                        self.end(&e, &dropped);
                    } else {
                        pass(e.clone(), e.number);
                    }
                }
            }
            Op::Debounce(edge) | Op::Throttle(edge) => {
                let last = flow.len().saturating_sub(1);
                for (at, e) in flow.into_iter().enumerate() {
                    let passes = (at == 0 && edge != Edge::Last) || (at == last && edge != Edge::First);
                    if passes { pass(e.clone(), e.number) } else { self.end(&e, &dropped) }
                }
            }
            Op::LatestBy(keys) => {
                let mut newest: Vec<Element> = Vec::new();
                for e in flow {
                    match newest.iter_mut().find(|other| other.number % 10 == e.number % 10) {
                        Some(other) => self.end(&mem::replace(other, e), &dropped),
                        None => newest.push(e),
                    }
                    if newest.len() == keys {
                        newest.drain(..).for_each(|e| pass(e.clone(), e.number));
                    }
                }
                newest.into_iter().for_each(|e| pass(e.clone(), e.number));
            }
            Op::CountWindows(count) => {
                for key in by_key(flow) {
                    out.extend(key.chunks(count as usize).map(sum));
                }
            }
            Op::Moving(times, every) => {
                let (items, every) = ((times * every) as usize, every as usize);
                for key in by_key(flow) {
                    let mut at = every;
                    while at <= key.len() {
                        out.push(sum(&key[at.saturating_sub(items)..at]));
                        at += every;
                    }
                    // What is in no window yet, and what the next one would have held before it.
                    let last = at - every;
                    if last < key.len() {
                        let from = (last + every).saturating_sub(items).min(last);
                        out.push(sum(&key[from..]));
                    } else {
                        // Kept for a window that never came.
                        let kept = &key[last.saturating_sub(items - every)..];
                        kept.iter().for_each(|e| self.end(e, &dropped));
                    }
                }
            }
            Op::TimeWindows(size, slide) => {
                for key in by_key(flow) {
                    let last = key.iter().map(|e| e.number).max().unwrap_or(0);
                    for start in (-(size as i64)..=last as i64).filter(|start| start % slide as i64 == 0) {
                        let holds = |e: &&Element| (start..start + size as i64).contains(&(e.number as i64));
                        let held: Vec<_> = key.iter().filter(holds).cloned().collect();
                        if !held.is_empty() {
                            out.push(sum(&held));
                        }
                    }
                    for e in &key {
                        if e.number % slide >= size {
                            self.end(e, &dropped);
                        }
                    }
                }
            }
            Op::Sessions(gap) => {
                for mut key in by_key(flow) {
                    key.sort_by_key(|e| e.number);
                    out.extend(key.chunk_by(|a, b| b.number - a.number < gap).map(sum));
                }
            }
            Op::Switch(routes, false) => {
                for e in flow {
                    if e.number % 5 < routes { pass(e.clone(), e.number) } else { self.end(&e, &dropped) }
                }
            }
            Op::Pairs => {
                for e in flow {
                    let sources = [e.sources.as_slice(), &e.sources].concat();
                    out.push(Element { number: 2 * e.number, sources });
                }
            }
            Op::Halves => {
                for e in flow {
                    self.end(&e, &dropped); // by the other lane
                    pass(e.clone(), e.number);
                }
            }
        }
        out
    }

    /// Fails unless what came out is what the model says. A flow that was cut short gives a beginning of it.
    pub(crate) fn check_out(&self, mut out: Vec<u64>, complete: bool) {
        let mut expected = self.out.clone();
        if !self.ordered {
            if complete {
                out.sort_unstable();
                expected.sort_unstable();
                assert_eq!(out, expected, "the same items, in any order");
            } else {
                let mut left = BTreeMap::<u64, i64>::new();
                expected.iter().for_each(|number| *left.entry(*number).or_default() += 1);
                out.iter().for_each(|number| *left.entry(*number).or_default() -= 1);
                assert!(
                    left.values().all(|count| *count >= 0),
                    "{out:?} has items that {expected:?} has not"
                );
            }
        } else if complete {
            assert_eq!(out, expected);
        } else {
            assert!(expected.starts_with(&out), "{out:?} is no beginning of {expected:?}");
        }
    }

    /// Fails unless the source's items ended as the model says.
    pub(crate) fn check_ends(&self, heard: &BTreeMap<u64, End>, complete: bool) {
        let lenient = self.takes || !complete;
        for (source, ends) in &self.ends {
            let due = ends.iter().max_by_key(|end| rank(end)).expect("every source ends somehow");
            let completes = ends.contains(&End::Completed);
            match heard.get(source) {
                Some(end) if rank(end) == rank(due) => {
                    let names: Vec<_> = ends.iter().filter(|end| rank(end) == 0).collect();
                    let known = match end {
                        End::Dropped(_) => names.contains(&end),
                        End::Dead(reason) => !reason.is_empty(),
                        _ => true,
                    };
                    assert!(known, "item {source} ended as {end:?}, by nobody of {names:?}");
                }
                // Parts behind the cut are given back, whatever would have become of them.
                Some(End::Abandoned) if lenient => {}
                None if lenient && (!complete || !completes) => {}
                other => panic!("item {source} ended as {other:?} instead of {due:?}"),
            }
        }
        assert!(heard.keys().all(|source| self.ends.contains_key(source)), "only issued items end");
    }
}

/// Which of several ends of one item's parts speaks for the item.
fn rank(end: &End) -> u8 {
    match end {
        End::Dropped(_) => 0,
        End::Completed => 1,
        End::Dead(_) => 2,
        End::Abandoned => 3,
    }
}

fn batches(flow: Vec<Element>, count: usize, bytes_max: usize) -> impl Iterator<Item = Vec<Element>> {
    let (mut batches, mut open, mut bytes) = (Vec::new(), Vec::new(), 0);
    for element in flow {
        let size = size(&element.number);
        if bytes + size > bytes_max && !open.is_empty() {
            batches.push(mem::take(&mut open));
            bytes = 0;
        }
        bytes += size;
        open.push(element);
        if open.len() >= count || bytes >= bytes_max {
            batches.push(mem::take(&mut open));
            bytes = 0;
        }
    }
    if !open.is_empty() {
        batches.push(open);
    }
    batches.into_iter()
}

/// The numbers of each remainder of 3, in their order.
fn by_key(flow: Vec<Element>) -> impl Iterator<Item = Vec<Element>> {
    (0..3).map(move |key| flow.iter().filter(|e| e.number % 3 == key).cloned().collect())
}

fn sum(batch: &[Element]) -> Element {
    Element { number: batch.iter().map(|e| e.number).sum(), sources: all_sources(batch) }
}

fn all_sources(batch: &[Element]) -> Vec<u64> {
    batch.iter().flat_map(|e| e.sources.iter().copied()).collect()
}

/// As many items as tokens: each gets its own; else they share all of them.
fn unbatch(numbers: Vec<u64>, batch: &[Element]) -> Vec<Element> {
    let sources = all_sources(batch);
    let own = sources.len() == numbers.len();
    let element = |(at, number): (usize, u64)| Element {
        number,
        sources: if own { vec![sources[at]] } else { sources.clone() },
    };
    numbers.into_iter().enumerate().map(element).collect()
}

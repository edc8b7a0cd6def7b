//! What was published on a channel and is not confirmed yet.

mod entry;

use std::collections::VecDeque;
use std::time::Duration;

use millstream_message::{Address, BrokerError, Outcomes, Publish, PublishOutcome, Refusal, Returned};

use crate::refusals;

pub(crate) use self::entry::Entry;

/// What is left of a batch that was given up.
pub(crate) struct GivenUp {
    pub(crate) outcomes: Outcomes,
    pub(crate) permits: (u32, u32),
    /// Of how many of its publishes it is known what became of them.
    pub(crate) known: u64,
    pub(crate) batch: u64,
}

/// The publishes of one channel, numbered from 1 in the order in which they were sent, as confirms count them. What is settled is
/// a mark, below which everything is, and a bit for each above it: an ack of one or of many costs the same however many
/// are on their way.
#[derive(Debug)]
pub(crate) struct Confirms {
    /// The first that is not settled.
    first: u64,
    /// The number that the next publish gets.
    next: u64,
    /// A bit for each from `base`, a multiple of 64, on.
    settled: VecDeque<u64>,
    base: u64,
    entries: VecDeque<Entry>,
    /// Where to look for what is returned next: returns come in the order of publishing.
    returned: u64,
}

impl Default for Confirms {
    fn default() -> Confirms {
        Confirms {
            first: 1,
            next: 1,
            settled: VecDeque::new(),
            base: 0,
            entries: VecDeque::new(),
            returned: 1,
        }
    }
}

impl Confirms {
    /// Adds a batch that is about to be sent.
    pub(crate) fn push(&mut self, mut entry: Entry) -> &Entry {
        entry.first = self.next;
        self.next = entry.end();
        self.entries.push_back(entry);
        self.entries.back().expect("it was added just now")
    }

    fn is_settled(&self, number: u64) -> bool {
        is_settled(self.first, self.base, &self.settled, number)
    }

    fn settle(&mut self, number: u64) {
        let at = number - self.base;
        let word = (at / 64) as usize;
        if word >= self.settled.len() {
            self.settled.resize(word + 1, 0);
        }
        self.settled[word] |= 1 << (at % 64);
    }

    /// Moves the mark over what is settled.
    fn advance(&mut self) {
        loop {
            let at = self.first - self.base;
            let skip = (at / 64) as usize;
            if skip > 0 {
                self.settled.drain(..skip.min(self.settled.len()));
                self.base += 64 * skip as u64;
            }
            let Some(word) = self.settled.front() else { return };
            let run = u64::from((word >> (at % 64)).trailing_ones());
            self.first += run;
            // A run that does not reach the end of its word ends at what is not settled.
            if at % 64 + run < 64 {
                return;
            }
        }
    }

    /// The numbers that a confirm is about; `None` if it is about what was never sent.
    fn range(&self, tag: u64, multiple: bool) -> Option<std::ops::Range<u64>> {
        // 0 with `multiple` means all there are (specification, on `delivery-tag`).
        let last = if tag == 0 && multiple { self.next - 1 } else { tag };
        let begin = if multiple { self.first } else { last.max(self.first) };
        (last < self.next && last > 0 || tag == 0 && multiple).then_some(begin..last + 1)
    }

    /// The broker has stored it, and all before it if `multiple`. False if it was never sent.
    #[must_use]
    pub(crate) fn ack(&mut self, tag: u64, multiple: bool) -> bool {
        let Some(numbers) = self.range(tag, multiple) else { return false };
        if multiple {
            self.first = self.first.max(numbers.end);
        } else if numbers.start < numbers.end {
            self.settle(tag);
        }
        self.advance();
        true
    }

    /// The broker has not stored it. False if it was never sent.
    #[must_use]
    pub(crate) fn nack(&mut self, tag: u64, multiple: bool) -> bool {
        let Some(numbers) = self.range(tag, multiple) else { return false };
        for number in numbers {
            if self.is_settled(number) {
                continue;
            }
            self.settle(number);
            let at = self.entries.partition_point(|entry| entry.end() <= number);
            let entry = &mut self.entries[at];
            let index = (number - entry.first) as usize;
            let place = entry.place(index);
            if !entry.is_told(place) {
                let refusal = full(&entry.publishes()[index].to);
                entry.tell(place, PublishOutcome::Refused(refusal));
            }
        }
        self.advance();
        true
    }

    /// No queue wanted it. An ack of it follows. It is told as published to where it was `meant` to go, if that was somewhere
    /// else. False if nothing like it is on its way.
    #[must_use]
    pub(crate) fn returned(
        &mut self,
        exchange: &str,
        key: &str,
        body: &[u8],
        reason: &str,
        meant: Option<Address>,
    ) -> bool {
        let from = self.returned.max(self.first);
        let found =
            self.find(from, exchange, key, body).or_else(|| self.find(self.first, exchange, key, body));
        let Some((at, index)) = found else { return false };
        let entry = &mut self.entries[at];
        self.returned = entry.first + index as u64 + 1;
        let place = entry.place(index);
        let mut publish = entry.publishes()[index].clone();
        publish.to = meant.unwrap_or(publish.to);
        let reason = refusals::unroutable(&publish.to, reason);
        let returned = Returned { publish, reason };
        entry.tell(place, PublishOutcome::Unroutable(Box::new(returned)));
        true
    }

    /// The first publish that could be the one that came back: its entry, and its place there.
    fn find(&self, from: u64, exchange: &str, key: &str, body: &[u8]) -> Option<(usize, usize)> {
        let begin = self.entries.partition_point(|entry| entry.end() <= from);
        for (at, entry) in self.entries.iter().enumerate().skip(begin) {
            for (index, Publish { to, message }) in entry.publishes().iter().enumerate() {
                let number = entry.first + index as u64;
                let same = to.key() == key && to.exchange() == exchange && message.body() == body;
                let told = || entry.is_told(entry.place(index));
                if number >= from && same && !self.is_settled(number) && !told() {
                    return Some((at, index));
                }
            }
        }
        None
    }

    /// Publishes of which `of_it` says so are told as `why` says, whatever becomes of the channel: the last one first. Whether there
    /// was one.
    pub(crate) fn tell(
        &mut self,
        of_it: impl Fn(&Publish) -> bool,
        mut why: impl FnMut(&Publish) -> PublishOutcome,
    ) -> bool {
        let is_settled = |number: u64| is_settled(self.first, self.base, &self.settled, number);
        let mut any = false;
        for entry in self.entries.iter_mut().rev() {
            for index in (0..entry.publishes().len()).rev() {
                let place = entry.place(index);
                let publish = &entry.publishes()[index];
                if of_it(publish) && !entry.is_told(place) && !is_settled(entry.first + index as u64) {
                    let outcome = why(publish);
                    entry.tell(place, outcome);
                    any = true;
                }
            }
        }
        any
    }

    /// The first publish of which nothing is known is refused.
    pub(crate) fn refuse_first(&mut self, why: impl FnOnce(&Publish) -> Refusal) {
        for at in 0..self.entries.len() {
            let entry = &self.entries[at];
            let open = |index: &usize| {
                !entry.is_told(entry.place(*index)) && !self.is_settled(entry.first + *index as u64)
            };
            if let Some(index) = (0..entry.publishes().len()).find(open) {
                let refusal = PublishOutcome::Refused(why(&entry.publishes()[index]));
                let place = entry.place(index);
                self.entries[at].tell(place, refusal);
                return;
            }
        }
    }

    /// The first batch, if all of it is known.
    pub(crate) fn pop_known(&mut self) -> Option<Entry> {
        let known = self.entries.front().is_some_and(|entry| entry.end() <= self.first);
        if known { self.entries.pop_front() } else { None }
    }

    /// The number of the first batch.
    pub(crate) fn first_batch(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.batch)
    }

    /// The first publish that is not settled, and the number that the next one gets.
    pub(crate) fn open(&self) -> (u64, u64) {
        (self.first, self.next)
    }

    /// Takes the batches out of which all is known, wherever they are. Their numbers stay settled.
    pub(crate) fn take_known(&mut self) -> Vec<Entry> {
        let is_known = |entry: &Entry| (entry.first..entry.end()).all(|number| self.is_settled(number));
        // Those before the first of them, which may be many that wait for the same thing, stay where they are.
        let Some(begin) = self.entries.iter().position(is_known) else { return Vec::new() };
        let (known, open) =
            self.entries.split_off(begin).into_iter().partition::<Vec<_>, _>(|entry| {
                (entry.first..entry.end()).all(|number| self.is_settled(number))
            });
        self.entries.extend(open);
        known
    }

    /// Gives up the first batch: nothing will be known of what is not known by now. Its numbers count as settled.
    pub(crate) fn give_up_first(&mut self, error: &BrokerError) -> Option<GivenUp> {
        let mut entry = self.entries.pop_front()?;
        let mut known = 0;
        for index in 0..entry.publishes().len() {
            let place = entry.place(index);
            if entry.is_told(place) || self.is_settled(entry.first + index as u64) {
                known += 1;
            } else {
                entry.tell(place, PublishOutcome::Unconfirmed(error.clone()));
            }
        }
        self.first = self.first.max(entry.end());
        self.advance();
        let (permits, batch) = (entry.permits, entry.batch);
        Some(GivenUp { outcomes: entry.outcomes(), permits, known, batch })
    }

    /// A channel was opened anew: numbers begin again, with what was not settled, in the order in which it was sent before.
    pub(crate) fn restart(&mut self) -> impl Iterator<Item = &Entry> {
        let mut entries = std::mem::take(&mut self.entries);
        for entry in &mut entries {
            let begin = entry.first;
            let places = entry.places.clone();
            let settled: Vec<bool> = (begin..entry.end()).map(|number| self.is_settled(number)).collect();
            let keep: Vec<usize> = (0..settled.len())
                .map(|at| (at, places.as_ref().map_or(at, |places| places[at] as usize)))
                // What is told already, but not settled, would only be told again.
                .filter_map(|(at, place)| (!settled[at] && !entry.is_told(place)).then_some(place))
                .collect();
            if keep.len() < settled.len() {
                entry.retain(|place| keep.binary_search(&place).is_ok());
            }
        }
        *self = Confirms::default();
        for entry in entries {
            self.push(entry);
        }
        self.entries.iter()
    }

    /// When the first that waits was handed over.
    pub(crate) fn first_handed(&self) -> Option<Duration> {
        self.entries.front().map(|entry| entry.handed)
    }

    /// How many publishes are not settled.
    pub(crate) fn in_flight(&self) -> u64 {
        // The mark is in the first word, in which bits below it may be set or not.
        let below = self
            .settled
            .front()
            .map_or(0, |word| (word & ((1 << (self.first - self.base)) - 1)).count_ones());
        let set: u32 = self.settled.iter().map(|word| word.count_ones()).sum();
        self.next - self.first - u64::from(set - below)
    }
}

/// Whether a number is below the mark, or has its bit.
fn is_settled(first: u64, base: u64, settled: &VecDeque<u64>, number: u64) -> bool {
    if number < first {
        return true;
    }
    let at = number - base;
    settled.get((at / 64) as usize).is_some_and(|word| word & (1 << (at % 64)) != 0)
}

/// What a `basic.nack` of a publish means, nearly always.
fn full(to: &Address) -> Refusal {
    let queue = match to.exchange() {
        "" => to.key().to_owned(),
        exchange => format!("one of those behind exchange {exchange}, key {}", to.key()),
    };
    Refusal::Full { queue, limit: "the broker refused the publish".to_owned() }
}

#[cfg(test)]
mod tests;

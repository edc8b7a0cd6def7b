//! A batch on its way, and what is known of it.

use std::time::Duration;

use millstream_message::{Outcomes, Publish, PublishOutcome};

/// A batch on its way, to be resolved when all of it is known.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The number of the first publish on the channel.
    pub(super) first: u64,
    /// What is not settled, or was not when the channel was opened.
    publishes: Publishes,
    /// The place of each in the batch; `None` while they are all of it.
    pub(super) places: Option<Vec<u32>>,
    /// How many the batch had.
    total: usize,
    others: Vec<(usize, PublishOutcome)>,
    /// A bit for each place that is among the others; none as long as nothing is.
    told: Vec<u64>,
    /// When it was handed over.
    pub(crate) handed: Duration,
    /// Its number among all that were handed over.
    pub(crate) batch: u64,
    /// What it takes of the publisher's window: items, bytes.
    pub(crate) permits: (u32, u32),
}

/// A batch of one lies among the entries themselves: the vector that it came in is free at once, still in the cache, for the next
/// one to come in.
#[derive(Debug)]
enum Publishes {
    One(Publish),
    Many(Vec<Publish>),
}

impl Default for Publishes {
    fn default() -> Publishes {
        Publishes::Many(Vec::new())
    }
}

impl From<Vec<Publish>> for Publishes {
    fn from(mut publishes: Vec<Publish>) -> Publishes {
        match publishes.pop() {
            Some(only) if publishes.is_empty() => Publishes::One(only),
            last => {
                publishes.extend(last);
                Publishes::Many(publishes)
            }
        }
    }
}

impl Publishes {
    fn into_vec(self) -> Vec<Publish> {
        match self {
            Publishes::One(publish) => vec![publish],
            Publishes::Many(publishes) => publishes,
        }
    }
}

impl Entry {
    /// A batch of which `refused` were not let in; the rest is to be published.
    pub(crate) fn new(
        publishes: Vec<Publish>,
        refused: Vec<(usize, PublishOutcome)>,
        permits: (u32, u32),
    ) -> Entry {
        let total = publishes.len();
        let publishes = Publishes::from(publishes);
        let mut entry = Entry {
            first: 0,
            publishes,
            places: None,
            total,
            others: Vec::new(),
            told: Vec::new(),
            handed: Duration::ZERO,
            batch: 0,
            permits,
        };
        if !refused.is_empty() {
            let mut refused = refused.into_iter().peekable();
            let mut others = Vec::new();
            entry.retain(|place| match refused.next_if(|(refused, _)| *refused == place) {
                Some(refused) => {
                    others.push(refused);
                    false
                }
                None => true,
            });
            entry.others = others;
        }
        entry
    }

    pub(super) fn place(&self, at: usize) -> usize {
        self.places.as_ref().map_or(at, |places| places[at] as usize)
    }

    /// Keeps the publishes of which `keep` says so, by their place in the batch.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let places = self.places.take().unwrap_or_else(|| (0..self.publishes().len() as u32).collect());
        let kept: Vec<bool> = places.iter().map(|place| keep(*place as usize)).collect();
        let mut flags = kept.iter();
        let mut publishes = std::mem::take(&mut self.publishes).into_vec();
        publishes.retain(|_| *flags.next().expect("a flag for each"));
        self.publishes = Publishes::Many(publishes);
        self.places =
            Some(places.into_iter().zip(kept).filter_map(|(place, kept)| kept.then_some(place)).collect());
    }

    pub(super) fn end(&self) -> u64 {
        self.first + self.publishes().len() as u64
    }

    /// How many messages the batch has, with those that were not let in.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    pub(crate) fn publishes(&self) -> &[Publish] {
        match &self.publishes {
            Publishes::One(publish) => std::slice::from_ref(publish),
            Publishes::Many(publishes) => publishes,
        }
    }

    /// What became of it.
    pub(crate) fn outcomes(mut self) -> Outcomes {
        self.others.sort_by_key(|(place, _)| *place);
        Outcomes::with_others(self.total, self.others)
    }

    /// What became of the publish that has this place, if it is anything but confirmed. What was told first holds.
    pub(super) fn tell(&mut self, place: usize, outcome: PublishOutcome) {
        if self.is_told(place) {
            return;
        }
        if self.told.is_empty() {
            self.told.resize(self.total.div_ceil(64), 0);
        }
        self.told[place / 64] |= 1 << (place % 64);
        self.others.push((place, outcome));
    }

    /// Whether it was told what became of the publish that has this place.
    pub(super) fn is_told(&self, place: usize) -> bool {
        self.told.get(place / 64).is_some_and(|word| word & (1 << (place % 64)) != 0)
    }
}

//! Items with more than one handle.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;

use super::Outcome;

/// How many items a page is for.
pub(super) const PAGE: u64 = 64;

/// How many handles the items have that have more than one, and the weightiest outcome of those that were settled.
///
/// Items are shared and settled by neighbours, so 64 of them cost one look-up.
#[derive(Default)]
pub(super) struct Shared {
    /// How many items have an entry; zero lets settling skip the lock.
    len: AtomicUsize,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    all: HashTable<Box<Page>>,
    /// One that was left, for the next.
    spare: Option<Box<Page>>,
}

/// The items `64 × number` to `64 × number + 63`.
struct Page {
    number: u64,
    /// Which of them have an entry.
    live: u64,
    handles: [u32; PAGE as usize],
    /// The [rank](Outcome::rank) of the weightiest outcome so far, plus one; 0 for none.
    worst: [u8; PAGE as usize],
    /// Outcomes that say more than their rank, by the item's place.
    told: Vec<(u32, Outcome)>,
}

/// Which items have ended.
#[derive(Default)]
pub(super) struct Ended {
    /// Those that end with the outcome that they were settled with.
    pub(super) so: u64,
    /// Those for which another of their handles speaks.
    pub(super) otherwise: Vec<(u64, Outcome)>,
}

/// Pages, each with a bit for every one of its items that is among these.
pub(super) fn words(items: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let pages = items.start / PAGE..items.end.div_ceil(PAGE);
    pages.map(move |number| {
        let from = items.start.saturating_sub(number * PAGE).min(PAGE) as u32;
        let past = (items.end - number * PAGE).min(PAGE) as u32;
        (number, (u64::MAX << from) & (u64::MAX >> (64 - past)))
    })
}

/// The same of items of which bit `n` says that `first + n` is one of them.
pub(super) fn words_of(first: u64, bits: u64) -> impl Iterator<Item = (u64, u64)> {
    let (number, by) = (first / PAGE, (first % PAGE) as u32);
    let words = [(number, bits << by), (number + 1, bits.unbounded_shr(64 - by))];
    words.into_iter().filter(|(_, bits)| *bits != 0)
}

/// The places of the bits that are set.
fn places(mut bits: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let place = (bits != 0).then(|| bits.trailing_zeros())?;
        bits &= bits - 1;
        Some(place)
    })
}

impl Shared {
    /// Whether every item has one handle.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        // Nothing that is done under it panics half-way.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under the lock, which spares a locked instruction.
    fn grow(&self, by: isize) {
        if by != 0 {
            let len = self.len.load(Ordering::Relaxed);
            self.len.store(len.wrapping_add_signed(by), Ordering::Release);
        }
    }

    /// One handle more for these items of a page.
    pub(super) fn share(&self, number: u64, bits: u64) {
        let mut pages = self.pages();
        let page = pages.page(number);
        let new = bits & !page.live;
        for place in places(bits & page.live) {
            page.handles[place as usize] += 1;
        }
        for place in places(new) {
            page.handles[place as usize] = 2;
            page.worst[place as usize] = 0;
        }
        page.live |= new;
        self.grow(new.count_ones() as isize);
    }

    /// One handle of each of these items of a page is settled.
    pub(super) fn settle(&self, number: u64, bits: u64, outcome: &Outcome) -> Ended {
        let mut pages = self.pages();
        let Ok(mut found) = pages.all.find_entry(hash(number), |page| page.number == number) else {
            return Ended { so: bits, ..Ended::default() };
        };
        let page = found.get_mut();
        let mut ended = Ended { so: bits & !page.live, ..Ended::default() };
        let rank = outcome.rank() + 1;
        let mut over = 0_u64;
        for place in places(bits & page.live) {
            let (handles, worst) = (&mut page.handles[place as usize], &mut page.worst[place as usize]);
            *handles -= 1;
            let weightier = *worst < rank;
            if *handles > 0 {
                if weightier {
                    *worst = rank;
                    page.tell(place, outcome);
                }
                continue;
            }
            over |= 1 << place;
            if weightier {
                ended.so |= 1 << place;
                continue;
            }
            match page.heard(place) {
                None if matches!(outcome, Outcome::Completed) => ended.so |= 1 << place,
                said => {
                    let said = said.unwrap_or(Outcome::Completed);
                    ended.otherwise.push((number * PAGE + u64::from(place), said));
                }
            }
        }
        page.live &= !over;
        page.told.retain(|(place, _)| over >> place & 1 == 0);
        if page.live == 0 {
            let (page, _) = found.remove();
            pages.spare = Some(page);
        }
        self.grow(-(over.count_ones() as isize));
        ended
    }
}

impl Pages {
    fn page(&mut self, number: u64) -> &mut Page {
        let Pages { all, spare } = self;
        let entry = all.entry(hash(number), |page| page.number == number, |page| hash(page.number));
        let new = || match spare.take() {
            Some(mut page) => {
                page.number = number;
                page
            }
            None => Box::new(Page::new(number)),
        };
        entry.or_insert_with(new).into_mut()
    }
}

impl Page {
    fn new(number: u64) -> Page {
        let (handles, worst) = ([0; PAGE as usize], [0; PAGE as usize]);
        Page { number, live: 0, handles, worst, told: Vec::new() }
    }

    fn tell(&mut self, place: u32, outcome: &Outcome) {
        self.told.retain(|(told, _)| *told != place);
        if !matches!(outcome, Outcome::Completed) {
            self.told.push((place, outcome.clone()));
        }
    }

    /// What an earlier handle of an item says, if that is more than that it is completed.
    fn heard(&mut self, place: u32) -> Option<Outcome> {
        let at = self.told.iter().position(|(told, _)| *told == place)?;
        Some(self.told.swap_remove(at).1)
    }
}

/// Neighbours apart from each other, in the upper bits too, by which the table tells them.
fn hash(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
}

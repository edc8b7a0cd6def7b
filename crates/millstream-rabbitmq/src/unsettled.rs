//! The deliveries of one consumer that are not settled, and what the broker is still to be told.

use std::collections::VecDeque;
use std::ops::Range;

use millstream_message::{Settled, Tag};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// In somebody's hands.
    Live,
    /// Acked; the broker does not know yet.
    Acked,
    /// Settled for whoever had it, while it is being brought elsewhere.
    Parked,
    /// The broker was told.
    Told,
}

/// What to tell the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Ack { tag: Tag, multiple: bool },
    Nack { tag: Tag, requeue: bool },
}

/// How what was brought elsewhere has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parked {
    /// It is there: the broker may forget it.
    Arrived,
    /// Nobody takes it: the broker does with it what it does with what is rejected.
    Rejected,
    /// It cannot be taken there: back to its queue.
    Back,
}

/// A mark for each delivery from the oldest on that the broker must still be told of, and what is kept of it until it is settled.
/// Tags have no gaps.
#[derive(Debug)]
pub(crate) struct Unsettled<K> {
    /// The tag of the first mark.
    low: Tag,
    marks: VecDeque<(Mark, Option<K>)>,
    live: usize,
    parked: usize,
    acked: usize,
    nacks: Vec<(Tag, bool)>,
}

impl<K> Unsettled<K> {
    /// Nothing yet; the first delivery will have this tag.
    pub(crate) fn from(first: Tag) -> Unsettled<K> {
        Unsettled { low: first, marks: VecDeque::new(), live: 0, parked: 0, acked: 0, nacks: Vec::new() }
    }

    /// The tag that the next delivery gets.
    pub(crate) fn next(&self) -> Tag {
        self.low + self.marks.len() as u64
    }

    /// Adds a delivery.
    pub(crate) fn add(&mut self, keep: K) -> Tag {
        let tag = self.next();
        self.marks.push_back((Mark::Live, Some(keep)));
        self.live += 1;
        tag
    }

    /// What is kept of those in somebody's hands, the oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &K> {
        self.marks.iter().filter_map(|(_, kept)| kept.as_ref())
    }

    /// How many are in somebody's hands.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// How many are being brought elsewhere.
    pub(crate) fn parked(&self) -> usize {
        self.parked
    }

    /// Settles what is live in the ranges.
    fn settle(&mut self, ranges: &[Range<Tag>], mark: Mark, mut each: impl FnMut(Tag, K)) -> Settled {
        let mut settled = Settled::default();
        for range in ranges {
            let (start, end) = (range.start.max(self.low), range.end.min(self.next()));
            let mut applied = 0;
            for tag in start..end {
                let (at, kept) = &mut self.marks[(tag - self.low) as usize];
                if *at == Mark::Live {
                    *at = mark;
                    applied += 1;
                    if let Some(kept) = kept.take() {
                        each(tag, kept);
                    }
                }
            }
            settled.applied += applied;
            settled.stale = settled.stale.saturating_add(range.end.saturating_sub(range.start) - applied);
        }
        self.live -= settled.applied as usize;
        settled
    }

    /// Settles what the broker may forget, and gives up what was kept of it.
    pub(crate) fn ack(&mut self, ranges: &[Range<Tag>], mut each: impl FnMut(K)) -> Settled {
        let settled = self.settle(ranges, Mark::Acked, |_, kept| each(kept));
        self.acked += settled.applied as usize;
        settled
    }

    /// Settles what the broker is to have back, and gives up what was kept of it.
    pub(crate) fn nack(&mut self, ranges: &[Range<Tag>], requeue: bool, mut each: impl FnMut(K)) -> Settled {
        let mut nacks = std::mem::take(&mut self.nacks);
        let settled = self.settle(ranges, Mark::Told, |tag, kept| {
            nacks.push((tag, requeue));
            each(kept);
        });
        self.nacks = nacks;
        settled
    }

    /// Settles what is brought elsewhere before the broker may forget it.
    pub(crate) fn park(&mut self, ranges: &[Range<Tag>], each: impl FnMut(Tag, K)) -> Settled {
        let settled = self.settle(ranges, Mark::Parked, each);
        self.parked += settled.applied as usize;
        settled
    }

    /// What has become of what was parked.
    pub(crate) fn unpark(&mut self, tag: Tag, end: Parked) {
        let Some((mark, _)) = tag.checked_sub(self.low).and_then(|at| self.marks.get_mut(at as usize)) else {
            return;
        };
        if *mark != Mark::Parked {
            return;
        }
        self.parked -= 1;
        match end {
            Parked::Arrived => {
                *mark = Mark::Acked;
                self.acked += 1;
            }
            Parked::Rejected | Parked::Back => {
                *mark = Mark::Told;
                self.nacks.push((tag, end == Parked::Back));
            }
        }
    }

    /// Whether there is something to tell.
    pub(crate) fn has_words(&self) -> bool {
        self.acked > 0 || !self.nacks.is_empty()
    }

    /// What to tell the broker, as few words as are true: one ack for all that is settled from the oldest on.
    pub(crate) fn words(&mut self, mut tell: impl FnMut(Word)) {
        // Nacks come first: an ack of many would take those below it along.
        for (tag, requeue) in self.nacks.drain(..) {
            tell(Word::Nack { tag, requeue });
        }
        let (mut run, mut last) = (0, 0);
        while let Some((mark @ (Mark::Acked | Mark::Told), _)) = self.marks.front() {
            if *mark == Mark::Acked {
                run += 1;
                last = self.low;
            }
            self.marks.pop_front();
            self.low += 1;
        }
        if run > 0 {
            tell(Word::Ack { tag: last, multiple: run > 1 });
        }
        self.acked -= run;
        for (at, (mark, _)) in self.marks.iter_mut().enumerate() {
            if self.acked == 0 {
                break;
            }
            if *mark == Mark::Acked {
                *mark = Mark::Told;
                self.acked -= 1;
                tell(Word::Ack { tag: self.low + at as u64, multiple: false });
            }
        }
    }

    /// The broker has forgotten this consumer's deliveries, and gives them to somebody again: all tags are stale.
    pub(crate) fn forget(&mut self) {
        *self = Unsettled::from(self.next());
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a list of one range is what is meant")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(unsettled: &mut Unsettled<()>) -> Vec<Word> {
        let mut words = Vec::new();
        unsettled.words(|word| words.push(word));
        words
    }

    fn one(tag: Tag) -> [Range<Tag>; 1] {
        std::array::from_fn(|_| tag..tag + 1)
    }

    fn with(deliveries: usize) -> Unsettled<()> {
        let mut unsettled = Unsettled::from(1);
        (0..deliveries).for_each(|_| _ = unsettled.add(()));
        unsettled
    }

    #[test]
    fn what_is_settled_from_the_oldest_on_is_one_word() {
        let mut unsettled = with(10);
        for tag in [3, 1, 2, 5] {
            assert_eq!(unsettled.ack(&one(tag), drop).applied, 1);
        }
        let told = words(&mut unsettled);
        assert_eq!(told, [Word::Ack { tag: 3, multiple: true }, Word::Ack { tag: 5, multiple: false }]);
        unsettled.ack(&one(4), drop);
        assert_eq!(words(&mut unsettled), [Word::Ack { tag: 4, multiple: false }]);
        assert!(!unsettled.has_words() && unsettled.live() == 5);
    }

    #[test]
    fn an_ack_of_many_takes_nothing_along_that_was_given_back() {
        let mut unsettled = with(4);
        unsettled.ack(&[1..3, 4..5], drop);
        unsettled.nack(&one(3), true, drop);
        let told = words(&mut unsettled);
        assert_eq!(told, [Word::Nack { tag: 3, requeue: true }, Word::Ack { tag: 4, multiple: true }]);
    }

    #[test]
    fn what_is_parked_holds_the_run_until_it_has_arrived() {
        let mut unsettled = with(4);
        let mut parked = Vec::new();
        assert_eq!(unsettled.park(&[1..3], |tag, ()| parked.push(tag)).applied, 2);
        unsettled.ack(&[3..5], drop);
        assert_eq!(words(&mut unsettled).len(), 2, "one by one above what is parked");
        unsettled.unpark(1, Parked::Arrived);
        unsettled.unpark(2, Parked::Rejected);
        let told = words(&mut unsettled);
        assert_eq!(told, [Word::Nack { tag: 2, requeue: false }, Word::Ack { tag: 1, multiple: false }]);
        unsettled.unpark(2, Parked::Arrived);
        assert!(!unsettled.has_words(), "it is told once");
    }

    #[test]
    fn what_the_broker_forgot_is_stale() {
        let mut unsettled = with(3);
        unsettled.ack(&one(1), drop);
        unsettled.park(&one(2), |_, ()| {});
        unsettled.forget();
        assert_eq!(unsettled.ack(&[0..u64::MAX], drop), Settled { applied: 0, stale: u64::MAX });
        unsettled.unpark(2, Parked::Arrived);
        assert!(words(&mut unsettled).is_empty());
        assert_eq!(unsettled.add(()), 4, "tags go on");
    }

    proptest! {
        /// A broker that does what it is told agrees with what was settled.
        #[test]
        fn the_broker_is_told_what_was_settled(
            steps in prop::collection::vec((0..6u8, 0..40u64, 0..10u64), 0..100),
        ) {
            let mut unsettled = with(0);
            let (mut wanted, mut broker): (Vec<Option<u8>>, Vec<Option<u8>>) = (Vec::new(), Vec::new());
            for (step, tag, len) in steps {
                let range = [tag..tag + len];
                let mut note = |what: u8| {
                    for tag in tag.max(1)..(tag + len).min(wanted.len() as u64 + 1) {
                        wanted[tag as usize - 1].get_or_insert(what);
                    }
                };
                match step {
                    0 => { for _ in 0..len { unsettled.add(()); wanted.push(None); broker.push(None); } }
                    1 | 2 => { note(1); unsettled.ack(&range, drop); }
                    3 => { note(2); unsettled.nack(&range, true, drop); }
                    4 => {
                        note(1);
                        let mut parked = Vec::new();
                        unsettled.park(&range, |tag, ()| parked.push(tag));
                        parked.into_iter().for_each(|tag| unsettled.unpark(tag, Parked::Arrived));
                    }
                    _ => unsettled.words(|word| match word {
                        Word::Ack { tag, multiple } => {
                            let from = if multiple { 0 } else { tag as usize - 1 };
                            broker[from..tag as usize].iter_mut().for_each(|at| _ = at.get_or_insert(1));
                        }
                        Word::Nack { tag, .. } => assert_eq!(broker[tag as usize - 1].replace(2), None),
                    }),
                }
                if step > 4 { prop_assert_eq!(&broker, &wanted); }
                prop_assert_eq!(unsettled.live(), wanted.iter().filter(|at| at.is_none()).count());
            }
        }
    }
}

//! What the log says, entry by entry: the streams, and which entries count.
//!
//! Whether an append counts is decided by nobody but the order of the log: an entry says what its writer expected of the stream, and
//! whoever reads the log up to there sees whether that held. All readers see the same, so any number of processes may append to one
//! log without a lock, and agree. (The idea is that of Bernstein, Reid and Das: *Hyder: A transactional record manager for shared
//! flash*, CIDR 2011: write the intention to a shared log, and let its order decide.)
//!
//! No I/O and no clock: heads go in, verdicts come out.

mod taking;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

pub(crate) use self::taking::{Beside, Taking, Totals};
use super::expected::Expected;
use super::record::{Change, Head};

/// How many commits are remembered by name: one that comes again within so many others changes nothing.
pub(crate) const REMEMBERED: usize = 65_536;

/// More versions than any stream will have: a number beyond is nobody's who has read one.
const VERSIONS: u64 = 1 << 62;

/// What became of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It counts. The versions of its events; empty for what is no append.
    Applied(Range<u64>),
    /// The commit of this name counted before, with these versions.
    Repeated(Range<u64>),
    /// What its writer expected did not hold. The stream's version then.
    Conflict(Option<u64>),
    /// The stream was deleted for ever.
    Gone,
}

/// A commit of a stream: where it is in the log, and the version of its first event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) first: u64,
}

/// What is known of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The version that the next event will have.
    pub(crate) next: u64,
    /// The version of the first event that is still read.
    pub(crate) first: u64,
    /// The version of the first event since it was deleted.
    pub(crate) begun: u64,
    pub(crate) gone: bool,
    /// The commits that are still read, in order.
    pub(crate) commits: Vec<Place>,
    /// Where the last snapshot is, and which event follows it.
    pub(crate) snapshot: Option<(u64, u64)>,
}

impl Entry {
    /// The version of its last event, be that still read or not; `None` of what never had any, or was deleted.
    pub(crate) fn version(&self) -> Option<u64> {
        (self.next > self.begun).then(|| self.next - 1)
    }

    /// The versions of the events of the commit that is `index` in [`commits`](Self::commits).
    pub(crate) fn versions(&self, index: usize) -> Range<u64> {
        let next = self.commits.get(index + 1).map_or(self.next, |next| next.first);
        self.commits[index].first..next
    }

    fn forget_before(&mut self, version: u64) {
        self.first = self.first.max(version.min(self.next));
        // A commit stays as long as one of its events does.
        let index = self.commits.partition_point(|place| place.first <= self.first);
        let index = if self.first == self.next { self.commits.len() } else { index.saturating_sub(1) };
        self.commits.drain(..index);
        if self.commits.is_empty() {
            self.commits.shrink_to_fit();
        }
    }

    fn holds(&self, expected: Expected, after_gap: bool) -> bool {
        match expected {
            Expected::Any => true,
            Expected::NoStream => self.version().is_none(),
            Expected::Exists => self.version().is_some(),
            // Of what is lost is known only that it was there: the versions go on where they did.
            Expected::Version(version) => {
                self.version() == Some(version) || (after_gap && (self.next..VERSIONS).contains(&version))
            }
        }
    }
}

/// All streams of a log, up to some offset.
#[derive(Debug, Default)]
pub(crate) struct Fold {
    /// What comes next.
    pub(crate) next_offset: u64,
    pub(crate) streams: BTreeMap<Arc<str>, Entry>,
    /// Entries that do not count. Appends that count and are no longer read are told by their stream, which has forgotten them.
    void: BTreeSet<u64>,
    /// By the names of commit and stream, with what parts them.
    commits: HashMap<Arc<str>, Range<u64>>,
    order: VecDeque<Arc<str>>,
    /// Entries that counted, of those the events, and those that did not.
    pub(crate) applied: u64,
    pub(crate) events: u64,
    pub(crate) conflicts: u64,
    pub(crate) snapshots: u64,
    /// Messages that this store has not written.
    pub(crate) foreign: u64,
    /// Ranges of the log that are lost.
    pub(crate) gaps: u64,
    taking: Option<Taking>,
}

impl Fold {
    /// The entry at this offset.
    pub(crate) fn fold(&mut self, offset: u64, head: &Head<'_>) -> Verdict {
        self.next_offset = offset + 1;
        let verdict = self.judge(offset, head);
        match &verdict {
            Verdict::Applied(versions) => {
                self.applied += 1;
                self.events += versions.end - versions.start;
                self.remember(named(&head.stream, &head.commit), versions.clone());
            }
            Verdict::Repeated(_) | Verdict::Conflict(_) | Verdict::Gone => {
                self.conflicts += u64::from(!matches!(verdict, Verdict::Repeated(_)));
                self.void.insert(offset);
            }
        }
        verdict
    }

    /// A message at this offset that is not of this store.
    pub(crate) fn pass(&mut self, offset: u64) {
        self.next_offset = offset + 1;
        self.foreign += 1;
        self.void.insert(offset);
    }

    /// Whether the entry at this offset counts.
    pub(crate) fn counts(&self, offset: u64) -> bool {
        !self.void.contains(&offset)
    }

    /// What a commit of this name has appended to a stream, if it is remembered.
    pub(crate) fn commit(&self, stream: &str, commit: &str) -> Option<Range<u64>> {
        self.commits.get(&*named(stream, commit)).cloned()
    }

    /// The commits that are remembered, the oldest first.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> Vec<(Arc<str>, Range<u64>)> {
        assert_eq!(self.order.len(), self.commits.len());
        self.order.iter().map(|name| (name.clone(), self.commits[name].clone())).collect()
    }

    fn judge(&mut self, offset: u64, head: &Head<'_>) -> Verdict {
        if let Some(versions) = self.commits.get(&*named(&head.stream, &head.commit)) {
            return Verdict::Repeated(versions.clone());
        }
        self.changes(&head.stream);
        let after_gap = self.gaps > 0;
        // A stream that nobody has written to is not kept for having been asked about.
        let Some(entry) = self.streams.get_mut(&*head.stream) else {
            let Change::Append { expect, events } = &head.change else {
                return match head.change {
                    Change::Delete { expect: Expected::Any | Expected::NoStream, forever: true } => {
                        let gone = Entry { gone: true, ..Entry::default() };
                        self.streams.insert(head.stream.as_ref().into(), gone);
                        Verdict::Applied(0..0)
                    }
                    _ => Verdict::Conflict(None),
                };
            };
            let mut entry = Entry::default();
            if !entry.holds(*expect, after_gap) {
                return Verdict::Conflict(None);
            }
            let versions = append(&mut entry, offset, *expect, events.len());
            self.streams.insert(head.stream.as_ref().into(), entry);
            return Verdict::Applied(versions);
        };
        if entry.gone {
            return Verdict::Gone;
        }
        match &head.change {
            Change::Append { expect, .. } | Change::Delete { expect, .. }
                if !entry.holds(*expect, after_gap) =>
            {
                return Verdict::Conflict(entry.version());
            }
            Change::Append { expect, events } => {
                return Verdict::Applied(append(entry, offset, *expect, events.len()));
            }
            Change::Delete { forever, .. } => {
                entry.forget_before(entry.next);
                entry.begun = entry.next;
                entry.gone = *forever;
                entry.snapshot = None;
            }
            Change::Truncate { before } => entry.forget_before(*before),
            // One of the future, or of events that were deleted, is of another stream than this.
            Change::Snapshot { next, .. } if *next > entry.next || *next <= entry.begun => {
                return Verdict::Conflict(entry.version());
            }
            Change::Snapshot { next, .. } => {
                if entry.snapshot.is_none_or(|(_, newest)| newest <= *next) {
                    entry.snapshot = Some((offset, *next));
                }
                self.snapshots += 1;
            }
        }
        Verdict::Applied(0..0)
    }

    fn remember(&mut self, commit: String, versions: Range<u64>) {
        let commit: Arc<str> = commit.into();
        self.order.push_back(commit.clone());
        self.commits.insert(commit, versions);
        if self.order.len() > REMEMBERED {
            let oldest = self.order.pop_front().expect("there are more than none");
            self.commits.remove(&oldest);
        }
    }
}

/// A commit of a stream, by which it is remembered. A store writes no commit whose name holds what parts the two.
fn named(stream: &str, commit: &str) -> String {
    [commit, "\0", stream].concat()
}

fn append(entry: &mut Entry, offset: u64, expected: Expected, events: usize) -> Range<u64> {
    if let Expected::Version(version) = expected {
        // Further than known only behind a gap.
        entry.next = entry.next.max(version + 1);
    }
    let first = entry.next;
    entry.next += events as u64;
    entry.commits.push(Place { offset, first });
    first..entry.next
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;

    use super::super::record::{BodyHead, EventHead};
    use super::*;

    fn head<'a>(stream: &'a str, commit: &'a str, change: Change<'a>) -> Head<'a> {
        Head { v: 1, stream: Cow::Borrowed(stream), commit: Cow::Borrowed(commit), change }
    }

    fn some(expect: Expected, events: usize) -> Change<'static> {
        let event = EventHead {
            id: "e".into(),
            event: "t".into(),
            data: BodyHead::default(),
            correlation: None,
            causation: None,
            meta: BTreeMap::new(),
        };
        Change::Append { expect, events: vec![event; events] }
    }

    #[test]
    fn of_two_that_expect_the_same_the_first_counts() {
        let mut fold = Fold::default();
        let both = |fold: &mut Fold, offset, expect| {
            let first = fold.fold(offset, &head("s", &format!("a{offset}"), some(expect, 2)));
            (first, fold.fold(offset + 1, &head("s", &format!("b{offset}"), some(expect, 1))))
        };
        assert_eq!(
            both(&mut fold, 0, Expected::NoStream),
            (Verdict::Applied(0..2), Verdict::Conflict(Some(1)))
        );
        assert_eq!(
            both(&mut fold, 2, Expected::Version(1)),
            (Verdict::Applied(2..4), Verdict::Conflict(Some(3)))
        );
        assert_eq!(both(&mut fold, 4, Expected::Any), (Verdict::Applied(4..6), Verdict::Applied(6..7)));
        assert_eq!((fold.counts(0), fold.counts(1), fold.counts(4)), (true, false, true));
        assert_eq!((fold.applied, fold.events, fold.conflicts), (4, 7, 2));
    }

    #[test]
    fn a_commit_that_comes_again_changes_nothing() {
        let mut fold = Fold::default();
        assert_eq!(fold.fold(0, &head("s", "c", some(Expected::Any, 2))), Verdict::Applied(0..2));
        assert_eq!(fold.fold(1, &head("s", "c", some(Expected::Any, 2))), Verdict::Repeated(0..2));
        assert_eq!(fold.fold(2, &head("s", "d", some(Expected::Version(1), 1))), Verdict::Applied(2..3));
        assert_eq!(fold.fold(2, &head("other", "c", some(Expected::Any, 1))), Verdict::Applied(0..1));
        for other in 0..REMEMBERED as u64 {
            fold.fold(3 + other, &head("t", &format!("o{other}"), some(Expected::Any, 1)));
        }
        assert_eq!(fold.commits.len(), REMEMBERED, "what is remembered is bounded");
        let late = fold.fold(1 << 40, &head("s", "c", some(Expected::Any, 2)));
        assert_eq!(late, Verdict::Applied(3..5), "too late to be known");
    }

    #[test]
    fn what_is_deleted_goes_on_with_its_versions_or_never() {
        let mut fold = Fold::default();
        fold.fold(0, &head("s", "a", some(Expected::Any, 3)));
        let delete = |forever| Change::Delete { expect: Expected::Version(2), forever };
        assert_eq!(fold.fold(1, &head("s", "b", delete(false))), Verdict::Applied(0..0));
        assert_eq!(fold.streams["s"].version(), None);
        assert_eq!(fold.fold(2, &head("s", "c", some(Expected::Exists, 1))), Verdict::Conflict(None));
        assert_eq!(fold.fold(3, &head("s", "d", some(Expected::NoStream, 1))), Verdict::Applied(3..4));
        let delete = Change::Delete { expect: Expected::Any, forever: true };
        assert_eq!(fold.fold(4, &head("s", "e", delete.clone())), Verdict::Applied(0..0));
        assert_eq!(fold.fold(5, &head("s", "f", some(Expected::Any, 1))), Verdict::Gone);
        assert_eq!(fold.fold(6, &head("never", "g", delete)), Verdict::Applied(0..0));
        assert_eq!(fold.fold(7, &head("never", "h", some(Expected::Any, 1))), Verdict::Gone);
    }

    #[test]
    fn truncating_keeps_the_commit_of_the_first_event_that_stays() {
        let mut fold = Fold::default();
        for commit in 0..4_u64 {
            fold.fold(commit, &head("s", &commit.to_string(), some(Expected::Any, 3)));
        }
        let cut = |fold: &mut Fold, offset: u64, before| {
            fold.fold(offset, &head("s", &offset.to_string(), Change::Truncate { before }));
            let entry = &fold.streams["s"];
            (entry.first, entry.commits.iter().map(|place| place.first).collect::<Vec<_>>(), entry.version())
        };
        assert_eq!(cut(&mut fold, 4, 4), (4, vec![3, 6, 9], Some(11)));
        assert_eq!(cut(&mut fold, 5, 2), (4, vec![3, 6, 9], Some(11)), "never back");
        assert_eq!(cut(&mut fold, 6, 6), (6, vec![6, 9], Some(11)));
        assert_eq!(
            cut(&mut fold, 7, 99),
            (12, vec![], Some(11)),
            "it is there, though nothing of it is read"
        );
        let snapshot = Change::Snapshot { next: 12, state: BodyHead::default() };
        assert_eq!(fold.fold(8, &head("s", "8", snapshot)), Verdict::Applied(0..0));
    }

    #[test]
    fn a_snapshot_of_what_is_not_there_does_not_count() {
        let mut fold = Fold::default();
        let snapshot = |next| Change::Snapshot { next, state: BodyHead::default() };
        assert_eq!(fold.fold(0, &head("s", "a", snapshot(1))), Verdict::Conflict(None));
        fold.fold(1, &head("s", "b", some(Expected::Any, 3)));
        assert_eq!(fold.fold(2, &head("s", "c", snapshot(4))), Verdict::Conflict(Some(2)));
        assert_eq!(fold.fold(3, &head("s", "d", snapshot(3))), Verdict::Applied(0..0));
        fold.fold(4, &head("s", "e", snapshot(2)));
        assert_eq!(fold.streams["s"].snapshot, Some((3, 3)), "a late one does not replace a newer one");
    }

    #[test]
    fn behind_a_gap_versions_go_on_where_their_writers_saw_them() {
        let mut fold = Fold::default();
        fold.fold(0, &head("s", "a", some(Expected::Any, 3)));
        let ahead = || some(Expected::Version(9), 1);
        assert_eq!(fold.fold(1, &head("s", "b", ahead())), Verdict::Conflict(Some(2)));
        fold.gaps = 1;
        assert_eq!(fold.fold(9, &head("s", "c", ahead())), Verdict::Applied(10..11));
        assert_eq!(fold.fold(10, &head("t", "d", ahead())), Verdict::Applied(10..11));
        let far = some(Expected::Version(u64::MAX), 1);
        assert_eq!(
            fold.fold(11, &head("t", "e", far)),
            Verdict::Conflict(Some(10)),
            "hostile, and no overflow"
        );
    }

    proptest! {
        /// Whatever the log holds: versions of a stream are 0, 1, 2 …, each in one commit that counts.
        #[test]
        fn versions_have_no_holes(
            entries in proptest::collection::vec((0..3_u8, 0..4_u8, 0..6_u64, 1..4_usize, 0..12_u8), 1..80)
        ) {
            let mut fold = Fold::default();
            let mut versions: BTreeMap<String, Vec<u64>> = BTreeMap::new();
            for (offset, (stream, kind, version, events, commit)) in entries.into_iter().enumerate() {
                let expect = match kind {
                    0 => Expected::Any,
                    1 => Expected::NoStream,
                    2 => Expected::Exists,
                    _ => Expected::Version(version),
                };
                let stream = format!("s{stream}");
                // Some names come again.
                let commit = if commit == 0 { "again".to_owned() } else { offset.to_string() };
                let before = fold.streams.get(&*stream).and_then(Entry::version);
                let verdict = fold.fold(offset as u64, &head(&stream, &commit, some(expect, events)));
                prop_assert_eq!(fold.counts(offset as u64), matches!(verdict, Verdict::Applied(_)));
                let held = match expect {
                    Expected::Any => true,
                    Expected::NoStream => before.is_none(),
                    Expected::Exists => before.is_some(),
                    Expected::Version(version) => before == Some(version),
                };
                match verdict {
                    Verdict::Applied(new) => {
                        prop_assert!(held);
                        versions.entry(stream).or_default().extend(new);
                    }
                    Verdict::Conflict(there) => prop_assert!(!held && there == before),
                    Verdict::Repeated(_) => prop_assert_eq!(commit, "again"),
                    Verdict::Gone => prop_assert!(false, "nothing was deleted"),
                }
            }
            for (stream, versions) in versions {
                prop_assert!(versions.iter().copied().eq(0..versions.len() as u64));
                let entry = &fold.streams[&*stream];
                let covered: Vec<u64> = (0..entry.commits.len()).flat_map(|i| entry.versions(i)).collect();
                prop_assert_eq!(covered, versions);
            }
        }
    }
}

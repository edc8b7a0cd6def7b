//! What was given back of a stream. RabbitMQ takes nothing back of one and ends the whole connection of who tries (540), so it is handed
//! out again from here.

use std::collections::BTreeMap;
use std::ops::Range;

use millstream_message::Tag;
use tokio::time::Instant;

use super::Kept;

/// The first tag of what is handed out again. The broker's own never come so far.
const FIRST: Tag = 1 << 62;

/// By the tags under which they came, which hold their place at the broker.
#[derive(Default)]
pub(super) struct Again {
    /// To be handed out, the oldest first.
    ready: BTreeMap<Tag, Kept>,
    /// To be handed out from a time on.
    later: BTreeMap<(Instant, Tag), Kept>,
    /// In somebody's hands, by the tags under which they were handed out again.
    held: BTreeMap<Tag, (Tag, Kept)>,
    handed_out: u64,
}

impl Again {
    /// Hands it out again from this time on; at once if there is none.
    pub(super) fn wait(&mut self, tag: Tag, mut kept: Kept, due: Option<Instant>) {
        kept.redeliveries = kept.redeliveries.saturating_add(1);
        match due {
            None => _ = self.ready.insert(tag, kept),
            Some(due) => _ = self.later.insert((due, tag), kept),
        }
    }

    /// When the next one is due that waits for its time.
    pub(super) fn due(&self) -> Option<Instant> {
        self.later.first_key_value().map(|((due, _), _)| *due)
    }

    /// Those whose time has come are ready.
    pub(super) fn ripen(&mut self, now: Instant) {
        while let Some(first) = self.later.first_entry().filter(|first| first.key().0 <= now) {
            let ((_, tag), kept) = first.remove_entry();
            self.ready.insert(tag, kept);
        }
    }

    /// What is handed out next.
    pub(super) fn next(&self) -> Option<&Kept> {
        self.ready.first_key_value().map(|(_, kept)| kept)
    }

    /// Hands the next one out, under this tag.
    pub(super) fn hand_out(&mut self) -> Option<(Tag, Kept)> {
        let (tag, kept) = self.ready.pop_first()?;
        let new = FIRST + self.handed_out;
        self.handed_out += 1;
        self.held.insert(new, (tag, kept.clone()));
        Some((new, kept))
    }

    /// Takes those of these tags from whoever has them.
    pub(super) fn take(&mut self, tags: &[Range<Tag>]) -> Vec<(Tag, Kept)> {
        let mut taken = Vec::new();
        for range in tags.iter().filter(|range| !range.is_empty()) {
            while let Some((&tag, _)) = self.held.range(range.clone()).next() {
                taken.extend(self.held.remove(&tag));
            }
        }
        taken
    }

    /// Gives up all that nobody has in hand. The tags under which it came.
    pub(super) fn give_up(&mut self) -> impl Iterator<Item = Tag> + use<> {
        let later = std::mem::take(&mut self.later).into_keys().map(|(_, tag)| tag);
        std::mem::take(&mut self.ready).into_keys().chain(later)
    }

    /// How many are in somebody's hands.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether nothing waits to be handed out.
    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.later.is_empty()
    }

    /// The offset of the oldest.
    pub(super) fn oldest(&self) -> Option<u64> {
        let held = self.held.values().map(|(_, kept)| kept);
        self.ready.values().chain(self.later.values()).chain(held).filter_map(Kept::offset).min()
    }
}

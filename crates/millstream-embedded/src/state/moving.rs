//! Messages that are held or on their way as dead letters, when their records are copied forward.

use std::collections::HashMap;

use super::{Held, State};
use crate::run::Taken;

impl State {
    /// Held deliveries whose records begin before this position of the log: their session, tag and message, about
    /// `bytes` of them.
    pub(crate) fn old_held(&self, before: u64, bytes: u64) -> Vec<(u64, u64, Taken)> {
        let mut left = bytes;
        let mut out = Vec::new();
        for session in &self.sessions {
            for (tag, held) in (session.first_tag..).zip(&session.held) {
                let Some(Held { taken, .. }) = held else { continue };
                if taken.position == 0 || taken.position >= before {
                    continue;
                }
                if left == 0 {
                    return out;
                }
                // A record costs more than its message.
                left = left.saturating_sub(u64::from(taken.size) + 100);
                out.push((session.id, tag, taken.clone()));
            }
        }
        out
    }

    /// Dead letters on their way whose records begin before this position of the log, about `bytes` of them.
    pub(crate) fn old_dead(&self, before: u64, bytes: u64) -> Vec<Taken> {
        let mut left = bytes;
        let old = self.outbox.iter().map(|dead| &dead.taken);
        let old = old.filter(|taken| taken.position != 0 && taken.position < before);
        let some = old.take_while(|taken| {
            let more = left > 0;
            left = left.saturating_sub(u64::from(taken.size) + 100);
            more
        });
        some.cloned().collect()
    }

    /// The records of these dead letters on their way are at these positions now.
    pub(crate) fn dead_moved(&mut self, moved: &HashMap<u64, u64>) {
        for dead in &mut self.outbox {
            if let Some(position) = moved.get(&dead.taken.seq) {
                dead.taken.position = *position;
            }
        }
    }

    /// A held delivery's record is at this position now.
    pub(crate) fn held_moved(&mut self, session: u64, tag: u64, position: u64) {
        let Some(session) = self.session(session) else { return };
        let index = tag.checked_sub(session.first_tag).and_then(|index| usize::try_from(index).ok());
        if let Some(Some(held)) = index.and_then(|index| session.held.get_mut(index)) {
            held.taken.position = position;
        }
    }
}

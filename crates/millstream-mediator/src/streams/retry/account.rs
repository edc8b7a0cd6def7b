//! What came of the tries of a stream, and how it goes on.

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::HashSet;
use millstream_resilience::Attempts;

use super::{Resume, StreamRetries};
use crate::error::Error;
use crate::message::StreamRequest;
use crate::stream::StreamError;
use crate::stream::progress::LeftOut;

/// What came of the tries.
pub(super) struct Account {
    pub(super) rule: StreamRetries,
    /// The tries since something new came; `None` if none has failed.
    pub(super) attempts: Option<Attempts>,
    /// What makes the handler's position of what the reader has got; in the same way, of what came of the present try.
    pub(super) left_out: LeftOut,
    pub(super) behind: LeftOut,
    /// The handler's position at which the present try began.
    pub(super) base: u64,
    /// What came of the present try, failed items among it.
    pub(super) came: u64,
    /// How much of the present try has come before, and is still to be left out.
    pub(super) skip: u64,
    /// What the reader has got, failed items among it; of those, items; of those, items of the present try.
    pub(super) given: u64,
    pub(super) delivered: u64,
    pub(super) fresh: u64,
    pub(super) keys: Keys,
}

/// The keys that were delivered last.
#[derive(Default)]
pub(super) struct Keys {
    keys: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Keys {
    /// False if it is there already.
    fn add(&mut self, key: u64, keys_max: usize) -> bool {
        if !self.keys.insert(key) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > keys_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
        true
    }
}

impl Account {
    /// Tells those around where the handler is. The difference may be less than nothing.
    pub(super) fn tell(&self) {
        let position = (self.base + self.came).wrapping_add(self.behind.items());
        self.left_out.set(position.wrapping_sub(self.given));
    }

    /// What comes next of the present try, if it goes to the reader.
    #[inline]
    pub(super) fn gives<R: StreamRequest>(
        &mut self,
        item: Result<R::Item, StreamError>,
    ) -> Option<Result<R::Item, StreamError>> {
        self.came += 1;
        let before = self.skip > 0;
        self.skip -= u64::from(before);
        let item = match item {
            Ok(item) => item,
            Err(_) if before => return None,
            Err(error) => {
                self.given += 1;
                let position = self.base + error.position();
                return Some(Err(error.at(position).delivered_in_all(self.delivered)));
            }
        };
        let mut known = || match (self.rule.resume, R::key(&item)) {
            (Resume::Dedupe(keys_max), Some(key)) => !self.keys.add(key, keys_max),
            _ => false,
        };
        if before || known() {
            self.rule.duplicates.add(1);
            return None;
        }
        if self.fresh == 0 {
            self.succeeded();
        }
        self.fresh += 1;
        self.delivered += 1;
        self.given += 1;
        Some(Ok(item))
    }

    /// The present try has brought something.
    fn succeeded(&mut self) {
        self.rule.retry.succeeded();
        if let Some(attempts) = &self.attempts {
            self.rule.counted.saved(attempts.elapsed());
        }
        if self.rule.resume != Resume::Restart {
            self.attempts = None;
        }
    }

    /// The stream is complete, of which the present try may have brought nothing that was missing.
    pub(super) fn ended_well(&mut self) {
        if self.fresh == 0 && self.attempts.is_some() {
            self.succeeded();
            self.attempts = None;
        }
    }

    /// Begins another try after an error at this position of the handler, at its delay, or says that there is none.
    pub(super) fn again<R: StreamRequest>(
        &mut self,
        request: Option<&R>,
        broken: &Error,
        position: u64,
    ) -> Option<(R, Duration)> {
        let StreamRetries { retry, resume, counted, .. } = &self.rule;
        let (resume, class) = (*resume, self.rule.class(broken));
        let goes_on = resume == Resume::Position && position > 0;
        // Of which nothing has come of the last.
        let tried = self.attempts.is_some() && self.fresh == 0;
        let again = match resume {
            Resume::Never if self.given > 0 => None,
            _ if goes_on => request.and_then(|request| request.resume(position)),
            _ => request.and_then(|request| resume.anew(request)),
        };
        let Some(again) = again else {
            counted.unrepeatable(class, tried);
            return None;
        };
        let attempts = self.attempts.get_or_insert_with(|| retry.attempts(None));
        match attempts.failed(retry, class) {
            Ok(delay) => {
                counted.again(class);
                (self.fresh, self.came) = (0, 0);
                self.behind.set(0);
                self.base = if goes_on { position } else { 0 };
                self.behind.begin_at(self.left_out.base() + self.base);
                self.skip = if resume == Resume::Skip { self.given } else { 0 };
                Some((again, delay))
            }
            Err(stop) => {
                counted.given_up(stop, tried);
                None
            }
        }
    }
}

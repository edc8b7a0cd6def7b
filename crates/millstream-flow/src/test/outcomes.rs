//! What became of each item of a tracked source.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::token::{Account, Outcome, Tracker};

/// How an item ended, in a form that can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The sink confirmed it.
    Completed,
    /// Dropped by the operator of this name.
    Dropped(String),
    /// Dead, for this reason.
    Dead(String),
    /// Given back, to be delivered again.
    Abandoned,
}

impl From<&Outcome> for End {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Completed => End::Completed,
            Outcome::Dropped(name) => End::Dropped(name.to_string()),
            Outcome::Dead(failure) => End::Dead(failure.reason.clone()),
            Outcome::Abandoned => End::Abandoned,
        }
    }
}

/// Hears what becomes of the items of one source, by their number from 0.
#[derive(Clone, Default)]
pub struct Outcomes {
    heard: Arc<Mutex<BTreeMap<u64, Vec<End>>>>,
    news: Arc<Notify>,
    account: Arc<Mutex<Option<Arc<Account>>>>,
}

impl Outcomes {
    /// A tracker whose items these are the outcomes of.
    pub fn tracker(&self) -> Tracker {
        let Outcomes { heard, news, account } = self.clone();
        let tracker = Tracker::new(move |items: Range<u64>, outcome: &Outcome| {
            let mut heard = heard.lock().expect("nothing panics while outcomes are held");
            for item in items {
                heard.entry(item).or_default().push(outcome.into());
            }
            drop(heard);
            news.notify_waiters();
        });
        *account.lock().expect("nothing panics while an account is held") = Some(tracker.account());
        tracker
    }

    /// How many items the source let in.
    pub fn issued(&self) -> u64 {
        let account = self.account.lock().expect("nothing panics while an account is held");
        account.as_ref().map_or(0, |account| account.received())
    }

    /// The ends of the items that have ended.
    ///
    /// # Panics
    /// If an item ended more than once.
    pub fn ends(&self) -> BTreeMap<u64, End> {
        let heard = self.heard.lock().expect("nothing panics while outcomes are held");
        let once = heard.iter().map(|(item, ends)| {
            assert_eq!(ends.len(), 1, "item {item} ended more than once: {ends:?}");
            (*item, ends[0].clone())
        });
        once.collect()
    }

    /// The ends of all items that were let in, in their order.
    ///
    /// # Panics
    /// If one has not ended, or more than once: an item was lost or told of twice.
    pub fn list(&self) -> Vec<End> {
        let ends = self.ends();
        let missing: Vec<_> = (0..self.issued()).filter(|item| !ends.contains_key(item)).collect();
        assert!(missing.is_empty(), "items that have not ended: {missing:?}");
        ends.into_values().collect()
    }

    /// Waits until all items that were let in have ended.
    pub async fn all_ended(&self) {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            let ended = self.heard.lock().expect("nothing panics while outcomes are held").len() as u64;
            if ended == self.issued() {
                return;
            }
            news.await;
        }
    }
}

impl std::fmt::Debug for Outcomes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map()
            .entries(self.heard.lock().expect("nothing panics while outcomes are held").iter())
            .finish()
    }
}

//! What is counted under a name, for as long as the name may come back.

use std::sync::Arc;

/// How many names are remembered that nobody uses any more: whoever has that many routes or servers come and go counts each anew.
const GONE_MAX: usize = 1_000;

/// Counters by name. A name that goes and comes back goes on where it was, so that no counter falls.
#[derive(Debug)]
pub(crate) struct Ledger<T> {
    /// Those that were asked for last stand last.
    entries: Vec<(String, Arc<T>)>,
}

impl<T> Default for Ledger<T> {
    fn default() -> Self {
        Ledger { entries: Vec::new() }
    }
}

impl<T: Default> Ledger<T> {
    /// The counters of this name.
    pub(crate) fn of(&mut self, name: &str) -> Arc<T> {
        let entry = match self.entries.iter().position(|(known, _)| known == name) {
            Some(at) => self.entries.remove(at),
            None => (name.to_owned(), Arc::default()),
        };
        let counters = entry.1.clone();
        self.entries.push(entry);
        counters
    }

    /// Forgets the oldest names that nobody uses any more, where there are too many.
    pub(crate) fn tidy(&mut self) {
        let unused = |(_, counters): &(String, Arc<T>)| Arc::strong_count(counters) == 1;
        let mut excess = self.entries.iter().filter(|entry| unused(entry)).count().saturating_sub(GONE_MAX);
        self.entries.retain(|entry| {
            let forgets = excess > 0 && unused(entry);
            excess -= usize::from(forgets);
            !forgets
        });
    }

    pub(crate) fn entries(&self) -> &[(String, Arc<T>)] {
        &self.entries
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn a_name_that_comes_back_goes_on_and_of_those_that_do_not_some_are_forgotten() {
        let mut ledger = Ledger::<AtomicU64>::default();
        let used = ledger.of("used");
        for number in 0..2 * GONE_MAX {
            ledger.of(&number.to_string()).fetch_add(1, Ordering::Relaxed);
        }
        ledger.tidy();
        assert_eq!(ledger.entries().len(), GONE_MAX + 1);
        assert!(Arc::ptr_eq(&used, &ledger.of("used")));
        let count = |name: &str, ledger: &mut Ledger<AtomicU64>| ledger.of(name).load(Ordering::Relaxed);
        assert_eq!(
            (count("1999", &mut ledger), count("1000", &mut ledger), count("999", &mut ledger)),
            (1, 1, 0)
        );
    }
}

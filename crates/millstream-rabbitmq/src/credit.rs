//! How many deliveries to ask the broker for, so that they stay within a number of bytes.

use std::num::NonZeroUsize;

use millstream_message::ConsumeOptions;

/// A message of which nothing is known yet is taken to be so large.
const LARGE: u64 = 1 << 20;
/// Where the broker must not be asked again, a message is taken to be so large, always.
const USUAL: u64 = 64 << 10;
/// One step asks for at most so many times what was asked for before: what was measured may not have been what is usual.
const STEP: u64 = 32;
/// The mean is over about so many messages.
const MEMORY: u64 = 32;

/// RabbitMQ counts prefetch in messages. This is the count that stands for bytes, by the mean size of what came; it begins low,
/// since the first messages come before their size is known.
#[derive(Clone, Debug)]
pub(crate) struct Credit {
    items_max: u64,
    bytes_max: u64,
    fixed: bool,
    /// In 256ths of a byte.
    mean: u64,
    seen: u64,
}

impl Credit {
    /// Within the options' bounds. A fixed one never asks for another count.
    pub(crate) fn new(options: &ConsumeOptions, fixed: bool) -> Credit {
        let bytes_max = options.prefetch_bytes.get() as u64;
        Credit { items_max: counted(options.prefetch_items), bytes_max, fixed, mean: 0, seen: 0 }
    }

    /// Up to so many messages from now on.
    pub(crate) fn limit(&mut self, items: NonZeroUsize) {
        self.items_max = counted(items);
    }

    /// Whether it never asks for another count.
    pub(crate) fn is_fixed(&self) -> bool {
        self.fixed
    }

    /// A message of this size came.
    pub(crate) fn came(&mut self, bytes: u64) {
        self.seen = (self.seen + 1).min(MEMORY);
        let scaled = bytes << 8;
        self.mean = self.mean - self.mean / self.seen + scaled / self.seen;
    }

    fn count(&self, bytes: u64, each: u64) -> u16 {
        (bytes / each.max(1)).clamp(1, self.items_max) as u16
    }

    /// What to ask for on a new channel.
    pub(crate) fn first(&self) -> u16 {
        match self.seen {
            _ if self.fixed => self.count(self.bytes_max, USUAL),
            0 => self.count(self.bytes_max, LARGE),
            _ => self.count(self.bytes_max, self.mean.div_ceil(256)),
        }
    }

    /// What to ask for instead of `asked`, if it is worth asking, with so many deliveries unsettled that are so many bytes.
    pub(crate) fn better(&self, asked: u16, items: u64, bytes: u64) -> Option<u16> {
        let (fits, now) = (self.count(self.bytes_max, self.mean.div_ceil(256)), u64::from(asked));
        if self.fixed {
            None
        } else if now > self.items_max {
            Some(fits)
        } else if bytes > self.bytes_max {
            // Too much may be here of what was asked for before: what counts is whether this is too much to ask for.
            (u64::from(fits) * 4 < now * 3).then_some(fits)
        } else if items >= now && now < self.items_max {
            let more = u64::from(fits).min(now * STEP);
            (more >= 2 * now || (more > now && more == self.items_max)).then_some(more as u16)
        } else {
            None
        }
    }
}

/// As much of it as a prefetch of AMQP can say.
fn counted(items: NonZeroUsize) -> u64 {
    items.get().min(usize::from(u16::MAX)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credit(items: usize, bytes: usize) -> Credit {
        Credit::new(&ConsumeOptions::default().prefetch(items).prefetch_bytes(bytes), false)
    }

    #[test]
    fn small_messages_are_asked_for_in_few_steps() {
        let mut credit = credit(8192, 16 << 20);
        let mut steps = vec![credit.first()];
        while let Some(more) = {
            let asked = *steps.last().expect("the first");
            (0..asked).for_each(|_| credit.came(100));
            credit.better(asked, asked.into(), u64::from(asked) * 100)
        } {
            steps.push(more);
        }
        assert_eq!(steps, [16, 512, 8192]);
        assert_eq!(credit.first(), 8192, "what was learned holds on the next channel");
    }

    #[test]
    fn large_messages_are_asked_for_in_the_number_that_fits() {
        let mut credit = credit(1000, 16 << 20);
        (0..16).for_each(|_| credit.came(8 << 20));
        assert_eq!(credit.better(16, 16, 128 << 20), Some(2));
        assert_eq!(credit.better(2, 16, 128 << 20), None, "what was asked for before must be settled first");
        assert_eq!(credit.better(1, 1, 8 << 20), Some(2), "two are within the bound");
    }

    #[test]
    fn what_may_be_unsettled_can_be_changed() {
        let mut credit = credit(8, 16 << 20);
        (0..50).for_each(|_| credit.came(100));
        credit.limit(NonZeroUsize::new(100).expect("not zero"));
        assert_eq!(credit.better(8, 8, 800), Some(100));
        assert_eq!(credit.better(8, 7, 700), None, "there is room");
        credit.limit(NonZeroUsize::MIN);
        assert_eq!(credit.better(100, 0, 0), Some(1), "at once, for it may send a hundred");
        assert_eq!(credit.better(1, 1, 100), None);
        credit.limit(NonZeroUsize::MAX);
        assert_eq!(credit.first(), u16::MAX);
    }

    #[test]
    fn nobody_is_asked_while_there_is_room_or_little_would_change() {
        let mut credit = credit(1000, 100_000);
        (0..50).for_each(|_| credit.came(1000));
        assert_eq!(credit.better(60, 59, 59_000), None, "the broker could send more already");
        assert_eq!(credit.better(60, 60, 60_000), None, "not worth a round trip");
        assert_eq!(credit.better(50, 50, 50_000), Some(100));
        assert_eq!(
            credit.better(60, 101, 101_000),
            None,
            "it is what was asked for before that must be settled first"
        );
    }

    #[test]
    fn the_count_that_was_set_is_reached_exactly_and_never_passed() {
        let mut credit = credit(300, 100 << 20);
        credit.came(10);
        assert_eq!(credit.better(200, 200, 2000), Some(300));
        assert_eq!(credit.better(300, 300, 3000), None);
        let fixed = Credit::new(&ConsumeOptions::default(), true);
        assert_eq!((fixed.first(), fixed.better(1, 1, u64::MAX)), (256, None));
    }

    #[test]
    fn the_mean_follows_the_sizes() {
        let mut credit = credit(1000, 1 << 20);
        (0..1000).for_each(|n| credit.came(n % 2 * 2000));
        let first = credit.first();
        assert!((950..=1000).contains(&first), "a mean of 1000 bytes: {first}");
    }
}

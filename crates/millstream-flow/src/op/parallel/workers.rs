//! How many workers, and what they may hold.

use crate::knob::{Knob, Setting};
use crate::measure::Unmeasured;

/// How many workers, and whether results keep the order of their items.
///
/// `parallel(4, ..)` is four workers, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Workers<W = Unmeasured> {
    pub(crate) count: Setting,
    pub(crate) unordered: bool,
    pub(crate) bytes_max: Option<usize>,
    pub(crate) measure: W,
}

impl Workers {
    /// So many workers; results in the order of their items.
    ///
    /// # Panics
    /// If `workers` is 0 or above 1,024.
    pub fn ordered(workers: usize) -> Self {
        assert!((1..=1024).contains(&workers), "workers are 1 to 1024, not {workers}");
        Workers { count: workers.into(), ..Workers::default() }
    }

    /// So many workers; results as they come.
    ///
    /// # Panics
    /// If `workers` is 0 or above 1,024.
    pub fn unordered(workers: usize) -> Self {
        Workers { unordered: true, ..Workers::ordered(workers) }
    }

    /// A worker for each core to begin with, the tuner's to move, in order.
    pub fn auto() -> Self {
        Workers::default()
    }

    /// And no more than about so many bytes of items that were pulled and whose results are not read, as `measure` says: the
    /// last item may go beyond it. See [`Pipe::parallel_measured`](crate::Pipe::parallel_measured).
    ///
    /// # Panics
    /// If `bytes` is 0.
    pub fn bytes<W>(self, bytes: usize, measure: W) -> Workers<W> {
        assert!(bytes > 0, "workers that may hold no bytes do nothing");
        Workers { count: self.count, unordered: self.unordered, bytes_max: Some(bytes), measure }
    }
}

impl<W> Workers<W> {
    pub(crate) fn knob(&self, name: String) -> Knob {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let max = match self.count {
            Setting::Fixed(count) => count,
            Setting::Auto => cores,
        };
        Knob::new(name, self.count, cores, 1..=max)
    }
}

impl From<usize> for Workers {
    fn from(workers: usize) -> Self {
        Workers::ordered(workers)
    }
}

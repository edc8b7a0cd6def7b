//! What metrics show of the buffers of a type of stream.

use std::sync::{Arc, Mutex, MutexGuard};

use hashbrown::HashMap;

use super::shelf::Shelf;
use crate::message::About;
use crate::metrics::{Combine, MetricKind};

/// The buffers of the open streams of a type, by their place in memory. They are asked when somebody reads the numbers, so that
/// nothing is paid for it where items move.
#[derive(Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<HashMap<usize, Arc<dyn Buffer>>>>);

trait Buffer: Send + Sync {
    fn len(&self) -> usize;
}

impl<T: Send> Buffer for Shelf<T> {
    fn len(&self) -> usize {
        self.state().len()
    }
}

impl Buffers {
    /// Shows them, each of which may hold so many items: those of several behaviours around one type as one.
    pub(super) fn of(about: &About, capacity: usize) -> Self {
        let buffers = Buffers::default();
        let labels = [("type", about.label()), ("handler", &*about.handler)];
        let show = |name, help, combine, read: fn(&Buffers) -> usize, part: f64| {
            let buffers = buffers.clone();
            let read = move || read(&buffers) as f64 * part;
            about.metrics().read_combined(name, help, MetricKind::Gauge, &labels, combine, read);
        };
        let help = "Items that wait in the buffers of open streams.";
        let all: fn(&Buffers) -> usize = |buffers| buffers.lens(|lens| lens.sum());
        show("mediator_stream_buffer_size", help, Combine::Sum, all, 1.0);
        let help = "Items that wait in the fullest of them, in percent of what may.";
        let fullest: fn(&Buffers) -> usize = |buffers| buffers.lens(|lens| lens.max().unwrap_or(0));
        show("mediator_stream_buffer_usage", help, Combine::Most, fullest, 100.0 / capacity as f64);
        buffers
    }

    fn all(&self) -> MutexGuard<'_, HashMap<usize, Arc<dyn Buffer>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn lens(&self, of: impl FnOnce(&mut dyn Iterator<Item = usize>) -> usize) -> usize {
        of(&mut self.all().values().map(|buffer| buffer.len()))
    }

    /// Counts this one until the place is dropped.
    pub(super) fn add<T: Send + 'static>(&self, shelf: &Arc<Shelf<T>>) -> Place {
        let key = Arc::as_ptr(shelf).addr();
        self.all().insert(key, shelf.clone());
        Place { buffers: self.clone(), key }
    }
}

/// A buffer's place among the others.
pub(super) struct Place {
    buffers: Buffers,
    key: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        let buffer = self.buffers.all().remove(&self.key);
        drop(buffer); // after the lock: items may do anything when they are dropped
    }
}

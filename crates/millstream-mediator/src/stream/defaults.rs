//! What holds for all types of streams that do not say otherwise.

use millstream_flow::{Capacity, Concurrency};

use super::options::{StreamOptions, tried};

/// A mediator's own options of streams, and whether any stream takes them.
#[derive(Default)]
pub(crate) struct StreamDefaults {
    pub(crate) buffer: Option<Taken<Capacity>>,
    pub(crate) concurrency: Option<Taken<Concurrency>>,
}

pub(crate) struct Taken<T> {
    value: T,
    taken: bool,
}

impl<T: Copy> Taken<T> {
    pub(crate) fn new(value: T) -> Self {
        Taken { value, taken: false }
    }

    fn take(&mut self) -> T {
        self.taken = true;
        self.value
    }
}

impl StreamDefaults {
    /// The options of one type with what it leaves open.
    pub(crate) fn fill<T: Send + 'static>(&mut self, mut options: StreamOptions<T>) -> StreamOptions<T> {
        if options.buffer.is_none() && !options.unbuffered {
            options.buffer = self.buffer.as_mut().map(Taken::take);
        }
        if let Some(each) = options.each_item.take() {
            let concurrency = self.concurrency.as_mut().map(Taken::take);
            options.each = Some((concurrency.unwrap_or_else(|| Concurrency::ordered(1)), each));
        }
        if let Some((concurrency, each)) = options.each.take() {
            let each = match options.retry.take() {
                Some((retry, copy)) => tried(each, retry, copy),
                None => each,
            };
            options.each = Some((concurrency, each));
        }
        options
    }

    /// Adds what no stream takes.
    pub(crate) fn unread(&self, problems: &mut Vec<String>) {
        let unread = |what, remedy| format!("`{what}` has no effect: {remedy}, or remove it");
        if self.buffer.as_ref().is_some_and(|buffer| !buffer.taken) {
            let remedy = "no stream is registered that does not say otherwise; register one";
            problems.push(unread("stream_buffer", remedy));
        }
        if self.concurrency.as_ref().is_some_and(|concurrency| !concurrency.taken) {
            let remedy = "no stream does something with each item by `StreamOptions::each_item`; let one";
            problems.push(unread("stream_concurrency", remedy));
        }
    }
}

//! A batch: the bytes of its items one behind the other, so that a small item costs little more than its bytes.

use crate::ready::Ready;
use millstream_message::TraceContext;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that an item of a batch takes besides its own: where it ends, and where its place ends.
pub(crate) const ITEM_BYTES: u64 = 2 * size_of::<usize>() as u64;

/// Bytes that an item's trace takes, besides what tracing systems added to it: twice its entry, for a vector grows by doubling, and
/// the trace with its counts and what an allocator adds to two blocks.
const TRACE_BYTES: usize = 2 * size_of::<(usize, Arc<TraceContext>)>() + size_of::<TraceContext>() + 3 * 16;

/// Items of one output and one key, in their order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) output: usize,
    lines: Texts,
    /// Where the items came from; none unless somebody may ask.
    places: Texts,
    /// The files of a file output, each for the items before its number that the one before does not have.
    paths: Vec<(usize, Arc<str>)>,
    /// Items that belong to a trace, by their number.
    traces: Vec<(usize, Arc<TraceContext>)>,
    trace_bytes: usize,
}

/// Bytes that an item has in a batch: its own, and those of its trace.
pub(crate) fn weight(item: &Ready) -> usize {
    item.bytes.len() + item.trace.as_deref().map_or(0, trace_weight)
}

pub(crate) fn trace_weight(trace: &TraceContext) -> usize {
    TRACE_BYTES + trace.state().map_or(0, str::len)
}

impl Batch {
    /// An empty batch of this output.
    pub(crate) fn new(output: usize) -> Self {
        Batch { output, ..Batch::default() }
    }

    /// Takes an item at the end. The buffers grow by doubling, but not over `items` and `bytes` before they must.
    pub(crate) fn push(&mut self, item: &Ready, items: usize, bytes: usize) {
        if let Some(path) = &item.path {
            let end = self.len() + 1;
            match self.paths.last_mut() {
                Some((last, same)) if Arc::ptr_eq(same, path) || same == path => *last = end,
                _ => self.paths.push((end, path.clone())),
            }
        }
        self.lines.push(&item.bytes, items, bytes);
        if !item.place.is_empty() || self.places.len() > 0 {
            // Items before the first that has a place have none.
            while self.places.len() + 1 < self.lines.len() {
                self.places.push(b"", items, bytes);
            }
            self.places.push(item.place.as_bytes(), items, bytes);
        }
        if let Some(trace) = &item.trace {
            grow(&mut self.traces, 1, items);
            self.traces.push((self.lines.len() - 1, trace.clone()));
            self.trace_bytes += trace_weight(trace);
        }
    }

    /// How many items it has.
    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }

    /// The bytes of all items, as they follow each other.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.lines.bytes
    }

    /// Bytes that it has of what a batch may have: those of all items, and of their traces.
    pub(crate) fn weight(&self) -> usize {
        self.bytes().len() + self.trace_bytes
    }

    /// Bytes of memory that it holds.
    pub(crate) fn held(&self) -> usize {
        let paths = self.paths.capacity() * size_of::<(usize, Arc<str>)>();
        self.lines.held() + self.places.held() + paths + self.trace_bytes
    }

    /// The trace that an item belongs to.
    pub(crate) fn trace(&self, item: usize) -> Option<&Arc<TraceContext>> {
        let at = self.traces.binary_search_by_key(&item, |(number, _)| *number).ok()?;
        Some(&self.traces[at].1)
    }

    /// Each item's bytes.
    pub(crate) fn lines(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|item| self.lines.get(item))
    }

    /// Where an item came from; empty if nobody kept it.
    pub(crate) fn place(&self, item: usize) -> &str {
        if item >= self.places.len() {
            return "";
        }
        // Only texts are pushed.
        std::str::from_utf8(self.places.get(item)).unwrap_or_default()
    }

    /// Neighbours that go to the same file, with it.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&Arc<str>, &[u8])> {
        let mut from = 0;
        self.paths.iter().map(move |(end, path)| {
            let items = from..*end;
            from = *end;
            (path, self.lines.range(items))
        })
    }
}

/// Texts one behind the other.
#[derive(Debug, Default)]
struct Texts {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Texts {
    fn push(&mut self, text: &[u8], items: usize, bytes: usize) {
        grow(&mut self.bytes, text.len(), bytes);
        grow(&mut self.ends, 1, items);
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len());
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn held(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<usize>()
    }

    fn get(&self, at: usize) -> &[u8] {
        self.range(at..at + 1)
    }

    fn range(&self, items: Range<usize>) -> &[u8] {
        let begin = items.start.checked_sub(1).map_or(0, |before| self.ends[before]);
        let end = items.end.checked_sub(1).map_or(0, |last| self.ends[last]);
        &self.bytes[begin..end]
    }
}

/// Room for `more`: twice what there was, but not beyond `limit` unless it is needed.
fn grow<T>(vec: &mut Vec<T>, more: usize, limit: usize) {
    let needed = vec.len() + more;
    if needed > vec.capacity() {
        let target = needed.max((2 * vec.capacity()).max(4).min(limit));
        vec.reserve_exact(target - vec.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(text: &str, path: Option<&str>, place: &str) -> Ready {
        let (bytes, place) = (text.as_bytes().to_vec(), place.to_owned());
        let (key, path) = (Default::default(), path.map(Into::into));
        Ready { output: 0, key, path, bytes, place, trace: None, size: 0 }
    }

    proptest! {
        #[test]
        fn every_item_comes_back_with_its_file_and_place(
            items in proptest::collection::vec(("[a-z]{0,9}", 0..3usize, "[a-z:]{0,5}"), 0..40),
            bytes in 0..200usize,
        ) {
            let mut batch = Batch::new(3);
            for (text, file, place) in &items {
                batch.push(&item(text, Some(["a", "b", "c"][*file]), place), 10, bytes);
            }
            prop_assert_eq!(batch.len(), items.len());
            let lines: Vec<_> = batch.lines().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
            prop_assert_eq!(lines.concat(), String::from_utf8_lossy(batch.bytes()));
            for (at, (text, _, place)) in items.iter().enumerate() {
                prop_assert_eq!(&lines[at], text);
                prop_assert_eq!(batch.place(at), place);
            }
            let mut by_file = [const { String::new() }; 3];
            for (text, file, _) in &items {
                by_file[*file].push_str(text);
            }
            let mut files = [const { String::new() }; 3];
            for (path, lines) in batch.files() {
                let at = ["a", "b", "c"].iter().position(|name| **name == **path).expect("a known file");
                files[at].push_str(std::str::from_utf8(lines).expect("whole texts"));
            }
            prop_assert_eq!(files, by_file);
        }
    }

    #[test]
    fn a_batch_of_small_items_holds_little_more_than_their_bytes() {
        let mut batch = Batch::new(0);
        for _ in 0..100_000 {
            batch.push(&item("1\n", Some("a"), ""), 100_000, 1 << 20);
        }
        assert!(batch.held() as u64 <= 2 * 200_000 + 100_000 * ITEM_BYTES, "{} bytes", batch.held());
        // It fills its bounds exactly, without the slack of doubling.
        let mut full = Batch::new(0);
        for _ in 0..100 {
            full.push(&item(&"x".repeat(1000), None, ""), 100, 100_000);
        }
        assert_eq!(full.held(), 100_000 + 100 * size_of::<usize>());
    }

    #[test]
    fn a_trace_is_its_items_and_takes_no_more_than_it_counts() {
        let trace = |n: u64| {
            let trace = TraceContext::new(1.try_into().expect("not 0"), (n + 1).try_into().expect("not 0"));
            Arc::new(trace.with_state(&"x".repeat(n as usize % 5)))
        };
        let mut batch = Batch::new(0);
        let mut kept = 0;
        for n in 0..1000_u64 {
            let mut item = item("1\n", None, "");
            item.trace = (n % 3 == 1).then(|| trace(n));
            let before = batch.weight();
            batch.push(&item, 1000, 1 << 20);
            assert_eq!(batch.weight(), before + weight(&item));
            kept += item.trace.map_or(0, |trace| {
                // Its counts, and what an allocator adds to two blocks.
                size_of::<TraceContext>() + 16 + trace.state().map_or(0, |state| state.len() + 16)
            });
        }
        for n in 0..1000 {
            assert_eq!(batch.trace(n).cloned(), (n % 3 == 1).then(|| trace(n as u64)));
        }
        let entries = batch.traces.capacity() * size_of::<(usize, Arc<TraceContext>)>();
        assert!(
            entries + kept <= batch.weight() - 2000,
            "{entries} and {kept} are more than {}",
            batch.weight()
        );
    }
}

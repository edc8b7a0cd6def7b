//! A batch: the bytes of its items one behind the other, so that a small item costs little more than its bytes.

use crate::ready::Ready;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that an item of a batch takes besides its own: where it ends, and where its place ends.
pub(crate) const ITEM_BYTES: u64 = 2 * size_of::<usize>() as u64;

/// Items of one output and one key, in their order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) output: usize,
    lines: Texts,
    /// Where the items came from; none unless somebody may ask.
    places: Texts,
    /// The files of a file output, each for the items before its number that the one before does not have.
    paths: Vec<(usize, Arc<str>)>,
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
    }

    /// How many items it has.
    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }

    /// The bytes of all items, as they follow each other.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.lines.bytes
    }

    /// Bytes of memory that it holds.
    pub(crate) fn held(&self) -> usize {
        self.lines.held() + self.places.held() + self.paths.capacity() * size_of::<(usize, Arc<str>)>()
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
        Ready { output: 0, key: Default::default(), path: path.map(Into::into), bytes, place, size: 0 }
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
}

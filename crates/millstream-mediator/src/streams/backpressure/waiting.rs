//! What waits in a buffer, with what its strategies must know of it.

use std::collections::VecDeque;
use std::mem::{needs_drop, replace};

use hashbrown::HashMap;

use super::Strategy;
use crate::message::StreamRequest;
use crate::stream::StreamError;

type Item<T> = Result<T, StreamError>;

/// What a type of stream says of its items.
pub(crate) struct Says<T> {
    key: fn(&T) -> Option<u64>,
    priority: fn(&T) -> u8,
    heap: fn(&T) -> usize,
}

impl<T> Says<T> {
    pub(crate) fn of<R: StreamRequest<Item = T>>() -> Self {
        Says { key: R::key, priority: R::priority, heap: R::heap_bytes }
    }

    fn key(&self, item: &Item<T>) -> Option<u64> {
        item.as_ref().ok().and_then(self.key)
    }

    /// What has failed is the last to be dropped.
    fn priority(&self, item: &Item<T>) -> u8 {
        item.as_ref().map_or(u8::MAX, self.priority)
    }
}

/// Items in a row. What is not looked at is not kept: a buffer of plain strategies is a deque.
pub(crate) struct Waiting<T> {
    items: VecDeque<Item<T>>,
    says: Says<T>,
    /// Bytes that items point to, if anybody wants to know and they can point to any.
    heap: Option<usize>,
    /// How many items there are of each priority.
    levels: Option<Box<[usize; 256]>>,
    keys: Option<Places>,
}

/// Where the newest item of each key waits, counted from the first item that ever did.
#[derive(Default)]
struct Places {
    of: HashMap<u64, u64>,
    /// The place of the item in front.
    front: u64,
}

impl<T> Waiting<T> {
    pub(crate) fn new(says: Says<T>, measured: bool, strategies: [Strategy; 2]) -> Self {
        Waiting {
            items: VecDeque::new(),
            says,
            heap: (measured && needs_drop::<T>()).then_some(0),
            levels: strategies.contains(&Strategy::DropLowest).then(|| Box::new([0; 256])),
            keys: strategies.contains(&Strategy::Latest).then(Places::default),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// How many bytes wait, with what items point to if that is looked at.
    pub(crate) fn bytes(&self) -> usize {
        (self.items.len() * size_of::<Item<T>>()).saturating_add(self.heap.unwrap_or(0))
    }

    /// How many bytes it would be more with this item.
    pub(crate) fn size(&self, item: &Item<T>) -> usize {
        let heap = if self.heap.is_some() { self.heap_of(item) } else { 0 };
        size_of::<Item<T>>().saturating_add(heap)
    }

    fn heap_of(&self, item: &Item<T>) -> usize {
        item.as_ref().map_or(0, self.says.heap)
    }

    pub(crate) fn push_back(&mut self, item: Item<T>) {
        if let Some(keys) = &mut self.keys
            && let Some(key) = self.says.key(&item)
        {
            keys.of.insert(key, keys.front + self.items.len() as u64);
        }
        self.count(&item);
        self.items.push_back(item);
    }

    /// Puts all of them behind what waits.
    pub(crate) fn append(&mut self, items: &mut Vec<Item<T>>) {
        if self.is_plain() {
            self.items.extend(items.drain(..));
        } else {
            items.drain(..).for_each(|item| self.push_back(item));
        }
    }

    /// Nothing is looked at.
    fn is_plain(&self) -> bool {
        self.heap.is_none() && self.levels.is_none() && self.keys.is_none()
    }

    pub(crate) fn pop_front(&mut self) -> Option<Item<T>> {
        let item = self.items.pop_front()?;
        if let Some(keys) = &mut self.keys {
            if let Some(key) = self.says.key(&item)
                && keys.of.get(&key) == Some(&keys.front)
            {
                keys.of.remove(&key);
            }
            keys.front += 1;
        }
        self.discount(&item);
        Some(item)
    }

    /// Takes so many, of those that there are.
    pub(crate) fn take(&mut self, count: usize, into: &mut VecDeque<Item<T>>) {
        if self.is_plain() {
            into.extend(self.items.drain(..count));
            return;
        }
        into.extend((0..count).map_while(|_| self.pop_front()));
    }

    /// Takes out an item of lower priority than this one: of the lowest that waits, the one that came last.
    pub(crate) fn take_lower(&mut self, than: &Item<T>) -> Option<Item<T>> {
        let lowest = self.levels.as_ref()?.iter().position(|count| *count > 0)?;
        if lowest >= usize::from(self.says.priority(than)) {
            return None;
        }
        let at = self.items.iter().rposition(|item| usize::from(self.says.priority(item)) == lowest)?;
        let item = self.items.remove(at)?;
        self.discount(&item);
        if let Some(keys) = &mut self.keys {
            keys.of.clear();
            for (at, item) in self.items.iter().enumerate() {
                if let Some(key) = self.says.key(item) {
                    keys.of.insert(key, keys.front + at as u64);
                }
            }
        }
        Some(item)
    }

    /// Puts an item where one of its key waits, which comes out; without such it comes back.
    pub(crate) fn replace(&mut self, item: Item<T>) -> Result<Item<T>, Item<T>> {
        let place = self.keys.as_ref().and_then(|keys| {
            let at = keys.of.get(&self.says.key(&item)?)? - keys.front;
            usize::try_from(at).ok()
        });
        let Some(place) = place.filter(|at| *at < self.items.len()) else { return Err(item) };
        self.count(&item);
        let older = replace(&mut self.items[place], item);
        self.discount(&older);
        Ok(older)
    }

    fn count(&mut self, item: &Item<T>) {
        let more = self.size(item) - size_of::<Item<T>>();
        self.heap = self.heap.map(|heap| heap.saturating_add(more));
        if let Some(levels) = &mut self.levels {
            levels[usize::from(self.says.priority(item))] += 1;
        }
    }

    fn discount(&mut self, item: &Item<T>) {
        let less = self.size(item) - size_of::<Item<T>>();
        self.heap = self.heap.map(|heap| heap.saturating_sub(less));
        if let Some(levels) = &mut self.levels {
            let count = &mut levels[usize::from(self.says.priority(item))];
            *count = count.saturating_sub(1);
        }
    }
}

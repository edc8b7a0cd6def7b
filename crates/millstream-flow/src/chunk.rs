//! A buffer that is filled from one end and drained from the other, a chunk at a time, by loops that keep their
//! position in a register.

use std::mem::{self, ManuallyDrop, MaybeUninit};
use std::ops::ControlFlow;
use std::ptr;

/// A row of slots that grows to what is asked for and is then used again and again.
///
/// # Invariants
///
/// Slots in `head..tail` are initialised, all others are not; `tail <= slots.len()`.
pub(crate) struct Chunk<T> {
    slots: Vec<MaybeUninit<T>>,
    head: usize,
    tail: usize,
}

impl<T> Chunk<T> {
    pub(crate) fn new() -> Self {
        Chunk { slots: Vec::new(), head: 0, tail: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Makes room for `room` more items, and fills slots one after the other. They count as filled when the guard
    /// goes, also by unwinding.
    pub(crate) fn fill(&mut self, room: usize) -> Filling<'_, T> {
        if self.is_empty() {
            (self.head, self.tail) = (0, 0);
        }
        let end = self.tail + room;
        if self.slots.len() < end {
            self.slots.resize_with(end, MaybeUninit::uninit);
        }
        Filling { next: self.tail, slots: &mut self.slots[..end], tail: &mut self.tail }
    }

    /// Takes up to `max` items, oldest first. What is not taken stays, also by unwinding.
    pub(crate) fn drain(&mut self, max: usize) -> Draining<'_, T> {
        let end = self.tail.min(self.head.saturating_add(max));
        Draining { next: self.head, slots: &self.slots[..end], head: &mut self.head }
    }
}

impl<T, K> Chunk<(T, K)> {
    /// Pushes items into a flow's sink until they, the room or the sink's patience end.
    #[inline(always)]
    pub(crate) fn push_into(
        &mut self,
        room: &mut usize,
        sink: &mut impl FnMut(T, K) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut flow = ControlFlow::Continue(());
        let mut draining = self.drain(*room);
        while let Some((item, token)) = draining.next() {
            flow = sink(item, token);
            if flow.is_break() {
                break;
            }
        }
        *room -= draining.taken();
        flow
    }
}

impl<T> Drop for Chunk<T> {
    fn drop(&mut self) {
        for slot in &mut self.slots[self.head..self.tail] {
            // SAFETY: slots in `head..tail` are initialised, and nobody looks at them again.
            unsafe { slot.assume_init_drop() }
        }
    }
}

/// See [`Chunk::fill`].
pub(crate) struct Filling<'a, T> {
    slots: &'a mut [MaybeUninit<T>],
    next: usize,
    tail: &'a mut usize,
}

impl<T> Filling<'_, T> {
    /// # Panics
    /// If there is no room: the flow pushed more than it was asked for.
    #[inline(always)]
    pub(crate) fn push(&mut self, item: T) {
        assert!(self.next < self.slots.len(), "a flow pushed more items than it was asked for");
        self.slots[self.next].write(item);
        self.next += 1;
    }
}

impl<T> Drop for Filling<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        *self.tail = self.next;
    }
}

/// See [`Chunk::drain`].
pub(crate) struct Draining<'a, T> {
    slots: &'a [MaybeUninit<T>],
    next: usize,
    head: &'a mut usize,
}

impl<T> Draining<'_, T> {
    /// The next item.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<T> {
        let slot = self.slots.get(self.next)?;
        self.next += 1;
        // SAFETY: the slots from `head` to the end of the slice are initialised, and as `next` moves on, which `drop`
        // tells the chunk, each is read once.
        Some(unsafe { slot.assume_init_read() })
    }

    /// How many items were taken.
    pub(crate) fn taken(&self) -> usize {
        self.next - *self.head
    }
}

impl<T> Drop for Draining<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        *self.head = self.next;
    }
}

/// A vector in the course of being filled: its parts are in hand until the guard goes, also by unwinding.
///
/// A vector's own `push` hands a pointer to the vector to what makes it grow, and so keeps it, and all that lies beside it,
/// out of registers.
pub(crate) struct VecFilling<'a, T> {
    /// Empty meanwhile.
    home: &'a mut Vec<T>,
    slots: *mut T,
    len: usize,
    capacity: usize,
}

/// A vector's start, length and capacity.
type Parts<T> = (*mut T, usize, usize);

#[inline(always)]
fn parts<T>(vec: Vec<T>) -> Parts<T> {
    let mut vec = ManuallyDrop::new(vec);
    (vec.as_mut_ptr(), vec.len(), vec.capacity())
}

#[cold]
#[inline(never)]
fn grow<T>((slots, len, capacity): Parts<T>) -> Parts<T> {
    // SAFETY: the parts come from a vector that was not dropped, with `len` of its slots initialised; the caller replaces
    // them by the result.
    let mut vec = unsafe { Vec::from_raw_parts(slots, len, capacity) };
    vec.reserve(1);
    parts(vec)
}

impl<'a, T> VecFilling<'a, T> {
    #[inline(always)]
    pub(crate) fn new(home: &'a mut Vec<T>) -> Self {
        let (slots, len, capacity) = parts(mem::take(home));
        VecFilling { home, slots, len, capacity }
    }

    #[inline(always)]
    pub(crate) fn push(&mut self, item: T) {
        if self.len == self.capacity {
            (self.slots, self.len, self.capacity) = grow((self.slots, self.len, self.capacity));
        }
        // SAFETY: `len < capacity`, so the slot is the vector's, and nothing is in it.
        unsafe { self.slots.add(self.len).write(item) }
        self.len += 1;
    }
}

impl<T> Drop for VecFilling<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the parts come from a vector that was not dropped, with `len` of its slots initialised, and the guard
        // ends here. The vector at home is empty and owns nothing, so it need not be
        // dropped.
        unsafe { ptr::write(self.home, Vec::from_raw_parts(self.slots, self.len, self.capacity)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn what_is_filled_is_drained_once_and_in_order_and_the_rest_is_dropped() {
        let item = Rc::new(());
        let mut chunk = Chunk::new();
        for round in 0..3 {
            let mut filling = chunk.fill(4);
            (0..4).for_each(|at| filling.push((round * 4 + at, item.clone())));
            drop(filling);
            let mut draining = chunk.drain(3);
            let taken: Vec<_> = std::iter::from_fn(|| draining.next()).map(|(at, _)| at).collect();
            assert_eq!((taken.len(), draining.taken()), (3, 3));
            assert!(taken.is_sorted() && taken[0] == round * 3);
        }
        assert_eq!(Rc::strong_count(&item), 4, "three items are left in the chunk");
        drop(chunk);
        assert_eq!(Rc::strong_count(&item), 1);
    }

    #[test]
    #[should_panic(expected = "more items than it was asked for")]
    fn a_flow_that_pushes_too_much_is_told() {
        let mut chunk = Chunk::new();
        let mut filling = chunk.fill(1);
        filling.push(1);
        filling.push(2);
    }
}

//! A buffer that is filled from one end and drained from the other, a chunk at a time, by loops that keep their
//! position in a register.

use std::mem::{self, ManuallyDrop, MaybeUninit};
use std::ops::ControlFlow;
use std::ptr;
use std::slice;

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
        Filling { next: 0, slots: &mut self.slots[self.tail..end], tail: &mut self.tail }
    }

    /// Takes up to `max` items, oldest first. What is not taken stays, also by unwinding.
    pub(crate) fn drain(&mut self, max: usize) -> Draining<'_, T> {
        let end = self.tail.min(self.head.saturating_add(max));
        Draining { next: 0, slots: &self.slots[self.head..end], head: &mut self.head }
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
///
/// It counts from 0 to the room that the flow is asked to fill, so that the optimiser can tell that the flow's loop ends
/// no later, and drop the check: see the ring's `Stretch`.
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
        *self.tail += self.next;
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
        // SAFETY: all these slots are initialised, and as `next` moves on, which `drop` tells the chunk, each is read once.
        Some(unsafe { slot.assume_init_read() })
    }

    /// How many items were taken.
    pub(crate) fn taken(&self) -> usize {
        self.next
    }
}

impl<T> Drop for Draining<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        *self.head += self.next;
    }
}

/// A vector in the course of being filled: its parts are in hand until the guard goes, also by unwinding.
///
/// A vector's own `push` hands a pointer to the vector to what makes it grow, and so keeps it, and all that lies beside it,
/// out of registers.
pub(crate) struct VecFilling<'a, T> {
    /// Empty meanwhile.
    home: &'a mut Vec<T>,
    start: *mut T,
    len: usize,
    capacity: usize,
    /// Behind the vector's items. Counted from 0 for the reason that [`Filling`] has.
    slots: &'a mut [MaybeUninit<T>],
    next: usize,
}

impl<'a, T> VecFilling<'a, T> {
    /// Makes room for `room` more items.
    #[inline(always)]
    pub(crate) fn new(home: &'a mut Vec<T>, room: usize) -> Self {
        home.reserve(room);
        let mut vec = ManuallyDrop::new(mem::take(home));
        let (start, len, capacity) = (vec.as_mut_ptr(), vec.len(), vec.capacity());
        // SAFETY: `len + room <= capacity`, and what lies behind `len` is the vector's and nobody else's: the vector is
        // put together again only when the guard, and with it the slots, ends.
        let slots = unsafe { slice::from_raw_parts_mut(start.add(len).cast(), room) };
        VecFilling { home, start, len, capacity, slots, next: 0 }
    }

    /// # Panics
    /// If there is no room: the flow pushed more than it was asked for.
    #[inline(always)]
    pub(crate) fn push(&mut self, item: T) {
        assert!(self.next < self.slots.len(), "a flow pushed more items than it was asked for");
        self.slots[self.next].write(item);
        self.next += 1;
    }
}

impl<T> Drop for VecFilling<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the parts come from a vector that was not dropped; `next` slots behind its `len` items were filled. The
        // vector at home is empty and owns nothing, so it need not be dropped.
        unsafe { ptr::write(self.home, Vec::from_raw_parts(self.start, self.len + self.next, self.capacity)) }
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

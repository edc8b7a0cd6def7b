//! State in hand: taken out of its place for a quantum, so that it can live in registers.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr;

/// What is larger stays in its place: moving it to and fro would cost more than its loads and stores.
const LARGE: usize = 512;

/// A value moved out of its place, to which it returns when this goes, also by unwinding.
///
/// A stage's state lies in its task, behind a pointer that whatever catches panics has seen. So the optimiser must
/// store every position, counter and sum before each call that may unwind, and each item waits for the store of the
/// one before: 4 to 5 cycles, more than a cheap item costs. A local that nobody has a pointer to is kept in
/// registers, and stored on the way out.
pub(crate) struct Held<'a, T> {
    place: *mut T,
    /// The value, unless it is large. While it is here, nobody reads or drops what lies in `place`.
    value: MaybeUninit<T>,
    borrowed: PhantomData<&'a mut T>,
}

impl<'a, T> Held<'a, T> {
    const MOVES: bool = size_of::<T>() <= LARGE;

    #[inline(always)]
    pub(crate) fn new(place: &'a mut T) -> Self {
        let place: *mut T = place;
        let value = if Self::MOVES {
            // SAFETY: `place` comes from a reference, so it can be read. From here on `value` is the value: `place` is
            // exclusively borrowed for `'a`, and `drop`, which runs before `'a` ends as nobody forgets a guard of this
            // crate, writes it back.
            unsafe { MaybeUninit::new(ptr::read(place)) }
        } else {
            MaybeUninit::uninit()
        };
        Held { place, value, borrowed: PhantomData }
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: `new` initialised `value` if it moves, else `place` is still the valid, exclusively borrowed value.
        unsafe { if Self::MOVES { self.value.assume_init_ref() } else { &*self.place } }
    }
}

impl<T> DerefMut for Held<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`.
        unsafe { if Self::MOVES { self.value.assume_init_mut() } else { &mut *self.place } }
    }
}

impl<T> Drop for Held<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        if Self::MOVES {
            // SAFETY: `place` was moved out of in `new` and is written once, here; `value` is not used again.
            unsafe { ptr::copy_nonoverlapping(self.value.as_ptr(), self.place, 1) }
        }
    }
}

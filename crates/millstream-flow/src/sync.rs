//! The synchronisation primitives of the ring: std's, or loom's when its interleavings are checked.

#[cfg(loom)]
pub(crate) use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    },
};
#[cfg(not(loom))]
pub(crate) use {
    futures_util::task::AtomicWaker,
    std::sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    },
};

/// `std`'s cell with the access methods of loom's.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }
    #[inline(always)]
    pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }
    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

/// What the ring asks of a waker's place, in its simplest form. Loom's own stand-in wakes whoever registers
/// while somebody else looks, and so would hide a lost wake-up.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct AtomicWaker(loom::sync::Mutex<Option<std::task::Waker>>);

#[cfg(loom)]
impl AtomicWaker {
    pub(crate) fn new() -> Self {
        AtomicWaker(loom::sync::Mutex::new(None))
    }
    pub(crate) fn register(&self, waker: &std::task::Waker) {
        *self.0.lock().expect("nothing panics while a waker is held") = Some(waker.clone());
    }
    pub(crate) fn wake(&self) {
        let waker = self.0.lock().expect("nothing panics while a waker is held").take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

//! A bounded ring for one writer and one reader that moves chunks: the hop between two stages.
//!
//! The writer fills slots and *publishes* them together; the reader takes what is published and *releases* it
//! together. Each side pays one fence and one look at the other's waiting flag a chunk, not an item, and wakes
//! the other only if it waits. A waiting writer is woken when half of its room is free again, so that a full
//! ring does not degenerate into a wake-up an item.
//!
//! # Invariants
//!
//! * `head <= tail <= head + slots`, counted without wrapping to the slots (positions only grow; at one item a
//!   nanosecond they last for centuries).
//! * Slots in `head..tail` are initialised and belong to the reader; all others belong to the writer, which has
//!   initialised those in `tail..written`.
//! * Only the writer stores `tail`, only the reader stores `head`, each with `Release` after its last access to
//!   the slots it gives away; the other side loads them with `Acquire` before its first.
//! * Waiting is a store-load handshake (Dekker): raise the flag, fence, look again; publish, fence, look at the
//!   flag. One of the two sides always sees the other. `ring/loom.rs` checks every interleaving
//!   (`cargo xtask test loom`).

use std::mem::MaybeUninit;
use std::task::{Context, Poll};

#[cfg(all(test, loom))]
mod loom;
#[cfg(all(test, not(loom)))]
mod tests;

use crate::sync::{Arc, AtomicBool, AtomicUsize, AtomicWaker, Ordering, UnsafeCell, fence};

/// Keeps what the two sides write apart from each other's cache lines (two lines: prefetchers fetch pairs).
#[repr(align(128))]
struct Apart<T>(T);

struct Shared<T> {
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    /// `slots.len() - 1`; the length is a power of two.
    mask: usize,
    head: Apart<AtomicUsize>,
    tail: Apart<AtomicUsize>,
    /// Bytes in the ring, as the writer measured them; only used if it measures.
    bytes: AtomicUsize,
    reader_waits: Apart<AtomicBool>,
    writer_waits: Apart<AtomicBool>,
    reader: AtomicWaker,
    writer: AtomicWaker,
    writer_gone: AtomicBool,
    reader_gone: AtomicBool,
    /// How many sides are there.
    sides: AtomicUsize,
    /// How many items may be in the ring, as the writer was last told.
    limit: AtomicUsize,
    /// A waiting writer is woken when no more than these many items and bytes are left in the ring.
    items_low: AtomicUsize,
    bytes_low: AtomicUsize,
}

// SAFETY: slots are handed from writer to reader by `tail` and back by `head` (see the invariants), so a slot is
// accessed by one thread at a time; that needs `T: Send` and nothing more.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Hands what lies before `tail` to the reader.
    #[inline(never)]
    fn publish(&self, tail: usize) {
        self.tail.0.store(tail, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.reader_waits.0.load(Ordering::Relaxed) {
            self.reader_waits.0.store(false, Ordering::Relaxed);
            self.reader.wake();
        }
    }

    /// A side goes, its slots given away. The last one drops what is left in the ring: left to the memory's end, it might be
    /// dropped by a gauge that looks at this moment.
    fn leave(&self) {
        if self.sides.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let head = self.head.0.load(Ordering::Relaxed);
        let tail = self.tail.0.load(Ordering::Relaxed);
        self.head.0.store(tail, Ordering::Relaxed);
        for position in head..tail {
            self.slots[position & self.mask].with_mut(|slot| {
                // SAFETY: slots in `head..tail` are initialised, and nobody else looks at slots: the other side is gone, and
                // what it did before is visible here (`AcqRel`). `head` is behind them by now, so each is dropped once.
                unsafe { (*slot).assume_init_drop() }
            });
        }
    }
}

/// A ring with `slots` places, rounded up to a power of two.
///
/// # Panics
/// If `slots` is 0 or above 2^31.
pub(crate) fn ring<T>(slots: usize) -> (Writer<T>, Reader<T>) {
    assert!(slots > 0 && slots <= 1 << 31, "a ring has at least one slot");
    let slots = slots.next_power_of_two();
    let shared = Arc::new(Shared {
        slots: (0..slots).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
        mask: slots - 1,
        head: Apart(AtomicUsize::new(0)),
        tail: Apart(AtomicUsize::new(0)),
        bytes: AtomicUsize::new(0),
        reader_waits: Apart(AtomicBool::new(false)),
        writer_waits: Apart(AtomicBool::new(false)),
        reader: AtomicWaker::new(),
        writer: AtomicWaker::new(),
        writer_gone: AtomicBool::new(false),
        reader_gone: AtomicBool::new(false),
        sides: AtomicUsize::new(2),
        limit: AtomicUsize::new(slots),
        items_low: AtomicUsize::new(0),
        bytes_low: AtomicUsize::new(0),
    });
    let writer = Writer { shared: shared.clone(), written: 0, published: 0, chunks: 0, head: 0 };
    let reader = Reader { shared, head: 0, tail: 0, released: 0 };
    (writer, reader)
}

/// The reader is gone: nothing that is written will be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReaderGone;

/// The filling side.
pub(crate) struct Writer<T> {
    shared: Arc<Shared<T>>,
    /// Slots filled; those from `published` on are the writer's own.
    written: usize,
    published: usize,
    /// How many chunks were published.
    chunks: usize,
    /// The reader's position when last looked at: never ahead of the truth.
    head: usize,
}

impl<T> Writer<T> {
    /// Items in the ring or filled and not yet published, as of the last look.
    pub(crate) fn len(&self) -> usize {
        self.written - self.head
    }

    /// How many items may be pushed now, when `limit` items and `bytes_max` bytes may be in the ring. Registers
    /// the waker if there is no room, or if less than a quarter of the limit is free and nothing was pushed yet.
    pub(crate) fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        limit: usize,
        bytes_max: usize,
    ) -> Poll<Result<usize, ReaderGone>> {
        let shared = &*self.shared;
        let limit = limit.clamp(1, shared.slots.len());
        let room = |head: usize, written: usize, bytes: usize| {
            // An empty ring takes one item whatever its size, else an item above the limit would wait for ever.
            if bytes >= bytes_max && written != head { 0 } else { limit.saturating_sub(written - head) }
        };
        if shared.reader_gone.load(Ordering::Acquire) {
            return Poll::Ready(Err(ReaderGone));
        }
        let free = room(self.head, self.written, shared.bytes.load(Ordering::Relaxed));
        if free > 0 && bytes_max == usize::MAX && free * 4 >= limit {
            return Poll::Ready(Ok(free));
        }
        self.head = shared.head.0.load(Ordering::Acquire);
        let free = room(self.head, self.written, shared.bytes.load(Ordering::Relaxed));
        if free > 0 {
            return Poll::Ready(Ok(free));
        }
        shared.writer.register(cx.waker());
        shared.limit.store(limit, Ordering::Relaxed);
        shared.items_low.store(limit / 2, Ordering::Relaxed);
        shared.bytes_low.store(bytes_max / 2, Ordering::Relaxed);
        shared.writer_waits.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.head = shared.head.0.load(Ordering::Acquire);
        let free = room(self.head, self.written, shared.bytes.load(Ordering::Relaxed));
        if shared.reader_gone.load(Ordering::Acquire) {
            return Poll::Ready(Err(ReaderGone));
        }
        if free > 0 {
            shared.writer_waits.0.store(false, Ordering::Relaxed);
            return Poll::Ready(Ok(free));
        }
        Poll::Pending
    }

    /// Fills the next slot. Nobody sees it before [`publish`](Self::publish).
    ///
    /// # Panics
    /// If the ring is full: the flow pushed more than it was asked for.
    #[inline]
    pub(crate) fn push(&mut self, item: T) {
        let shared = &*self.shared;
        assert!(
            self.written - self.head < shared.slots.len(),
            "a flow pushed more items than it was asked for"
        );
        shared.slots[self.written & shared.mask].with_mut(|slot| {
            // SAFETY: `written - head < slots` with a `head` the reader has released, so the slot is the writer's
            // and uninitialised.
            unsafe { (*slot).write(item) };
        });
        self.written += 1;
    }

    /// The slots that are free, for whoever fills many, a [stretch](Room::stretch) at a time. Every `chunk` items are
    /// published as they come; the rest with [`publish`](Self::publish).
    pub(crate) fn room(&mut self, chunk: usize) -> Room<'_, T> {
        let Writer { shared, written, published, chunks, head } = self;
        let end = *head + shared.slots.len();
        Room { shared, end, chunk, written, published, chunks }
    }

    /// Hands everything pushed so far to the reader, `bytes` of it. Returns how many items that were.
    pub(crate) fn publish(&mut self, bytes: usize) -> usize {
        let chunk = self.written - self.published;
        if chunk == 0 {
            return 0;
        }
        let shared = &*self.shared;
        if bytes > 0 {
            shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        shared.publish(self.written);
        self.published = self.written;
        self.chunks += 1;
        chunk
    }

    /// What tells the items and the bytes in the ring, for as long as one of its sides is there. The two sides need not count
    /// for it.
    pub(crate) fn gauge(&self) -> impl Fn() -> Option<(usize, usize)> + Send + Sync + 'static + use<T>
    where
        T: Send + 'static,
    {
        #[cfg(not(loom))]
        let shared = Arc::downgrade(&self.shared);
        move || {
            #[cfg(not(loom))]
            {
                let shared = shared.upgrade()?;
                // Head first, which only moves towards a tail that is read later.
                let head = shared.head.0.load(Ordering::Acquire);
                let len = shared.tail.0.load(Ordering::Acquire).saturating_sub(head);
                Some((len, shared.bytes.load(Ordering::Relaxed)))
            }
            #[cfg(loom)]
            None
        }
    }

    /// How many items were pushed, and how many chunks published, since the beginning.
    pub(crate) fn written(&self) -> usize {
        self.written
    }

    pub(crate) fn chunks(&self) -> usize {
        self.chunks
    }

    /// Bytes in the ring.
    pub(crate) fn bytes(&self) -> usize {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

/// The writer's part of the ring.
pub(crate) struct Room<'a, T> {
    shared: &'a Shared<T>,
    /// The first position that is not the writer's.
    end: usize,
    chunk: usize,
    /// The writer's own account.
    written: &'a mut usize,
    published: &'a mut usize,
    chunks: &'a mut usize,
}

impl<T> Room<'_, T> {
    /// How many slots are in a row: up to where the ring begins again, or a chunk is full. A chunk that is full already
    /// is published.
    pub(crate) fn in_a_row(&mut self) -> usize {
        let at = *self.written;
        if at - *self.published >= self.chunk {
            self.shared.publish(at);
            *self.published = at;
            *self.chunks += 1;
        }
        let slot = at & self.shared.mask;
        let left = self.chunk - (at - *self.published);
        (self.end - at).min(self.shared.slots.len() - slot).min(left)
    }

    /// So many slots in a row.
    ///
    /// # Panics
    /// If there are fewer.
    #[inline]
    pub(crate) fn stretch(&mut self, items: usize) -> Stretch<'_, T> {
        let at = *self.written;
        assert!(items <= self.end - at, "a flow is asked for more items than there is room for");
        let slot = at & self.shared.mask;
        Stretch { slots: &self.shared.slots[slot..slot + items], next: 0, written: self.written }
    }
}

/// Slots in a row in the course of being filled, for whoever asks a flow for no more items than that. They count as
/// filled when this goes, also by unwinding.
///
/// The room is not part of it: what looks at the room out of line must not keep the position out of a register. And where
/// the flow's loop counts to the same number, the optimiser sees that the slots cannot end before it, and drops the
/// check; what is left is a loop without a way out, which it can unroll and vectorise.
pub(crate) struct Stretch<'a, T> {
    slots: &'a [UnsafeCell<MaybeUninit<T>>],
    next: usize,
    written: &'a mut usize,
}

impl<T> Stretch<'_, T> {
    /// As [`Writer::push`].
    ///
    /// # Panics
    /// If all slots are filled: the flow pushed more than it was asked for.
    #[inline(always)]
    pub(crate) fn push(&mut self, item: T) {
        assert!(self.next < self.slots.len(), "a flow pushed more items than it was asked for");
        self.slots[self.next].with_mut(|slot| {
            // SAFETY: the stretch lies before `end`, which is one round ahead of a `head` the reader has released, so the
            // slot is the writer's and uninitialised.
            unsafe { (*slot).write(item) };
        });
        self.next += 1;
    }
}

impl<T> Drop for Stretch<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        *self.written += self.next;
    }
}

impl<T> Drop for Writer<T> {
    fn drop(&mut self) {
        self.publish(0);
        self.shared.writer_gone.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.shared.reader.wake();
        self.shared.leave();
    }
}

/// The draining side.
pub(crate) struct Reader<T> {
    shared: Arc<Shared<T>>,
    /// Taken up to here.
    head: usize,
    /// Published up to here, when last looked at.
    tail: usize,
    /// What the writer knows to be taken: no more than an eighth of the ring behind `head`, and not behind it at all
    /// when the reader waits.
    released: usize,
}

impl<T> Reader<T> {
    /// How many items can be taken; registers the waker if there are none. `None` at the end.
    pub(crate) fn poll_available(&mut self, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        if self.tail == self.head {
            let shared = &*self.shared;
            self.tail = shared.tail.0.load(Ordering::Acquire);
            if self.tail == self.head {
                shared.reader.register(cx.waker());
                shared.reader_waits.0.store(true, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                // Gone before tail: the writer publishes before it goes.
                let gone = shared.writer_gone.load(Ordering::SeqCst);
                self.tail = shared.tail.0.load(Ordering::Acquire);
                if self.tail == self.head {
                    return if gone { Poll::Ready(None) } else { Poll::Pending };
                }
                shared.reader_waits.0.store(false, Ordering::Relaxed);
            }
        }
        Poll::Ready(Some(self.tail - self.head))
    }

    /// Items in a row of those that were available, to be [taken](Stock::take): up to `max`, and fewer where the ring begins
    /// again.
    #[inline]
    pub(crate) fn stock(&mut self, max: usize) -> Stock<'_, T> {
        let Reader { shared, head, tail, released } = self;
        let slot = *head & shared.mask;
        let items = (*tail - *head).min(max).min(shared.slots.len() - slot);
        Stock { shared, slots: &shared.slots[slot..slot + items], tail: *tail, bytes: 0, head, released }
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        // What was taken and not yet released must not be dropped with the ring.
        self.shared.head.0.store(self.head, Ordering::Release);
        self.shared.reader_gone.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.shared.writer.wake();
        self.shared.leave();
    }
}

/// The reader's part of the ring, as far as it is in a row.
pub(crate) struct Stock<'a, T> {
    shared: &'a Shared<T>,
    slots: &'a [UnsafeCell<MaybeUninit<T>>],
    tail: usize,
    bytes: usize,
    /// The reader's own account.
    head: &'a mut usize,
    released: &'a mut usize,
}

impl<'a, T> Stock<'a, T> {
    /// How many items there are to take.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Takes items one by one; what was taken is released together when the guard goes, also by unwinding.
    ///
    /// Whoever takes item after item with a guard each releases an eighth of the ring at a time, or what there is once
    /// it has taken all: a fence an item would be most of the item's cost.
    #[inline(always)]
    pub(crate) fn take(&mut self) -> Taking<'_, 'a, T> {
        Taking { slots: self.slots, next: 0, stock: self }
    }

    /// Gives the slots before `head` back.
    #[inline(never)]
    fn release(&mut self, head: usize) {
        let shared = self.shared;
        if self.bytes > 0 {
            shared.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
        *self.released = head;
        shared.head.0.store(head, Ordering::Release);
        fence(Ordering::SeqCst);
        if shared.writer_waits.0.load(Ordering::Relaxed) {
            let waiting = shared.tail.0.load(Ordering::Relaxed) - head;
            let low = waiting <= shared.items_low.load(Ordering::Relaxed)
                && shared.bytes.load(Ordering::Relaxed) <= shared.bytes_low.load(Ordering::Relaxed);
            if low || waiting == 0 {
                shared.writer_waits.0.store(false, Ordering::Relaxed);
                shared.writer.wake();
            }
        }
    }
}

/// Items in the course of being taken, in a row and without a look at the stock, as a [`Stretch`] is filled.
pub(crate) struct Taking<'a, 'b, T> {
    slots: &'b [UnsafeCell<MaybeUninit<T>>],
    next: usize,
    stock: &'a mut Stock<'b, T>,
}

impl<T> Taking<'_, '_, T> {
    /// The next item; `None` when all is taken.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<T> {
        let slot = self.slots.get(self.next)?;
        let item = slot.with(|slot| {
            // SAFETY: the slots lie in `head..tail`, so this one is initialised and the reader's; `next` moves on, so it is
            // read once.
            unsafe { (*slot).assume_init_read() }
        });
        self.next += 1;
        Some(item)
    }

    /// Notes bytes that go with what was taken.
    #[inline(always)]
    pub(crate) fn add_bytes(&mut self, bytes: usize) {
        self.stock.bytes += bytes;
    }
}

impl<T> Drop for Taking<'_, '_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        let stock = &mut *self.stock;
        *stock.head += self.next;
        // Whoever takes again goes on behind.
        stock.slots = &stock.slots[self.next..];
        let head = *stock.head;
        let held = head - *stock.released;
        let eighth = stock.shared.limit.load(Ordering::Relaxed) / 8;
        if held > 0 && (head == stock.tail || held >= eighth || stock.bytes > 0) {
            stock.release(head);
        }
    }
}

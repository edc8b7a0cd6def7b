//! The slots that calls in flight live in, and the book of which is where.

use std::collections::VecDeque;
use std::future::Future;
use std::mem::{self, MaybeUninit};
use std::ops::ControlFlow;
use std::pin::Pin;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::limit::Deadlines;
use super::ready::{Polling, Ready, Woken};
use crate::flow::Step;
use crate::token::Settle;

/// Where a future lives: it must not move, so this stays where it was allocated while the slab lives.
struct Home<Fut> {
    waker: Waker,
    future: MaybeUninit<Fut>,
}

/// A place that is free for the next call.
pub(super) struct Place<Fut>(NonNull<Home<Fut>>);

impl<Fut> Copy for Place<Fut> {}

impl<Fut> Clone for Place<Fut> {
    fn clone(&self) -> Self {
        *self
    }
}

/// Drops a future where it is: it has ended, or panicked.
struct Ended<Fut>(*mut Fut);

impl<Fut> Drop for Ended<Fut> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: made only for a pointer to an initialised future, which is not used after this.
        unsafe { ptr::drop_in_place(self.0) }
    }
}

impl<Fut: Future> Place<Fut> {
    /// Puts a future here and polls it once. If it is pending it stays, and [`Slab::keep`] must be called; else the
    /// place is free again.
    ///
    /// # Safety
    /// The place is free, and its slab is alive.
    #[inline(always)]
    pub(super) unsafe fn start(self, future: Fut) -> Poll<Fut::Output> {
        // SAFETY: the slab is alive, so the home is; the place is free, so nothing is overwritten.
        unsafe { (&raw mut (*self.0.as_ptr()).future).cast::<Fut>().write(future) };
        // SAFETY: a future is there now.
        unsafe { self.poll() }
    }

    /// Polls the future that is here; leaves the place free if it ends or panics.
    ///
    /// # Safety
    /// The slab is alive and a future is here.
    #[inline(always)]
    unsafe fn poll(self) -> Poll<Fut::Output> {
        // SAFETY: the home is alive. A shared reference to the waker beside the future, which is reached by a pointer of
        // its own.
        let waker = unsafe { &(*self.0.as_ptr()).waker };
        // SAFETY: as above.
        let future = unsafe { (&raw mut (*self.0.as_ptr()).future).cast::<Fut>() };
        let ended = Ended(future);
        // SAFETY: the future is initialised, and pinned: homes never move, and it is dropped where it is.
        let result = unsafe { Pin::new_unchecked(&mut *future) }.poll(&mut Context::from_waker(waker));
        if result.is_pending() {
            mem::forget(ended);
        }
        result
    }

    /// Drops the future that is here; leaves the place free, also if that panics.
    ///
    /// # Safety
    /// The slab is alive and a future is here.
    unsafe fn discard(self) {
        // SAFETY: the home is alive, and the future is initialised.
        drop(Ended(unsafe { (&raw mut (*self.0.as_ptr()).future).cast::<Fut>() }));
    }
}

/// A call in flight, or the place for one.
struct Slot<Fut: Future, K> {
    home: NonNull<Home<Fut>>,
    /// A future is in `home`.
    live: bool,
    token: Option<K>,
    /// The result of a call that waits for those before it. Only when ordered.
    done: Option<Fut::Output>,
}

/// All slots, and which call is where.
pub(super) struct Slab<Fut: Future, K> {
    slots: Vec<Slot<Fut, K>>,
    free: Vec<usize>,
    /// The slot that the next call enters. It stays the same while calls are ready at once.
    spare: Option<usize>,
    /// Ordered: the slots in use, oldest first.
    order: VecDeque<usize>,
    in_flight: usize,
    calls_ended: u64,
    unordered: bool,
    ready: Arc<Ready>,
    /// Of calls, or attempts, that may take only so long.
    deadlines: Box<[Deadlines]>,
}

// What the next line says of the slab, the compiler says of its deadlines.
const _: fn(Deadlines) -> Box<dyn Send> = |deadlines| Box::new(deadlines);

// SAFETY: the slab owns what its homes hold, as a box would: futures (sent as `Fut: Send` says), and wakers, which are
// `Send` and `Sync`. The deadlines are `Send` by themselves.
unsafe impl<Fut: Future + Send, K: Send> Send for Slab<Fut, K> where Fut::Output: Send {}

impl<Fut: Future, K> Drop for Slab<Fut, K> {
    fn drop(&mut self) {
        for slot in &self.slots {
            if slot.live {
                // SAFETY: the home is alive, and `live` says that a future is there; nothing uses it after this.
                unsafe { (&raw mut (*slot.home.as_ptr()).future).cast::<Fut>().drop_in_place() }
            }
            // SAFETY: the home came from `Box::into_raw` in `next_place`, and is given up once, here.
            drop(unsafe { Box::from_raw(slot.home.as_ptr()) });
        }
    }
}

impl<Fut: Future, K: Settle> Slab<Fut, K> {
    /// For so many calls in flight.
    pub(super) fn new(calls: usize, unordered: bool, deadlines: Box<[Deadlines]>) -> Self {
        Slab {
            slots: Vec::new(),
            free: Vec::new(),
            spare: None,
            order: VecDeque::new(),
            in_flight: 0,
            calls_ended: 0,
            unordered,
            // One slot more than calls: the spare place is made before anybody looks whether there may be another.
            ready: Ready::new(calls + 1, !deadlines.is_empty()),
            deadlines,
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many calls that were [kept](Self::keep) have given their slot back.
    pub(super) fn calls_ended(&self) -> u64 {
        self.calls_ended
    }

    /// To be called before the calls are polled: has wakes reach the stage, and this thread's own take the short way.
    pub(super) fn begin(&self, stage: &Waker) -> Polling {
        if self.in_flight > 0 {
            // Before the bits are read: a wake after this finds the stage, one before it has set its bit.
            self.ready.register(stage);
        }
        self.ready.polling()
    }

    /// Nothing more can be done now; but calls that woke themselves want to be polled again after others had their turn.
    fn pending<T>(&self, stage: &Waker) -> Poll<T> {
        if self.ready.any_own() {
            stage.wake_by_ref();
        }
        Poll::Pending
    }

    /// The place for the next call, and whether its result goes straight on if it is ready at once: no earlier call
    /// waits, or nobody asked for order. Both hold until a call is kept.
    #[inline]
    pub(super) fn next_place(&mut self) -> (Place<Fut>, bool) {
        let slot = self.spare.unwrap_or_else(|| self.make_spare());
        (Place(self.slots[slot].home), self.unordered || self.in_flight == 0)
    }

    /// A free slot; slots are made as they are first needed, so that a wide limit costs nothing unless used.
    fn make_spare(&mut self) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = self.slots.len();
            let waker = self.ready.waker(slot);
            let home = Box::into_raw(Box::new(Home { waker, future: MaybeUninit::uninit() }));
            // SAFETY: a box is not null.
            let home = unsafe { NonNull::new_unchecked(home) };
            self.slots.push(Slot { home, live: false, token: None, done: None });
            slot
        });
        self.spare = Some(slot);
        slot
    }

    /// Enters a call into the book that [began](Place::start) in the spare place and is pending, or is done before its
    /// turn.
    #[inline]
    pub(super) fn keep(&mut self, begun: Poll<Fut::Output>, token: K, stage: &Waker) {
        let slot = self.spare.take().expect("a call begins in the spare place");
        let Slot { live, token: place, done, .. } = &mut self.slots[slot];
        *place = Some(token);
        match begun {
            Poll::Pending => {
                *live = true;
                self.deadlines.iter_mut().for_each(|deadlines| deadlines.waits(slot, true));
            }
            Poll::Ready(output) => *done = Some(output),
        }
        if self.in_flight == 0 {
            self.ready.register(stage);
            // A wake before the registration found nobody, and one after it wakes nobody if another left its bit.
            if self.ready.any_others() {
                stage.wake_by_ref();
            }
        }
        self.in_flight += 1;
        if !self.unordered {
            self.order.push_back(slot);
        }
    }

    /// Gives the slot back.
    #[inline]
    fn vacate(&mut self, slot: usize) {
        self.free.push(slot);
        self.in_flight -= 1;
        self.calls_ended += 1;
    }

    /// Polls the calls that were woken and pushes the results that may go.
    #[inline]
    pub(super) fn poll_ready(
        &mut self,
        polling: &Polling,
        room: &mut usize,
        sink: &mut impl FnMut(Fut::Output, K) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if self.in_flight > 0 {
            self.poll_all(polling, room, sink)?;
        }
        if *room == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn poll_all(
        &mut self,
        Polling(ready): &Polling,
        room: &mut usize,
        sink: &mut impl FnMut(Fut::Output, K) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if !self.unordered {
            self.release_in_order(room, sink)?;
        }
        for (at, word) in ready.words().enumerate() {
            let mut woken = Woken { word, bits: word.take() };
            while woken.bits != 0 {
                if self.unordered && *room == 0 {
                    return ControlFlow::Break(());
                }
                let bit = woken.bits.trailing_zeros() as usize;
                woken.bits &= woken.bits - 1;
                self.poll_woken(at * 64 + bit, room, sink)?;
            }
        }
        if self.unordered { ControlFlow::Continue(()) } else { self.release_in_order(room, sink) }
    }

    // It would not be for two callers, of which one is rare.
    #[inline(always)]
    fn poll_woken(
        &mut self,
        slot: usize,
        room: &mut usize,
        sink: &mut impl FnMut(Fut::Output, K) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        // A late wake of a call that has ended finds its slot free, or even not there yet.
        let Some(place) = self.slots.get_mut(slot).filter(|place| place.live) else {
            return ControlFlow::Continue(());
        };
        // The token goes on the stack: if the call panics, unwinding hands it to the driver.
        let Some(token) = place.token.take() else { return ControlFlow::Continue(()) };
        let home = Place(place.home);
        place.live = false;
        let book = Book { slab: self, slot };
        // SAFETY: the slot was live, so a future is there.
        let result = unsafe { home.poll() };
        mem::forget(book);
        let place = &mut self.slots[slot];
        match result {
            Poll::Pending => {
                place.live = true;
                place.token = Some(token);
                self.deadlines.iter_mut().for_each(|deadlines| deadlines.waits(slot, false));
                ControlFlow::Continue(())
            }
            Poll::Ready(output) if self.unordered => {
                self.end_time(slot);
                self.vacate(slot);
                *room -= 1;
                sink(output, token)
            }
            Poll::Ready(output) => {
                place.token = Some(token);
                place.done = Some(output);
                self.end_time(slot);
                ControlFlow::Continue(())
            }
        }
    }

    /// The call has ended: its time is not watched any more.
    #[inline]
    fn end_time(&mut self, slot: usize) {
        self.deadlines.iter_mut().for_each(|deadlines| deadlines.ends(slot));
    }

    /// Ends the calls and attempts that have had their time. Each is polled once more: then it is ready, or says itself that it was late,
    /// or is dropped; an attempt always says it. Returns whether an item that was late has failed the run.
    #[inline]
    pub(super) fn end_late(
        &mut self,
        room: &mut usize,
        sink: &mut impl FnMut(Fut::Output, K) -> ControlFlow<()>,
    ) -> ControlFlow<(), bool> {
        if self.deadlines.is_empty() { ControlFlow::Continue(false) } else { self.end_those_late(room, sink) }
    }

    #[cold]
    fn end_those_late(
        &mut self,
        room: &mut usize,
        sink: &mut impl FnMut(Fut::Output, K) -> ControlFlow<()>,
    ) -> ControlFlow<(), bool> {
        let woken = self.ready.take_woken();
        self.deadlines.iter_mut().for_each(|deadlines| deadlines.enter(woken));
        for list in 0..self.deadlines.len() {
            // A result needs room at once if nobody asked for order.
            while (!self.unordered || *room > 0) && !self.failed() {
                let deadlines = &mut self.deadlines[list];
                let Some((slot, held)) = deadlines.take_due() else { break };
                if held && self.ready.is_woken(slot) {
                    deadlines.renew(slot);
                    continue;
                }
                let (over, ends) = (deadlines.over(), deadlines.ends_calls());
                self.poll_woken(slot, room, sink)?;
                drop(over);
                if ends && let Some(token) = self.discard(slot) {
                    self.deadlines[list].late(token);
                }
            }
        }
        ControlFlow::Continue(self.failed())
    }

    fn failed(&self) -> bool {
        self.deadlines.iter().any(Deadlines::failed)
    }

    /// Drops a call that is still under way, and gives its token.
    #[cold]
    fn discard(&mut self, slot: usize) -> Option<K> {
        let place = self.slots.get_mut(slot).filter(|place| place.live)?;
        // As in `poll_woken`, if the call panics as it goes.
        let token = place.token.take()?;
        let home = Place(place.home);
        place.live = false;
        let _book = Book { slab: self, slot };
        // SAFETY: the slot was live, so a future is there.
        unsafe { home.discard() };
        Some(token)
    }

    /// Returns, though more could be done now.
    #[inline]
    pub(super) fn more(&mut self) -> Poll<Step> {
        self.deadlines.iter_mut().for_each(Deadlines::leave);
        Poll::Ready(Step::More)
    }

    /// As [`pending`](Self::pending), unless there are calls that have had their time: then the stage is to go on.
    pub(super) fn pending_until(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if !self.deadlines.is_empty() {
            let mut due = false;
            for deadlines in &mut self.deadlines {
                deadlines.rest();
                due |= deadlines.poll_due(cx).is_ready();
            }
            if due {
                return Poll::Ready(Step::More);
            }
            if self.ready.any_own() {
                self.deadlines.iter_mut().for_each(Deadlines::leave);
            }
        }
        self.pending(cx.waker())
    }

    fn release_in_order(
        &mut self,
        room: &mut usize,
        sink: &mut impl FnMut(Fut::Output, K) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        while let Some(&slot) = self.order.front() {
            if *room == 0 {
                return ControlFlow::Break(());
            }
            let Slot { token, done, .. } = &mut self.slots[slot];
            let Some(output) = done.take() else { break };
            let Some(token) = token.take() else { break };
            self.order.pop_front();
            self.vacate(slot);
            *room -= 1;
            sink(output, token)?;
        }
        ControlFlow::Continue(())
    }
}

/// Takes a slot whose call panics, or is dropped, out of the book.
struct Book<'a, Fut: Future, K: Settle> {
    slab: &'a mut Slab<Fut, K>,
    slot: usize,
}

impl<Fut: Future, K: Settle> Drop for Book<'_, Fut, K> {
    fn drop(&mut self) {
        let slot = self.slot;
        // Calls that run out of time are the oldest.
        if self.slab.order.front() == Some(&slot) {
            self.slab.order.pop_front();
        } else {
            self.slab.order.retain(|&other| other != slot);
        }
        self.slab.end_time(slot);
        self.slab.vacate(slot);
    }
}

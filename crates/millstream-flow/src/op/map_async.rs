//! Async functions with many calls in flight, in one task.
//!
//! Each call lives in a slot that is allocated once; a slot's waker marks its bit in a set of ready slots and
//! wakes the stage. Polling looks at set bits only, so that a thousand sleeping calls cost nothing, and
//! no item allocates.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

use crate::flow::{Flow, Step};
use crate::knob::{Knob, Setting};
use crate::token::Settle;

/// How many calls run at once, and whether results keep the order of their items.
///
/// `map_async(8, ..)` is eight in flight, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Concurrency {
    pub(crate) limit: Setting,
    pub(crate) unordered: bool,
}

impl Concurrency {
    /// Up to `limit` calls at once; results in the order of their items. A slow call holds back the results
    /// behind it, of which at most `limit` wait.
    ///
    /// # Panics
    /// If `limit` is 0 or above 65,536.
    pub fn ordered(limit: usize) -> Self {
        assert!((1..=LIMIT_MAX).contains(&limit), "calls in flight are 1 to {LIMIT_MAX}, not {limit}");
        Concurrency { limit: limit.into(), unordered: false }
    }

    /// Up to `limit` calls at once; results as they come.
    ///
    /// # Panics
    /// If `limit` is 0 or above 65,536.
    pub fn unordered(limit: usize) -> Self {
        Concurrency { unordered: true, ..Concurrency::ordered(limit) }
    }

    /// As many calls as the tuner finds best, from 16, in order.
    pub fn auto() -> Self {
        Concurrency::default()
    }

    pub(crate) fn knob(&self, name: String) -> Knob {
        let max = match self.limit {
            Setting::Fixed(limit) => limit,
            Setting::Auto => 1024,
        };
        Knob::new(name, self.limit, 16, 1, max)
    }
}

const LIMIT_MAX: usize = 1 << 16;

impl From<usize> for Concurrency {
    fn from(limit: usize) -> Self {
        Concurrency::ordered(limit)
    }
}

/// Which slots want to be polled: a bit each.
struct Ready {
    words: Box<[AtomicU64]>,
    stage: AtomicWaker,
}

struct SlotWaker {
    ready: Arc<Ready>,
    slot: usize,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        let bit = 1 << (self.slot % 64);
        // Only the first wake of a slot since it was polled needs to reach the stage.
        if self.ready.words[self.slot / 64].fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.ready.stage.wake();
        }
    }
}

/// A place for one call.
struct Slot<Fut: Future, K> {
    future: Pin<Box<Option<Fut>>>,
    waker: Waker,
    token: Option<K>,
    /// The result of a call that waits for those before it. Only when ordered.
    done: Option<Fut::Output>,
}

/// See [`Pipe::map_async`](crate::Pipe::map_async).
pub struct MapAsync<F: Flow, M, Fut: Future> {
    upstream: F,
    map: M,
    limit: Knob,
    unordered: bool,
    slots: Vec<Slot<Fut, F::Token>>,
    free: Vec<usize>,
    /// The slot that the next call enters. It stays the same while calls are ready at once.
    spare: Option<usize>,
    /// Ordered: the slots in use, oldest first.
    order: VecDeque<usize>,
    in_flight: usize,
    ready: Arc<Ready>,
    ended: bool,
}

impl<F: Flow, M, Fut: Future> MapAsync<F, M, Fut> {
    pub(crate) fn new(upstream: F, map: M, limit: Knob, unordered: bool) -> Self {
        let slots = limit.bounds().1;
        let words = (0..slots.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let ready = Arc::new(Ready { words, stage: AtomicWaker::new() });
        MapAsync {
            upstream,
            map,
            limit,
            unordered,
            slots: Vec::new(),
            free: Vec::new(),
            spare: None,
            order: VecDeque::new(),
            in_flight: 0,
            ready,
            ended: false,
        }
    }
}

/// Everything but upstream, so that its sink can borrow it.
struct Slab<'a, Fut: Future, K> {
    slots: &'a mut Vec<Slot<Fut, K>>,
    free: &'a mut Vec<usize>,
    spare: &'a mut Option<usize>,
    order: &'a mut VecDeque<usize>,
    in_flight: &'a mut usize,
    ready: &'a Arc<Ready>,
    unordered: bool,
}

impl<Fut: Future, K: Settle> Slab<'_, Fut, K> {
    /// A free slot; slots are made as they are first needed, so that a wide limit costs nothing unless used.
    #[cold]
    fn make_spare(&mut self) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = self.slots.len();
            let waker = Waker::from(Arc::new(SlotWaker { ready: self.ready.clone(), slot }));
            self.slots.push(Slot { future: Box::pin(None), waker, token: None, done: None });
            slot
        });
        *self.spare = Some(slot);
        slot
    }

    /// Polls the call in `slot`. A result leaves the future's place empty; so does a panic, which costs this
    /// item and no other.
    #[inline]
    fn poll_slot(&mut self, slot: usize) -> Poll<Fut::Output> {
        struct Clear<'a, Fut>(Pin<&'a mut Option<Fut>>);
        impl<Fut> Drop for Clear<'_, Fut> {
            fn drop(&mut self) {
                self.0.set(None);
            }
        }
        let Slot { future, waker, .. } = &mut self.slots[slot];
        let mut clear = Clear(future.as_mut());
        let Some(future) = clear.0.as_mut().as_pin_mut() else {
            std::mem::forget(clear);
            return Poll::Pending;
        };
        let result = future.poll(&mut Context::from_waker(waker));
        if result.is_pending() {
            std::mem::forget(clear);
        }
        result
    }

    /// Gives the slot back.
    #[inline]
    fn vacate(&mut self, slot: usize) {
        self.free.push(slot);
        *self.in_flight -= 1;
    }
}

impl<F, M, Fut> Flow for MapAsync<F, M, Fut>
where
    F: Flow,
    M: FnMut(F::Item) -> Fut,
    Fut: Future,
{
    type Item = Fut::Output;
    type Token = F::Token;

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(Fut::Output, F::Token) -> ControlFlow<()>,
    {
        let limit = self.limit.value();
        let mut room = max;
        let mut slab = Slab {
            slots: &mut self.slots,
            free: &mut self.free,
            spare: &mut self.spare,
            order: &mut self.order,
            in_flight: &mut self.in_flight,
            ready: &self.ready,
            unordered: self.unordered,
        };
        // Before the bits are read: a wake after this finds the stage, one before it has set its bit.
        if *slab.in_flight > 0 {
            self.ready.stage.register(cx.waker());
        }
        loop {
            if slab.poll_ready(&mut room, sink).is_break() {
                return Poll::Ready(Step::More);
            }
            if self.ended {
                return if *slab.in_flight == 0 { Poll::Ready(Step::End) } else { Poll::Pending };
            }
            if *slab.in_flight >= limit {
                return Poll::Pending;
            }
            let map = &mut self.map;
            let mut broke = false;
            let waker = cx.waker().clone();
            let step = self.upstream.poll_drive(cx, room, &mut |item, token| {
                let future = map(item);
                slab.enter(future, token, limit, &waker, |output, token| {
                    room -= 1;
                    let flow = sink(output, token);
                    broke |= flow.is_break();
                    flow
                })
            });
            if step == Poll::Ready(Step::End) {
                self.ended = true;
            }
            if broke || room == 0 {
                let over = self.ended && *slab.in_flight == 0;
                return Poll::Ready(if over { Step::End } else { Step::More });
            }
            match step {
                Poll::Pending => return slab.poll_ready(&mut room, sink).map_pending(),
                Poll::Ready(Step::More) if *slab.in_flight < limit => return Poll::Ready(Step::More),
                // Full, or upstream has ended: what is in flight decides. Calls may have woken themselves.
                Poll::Ready(_) => {}
            }
        }
    }
}

/// `Pending`, unless the sink broke off.
trait MapPending {
    fn map_pending(self) -> Poll<Step>;
}

impl MapPending for ControlFlow<()> {
    fn map_pending(self) -> Poll<Step> {
        if self.is_break() { Poll::Ready(Step::More) } else { Poll::Pending }
    }
}

impl<Fut: Future, K: Settle> Slab<'_, Fut, K> {
    /// Starts a call. If it is ready at once and no earlier one waits, its result goes straight on: such an item
    /// takes one from the room that upstream was given, so upstream stops by itself and nothing more is checked.
    #[inline]
    fn enter(
        &mut self,
        future: Fut,
        token: K,
        limit: usize,
        stage: &Waker,
        sink: impl FnOnce(Fut::Output, K) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let slot = self.spare.unwrap_or_else(|| self.make_spare());
        let Slot { future: place, waker, .. } = &mut self.slots[slot];
        place.as_mut().set(Some(future));
        // A panic here leaves the slot spare; the next call takes the dead one's place.
        let result = match place.as_mut().as_pin_mut() {
            Some(future) => future.poll(&mut Context::from_waker(waker)),
            None => Poll::Pending,
        };
        match result {
            Poll::Ready(output) => {
                place.as_mut().set(None);
                if self.unordered || *self.in_flight == 0 {
                    return sink(output, token);
                }
                self.slots[slot].done = Some(output);
                self.keep(slot, token, limit, stage)
            }
            Poll::Pending => self.keep(slot, token, limit, stage),
        }
    }

    /// Enters a call into the book that is not done, or is done before its turn.
    fn keep(&mut self, slot: usize, token: K, limit: usize, stage: &Waker) -> ControlFlow<()> {
        *self.spare = None;
        if *self.in_flight == 0 {
            self.ready.stage.register(stage);
            // A wake between its poll and the registration found nobody.
            if self.ready.words[slot / 64].load(Ordering::Acquire) & (1 << (slot % 64)) != 0 {
                stage.wake_by_ref();
            }
        }
        *self.in_flight += 1;
        self.slots[slot].token = Some(token);
        if !self.unordered {
            self.order.push_back(slot);
        }
        if *self.in_flight >= limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Polls the calls that were woken and pushes the results that may go.
    #[inline]
    fn poll_ready(
        &mut self,
        room: &mut usize,
        sink: &mut impl FnMut(Fut::Output, K) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if *self.in_flight == 0 {
            return if *room == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        }
        if !self.unordered {
            self.release_in_order(room, sink)?;
        }
        let ready = self.ready;
        for (at, word) in ready.words.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut woken = Woken { word, bits: word.swap(0, Ordering::AcqRel) };
            while woken.bits != 0 {
                if self.unordered && *room == 0 {
                    return ControlFlow::Break(());
                }
                let bit = woken.bits.trailing_zeros() as usize;
                woken.bits &= woken.bits - 1;
                self.poll_woken(at * 64 + bit, room, sink)?;
            }
        }
        if self.unordered {
            return if *room == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        }
        self.release_in_order(room, sink)
    }

    fn poll_woken(
        &mut self,
        slot: usize,
        room: &mut usize,
        sink: &mut impl FnMut(Fut::Output, K) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if self.slots[slot].token.is_none() || self.slots[slot].future.is_none() {
            return ControlFlow::Continue(()); // a late wake of a call that has ended
        }
        // The token goes on the stack: if the call panics, unwinding hands it to the driver.
        let Some(token) = self.slots[slot].token.take() else { return ControlFlow::Continue(()) };
        let book = Book { slab: self, slot };
        let result = book.slab.poll_slot(slot);
        std::mem::forget(book);
        match result {
            Poll::Pending => {
                self.slots[slot].token = Some(token);
                ControlFlow::Continue(())
            }
            Poll::Ready(output) if self.unordered => {
                self.vacate(slot);
                *room -= 1;
                sink(output, token)
            }
            Poll::Ready(output) => {
                self.slots[slot].token = Some(token);
                self.slots[slot].done = Some(output);
                ControlFlow::Continue(())
            }
        }
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
            let Some(output) = self.slots[slot].done.take() else { break };
            let Some(token) = self.slots[slot].token.take() else { break };
            self.order.pop_front();
            self.vacate(slot);
            *room -= 1;
            sink(output, token)?;
        }
        if *room == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Slots that were woken and not polled yet. What a break or a panic leaves of them is put back, else nobody
/// would wake those calls again.
struct Woken<'a> {
    word: &'a AtomicU64,
    bits: u64,
}

impl Drop for Woken<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.bits != 0 {
            self.word.fetch_or(self.bits, Ordering::AcqRel);
        }
    }
}

/// Takes a slot whose call panics out of the book.
struct Book<'a, 'b, Fut: Future, K: Settle> {
    slab: &'a mut Slab<'b, Fut, K>,
    slot: usize,
}

impl<Fut: Future, K: Settle> Drop for Book<'_, '_, Fut, K> {
    fn drop(&mut self) {
        let slot = self.slot;
        self.slab.order.retain(|&other| other != slot);
        self.slab.vacate(slot);
    }
}

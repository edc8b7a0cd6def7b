//! Which calls want to be polled, and how their wakes reach the stage.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

/// Which slots want to be polled: a bit each.
pub(super) struct Ready {
    words: Box<[Word]>,
    stage: AtomicWaker,
    /// The thread that is polling the calls, or 0. Only it can find its own number here.
    poller: AtomicUsize,
    /// Of calls that may take only so long: what moments are counted from.
    origin: Option<Instant>,
    /// When a call was woken first since [`take_woken`](Ready::take_woken), in nanoseconds; or 0.
    woken: AtomicU64,
}

impl Ready {
    pub(super) fn new(slots: usize, limited: bool) -> Arc<Self> {
        Arc::new(Ready {
            words: (0..slots.div_ceil(64)).map(|_| Word::default()).collect(),
            stage: AtomicWaker::new(),
            poller: AtomicUsize::new(0),
            origin: limited.then(Instant::now),
            woken: AtomicU64::new(0),
        })
    }

    /// 64 slots each, the first ones first.
    #[inline]
    pub(super) fn words(&self) -> impl Iterator<Item = &Word> {
        self.words.iter()
    }

    /// Has wakes reach the stage from now on.
    #[inline]
    pub(super) fn register(&self, stage: &Waker) {
        self.stage.register(stage);
    }

    /// Has this thread's own wakes take the short way.
    #[inline]
    pub(super) fn polling(self: &Arc<Self>) -> Polling {
        self.poller.store(this_thread(), Ordering::Relaxed);
        Polling(self.clone())
    }

    /// Whether calls woke themselves while they were polled.
    #[inline]
    pub(super) fn any_own(&self) -> bool {
        self.words.iter().any(|word| word.own.load(Ordering::Relaxed) != 0)
    }

    /// Whether others woke calls.
    #[inline]
    pub(super) fn any_others(&self) -> bool {
        self.words.iter().any(|word| word.bits.load(Ordering::Acquire) != 0)
    }

    /// Whether the call of a slot was woken and has not been polled since.
    pub(super) fn is_woken(&self, slot: usize) -> bool {
        let (word, bit) = (&self.words[slot / 64], 1 << (slot % 64));
        (word.own.load(Ordering::Relaxed) | word.bits.load(Ordering::Acquire)) & bit != 0
    }

    /// When a call was woken by another first since this was asked. Kept only if calls may take only so long.
    pub(super) fn take_woken(&self) -> Option<Instant> {
        let woken = self.woken.load(Ordering::Relaxed);
        if woken == 0 {
            return None;
        }
        self.woken.store(0, Ordering::Relaxed);
        Some(self.origin? + Duration::from_nanos(woken))
    }

    fn note_woken(&self) {
        if let Some(origin) = self.origin
            && self.woken.load(Ordering::Relaxed) == 0
        {
            let nanos = u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.woken.store(nanos.max(1), Ordering::Relaxed);
        }
    }

    /// What wakes the call of a slot.
    pub(super) fn waker(self: &Arc<Self>, slot: usize) -> Waker {
        Waker::from(Arc::new(SlotWaker { ready: self.clone(), slot }))
    }
}

/// 64 slots.
#[derive(Default)]
pub(super) struct Word {
    /// Set by anybody.
    bits: AtomicU64,
    /// Set and cleared by the poller alone, so that a call that wakes itself while it is polled needs no
    /// read-modify-write, which would be half of its cost.
    own: AtomicU64,
}

impl Word {
    #[inline]
    fn add_own(&self, bits: u64) {
        self.own.store(self.own.load(Ordering::Relaxed) | bits, Ordering::Relaxed);
    }

    /// Takes all bits.
    #[inline]
    pub(super) fn take(&self) -> u64 {
        let own = self.own.load(Ordering::Relaxed);
        if own != 0 {
            self.own.store(0, Ordering::Relaxed);
        }
        if self.bits.load(Ordering::Relaxed) == 0 { own } else { own | self.bits.swap(0, Ordering::AcqRel) }
    }
}

/// A number for this thread that no other has while it lives.
fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.try_with(|here| ptr::from_ref(here).addr()).unwrap_or(usize::MAX)
}

/// While alive, calls that wake themselves say so without the others' bits.
pub(super) struct Polling(pub(super) Arc<Ready>);

impl Drop for Polling {
    #[inline]
    fn drop(&mut self) {
        self.0.poller.store(0, Ordering::Relaxed);
    }
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
        let (word, bit) = (&self.ready.words[self.slot / 64], 1 << (self.slot % 64));
        if self.ready.poller.load(Ordering::Relaxed) == this_thread() {
            word.add_own(bit);
            return;
        }
        self.ready.note_woken();
        if word.bits.fetch_or(bit, Ordering::AcqRel) == 0 {
            // Otherwise whoever set the first bit has woken the stage, which has not looked at the word since.
            self.ready.stage.wake();
        }
    }
}

/// Slots that were woken and not polled yet. What a break or a panic leaves of them is put back, else nobody
/// would wake those calls again.
pub(super) struct Woken<'a> {
    pub(super) word: &'a Word,
    pub(super) bits: u64,
}

impl Drop for Woken<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.bits != 0 {
            self.word.add_own(self.bits);
        }
    }
}

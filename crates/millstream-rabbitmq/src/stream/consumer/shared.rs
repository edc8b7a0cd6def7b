//! What has come and waits to be read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use millstream_message::BrokerError;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::super::chunk::Chunk;
use super::super::command::OffsetSpec;
use super::super::counters::Present;
use super::super::link::{Link, lost};
use super::ConsumerOptions;

/// The most chunks that may be on their way, however small they are: the next ones may be large. A stream of chunks of
/// one message is read at sixteen messages a round trip.
const CREDIT_MAX: u64 = 16;

/// What the consumer shares with its supervisor and with its link.
pub(crate) struct Shared {
    pub(super) stream: String,
    /// Of which the stream is a part, when consumers of one name share its parts.
    pub(super) super_stream: Option<String>,
    pub(super) options: ConsumerOptions,
    pub(super) state: Mutex<State>,
    _present: Present,
    /// The supervisor has something to look at.
    pub(super) wake: Notify,
}

pub(super) struct State {
    pub(super) chunks: VecDeque<Bytes>,
    pub(super) waker: Option<Waker>,
    pub(super) attached: Option<(Arc<Link>, u8)>,
    /// Chunks that the broker may send.
    pub(super) credit: u64,
    /// About how large chunks are.
    pub(super) chunk_bytes: usize,
    /// The most credit at present: one more with every chunk, since streams begin with small chunks and go on with
    /// large ones.
    pub(super) credit_max: u64,
    /// Where reading goes on on another connection.
    pub(super) resume: OffsetSpec,
    /// The offset behind the last message that the reader is done with.
    pub(super) done: Option<u64>,
    /// Whether it is given messages. Others of its name may be instead.
    pub(super) active: bool,
    /// Counts how often another became the active one, or this one again: what the reader has of before is void.
    pub(super) turn: u64,
    /// Where this turn begins.
    pub(super) begin: OffsetSpec,
    pub(super) election: Option<Election>,
    pub(super) over: Option<BrokerError>,
    pub(super) closing: bool,
}

/// What the server asked, and waits for: whether this consumer is now the active one.
pub(super) struct Election {
    pub(super) correlation: u32,
    pub(super) active: bool,
    /// The reader has nothing in hand any more.
    pub(super) let_go: bool,
}

impl State {
    /// Another turn, which begins here.
    pub(super) fn turn(&mut self, active: bool, begin: OffsetSpec) -> Option<Waker> {
        self.chunks.clear();
        self.turn += 1;
        self.active = active;
        (self.begin, self.resume) = (begin, begin);
        self.waker.take()
    }

    /// How much credit to give now.
    pub(super) fn give(&mut self, bytes_max: usize) -> Option<(Arc<Link>, u8, u16)> {
        if !self.active {
            return None;
        }
        // The first chunk comes alone: how large they are is not known before.
        let target = bytes_max.checked_div(self.chunk_bytes)? as u64;
        let have = self.credit + self.chunks.len() as u64;
        let give = target.clamp(1, self.credit_max).saturating_sub(have);
        let (link, number) = self.attached.as_ref()?;
        if give == 0 {
            return None;
        }
        self.credit += give;
        Some((link.clone(), *number, give as u16))
    }
}

impl Shared {
    pub(super) fn new(
        stream: &str,
        super_stream: Option<&str>,
        options: ConsumerOptions,
        from: OffsetSpec,
        present: Present,
    ) -> Shared {
        let active = !options.single_active;
        Shared {
            stream: stream.to_owned(),
            super_stream: super_stream.map(str::to_owned),
            options,
            _present: present,
            state: Mutex::new(State {
                chunks: VecDeque::new(),
                waker: None,
                attached: None,
                credit: 0,
                chunk_bytes: 0,
                credit_max: 1,
                resume: from,
                done: None,
                active,
                turn: 0,
                begin: from,
                election: None,
                over: None,
                closing: false,
            }),
            wake: Notify::new(),
        }
    }

    pub(crate) fn stream(&self) -> &str {
        &self.stream
    }

    /// Ends it: readers see the end, the supervisor unsubscribes.
    pub(crate) fn close(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.closing = true;
            state.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
        self.wake.notify_one();
    }

    /// A chunk has come.
    pub(crate) fn push(&self, chunk: Bytes) {
        let waker = {
            let mut state = self.state.lock();
            match state.credit.checked_sub(1) {
                Some(left) => state.credit = left,
                None => {
                    state.over = Some(lost("the broker sends more chunks than it was given credit for"));
                    state.attached = None;
                    self.wake.notify_one();
                }
            }
            if let Some((first, messages)) = Chunk::range(&chunk) {
                state.resume = OffsetSpec::Offset(first.saturating_add(messages.into()));
            }
            // Quick to see that they are large, slow to see that they are small.
            state.chunk_bytes = chunk.len().max(state.chunk_bytes - state.chunk_bytes / 64);
            state.credit_max = CREDIT_MAX.min(state.credit_max + 1);
            state.chunks.push_back(chunk);
            state.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// The link is lost, or the stream is not there any more.
    pub(crate) fn detached(&self, error: &BrokerError) {
        tracing::debug!(stream = self.stream, %error, "a consumer is detached");
        let waker = {
            let mut state = self.state.lock();
            state.attached = None;
            state.election = None;
            // Another of its name is the active one from now on.
            let begin = state.begin;
            if self.options.single_active { state.turn(false, begin) } else { None }
        };
        waker.into_iter().for_each(Waker::wake);
        self.wake.notify_one();
    }

    /// The server says whether this consumer is the active one.
    pub(crate) fn elected(&self, correlation: u32, active: bool) {
        let waker = {
            let mut state = self.state.lock();
            state.election = Some(Election { correlation, active, let_go: active });
            let begin = state.begin;
            if active { None } else { state.turn(false, begin) }
        };
        waker.into_iter().for_each(Waker::wake);
        self.wake.notify_one();
    }

    pub(super) fn end(&self, error: Option<BrokerError>) {
        let waker = {
            let mut state = self.state.lock();
            match error {
                Some(error) => state.over = Some(error),
                None => state.closing = true,
            }
            state.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

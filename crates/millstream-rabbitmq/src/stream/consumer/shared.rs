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
use super::super::link::{Link, lost};
use super::ConsumerOptions;

/// The most chunks that may be on their way, however small they are: the next ones may be large. A stream of chunks of
/// one message is read at sixteen messages a round trip.
const CREDIT_MAX: u64 = 16;

/// What the consumer shares with its supervisor and with its link.
pub(crate) struct Shared {
    pub(super) stream: String,
    pub(super) options: ConsumerOptions,
    pub(super) state: Mutex<State>,
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
    /// What the server asked: whether this consumer is now the active one.
    pub(super) elected: Option<(u32, bool)>,
    pub(super) over: Option<BrokerError>,
    pub(super) closing: bool,
}

impl State {
    /// How much credit to give now.
    pub(super) fn give(&mut self, bytes_max: usize) -> Option<(Arc<Link>, u8, u16)> {
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
    pub(super) fn new(stream: &str, options: ConsumerOptions, resume: OffsetSpec) -> Shared {
        Shared {
            stream: stream.to_owned(),
            options,
            state: Mutex::new(State {
                chunks: VecDeque::new(),
                waker: None,
                attached: None,
                credit: 0,
                chunk_bytes: 0,
                credit_max: 1,
                resume,
                elected: None,
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
        self.state.lock().attached = None;
        self.wake.notify_one();
    }

    /// The server says whether this consumer is the active one.
    pub(crate) fn elected(&self, correlation: u32, active: bool) {
        self.state.lock().elected = Some((correlation, active));
        self.wake.notify_one();
    }
}
impl Shared {
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

//! Streams in memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use millstream_message::{
    BrokerError, Message, StreamFrom, StreamItem, StreamReader, StreamSource, StreamSpec, StreamStats,
};
use parking_lot::Mutex;

use crate::clock::{millis, system_time, unix_millis};
use crate::shared::Shared;
use crate::streams::deleted;

/// A stream in memory.
pub(crate) struct MemoryStream {
    pub(crate) spec: StreamSpec,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Append time in milliseconds since 1970, and message; the first has offset `first`.
    items: VecDeque<(u64, Message)>,
    first: u64,
    bytes: u64,
    wakers: Vec<Waker>,
    deleted: bool,
}

impl MemoryStream {
    pub(crate) fn new(spec: StreamSpec) -> MemoryStream {
        MemoryStream { spec, state: Mutex::default() }
    }

    pub(crate) fn append(&self, messages: Vec<Message>, now: u64) -> u64 {
        let mut state = self.state.lock();
        let first = state.first + state.items.len() as u64;
        for message in messages {
            state.bytes += message.size() as u64;
            state.items.push_back((now, message));
        }
        self.retain(&mut state, now);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        first
    }

    /// Removes the oldest messages as long as what is left is enough.
    fn retain(&self, state: &mut State, now: u64) {
        let oldest = self.spec.max_age.map_or(0, |age| now.saturating_sub(millis(age)));
        while let Some((time, message)) = state.items.front() {
            let size = message.size() as u64;
            let too_many = self.spec.max_bytes.is_some_and(|max| state.bytes - size >= max.get());
            if !too_many && *time >= oldest {
                break;
            }
            state.bytes -= size;
            state.first += 1;
            state.items.pop_front();
        }
    }

    pub(crate) fn stats(&self, now: u64) -> StreamStats {
        let mut state = self.state.lock();
        self.retain(&mut state, now);
        StreamStats { first: state.first, next: state.first + state.items.len() as u64, bytes: state.bytes }
    }

    pub(crate) fn delete(&self) {
        let mut state = self.state.lock();
        state.deleted = true;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn wake(&self) {
        let wakers = std::mem::take(&mut self.state.lock().wakers);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn read(self: &Arc<Self>, from: StreamFrom, shared: &Arc<Shared>) -> StreamReader {
        let state = self.state.lock();
        let next = state.first + state.items.len() as u64;
        let at = match from {
            StreamFrom::First => state.first,
            StreamFrom::Next => next,
            StreamFrom::Last => next.saturating_sub(1).max(state.first),
            StreamFrom::Offset(offset) => offset,
            StreamFrom::Timestamp(time) => {
                let time = unix_millis(time);
                state.first + state.items.partition_point(|(at, _)| *at < time) as u64
            }
        };
        drop(state);
        StreamReader::new(Box::new(MemoryReader { stream: self.clone(), shared: shared.clone(), at }))
    }
}

struct MemoryReader {
    stream: Arc<MemoryStream>,
    shared: Arc<Shared>,
    at: u64,
}

impl StreamSource for MemoryReader {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        into: &mut Vec<StreamItem>,
    ) -> Poll<Result<usize, BrokerError>> {
        let mut state = self.stream.state.lock();
        if state.deleted {
            return Poll::Ready(Err(deleted(&self.stream.spec.name)));
        }
        self.at = self.at.max(state.first);
        let from = usize::try_from(self.at - state.first).unwrap_or(usize::MAX);
        if from >= state.items.len() {
            if self.shared.is_closed() {
                return Poll::Ready(Ok(0));
            }
            if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.wakers.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        let before = into.len();
        for (time, message) in state.items.range(from..).take(max) {
            into.push(StreamItem { offset: self.at, time: system_time(*time), message: message.clone() });
            self.at += 1;
        }
        Poll::Ready(Ok(into.len() - before))
    }
}

//! What is published, as frames that are kept until they are confirmed.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::{BufMut, Bytes};
use millstream_message::{Message, PublishOutcome, Refusal};

use super::super::amqp::{self, Mark};
use super::super::chunk::{BATCH_HEADER, put_batch_header};
use super::super::command::PUBLISH;

/// Before the entries of a publish: length, key, version, publisher, count.
pub(super) const FRAME_HEAD: usize = 4 + 2 + 2 + 1 + 4;
/// Where the publisher's number is.
pub(super) const FRAME_PUBLISHER: usize = 8;
pub(super) const FRAME_COUNT: usize = 9;

/// A frame that is not fully confirmed.
pub(super) struct Frame {
    pub(super) bytes: Bytes,
    pub(super) ids: FrameIds,
    /// So many of the ids, from the first on, are confirmed or refused.
    pub(super) done: u32,
    /// Those behind them that are, too.
    pub(super) done_beyond: BTreeSet<u32>,
    pub(super) batch: u64,
    /// Places of its messages in their batch.
    pub(super) places: Range<u32>,
    pub(super) entry_messages: u32,
}

pub(super) enum FrameIds {
    /// From this one on.
    From(u64, u32),
    Each(Box<[u64]>),
}

impl FrameIds {
    pub(super) fn len(&self) -> u32 {
        match self {
            FrameIds::From(_, count) => *count,
            FrameIds::Each(ids) => ids.len() as u32,
        }
    }

    pub(super) fn last(&self) -> u64 {
        match self {
            FrameIds::From(first, count) => first + u64::from(count.saturating_sub(1)),
            FrameIds::Each(ids) => ids.last().copied().unwrap_or(0),
        }
    }

    /// Which of them are these.
    pub(super) fn places(&self, ids: &Range<u64>) -> Range<u32> {
        match self {
            FrameIds::From(first, count) => {
                let place = |id: u64| id.saturating_sub(*first).min(u64::from(*count)) as u32;
                place(ids.start)..place(ids.end)
            }
            FrameIds::Each(each) => {
                let place = |id: u64| each.partition_point(|other| *other < id) as u32;
                place(ids.start)..place(ids.end)
            }
        }
    }
}

impl Frame {
    pub(super) fn is_done(&self) -> bool {
        self.done == self.ids.len()
    }

    /// Marks ids as done; which of them were not yet.
    pub(super) fn settle(&mut self, places: Range<u32>, mut each: impl FnMut(u32)) {
        if places.start <= self.done && self.done_beyond.is_empty() {
            (self.done.max(places.start)..places.end).for_each(each);
            self.done = self.done.max(places.end);
            return;
        }
        for place in places {
            if place >= self.done && self.done_beyond.insert(place) {
                each(place);
            }
        }
        while self.done_beyond.remove(&self.done) {
            self.done += 1;
        }
    }

    pub(super) fn is_settled(&self, place: u32) -> bool {
        place < self.done || self.done_beyond.contains(&place)
    }

    /// Places in the batch of the messages under one id.
    pub(super) fn messages(&self, place: u32) -> Range<u32> {
        let start = self.places.start + place * self.entry_messages;
        start..(start + self.entry_messages).min(self.places.end)
    }

    /// The frame again, without what is confirmed, from this publisher.
    pub(super) fn again(&self, publisher: u8) -> Bytes {
        if self.done == 0 && self.done_beyond.is_empty() && self.bytes[FRAME_PUBLISHER] == publisher {
            return self.bytes.clone();
        }
        let mut out = Vec::with_capacity(self.bytes.len());
        begin_frame(&mut out, publisher);
        let mut count = 0;
        let mut rest = &self.bytes[FRAME_HEAD..];
        for place in 0..self.ids.len() {
            let len = entry_len(rest);
            let (entry, behind) = rest.split_at(len);
            rest = behind;
            if !self.is_settled(place) {
                out.put_slice(entry);
                count += 1;
            }
        }
        end_frame(&mut out, count);
        out.into()
    }
}

/// Bytes of the entry at the front: id, then a message or a batch of messages.
pub(super) fn entry_len(entry: &[u8]) -> usize {
    let number =
        |at: usize| u32::from_be_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]) as usize;
    if entry[8] & 0x80 == 0 { 12 + number(8) } else { 8 + BATCH_HEADER + number(8 + 7) }
}

pub(super) fn begin_frame(out: &mut Vec<u8>, publisher: u8) {
    out.put_u32(0);
    out.put_u16(PUBLISH);
    out.put_u16(1);
    out.put_u8(publisher);
    out.put_u32(0);
}

pub(super) fn end_frame(out: &mut [u8], count: u32) {
    let len = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&len.to_be_bytes());
    out[FRAME_COUNT..FRAME_HEAD].copy_from_slice(&count.to_be_bytes());
}

/// Messages with ids of their own, or in sequence.
pub(super) enum Numbered<'a> {
    Next(&'a [Message]),
    Given(&'a [(u64, Message)]),
}

impl<'a> Numbered<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Numbered::Next(messages) => messages.len(),
            Numbered::Given(messages) => messages.len(),
        }
    }

    pub(super) fn message(&self, at: usize) -> &'a Message {
        match self {
            Numbered::Next(messages) => &messages[at],
            Numbered::Given(messages) => &messages[at].1,
        }
    }
}

/// Makes frames of messages.
pub(super) struct Encoder {
    pub(super) out: Vec<u8>,
    pub(super) frames: Vec<Frame>,
    pub(super) publisher: u8,
    pub(super) frame_max: usize,
}

impl Encoder {
    /// Returns the next free id, and what does not fit into a frame.
    pub(super) fn encode(
        &mut self,
        messages: &Numbered<'_>,
        first: u64,
        entry_messages: usize,
        mark: Option<&Mark>,
        estimate: usize,
    ) -> (u64, Vec<(usize, PublishOutcome)>) {
        let mut next = first;
        let mut others = Vec::new();
        // Ids and places of the frame at hand.
        let (mut ids, mut places) = (Vec::new(), 0..0_u32);
        let (mut from, mut count) = (first, 0_u32);
        let total = messages.len();
        let mut at = 0;
        let is_given = matches!(messages, Numbered::Given(_));
        while at < total {
            if self.out.is_empty() {
                self.out.reserve((estimate + FRAME_HEAD).min(self.frame_max.saturating_add(4)));
                begin_frame(&mut self.out, self.publisher);
                (from, count, places) = (next, 0, at as u32..at as u32);
            }
            let id = match messages {
                Numbered::Given(messages) => messages[at].0,
                Numbered::Next(_) => next,
            };
            let begin = self.out.len();
            let end = (at + entry_messages).min(total);
            self.out.put_u64(id);
            if entry_messages > 1 {
                put_batch_header(&mut self.out, (end - at) as u16, 0);
            }
            for place in at..end {
                let message = self.out.len();
                self.out.put_u32(0);
                amqp::encode(messages.message(place), mark.filter(|_| place == 0), &mut self.out);
                let len = (self.out.len() - message - 4) as u32;
                self.out[message..message + 4].copy_from_slice(&len.to_be_bytes());
            }
            if entry_messages > 1 {
                let body = begin + 8 + BATCH_HEADER;
                let len = ((self.out.len() - body) as u32).to_be_bytes();
                self.out[body - 8..body - 4].copy_from_slice(&len);
                self.out[body - 4..body].copy_from_slice(&len);
            }
            if self.out.len() - 4 > self.frame_max {
                let len = (self.out.len() - begin) as u64;
                self.out.truncate(begin);
                if count > 0 {
                    self.end(&mut ids, from, count, places.clone(), entry_messages, is_given);
                } else {
                    // Alone in its frame, and too large.
                    self.out.clear();
                    let refusal = Refusal::TooLarge { len, max: self.frame_max as u64 };
                    let outcome = PublishOutcome::Refused(refusal);
                    others.extend((at..end).map(|place| (place, outcome.clone())));
                    at = end;
                }
                continue;
            }
            if is_given {
                ids.push(id);
            }
            next = id + 1;
            count += 1;
            places.end = end as u32;
            at = end;
        }
        if count > 0 && !self.out.is_empty() {
            self.end(&mut ids, from, count, places, entry_messages, is_given);
        }
        (next, others)
    }

    pub(super) fn end(
        &mut self,
        ids: &mut Vec<u64>,
        from: u64,
        count: u32,
        places: Range<u32>,
        entry_messages: usize,
        is_given: bool,
    ) {
        let mut out = std::mem::take(&mut self.out);
        end_frame(&mut out, count);
        let ids =
            if is_given { FrameIds::Each(std::mem::take(ids).into()) } else { FrameIds::From(from, count) };
        self.frames.push(Frame {
            bytes: out.into(),
            ids,
            done: 0,
            done_beyond: BTreeSet::new(),
            batch: 0,
            places,
            entry_messages: entry_messages as u32,
        });
    }
}

//! What workers have done, in the order in which it is read; and what they hand to each other.

use std::collections::VecDeque;
use std::task::Waker;

use crate::chunk::Chunk;

/// Which chunk of results it will be: of what was pulled as the chunk of this ticket, this part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    ticket: u64,
    part: u32,
    /// What its items weigh, of the window in bytes.
    pub(super) bytes: usize,
}

impl Place {
    pub(super) fn of(ticket: u64, bytes: usize) -> Self {
        Place { ticket, part: 0, bytes }
    }
}

/// The rest of a chunk that is taking too long, for a worker that has nothing to do.
pub(super) struct Offer<T> {
    pub(super) place: Place,
    pub(super) items: Vec<T>,
}

/// A finished chunk, and the bytes that it frees when it is read.
struct Done<R> {
    chunk: Chunk<R>,
    bytes: usize,
}

/// A part of what was pulled as one chunk, that is being worked on until it is there.
struct Part<R> {
    number: u32,
    done: Option<Done<R>>,
}

/// What was pulled as one chunk: its first part, which most have alone, and what was split off, in order.
struct Slot<R> {
    first: Option<Done<R>>,
    first_read: bool,
    rest: VecDeque<Part<R>>,
    parts: u32,
}

impl<R> Slot<R> {
    fn new() -> Self {
        Slot { first: None, first_read: false, rest: VecDeque::new(), parts: 1 }
    }

    fn put(&mut self, part: u32, done: Done<R>) {
        let place = match part {
            0 => &mut self.first,
            _ => {
                let at = self.at(part);
                &mut self.rest[at].done
            }
        };
        *place = Some(done);
    }

    fn at(&self, part: u32) -> usize {
        let at = self.rest.iter().position(|other| other.number == part);
        at.expect("a part that is worked on is not read yet")
    }

    /// A new part, directly behind this one.
    fn split(&mut self, part: u32) -> u32 {
        let (number, at) = (self.parts, if part == 0 { 0 } else { self.at(part) + 1 });
        self.parts += 1;
        self.rest.insert(at, Part { number, done: None });
        number
    }

    fn is_ready(&self) -> bool {
        if self.first_read {
            self.rest.front().is_some_and(|part| part.done.is_some())
        } else {
            self.first.is_some()
        }
    }

    fn take(&mut self) -> Option<Done<R>> {
        if self.first_read {
            let done = self.rest.front_mut()?.done.take()?;
            self.rest.pop_front();
            return Some(done);
        }
        let done = self.first.take()?;
        self.first_read = true;
        Some(done)
    }

    fn is_read(&self) -> bool {
        self.first_read && self.rest.is_empty()
    }
}

/// What the workers and the reader share, beside upstream. `T` are items on their way to workers, `R` results.
pub(super) struct Output<T, R> {
    unordered: bool,
    /// By ticket, from `first_ticket`.
    slots: VecDeque<Slot<R>>,
    first_ticket: u64,
    /// Unordered: finished chunks as they came.
    done: VecDeque<Done<R>>,
    /// Chunks that were read, to be filled again.
    spare: Vec<Chunk<R>>,
    /// Chunks taken from upstream, or split off, and not yet taken by the reader.
    outstanding: usize,
    /// Those of them that workers have not finished.
    working: usize,
    /// What items weigh that were pulled and are not yet read; and those of the chunk that is being read.
    bytes: usize,
    reading: usize,
    offers: VecDeque<Offer<T>>,
    /// Workers that wait for something to do, by their numbers.
    idle: Vec<Option<Waker>>,
    pub(super) reader: Option<Waker>,
    /// The worker that holds upstream and waits for the reader to catch up.
    pub(super) waiting: Option<Waker>,
    /// Workers above the knob's number.
    pub(super) parked: Vec<(usize, Waker)>,
    pub(super) workers_left: usize,
    /// Nobody reads any more, or the run has failed.
    pub(super) closed: bool,
    /// Nothing more is pulled.
    pub(super) ended: bool,
}

impl<T, R> Output<T, R> {
    pub(super) fn new(workers: usize, unordered: bool) -> Self {
        Output {
            unordered,
            slots: VecDeque::new(),
            first_ticket: 0,
            done: VecDeque::new(),
            spare: Vec::new(),
            outstanding: 0,
            working: 0,
            bytes: 0,
            reading: 0,
            offers: VecDeque::new(),
            idle: (0..workers).map(|_| None).collect(),
            reader: None,
            waiting: None,
            parked: Vec::new(),
            workers_left: workers,
            closed: false,
            ended: false,
        }
    }

    /// Whether no more than this is pulled and not read.
    pub(super) fn is_within(&self, chunks: usize, bytes: usize) -> bool {
        self.outstanding < chunks && self.bytes <= bytes
    }

    /// An empty chunk, for what is about to be pulled.
    pub(super) fn reserve(&mut self) -> Chunk<R> {
        self.outstanding += 1;
        self.working += 1;
        self.spare.pop().unwrap_or_else(Chunk::new)
    }

    /// Such a chunk that is not needed.
    pub(super) fn give_back(&mut self, chunk: Chunk<R>) {
        self.outstanding -= 1;
        self.working -= 1;
        self.spare.push(chunk);
    }

    /// As much was pulled for it.
    pub(super) fn pulled(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// An empty chunk, for what was offered.
    pub(super) fn spare(&mut self) -> Chunk<R> {
        self.spare.pop().unwrap_or_else(Chunk::new)
    }

    /// Splits off a part behind this one, for whoever is idle.
    pub(super) fn split(&mut self, place: Place, bytes: usize, items: Vec<T>) {
        self.outstanding += 1;
        self.working += 1;
        let part = if self.unordered { 0 } else { self.slot(place.ticket).split(place.part) };
        self.offers.push_back(Offer { place: Place { part, bytes, ..place }, items });
    }

    /// A finished chunk. True if it is the next one to be read.
    pub(super) fn put(&mut self, place: Place, chunk: Chunk<R>) -> bool {
        self.working -= 1;
        let done = Done { chunk, bytes: place.bytes };
        if self.unordered {
            self.done.push_back(done);
            return true;
        }
        self.slot(place.ticket).put(place.part, done);
        self.slots.front().is_some_and(Slot::is_ready)
    }

    fn slot(&mut self, ticket: u64) -> &mut Slot<R> {
        let at = (ticket - self.first_ticket) as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, Slot::new);
        }
        &mut self.slots[at]
    }

    /// The next chunk for the reader, who gives back an empty one. False if it is not there yet.
    pub(super) fn take(&mut self, read: &mut Chunk<R>) -> bool {
        let done = if self.unordered {
            self.done.pop_front()
        } else {
            let done = self.slots.front_mut().and_then(Slot::take);
            if self.slots.front().is_some_and(Slot::is_read) {
                self.slots.pop_front();
                self.first_ticket += 1;
            }
            done
        };
        let Some(Done { chunk, bytes }) = done else { return false };
        self.spare.push(std::mem::replace(read, chunk));
        self.outstanding -= 1;
        self.reading = bytes;
        true
    }

    /// The reader has read the chunk that it took. True if that makes room.
    pub(super) fn has_read(&mut self) -> bool {
        let read = std::mem::take(&mut self.reading);
        self.bytes -= read;
        read > 0
    }

    /// What another worker could not get done.
    pub(super) fn offer(&mut self) -> Option<Offer<T>> {
        self.offers.pop_front()
    }

    /// Whether nobody works on anything that could still be split.
    pub(super) fn is_over(&self) -> bool {
        self.closed || self.ended && self.working == 0
    }

    /// Notes that this worker waits, and how many do.
    pub(super) fn wait(&mut self, worker: usize, waker: Option<Waker>) -> usize {
        self.idle[worker] = waker;
        self.idle.iter().flatten().count()
    }

    /// A worker that waits, which waits no more, and how many still do.
    pub(super) fn rouse(&mut self) -> (Option<Waker>, usize) {
        let waker = self.idle.iter_mut().find_map(Option::take);
        (waker, self.idle.iter().flatten().count())
    }

    /// All workers that wait or are parked.
    pub(super) fn rouse_all(&mut self) -> Vec<Waker> {
        let idle = self.idle.iter_mut().filter_map(Option::take);
        self.parked.drain(..).map(|(_, waker)| waker).chain(idle).collect()
    }

    /// Those that are parked and shall take part, since so many do.
    pub(super) fn unpark(&mut self, workers: usize) -> Vec<Waker> {
        self.parked.extract_if(.., |(worker, _)| *worker < workers).map(|(_, waker)| waker).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(items: &[u32]) -> Chunk<u32> {
        let mut chunk = Chunk::new();
        let mut filling = chunk.fill(items.len());
        items.iter().for_each(|item| filling.push(*item));
        drop(filling);
        chunk
    }

    fn read(output: &mut Output<u32, u32>) -> Vec<u32> {
        let (mut items, mut current) = (Vec::new(), Chunk::new());
        while {
            output.has_read();
            output.take(&mut current)
        } {
            let mut draining = current.drain(usize::MAX);
            items.extend(std::iter::from_fn(|| draining.next()));
        }
        items
    }

    #[test]
    fn what_is_split_off_is_read_behind_what_it_was_split_from() {
        let mut output = Output::new(2, false);
        let first = Place::of(0, 60);
        for _ in 0..2 {
            output.reserve();
            output.pulled(60);
        }
        // 0 1 | 2 3, then 0 | 1 | 2 | 3.
        output.split(first, 30, vec![2, 3]);
        let second = output.offer().unwrap().place;
        output.split(first, 15, vec![1]);
        output.split(second, 15, vec![3]);
        let (one, three) = (output.offer().unwrap().place, output.offer().unwrap().place);
        output.put(Place::of(1, 60), chunk(&[4]));
        output.put(three, chunk(&[3]));
        output.put(one, chunk(&[1]));
        assert_eq!(read(&mut output), [], "the first is not done");
        assert!(output.put(Place { bytes: 15, ..first }, chunk(&[0])));
        assert_eq!(read(&mut output), [0, 1]);
        assert!(output.put(Place { bytes: 15, ..second }, chunk(&[2])));
        assert_eq!(read(&mut output), [2, 3, 4]);
        assert!(!output.is_over(), "more may come: workers that wait are left alone");
        output.ended = true;
        assert!(output.is_over());
        assert_eq!((output.outstanding, output.bytes), (0, 0));
    }
}

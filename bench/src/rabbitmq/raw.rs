//! The floor: AMQP by hand on a blocking socket. Frames are encoded once, written in large pieces and read in large pieces, and
//! nothing is looked at that the count does not need.

use std::collections::BTreeSet;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;

use super::work::{Act, Kind, Meter, QUEUE, WINDOW, Work, body};
use crate::case::{Absent, Sample};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const END: u8 = 0xce;
/// A frame without its payload.
const EXTRA: usize = 8;
/// The one channel.
const CHANNEL: u16 = 1;
const READ: usize = 256 << 10;

const BASIC: u16 = 60;
const DELIVER: u16 = 60;
const ACK: u16 = 80;

/// A connection with one channel.
pub(super) struct Raw {
    socket: TcpStream,
    input: Vec<u8>,
    begin: usize,
    end: usize,
}

/// Which of the messages published are confirmed: all up to a mark, and some beyond.
#[derive(Debug, Default)]
pub(super) struct Confirmed {
    mark: u64,
    beyond: BTreeSet<u64>,
}

impl Confirmed {
    pub(super) fn add(&mut self, tag: u64, multiple: bool) {
        if multiple {
            self.mark = self.mark.max(tag);
            self.beyond = self.beyond.split_off(&(self.mark + 1));
        } else if tag == self.mark + 1 {
            self.mark = tag;
        } else if tag > self.mark {
            self.beyond.insert(tag);
        }
        while self.beyond.remove(&(self.mark + 1)) {
            self.mark += 1;
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.mark + self.beyond.len() as u64
    }
}

fn put_frame(out: &mut Vec<u8>, kind: u8, channel: u16, payload: &[&[u8]]) {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    out.push(kind);
    out.extend(channel.to_be_bytes());
    out.extend((length as u32).to_be_bytes());
    payload.iter().for_each(|part| out.extend_from_slice(part));
    out.push(END);
}

fn short(text: &str) -> Vec<u8> {
    [&[text.len() as u8], text.as_bytes()].concat()
}

fn put_ack(out: &mut Vec<u8>, tag: u64, multiple: bool) {
    let mut payload = [0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, u8::from(multiple)];
    payload[4..12].copy_from_slice(&tag.to_be_bytes());
    put_frame(out, METHOD, CHANNEL, &[&payload]);
}

/// Class and method of a method frame.
fn method(payload: &[u8]) -> (u16, u16) {
    match payload {
        [a, b, c, d, ..] => (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])),
        _ => (0, 0),
    }
}

fn tag(payload: &[u8], at: usize) -> u64 {
    payload.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

impl Raw {
    /// Connects to `amqp://USER:PASSWORD@HOST:PORT/VHOST`.
    pub(super) fn connect(address: &str) -> Result<Raw> {
        let parts = address.strip_prefix("amqp://").and_then(|rest| {
            let (login, rest) = rest.split_once('@')?;
            let (host, vhost) = rest.split_once('/')?;
            Some((login.split_once(':')?, host, vhost.replace("%2f", "/")))
        });
        let ((user, password), host, vhost) = parts
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "not amqp://USER:PASSWORD@HOST:PORT/VHOST"))?;
        let socket = TcpStream::connect(host)?;
        socket.set_nodelay(true)?;
        let mut raw = Raw { socket, input: vec![0; READ], begin: 0, end: 0 };
        raw.socket.write_all(b"AMQP\x00\x00\x09\x01")?;
        raw.await_method((10, 10))?;
        let login = format!("\0{user}\0{password}");
        let login = [&(login.len() as u32).to_be_bytes(), login.as_bytes()].concat();
        // So that the server sends acks of many, as it does to every other client.
        let capabilities = b"\x12publisher_confirmst\x01\x0abasic.nackt\x01";
        let table =
            [b"\x0ccapabilitiesF", &(capabilities.len() as u32).to_be_bytes()[..], capabilities].concat();
        let table = [&(table.len() as u32).to_be_bytes(), &table[..]].concat();
        raw.send(0, (10, 11), &[&table, &short("PLAIN"), &login, &short("en_US")])?;
        raw.await_method((10, 30))?;
        // 2,047 channels, frames of 128 KiB, no heartbeats.
        raw.send(0, (10, 31), &[&2047u16.to_be_bytes(), &(128u32 << 10).to_be_bytes(), &[0, 0]])?;
        raw.send(0, (10, 40), &[&short(&vhost), &[0, 0]])?;
        raw.await_method((10, 41))?;
        raw.call((20, 10), &[&[0]])?;
        Ok(raw)
    }

    fn send(&mut self, channel: u16, (class, id): (u16, u16), fields: &[&[u8]]) -> Result<()> {
        let (class, id) = (class.to_be_bytes(), id.to_be_bytes());
        let mut payload: Vec<&[u8]> = vec![&class, &id];
        payload.extend(fields);
        let mut out = Vec::new();
        put_frame(&mut out, METHOD, channel, &payload);
        self.socket.write_all(&out)
    }

    /// Sends a method and waits for its answer, whose number is the next.
    fn call(&mut self, (class, id): (u16, u16), fields: &[&[u8]]) -> Result<()> {
        self.send(CHANNEL, (class, id), fields)?;
        self.await_method((class, id + 1))
    }

    fn await_method(&mut self, wanted: (u16, u16)) -> Result<()> {
        let mut came = false;
        while !came {
            let mut refused = None;
            self.read(|kind, payload| {
                if kind == METHOD {
                    let found = method(payload);
                    came |= found == wanted;
                    if matches!(found, (10, 50) | (20, 40)) {
                        refused = Some(String::from_utf8_lossy(payload).into_owned());
                    }
                }
            })?;
            if let Some(why) = refused {
                return Err(Error::other(why));
            }
        }
        Ok(())
    }

    /// Reads once, and hands over the frames that are whole.
    fn read(&mut self, mut on: impl FnMut(u8, &[u8])) -> Result<()> {
        if self.end == self.input.len() {
            self.input.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        let read = self.socket.read(&mut self.input[self.end..])?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.end += read;
        while let [kind, _, _, a, b, c, d, rest @ ..] = &self.input[self.begin..self.end] {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            if rest.len() <= length {
                break;
            }
            if rest[length] != END {
                return Err(Error::other("a frame has no end"));
            }
            on(*kind, &rest[..length]);
            self.begin += length + EXTRA;
        }
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        }
        Ok(())
    }

    pub(super) fn delete_queue(&mut self, name: &str) -> Result<()> {
        self.call((50, 40), &[&[0, 0], &short(name), &[0]])
    }

    pub(super) fn declare_queue(&mut self, name: &str, kind: Kind) -> Result<()> {
        let durable = u8::from(kind != Kind::Transient) << 1;
        let arguments: &[u8] = match kind {
            Kind::Quorum => b"\0\0\0\x18\x0cx-queue-typeS\0\0\0\x06quorum",
            Kind::Transient | Kind::Durable => &[0; 4],
        };
        self.call((50, 10), &[&[0, 0], &short(name), &[durable], arguments])
    }

    pub(super) fn confirm_select(&mut self) -> Result<()> {
        self.call((85, 10), &[&[0]])
    }

    pub(super) fn close(mut self) -> Result<()> {
        self.send(0, (10, 50), &[&200u16.to_be_bytes(), &[0; 5]])?;
        self.await_method((10, 51))
    }

    /// Publishes `count` messages, all of them confirmed at the end.
    pub(super) fn publish(&mut self, queue: &str, size: usize, window: u64, count: u64) -> Result<()> {
        Publisher::new(queue, size, window).publish(self, count)
    }
}

/// A window's frames, encoded once.
struct Publisher {
    frames: Vec<u8>,
    /// Bytes of one message.
    message: usize,
    window: u64,
    sent: u64,
    confirmed: Confirmed,
}

impl Publisher {
    fn new(queue: &str, size: usize, window: u64) -> Publisher {
        let body = body(size);
        let mut message = Vec::new();
        put_frame(&mut message, METHOD, CHANNEL, &[&[0, 60, 0, 40, 0, 0], &[0], &short(queue), &[0]]);
        let size = (size as u64).to_be_bytes();
        // Delivery mode 2: persistent.
        put_frame(&mut message, HEADER, CHANNEL, &[&[0, 60, 0, 0], &size, &[0x10, 0, 2]]);
        put_frame(&mut message, BODY, CHANNEL, &[&body]);
        let frames = message.repeat(window as usize);
        Publisher { frames, message: message.len(), window, sent: 0, confirmed: Confirmed::default() }
    }

    fn publish(&mut self, raw: &mut Raw, count: u64) -> Result<()> {
        let until = self.sent + count;
        while self.confirmed.count() < until {
            let room = (self.confirmed.count() + self.window - self.sent).min(until - self.sent);
            if room > 0 {
                raw.socket.write_all(&self.frames[..room as usize * self.message])?;
                self.sent += room;
            }
            let confirmed = &mut self.confirmed;
            raw.read(|kind, payload| {
                if kind == METHOD && method(payload) == (BASIC, ACK) {
                    confirmed.add(tag(payload, 4), payload[12] != 0);
                }
            })?;
        }
        Ok(())
    }
}

/// How the floor acks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acks {
    /// A word for each delivery.
    Each,
    /// One for all that a read brought.
    Many,
}

struct Taker {
    acks: Acks,
    /// Bytes that the body under way still lacks.
    rest: usize,
    tag: u64,
    words: Vec<u8>,
}

impl Taker {
    fn start(raw: &mut Raw, acks: Acks) -> Result<Taker> {
        raw.call((60, 10), &[&[0; 4], &(WINDOW as u16).to_be_bytes(), &[0]])?;
        raw.send(CHANNEL, (60, 20), &[&[0, 0], &short(QUEUE), &short("floor"), &[0], &[0; 4]])?;
        Ok(Taker { acks, rest: 0, tag: 0, words: Vec::new() })
    }

    /// Takes and acks deliveries until so many have come since the start.
    fn take(&mut self, raw: &mut Raw, until: u64) -> Result<()> {
        while self.tag < until || self.rest > 0 {
            let Taker { acks, rest, tag: last, words } = self;
            let before = *last;
            let mut whole = before;
            raw.read(|kind, payload| match kind {
                METHOD if method(payload) == (BASIC, DELIVER) => {
                    *last = tag(payload, 5 + usize::from(payload[4]));
                    *rest = usize::MAX;
                }
                HEADER => *rest = tag(payload, 4) as usize,
                BODY => {
                    *rest -= payload.len();
                    if *rest == 0 {
                        whole = *last;
                        if *acks == Acks::Each {
                            put_ack(words, *last, false);
                        }
                    }
                }
                _ => {}
            })?;
            if *acks == Acks::Many && whole > before {
                put_ack(words, whole, true);
            }
            raw.socket.write_all(words)?;
            words.clear();
        }
        Ok(())
    }
}

/// Does the work, acking in this way.
pub(super) fn run(work: Work, acks: Acks) -> std::result::Result<Sample, Absent> {
    let address = work.prepare()?;
    measure(work, acks, &address).map_err(|error| format!("raw socket: {error}"))
}

fn measure(work: Work, acks: Acks, address: &str) -> Result<Sample> {
    let (warm, count) = (work.warm(), work.count);
    let publisher = |window| -> Result<_> {
        let mut raw = Raw::connect(address)?;
        raw.confirm_select()?;
        Ok((raw, Publisher::new(QUEUE, work.body, window)))
    };
    let taker = || -> Result<_> {
        let mut raw = Raw::connect(address)?;
        let taker = Taker::start(&mut raw, acks)?;
        Ok((raw, taker))
    };
    match work.act {
        Act::Publish { window } => {
            let (mut raw, mut publisher) = publisher(window)?;
            publisher.publish(&mut raw, warm)?;
            let meter = Meter::start();
            publisher.publish(&mut raw, count)?;
            Ok(meter.stop(count))
        }
        Act::SettleEach | Act::SettleMany => {
            let (mut raw, mut taker) = taker()?;
            taker.take(&mut raw, warm)?;
            let before = taker.tag;
            let meter = Meter::start();
            taker.take(&mut raw, warm + count)?;
            Ok(meter.stop(taker.tag - before))
        }
        Act::Both => {
            let (mut out, mut publisher) = publisher(WINDOW)?;
            let (mut back, mut taker) = taker()?;
            let mut both = |count: u64, until: u64| -> Result<()> {
                std::thread::scope(|scope| {
                    let publishing = scope.spawn(|| publisher.publish(&mut out, count));
                    taker.take(&mut back, until)?;
                    publishing.join().unwrap_or_else(|_| Err(Error::other("the publisher panicked")))
                })
            };
            both(warm, warm)?;
            let meter = Meter::start();
            both(count, warm + count)?;
            Ok(meter.stop(count))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confirms_are_counted_once_in_any_order() {
        let mut confirmed = Confirmed::default();
        for (tag, multiple, count) in [
            (1, false, 1),
            (4, false, 2),
            (5, false, 3),
            (3, true, 5),
            (2, true, 5),
            (9, false, 6),
            (9, true, 9),
        ] {
            confirmed.add(tag, multiple);
            assert_eq!(confirmed.count(), count, "after {tag} {multiple}");
        }
    }
}

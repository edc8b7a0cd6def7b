//! The floor: the stream protocol by hand on a blocking socket. A batch is encoded once and written as it is, chunks are
//! counted by their heads.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;

use super::{Act, BATCH, BODY, WINDOW, Work, body};
use crate::case::{Absent, Sample};
use crate::rabbitmq::work::Meter;

const DECLARE_PUBLISHER: u16 = 1;
const PUBLISH: u16 = 2;
const CONFIRM: u16 = 3;
const SUBSCRIBE: u16 = 7;
const DELIVER: u16 = 8;
const CREDIT: u16 = 9;
const CREATE: u16 = 13;
const DELETE: u16 = 14;
const PEER_PROPERTIES: u16 = 17;
const SASL_HANDSHAKE: u16 = 18;
const SASL_AUTHENTICATE: u16 = 19;
const TUNE: u16 = 20;
const OPEN: u16 = 21;
const ANSWER: u16 = 0x8000;

const OK: u16 = 1;
const EXISTS: u16 = 5;
const CHUNKS: u16 = 10;
const READ: usize = 1 << 20;

/// A connection.
pub(super) struct Raw {
    socket: TcpStream,
    input: Vec<u8>,
    begin: usize,
    end: usize,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

fn frame(key: u16, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    let len = (4 + content.len()) as u32;
    [&len.to_be_bytes()[..], &key.to_be_bytes(), &[0, 1], &content].concat()
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

impl Raw {
    /// Connects to `rabbitmq-stream://USER:PASSWORD@HOST:PORT/`, the default virtual host.
    pub(super) fn connect(url: &str) -> Result<Raw> {
        let parts = url.strip_prefix("rabbitmq-stream://").and_then(|rest| {
            let (login, rest) = rest.split_once('@')?;
            Some((login.split_once(':')?, rest.split('/').next()?))
        });
        let bad = || Error::new(ErrorKind::InvalidInput, "not rabbitmq-stream://USER:PASSWORD@HOST:PORT/");
        let ((user, password), host) = parts.ok_or_else(bad)?;
        let socket = TcpStream::connect(host)?;
        socket.set_nodelay(true)?;
        let mut raw = Raw { socket, input: vec![0; READ], begin: 0, end: 0 };
        raw.ask(PEER_PROPERTIES, &[&[0; 4]])?;
        raw.ask(SASL_HANDSHAKE, &[])?;
        let login = format!("\0{user}\0{password}");
        let login = [&text("PLAIN"), &(login.len() as u32).to_be_bytes()[..], login.as_bytes()].concat();
        // Two answers, which may come as one.
        raw.socket.write_all(&frame(SASL_AUTHENTICATE, &[&[0, 0, 0, 1], &login]))?;
        let tune = raw.until(TUNE)?;
        // The server's frames, no heartbeats.
        raw.socket.write_all(&frame(TUNE, &[&tune[4..8], &[0; 4]]))?;
        raw.ask(OPEN, &[&text("/")])?;
        Ok(raw)
    }

    /// Asks, and waits for the answer's code.
    fn ask(&mut self, key: u16, content: &[&[u8]]) -> Result<u16> {
        self.socket.write_all(&frame(key, &[&[0, 0, 0, 1], &content.concat()]))?;
        let answer = self.until(key | ANSWER)?;
        Ok(u16::from_be_bytes(number(&answer, 8)))
    }

    fn succeed(&mut self, key: u16, content: &[&[u8]]) -> Result<()> {
        match self.ask(key, content)? {
            OK => Ok(()),
            code => Err(Error::other(format!("command {key} is answered by {code}"))),
        }
    }

    /// The content, from the key on, of the next frame with this key.
    fn until(&mut self, wanted: u16) -> Result<Vec<u8>> {
        let mut found = None;
        while found.is_none() {
            self.receive(|content| {
                if u16::from_be_bytes(number(content, 0)) == wanted && found.is_none() {
                    found = Some(content.to_vec());
                }
            })?;
        }
        found.ok_or_else(|| Error::other("no answer"))
    }

    /// Reads once, and shows the frames that are whole.
    fn receive(&mut self, mut each: impl FnMut(&[u8])) -> Result<()> {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        } else if self.end == self.input.len() {
            self.input.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
            if self.end == self.input.len() {
                self.input.resize(2 * self.end, 0);
            }
        }
        let read = self.socket.read(&mut self.input[self.end..])?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.end += read;
        loop {
            let rest = &self.input[self.begin..self.end];
            let len = u32::from_be_bytes(number(rest, 0)) as usize;
            if rest.len() < 4 || rest.len() < 4 + len {
                return Ok(());
            }
            each(&rest[4..4 + len]);
            self.begin += 4 + len;
        }
    }

    /// Whether it was not there.
    pub(super) fn create(&mut self, stream: &str) -> Result<bool> {
        match self.ask(CREATE, &[&text(stream), &[0; 4]])? {
            OK => Ok(true),
            EXISTS => Ok(false),
            code => Err(Error::other(format!("`{stream}` is not made: {code}"))),
        }
    }

    pub(super) fn delete(&mut self, stream: &str) -> Result<()> {
        self.ask(DELETE, &[&text(stream)]).map(drop)
    }

    /// Publishes so many, with at most [`WINDOW`] batches unconfirmed.
    pub(super) fn publish(&mut self, stream: &str, entries: bool, count: u64) -> Result<()> {
        self.succeed(DECLARE_PUBLISHER, &[&[0], &text(""), &text(stream)])?;
        let batch = batch(entries);
        let ids = if entries { 1 } else { BATCH };
        let (mut sent, mut confirmed, total) = (0, 0, count / BATCH);
        while confirmed < total * ids {
            while sent < total && sent * ids < confirmed + WINDOW * ids {
                self.socket.write_all(&batch)?;
                sent += 1;
            }
            self.receive(|content| {
                if u16::from_be_bytes(number(content, 0)) == CONFIRM {
                    confirmed += u64::from(u32::from_be_bytes(number(content, 5)));
                }
            })?;
        }
        Ok(())
    }

    fn subscribe(&mut self, stream: &str) -> Result<()> {
        let from_first = 1_u16.to_be_bytes();
        self.succeed(SUBSCRIBE, &[&[0], &text(stream), &from_first, &CHUNKS.to_be_bytes()])
    }

    /// Reads chunks until so many messages more have come; `ahead` are those that came too early.
    fn consume(&mut self, count: u64, ahead: &mut u64) -> Result<()> {
        let credit = frame(CREDIT, &[&[0], &1_u16.to_be_bytes()]);
        while *ahead < count {
            let mut chunks = 0;
            self.receive(|content| {
                if u16::from_be_bytes(number(content, 0)) == DELIVER {
                    // Behind key, version and subscription: magic, kind, entries, messages.
                    *ahead += u64::from(u32::from_be_bytes(number(content, 5 + 4)));
                    chunks += 1;
                }
            })?;
            for _ in 0..chunks {
                self.socket.write_all(&credit)?;
            }
        }
        *ahead -= count;
        Ok(())
    }
}

/// One frame with all messages of a batch. Of a publisher without a name the ids may be the same ones each time.
fn batch(entries: bool) -> Vec<u8> {
    let body = body(BODY);
    let data = [&[0, 0x53, 0x75, 0xb0][..], &(BODY as u32).to_be_bytes(), &body].concat();
    let message = [&(data.len() as u32).to_be_bytes(), &data[..]].concat();
    let mut content = vec![0];
    if entries {
        let len = (message.len() * BATCH as usize) as u32;
        content.extend(1_u32.to_be_bytes());
        content.extend(0_u64.to_be_bytes());
        content.push(0x80);
        content.extend((BATCH as u16).to_be_bytes());
        content.extend([len.to_be_bytes(), len.to_be_bytes()].concat());
        (0..BATCH).for_each(|_| content.extend(&message));
    } else {
        content.extend((BATCH as u32).to_be_bytes());
        for id in 0..BATCH {
            content.extend(id.to_be_bytes());
            content.extend(&message);
        }
    }
    frame(PUBLISH, &[&content])
}

pub(super) fn run(work: Work) -> std::result::Result<Sample, Absent> {
    let place = work.prepare()?;
    let measure = || -> Result<Sample> {
        let mut raw = Raw::connect(&place.url)?;
        if work.act == Act::Consume {
            let mut ahead = 0;
            raw.subscribe(&place.stream)?;
            raw.consume(work.warm(), &mut ahead)?;
            let meter = Meter::start();
            let before = ahead;
            raw.consume(work.count, &mut ahead)?;
            return Ok(meter.stop(work.count + ahead - before));
        }
        let entries = work.act == Act::PublishEntries;
        raw.publish(&place.stream, entries, work.warm())?;
        let mut raw = Raw::connect(&place.url)?;
        let meter = Meter::start();
        raw.publish(&place.stream, entries, work.count)?;
        Ok(meter.stop(work.count))
    };
    measure().map_err(|error| error.to_string())
}

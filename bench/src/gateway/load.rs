//! The client and the upstream: threads with blocking sockets, which cost little beside the proxy.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use crate::case::Absent;
use crate::clock;

const BLOCK: usize = 256 << 10;
/// Bodies up to this are compared byte by byte; of longer ones the length, since comparing would be most of what is measured.
const COMPARED: u64 = 4 << 20;

/// The byte at a place of any body: no two places of a block and of its neighbour look alike for long.
fn byte(at: u64) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)) as u8
}

/// Wall time.
pub(super) struct Watch(std::time::Instant);

impl Watch {
    pub(super) fn start() -> Watch {
        Watch(clock::now())
    }
    pub(super) fn seconds(&self) -> f64 {
        (clock::now() - self.0).as_secs_f64()
    }
}

/// A server that answers with bodies: `/N` with N bytes, `/events/N` with N events, `/slow` slowly reads what is sent.
pub(super) struct Upstream {
    port: u16,
}

impl Upstream {
    /// `length` is that of the answer to `/`.
    pub(super) fn start(length: u64) -> Result<Upstream, Absent> {
        raise_limit();
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| format!("a port: {error}"))?;
        let port = listener.local_addr().map_err(|error| format!("a port: {error}"))?.port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = std::thread::Builder::new().stack_size(64 << 10);
                // A client that fails says so itself.
                let _ = serving.spawn(move || drop(answer(stream, length)));
            }
        });
        Ok(Upstream { port })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

/// Two thousand sockets for a thousand streams, and the proxies inherit it.
fn raise_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it cannot be raised the connections say so.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Reads a head; what follows it comes back with it.
fn head(stream: &mut impl Read) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok(Some((String::from_utf8_lossy(&bytes).into_owned(), rest)));
        }
        match stream.read(&mut part)? {
            0 => return Ok(None),
            read => bytes.extend_from_slice(&part[..read]),
        }
    }
}

fn length_of(head: &str) -> u64 {
    let field = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:").map(str::to_owned));
    field.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn answer(mut stream: TcpStream, default: u64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    while let Some((head, rest)) = head(&mut stream)? {
        let path = head.split(' ').nth(1).unwrap_or("/").to_owned();
        let slow = path == "/slow";
        read_body(&mut stream, &rest, length_of(&head), slow)?;
        if let Some(count) = path.strip_prefix("/events/").and_then(|count| count.parse::<u64>().ok()) {
            stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
            )?;
            let start = clock::now();
            for number in 0..count {
                while clock::now() < start + Duration::from_millis(number) {
                    clock::pause(Duration::from_micros(50));
                }
                let event = format!("data: {}\n\n", nanos());
                stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())?;
            }
            stream.write_all(b"0\r\n\r\n")?;
            continue;
        }
        let length = match path[1..].parse() {
            Ok(length) => length,
            Err(_) if head.starts_with("GET") => default,
            Err(_) => 0,
        };
        write_body(
            &mut stream,
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes(),
            length,
        )?;
    }
    Ok(())
}

/// Reads what is left of a body of this length behind its first bytes.
fn read_body(stream: &mut TcpStream, first: &[u8], length: u64, slow: bool) -> io::Result<()> {
    let mut block = vec![0; if slow { 4096 } else { BLOCK }];
    let mut at = 0;
    let mut arrived = |bytes: &[u8]| {
        let same = length > COMPARED || (at..).zip(bytes).all(|(at, found)| byte(at) == *found);
        at += bytes.len() as u64;
        if same { Ok(length - at) } else { Err(io::Error::other("the body is not the one that was sent")) }
    };
    let mut left = arrived(first)?;
    while left > 0 {
        if slow {
            clock::pause(Duration::from_millis(200));
        }
        let want = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        left = match stream.read(&mut block[..want])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => arrived(&block[..read])?,
        };
    }
    Ok(())
}

/// Writes a head and so many bytes, the first of them together.
fn write_body(stream: &mut impl Write, mut head: Vec<u8>, length: u64) -> io::Result<()> {
    let compared = length <= COMPARED;
    let first = length.min(BLOCK as u64);
    head.extend((0..first).map(|at| if compared { byte(at) } else { b'x' }));
    stream.write_all(&head)?;
    let mut at = first;
    let mut block = vec![b'x'; if at < length { BLOCK } else { 0 }];
    while at < length {
        let part = (length - at).min(BLOCK as u64);
        if compared {
            block.iter_mut().zip(at..).for_each(|(place, at)| *place = byte(at));
        }
        stream.write_all(&block[..part as usize])?;
        at += part;
    }
    Ok(())
}

/// The monotonic clock, which all threads of a process share.
fn nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

pub(super) mod client {
    use super::*;

    fn connect(port: u16) -> Result<TcpStream, Absent> {
        let stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(|error| format!("the proxy: {error}"))?;
        stream.set_nodelay(true).map_err(|error| format!("the proxy: {error}"))?;
        Ok(stream)
    }

    fn failed(error: io::Error) -> Absent {
        format!("through the proxy: {error}")
    }

    /// Reads a whole answer with a length and checks that all of it came.
    fn whole(stream: &mut TcpStream, expected: u64) -> Result<(), Absent> {
        let (head, rest) = head(stream).map_err(failed)?.ok_or("the proxy closed")?;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(length_of(&head), expected, "{head}");
        read_body(stream, &rest, expected, false).map_err(failed)
    }

    /// One body of so many bytes, down or up.
    pub(crate) fn body(port: u16, bytes: u64, up: bool) -> Result<(), Absent> {
        let mut stream = connect(port)?;
        if up {
            let head = format!("POST /0 HTTP/1.1\r\nHost: b\r\nContent-Length: {bytes}\r\n\r\n");
            write_body(&mut stream, head.into_bytes(), bytes).map_err(failed)?;
            whole(&mut stream, 0)
        } else {
            stream
                .write_all(format!("GET /{bytes} HTTP/1.1\r\nHost: b\r\n\r\n").as_bytes())
                .map_err(failed)?;
            whole(&mut stream, bytes)
        }
    }

    /// So many small answers over so many connections, each with one request at a time, from one thread.
    pub(crate) fn requests(port: u16, connections: usize, count: u64) -> Result<(), Absent> {
        let mut streams = (0..connections).map(|_| connect(port)).collect::<Result<Vec<_>, _>>()?;
        let mut asked = 0;
        while asked < count {
            for stream in &mut streams {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n").map_err(failed)?;
            }
            for stream in &mut streams {
                whole(stream, 4096)?;
            }
            asked += connections as u64;
        }
        Ok(())
    }

    /// How long each event was on its way, in microseconds.
    pub(crate) fn events(port: u16, count: u64) -> Result<Vec<u64>, Absent> {
        let mut stream = connect(port)?;
        stream
            .write_all(format!("GET /events/{count} HTTP/1.1\r\nHost: b\r\n\r\n").as_bytes())
            .map_err(failed)?;
        let (_, mut text) = head(&mut stream).map_err(failed)?.ok_or("the proxy closed")?;
        let mut micros = Vec::new();
        let mut part = [0; 65536];
        while (micros.len() as u64) < count {
            while let Some(end) = text.windows(2).position(|two| two == b"\n\n") {
                let event = String::from_utf8_lossy(&text[..end]).into_owned();
                let sent = event.rsplit("data: ").next().and_then(|text| text.parse::<u64>().ok());
                micros.push((nanos() - sent.ok_or("an event without its time")?) / 1000);
                text.drain(..end + 2);
            }
            if (micros.len() as u64) < count {
                let read = stream.read(&mut part).map_err(failed)?;
                assert!(read > 0, "the events ended after {} of {count}", micros.len());
                text.extend_from_slice(&part[..read]);
            }
        }
        // The first ones meet connections that are being made.
        Ok(micros.split_off(micros.len() / 10))
    }

    /// Begins so many bodies whose receivers take 4 KB now and then, and lets them go on for some seconds.
    pub(crate) fn slow(port: u16, connections: usize, bytes: u64, up: bool) -> Result<(), Absent> {
        let mut streams = Vec::new();
        for _ in 0..connections {
            let mut stream = connect(port)?;
            if up {
                let _ = std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
                    let head = format!("POST /slow HTTP/1.1\r\nHost: b\r\nContent-Length: {bytes}\r\n\r\n");
                    // It ends with the process.
                    let _ = stream.write_all(head.as_bytes());
                    let block = [b'x'; 16 << 10];
                    for _ in 0..bytes / block.len() as u64 {
                        if stream.write_all(&block).is_err() {
                            return;
                        }
                    }
                });
            } else {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n").map_err(failed)?;
                streams.push(stream);
            }
        }
        let watch = Watch::start();
        let mut block = [0; 4096];
        while watch.seconds() < 8.0 {
            for stream in &mut streams {
                let read = stream.read(&mut block).map_err(failed)?;
                assert!(read > 0, "a slow answer ended early");
            }
            clock::pause(Duration::from_millis(200));
        }
        Ok(())
    }
}

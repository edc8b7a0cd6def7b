//! A connection that knows what HTTP/2 has written over it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::duplex::Duplex;
use crate::report::Refusal;
use crate::tally::Tally;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
/// Codes that put the blame on the peer (RFC 9113, 7): PROTOCOL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, FRAME_SIZE_ERROR,
/// REFUSED_STREAM, COMPRESSION_ERROR, ENHANCE_YOUR_CALM.
const FAULTS: [u32; 7] = [1, 3, 4, 6, 7, 9, 11];

/// A client's connection. What ends a stream or all of it for the client's fault is counted as refused.
pub(super) struct Watched {
    stream: Box<dyn Duplex>,
    frame: FrameAt,
    answers: Arc<AtomicU64>,
    tally: Arc<Tally>,
}

impl Watched {
    /// The connection, and how many bytes of answers were written, with heads and framing. Pings and the like are none: whoever only
    /// answers those takes nothing.
    pub(super) fn new(tally: &Arc<Tally>, stream: Box<dyn Duplex>) -> (Watched, Arc<AtomicU64>) {
        let answers = Arc::<AtomicU64>::default();
        let frame = FrameAt::default();
        (Watched { stream, frame, answers: answers.clone(), tally: tally.clone() }, answers)
    }

    fn wrote(&mut self, bytes: &[u8]) {
        let Passed { answers, faults } = self.frame.pass(bytes);
        if answers > 0 {
            self.answers.fetch_add(answers, Ordering::Relaxed);
        }
        for _ in 0..faults {
            self.tally.refused(Refusal::Protocol);
        }
    }
}

/// What was among some bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Passed {
    /// Bytes of answers.
    answers: u64,
    /// Ends for a fault of the peer's.
    faults: u64,
}

/// Where in which frame the next byte stands (RFC 9113, 4.1).
#[derive(Debug, Default)]
struct FrameAt {
    head: [u8; 9],
    /// Bytes of the head that were seen; with all of them it is the payload's turn.
    seen: usize,
    /// Bytes of the payload that were not.
    left: usize,
    /// Bytes of the payload until the end of its code, if it has one.
    code_left: usize,
    code: u32,
}

impl FrameAt {
    fn pass(&mut self, mut bytes: &[u8]) -> Passed {
        let mut passed = Passed::default();
        while !bytes.is_empty() {
            let in_head = self.seen < self.head.len();
            let room = if in_head { self.head.len() - self.seen } else { self.left };
            let (part, rest) = bytes.split_at(room.min(bytes.len()));
            bytes = rest;
            if in_head {
                self.head[self.seen..self.seen + part.len()].copy_from_slice(part);
                self.seen += part.len();
                if self.seen < self.head.len() {
                    return passed;
                }
                self.begin();
            } else {
                self.left -= part.len();
                passed.faults += u64::from(self.is_fault(part));
            }
            if matches!(self.head[3], DATA | HEADERS | CONTINUATION) {
                passed.answers += part.len() as u64;
            }
            if self.left == 0 {
                self.seen = 0;
            }
        }
        passed
    }

    fn begin(&mut self) {
        self.left = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
        self.code = 0;
        self.code_left = match self.head[3] {
            RST_STREAM => 4,
            // Behind the number of the last stream.
            GOAWAY => 8,
            _ => 0,
        };
    }

    /// Whether this part of the payload completes a code that says so.
    fn is_fault(&mut self, part: &[u8]) -> bool {
        let of_code = &part[..self.code_left.min(part.len())];
        if of_code.is_empty() {
            return false;
        }
        self.code = of_code.iter().fold(self.code, |code, byte| code << 8 | u32::from(*byte));
        self.code_left -= of_code.len();
        self.code_left == 0 && FAULTS.contains(&self.code)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = ready!(Pin::new(&mut me.stream).poll_write(cx, bytes))?;
        me.wrote(&bytes[..written]);
        Poll::Ready(Ok(written))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = ready!(Pin::new(&mut me.stream).poll_write_vectored(cx, slices))?;
        let mut left = written;
        for slice in slices {
            let part = &slice[..left.min(slice.len())];
            left -= part.len();
            me.wrote(part);
        }
        Poll::Ready(Ok(written))
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_faults_are_counted_however_the_frames_are_cut() {
        let frame = |kind: u8, payload: &[u8]| {
            let length = (payload.len() as u32).to_be_bytes();
            [&length[1..], &[kind, 0, 0, 0, 0, 1], payload].concat()
        };
        let bytes = [
            frame(4, &[0; 12]),
            frame(HEADERS, b"head"),
            frame(DATA, &[7; 300]),
            frame(6, &[0; 8]),
            frame(DATA, b""),
            frame(RST_STREAM, &[0, 0, 0, 8]),
            frame(RST_STREAM, &[0, 0, 0, 1]),
            frame(GOAWAY, &[0, 0, 0, 1, 0, 0, 0, 0]),
            frame(GOAWAY, &[0, 0, 0, 1, 0, 0, 0, 11, b'w', b'h', b'y']),
        ]
        .concat();
        for cut in 1..bytes.len() {
            let (mut at, mut sum) = (FrameAt::default(), Passed::default());
            for part in bytes.chunks(cut) {
                let passed = at.pass(part);
                sum.answers += passed.answers;
                sum.faults += passed.faults;
            }
            // Of a head that is cut only the last part counts.
            let heads = if cut >= bytes.len() - 1 { 3 * 9 } else { 0 };
            assert!((heads + 304..=3 * 9 + 304).contains(&sum.answers), "{sum:?}, cut at {cut}");
            assert_eq!(sum.faults, 2, "cut at {cut}");
        }
    }
}

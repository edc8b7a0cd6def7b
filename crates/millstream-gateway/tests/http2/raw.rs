//! A client of HTTP/2 that writes raw frames.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
/// `GET / http h`, by the static table but for the authority.
pub(crate) const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'h'];
pub(crate) const POST: &[u8] = &[0x83, 0x86, 0x84, 0x41, 1, b'h'];

pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const FRAME_SIZE_ERROR: u32 = 6;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header that is not in any table.
pub(crate) fn literal(name: &str, value: &[u8]) -> Vec<u8> {
    assert!(name.len() < 127 && value.len() < 127);
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value].concat()
}

/// What the gateway says to it, of what matters here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The connection ends, with this code.
    Goaway(u32),
    /// The stream is reset, with this code.
    Reset(u32),
    /// The stream is answered.
    Answered,
    /// The connection ended without a word.
    Closed,
}

/// A client that writes frames.
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    pub(crate) async fn greeted(to: SocketAddr) -> Raw {
        let mut raw = Raw(within(TcpStream::connect(to)).await.expect("connected"));
        // What waits for an acknowledgement is nothing to wait for, to a clock that stands.
        raw.0.set_nodelay(true).expect("a socket");
        let both = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat();
        raw.send(&[PREFACE, &both].concat()).await;
        raw
    }

    /// Sends, unless the gateway has closed already.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        within(self.0.write_all(bytes)).await.is_ok()
    }

    pub(crate) async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        within(self.next_ever()).await
    }

    /// The same, however long it takes.
    pub(crate) async fn next_ever(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }

    /// The first that says how it ends.
    pub(crate) async fn hears(&mut self) -> Heard {
        let code = |payload: &[u8]| u32::from_be_bytes(payload.try_into().expect("four bytes"));
        while let Some((kind, _, _, payload)) = self.next().await {
            match kind {
                GOAWAY => return Heard::Goaway(code(&payload[4..8])),
                RST_STREAM => return Heard::Reset(code(&payload)),
                HEADERS => return Heard::Answered,
                _ => {}
            }
        }
        Heard::Closed
    }
}

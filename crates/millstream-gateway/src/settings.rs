//! What can be set: plain data, with units, defaults and what the worst case costs.

use std::time::Duration;

use crate::pool::PoolSettings;

/// The least that a chunk size may be, in bytes.
pub const CHUNK_MIN: usize = 512;
/// The most that a chunk size may be, in bytes: the largest tier of the pool.
pub const CHUNK_MAX: usize = 1 << 20;

/// The settings of a gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The most bytes of one read of a request body, from [`CHUNK_MIN`] to [`CHUNK_MAX`]. A stream reads at most 16 KiB at
    /// a time until 4 MiB of it have gone, and again after its receiver was slow (took nothing for 10 ms).
    pub request_chunk: usize,
    /// The same of a response body.
    pub response_chunk: usize,
    /// The buffers.
    pub pool: PoolSettings,
    /// Bytes of buffers of 16 KiB that are made when the gateway begins to listen, so that the first requests find them. Those that
    /// are not needed are freed like any others.
    pub pool_warm: u64,
    /// How often idle buffers that were not needed are freed.
    pub pool_trim: Duration,
    /// What is refused for its size or number.
    pub limits: Limits,
    /// What is given up for its duration.
    pub timeouts: Timeouts,
    /// What a client's half-closed connection means.
    pub half_close: HalfClose,
    /// Which headers tell an upstream about the client.
    pub forwarded: Forwarded,
    /// Idle connections that are kept to each upstream.
    pub upstream_idle_connections: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            request_chunk: 512 << 10,
            response_chunk: 512 << 10,
            pool: PoolSettings::default(),
            pool_warm: 0,
            pool_trim: Duration::from_secs(30),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            half_close: HalfClose::Cancel,
            forwarded: Forwarded::Append,
            upstream_idle_connections: 256,
        }
    }
}

/// Sizes and numbers beyond which requests are refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Bytes of a head; more is answered 431.
    pub header_bytes: usize,
    /// Bytes of a request target; more is answered 414.
    pub target_bytes: usize,
    /// Bytes of a request body; more is answered 413, or ends the exchange where it shows late.
    pub request_body_bytes: u64,
    /// Connections from clients at a time; more wait in the system's backlog.
    pub connections: usize,
    /// Streams of one HTTP/2 connection at a time. Each may hold 128 KiB of a request body that nobody reads.
    pub streams: u32,
    /// Requests a second that one client address may make on average; more is answered 429. `None`: as many as it likes.
    pub client_rate: Option<u32>,
    /// Requests that one client address may make at once within its rate.
    pub client_burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            header_bytes: 64 << 10,
            target_bytes: 8 << 10,
            request_body_bytes: u64::MAX,
            connections: 10_000,
            streams: 100,
            client_rate: None,
            client_burst: 20,
        }
    }
}

/// How long things may take.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeouts {
    /// Connecting to an upstream, TLS included; more is answered 504.
    pub connect: Duration,
    /// A request head, from its first byte to its last; more is answered 408.
    pub header: Duration,
    /// How long a connection may wait for its next request, or a new one for its first.
    pub keep_alive: Duration,
    /// The head of a response, from the end of the request; more is answered 504.
    pub response: Duration,
    /// How long a body may make no progress: nothing comes, or nothing is taken.
    pub idle: Duration,
    /// A whole exchange. `None`: as long as it makes progress.
    pub total: Option<Duration>,
    /// How long a tunnel may be silent in one direction after an upgrade.
    pub tunnel: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(5),
            header: Duration::from_secs(10),
            keep_alive: Duration::from_secs(75),
            response: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            total: None,
            tunnel: Duration::from_secs(3600),
        }
    }
}

/// What it means that a client closes its sending side after its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfClose {
    /// The client is gone: its request is cancelled at once. A closed connection and a half-closed one look alike until
    /// something is sent, and almost every client that closes is gone.
    Cancel,
    /// The client still waits for the answer.
    Allow,
}

/// Which headers tell an upstream about the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// `Forwarded`, `X-Forwarded-For`, `-Proto` and `-Host`, after what the client sent: for a gateway behind another proxy.
    Append,
    /// The same, instead of what the client sent: for a gateway at the border, where clients could lie.
    Replace,
    /// None, and what the client sent goes through.
    Off,
}

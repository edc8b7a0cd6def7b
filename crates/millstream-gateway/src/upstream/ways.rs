//! Connections to a server: those that are kept, those that requests share, and new ones.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::Upstream;
use crate::gateway::Shared;
use crate::http1::io::{Connection, Idles, ReadSide, WriteSide};
use crate::http2::{self, Requests};
use crate::settings::Settings;

/// What requests share.
pub(super) struct Joint {
    /// Whether the server speaks HTTP/2, as far as is known.
    pub(super) spoken: Option<bool>,
    pub(super) connections: Vec<Joined>,
    /// How many there have been.
    pub(super) made: u64,
}

/// A connection with as many streams as the server allows.
pub(super) struct Joined {
    pub(super) requests: Requests,
    /// Which of the server's connections this is, from 1.
    number: u64,
    /// Since when nobody was seen to use it.
    pub(super) unused: Option<Instant>,
}

pub(super) struct Idle {
    read: ReadSide,
    write: WriteSide,
    since: Instant,
}

impl Idle {
    /// Whether it is open, not too old, and nothing came of it. What came belongs to no answer.
    pub(super) fn is_well(&mut self, shared: &Shared) -> bool {
        let idles = self.read.idles();
        if idles == Idles::Unasked {
            shared.tally.upstream_excess();
        }
        idles == Idles::Well && self.since.elapsed() < shared.settings.timeouts.keep_alive
    }
}

/// A way to ask an upstream.
pub(crate) enum Way {
    Http1(Connected),
    Http2 {
        requests: Requests,
        /// It was there before this request.
        reused: bool,
        /// How many the server has had that requests share; 0 for one that only this request has.
        number: u64,
    },
    /// Over HTTP/2, for a WebSocket and nothing else.
    WebSocket(Requests),
}

/// A connection to an upstream in somebody's hands.
pub(crate) struct Connected {
    pub(crate) read: ReadSide,
    pub(crate) write: WriteSide,
    /// It has served a request before, so that the server may be about to close it.
    pub(crate) reused: bool,
}

impl Upstream {
    /// A way to ask it: a connection that is there, or a new one. `stale` is how many connections there had been when one closed on a
    /// request, or 0: then none that was idle is given, nor one of those.
    pub(crate) async fn way(&self, shared: &Arc<Shared>, stale: Option<u64>) -> io::Result<Way> {
        while let Some(mut idle) = if stale.is_some() { None } else { self.lasting.idle.lock().pop() } {
            if idle.is_well(shared) {
                self.tally.reused.fetch_add(1, Ordering::Relaxed);
                return Ok(Way::Http1(Connected { read: idle.read, write: idle.write, reused: true }));
            }
        }
        if let Some(way) = self.join(stale) {
            return Ok(way);
        }
        self.in_time(shared, self.join_or_connect(shared, stale)).await
    }

    /// The same for a WebSocket. Over HTTP/2 it gets a connection of its own, because it stays for long: its stream would take from
    /// what the server allows to all streams of one.
    pub(crate) async fn way_for_websocket(
        &self,
        shared: &Arc<Shared>,
        stale: Option<u64>,
    ) -> io::Result<Way> {
        let patience = shared.settings.timeouts.connect;
        if self.is_http1() {
            return self.way(shared, stale).await;
        }
        let carries = match self.anyone(|_| true) {
            Some(there) => there.carries_websockets(patience).await,
            None => true,
        };
        if !carries {
            return self.way(shared, stale).await;
        }
        match self.in_time(shared, self.make(shared)).await? {
            Way::Http2 { requests, .. } if requests.carries_websockets(patience).await => {
                Ok(Way::WebSocket(requests))
            }
            // What is of no use for this serves all other requests.
            way => Ok(self.share(way)),
        }
    }

    /// Whether it is known that each request needs a connection of its own.
    fn is_http1(&self) -> bool {
        self.lasting.joint.lock().spoken == Some(false)
    }

    /// A connection, if it is there soon enough.
    async fn in_time(
        &self,
        shared: &Shared,
        connecting: impl Future<Output = io::Result<Way>>,
    ) -> io::Result<Way> {
        let way = timeout(shared.settings.timeouts.connect, connecting).await;
        let way = way.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if way.is_err() {
            self.tally.failed.fetch_add(1, Ordering::Relaxed);
        }
        way
    }

    async fn make(&self, shared: &Arc<Shared>) -> io::Result<Way> {
        let way = self.connect(shared).await?;
        self.tally.connected.fetch_add(1, Ordering::Relaxed);
        Ok(way)
    }

    /// A connection that requests share and that has room, if one is there that came after so many.
    fn join(&self, stale: Option<u64>) -> Option<Way> {
        let mut joint = self.lasting.joint.lock();
        joint.connections.retain(|one| one.requests.is_ready());
        let number = joint.made;
        let fit = |one: &&mut Joined| stale.is_none_or(|stale| one.number > stale) && one.requests.has_room();
        let found = joint.connections.iter_mut().find(fit)?;
        found.unused = None;
        self.tally.reused.fetch_add(1, Ordering::Relaxed);
        Some(Way::Http2 { requests: found.requests.clone(), reused: true, number })
    }

    /// One of the connections that requests share and that fits.
    fn anyone(&self, fits: impl Fn(&Requests) -> bool) -> Option<Requests> {
        let joint = self.lasting.joint.lock();
        let mut ready =
            joint.connections.iter().map(|one| &one.requests).filter(|requests| requests.is_ready());
        ready.find(|requests| fits(requests)).cloned()
    }

    async fn join_or_connect(&self, shared: &Arc<Shared>, stale: Option<u64>) -> io::Result<Way> {
        let mut turn = None;
        if !self.is_http1() {
            turn = Some(self.lasting.connecting.lock().await);
            if let Some(way) = self.join(stale) {
                return Ok(way);
            }
        }
        // The one before may have found that nothing can be shared.
        let _turn = turn.filter(|_| !self.is_http1());
        Ok(self.share(self.make(shared).await?))
    }

    /// Has other requests use this new connection, too, if they can.
    fn share(&self, mut way: Way) -> Way {
        let mut joint = self.lasting.joint.lock();
        joint.spoken = Some(matches!(way, Way::Http2 { .. }));
        if let Way::Http2 { requests, number, .. } = &mut way {
            joint.made += 1;
            *number = joint.made;
            joint.connections.push(Joined { requests: requests.clone(), number: *number, unused: None });
        }
        way
    }

    /// A way to ask whether it is well: a connection that requests share, or one of its own, which is not counted.
    pub(crate) async fn probe(&self, shared: &Arc<Shared>) -> io::Result<Way> {
        match self.anyone(Requests::has_room) {
            Some(requests) => Ok(Way::Http2 { requests, reused: true, number: 0 }),
            None => self.connect(shared).await,
        }
    }

    async fn connect(&self, shared: &Arc<Shared>) -> io::Result<Way> {
        let stream = TcpStream::connect((self.url.host.as_str(), self.url.port)).await?;
        stream.set_nodelay(true)?;
        let mut http2 = self.url.http2;
        let connection = match &shared.upstream_tls {
            Some(tls) if self.url.tls => {
                let name = ServerName::try_from(self.url.host.clone()).map_err(io::Error::other)?;
                let stream = TlsConnector::from(tls.clone()).connect(name, stream).await?;
                http2 |= stream.get_ref().1.alpn_protocol() == Some(b"h2");
                Connection::Other(Box::new(stream))
            }
            _ => Connection::Tcp(stream),
        };
        if http2 {
            let stream = match connection {
                Connection::Tcp(stream) => Box::new(stream),
                Connection::Other(stream) => stream,
            };
            let requests = http2::connect(shared, stream).await.map_err(io::Error::other)?;
            return Ok(Way::Http2 { requests, reused: false, number: 0 });
        }
        let (read, write) = connection.split(&shared.pool);
        Ok(Way::Http1(Connected { read, write, reused: false }))
    }

    /// Keeps a connection for the next request.
    pub(crate) fn keep(&self, connected: Connected, settings: &Settings) {
        let mut idle = self.lasting.idle.lock();
        if !self.lasting.gone.load(Ordering::Relaxed) && idle.len() < settings.upstream_idle_connections {
            idle.push(Idle { read: connected.read, write: connected.write, since: Instant::now() });
        }
    }
}

//! A client's HTTP/1 connection: one exchange after the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Method, StatusCode, Version};
use tokio::time::timeout;

use crate::account::Tale;
use crate::client::Client;
use crate::current::Current;
use crate::exchange::{Asked, Ended, exchange};
use crate::gateway::Shared;
use crate::head::{Framing, HeadError};
use crate::headers::Peer;
use crate::http1::decoder::Decoder;
use crate::http1::head::request;
use crate::http1::io::{Connection, NoHead, ReadSide, SMALL, WriteSide, unsplit};
use crate::http2;
use crate::meter::{Direction, Meter, StreamOutcome};
use crate::patience::within;
use crate::pump::{Rules, Sink, Source, pump};
use crate::report::{ExchangeReport, Refusal};
use crate::under_way::Entered;
use crate::upstream::Connected;

/// How long a connection may linger so that its client can read the last answer.
const LINGER: Duration = Duration::from_secs(2);
/// The most bytes that are read and thrown away so that a client can read its last answer.
const LINGER_BYTES: usize = 1 << 20;

/// What a client that knows that HTTP/2 is spoken here begins with, up to what looks like the end of a head (RFC 9113, 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// Serves a connection to its end, each request by what is in force when it begins; `shared` is what was last.
pub(crate) async fn serve(
    current: &Arc<Current>,
    mut shared: Arc<Shared>,
    connection: Connection,
    peer: Peer,
) {
    let (mut read, mut write) = connection.split(&shared.pool);
    let slot = Entered::new(&shared.tally, &peer, 1);
    loop {
        // Between requests the connection holds no buffer, and a drain ends it.
        let next = tokio::select! {
            biased;
            ready = within(shared.settings.timeouts.keep_alive, read.ready(SMALL)) => ready,
            () = shared.draining.cancelled() => return,
        };
        if !matches!(next, Ok(Ok(true))) {
            return;
        }
        current.renew(&mut shared);
        let shared = &shared;
        let head =
            within(shared.settings.timeouts.header, read.head(shared.settings.limits.header_bytes)).await;
        let bytes = match head {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(NoHead::Closed | NoHead::Broken)) => return,
            Ok(Err(NoHead::Refused(error))) => return refuse(shared, read, write, &peer, Some(error)).await,
            Err(_) => return refuse(shared, read, write, &peer, None).await,
        };
        if bytes == HTTP2_PREFACE {
            drop(slot);
            let stream = unsplit(read, write, bytes);
            return http2::serve(current, shared.clone(), stream, peer).await;
        }
        let head = match request(&bytes, shared.settings.limits.target_bytes) {
            Ok(head) => head,
            Err(error) => return refuse(shared, read, write, &peer, Some(error)).await,
        };
        let asked = Box::new(Asked {
            source: Source::Wire { read: &mut read, decoder: Decoder::new(head.framing) },
            method: head.method.clone(),
            target: head.target,
            version: head.version,
            headers: head.headers,
            framing: head.framing,
            may_switch: head.framing == Framing::None,
            peer: peer.clone(),
        });
        let keep_alive = head.keep_alive && !shared.draining.is_cancelled();
        let mut to =
            Client::Wire { write: &mut write, method: head.method, version: head.version, keep_alive };
        let (ended, tale) = exchange(shared, &slot, asked, &mut to).await;
        match ended {
            Ended::Keep => {}
            Ended::Close => return linger(read, write).await,
            Ended::Reset => return write.reset(),
            Ended::Tunnel(up, _in_flight) => return tunnel(shared, read, write, *up, tale).await,
            Ended::Handed(offer) => {
                return offer.run(shared, unsplit(read, write, Bytes::new()), tale).await;
            }
        }
    }
}

/// Answers a head that cannot be served, or did not come in time, and closes.
async fn refuse(
    shared: &Shared,
    read: ReadSide,
    mut write: WriteSide,
    peer: &Peer,
    error: Option<HeadError>,
) {
    let (status, refusal, text) = match error {
        None => (
            StatusCode::REQUEST_TIMEOUT,
            Refusal::Timeout,
            "the request's head did not come in time\n".to_owned(),
        ),
        Some(error) => (error.status(), error.refusal(), format!("{error}\n")),
    };
    shared.tally.refused(refusal);
    shared.tell(&ExchangeReport {
        status: Some(status),
        failure: Some(text.trim_end().to_owned()),
        ..ExchangeReport::of(peer.address)
    });
    let mut client =
        Client::Wire { write: &mut write, method: Method::GET, version: Version::HTTP_11, keep_alive: false };
    client.answer(status, HeaderMap::new(), &text, shared.settings.timeouts.idle).await;
    linger(read, write).await;
}

/// Closes so that the client can read what was written: closing while it still sends would reset the connection, and the
/// answer would be lost on its side (RFC 9112, 9.6).
async fn linger(mut read: ReadSide, mut write: WriteSide) {
    let close = async {
        if write.shutdown().await.is_err() {
            return;
        }
        let mut left = LINGER_BYTES;
        while let Ok(Some(chunk)) = read.fill(SMALL).await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                return;
            }
        }
    };
    // Whoever is still sending after that, or has not taken the end of TLS, is not reading.
    let _ = timeout(LINGER, close).await;
}

/// Moves bytes both ways until both sides have closed, or one fails.
pub(crate) async fn tunnel(
    shared: &Shared,
    mut read: ReadSide,
    mut write: WriteSide,
    up: Connected,
    mut tale: Option<Tale>,
) {
    let Connected { read: mut up_read, write: mut up_write, .. } = up;
    let settings = &shared.settings;
    let rules = |chunk| Rules { chunk, bytes_max: u64::MAX, idle: settings.timeouts.tunnel, client: None };
    let sums = &shared.tally.tunnels;
    let slot = tale.as_ref().map(Tale::slot);
    let mut sent = Meter::start(Direction::Request, &sums.request, slot);
    let mut got = Meter::start(Direction::Response, &sums.response, slot);
    let there = one_way(&mut read, &mut up_write, &mut sent, rules(settings.request_chunk));
    let back = one_way(&mut up_read, &mut write, &mut got, rules(settings.response_chunk));
    // An error in one direction ends both.
    let _ = tokio::try_join!(there, back);
    if let Some(tale) = &mut tale {
        // What has ended already stays as it did.
        tale.streams(sent.end(StreamOutcome::Cancelled), got.end(StreamOutcome::Cancelled));
    }
}

async fn one_way(
    read: &mut ReadSide,
    write: &mut WriteSide,
    meter: &mut Meter,
    rules: Rules,
) -> Result<(), ()> {
    let moved = {
        let mut from = Source::Wire { read, decoder: Decoder::new(Framing::UntilClose) };
        let mut to = Sink::Wire { write: &mut *write, framing: Framing::UntilClose };
        pump(&mut from, &mut to, meter, rules).await
    };
    meter.end(moved.as_ref().err().map_or(StreamOutcome::Complete, |broken| broken.outcome()));
    moved.map_err(drop)?;
    // TLS has an end of its own, which must be taken, too.
    timeout(rules.idle, write.shutdown()).await.map_err(drop)?.map_err(drop)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use tokio::time::Instant;

    use super::*;
    use crate::meter::Sums;
    use crate::pool::{BufferPool, PoolSettings};

    /// A connection at its end whose own end nobody takes, as TLS is when the peer reads nothing.
    struct Stuck;

    impl AsyncRead for Stuck {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Stuck {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    fn stuck() -> (ReadSide, WriteSide) {
        Connection::Other(Box::new(Stuck)).split(&BufferPool::new(PoolSettings::default()))
    }

    /// The bytes of what a function gives.
    fn bytes_of<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// A future has room for what it was given, and once more for what it gives on: what is large is given in a box.
    #[test]
    fn a_connection_that_waits_takes_little_memory() {
        let connection =
            bytes_of(|(current, shared), connection, peer| serve(current, shared, connection, peer));
        let exchange = bytes_of(|(shared, slot), asked: Box<Asked<'static>>, client| {
            exchange(shared, slot, asked, client)
        });
        assert!(connection <= 9 << 10, "{connection} bytes");
        assert!(exchange <= 8 << 10, "{exchange} bytes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_end_is_not_taken_lingers_no_longer_than_any_other() {
        let started = Instant::now();
        let (read, write) = stuck();
        timeout(10 * LINGER, linger(read, write)).await.expect("in time");
        assert!(started.elapsed() <= LINGER + Duration::from_millis(1), "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_whose_end_is_not_taken_is_silent_for_no_longer_than_any_other() {
        let idle = Duration::from_secs(7);
        let rules = Rules { chunk: SMALL, bytes_max: u64::MAX, idle, client: None };
        let mut meter = Meter::start(Direction::Request, &Arc::new(Sums::default()), None);
        let ((mut read, _other), (_end, mut write)) = (stuck(), stuck());
        let moved = timeout(10 * idle, one_way(&mut read, &mut write, &mut meter, rules)).await;
        assert!(moved.expect("in time").is_err());
    }
}

//! Connections that go on in another protocol, in the hands of a handler.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::account::Tale;
use crate::duplex::Duplex;
use crate::gateway::Shared;
use crate::meter::{Direction, Meter, StreamOutcome};
use crate::tally::BothWays;
use crate::under_way::Slot;

/// The connection under a request that was answered with 101, for handlers: in the extensions of requests that may change their
/// protocol.
#[derive(Clone)]
pub struct Upgrade(Arc<Mutex<Waiting>>);

/// What is to be done with the connection.
enum Waiting {
    Nothing,
    Talk(Talk),
    /// The answer was given; whoever comes now is late.
    Over,
}

type Talk = Box<dyn FnOnce(Upgraded) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

impl Upgrade {
    /// Runs `talk` with the connection once the answer 101 was sent; if it never is, `talk` is dropped when the exchange ends. Call it before the
    /// handler returns; the last call counts.
    ///
    /// The connection counts as open until `talk` returns. The gateway waits for that when it drains, and drops the future when it
    /// stops.
    pub fn on_upgrade<F>(&self, talk: impl FnOnce(Upgraded) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut waiting = self.0.lock();
        if !matches!(*waiting, Waiting::Over) {
            *waiting = Waiting::Talk(Box::new(move |connection| Box::pin(talk(connection))));
        }
    }

    /// Nobody can wait any more; who does until now.
    fn over(&self) -> Waiting {
        std::mem::replace(&mut *self.0.lock(), Waiting::Over)
    }
}

/// The gateway's end of an [`Upgrade`]. When it goes, so does who waits: he may well hold the request, which holds the other end.
pub(crate) struct Offer(Upgrade);

impl Drop for Offer {
    fn drop(&mut self) {
        self.0.over();
    }
}

impl Offer {
    pub(crate) fn new() -> Offer {
        Offer(Upgrade(Arc::new(Mutex::new(Waiting::Nothing))))
    }

    /// The handler's end.
    pub(crate) fn upgrade(&self) -> Upgrade {
        self.0.clone()
    }

    /// Gives the connection to whoever waits for it, to the end.
    pub(crate) async fn run(self, shared: &Shared, stream: Box<dyn Duplex>, mut tale: Option<Tale>) {
        let Waiting::Talk(talk) = self.0.over() else { return };
        let meters = Meters::start(&shared.tally.tunnels, tale.as_ref().map(Tale::slot));
        let ended = Arc::new(Mutex::new(None));
        let silence_max = shared.settings.timeouts.tunnel;
        talk(Upgraded::new(stream, silence_max, meters, ended.clone())).await;
        let meters = ended.lock().take();
        if let (Some(Meters { mut read, mut written }), Some(tale)) = (meters, &mut tale) {
            // Whoever had it was done with it, unless one of its sides was broken.
            tale.streams(read.end(StreamOutcome::Complete), written.end(StreamOutcome::Complete));
        }
    }
}

/// What is counted of a connection in a handler's hands.
struct Meters {
    read: Meter,
    written: Meter,
}

impl Meters {
    fn start(sums: &BothWays, slot: Option<&Arc<Slot>>) -> Meters {
        Meters {
            read: Meter::start(Direction::Request, &sums.request, slot),
            written: Meter::start(Direction::Response, &sums.response, slot),
        }
    }
}

/// A connection that speaks another protocol than HTTP now. Its bytes are counted among those of tunnels.
///
/// # Errors
/// Besides the connection's own, `TimedOut` when the client has sent nothing, or taken nothing, for `timeouts.tunnel`.
pub struct Upgraded {
    stream: Box<dyn Duplex>,
    silence_max: Duration,
    /// Until when the next bytes must have come.
    read_by: Pin<Box<Sleep>>,
    /// Until when what is being written must have been taken.
    write_by: Option<Pin<Box<Sleep>>>,
    /// Given up when it is dropped, and there before.
    meters: Option<Meters>,
    /// Where they go then. A connection that is dropped together with whoever waits for it was cancelled.
    ended: Arc<Mutex<Option<Meters>>>,
}

impl Upgraded {
    fn new(
        stream: Box<dyn Duplex>,
        silence_max: Duration,
        meters: Meters,
        ended: Arc<Mutex<Option<Meters>>>,
    ) -> Upgraded {
        let read_by = Box::pin(sleep(silence_max));
        Upgraded { stream, silence_max, read_by, write_by: None, meters: Some(meters), ended }
    }

    fn meters(&mut self) -> &mut Meters {
        self.meters.as_mut().expect("they are there until it is dropped")
    }

    /// Ends a wait for the client that takes too long.
    fn taken<T>(&mut self, cx: &mut Context<'_>, taken: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let silence_max = self.silence_max;
        if taken.is_ready() {
            if let Some(by) = self.write_by.take() {
                let since = by.deadline() - silence_max;
                self.meters().written.blocked(since.elapsed());
            }
            if let Poll::Ready(Err(_)) = &taken {
                self.meters().written.end(StreamOutcome::SinkFailed);
            }
            return taken;
        }
        if self.write_by.is_none() {
            let by = Box::pin(sleep(silence_max));
            self.meters().written.blocks(by.deadline() - silence_max);
            self.write_by = Some(by);
        }
        let by = self.write_by.as_mut().expect("it was just set");
        ready!(by.as_mut().poll(cx));
        self.meters().written.end(StreamOutcome::TimedOut);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buffer) {
            let by = Instant::now() + self.silence_max;
            self.read_by.as_mut().reset(by);
            let meter = &mut self.meters().read;
            match (&read, buffer.filled().len() - before) {
                (Err(_), _) => drop(meter.end(StreamOutcome::SourceFailed)),
                (Ok(()), 0) => {}
                (Ok(()), bytes) => meter.chunk(bytes),
            }
            return Poll::Ready(read);
        }
        ready!(self.read_by.as_mut().poll(cx));
        self.meters().read.end(StreamOutcome::TimedOut);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let taken = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count @ 1..)) = &taken {
            self.meters().written.chunk(*count);
        }
        self.taken(cx, taken)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let taken = Pin::new(&mut self.stream).poll_flush(cx);
        self.taken(cx, taken)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let taken = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.taken(cx, taken)
    }
}

impl Drop for Upgraded {
    fn drop(&mut self) {
        *self.ended.lock() = self.meters.take();
    }
}

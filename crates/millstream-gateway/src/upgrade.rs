//! Connections that go on in another protocol, in the hands of a handler.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::duplex::Duplex;

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
    pub(crate) fn new() -> Upgrade {
        Upgrade(Arc::new(Mutex::new(Waiting::Nothing)))
    }

    /// Runs `talk` with the connection once the answer 101 was sent; if it never is, `talk` is dropped. Call it before the
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

    /// Gives the connection to whoever waits for it, to the end.
    pub(crate) async fn run(self, stream: Box<dyn Duplex>, silence_max: Duration) {
        let waiting = std::mem::replace(&mut *self.0.lock(), Waiting::Over);
        if let Waiting::Talk(talk) = waiting {
            talk(Upgraded::new(stream, silence_max)).await;
        }
    }
}

/// A connection that speaks another protocol than HTTP now.
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
}

impl Upgraded {
    fn new(stream: Box<dyn Duplex>, silence_max: Duration) -> Upgraded {
        Upgraded { stream, silence_max, read_by: Box::pin(sleep(silence_max)), write_by: None }
    }

    /// Ends a wait for the client that takes too long.
    fn taken<T>(&mut self, cx: &mut Context<'_>, taken: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if taken.is_ready() {
            self.write_by = None;
            return taken;
        }
        let silence_max = self.silence_max;
        ready!(self.write_by.get_or_insert_with(|| Box::pin(sleep(silence_max))).as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buffer) {
            let by = Instant::now() + self.silence_max;
            self.read_by.as_mut().reset(by);
            return Poll::Ready(read);
        }
        ready!(self.read_by.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let taken = Pin::new(&mut self.stream).poll_write(cx, bytes);
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

//! Connections that go on in another protocol, in the hands of a handler.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::gateway::Shared;
use crate::http1::io::Duplex;

/// The connection under a request that was answered with 101, for handlers: in the extensions of requests over HTTP/1.
#[derive(Clone)]
pub struct Upgrade {
    handed: Arc<Mutex<Option<Handed>>>,
    shared: Arc<Shared>,
}

/// Brings the connection, once it is not needed here any more.
type Handed = oneshot::Receiver<Box<dyn Duplex>>;

/// A connection that speaks another protocol than HTTP now.
pub struct Upgraded(Box<dyn Duplex>);

impl Upgrade {
    /// One for a request, and where its connection is handed over.
    pub(crate) fn new(shared: &Arc<Shared>) -> (oneshot::Sender<Box<dyn Duplex>>, Upgrade) {
        let (hand_over, handed) = oneshot::channel();
        (hand_over, Upgrade { handed: Arc::new(Mutex::new(Some(handed))), shared: shared.clone() })
    }

    /// Runs `talk` with the connection, once the answer 101 was sent; if it never is, `talk` is dropped. The gateway waits for it
    /// when it drains, and drops it when it stops.
    pub fn spawn<F>(&self, talk: impl FnOnce(Upgraded) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(handed) = self.handed.lock().take() else { return };
        let stopped = self.shared.stopped.clone();
        self.shared.tasks.spawn(async move {
            let talking = async {
                if let Ok(connection) = handed.await {
                    talk(Upgraded(connection)).await;
                }
            };
            stopped.run_until_cancelled(talking).await;
        });
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

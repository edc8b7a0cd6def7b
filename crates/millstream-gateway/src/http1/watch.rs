//! Whether a client is still there while nobody reads what it sends.

use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::Interest;
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::{Instant, Sleep, sleep};

use crate::settings::HalfClose;

/// How often it is looked for. An end that lies behind unread bytes wakes nobody; it costs no system call to see.
const LOOK: Duration = Duration::from_millis(500);

/// What is known of a client's connection without reading it.
#[derive(Clone, Copy)]
pub(crate) struct Watch<'a> {
    pub(crate) socket: Option<&'a OwnedReadHalf>,
    pub(crate) half_close: HalfClose,
}

/// Nobody waits any more for what was being done.
#[derive(Debug, thiserror::Error)]
#[error("the client is gone")]
pub(crate) struct ClientGone;

impl Watch<'_> {
    /// Nobody is looked for.
    pub(crate) const NOBODY: Watch<'static> = Watch { socket: None, half_close: HalfClose::Allow };

    fn is_gone(&self) -> bool {
        let looked =
            self.socket.and_then(|socket| socket.ready(Interest::READABLE | Interest::ERROR).now_or_never());
        match looked {
            None => false,
            Some(Err(_)) => true,
            Some(Ok(ready)) => {
                ready.is_error() || (ready.is_read_closed() && self.half_close == HalfClose::Cancel)
            }
        }
    }

    /// Resolves when the client is gone, at the latest half a second later.
    pub(crate) async fn gone(self) {
        let Some(socket) = self.socket else { return pending().await };
        if self.half_close == HalfClose::Allow {
            // A reset.
            let _ = socket.ready(Interest::ERROR).await;
            return;
        }
        while !self.is_gone() {
            sleep(LOOK).await;
        }
    }
}

/// How long somebody may take nothing, and for whom it is waited.
pub(crate) struct Waits<'a> {
    pub(crate) idle: Duration,
    pub(crate) client: Watch<'a>,
}

impl Waits<'_> {
    /// For nobody in particular.
    pub(crate) fn of(idle: Duration) -> Waits<'static> {
        Waits { idle, client: Watch::NOBODY }
    }

    /// What `work` gives. `alarm` is the caller's, who has had use for it.
    ///
    /// # Errors
    /// `TimedOut` if it takes longer than is allowed; [`ClientGone`] in an error of another kind if nobody waits for it any more.
    pub(crate) fn during<T>(
        &self,
        mut alarm: Pin<&mut Sleep>,
        mut work: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> impl Future<Output = io::Result<T>> {
        let now = Instant::now();
        let end = now + self.idle;
        let next = move |now| if self.client.socket.is_some() { end.min(now + LOOK) } else { end };
        alarm.as_mut().reset(next(now));
        poll_fn(move |cx| {
            loop {
                if let Poll::Ready(done) = work(cx) {
                    return Poll::Ready(done);
                }
                ready!(alarm.as_mut().poll(cx));
                let now = Instant::now();
                if self.client.is_gone() {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, ClientGone)));
                }
                if now >= end {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                alarm.as_mut().reset(next(now));
            }
        })
    }
}

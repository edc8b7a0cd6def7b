//! Bodies through channels, a piece at a time.

mod taker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::body::BodyError;
use crate::http2::tasks;

pub(crate) use taker::{Portion, Taker};

/// A part of a body on its way through a channel.
#[derive(Default)]
pub(crate) struct Piece {
    pub(crate) data: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
    /// Nothing follows. A channel that closes before it had such a piece was broken off.
    pub(crate) last: bool,
}

/// Who takes the pieces.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    Handler,
    /// Hyper, for an upstream.
    Upstream,
    /// Hyper, for a client: an answer has ended when it was taken, not when it was sent.
    Client,
}

/// The sending end of a body. Dropped before the last piece was sent, and taken by a client, it breaks the body off.
pub(crate) struct Pieces {
    sender: mpsc::Sender<Piece>,
    taker: Option<Arc<Taker>>,
    demand: Arc<Demand>,
    to: To,
    /// The last piece was sent.
    ended: bool,
    whole: bool,
}

/// The receiving end.
pub(crate) struct Taken {
    pieces: mpsc::Receiver<Piece>,
    size: SizeHint,
    taker: Option<Arc<Taker>>,
    /// Until it was asked for the first time.
    begins: Option<Begins>,
    held: Option<Box<Piece>>,
    to: To,
    /// Bytes that were given to hyper.
    given: u64,
    /// The end of the last piece, of an answer.
    rest: Option<Bytes>,
    /// The end comes when everything before it was taken.
    drains: bool,
    trailers: Option<HeaderMap>,
    ended: bool,
}

/// Whether anything is to be read ahead for the receiver.
#[derive(Default)]
struct Demand {
    /// Not before it asks.
    waits: AtomicBool,
    sender: AtomicWaker,
}

/// The receiver's side of it: when this goes, because it asks or is gone, there is nothing to wait for.
struct Begins(Arc<Demand>);

impl Drop for Begins {
    fn drop(&mut self) {
        self.0.waits.store(false, Ordering::SeqCst);
        self.0.sender.wake();
    }
}

/// A body of what is sent.
pub(crate) fn channel(size: SizeHint, to: To) -> (Pieces, Taken) {
    let (sender, pieces) = mpsc::channel(1);
    let taker = (to != To::Handler).then(Arc::<Taker>::default);
    let demand = Arc::<Demand>::default();
    let begins = Some(Begins(demand.clone()));
    let taken = Taken {
        pieces,
        size,
        taker: taker.clone(),
        begins,
        held: None,
        to,
        given: 0,
        rest: None,
        drains: false,
        trailers: None,
        ended: false,
    };
    (Pieces { sender, taker, demand, to, ended: false, whole: false }, taken)
}

impl Pieces {
    /// Whether the receiver has not asked for anything yet, and wants nothing before.
    pub(crate) fn is_early(&self) -> bool {
        self.demand.waits.load(Ordering::SeqCst)
    }

    /// Ready when it asks, or is gone.
    pub(crate) fn poll_demanded(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.demand.sender.register(cx.waker());
        if self.is_early() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Sends a piece if there is room; gives it back if there is none.
    ///
    /// # Errors
    /// If the receiver is gone.
    pub(crate) fn try_send(&mut self, piece: Piece) -> Result<Option<Piece>, ()> {
        let last = piece.last;
        match self.sender.try_send(piece) {
            Ok(()) => self.sent(last),
            Err(TrySendError::Full(piece)) => return Ok(Some(piece)),
            // Whoever wants no more of a body misses nothing when it ends.
            Err(TrySendError::Closed(piece)) if last && piece.data.is_empty() => self.whole = true,
            Err(TrySendError::Closed(_)) => return Err(()),
        }
        Ok(None)
    }

    /// Whether the last piece was sent and is yet to be taken.
    pub(crate) fn is_awaited(&self) -> bool {
        self.ended && !self.is_whole()
    }

    fn is_whole(&self) -> bool {
        self.whole || self.taker.as_ref().is_some_and(|taker| taker.is_whole())
    }

    /// The same, waiting for room.
    ///
    /// # Cancel safety
    /// A dropped future has not sent the piece, which is lost.
    pub(crate) async fn send(&mut self, piece: Piece) -> Result<(), ()> {
        let last = piece.last;
        self.sender.send(piece).await.map_err(drop)?;
        self.sent(last);
        Ok(())
    }

    /// Waits until the last piece was taken.
    ///
    /// # Errors
    /// If the receiver is gone, and has not taken all of it.
    ///
    /// # Cancel safety
    /// It may be waited for again.
    pub(crate) async fn taken(&self) -> Result<(), ()> {
        self.sender.closed().await;
        if self.is_awaited() { Err(()) } else { Ok(()) }
    }

    /// What of an answer is taken.
    pub(crate) fn taker(&self) -> Option<Arc<Taker>> {
        self.taker.clone()
    }

    fn sent(&mut self, last: bool) {
        self.ended = last;
        self.whole = last && self.to != To::Client;
        if let Some(taker) = &self.taker {
            // It says so again when it has taken this one.
            taker.waits.store(false, Ordering::SeqCst);
        }
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        let Some(taker) = self.taker.as_ref().filter(|_| !self.is_whole()) else { return };
        // Before the look: a task that is not known yet, or is just taking a piece, sees this before it would wait with it.
        taker.broken.store(true, Ordering::SeqCst);
        if !taker.waits.load(Ordering::SeqCst)
            && let Some(task) = taker.task.get()
        {
            task.abort();
        }
    }
}

impl Taken {
    /// Nothing is to be read ahead before this is asked for the first time.
    pub(crate) fn read_on_demand(&self) {
        if let Some(Begins(demand)) = &self.begins {
            demand.waits.store(true, Ordering::SeqCst);
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        drop(self.begins.take());
        loop {
            if let Some(rest) = self.rest.take() {
                return Poll::Ready(Some(Ok(self.data(rest))));
            }
            if let Some(taker) = self.taker.as_ref().filter(|_| self.drains) {
                ready!(taker.poll_taken(self.given, cx));
                self.drains = false;
            }
            if let Some(trailers) = self.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let Some(mut piece) = ready!(self.poll_piece(cx)) else {
                self.ended = true;
                self.drains = false;
                return Poll::Ready(Some(Err(BodyError::new("its sender broke it off"))));
            };
            (self.trailers, self.ended) = (piece.trailers, piece.last);
            // Hyper is done with a stream that it has given the end to, and nobody can reset that any more, whatever of it waits for the
            // client's window. It takes data when the window has room behind all that it took before: so the last byte is given
            // as the last, and an end without data when the data was taken.
            if self.ended && self.to == To::Client {
                self.drains = piece.data.is_empty();
                if piece.data.len() > 1 {
                    self.rest = Some(piece.data.split_off(piece.data.len() - 1));
                }
            }
            if !piece.data.is_empty() {
                return Poll::Ready(Some(Ok(self.data(piece.data))));
            }
        }
    }

    fn data(&mut self, data: Bytes) -> Frame<Bytes> {
        self.given += data.len() as u64;
        Frame::data(data)
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        let Some(taker) = &self.taker else { return self.pieces.poll_recv(cx) };
        let known = taker.task.get().is_some();
        if !known && let Some(task) = tasks::current() {
            // Nobody else sets it.
            let _ = taker.task.set(task);
        }
        let piece = match self.held.take() {
            Some(held) => Some(*held),
            None => {
                taker.waits.store(true, Ordering::SeqCst);
                let piece = ready!(self.pieces.poll_recv(cx));
                taker.waits.store(false, Ordering::SeqCst);
                piece
            }
        };
        if taker.broken.load(Ordering::SeqCst) {
            return Poll::Ready(None);
        }
        // Hyper takes the first of a request by the way, and makes a task of what follows. That task must be known before a piece
        // waits in it.
        if taker.task.get().is_none() && piece.as_ref().is_some_and(|piece| !piece.last) {
            self.held = piece.map(Box::new);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(piece)
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.ended && self.rest.is_none() && !self.drains && self.trailers.is_none()
    }

    /// What of an answer is taken.
    pub(crate) fn taker(&self) -> Option<Arc<Taker>> {
        self.taker.clone()
    }

    pub(crate) fn size(&self) -> SizeHint {
        self.size
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // Before its channel closes, which the sender waits for.
        if let Some(taker) = self.taker.as_ref().filter(|_| self.is_end_stream()) {
            taker.end();
        }
    }
}

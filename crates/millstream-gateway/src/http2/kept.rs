//! The answers that hyper sends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::task::JoinHandle;

use crate::body::{Body, BodyError};
use crate::pieces::{Portion, Taker};

/// An exchange that ends when nobody waits for it any more: the client has reset its stream, or is gone.
pub(super) struct Ends {
    serving: Option<JoinHandle<Option<()>>>,
    taker: Option<Arc<Taker>>,
}

impl Ends {
    pub(super) fn new(serving: JoinHandle<Option<()>>) -> Ends {
        Ends { serving: Some(serving), taker: None }
    }

    /// It ends by itself.
    pub(super) fn goes_on(mut self) {
        self.serving = None;
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        // One whose answer was taken is about to end, and has that to tell.
        if let Some(serving) = &self.serving
            && !self.taker.as_ref().is_some_and(|taker| taker.is_whole())
        {
            serving.abort();
        }
    }
}

/// A body that keeps its exchange going, and tells what of it is taken. Dropped in this order.
pub(super) struct Kept {
    body: Body,
    serving: Option<Ends>,
}

impl Kept {
    /// An answer of this exchange.
    pub(super) fn new(body: Body, mut serving: Ends) -> Kept {
        serving.taker = body.taker();
        Kept { body, serving: Some(serving) }
    }

    /// An answer of none.
    pub(super) fn free(body: Body) -> Kept {
        Kept { body, serving: None }
    }
}

impl HttpBody for Kept {
    type Data = Portion;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Portion>, BodyError>>> {
        let me = &mut *self;
        let taker = || me.serving.as_ref().and_then(|serving| serving.taker.clone());
        let frame = Pin::new(&mut me.body).poll_frame(cx);
        frame.map(|next| {
            next.map(|frame| frame.map(|frame| frame.map_data(|data| Portion::new(data, taker()))))
        })
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

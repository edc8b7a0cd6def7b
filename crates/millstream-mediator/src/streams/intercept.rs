//! Hooks for streams.

use std::any::Any;
use std::borrow::Cow;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use millstream_flow::{BoxError, Flow, Panicked, Pipe, Step};

use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::message::{About, StreamRequest};
use crate::stream::contained::Reached;
use crate::stream::progress::LeftOut;
use crate::stream::{StreamBehaviour, StreamError, StreamNext};

/// Hooks for all streams in a scope. They see requests and items as [`Any`], in their place. What is not implemented
/// changes nothing.
///
/// For one type of stream, [`StreamOptions::each`](crate::StreamOptions::each) does something asynchronous with each item,
/// and a [`Check`](crate::Check) of [`Opening`](crate::Opening) looks at its requests.
pub trait StreamInterceptor: Send + Sync + 'static {
    /// Before the stream is opened. An error refuses it as [`ErrorKind::Invalid`].
    ///
    /// # Errors
    /// To refuse it.
    fn request(&self, _call: &Call<'_>, _request: &mut dyn Any) -> Result<(), BoxError> {
        Ok(())
    }

    /// An item passes. It is called in the stream's task, and must not block. If it panics, the stream ends with
    /// [`ErrorKind::Panicked`] in the place of the item.
    fn item(&self, _call: &Call<'_>, _item: &mut dyn Any) {}

    /// The stream has ended: well, or with this error. It is not called for one that is dropped. If it panics at a good end, the
    /// stream's last item is [`ErrorKind::Panicked`]; at an error that is logged, and the error goes on as it is.
    fn end(&self, _call: &Call<'_>, _error: Option<&StreamError>) {}
}

/// The hooks of a [`StreamInterceptor`] as a behaviour.
pub struct StreamIntercept<X>(Arc<X>);

impl<X: StreamInterceptor> StreamIntercept<X> {
    /// These hooks.
    pub fn new(interceptor: X) -> Self {
        StreamIntercept(Arc::new(interceptor))
    }
}

impl<X: StreamInterceptor> StreamBehaviour for StreamIntercept<X> {
    type Flow<R: StreamRequest, N: StreamNext<R>> = Seen<N::Flow, X>;

    fn name(&self) -> Cow<'static, str> {
        format!("interceptor {}", crate::message::short_name(std::any::type_name::<X>())).into()
    }

    fn of(&self, _: &About) -> Self {
        StreamIntercept(self.0.clone())
    }

    async fn open<R: StreamRequest, N: StreamNext<R>>(
        &self,
        call: &Call<'_>,
        mut request: R,
        next: &N,
    ) -> Result<Pipe<Self::Flow<R, N>>, Error> {
        self.0
            .request(call, &mut request)
            .map_err(|error| Error::new(call.about(), ErrorKind::Invalid).because(error))?;
        let left_out = LeftOut::of(call);
        let reached = Reached::new(left_out.beside(call), left_out);
        let pipe = next.open(&reached.call(), request).await?;
        let interceptor = self.0.clone();
        Ok(pipe.via("interceptor", |upstream| Seen {
            upstream: Some(upstream),
            interceptor,
            reached,
            over: false,
        }))
    }
}

/// A flow that hooks see.
pub struct Seen<F, X> {
    /// `None` once it has ended.
    upstream: Option<F>,
    interceptor: Arc<X>,
    reached: Reached,
    /// The hooks know of the end.
    over: bool,
}

impl<T, F, X> Flow for Seen<F, X>
where
    T: 'static,
    F: Flow<Item = Result<T, StreamError>, Token = ()>,
    X: StreamInterceptor,
{
    type Item = F::Item;
    type Token = ();

    #[inline]
    fn poll_drive<S>(&mut self, cx: &mut Context<'_>, max: usize, sink: &mut S) -> Poll<Step>
    where
        S: FnMut(F::Item, ()) -> ControlFlow<()>,
    {
        let Seen { upstream: slot, interceptor, reached, over } = self;
        let Some(upstream) = slot else { return Poll::Ready(Step::End) };
        let mut broken = false;
        let step = upstream.poll_drive(cx, max, &mut |mut item, ()| {
            if let Ok(passes) = &mut item {
                // Caught here, so that those around hear of the failure.
                let call = reached.call();
                let hook = catch_unwind(AssertUnwindSafe(|| interceptor.item(&call, passes)));
                if let Err(payload) = hook {
                    broken = true;
                    item = Err(reached.panicked(payload));
                }
            }
            if let Err(error) = &item
                && error.is_last()
                && !std::mem::replace(over, true)
            {
                let call = reached.call();
                // The handler's failure is what retries and breakers are to hear of.
                let told = catch_unwind(AssertUnwindSafe(|| interceptor.end(&call, Some(error))));
                if let Err(payload) = told {
                    panicked(&call, payload);
                }
            }
            reached.passes(&item);
            let flow = sink(item, ());
            if broken { ControlFlow::Break(()) } else { flow }
        });
        if broken {
            *slot = None;
            return Poll::Ready(Step::End);
        }
        if step == Poll::Ready(Step::End) && !std::mem::replace(over, true) {
            interceptor.end(&reached.call(), None);
        }
        step
    }
}

#[cold]
fn panicked(call: &Call<'_>, payload: Box<dyn Any + Send>) {
    let panicked = Panicked::new(payload);
    tracing::error!(target: "millstream_mediator::stream", stream = %call.about().name, %panicked, "an interceptor panicked at a stream's error");
}

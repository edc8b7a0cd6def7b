//! What is declared of one type of stream.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use millstream_flow::{BoxError, Capacity, Concurrency};
use millstream_resilience::{FromRetry, Retry};

/// What is declared of one type of stream request: its buffer, what is done with each item and how many at once, and what
/// becomes of items that fail. Given with [`Builder::stream_options`](crate::Builder::stream_options).
///
/// ```
/// use millstream_flow::Concurrency;
/// use millstream_mediator::{ItemErrors, StreamOptions};
///
/// let options = StreamOptions::new()
///     .buffer(256) // a task of its own for the handler, up to 256 items ahead
///     .each(Concurrency::ordered(4), async |n: u64| Ok(n * 2))
///     .item_errors(ItemErrors::skip());
/// # let _ = options;
/// ```
#[must_use = "options do nothing until they are given to a builder"]
pub struct StreamOptions<T> {
    pub(crate) buffer: Option<Capacity>,
    /// Said to be none.
    pub(crate) unbuffered: bool,
    pub(crate) each: Option<(Concurrency, Arc<Each<T>>)>,
    /// With as many at once as the mediator says.
    pub(crate) each_item: Option<Arc<Each<T>>>,
    /// How often that is tried, and how an item is copied for it.
    pub(crate) retry: Option<(Retry, Copies<T>)>,
    pub(crate) errors: ItemErrors<T>,
}

type Copies<T> = fn(&T) -> T;

pub(crate) type Each<T> = dyn Fn(T) -> BoxFuture<'static, Result<T, BoxError>> + Send + Sync;

impl<T> StreamOptions<T> {
    /// No buffer of its own, nothing done with items, and a stream that ends with the first that fails.
    pub fn new() -> Self {
        StreamOptions {
            buffer: None,
            unbuffered: false,
            each: None,
            each_item: None,
            retry: None,
            errors: ItemErrors::fail(),
        }
    }

    /// Runs the handler's flow in a task of its own, so many items ahead of who reads: for handlers that work while their
    /// reader does. Without it, and without one for [all streams](crate::Builder::stream_buffer), nothing is taken that was not
    /// asked for. It counts items; for a bound in bytes, or one that counts in a budget of memory, there is
    /// [`Backpressure`](crate::Backpressure).
    ///
    /// # Panics
    /// If the capacity is 0 items.
    pub fn buffer(mut self, capacity: impl Into<Capacity>) -> Self {
        self.buffer = Some(capacity.into());
        self
    }

    /// Takes nothing that was not asked for, though the mediator has a buffer for
    /// [all streams](crate::Builder::stream_buffer).
    pub fn unbuffered(mut self) -> Self {
        (self.buffer, self.unbuffered) = (None, true);
        self
    }

    /// Does something with each item before behaviours see it, with so many in flight at once. One that fails, or takes longer
    /// than the [time limit](Concurrency::time_limit), is an item that failed.
    pub fn each<F, Fut>(mut self, concurrency: impl Into<Concurrency>, each: F) -> Self
    where
        F: Fn(T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, BoxError>> + Send + 'static,
    {
        self.each = Some((concurrency.into(), Arc::new(move |item| Box::pin(each(item)))));
        self.each_item = None;
        self
    }

    /// As [`each`](StreamOptions::each), with as many in flight as the mediator says for
    /// [all streams](crate::Builder::stream_concurrency); one after the other if it says nothing. Of the two the last said holds.
    pub fn each_item<F, Fut>(mut self, each: F) -> Self
    where
        F: Fn(T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, BoxError>> + Send + 'static,
    {
        self.each_item = Some(Arc::new(move |item| Box::pin(each(item))));
        self.each = None;
        self
    }

    /// Does again with an item what [`each`](StreamOptions::each) does, when that fails, as `retry` says; errors are of the class
    /// that they say themselves ([`class_of`](millstream_resilience::class_of)), or transient. What no attempt could do is an item
    /// that failed, whose error says how often it was tried, and with what errors
    /// ([`Tried`](millstream_resilience::Tried)). An item is copied for each attempt, keeps its place in flight, and where order is
    /// kept holds back the results behind it.
    ///
    /// A [time limit](Concurrency::time_limit) is for all attempts of an item together, with the delays; one for each belongs into
    /// what is done. A panic is not tried again.
    ///
    /// An item that the handler's own flow gives as an error has no work that could be done again: the flow may have done
    /// anything for it. A handler does again what it can itself; [`StreamRetries`](crate::StreamRetries) opens the stream anew, and
    /// its [`Resume`](crate::Resume) says where it goes on.
    ///
    /// ```
    /// use millstream_flow::Concurrency;
    /// use millstream_mediator::{ItemErrors, StreamOptions};
    /// use millstream_resilience::Retry;
    ///
    /// let options = StreamOptions::new()
    ///     .each(Concurrency::ordered(4), async |n: u64| Ok(n * 2))
    ///     .retry_each(Retry::new(3))
    ///     .item_errors(ItemErrors::skip()); // what three attempts could not do
    /// # let _ = options;
    /// ```
    pub fn retry_each(mut self, retry: Retry) -> Self
    where
        T: Clone,
    {
        self.retry = Some((retry, T::clone));
        self
    }

    /// What becomes of items that fail.
    pub fn item_errors(mut self, errors: ItemErrors<T>) -> Self {
        self.errors = errors;
        self
    }
}

impl<T> Default for StreamOptions<T> {
    fn default() -> Self {
        StreamOptions::new()
    }
}

impl<T> Clone for StreamOptions<T> {
    fn clone(&self) -> Self {
        StreamOptions {
            buffer: self.buffer,
            unbuffered: self.unbuffered,
            each: self.each.clone(),
            each_item: self.each_item.clone(),
            retry: self.retry.clone(),
            errors: self.errors.clone(),
        }
    }
}

impl<T> fmt::Debug for StreamOptions<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = self.each.as_ref().map(|(concurrency, _)| concurrency);
        f.debug_struct("StreamOptions")
            .field("buffer", &self.buffer)
            .field("each", &each)
            .field("retry", &self.retry.as_ref().map(|(retry, _)| retry))
            .field("errors", &self.errors)
            .finish()
    }
}

/// `each`, tried as `retry` says.
pub(crate) fn tried<T: Send + 'static>(each: Arc<Each<T>>, retry: Retry, copy: Copies<T>) -> Arc<Each<T>> {
    Arc::new(move |item| {
        let (each, retry) = (each.clone(), retry.clone());
        Box::pin(async move {
            let tried = retry.call(move || each(copy(&item))).await;
            tried.map_err(BoxError::from_retry)
        })
    })
}

/// What becomes of an item that fails while its stream could go on, after [all its attempts](StreamOptions::retry_each). A panic,
/// or a handler's flow that ends, is never one.
pub struct ItemErrors<T>(pub(crate) Policy<T>);

pub(crate) enum Policy<T> {
    Fail,
    Skip,
    Pass,
    Instead(Arc<dyn Fn(BoxError, u64) -> T + Send + Sync>),
    Dead(Arc<dyn Fn(BoxError, u64) + Send + Sync>),
}

impl<T> ItemErrors<T> {
    /// The stream ends with it. The default.
    pub fn fail() -> Self {
        ItemErrors(Policy::Fail)
    }

    /// It is left out, and counted as dropped.
    pub fn skip() -> Self {
        ItemErrors(Policy::Skip)
    }

    /// It is handed to the reader as an error, and the stream goes on.
    pub fn pass() -> Self {
        ItemErrors(Policy::Pass)
    }

    /// Another item takes its place, made of the error and the position.
    pub fn fallback(instead: impl Fn(BoxError, u64) -> T + Send + Sync + 'static) -> Self {
        ItemErrors(Policy::Instead(Arc::new(instead)))
    }

    /// It is left out, counted as dropped, and told to `tell` with its position: the place to put it aside. What `tell`
    /// does it does in the stream's task, so it must not block.
    pub fn dead_letter(tell: impl Fn(BoxError, u64) + Send + Sync + 'static) -> Self {
        ItemErrors(Policy::Dead(Arc::new(tell)))
    }
}

impl<T> Clone for ItemErrors<T> {
    fn clone(&self) -> Self {
        ItemErrors(match &self.0 {
            Policy::Fail => Policy::Fail,
            Policy::Skip => Policy::Skip,
            Policy::Pass => Policy::Pass,
            Policy::Instead(instead) => Policy::Instead(instead.clone()),
            Policy::Dead(tell) => Policy::Dead(tell.clone()),
        })
    }
}

impl<T> fmt::Debug for ItemErrors<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Policy::Fail => "fail",
            Policy::Skip => "skip",
            Policy::Pass => "pass",
            Policy::Instead(_) => "fallback",
            Policy::Dead(_) => "dead letter",
        })
    }
}

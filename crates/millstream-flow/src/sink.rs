//! Where flows end.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use millstream_resilience::Timeout;

use crate::failure::BoxError;
use crate::op::spill::Spill;

/// The end of a flow: takes what is ready, and says when it is safe.
///
/// # Backpressure
///
/// One `write` is under way at a time; while it is, the stage takes nothing from upstream. Put a
/// [`buffer`](crate::Pipe::buffer) before the sink to let upstream work meanwhile.
///
/// # Cancel safety
///
/// A run that is dropped or passes its shutdown's deadline drops the future of `write`; the items of that write
/// are then unsettled and are delivered again. A sink must bear to see an item twice.
///
/// ```
/// use millstream_flow::{Pipe, Sink, SinkError};
///
/// struct Lines(Vec<String>);
/// impl Sink for Lines {
///     type Item = String;
///     async fn write(&mut self, items: &mut Vec<String>) -> Result<(), SinkError> {
///         self.0.append(items); // a real sink returns when this is durable
///         Ok(())
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (_, report) = Pipe::from_iter(["a".to_owned(), "b".to_owned()]).into_sink(Lines(vec![])).await.unwrap();
/// assert_eq!(report.ledger.completed, 2);
/// # }
/// ```
pub trait Sink: Send + 'static {
    /// What it takes.
    type Item: Send;

    /// Writes all of `items` and returns when they are as safe as this sink makes anything: that confirms them
    /// to their source. What is left in the vector is dropped.
    ///
    /// # Errors
    /// [`SinkError::Rejected`] names items that can never be written: they are dead, the others confirmed.
    /// [`SinkError::Skipped`] names items that are dropped instead.
    /// [`SinkError::Failed`] ends the run; nothing of this write is confirmed.
    fn write(&mut self, items: &mut Vec<Self::Item>) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Finishes when the flow has ended: the last write has returned, and none will follow.
    ///
    /// # Errors
    /// Ends the run as failed.
    fn close(&mut self) -> impl Future<Output = Result<(), BoxError>> + Send {
        async { Ok(()) }
    }

    /// The most items of one write. A busy flow brings this many, an idle one what there is.
    fn chunk(&self) -> usize {
        256
    }

    /// This sink with a limit for how long each write, and the close, may take. One that takes longer is dropped where it
    /// waits and fails the run with [`TimedOut`](crate::TimedOut): what was written of it nobody knows, so all of its items are
    /// given back to their source. Without a limit a write that never returns holds the flow for ever.
    ///
    /// # Panics
    /// If `limit` is zero.
    fn time_limit(self, limit: Duration) -> TimeLimited<Self>
    where
        Self: Sized,
    {
        TimeLimited::new(self, limit)
    }
}

/// See [`Sink::time_limit`] and [`Spill::time_limit`].
#[derive(Debug)]
pub struct TimeLimited<S> {
    inner: S,
    timeout: Timeout,
}

impl<S> TimeLimited<S> {
    pub(crate) fn new(inner: S, limit: Duration) -> Self {
        TimeLimited { inner, timeout: Timeout::new(limit) }
    }

    /// The sink or spill itself.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<T: Send, S: Spill<T>> Spill<T> for TimeLimited<S> {
    async fn push(&mut self, items: Vec<T>) -> Result<(), BoxError> {
        self.timeout.wrap(self.inner.push(items)).await
    }

    async fn pop(&mut self, max: usize) -> Result<Vec<T>, BoxError> {
        self.timeout.wrap(self.inner.pop(max)).await
    }
}

impl<S: Sink> Sink for TimeLimited<S> {
    type Item = S::Item;

    async fn write(&mut self, items: &mut Vec<S::Item>) -> Result<(), SinkError> {
        self.timeout.wrap(self.inner.write(items)).await
    }

    async fn close(&mut self) -> Result<(), BoxError> {
        self.timeout.wrap(self.inner.close()).await
    }

    fn chunk(&self) -> usize {
        self.inner.chunk()
    }
}

/// Why a write did not succeed.
#[derive(Debug)]
#[non_exhaustive]
pub enum SinkError {
    /// These items, by their index in the vector as it was given, will never be accepted; all others were
    /// written.
    Rejected(Vec<(usize, BoxError)>),
    /// These items, by their index as above, were not written and are dropped by declaration, counted under this
    /// name; all others were written.
    Skipped(Vec<usize>, Arc<str>),
    /// The sink cannot go on.
    Failed(BoxError),
}

impl<E: Into<BoxError>> From<E> for SinkError {
    fn from(error: E) -> Self {
        SinkError::Failed(error.into())
    }
}

impl fmt::Display for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SinkError::Rejected(items) => write!(f, "the sink rejected {} items", items.len()),
            SinkError::Skipped(items, name) => {
                write!(f, "the sink skipped {} items as `{name}`", items.len())
            }
            SinkError::Failed(_) => f.write_str("the sink failed"),
        }
    }
}

impl SinkError {
    /// The error behind it: of a failed sink, or of the first rejected item.
    pub fn cause(&self) -> Option<&(dyn Error + Send + Sync + 'static)> {
        match self {
            SinkError::Rejected(items) => items.first().map(|(_, error)| &**error),
            SinkError::Skipped(..) => None,
            SinkError::Failed(error) => Some(&**error),
        }
    }
}

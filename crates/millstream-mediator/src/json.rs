//! Messages by name, with JSON: through the same handlers and behaviours.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use millstream_flow::{BoxError, Panicked, chain};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::call::{Context, Detached};
use crate::error::{Error, ErrorKind};
use crate::mediator::{Dispatch, Mediator, unhandled};
use crate::message::{About, Notification, Request, StreamRequest};
use crate::notify::Published;
use crate::stream::contained::Reached;
use crate::stream::progress::LeftOut;
use crate::stream::{Opening, Streaming, written};

/// How much of a name that a stranger gave is logged, in characters.
const NAME_MAX: usize = 64;

/// What can be called by name.
#[derive(Default)]
pub(crate) struct Doors {
    pub(crate) requests: BTreeMap<String, Arc<dyn RequestDoor>>,
    pub(crate) notifications: BTreeMap<String, Arc<dyn NotificationDoor>>,
    pub(crate) streams: BTreeMap<String, Arc<dyn StreamDoor>>,
}

type Entered<'a, T> = BoxFuture<'a, Result<T, Behind>>;

pub(crate) trait RequestDoor: Send + Sync {
    fn send<'a>(&'a self, context: &'a Context, request: Value) -> Entered<'a, Value>;
}

pub(crate) trait NotificationDoor: Send + Sync {
    fn publish<'a>(
        &'a self,
        mediator: &'a Mediator,
        context: &'a Context,
        notification: Value,
    ) -> Entered<'a, Published>;
}

pub(crate) trait StreamDoor: Send + Sync {
    fn stream<'a>(&'a self, context: &'a Context, request: Value) -> Entered<'a, Streaming<Value>>;
}

pub(crate) struct ToRequest<R: Request>(pub(crate) Arc<dyn Dispatch<R>>);

/// Why JSON does not fit, or what the message's own code for it panicked with.
type Misfit = (ErrorKind, BoxError);

/// Reads or writes JSON by code of the message's own, which may panic.
fn convert<T>(convert: impl FnOnce() -> serde_json::Result<T>) -> Result<T, Misfit> {
    match catch_unwind(AssertUnwindSafe(convert)) {
        Ok(converted) => converted.map_err(|error| (ErrorKind::Malformed, error.into())),
        Err(payload) => Err((ErrorKind::Panicked, Panicked::new(payload).into())),
    }
}

/// What went wrong behind a door.
pub(crate) enum Behind {
    /// The door itself: the message could not be read.
    Unread(Error),
    Failed(Error),
}

impl From<Error> for Behind {
    fn from(error: Error) -> Self {
        Behind::Failed(error)
    }
}

fn read<T: DeserializeOwned>(about: &About, value: Value) -> Result<T, Behind> {
    let misfit = |(kind, cause): Misfit| Behind::Unread(Error::new(about, kind).because(cause));
    convert(|| serde_json::from_value(value)).map_err(misfit)
}

fn write<T: Serialize>(about: &About, value: &T) -> Result<Value, Error> {
    convert(|| serde_json::to_value(value)).map_err(|(kind, cause)| Error::new(about, kind).because(cause))
}

impl<R> RequestDoor for ToRequest<R>
where
    R: Request + DeserializeOwned,
    R::Response: Serialize,
{
    fn send<'a>(&'a self, context: &'a Context, request: Value) -> Entered<'a, Value> {
        Box::pin(async move {
            let about = self.0.about();
            let response = self.0.dispatch(context, read(about, request)?).await?;
            Ok(write(about, &response)?)
        })
    }
}

pub(crate) struct ToTopic<N>(pub(crate) std::marker::PhantomData<fn(N)>);

impl<N: Notification + DeserializeOwned> NotificationDoor for ToTopic<N> {
    fn publish<'a>(
        &'a self,
        mediator: &'a Mediator,
        context: &'a Context,
        notification: Value,
    ) -> Entered<'a, Published> {
        Box::pin(async move {
            let misfit = |(kind, cause)| Behind::Unread(Error::unhandled(kind, N::name()).because(cause));
            let notification: N = convert(|| serde_json::from_value(notification)).map_err(misfit)?;
            Ok(mediator.publish_in(context, notification).await)
        })
    }
}

pub(crate) struct ToStream<R: StreamRequest>(pub(crate) Arc<dyn Dispatch<Opening<R>>>);

impl<R> StreamDoor for ToStream<R>
where
    R: StreamRequest + DeserializeOwned,
    R::Item: Serialize,
{
    fn stream<'a>(&'a self, context: &'a Context, request: Value) -> Entered<'a, Streaming<Value>> {
        Box::pin(async move {
            let about = self.0.about().clone();
            let request = Opening(read(&about, request)?);
            // What those inside leave out counts in the position of an item that cannot be written.
            let left_out = LeftOut::default();
            let context = left_out.within(context, &about);
            let stream: Streaming<R::Item> = self.0.dispatch(&context, request).await?;
            Ok(written(stream, Reached::new(Detached::of(about, context), left_out)))
        })
    }
}

/// By name and JSON, for callers who do not know the types: a web socket, a script, a queue.
impl Mediator {
    /// Sends the request of this name, made of this JSON; answers with the response as JSON.
    ///
    /// ```
    /// use millstream_mediator::{Error, Mediator, Request};
    /// use serde_json::json;
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Add { a: i64, b: i64 }
    /// impl Request for Add { type Response = i64; }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), millstream_flow::BoxError> {
    /// let mediator = Mediator::builder()
    ///     .request(async |add: Add| Ok::<_, Error>(add.a + add.b))
    ///     .json::<Add>()
    ///     .build()?;
    /// assert_eq!(mediator.send_json("Add", json!({"a": 2, "b": 3})).await?, json!(5));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::NoHandler`] if no request of this name was [opened](crate::Builder::json) to JSON,
    /// [`ErrorKind::Malformed`] if the JSON does not fit, or the response cannot be written; [`ErrorKind::Panicked`] if the message's
    /// own code for that panics; else as [`send`](Mediator::send).
    pub async fn send_json(&self, name: &str, request: Value) -> Result<Value, Error> {
        self.send_json_in(&Context::new(), name, request).await
    }

    /// As [`send_json`](Mediator::send_json), with what behaviours and handler shall know of the caller.
    ///
    /// # Errors
    /// As [`send_json`](Mediator::send_json).
    pub async fn send_json_in(&self, context: &Context, name: &str, request: Value) -> Result<Value, Error> {
        let door = self.0.doors.requests.get(name);
        self.through(name, door, |door| door.send(context, request)).await
    }

    /// Publishes the notification of this name, made of this JSON.
    ///
    /// # Errors
    /// [`ErrorKind::NoHandler`] if no notification of this name was [opened](crate::Builder::json_notification) to JSON,
    /// [`ErrorKind::Malformed`] if the JSON does not fit.
    pub async fn publish_json(&self, name: &str, notification: Value) -> Result<Published, Error> {
        self.publish_json_in(&Context::new(), name, notification).await
    }

    /// As [`publish_json`](Mediator::publish_json), with what behaviours and handlers shall know of the caller.
    ///
    /// # Errors
    /// As [`publish_json`](Mediator::publish_json).
    pub async fn publish_json_in(
        &self,
        context: &Context,
        name: &str,
        notification: Value,
    ) -> Result<Published, Error> {
        let door = self.0.doors.notifications.get(name);
        self.through(name, door, |door| door.publish(self, context, notification)).await
    }

    /// Opens the stream of this name, asked for with this JSON; its items are JSON.
    ///
    /// # Errors
    /// [`ErrorKind::NoHandler`] if no stream request of this name was [opened](crate::Builder::json_stream) to JSON,
    /// [`ErrorKind::Malformed`] if the JSON does not fit; else as [`stream`](Mediator::stream).
    pub async fn stream_json(&self, name: &str, request: Value) -> Result<Streaming<Value>, Error> {
        self.stream_json_in(&Context::new(), name, request).await
    }

    /// As [`stream_json`](Mediator::stream_json), with what behaviours and handler shall know of the caller.
    ///
    /// # Errors
    /// As [`stream_json`](Mediator::stream_json).
    pub async fn stream_json_in(
        &self,
        context: &Context,
        name: &str,
        request: Value,
    ) -> Result<Streaming<Value>, Error> {
        let door = self.0.doors.streams.get(name);
        self.through(name, door, |door| door.stream(context, request)).await
    }

    /// Calls what is behind a door, and tells what the door itself refuses: behaviours never see that.
    async fn through<'a, D: ?Sized, T>(
        &'a self,
        name: &'a str,
        door: Option<&'a Arc<D>>,
        call: impl FnOnce(&'a D) -> Entered<'a, T>,
    ) -> Result<T, Error> {
        let ended = match door {
            Some(door) => call(&**door).await,
            None => {
                let words = "only what the builder has opened by `json`, `json_notification` or `json_stream` is called by name, each as what it is";
                Err(Behind::Unread(unhandled(name.to_owned().into()).because(words)))
            }
        };
        ended.map_err(|behind| match behind {
            Behind::Failed(error) => error,
            Behind::Unread(error) => {
                self.refused(door.map(|_| name), name, &error);
                error
            }
        })
    }

    #[cold]
    fn refused(&self, known: Option<&str>, name: &str, error: &Error) {
        let status = error.kind().word();
        let help = "Calls by name that nobody handles, or whose JSON cannot be read.";
        // What is asked for by strangers has no bound.
        let labels = [("type", known.unwrap_or("")), ("status", status)];
        self.metrics().counter("mediator_json_refusals_total", help, &labels).add(1);
        let (name, why): (String, _) = (name.chars().take(NAME_MAX).collect(), chain(error));
        tracing::info!(
            target: "millstream_mediator::request",
            message_type = ?name,
            outcome = status,
            error = why,
            "a call by name was refused"
        );
    }
}

impl fmt::Debug for Doors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.requests.keys())
            .entries(self.notifications.keys())
            .entries(self.streams.keys())
            .finish()
    }
}

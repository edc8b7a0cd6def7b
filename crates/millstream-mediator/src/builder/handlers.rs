//! Handlers, with what is declared of their messages.

use std::any::{TypeId, type_name};
use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;

use millstream_flow::BoxError;

use super::Builder;
use crate::behaviour::{Behaviours, Stage};
use crate::describe::Line;
use crate::handler::{End, Function, Handler, Notified, Stateful};
use crate::mediator::{Dispatch, Route};
use crate::message::{About, Kind, Notification, Request, handler_name};
use crate::notify::{Publish, Undelivered};
use crate::stream::StreamBehaviours;

/// Handlers.
impl<B: Behaviours, S: StreamBehaviours> Builder<B, S> {
    /// An async function or closure that handles one type of request.
    pub fn request<R, F, Fut, E>(self, handler: F) -> Self
    where
        R: Request,
        F: Fn(R) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R::Response, E>> + Send,
        E: Into<BoxError>,
    {
        self.add_request(Function(handler), handler_name(type_name::<F>()))
    }

    /// As [`request`](Builder::request), of a function with a state before the request, which is cloned for each call: an
    /// `Arc`, a pool of connections.
    pub fn request_with<R, T, F, Fut, E>(self, state: T, handler: F) -> Self
    where
        R: Request,
        T: Clone + Send + Sync + 'static,
        F: Fn(T, R) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R::Response, E>> + Send,
        E: Into<BoxError>,
    {
        self.add_request(Stateful(state, handler), handler_name(type_name::<F>()))
    }

    /// As [`request`](Builder::request), of a handler that is a type.
    pub fn request_handler<R: Request, H: Handler<R>>(self, handler: H) -> Self {
        self.add_request(handler, handler_name(type_name::<H>()))
    }

    fn add_request<R: Request, H: Handler<R>>(mut self, handler: H, name: String) -> Self {
        let parts = &mut self.parts;
        let about = parts.about::<R, R>(R::name(), R::KIND, name);
        if parts.names_twice::<R>(true, &about) || parts.handled_twice::<R>(true, &about) {
            return self;
        }
        let route: Arc<dyn Dispatch<R>> = self.behaviours.route(&about, End(handler));
        self.line(&about, |names, behaviours, _| behaviours.names(&about, names));
        self.parts.requests.insert(TypeId::of::<R>(), Box::new(route));
        self
    }

    /// An async function or closure that handles one type of notification, beside others.
    pub fn notification<N, F, Fut, E>(self, handler: F) -> Self
    where
        N: Notification,
        F: Fn(Arc<N>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send,
        E: Into<BoxError>,
    {
        let name = handler_name(type_name::<F>());
        let known = known::<F>();
        self.add_notification::<N, _>(Function(move |notified: Notified<N>| handler(notified.0)), name, known)
    }

    /// As [`notification`](Builder::notification), of a function with a state before the notification, which is cloned for
    /// each call.
    pub fn notification_with<N, T, F, Fut, E>(self, state: T, handler: F) -> Self
    where
        N: Notification,
        T: Clone + Send + Sync + 'static,
        F: Fn(T, Arc<N>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send,
        E: Into<BoxError>,
    {
        let name = handler_name(type_name::<F>());
        let handler = move |state, notified: Notified<N>| handler(state, notified.0);
        self.add_notification::<N, _>(Stateful(state, handler), name, None)
    }

    /// As [`notification`](Builder::notification), of a handler that is a type, which sees its call: the context, the
    /// correlation.
    ///
    /// ```
    /// use millstream_flow::BoxError;
    /// use millstream_mediator::{Call, Context, Handler, Mediator, Notification, Notified};
    ///
    /// struct Paid { cents: u64 }
    /// impl Notification for Paid {}
    ///
    /// struct Tenant(&'static str);
    /// struct Bookkeeper;
    /// impl Handler<Notified<Paid>> for Bookkeeper {
    ///     type Error = BoxError;
    ///     async fn handle(&self, Notified(paid): Notified<Paid>, call: &Call<'_>) -> Result<(), BoxError> {
    ///         let tenant = call.context().get::<Tenant>().ok_or("whose money is it?")?;
    ///         println!("{} cents of {}", paid.cents, tenant.0);
    ///         Ok(())
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let mediator = Mediator::builder().notification_handler(Bookkeeper).build()?;
    /// let context = Context::new().with(Tenant("ada"));
    /// assert!(mediator.publish_in(&context, Paid { cents: 5 }).await.into_result().is_ok());
    /// assert!(mediator.publish(Paid { cents: 5 }).await.into_result().is_err());
    /// # Ok(()) }
    /// ```
    pub fn notification_handler<N: Notification, H: Handler<Notified<N>>>(self, handler: H) -> Self {
        self.add_notification::<N, _>(handler, handler_name(type_name::<H>()), known::<H>())
    }

    fn add_notification<N: Notification, H: Handler<Notified<N>>>(
        mut self,
        handler: H,
        name: String,
        known: Option<TypeId>,
    ) -> Self {
        let gathering = self.parts.topic::<N>();
        if let Some(known) = known {
            if gathering.known.contains(&known) {
                let notification = N::name();
                let problem =
                    format!("the handler `{name}` of {notification} is registered twice; remove one of them");
                self.parts.problems.push(problem);
                return self;
            }
            gathering.known.push(known);
        }
        // Two closures of one function are told apart by a number.
        let same = |about: &About| {
            let rest = about.handler.strip_prefix(&*name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(" #"))
        };
        let before = gathering.handlers.iter().filter(|handler| same(handler.about())).count();
        let name = if before == 0 { name } else { format!("{name} #{}", before + 1) };
        let about = self.parts.about::<N, Notified<N>>(N::name(), Kind::Notification, name);
        if self.parts.names_twice::<N>(false, &about) {
            return self;
        }
        let route: Arc<dyn Dispatch<Notified<N>>> = self.behaviours.route(&about, End(handler));
        self.line(&about, |names, behaviours, _| behaviours.names(&about, names));
        self.parts.topic::<N>().handlers.push(route);
        self
    }

    /// How notifications of one type go to their handlers.
    pub fn publish<N: Notification>(mut self, publish: Publish) -> Self {
        if self.parts.topic::<N>().publish.replace(publish).is_some() {
            self.parts.given_twice::<N>("publish");
        }
        self
    }

    /// What is done with a notification that one of its handlers failed to take, detached or not, when no behaviour could help:
    /// the place to put it aside. It is called for each such handler, in the task that handled, so that it must not block; if it
    /// panics, that is logged.
    ///
    /// ```
    /// use millstream_flow::BoxError;
    /// use millstream_mediator::{Mediator, Notification};
    /// use std::sync::Arc;
    /// use tokio::sync::mpsc;
    ///
    /// struct Paid;
    /// impl Notification for Paid {}
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let (aside, mut dead) = mpsc::channel(100);
    /// let mediator = Mediator::builder()
    ///     .notification(async |_: Arc<Paid>| Err::<(), BoxError>("the books are closed".into()))
    ///     .undelivered::<Paid>(move |failed| {
    ///         let _ = aside.try_send((failed.notification.clone(), failed.error.to_string()));
    ///     })
    ///     .build()?;
    /// let _ = mediator.publish(Paid).await;
    /// assert!(dead.recv().await.is_some());
    /// # Ok(()) }
    /// ```
    pub fn undelivered<N: Notification>(
        mut self,
        tell: impl Fn(Undelivered<'_, N>) + Send + Sync + 'static,
    ) -> Self {
        if self.parts.topic::<N>().undelivered.replace(Box::new(tell)).is_some() {
            self.parts.given_twice::<N>("undelivered");
        }
        self
    }

    /// How notifications of other types go to their handlers; [`Publish::sequential`] if it is not said.
    pub fn publish_default(mut self, publish: Publish) -> Self {
        self.parts.publish_default = publish;
        self
    }

    /// How many [detached](Publish::detached) publishes may be under way at once; 1,024 if it is not said.
    pub fn detached_max(mut self, publishes: usize) -> Self {
        self.parts.detached_max = Some(publishes);
        if publishes == 0 {
            self.parts
                .problems
                .push("detached_max is 0: no detached publish could ever begin; give at least 1".into());
        }
        self
    }

    pub(super) fn line(
        &mut self,
        about: &Arc<About>,
        names: impl FnOnce(&mut Vec<Cow<'static, str>>, &B, &S),
    ) {
        let mut behaviours = Vec::new();
        names(&mut behaviours, &self.behaviours, &self.stream_behaviours);
        let (message, handler) = (about.name.clone(), about.handler.clone());
        self.parts.lines.push(Line { message, kind: about.kind, handler, by_name: false, behaviours });
    }
}

/// What tells two handlers of one notification to be the same: the type of a function, which has no state.
fn known<F: 'static>() -> Option<TypeId> {
    let closure = type_name::<F>().contains("{{closure}}");
    (size_of::<F>() == 0 && !closure).then(TypeId::of::<F>)
}

pub(super) trait MakeRoute: Behaviours {
    fn route<R: Request, E: Stage<R>>(&self, about: &Arc<About>, end: E) -> Arc<dyn Dispatch<R>> {
        Arc::new(Route { about: about.clone(), stage: self.around(about, end) })
    }
}

impl<B: Behaviours> MakeRoute for B {}

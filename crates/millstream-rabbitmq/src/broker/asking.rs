//! Asking the broker: the channel on which things are declared and looked at, and the links of a handle.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use millstream_message::{BrokerError, BrokerErrorKind};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};

use super::Inner;
use crate::link::{CallError, Link, Role};
use crate::proto::{Closed, Method};
use crate::refusals::{failed, refused};
use crate::restore::{Consuming, Publishing, Replying};
use crate::topology;

/// What a look at a queue told.
pub(super) enum Looked {
    Missing,
    There {
        ready: u64,
        consumers: u64,
    },
    /// It is exclusive to another connection, and nobody else may look into it: the error of whoever has to.
    Foreign(BrokerError),
}

impl Inner {
    pub(super) fn links(&self) -> impl Iterator<Item = &Arc<Link>> {
        let others = self.others.iter().filter_map(OnceCell::get);
        let own = [self.publishing.get(), self.replying.get()];
        std::iter::once(&self.main).chain(own.into_iter().flatten()).chain(others)
    }

    /// A further link that was made just now, unless the handle was closed before it was among [`links`](Inner::links): nobody
    /// else closes it then.
    fn unless_closed<'a>(&self, link: &'a Arc<Link>) -> Result<&'a Arc<Link>, BrokerError> {
        if self.main.is_closing() {
            link.close();
            return Err(self.main.closed_error());
        }
        Ok(link)
    }

    /// The link that publishes, connected when it is first needed.
    pub(super) async fn publisher(&self) -> Result<&Arc<Link>, BrokerError> {
        let connect = async {
            if self.main.is_closing() {
                return Err(self.main.closed_error());
            }
            let name = format!("{} (publishing)", self.options.name);
            let link = Link::new(self.options.clone(), name, self.hub.known.clone());
            let (declaring, replying) = (Arc::downgrade(&self.main), self.replying.clone());
            link.join(Arc::new(Publishing { declaring, replying })).await?;
            Ok(link)
        };
        if let Some(link) = self.publishing.get() {
            return Ok(link);
        }
        self.unless_closed(self.publishing.get_or_try_init(|| connect).await?)
    }

    /// The link on which replies come, connected when somebody first waits for some.
    pub(super) async fn replying(&self) -> Result<&Arc<Link>, BrokerError> {
        let connect = async {
            if self.main.is_closing() {
                return Err(self.main.closed_error());
            }
            let name = format!("{} (replies)", self.options.name);
            let link = Link::for_replies(self.options.clone(), name, self.hub.known.clone());
            link.join(Arc::new(Replying)).await?;
            Ok(link)
        };
        self.unless_closed(self.replying.get_or_try_init(|| connect).await?)
    }

    /// The link for a new consumer: they take turns.
    pub(super) async fn consuming(&self) -> Result<&Arc<Link>, BrokerError> {
        let turn = self.consumers_made.fetch_add(1, Ordering::Relaxed) % (self.others.len() + 1);
        let Some(other) = turn.checked_sub(1).and_then(|at| self.others.get(at)) else {
            return Ok(&self.main);
        };
        let connect = async {
            let name = format!("{} ({})", self.options.name, turn + 1);
            let link = Link::new(self.options.clone(), name, self.hub.known.clone());
            link.join(Arc::new(Consuming::after(self.main.clone(), self.hub.clone()))).await?;
            Ok(link)
        };
        self.unless_closed(other.get_or_try_init(|| connect).await?)
    }

    /// Has a method answered on the control channel, over losses of the connection.
    pub(super) async fn control(&self, method: &Method) -> Result<Method, CallError> {
        let until = Instant::now() + self.options.operation_timeout;
        loop {
            if self.main.up().await.is_err() {
                return Err(CallError::Lost);
            }
            let mut control = self.control.lock().await;
            let answer = async {
                let channel = match *control {
                    Some(channel) if self.main.is_current(channel) => channel,
                    _ => self.main.open_channel(Role::Control).await?,
                };
                *control = Some(channel);
                self.main.call(channel, method).await
            };
            let answer = timeout_at(until, answer).await.unwrap_or(Err(CallError::Lost));
            match answer {
                Err(CallError::Lost) if Instant::now() < until && !self.main.is_closing() => *control = None,
                Err(error) => {
                    *control = None;
                    return Err(error);
                }
                answer => return answer,
            }
        }
    }

    pub(super) async fn asked(
        &self,
        what: impl FnOnce() -> String,
        method: &Method,
    ) -> Result<Method, BrokerError> {
        self.control(method).await.map_err(|error| failed(&what(), error))
    }

    /// Looks whether a queue is there.
    pub(super) async fn look_at(&self, name: &str) -> Result<Looked, BrokerError> {
        topology::check_name("queue", name)?;
        match self.control(&topology::check_queue(name)).await {
            Ok(Method::QueueDeclareOk { messages, consumers, .. }) => {
                Ok(Looked::There { ready: messages.into(), consumers: consumers.into() })
            }
            Err(CallError::Refused(closed)) if closed.code == 404 && !closed.is_down() => Ok(Looked::Missing),
            Err(CallError::Refused(closed)) if closed.code == 405 => {
                Ok(Looked::Foreign(refused(&format!("queue `{name}`"), &closed)))
            }
            Ok(other) => {
                let text = format!("queue `{name}`: the broker answered {}", other.name());
                Err(BrokerError::new(BrokerErrorKind::Unavailable, text))
            }
            Err(error) => Err(failed(&format!("queue `{name}`"), error)),
        }
    }

    /// Whether messages can be published to an exchange.
    pub(super) async fn has_exchange(&self, name: &str) -> Result<bool, BrokerError> {
        if name.is_empty() || self.hub.known.exchanges.lock().contains(name) {
            return Ok(true);
        }
        match self.control(&topology::check_exchange(name)).await {
            Ok(_) => {
                self.hub.known.exchanges.lock().insert(name.to_owned());
                Ok(true)
            }
            Err(CallError::Refused(Closed { code: 404, .. })) => Ok(false),
            Err(error) => Err(failed(&format!("exchange `{name}`"), error)),
        }
    }
}

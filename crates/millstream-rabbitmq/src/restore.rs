//! What is done when a connection is there, or there again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use millstream_message::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::sleep;

use crate::consumer::ConsumerCore;
use crate::hub::Hub;
use crate::link::{CallError, Link, Restore, Role};
use crate::proto::Method;

/// How long to wait before a consumer that the broker refused is tried again; twice as long after each further time, so often.
const REFUSED: Duration = Duration::from_millis(300);
const DOUBLINGS: u32 = 2;

/// The code of what belongs to another connection (RESOURCE_LOCKED).
const LOCKED: u16 = 405;

/// Restores what was declared, if this is the link for that, and the link's consumers.
pub(crate) struct Consuming {
    hub: Arc<Hub>,
    /// What must be there first, if it is another link that declares.
    after: Option<Arc<Link>>,
    /// What the broker still keeps for a connection that we know to be lost and it does not: to be declared when it does.
    locked: Mutex<Vec<Method>>,
}

impl Consuming {
    /// On the link that declares.
    pub(crate) fn first(hub: Arc<Hub>) -> Consuming {
        Consuming { hub, after: None, locked: Mutex::default() }
    }

    /// On a further link, when the one that declares is there.
    pub(crate) fn after(declaring: Arc<Link>, hub: Arc<Hub>) -> Consuming {
        Consuming { hub, after: Some(declaring), locked: Mutex::default() }
    }
}

impl Restore for Consuming {
    fn restore<'a>(&'a self, link: &'a Arc<Link>) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(async move {
            match &self.after {
                Some(declaring) => surely_up(declaring).await?,
                None => {
                    let methods = self.hub.topology.lock().methods();
                    self.declare(link, methods).await?;
                }
            }
            // What broke in the last life is among all those that are served now.
            drop(link.take_broken());
            let consumers: Vec<_> = self.hub.consumers_of(link);
            for consumer in consumers {
                self.give_channel(link, &consumer).await?;
            }
            Ok(())
        })
    }

    fn repair<'a>(&'a self, link: &'a Arc<Link>) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(async move {
            let broken = link.take_broken();
            let locked = !self.locked.lock().is_empty();
            if locked || !broken.is_empty() {
                // Whatever was wrong is likely to be wrong still for a moment.
                let times = broken.iter().map(|consumer| consumer.refusals().saturating_sub(1)).min();
                sleep(REFUSED * 2_u32.pow(times.unwrap_or(0).min(DOUBLINGS))).await;
            }
            if locked {
                let methods = std::mem::take(&mut *self.locked.lock());
                self.declare(link, methods).await?;
            }
            for consumer in broken {
                self.give_channel(link, &consumer).await?;
            }
            Ok(())
        })
    }
}

impl Consuming {
    async fn declare(&self, link: &Arc<Link>, methods: Vec<Method>) -> Result<(), CallError> {
        self.locked.lock().clear();
        if methods.is_empty() {
            return Ok(());
        }
        let mut channel = link.open_channel(Role::Control).await?;
        for method in methods {
            match link.call(channel, &method).await {
                Ok(_) => {}
                Err(CallError::Refused(closed)) if closed.code == LOCKED && self.is_wanted(&method) => {
                    self.locked.lock().push(method);
                    link.repair_again();
                    channel = link.open_channel(Role::Control).await?;
                }
                Err(CallError::Refused(closed)) => {
                    // Somebody has made it anew, otherwise. What can be restored is.
                    tracing::warn!(method = method.name(), error = %closed.text, "what was declared could not be restored");
                    channel = link.open_channel(Role::Control).await?;
                }
                Err(error) => return Err(error),
            }
        }
        link.close_channel(channel);
        Ok(())
    }

    /// Whether it is a queue, or its binding, that nobody has deleted meanwhile.
    fn is_wanted(&self, method: &Method) -> bool {
        let (Method::QueueDeclare { queue, .. } | Method::QueueBind { queue, .. }) = method else {
            return false;
        };
        self.hub.topology.lock().queues.contains_key(queue)
    }

    /// Whether a queue is to be declared when the broker lets us. Until then its consumers would find one that goes.
    fn is_locked(&self, name: &str) -> bool {
        let locked = self.locked.lock();
        locked.iter().any(|method| matches!(method, Method::QueueDeclare { queue, .. } if queue == name))
    }

    /// Opens a channel for a consumer, again. If the broker refuses that, it is tried once more, later.
    async fn give_channel(&self, link: &Arc<Link>, consumer: &Arc<ConsumerCore>) -> Result<(), CallError> {
        let has_one = consumer.channel().is_some_and(|channel| link.is_current(channel));
        if has_one || !consumer.goes_on() {
            return Ok(());
        }
        if self.is_locked(consumer.queue()) {
            link.mend(consumer.clone());
            return Ok(());
        }
        match open(link, consumer).await {
            Err(CallError::Refused(closed)) => {
                tracing::debug!(queue = consumer.queue(), error = %closed.text, "a consumer could not be restored");
                if consumer.goes_on() {
                    link.mend(consumer.clone());
                }
                Ok(())
            }
            // It was stopped meanwhile, or its last handle went: its channel goes with it.
            Err(CallError::Lost) if !consumer.goes_on() => Ok(()),
            other => other,
        }
    }
}

/// Opens a channel with its prefetch, and consumes on it.
pub(crate) async fn open(link: &Arc<Link>, consumer: &Arc<ConsumerCore>) -> Result<(), CallError> {
    let channel = link.open_channel(Role::Consumer(consumer.clone())).await?;
    let words = link.hand_over(channel, consumer)?;
    for method in words.iter().flat_map(|(_, methods)| methods) {
        link.call(channel, method).await?;
    }
    consumer.established(words.map(|(prefetch, _)| prefetch));
    Ok(())
}

/// Restores the channel that is published on, and publishes what was not confirmed.
pub(crate) struct Publishing {
    /// What was declared must be there first, or messages find no queue.
    pub(crate) declaring: Weak<Link>,
    /// Requests that are sent again say where replies come now.
    pub(crate) replying: Arc<OnceCell<Arc<Link>>>,
}

impl Publishing {
    async fn open(&self, link: &Arc<Link>) -> Result<(), CallError> {
        let channel = link.open_channel(Role::Publisher).await?;
        link.call(channel, &Method::ConfirmSelect { nowait: [false] }).await?;
        link.publish_on(channel);
        Ok(())
    }
}

impl Restore for Publishing {
    fn restore<'a>(&'a self, link: &'a Arc<Link>) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(async move {
            let Some(declaring) = self.declaring.upgrade() else { return Err(CallError::Lost) };
            surely_up(&declaring).await?;
            if let Some(replying) = self.replying.get().filter(|replying| !replying.is_held_up()) {
                surely_up(replying).await?;
            }
            self.open(link).await
        })
    }

    fn repair<'a>(&'a self, link: &'a Arc<Link>) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(async move {
            let is_open = link.state().publisher.is_some();
            if is_open { Ok(()) } else { self.open(link).await }
        })
    }
}

/// Restores the channel on which replies come.
pub(crate) struct Replying;

impl Restore for Replying {
    fn restore<'a>(&'a self, link: &'a Arc<Link>) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(async move { link.reply_on(link.open_channel(Role::Replies).await?).await })
    }

    fn repair<'a>(&'a self, link: &'a Arc<Link>) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(async move {
            let is_open = link.state().replying;
            if is_open { Ok(()) } else { self.restore(link).await }
        })
    }
}

/// Waits for a link that is there, and not only not known to be lost: an answer shows it.
async fn surely_up(link: &Arc<Link>) -> Result<(), CallError> {
    loop {
        link.up().await.map_err(|_| CallError::Lost)?;
        match ping(link).await {
            Err(CallError::Lost) => {}
            answer => return answer,
        }
    }
}

async fn ping(link: &Arc<Link>) -> Result<(), CallError> {
    let channel = link.open_channel(Role::Control).await?;
    link.close_channel(channel);
    Ok(())
}

//! From one connection to the next, and from one consumer of a name to the next.

use std::sync::Arc;

use millstream_message::{BrokerError, BrokerErrorKind};

use super::super::client::{Inner, backoff};
use super::super::command::{OffsetSpec, Request, code};
use super::super::link::{Link, credit, lost, refused};
use super::super::wire::Pairs;
use super::shared::{Election, Shared};

/// Finds a node that has the stream, and subscribes there.
pub(super) async fn attach(client: &Arc<Inner>, shared: &Arc<Shared>) -> Result<(), BrokerError> {
    let stream = shared.stream.as_str();
    let link = client.replica(stream).await?;
    let mut properties = Pairs::new();
    if let Some(name) = &shared.options.name {
        properties.push(("name".to_owned(), name.clone()));
    }
    if shared.options.single_active {
        if !link.server.has_single_active() {
            let text = format!(
                "RabbitMQ {} has no single active consumer for streams: it came with 3.11; leave `single_active` away, \
                 or update the broker",
                link.server.version
            );
            return Err(BrokerError::new(BrokerErrorKind::Unsupported, text));
        }
        properties.push(("single-active-consumer".to_owned(), "true".to_owned()));
        if let Some(name) = &shared.super_stream {
            properties.push(("super-stream".to_owned(), name.clone()));
        }
    }
    let number = link.add_consumer(shared);
    let number = number.ok_or_else(|| lost("all subscriptions of a connection are taken"))?;
    let mut registered =
        Registered { link: link.clone(), consumer: shared, number, subscribed: true, keep: false };
    let from = {
        let mut state = shared.state.lock();
        (state.credit, state.credit_max) = (1, 1);
        state.election = None;
        state.resume
    };
    let subscribe =
        Request::Subscribe { subscription: number, stream: stream.to_owned(), from, credit: 1, properties };
    let subscribed = link.ask(subscribe).await?.code;
    if subscribed != code::OK {
        registered.subscribed = false;
        return Err(refused(subscribed, stream));
    }
    let mut state = shared.state.lock();
    if !link.is_alive() {
        return Err(lost("the connection was lost"));
    }
    // Whoever takes it out tells it so, which finds an attached one, or happened before.
    if !link.has_consumer(number, shared) {
        return Err(lost(format!("stream `{stream}` is not available here any more")));
    }
    registered.keep = true;
    state.attached = Some((link, number));
    // A chunk may have come and been taken before the link was known here.
    if let Some((link, number, count)) = state.give(shared.options.bytes_max) {
        link.send(credit(number, count));
    }
    Ok(())
}

/// A subscription's number, given back if subscribing fails, or nobody waits for it any more.
struct Registered<'a> {
    link: Arc<Link>,
    consumer: &'a Arc<Shared>,
    number: u8,
    /// The broker has it, as far as we know.
    subscribed: bool,
    keep: bool,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // The broker hears of it before it hears of the next one with this number.
        if self.subscribed && self.link.has_consumer(self.number, self.consumer) {
            self.link.tell(Request::Unsubscribe { subscription: self.number });
        }
        self.link.remove_consumer(self.number, self.consumer);
    }
}

/// Subscribes again whenever the consumer is detached, until it is closed.
pub(super) async fn supervise(client: Arc<Inner>, shared: Arc<Shared>) {
    let mut attempts = 0;
    loop {
        let (attached, election, done) = {
            let mut state = shared.state.lock();
            let election = state.election.take_if(|election| election.let_go);
            (state.attached.clone(), election, state.closing || state.over.is_some())
        };
        if done {
            break;
        }
        let Some((link, number)) = attached else {
            tokio::time::sleep(backoff(attempts)).await;
            attempts += 1;
            match attach(&client, &shared).await {
                Ok(()) => tracing::info!(stream = shared.stream, "a consumer is back"),
                Err(error)
                    if matches!(error.kind(), BrokerErrorKind::NotFound | BrokerErrorKind::Unsupported) =>
                {
                    shared.end(Some(error));
                }
                Err(_) if client.is_closed() => shared.end(None),
                Err(error) => tracing::debug!(stream = shared.stream, %error, "a consumer is not back yet"),
            }
            continue;
        };
        attempts = 0;
        if let Some(Election { correlation, active, .. }) = election {
            if active {
                activate(&client, &shared, &link, number, correlation).await;
            } else {
                leave(&client, &shared, &link).await;
                link.activate(correlation, None);
            }
            continue;
        }
        tokio::select! {
            () = shared.wake.notified() => {}
            () = client.closed() => shared.end(None),
        }
    }
    let attached = shared.state.lock().attached.take();
    if let Some((link, number)) = attached {
        // Gone or not, the number is free.
        let _ = link.ask(Request::Unsubscribe { subscription: number }).await;
        link.remove_consumer(number, &shared);
    }
}

/// Begins as the active consumer: at the offset that is stored, or where this one was.
async fn activate(client: &Arc<Inner>, shared: &Arc<Shared>, link: &Arc<Link>, number: u8, correlation: u32) {
    let name = shared.options.name.as_deref().unwrap_or_default();
    let stored = client.stored_offset(&shared.stream, name).await.unwrap_or_else(|error| {
        tracing::warn!(stream = shared.stream, %error, "the stored offset is not known; what was read may come again");
        None
    });
    let (from, more) = {
        let mut state = shared.state.lock();
        let from = stored.or(state.done).map_or(state.begin, OffsetSpec::Offset);
        // Whoever reads is woken by the first chunk.
        state.waker = state.turn(true, from);
        state.done = None;
        let more = state.credit == 0;
        state.credit = state.credit.max(1);
        (from, more)
    };
    link.activate(correlation, Some(from));
    if more {
        link.send(credit(number, 1));
    }
}

/// Ends as the active consumer: the next one begins behind what this one is done with.
async fn leave(client: &Arc<Inner>, shared: &Arc<Shared>, link: &Arc<Link>) {
    let done = shared.state.lock().done;
    let name = shared.options.name.as_deref().unwrap_or_default();
    if let Some(done) = done.filter(|_| shared.options.store_every.is_some())
        && let Err(error) = client.store_offset(Some(link), &shared.stream, name, done).await
    {
        tracing::warn!(stream = shared.stream, %error, "the offset is not stored; what was read may come again");
    }
}

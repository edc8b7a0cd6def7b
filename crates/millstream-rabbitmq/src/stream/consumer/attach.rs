//! From one connection to the next, and from one consumer of a name to the next.

use std::sync::Arc;

use millstream_message::{BrokerError, BrokerErrorKind};

use super::super::client::{Inner, backoff};
use super::super::command::{CONSUMER_UPDATE, OffsetSpec, Request, code};
use super::super::link::{credit, lost, refused};
use super::super::wire::Pairs;
use super::shared::Shared;

/// Finds a node that has the stream, and subscribes there.
pub(super) async fn attach(client: &Arc<Inner>, shared: &Arc<Shared>) -> Result<(), BrokerError> {
    let stream = shared.stream.as_str();
    let link = client.replica(stream).await?;
    let mut properties = Pairs::new();
    if let Some(name) = &shared.options.name {
        properties.push(("name".to_owned(), name.clone()));
    }
    if shared.options.single_active {
        if !link.server.knows(CONSUMER_UPDATE) {
            let text = format!(
                "RabbitMQ {} has no single active consumer for streams: it came with 3.11; leave `single_active` away, \
                 or update the broker",
                link.server.version
            );
            return Err(BrokerError::new(BrokerErrorKind::Unsupported, text));
        }
        properties.push(("single-active-consumer".to_owned(), "true".to_owned()));
    }
    let number = link.add_consumer(shared);
    let number = number.ok_or_else(|| lost("all subscriptions of a connection are taken"))?;
    let from = {
        let mut state = shared.state.lock();
        (state.credit, state.credit_max) = (1, 1);
        state.elected = None;
        state.resume
    };
    let subscribe =
        Request::Subscribe { subscription: number, stream: stream.to_owned(), from, credit: 1, properties };
    let subscribed = match link.ask(subscribe).await {
        Ok(response) if response.code == code::OK => Ok(()),
        Ok(response) => Err(refused(response.code, stream)),
        Err(error) => Err(error),
    };
    if let Err(error) = subscribed {
        link.remove_consumer(number);
        return Err(error);
    }
    let mut state = shared.state.lock();
    if !link.is_alive() {
        return Err(lost("the connection was lost"));
    }
    state.attached = Some((link, number));
    // A chunk may have come and been taken before the link was known here.
    if let Some((link, number, count)) = state.give(shared.options.bytes_max) {
        link.send(credit(number, count));
    }
    Ok(())
}

/// Subscribes again whenever the consumer is detached, until it is closed.
pub(super) async fn supervise(client: Arc<Inner>, shared: Arc<Shared>) {
    let mut attempts = 0;
    loop {
        let (attached, elected, done) = {
            let mut state = shared.state.lock();
            (state.attached.clone(), state.elected.take(), state.closing || state.over.is_some())
        };
        if done {
            break;
        }
        let Some((link, _)) = attached else {
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
        if let Some((correlation, active)) = elected {
            let from = if active { Some(activation(&client, &shared).await) } else { None };
            link.activate(correlation, from);
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
        link.remove_consumer(number);
    }
}

/// Where a consumer begins that has become the active one: at the stored offset, if there is one.
async fn activation(client: &Arc<Inner>, shared: &Arc<Shared>) -> OffsetSpec {
    let name = shared.options.name.as_deref().unwrap_or_default();
    let stored = client.stored_offset(&shared.stream, name).await.ok().flatten();
    let mut state = shared.state.lock();
    if let Some(stored) = stored {
        state.resume = OffsetSpec::Offset(stored);
    }
    state.resume
}

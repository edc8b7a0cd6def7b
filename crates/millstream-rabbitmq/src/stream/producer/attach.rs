//! From one connection to the next.

use std::sync::Arc;

use millstream_message::{BrokerError, BrokerErrorKind};
use tokio::time::Instant;

use super::super::client::{Inner, backoff};
use super::super::command::{Body, Request, code};
use super::super::link::{Link, lost, refused};
use super::window::Shared;

/// Finds the stream's leader, declares the publisher there, and sends what is not confirmed. Returns the highest
/// publishing id that is stored under its name, when that is asked for.
pub(super) async fn attach(client: &Arc<Inner>, shared: &Arc<Shared>, ask: bool) -> Result<u64, BrokerError> {
    let stream = shared.stream.as_str();
    let link = client.leader(stream).await?;
    let number = link.add_publisher(shared);
    let number = number.ok_or_else(|| lost("all publishers of a connection are taken"))?;
    let mut registered =
        Registered { link: link.clone(), publisher: shared, number, declared: true, keep: false };
    let reference = shared.options.name.clone().unwrap_or_default();
    let declare = Request::DeclarePublisher {
        publisher: number,
        reference: reference.clone(),
        stream: stream.to_owned(),
    };
    let declared = link.ask(declare).await?.code;
    registered.declared = declared == code::OK;
    match declared {
        code::OK => {}
        code::PRECONDITION_FAILED => {
            let text = format!(
                "stream `{stream}`: the broker takes no publisher: it has an alarm (memory, disk), or another \
                 producer of this connection has the name `{reference}`"
            );
            return Err(lost(text));
        }
        other => return Err(refused(other, stream)),
    }
    let mut last = 0;
    if ask && !reference.is_empty() {
        let query = Request::QueryPublisherSequence { reference, stream: stream.to_owned() };
        if let Body::Number(number) = link.request(query, stream).await? {
            last = number;
        }
    }
    let mut state = shared.state.lock();
    // Lost again meanwhile: the next attempt finds out.
    if !link.is_alive() {
        return Err(lost("the connection was lost"));
    }
    // Whoever takes it out tells it so, which finds an attached one, or happened before.
    if !link.has_publisher(number, shared) {
        return Err(lost(format!("stream `{stream}` is not available here any more")));
    }
    state.frame_max = link.server.frame_max as usize;
    state.away = None;
    link.send_all(state.frames.iter().filter(|frame| !frame.is_done()).map(|frame| frame.again(number)));
    state.attached = Some((link.clone(), number));
    registered.keep = true;
    drop(state);
    shared.room.notify_waiters();
    Ok(last)
}

/// A publisher's number, given back if declaring it fails, or nobody waits for it any more.
struct Registered<'a> {
    link: Arc<Link>,
    publisher: &'a Arc<Shared>,
    number: u8,
    /// The broker has it, as far as we know.
    declared: bool,
    keep: bool,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // The broker hears of it before it hears of the next one with this number.
        if self.declared && self.link.has_publisher(self.number, self.publisher) {
            self.link.tell(Request::DeletePublisher { publisher: self.number });
        }
        self.link.remove_publisher(self.number, self.publisher);
    }
}

/// Attaches the producer again whenever it is detached, until it is closed and nothing is in flight.
pub(super) async fn supervise(client: Arc<Inner>, shared: Arc<Shared>) {
    let mut attempts = 0;
    let mut since = None;
    loop {
        let (attached, done) = {
            let state = shared.state.lock();
            (state.attached.is_some(), state.closing && state.frames.is_empty() || state.over.is_some())
        };
        if done {
            break;
        }
        if attached {
            (attempts, since) = (0, None);
            tokio::select! {
                () = shared.wake.notified() => {}
                () = client.closed(), if !shared.state.lock().closing => shared.close(),
            }
            continue;
        }
        let since = *since.get_or_insert_with(Instant::now);
        tokio::time::sleep(backoff(attempts)).await;
        attempts += 1;
        match attach(&client, &shared, false).await {
            Ok(_) => tracing::info!(stream = shared.stream, "a producer is back"),
            Err(error) => {
                let mut state = shared.state.lock();
                if error.kind() == BrokerErrorKind::NotFound || client.is_closed() {
                    state.over = Some(error.clone());
                    state.give_up(&error);
                } else if since.elapsed() >= client.settings.patience {
                    state.away = Some(error.clone());
                    state.give_up(&error);
                }
                drop(state);
                shared.room.notify_waiters();
            }
        }
    }
    let attached = shared.state.lock().attached.take();
    if let Some((link, number)) = attached {
        // Gone or not, the number is free.
        let _ = link.ask(Request::DeletePublisher { publisher: number }).await;
        link.remove_publisher(number, &shared);
    }
    shared.room.notify_waiters();
}

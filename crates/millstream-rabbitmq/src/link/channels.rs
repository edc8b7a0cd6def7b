//! Channels of a link: opened, asked, published on.

use std::collections::VecDeque;

use millstream_message::Message;
use tokio::sync::oneshot;

use super::io::WRITE;
use super::{CallError, Channel, Link, Role, State, Use, Waiter};
use crate::confirms::Entry;
use crate::consumer::{ConsumerCore, FirstWords};
use crate::proto::{Connection, Method};
use crate::replies;
use crate::told::Told;

/// A channel that was asked for. Nobody waits for it any more when this is dropped.
struct Unclaimed<'a> {
    link: &'a Link,
    channel: Option<Channel>,
}

impl Drop for Unclaimed<'_> {
    fn drop(&mut self) {
        if let Some(channel) = self.channel {
            self.link.close_channel(channel);
        }
    }
}

impl State {
    /// Whether a channel is still open: neither was its connection lost nor did the server close it.
    pub(super) fn has(&self, channel: Channel) -> bool {
        self.channels.get(&channel.number).is_some_and(|used| used.serial == channel.serial)
    }

    /// Writes on a channel, and has somebody wait for the answer.
    fn send_with(
        &mut self,
        channel: Channel,
        waiter: Waiter,
        write: impl FnOnce(&mut Connection, u16),
    ) -> Result<(), CallError> {
        let State { connection: Some(connection), channels, .. } = self else { return Err(CallError::Lost) };
        let used = channels.get_mut(&channel.number).filter(|used| used.serial == channel.serial);
        used.ok_or(CallError::Lost)?.waiting.push_back(waiter);
        write(connection, channel.number);
        Ok(())
    }
}

impl Link {
    /// Opens a channel for this role.
    ///
    /// # Cancel safety
    /// Dropped before it is done, it has the channel closed.
    pub(crate) async fn open_channel(&self, role: Role) -> Result<Channel, CallError> {
        let (caller, answer) = oneshot::channel();
        let channel = {
            let mut state = self.state();
            let connection = state.connection.as_mut().ok_or(CallError::Lost)?;
            let most = connection.server().channel_max;
            let number = connection.open_channel().ok_or(CallError::NoChannel(most))?;
            state.serial += 1;
            let serial = state.serial;
            let waiting = VecDeque::from([Waiter::Call(caller)]);
            state.channels.insert(number, Use { serial, role, waiting });
            Channel { number, serial }
        };
        self.wake();
        let mut unclaimed = Unclaimed { link: self, channel: Some(channel) };
        let opened = answer.await.unwrap_or(Err(CallError::Lost));
        unclaimed.channel = None;
        opened.map(|_| channel)
    }

    /// Gives a consumer the channel that was opened for it. What has the broker deliver on it.
    ///
    /// # Errors
    /// `Lost` if the channel is not there any more, or the consumer wants none: then it is closed.
    pub(crate) fn hand_over(
        &self,
        channel: Channel,
        consumer: &ConsumerCore,
    ) -> Result<Option<FirstWords>, CallError> {
        let handed = {
            // As long as this is locked the channel stays: the consumer hears of its loss after it has heard of it.
            let state = self.state();
            if state.has(channel) { consumer.opened(channel) } else { Err(CallError::Lost) }
        };
        if handed.is_err() {
            self.close_channel(channel);
        }
        handed
    }

    /// Sends a method and waits for its answer.
    ///
    /// # Cancel safety
    /// A method that was sent takes effect whether anybody waits for its answer or not.
    pub(crate) async fn call(&self, channel: Channel, method: &Method) -> Result<Method, CallError> {
        let (caller, answer) = oneshot::channel();
        self.state().send_with(channel, Waiter::Call(caller), |connection, number| {
            connection.send(number, method);
        })?;
        self.wake();
        answer.await.unwrap_or(Err(CallError::Lost))
    }

    /// Has a channel closed; nobody waits for it.
    pub(crate) fn close_channel(&self, channel: Channel) {
        let mut state = self.state();
        if state.has(channel)
            && let Some(connection) = &mut state.connection
        {
            connection.close_channel(channel.number);
            drop(state);
            self.wake();
        }
    }

    /// Makes this channel the one that everything is published on, and sends what was not confirmed.
    pub(crate) fn publish_on(&self, channel: Channel) {
        let now = self.now();
        let mut state = self.state();
        let is_open = state.has(channel);
        let State { connection: Some(connection), outbox, publisher, .. } = &mut *state else { return };
        if is_open {
            *publisher = Some(channel.number);
            outbox.restart(connection, channel.number, now);
        }
        drop(state);
        self.wake();
    }

    /// Has replies come on a channel, and learns their address: see [`replies`](crate::replies).
    pub(crate) async fn reply_on(&self, channel: Channel) -> Result<(), CallError> {
        self.call(channel, &replies::consume()).await?;
        let (caller, answer) = oneshot::channel();
        let nowhere = format!("millstream.nowhere.{:032x}", fastrand::u128(..));
        let asking = Message::new("").with_reply_to(replies::REPLY_TO);
        self.state().send_with(channel, Waiter::Address(caller), |connection, number| {
            connection.publish(number, "", &nowhere, &asking);
        })?;
        self.wake();
        let address = answer.await.unwrap_or(Err(CallError::Lost))?;
        let mut state = self.state();
        if state.has(channel) {
            state.replying = true;
            self.known.replies.received_at(address);
        }
        Ok(())
    }

    /// Takes a batch to publish. What will become of it, and whether so much waits to be written that the publisher should let
    /// it be written; `None` if the link is closed.
    pub(crate) fn push(&self, entry: Entry) -> Option<(Told, bool)> {
        let mut state = self.state();
        let State { connection, outbox, publisher, closing, .. } = &mut *state;
        if *closing {
            return None;
        }
        let to = connection.as_mut().zip(*publisher);
        let told = outbox.push(entry, to, || self.now());
        let crowded = connection.as_ref().is_some_and(|connection| connection.output().len() >= WRITE);
        drop(state);
        self.wake();
        Some((told, crowded))
    }
}

//! Channels of a link: opened, asked, published on.

use std::collections::VecDeque;

use millstream_message::Message;
use tokio::sync::oneshot;

use super::io::WRITE;
use super::{Answer, CallError, Channel, Link, Role, State, Use, Waiter};
use crate::confirms::Entry;
use crate::proto::Method;
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
    /// Writes a method whose answer somebody waits for.
    fn send_call(&mut self, channel: Channel, method: &Method) -> Result<Answer, CallError> {
        let (caller, answer) = oneshot::channel();
        let State { connection: Some(connection), channels, life, .. } = self else {
            return Err(CallError::Lost);
        };
        let used =
            channels.get_mut(&channel.number).filter(|_| *life == channel.life).ok_or(CallError::Lost)?;
        used.waiting.push_back(Waiter::Call(caller));
        connection.send(channel.number, method);
        Ok(answer)
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
            let life = state.life;
            let connection = state.connection.as_mut().ok_or(CallError::Lost)?;
            let most = connection.server().channel_max;
            let number = connection.open_channel().ok_or(CallError::NoChannel(most))?;
            let waiting = VecDeque::from([Waiter::Call(caller)]);
            state.channels.insert(number, Use { role, waiting });
            Channel { number, life }
        };
        self.wake();
        let mut unclaimed = Unclaimed { link: self, channel: Some(channel) };
        let opened = answer.await.unwrap_or(Err(CallError::Lost));
        unclaimed.channel = None;
        opened.map(|_| channel)
    }

    /// Sends a method and waits for its answer.
    ///
    /// # Cancel safety
    /// A method that was sent takes effect whether anybody waits for its answer or not.
    pub(crate) async fn call(&self, channel: Channel, method: &Method) -> Result<Method, CallError> {
        let answer = self.send_call(channel, method)?;
        self.wake();
        answer.await.unwrap_or(Err(CallError::Lost))
    }

    fn send_call(&self, channel: Channel, method: &Method) -> Result<Answer, CallError> {
        self.state().send_call(channel, method)
    }

    /// Has a channel closed; nobody waits for it.
    pub(crate) fn close_channel(&self, channel: Channel) {
        let mut state = self.state();
        if state.life == channel.life
            && let Some(connection) = &mut state.connection
        {
            connection.close_channel(channel.number);
            drop(state);
            self.wake();
        }
    }

    /// Makes this channel the one that everything is published on, and sends what was not confirmed.
    pub(crate) fn publish_on(&self, channel: Channel) {
        let mut state = self.state();
        let State { connection: Some(connection), life, outbox, publisher, .. } = &mut *state else { return };
        if *life == channel.life {
            *publisher = Some(channel.number);
            outbox.restart(connection, channel.number);
        }
        drop(state);
        self.wake();
    }

    /// Has replies come on a channel, and learns their address: see [`replies`](crate::replies).
    pub(crate) async fn reply_on(&self, channel: Channel) -> Result<(), CallError> {
        self.call(channel, &replies::consume()).await?;
        let answer = {
            let (caller, answer) = oneshot::channel();
            let mut state = self.state();
            let State { connection: Some(connection), channels, life, .. } = &mut *state else {
                return Err(CallError::Lost);
            };
            let used =
                channels.get_mut(&channel.number).filter(|_| *life == channel.life).ok_or(CallError::Lost)?;
            used.waiting.push_back(Waiter::Address(caller));
            let nowhere = format!("millstream.nowhere.{:032x}", fastrand::u128(..));
            let asking = Message::new("").with_reply_to(replies::REPLY_TO);
            connection.publish(channel.number, "", &nowhere, &asking);
            answer
        };
        self.wake();
        let address = answer.await.unwrap_or(Err(CallError::Lost))?;
        let mut state = self.state();
        if state.life == channel.life {
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
        let told = outbox.push(entry, to);
        let crowded = connection.as_ref().is_some_and(|connection| connection.output().len() >= WRITE);
        drop(state);
        self.wake();
        Some((told, crowded))
    }
}

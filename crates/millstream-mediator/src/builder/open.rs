//! What must have handlers, and what is open to calls by name.

use std::any::TypeId;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Builder;
use crate::behaviour::Behaviours;
use crate::json::{ToRequest, ToStream, ToTopic};
use crate::mediator::Dispatch;
#[cfg(doc)]
use crate::mediator::Mediator;
use crate::message::{Notification, Request, StreamRequest};
use crate::stream::{Opening, StreamBehaviours};

/// What must be there, and what is open to JSON.
impl<B: Behaviours, S: StreamBehaviours> Builder<B, S> {
    /// Says that this request is sent: without a handler for it the mediator is not built.
    pub fn declare<R: Request>(mut self) -> Self {
        self.parts.declared.push((TypeId::of::<R>(), R::name(), "request"));
        self
    }

    /// Says that this stream request is sent: without a handler for it the mediator is not built.
    pub fn declare_stream<R: StreamRequest>(mut self) -> Self {
        self.parts.declared.push((TypeId::of::<R>(), R::name(), "stream"));
        self
    }

    /// Says that this notification is published: it may then be subscribed to, and counts, also if no handler takes it.
    pub fn declare_notification<N: Notification>(mut self) -> Self {
        self.parts.topic::<N>();
        self
    }

    /// Opens a request to [calls by name](Mediator::send_json).
    pub fn json<R>(mut self) -> Self
    where
        R: Request + DeserializeOwned,
        R::Response: Serialize,
    {
        self.parts.doors.push(Box::new(|tables, doors| {
            let route = tables.requests.get(&TypeId::of::<R>());
            let route: Option<&Arc<dyn Dispatch<R>>> = route.and_then(|route| route.downcast_ref());
            let name = R::name();
            let route = route.ok_or_else(|| no_handler_for_json("request", &name))?.clone();
            doors.requests.insert(name.into_owned(), Arc::new(ToRequest(route)));
            Ok(())
        }));
        self
    }

    /// Opens a notification to [publishes by name](Mediator::publish_json).
    pub fn json_notification<N: Notification + DeserializeOwned>(mut self) -> Self {
        self.parts.doors.push(Box::new(|tables, doors| {
            let name = N::name();
            if !tables.topics.contains_key(&TypeId::of::<N>()) {
                return Err(no_handler_for_json("notification", &name));
            }
            doors.notifications.insert(name.into_owned(), Arc::new(ToTopic::<N>(PhantomData)));
            Ok(())
        }));
        self
    }

    /// Opens a stream request to [calls by name](Mediator::stream_json).
    pub fn json_stream<R>(mut self) -> Self
    where
        R: StreamRequest + DeserializeOwned,
        R::Item: Serialize,
    {
        self.parts.doors.push(Box::new(|tables, doors| {
            let route = tables.streams.get(&TypeId::of::<R>());
            let route: Option<&Arc<dyn Dispatch<Opening<R>>>> = route.and_then(|route| route.downcast_ref());
            let name = R::name();
            let route = route.ok_or_else(|| no_handler_for_json("stream", &name))?.clone();
            doors.streams.insert(name.into_owned(), Arc::new(ToStream(route)));
            Ok(())
        }));
        self
    }
}

fn no_handler_for_json(what: &str, name: &str) -> String {
    format!("the {what} {name} is opened to JSON and has no handler; register one")
}

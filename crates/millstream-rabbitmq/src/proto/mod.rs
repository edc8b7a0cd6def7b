//! AMQP 0-9-1 without a socket and without a clock: bytes and the time go in, bytes and events come out.
//!
//! The specification is "AMQP Advanced Message Queuing Protocol, Protocol Specification, version 0-9-1" (2008) with RabbitMQ's
//! extensions: publisher confirms, `basic.nack`, bindings between exchanges, notices of cancelled consumers and of blocked
//! connections. What is not here: transactions (the methods are read and written, nobody uses them: confirms say more, sooner),
//! `immediate`, and `channel.flow` from our side.

pub(crate) mod connection;
pub(crate) mod method;
pub(crate) mod properties;
pub(crate) mod wire;

pub(crate) use connection::{Closed, Connection, Content, Event, Login, ProtocolError, Server, Settings};
pub(crate) use method::Method;

//! Flows, queues and streams behind routes.

mod flows;
mod served;
mod support;
mod websockets;

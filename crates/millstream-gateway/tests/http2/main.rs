//! HTTP/2 and TLS on either side.

mod frames;
mod hostile;
mod proxying;
mod silent;
mod support;
mod upstreams;
mod websocket;

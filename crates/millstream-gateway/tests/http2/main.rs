//! HTTP/2 and TLS on either side.

mod draining;
mod frames;
mod hostile;
mod limits;
mod proxying;
mod raw;
mod reloading;
mod silent;
mod slow;
mod support;
mod under_way;
mod uploads;
mod upstreams;
mod websocket;

//! The gateway over real sockets, between a client that writes raw bytes and an upstream that is played by the test.

mod bodies;
mod compressed;
mod ends;
mod hostile;
mod leaving;
mod reloading;
mod support;
mod switching;
mod under_way;
mod upstreams;

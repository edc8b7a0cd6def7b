//! HTTP/2 and TLS on either side.

mod hostile;
mod proxying;
mod silent;
mod support;
mod upstreams;

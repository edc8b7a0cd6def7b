//! HTTP/1: heads and framing as plain data, and the two sides of a connection.

pub(crate) mod decoder;
pub(crate) mod head;
pub(crate) mod io;
pub(crate) mod watch;

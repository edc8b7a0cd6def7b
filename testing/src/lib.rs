//! What the tests and chores of several crates share: a RabbitMQ of their own, and a proxy in front of it.
//!
//! Nothing here is published, and nothing that is published needs it.
#![forbid(unsafe_code)]

mod certificates;
mod node;
mod proxy;

pub use certificates::Certificates;
pub use node::{Node, SERVER, Setup, left_out, shared};
pub use proxy::Proxy;

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};

/// A port that nobody has at the moment.
///
/// # Panics
/// If the system has none.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("a port").port()
}

/// A name that no other test of this process uses.
pub fn unique(role: &str) -> String {
    static NAMES: AtomicU64 = AtomicU64::new(0);
    format!("{role}-{}", NAMES.fetch_add(1, Ordering::Relaxed))
}

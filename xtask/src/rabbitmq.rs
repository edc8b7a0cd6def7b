//! RabbitMQ for chores that need one: installed if it is missing, a node for as long as the chore takes.

use millstream_testing::{Node, SERVER, Setup};

use crate::needs::{Need, meet};

pub(crate) const NEED: Need = Need {
    name: "rabbitmq-server",
    probe: &["test", "-x", SERVER],
    install: &["apt-get", "install", "--yes", "--no-install-recommends", "rabbitmq-server"],
    root: true,
};

/// Installs the server if it is missing (Debian, as root or with sudo), and starts a node.
pub(crate) fn start() -> Result<Node, String> {
    meet(&NEED)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime
        .map_err(|error| error.to_string())?
        .block_on(Node::start(Setup::default().plugin("rabbitmq_stream")))
}

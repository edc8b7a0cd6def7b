//! A RabbitMQ node of our own, beside whatever else runs on the machine, for as long as a chore needs it.

use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::needs::{Need, meet};
use crate::steps::command;

/// The server's own script: the one in the path changes its user.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

pub(crate) const NEED: Need = Need {
    name: "rabbitmq-server",
    probe: &["test", "-x", SERVER],
    install: &["sh", "-c", "apt-get update && apt-get install --yes --no-install-recommends rabbitmq-server"],
    root: true,
};

/// Ports that a node of the system does not have.
const PORT: u16 = 25_673;
const PORT_DISTRIBUTION: u16 = 25_674;

/// How long a node may take to start, in looks a quarter of a second apart.
const LOOKS: u32 = 240;

/// A running node; stopped, and its files removed, when dropped.
pub(crate) struct Node {
    server: Child,
    directory: PathBuf,
}

impl Node {
    /// Installs the server if it is missing (Debian, as root or with sudo), and starts a node.
    pub(crate) fn start() -> Result<Node, String> {
        meet(&NEED)?;
        let directory = std::env::temp_dir().join(format!("millstream-rabbitmq-{}", std::process::id()));
        std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let log = std::fs::File::create(directory.join("out")).map_err(|error| error.to_string())?;
        let below = |name: &str| directory.join(name);
        let server = Command::new(SERVER)
            .env("HOME", &directory)
            .env("RABBITMQ_NODENAME", "millstream@localhost")
            .env("RABBITMQ_ERLANG_COOKIE", "millstream")
            .env("RABBITMQ_NODE_IP_ADDRESS", Ipv4Addr::LOCALHOST.to_string())
            .env("RABBITMQ_NODE_PORT", PORT.to_string())
            .env("RABBITMQ_DIST_PORT", PORT_DISTRIBUTION.to_string())
            .env("RABBITMQ_MNESIA_BASE", below("data"))
            .env("RABBITMQ_LOG_BASE", below("log"))
            .env("RABBITMQ_PID_FILE", below("pid"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", below("plugins"))
            .env("RABBITMQ_CONF_ENV_FILE", below("none"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log)
            // The script starts Erlang as a child: both are stopped as a group.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{SERVER}: {error}"))?;
        let mut node = Node { server, directory };
        for _ in 0..LOOKS {
            if let Ok(Some(status)) = node.server.try_wait() {
                let out = std::fs::read_to_string(node.directory.join("out")).unwrap_or_default();
                return Err(format!("rabbitmq-server ended with {status}:\n{out}"));
            }
            if node.is_ready() {
                return Ok(node);
            }
            pause();
        }
        Err("rabbitmq-server does not listen after a minute".to_owned())
    }

    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{PORT}/%2f")
    }

    /// It listens before it is done starting, so its own words are what counts.
    fn is_ready(&self) -> bool {
        let out = std::fs::read_to_string(self.directory.join("out")).unwrap_or_default();
        out.contains("completed with") && TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).is_ok()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let group = format!("-{}", self.server.id());
        let _ = command("kill").args(["-KILL", "--", &group]).run();
        let _ = self.server.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[expect(clippy::disallowed_methods, reason = "another process is waited for")]
fn pause() {
    std::thread::sleep(Duration::from_millis(250));
}

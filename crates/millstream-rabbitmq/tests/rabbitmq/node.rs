//! A RabbitMQ of the tests' own: Debian's server, with a directory and ports of its own.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::OnceCell;

/// The server's own script: the one in the path changes its user.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const CONTROL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";

/// A node; gone, with its directory, when it is dropped or the process ends.
pub(crate) struct Node {
    directory: tempfile::TempDir,
    pub(crate) port: u16,
    distribution: u16,
    server: Option<Child>,
}

impl Node {
    /// A node with further lines in its configuration.
    pub(crate) async fn start(configuration: &str) -> Node {
        assert!(
            Path::new(SERVER).exists(),
            "{SERVER} is missing: `cargo xtask test` installs it, or `apt-get install rabbitmq-server`"
        );
        let directory = tempfile::tempdir().expect("a directory");
        let (port, distribution) = (free_port(), free_port());
        std::fs::write(directory.path().join("rabbitmq.conf"), configuration).expect("written");
        if configuration.contains("EXTERNAL") {
            std::fs::write(directory.path().join("plugins"), "[rabbitmq_auth_mechanism_ssl].")
                .expect("written");
        }
        let mut node = Node { directory, port, distribution, server: None };
        node.run().await;
        node
    }

    fn below(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn name(&self) -> String {
        format!("millstream{}@localhost", self.port)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("HOME", self.directory.path())
            .env("RABBITMQ_NODENAME", self.name())
            .env("RABBITMQ_ERLANG_COOKIE", "millstream")
            .env("RABBITMQ_NODE_IP_ADDRESS", Ipv4Addr::LOCALHOST.to_string())
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.distribution.to_string())
            .env("RABBITMQ_MNESIA_BASE", self.below("data"))
            .env("RABBITMQ_LOG_BASE", self.below("log"))
            .env("RABBITMQ_PID_FILE", self.below("pid"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.below("plugins"))
            .env("RABBITMQ_CONFIG_FILE", self.below("rabbitmq.conf"))
            .env("RABBITMQ_CONF_ENV_FILE", self.below("none"));
        command
    }

    /// Starts the server and waits until it takes connections.
    pub(crate) async fn run(&mut self) {
        assert!(self.server.is_none(), "it runs already");
        let log = std::fs::File::create(self.below("out")).expect("a file");
        // The shell ends what it started when this process has ended, however that was: then its input ends.
        let directory = self.directory.path().display();
        let script = format!("{SERVER} & cat > /dev/null; rm -rf {directory}; kill -KILL 0");
        let mut command = self.command("sh");
        command
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log);
        self.server = Some(command.process_group(0).spawn().expect("a shell"));
        for _ in 0..600 {
            let out = std::fs::read_to_string(self.below("out")).unwrap_or_default();
            // It listens before it is done starting, so its own words are what counts.
            if out.contains("completed with") && TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!(
            "rabbitmq-server does not listen:\n{}",
            std::fs::read_to_string(self.below("out")).unwrap_or_default()
        );
    }

    /// Stops it at once, as a power cut would, but for what the system has in its buffers.
    pub(crate) fn kill(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let group = format!("-{}", server.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = server.wait();
    }

    /// Stops it in good order: connections are closed, and messages written.
    pub(crate) async fn stop(&mut self) {
        self.control(&["stop"]).await;
        for _ in 0..600 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The script waits for the virtual machine, which writes what is left.
        let pid = std::fs::read_to_string(self.below("pid")).unwrap_or_default();
        while !pid.is_empty() && Path::new("/proc").join(pid.trim()).exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.kill();
    }

    /// Runs `rabbitmqctl` and gives what it prints.
    pub(crate) async fn control(&self, arguments: &[&str]) -> String {
        let mut command = tokio::process::Command::from(self.command(CONTROL));
        let name = self.name();
        let output =
            command.args(["-n", &name, "-q"]).args(arguments).output().await.expect("rabbitmqctl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }
}

/// The node of all tests that do not stop it.
pub(crate) async fn shared() -> &'static Node {
    static SHARED: OnceCell<Node> = OnceCell::const_new();
    SHARED.get_or_init(|| Node::start("")).await
}

/// A name that no other test uses.
pub(crate) fn unique(role: &str) -> String {
    static NAMES: AtomicU64 = AtomicU64::new(0);
    format!("{role}-{}", NAMES.fetch_add(1, Ordering::Relaxed))
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody has at the moment.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("a port").port()
}

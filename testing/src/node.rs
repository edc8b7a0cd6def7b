//! A RabbitMQ of our own: Debian's server, with a directory and ports of its own, beside whatever else runs on the machine.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::free_port;

/// The server's own script: the one in the path changes its user.
pub const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
/// The variable that names the directory of another RabbitMQ's programs, to test with its version.
const OTHER_PROGRAMS: &str = "MILLSTREAM_RABBITMQ";

/// One of RabbitMQ's programs.
fn program(name: &str) -> PathBuf {
    Path::new(&std::env::var(OTHER_PROGRAMS).unwrap_or_else(|_| PROGRAMS.to_owned())).join(name)
}

/// How long it may take to start and to stop, in looks a twentieth of a second apart.
const LOOKS: u32 = 1200;
const LOOK: Duration = Duration::from_millis(50);

/// What a test says of its claim when the RabbitMQ that it has is too old for it, and it has looked at the refusal instead.
///
/// # Panics
/// In `cargo xtask soak`, where no claim may be left out.
pub fn left_out(claim: &str, needs: &str) {
    let text = format!(
        "not tested, for it needs RabbitMQ {needs}: {claim}; {OTHER_PROGRAMS} names the directory of another one's programs"
    );
    assert!(std::env::var_os("MILLSTREAM_SOAK").is_none(), "{text}");
    eprintln!("{text}");
}

/// What a node is to be.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    configuration: String,
    plugins: Vec<&'static str>,
}

impl Setup {
    /// Further lines of its configuration.
    #[must_use]
    pub fn configured(mut self, lines: &str) -> Setup {
        self.configuration.push_str(lines);
        self.configuration.push('\n');
        self
    }

    /// A plugin of those that come with it.
    #[must_use]
    pub fn plugin(mut self, name: &'static str) -> Setup {
        self.plugins.push(name);
        self
    }
}

/// A node; gone, with its directory, when it is dropped or the process ends, however that ends.
#[derive(Debug)]
pub struct Node {
    directory: tempfile::TempDir,
    /// Where AMQP is spoken.
    pub port: u16,
    /// Where the stream protocol is, with the plugin `rabbitmq_stream`.
    pub stream_port: u16,
    /// Where the management is, with the plugin `rabbitmq_management`.
    pub management_port: u16,
    distribution: u16,
    server: Mutex<Option<Child>>,
}

impl Node {
    /// Starts a node, and waits until it takes connections.
    ///
    /// # Errors
    /// If RabbitMQ is not installed, or does not start.
    pub async fn start(setup: Setup) -> Result<Node, String> {
        let server = program("rabbitmq-server");
        if !server.exists() {
            return Err(format!(
                "{} is missing: `cargo xtask test` installs RabbitMQ, or `apt-get install rabbitmq-server`; \
                 {OTHER_PROGRAMS} names the directory of another one's programs",
                server.display()
            ));
        }
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (port, stream_port, distribution) = (free_port(), free_port(), free_port());
        let management_port = free_port();
        // Little room is enough for tests, and a full disk of the machine is not what they are about.
        let mut configuration = format!("disk_free_limit.absolute = 1MB\n{}", setup.configuration);
        if setup.plugins.contains(&"rabbitmq_stream") {
            configuration.push_str(&format!(
                "stream.listeners.tcp.1 = 127.0.0.1:{stream_port}\nstream.advertised_host = 127.0.0.1\n\
                 stream.advertised_port = {stream_port}\n"
            ));
        }
        if setup.plugins.contains(&"rabbitmq_management") {
            configuration.push_str(&format!(
                "management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management_port}\n"
            ));
        }
        let write = |name: &str, text: String| {
            std::fs::write(directory.path().join(name), text).map_err(|error| format!("{name}: {error}"))
        };
        write("rabbitmq.conf", configuration)?;
        write("plugins", format!("[{}].", setup.plugins.join(",")))?;
        let node =
            Node { directory, port, stream_port, management_port, distribution, server: Mutex::default() };
        node.run().await?;
        Ok(node)
    }

    /// Starts so many nodes with the same setup, as one cluster.
    ///
    /// # Errors
    /// If one of them does not start.
    ///
    /// # Panics
    /// If one does not join.
    pub async fn cluster(nodes: usize, setup: Setup) -> Result<Vec<Node>, String> {
        let mut starting: JoinSet<Result<Node, String>> = JoinSet::new();
        (0..nodes).for_each(|_| drop(starting.spawn(Node::start(setup.clone()))));
        let nodes = starting.join_all().await.into_iter().collect::<Result<Vec<Node>, String>>()?;
        let (first, others) = nodes.split_first().expect("there is one");
        for node in others {
            node.tell("rabbitmqctl", &["stop_app"]).await;
            node.tell("rabbitmqctl", &["join_cluster", &first.name()]).await;
            node.tell("rabbitmqctl", &["start_app"]).await;
        }
        Ok(nodes)
    }

    fn below(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn name(&self) -> String {
        format!("millstream{}@localhost", self.port)
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
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

    /// Starts the server of a node that was stopped, and waits until it takes connections.
    ///
    /// # Errors
    /// If it does not start; with what it says.
    ///
    /// # Panics
    /// If it runs.
    pub async fn run(&self) -> Result<(), String> {
        let server = program("rabbitmq-server");
        let server = server.display();
        let failed = |error: std::io::Error| format!("{server}: {error}");
        let log = std::fs::File::create(self.below("out")).map_err(failed)?;
        // The shell ends what it started when this process has ended, however that was: then its input ends. The directory is
        // removed by one who is not of the group, when nobody is left who would write there.
        let directory = self.directory.path().display();
        let script =
            format!("{server} & cat > /dev/null; exec setsid sh -c \"kill -KILL -$$; rm -rf {directory}\"");
        let mut command = self.command("sh");
        command
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log);
        // The script starts Erlang as a child: they are ended as a group.
        let child = command.process_group(0).spawn().map_err(failed)?;
        let before = self.server.lock().unwrap_or_else(PoisonError::into_inner).replace(child);
        assert!(before.is_none(), "it runs already");
        for _ in 0..LOOKS {
            // It listens before it is done starting, so its own words are what counts.
            if self.said().contains("completed with")
                && TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
            {
                return Ok(());
            }
            sleep(LOOK).await;
        }
        Err(format!("rabbitmq-server does not listen:\n{}", self.said()))
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.below("out")).unwrap_or_default()
    }

    /// Stops it at once, as a power cut would, but for what the system has in its buffers.
    pub fn kill(&self) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut server) = server else { return };
        let group = format!("-{}", server.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = server.wait();
    }

    /// Stops it in good order: connections are closed, and what is left is written.
    pub async fn stop(&self) {
        let pid = std::fs::read_to_string(self.below("pid")).unwrap_or_default();
        let pid = pid.trim();
        let _ = Command::new("kill").args(["-TERM", pid]).status();
        for _ in 0..LOOKS {
            if pid.is_empty() || !Path::new("/proc").join(pid).exists() {
                break;
            }
            sleep(LOOK).await;
        }
        self.kill();
    }

    /// Runs one of RabbitMQ's programs on it, such as `rabbitmqctl`, and gives what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub async fn tell(&self, name: &str, arguments: &[&str]) -> String {
        let mut command = tokio::process::Command::from(self.command(program(name)));
        let node = self.name();
        let output = command.args(["-n", &node, "-q"]).args(arguments).output().await.expect("it can be run");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} {arguments:?}: {text}{complaint}");
        text
    }

    /// Its address by AMQP.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// The same, with where its management is.
    pub fn managed_url(&self) -> String {
        format!("{}?management=http://127.0.0.1:{}", self.url(), self.management_port)
    }

    /// Its address by the stream protocol, with options.
    pub fn stream_url(&self, options: &str) -> String {
        format!("rabbitmq-stream://guest:guest@127.0.0.1:{}/?{options}", self.stream_port)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The node of all tests of a process that do not stop it.
///
/// # Panics
/// If it does not start.
pub async fn shared() -> &'static Node {
    static SHARED: OnceCell<Node> = OnceCell::const_new();
    SHARED.get_or_init(async || Node::start(Setup::default()).await.expect("it starts")).await
}

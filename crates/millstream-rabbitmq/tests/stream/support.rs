//! A RabbitMQ node of the tests' own, and a proxy that cuts connections.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use millstream_message::{Message, StreamFrom, StreamItem, StreamReader};
use millstream_rabbitmq::stream::{ConsumerOptions, StreamClient, StreamSettings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;

const BIN: &str = "/usr/lib/rabbitmq/bin";
const NODE: &str = "mstream@localhost";
const PORT_AMQP: u16 = 26_673;
const PORT_DISTRIBUTION: u16 = 26_674;
pub(crate) const PORT: u16 = 26_675;

/// Starts and stops the server as it is told, and stops it for good when nobody can tell it anything any more: however
/// the tests end, nothing stays.
const KEEPER: &str = r#"
while read -r command; do
  case $command in
    start) setsid "$BIN/rabbitmq-server" >"$DIR/out" 2>&1 </dev/null & server=$! ;;
    stop) kill -15 "-$server"; wait "$server" ;;
    kill) kill -9 "-$server"; wait "$server" ;;
  esac
done
kill -9 "-$server"
rm -rf "$DIR"
"#;

/// The node: one for all tests of a binary.
pub(crate) struct Node {
    keeper: std::sync::Mutex<ChildStdin>,
    dir: PathBuf,
    /// Held by tests that use the node, and alone by one that stops it.
    pub(crate) turn: tokio::sync::RwLock<()>,
}

static THE_NODE: LazyLock<Node> = LazyLock::new(Node::start);

/// The node, running.
pub(crate) fn node() -> &'static Node {
    &THE_NODE
}

fn environment(dir: &Path) -> Vec<(&'static str, String)> {
    let below = |name: &str| dir.join(name).display().to_string();
    vec![
        ("HOME", dir.display().to_string()),
        ("RABBITMQ_NODENAME", NODE.to_owned()),
        ("RABBITMQ_DIST_PORT", PORT_DISTRIBUTION.to_string()),
        ("RABBITMQ_MNESIA_BASE", below("data")),
        ("RABBITMQ_LOG_BASE", below("log")),
        ("RABBITMQ_PID_FILE", below("pid")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", below("plugins")),
        ("RABBITMQ_CONFIG_FILE", below("rabbitmq.conf")),
        ("RABBITMQ_CONF_ENV_FILE", below("none")),
    ]
}

impl Node {
    fn start() -> Node {
        let server = format!("{BIN}/rabbitmq-server");
        assert!(
            Path::new(&server).exists(),
            "{server} is missing; `cargo xtask` installs it (apt: rabbitmq-server)"
        );
        let dir = std::env::temp_dir().join(format!("millstream-stream-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let write = |name: &str, text: String| std::fs::write(dir.join(name), text).expect("written");
        write("plugins", "[rabbitmq_stream].".to_owned());
        write(".erlang.cookie", "millstream".to_owned());
        let mut cookie = std::fs::metadata(dir.join(".erlang.cookie")).expect("there").permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut cookie, 0o400);
        std::fs::set_permissions(dir.join(".erlang.cookie"), cookie).expect("set");
        write(
            "rabbitmq.conf",
            format!(
                "listeners.tcp.1 = 127.0.0.1:{PORT_AMQP}\nstream.listeners.tcp.1 = 127.0.0.1:{PORT}\n\
                 stream.advertised_host = 127.0.0.1\nstream.advertised_port = {PORT}\n\
                 disk_free_limit.absolute = 1MB\n"
            ),
        );
        #[expect(clippy::zombie_processes, reason = "it ends after this process, which is what it is for")]
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER])
            .envs(environment(&dir))
            .env("BIN", BIN)
            .env("DIR", &dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let node = Node {
            keeper: std::sync::Mutex::new(keeper.stdin.take().expect("piped")),
            dir,
            turn: tokio::sync::RwLock::default(),
        };
        node.up();
        node
    }

    fn tell(&self, command: &str) {
        let mut keeper = self.keeper.lock().expect("not poisoned");
        writeln!(keeper, "{command}").and_then(|()| keeper.flush()).expect("the keeper listens");
    }

    /// Starts the server and waits until it is ready.
    pub(crate) fn up(&self) {
        let _ = std::fs::remove_file(self.dir.join("out"));
        self.tell("start");
        for _ in 0..480 {
            let out = std::fs::read_to_string(self.dir.join("out")).unwrap_or_default();
            if out.contains("completed with") && TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).is_ok() {
                return;
            }
            pause();
        }
        let out = std::fs::read_to_string(self.dir.join("out")).unwrap_or_default();
        panic!("RabbitMQ does not start:\n{out}");
    }

    /// Stops the server as an administrator would.
    pub(crate) fn stop(&self) {
        self.down("stop");
    }

    /// Kills the server.
    pub(crate) fn kill(&self) {
        self.down("kill");
    }

    fn down(&self, how: &str) {
        self.tell(how);
        for _ in 0..480 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).is_err() {
                return;
            }
            pause();
        }
        panic!("RabbitMQ does not end");
    }

    /// Runs one of RabbitMQ's commands.
    pub(crate) fn command(&self, program: &str, args: &[&str]) {
        let output = Command::new(format!("{BIN}/{program}"))
            .args(["-n", NODE])
            .args(args)
            .envs(environment(&self.dir))
            .output()
            .expect("it runs");
        let text =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{program} {args:?}: {text}");
    }
}

#[expect(clippy::disallowed_methods, reason = "another process is waited for")]
fn pause() {
    std::thread::sleep(Duration::from_millis(125));
}

/// A URL of the node, with options.
pub(crate) fn url(options: &str) -> String {
    format!("rabbitmq-stream://guest:guest@127.0.0.1:{PORT}/?{options}")
}

/// Hands bytes on between clients and the node, until it is told to cut.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    cuts: watch::Sender<u64>,
    open: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) async fn start() -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (cuts, cut) = watch::channel(0);
        let (open, is_open) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (mut cut, is_open) = (cut.clone(), is_open.clone());
                cut.mark_unchanged();
                if !*is_open.borrow() {
                    continue;
                }
                tokio::spawn(async move {
                    let Ok(mut server) = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).await
                    else {
                        return;
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Proxy { address, cuts, open }
    }

    /// Cuts every connection.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Whether new connections are let through.
    pub(crate) fn let_in(&self, open: bool) {
        let _ = self.open.send(open);
    }

    /// A URL that leads through it.
    pub(crate) fn url(&self, options: &str) -> String {
        format!("rabbitmq-stream://guest:guest@{}/?hosts_only=true&{options}", self.address)
    }
}

/// A server that says these bytes to whoever connects, and nothing else.
pub(crate) async fn says(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            let _ = client.read(&mut buffer).await;
            let _ = client.write_all(bytes).await;
        }
    });
    address
}

/// Stops the node, in this way, and starts it again.
pub(crate) async fn restart(down: fn(&Node)) {
    let restart = move || {
        down(node());
        node().up();
    };
    tokio::task::spawn_blocking(restart).await.expect("restarts");
}

/// A client of the node.
pub(crate) async fn client(url: &str) -> StreamClient {
    StreamClient::connect(StreamSettings::parse(url).expect("a URL")).await.expect("connects")
}

/// A stream that nobody else uses.
pub(crate) async fn stream(client: &StreamClient, name: &str) -> String {
    client.delete_stream(name).await.expect("deleted");
    client.create_stream(name, &[]).await.expect("made");
    name.to_owned()
}

/// Numbered messages.
pub(crate) fn numbers(range: Range<u64>) -> Vec<Message> {
    range.map(|number| Message::new(number.to_string())).collect()
}

/// The number of a message.
pub(crate) fn number(item: &StreamItem) -> u64 {
    std::str::from_utf8(item.message.body()).expect("text").parse().expect("a number")
}

/// Reads until `count` items are there.
pub(crate) async fn take(reader: &mut StreamReader, count: usize) -> Vec<StreamItem> {
    let mut items = Vec::new();
    while items.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(60), reader.next_chunk(count - items.len()));
        let chunk = next.await.unwrap_or_else(|_| panic!("{} of {count} items came", items.len()));
        let chunk = chunk.expect("read");
        assert!(!chunk.is_empty(), "the reader goes on");
        items.extend(chunk);
    }
    items
}

/// All that is in a stream now.
pub(crate) async fn all(client: &StreamClient, stream: &str) -> Vec<StreamItem> {
    let next = client.stats(stream).await.expect("stats").next;
    let mut reader = open(client, stream, StreamFrom::First).await;
    let mut items = Vec::new();
    while items.last().is_none_or(|item: &StreamItem| item.offset + 1 < next) && next > 0 {
        items.extend(reader.next_chunk(10_000).await.expect("read"));
    }
    items
}

/// A reader.
pub(crate) async fn open(client: &StreamClient, stream: &str, from: StreamFrom) -> StreamReader {
    client.consumer(stream, from, ConsumerOptions::default()).await.expect("subscribed").into_reader()
}

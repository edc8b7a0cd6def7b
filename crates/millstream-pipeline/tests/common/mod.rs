//! A directory with a pipeline in it, and a broker that outlives its runs.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use millstream_message::{Broker, Browsed};
use millstream_pipeline::{Brokers, Pipeline, Report, Run, RunError, StartError};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longer than anything takes on a machine that is busy with something else, and its disk, too.
pub const LONG: Duration = Duration::from_secs(300);

pub struct Bench {
    pub dir: TempDir,
    pub broker: Arc<dyn Broker>,
}

#[derive(Debug)]
pub enum Failed {
    Start(StartError),
    Run(RunError),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let error: &dyn std::error::Error = match self {
            Failed::Start(error) => error,
            Failed::Run(error) => error,
        };
        f.write_str(&millstream_flow::chain(error))
    }
}

impl Bench {
    pub async fn new() -> Self {
        let broker = millstream_embedded::open(&"memory:".parse().expect("a URL")).await.expect("a broker");
        Bench { dir: TempDir::new().expect("a directory"), broker }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, text).expect("a file");
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The names in a directory, hidden ones too, sorted.
    pub fn list(&self, name: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(name)) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    pub fn pipeline(&self, yaml: &str) -> Pipeline {
        self.write("p.yaml", format!("name: p\n{yaml}"));
        match Pipeline::open(&self.path("p.yaml"), &[]) {
            Ok(pipeline) => pipeline,
            Err(problems) => panic!("{problems}"),
        }
    }

    pub fn brokers(&self) -> Brokers {
        Brokers::of(self.broker.clone())
    }

    pub async fn try_run(&self, yaml: &str) -> Result<Report, Failed> {
        let run = self.pipeline(yaml).start(&self.brokers()).await.map_err(Failed::Start)?;
        run.join().await.map_err(Failed::Run)
    }

    /// A run of the pipeline that is written for a port, whose source listens there.
    pub async fn listening(&self, yaml: impl Fn(u16) -> String) -> (u16, Run) {
        for _ in 0..100 {
            // Free a moment ago: somebody else may have it by now.
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let port = listener.local_addr().expect("an address").port();
            drop(listener);
            match self.pipeline(&yaml(port)).start(&self.brokers()).await {
                Ok(run) => return (port, run),
                Err(error) => {
                    let error = Failed::Start(error).to_string();
                    assert!(error.contains("is the port taken?"), "{error}");
                }
            }
        }
        panic!("no port stays free");
    }

    /// Runs to the end; the ledger must add up.
    pub async fn run(&self, yaml: &str) -> Report {
        let report = self.try_run(yaml).await.unwrap_or_else(|error| panic!("{error}"));
        assert!(report.ledger.balances(), "{report:#?}");
        assert_eq!(report.ledger.in_flight, 0, "{report:#?}");
        report
    }

    pub async fn browse(&self, queue: &str) -> Vec<Browsed> {
        self.broker.browse(queue, 0, 10_000).await.expect("a queue")
    }

    pub async fn bodies(&self, queue: &str) -> Vec<String> {
        let browsed = self.browse(queue).await;
        browsed.iter().map(|browsed| String::from_utf8_lossy(browsed.message.body()).into_owned()).collect()
    }
}

pub const BUFFERED: &str = "buffer: { queue: { broker: \"embedded:s\", name: q } }";

/// Waits until so many items are completed.
pub async fn until(run: &Run, completed: u64) {
    let reached = async {
        while run.report().ledger.completed < completed {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let reached = tokio::time::timeout(2 * LONG, reached).await;
    assert!(reached.is_ok(), "only {:?}", run.report().ledger);
}

/// A port that is taken, so that nobody else listens there, and at which nobody listens as long as the socket is kept.
pub fn silent_port() -> (u16, tokio::net::TcpSocket) {
    let silent = tokio::net::TcpSocket::new_v4().expect("a socket");
    silent.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    (silent.local_addr().expect("an address").port(), silent)
}

/// A request that is sent, and its answer not read yet.
pub async fn send(port: u16, line: &str, content_type: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
    let head = format!(
        "{line} HTTP/1.1\r\nHost: h\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    // The server may refuse before it has read everything.
    let _ = stream.write_all(body.as_bytes()).await;
    stream
}

/// The status line, the headers and the body of the answer.
pub async fn asked(port: u16, line: &str, content_type: &str, body: &str) -> String {
    let mut answer = Vec::new();
    let _ = send(port, line, content_type, body).await.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

//! A directory with a pipeline in it, and a broker that outlives its runs.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use millstream_message::{Broker, Browsed};
use millstream_pipeline::{Brokers, Pipeline, Report, RunError, StartError};
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

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

//! Runs a pipeline file to its end: `cargo run -p millstream-pipeline --example run -- FILE`. Without a file, the
//! quickstart in a directory of its own.

use std::path::{Path, PathBuf};

use millstream_pipeline::{Brokers, Pipeline};

/// The quickstart and its data, copied to `directory`, where it may leave its state.
fn quickstart(directory: &Path) -> std::io::Result<PathBuf> {
    let examples = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples"));
    std::fs::create_dir(directory.join("data"))?;
    for file in ["quickstart.yaml", "data/flights-2013-01.csv"] {
        std::fs::copy(examples.join(file), directory.join(file))?;
    }
    Ok(directory.join("quickstart.yaml"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let file = match std::env::args_os().nth(1) {
        Some(file) => PathBuf::from(file),
        None => quickstart(directory.path())?,
    };
    let pipeline = Pipeline::open(&file, &[])?;
    let brokers = match std::env::var("MEMORY") {
        Ok(_) => Brokers::of(millstream_embedded::open(&"memory:".parse()?).await?),
        Err(_) => Brokers::new(),
    };
    let report = pipeline.start(&brokers).await?.join().await?;
    brokers.close().await?;
    eprintln!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

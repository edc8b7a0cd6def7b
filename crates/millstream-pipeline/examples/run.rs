//! Runs a pipeline file to its end: `cargo run -p millstream-pipeline --example run -- FILE`.

use millstream_pipeline::{Brokers, Pipeline};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).unwrap_or_else(|| "examples/quickstart.yaml".to_owned());
    let pipeline = Pipeline::open(file.as_ref(), &[])?;
    let brokers = match std::env::var("MEMORY") {
        Ok(_) => Brokers::of(millstream_embedded::open(&"memory:".parse()?).await?),
        Err(_) => Brokers::new(),
    };
    let report = pipeline.start(&brokers).await?.join().await?;
    brokers.close().await?;
    eprintln!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

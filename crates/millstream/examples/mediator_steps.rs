//! A mediator's handler as a step of a pipeline file, with behaviours around it that a file of settings may change:
//!
//! ```text
//! cargo run -p millstream --features mediator,pipeline --example mediator_steps [SETTINGS.yaml]
//! ```

use std::io::Write;
use std::path::Path;

use millstream::mediator::{Kind, Mediator, Request, Settings, handlers, process_memory};
use millstream::pipeline::{Brokers, Pipeline};

#[derive(Clone, serde::Deserialize)]
struct PlaceOrder {
    article: u64,
    count: u64,
}

impl Request for PlaceOrder {
    type Response = u64;
    const KIND: Kind = Kind::Command;
}

async fn place_order(order: PlaceOrder) -> Result<u64, &'static str> {
    match order.article {
        13 => Err("there is no such article"),
        article => Ok(article * 10 * order.count),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let file = std::env::args_os().nth(1);
    let settings = Settings::read(file.as_deref().map(Path::new), |name| std::env::var(name).ok())?;
    let mediator = Mediator::builder()
        .profile(&settings.profile(process_memory))
        .request(place_order)
        .json::<PlaceOrder>()
        .build()?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mediator_steps.yaml");
    let pipeline = Pipeline::open_with(&file, &[], &handlers(&mediator))?;
    let brokers = Brokers::new();
    let report = pipeline.start(&brokers).await?.join().await?;
    brokers.close().await?;
    let (completed, dropped) = (report.ledger.completed, report.dropped());
    let mut error = std::io::stderr().lock();
    writeln!(error, "{settings}# {completed} passed, dropped: {dropped:?}")?;
    Ok(())
}

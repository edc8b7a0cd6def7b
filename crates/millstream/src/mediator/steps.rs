//! A mediator's handlers as steps of pipeline files.

use millstream_mediator::{Kind, Mediator};
use millstream_pipeline::Handlers;

use crate::flow::BoxError;

/// A mediator's requests for the `send` steps of pipeline files: all that are open to calls by name, by
/// [`Builder::json`](millstream_mediator::Builder::json). An item is the request, read from its JSON; the response is what becomes of it.
/// Behaviours stand around such calls as around others.
///
/// ```
/// use millstream::mediator::{Kind, Mediator, Request, handlers};
/// use millstream::pipeline::{Brokers, Pipeline};
///
/// #[derive(serde::Deserialize)]
/// struct PriceOf { n: u64 }
/// impl Request for PriceOf {
///     type Response = u64;
///     const KIND: Kind = Kind::Query;
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("prices.yaml");
/// # std::fs::write(&path, "name: prices
/// # source: { generate: { count: 3 } }
/// # process: [{ send: { request: PriceOf, into: price } }]
/// # output: { file: { path: prices.ndjson } }")?;
/// let mediator = Mediator::builder()
///     .request(async |of: PriceOf| Ok::<_, millstream::mediator::Error>(of.n * 10))
///     .json::<PriceOf>()
///     .build()?;
/// // process: [{ send: { request: PriceOf, into: price } }]
/// let pipeline = Pipeline::open_with(&path, &[], &handlers(&mediator))?;
/// let brokers = Brokers::new();
/// let report = pipeline.start(&brokers).await?.join().await?;
/// assert_eq!(report.ledger.completed, 3);
/// # brokers.close().await?;
/// # let prices = std::fs::read_to_string(dir.path().join("prices.ndjson"))?;
/// # assert!(prices.lines().nth(2).unwrap().contains(r#""price":20"#), "{prices}");
/// # Ok(()) }
/// ```
pub fn handlers(mediator: &Mediator) -> Handlers {
    let requests = mediator.describe().lines.iter();
    let requests = requests.filter(|line| line.by_name && matches!(line.kind, Kind::Query | Kind::Command));
    requests.fold(Handlers::new(), |handlers, line| {
        let (mediator, name) = (mediator.clone(), line.message.clone());
        handlers.handler(&*line.message, move |item| {
            let (mediator, name) = (mediator.clone(), name.clone());
            async move { mediator.send_json(&name, item).await.map_err(BoxError::from) }
        })
    })
}

//! What `send` steps call: functions of the program that runs the file, by name.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use millstream_flow::{BoxError, Panicked, TimedOut, chain};
use serde_json::Value as Json;

use crate::item::{Failure, Record, Reporter};
use crate::steps::Passing;
use crate::value::{self, Value, parse_json, write_json};

type Handle = dyn Fn(Json) -> BoxFuture<'static, Result<Json, BoxError>> + Send + Sync;

/// The handlers that a program gives to pipeline files, for their `send` steps. The `millstream` binary has none.
///
/// ```
/// use millstream_pipeline::{Brokers, Handlers, Pipeline};
/// use serde_json::{Value, json};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("prices.yaml");
/// # std::fs::write(&path, "name: prices
/// # source: { generate: { count: 3 } }
/// # process:
/// #   - send: { request: PriceOf, into: price }
/// # output: { file: { path: prices.ndjson } }")?;
/// // process:
/// //   - send: { request: PriceOf, into: price }
/// let handlers = Handlers::new()
///     .handler("PriceOf", async |item: Value| Ok(json!(item["n"].as_u64().unwrap_or(0) * 10)));
/// let pipeline = Pipeline::open_with(&path, &[], &handlers)?;
/// let brokers = Brokers::new();
/// pipeline.start(&brokers).await?.join().await?;
/// # brokers.close().await?;
/// let prices = std::fs::read_to_string(dir.path().join("prices.ndjson"))?;
/// assert!(prices.lines().nth(2).unwrap().contains(r#""price":20"#), "{prices}");
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Handlers(BTreeMap<String, Handler>);

impl Handlers {
    /// None yet.
    pub fn new() -> Self {
        Handlers::default()
    }

    /// Adds one, in place of another of this name. It is given an item, and answers with what comes of it; its error is the
    /// item's, for `on_error`, and so is its panic.
    ///
    /// # Cancel safety
    /// It may be dropped at any await, when the run is aborted or the step's `timeout` is over.
    #[must_use]
    pub fn handler<F, Fut>(mut self, name: impl Into<String>, handle: F) -> Self
    where
        F: Fn(Json) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Json, BoxError>> + Send + 'static,
    {
        self.0.insert(name.into(), Handler(Arc::new(move |item| Box::pin(handle(item)))));
        self
    }

    /// Their names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Handler> {
        self.0.get(name)
    }
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// One of them.
#[derive(Clone)]
pub(crate) struct Handler(Arc<Handle>);

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handler")
    }
}

/// A `send` step.
#[derive(Clone)]
pub(crate) struct Sending {
    pub(crate) name: Arc<str>,
    pub(crate) handler: Handler,
    pub(crate) into: Option<Arc<str>>,
    pub(crate) reporter: Arc<Reporter>,
}

impl Sending {
    /// Sends an item. What has failed already passes.
    pub(crate) async fn apply(self, passing: Passing) -> Passing {
        let mut record = passing?;
        match self.answer(&record).await {
            Ok(value) => record.value = value,
            Err(reason) => return Err(self.reporter.failure(record.letter(), reason, &self.name)),
        }
        Ok(record)
    }

    /// Sends an item, and gives what comes of it.
    pub(crate) async fn answered(&self, record: &Record) -> Result<Record, String> {
        let value = self.answer(record).await?;
        Ok(Record { value, ..record.clone() })
    }

    /// The failure of an item that was not answered.
    pub(crate) fn failed(&self, record: &Record, error: &(dyn Error + 'static)) -> Failure {
        let reason = match error.downcast_ref::<TimedOut>() {
            Some(late) => format!("the handler did not answer within {:?}", late.limit),
            None => chain(error),
        };
        self.reporter.failure(record.letter(), reason, &self.name)
    }

    async fn answer(&self, record: &Record) -> Result<Value, String> {
        let mut text = Vec::new();
        write_json(&mut text, &record.value);
        let item = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        // Caught here, where the item is known: its panic is the item's error, like that of any step.
        let answer = AssertUnwindSafe(async { (self.handler.0)(item).await }).catch_unwind().await;
        let answer = answer.map_err(|payload| Panicked::new(payload).to_string())?;
        let answer = answer.map_err(|error| chain(&*error))?;
        let answer = serde_json::to_vec(&answer).map_err(|error| error.to_string())?;
        let answer = parse_json(&answer).map_err(|error| error.to_string())?;
        match &self.into {
            None => Ok(answer),
            Some(field) => value::with_field(record.value.clone(), field, answer)
                .ok_or_else(|| format!("the response cannot be put into `{field}`: the item is no object")),
        }
    }
}

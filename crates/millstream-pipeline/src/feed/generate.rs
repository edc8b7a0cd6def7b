//! Made-up items.

use super::{Chunk, Feed};
use crate::expr::Mapping;
use crate::item::Raw;
use crate::value::{self, Map, Num, Value};
use millstream_flow::BoxError;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Items by number, as fast as they are taken or at a rate.
pub(crate) struct GenerateFeed {
    next: u64,
    count: u64,
    rate: Option<u64>,
    template: Option<Arc<Mapping>>,
    started: Option<Instant>,
    /// The most items handed out at once.
    chunk: usize,
}

impl GenerateFeed {
    pub(crate) fn new(
        count: Option<u64>,
        rate: Option<u64>,
        template: Option<Arc<Mapping>>,
        chunk: usize,
    ) -> Self {
        GenerateFeed { next: 0, count: count.unwrap_or(u64::MAX), rate, template, started: None, chunk }
    }

    fn item(&self, number: u64) -> Raw {
        let number = Value::Num(Num::from_integral(number));
        let made = match &self.template {
            Some(template) => template.apply(number),
            None => {
                let mut map = Map::default();
                map.insert(value::text("n"), number);
                Ok(Some(Value::obj(map)))
            }
        };
        match made {
            Ok(Some(value)) => Raw::Value(value, None),
            Ok(None) => Raw::Fault { reason: "`template` gave no value".to_owned() },
            Err(error) => Raw::Fault { reason: error.to_string() },
        }
    }
}

impl Feed for GenerateFeed {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Result<Option<Chunk>, BoxError>> + Send + '_>> {
        Box::pin(async {
            if self.next >= self.count {
                return Ok(None);
            }
            let mut ready = self.chunk as u64;
            if let Some(rate) = self.rate {
                let started = *self.started.get_or_insert_with(Instant::now);
                // Item n is due n ÷ rate after the start; a chunk is what is due by now, at least the next.
                let due = |n: u64| started + Duration::from_secs_f64(n as f64 / rate as f64);
                tokio::time::sleep_until(due(self.next)).await;
                let passed = (Instant::now() - started).as_secs_f64();
                ready = ready.min(((passed * rate as f64) as u64 + 1).saturating_sub(self.next)).max(1);
            }
            let end = self.count.min(self.next.saturating_add(ready));
            let items = (self.next..end).map(|number| self.item(number)).collect();
            self.next = end;
            Ok(Some(Chunk { items, ..Chunk::default() }))
        })
    }
}

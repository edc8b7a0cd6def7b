//! Exchanges, bindings, and the queues they lead to.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use millstream_message::{Address, Binding, Exchange, ExchangeKind, HeaderMatch, Headers, Message};

use crate::queue::Queue;
use crate::topic;

/// Everything declared. Read by every publish, changed by declarations only.
#[derive(Default)]
pub(crate) struct Topology {
    pub(crate) queues: BTreeMap<String, Arc<Queue>>,
    pub(crate) exchanges: BTreeMap<String, Bound>,
}

/// An exchange with its bindings.
pub(crate) struct Bound {
    pub(crate) exchange: Exchange,
    pub(crate) bindings: Vec<(Binding, Arc<Queue>)>,
    /// For direct exchanges: the bindings of each key, so that a thousand bindings cost what one costs.
    by_key: HashMap<String, Vec<Arc<Queue>>>,
}

/// Where an address leads.
pub(crate) enum Route {
    /// There is no such exchange.
    NoExchange,
    /// These queues; the same for every message with that address, unless `by_headers`.
    Queues { queues: Vec<Arc<Queue>>, by_headers: bool },
}

impl Topology {
    pub(crate) fn route(&self, address: &Address, message: &Message) -> Route {
        if address.exchange().is_empty() {
            let queues = self.queues.get(address.key()).cloned().into_iter().collect();
            return Route::Queues { queues, by_headers: false };
        }
        let Some(bound) = self.exchanges.get(address.exchange()) else { return Route::NoExchange };
        let by_headers = bound.exchange.kind == ExchangeKind::Headers;
        let mut queues: Vec<Arc<Queue>> = Vec::new();
        let mut add = |queue: &Arc<Queue>| {
            // A queue bound twice still gets one copy.
            if !queues.iter().any(|known| Arc::ptr_eq(known, queue)) {
                queues.push(queue.clone());
            }
        };
        match bound.exchange.kind {
            ExchangeKind::Direct => bound.by_key.get(address.key()).into_iter().flatten().for_each(&mut add),
            ExchangeKind::Fanout => bound.bindings.iter().for_each(|(_, queue)| add(queue)),
            ExchangeKind::Topic => {
                let matching = bound.bindings.iter().filter(|(b, _)| topic::matches(&b.key, address.key()));
                matching.for_each(|(_, queue)| add(queue));
            }
            ExchangeKind::Headers => {
                let headers = &message.properties().headers;
                let matching = bound.bindings.iter().filter(|(b, _)| headers_match(b, headers));
                matching.for_each(|(_, queue)| add(queue));
            }
        }
        Route::Queues { queues, by_headers }
    }

    /// Adds a binding; false when it was there.
    pub(crate) fn bind(&mut self, binding: Binding, queue: &Arc<Queue>) -> bool {
        let Some(bound) = self.exchanges.get_mut(&binding.exchange) else { return false };
        if bound.bindings.iter().any(|(known, _)| *known == binding) {
            return false;
        }
        bound.by_key.entry(binding.key.clone()).or_default().push(queue.clone());
        bound.bindings.push((binding, queue.clone()));
        true
    }

    /// Removes a binding; false when it was not there.
    pub(crate) fn unbind(&mut self, binding: &Binding) -> bool {
        let Some(bound) = self.exchanges.get_mut(&binding.exchange) else { return false };
        bound.remove(|known| known == binding)
    }

    pub(crate) fn declare(&mut self, exchange: Exchange) {
        let bound = Bound { exchange, bindings: Vec::new(), by_key: HashMap::new() };
        self.exchanges.insert(bound.exchange.name.clone(), bound);
    }

    /// Removes a queue and everything bound to it.
    pub(crate) fn remove_queue(&mut self, name: &str) -> Option<Arc<Queue>> {
        let queue = self.queues.remove(name)?;
        for bound in self.exchanges.values_mut() {
            bound.remove(|binding| binding.queue == name);
        }
        Some(queue)
    }
}

impl Bound {
    fn remove(&mut self, gone: impl Fn(&Binding) -> bool) -> bool {
        let before = self.bindings.len();
        self.bindings.retain(|(binding, _)| !gone(binding));
        self.by_key.clear();
        for (binding, queue) in &self.bindings {
            self.by_key.entry(binding.key.clone()).or_default().push(queue.clone());
        }
        self.bindings.len() < before
    }
}

fn headers_match(binding: &Binding, headers: &Headers) -> bool {
    let Some((matching, wanted)) = &binding.headers else { return false };
    let mut found = wanted.iter().map(|(name, value)| headers.get(name) == Some(value));
    match matching {
        HeaderMatch::All => found.all(|same| same),
        HeaderMatch::Any => found.any(|same| same),
    }
}

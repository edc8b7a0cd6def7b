//! Exchanges, bindings, and the queues they lead to.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use millstream_message::{Address, Binding, Exchange, ExchangeKind, HeaderMatch, Headers, Message, Target};

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
    pub(crate) bindings: Vec<(Binding, Leads)>,
    /// For direct exchanges: the bindings of each key, so that a thousand bindings cost what one costs.
    by_key: HashMap<String, Vec<Leads>>,
}

/// What a binding leads to.
#[derive(Clone)]
pub(crate) enum Leads {
    ToQueue(Arc<Queue>),
    /// By its name: it may be deleted and declared anew meanwhile.
    ToExchange(String),
}

/// Where an address leads.
pub(crate) enum Route {
    /// There is no such exchange.
    NoExchange,
    /// Only other exchanges may lead to it.
    Internal,
    /// These queues; the same for every message with that address, unless `by_headers`.
    Queues { queues: Vec<Arc<Queue>>, by_headers: bool },
}

/// A message's way through exchanges that lead to each other.
struct Walk<'a> {
    key: &'a str,
    headers: &'a Headers,
    queues: Vec<Arc<Queue>>,
    by_headers: bool,
    /// No exchange is passed twice: circles are allowed.
    passed: HashSet<&'a str>,
}

impl Topology {
    pub(crate) fn route(&self, address: &Address, message: &Message) -> Route {
        if address.exchange().is_empty() {
            let queues = self.queues.get(address.key()).cloned().into_iter().collect();
            return Route::Queues { queues, by_headers: false };
        }
        let Some(bound) = self.exchanges.get(address.exchange()) else { return Route::NoExchange };
        if bound.exchange.internal {
            return Route::Internal;
        }
        let mut walk = Walk {
            key: address.key(),
            headers: &message.properties().headers,
            queues: Vec::new(),
            by_headers: false,
            passed: HashSet::new(),
        };
        self.pass(bound, &mut walk);
        Route::Queues { queues: walk.queues, by_headers: walk.by_headers }
    }

    /// Adds the queues to which an exchange leads. Nested as deep as there are exchanges, since none is passed twice.
    fn pass<'a>(&'a self, bound: &'a Bound, walk: &mut Walk<'a>) {
        if !walk.passed.insert(&bound.exchange.name) {
            return;
        }
        let mut led = false;
        let mut lead = |leads: &'a Leads, walk: &mut Walk<'a>| {
            led = true;
            match leads {
                // A queue bound twice still gets one copy.
                Leads::ToQueue(queue) if walk.queues.iter().any(|known| Arc::ptr_eq(known, queue)) => {}
                Leads::ToQueue(queue) => walk.queues.push(queue.clone()),
                Leads::ToExchange(name) => {
                    if let Some(next) = self.exchanges.get(name) {
                        self.pass(next, walk);
                    }
                }
            }
        };
        match bound.exchange.kind {
            ExchangeKind::Direct => {
                bound.by_key.get(walk.key).into_iter().flatten().for_each(|leads| lead(leads, walk));
            }
            ExchangeKind::Fanout => bound.bindings.iter().for_each(|(_, leads)| lead(leads, walk)),
            ExchangeKind::Topic => {
                let key = walk.key;
                let matching = bound.bindings.iter().filter(|(binding, _)| topic::matches(&binding.key, key));
                matching.for_each(|(_, leads)| lead(leads, walk));
            }
            ExchangeKind::Headers => {
                walk.by_headers = true;
                let headers = walk.headers;
                let matching = bound.bindings.iter().filter(|(binding, _)| headers_match(binding, headers));
                matching.for_each(|(_, leads)| lead(leads, walk));
            }
        }
        let alternate = bound.exchange.alternate.as_ref().filter(|_| !led);
        if let Some(next) = alternate.and_then(|name| self.exchanges.get(name)) {
            self.pass(next, walk);
        }
    }

    /// What a binding leads to, if that is there.
    pub(crate) fn target(&self, binding: &Binding) -> Option<Leads> {
        match binding.target_kind {
            Target::Queue => self.queues.get(&binding.target).cloned().map(Leads::ToQueue),
            Target::Exchange => self
                .exchanges
                .get(&binding.target)
                .map(|bound| Leads::ToExchange(bound.exchange.name.clone())),
        }
    }

    /// Whether a binding is there after a restart: what it leads from and to is.
    pub(crate) fn is_durable(&self, from: &Bound, to: &Leads) -> bool {
        from.exchange.durable
            && match to {
                Leads::ToQueue(queue) => queue.durable,
                Leads::ToExchange(name) => {
                    self.exchanges.get(name).is_some_and(|bound| bound.exchange.durable)
                }
            }
    }

    /// Adds a binding; false when it was there.
    pub(crate) fn bind(&mut self, binding: Binding, leads: &Leads) -> bool {
        let Some(bound) = self.exchanges.get_mut(&binding.exchange) else { return false };
        if bound.bindings.iter().any(|(known, _)| *known == binding) {
            return false;
        }
        bound.by_key.entry(binding.key.clone()).or_default().push(leads.clone());
        bound.bindings.push((binding, leads.clone()));
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
            bound.remove(|binding| binding.leads_to_queue(name));
        }
        Some(queue)
    }

    /// Removes an exchange and everything bound to it.
    pub(crate) fn remove_exchange(&mut self, name: &str) {
        self.exchanges.remove(name);
        for bound in self.exchanges.values_mut() {
            bound.remove(|binding| binding.touches_exchange(name));
        }
    }
}

impl Bound {
    fn remove(&mut self, gone: impl Fn(&Binding) -> bool) -> bool {
        let before = self.bindings.len();
        self.bindings.retain(|(binding, _)| !gone(binding));
        self.by_key.clear();
        for (binding, leads) in &self.bindings {
            self.by_key.entry(binding.key.clone()).or_default().push(leads.clone());
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

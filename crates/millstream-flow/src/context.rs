//! What travels with an item and is not part of it.
//!
//! A context rides on the item's token, so every operator carries it without knowing of it.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::token::{Outcome, Settle};

/// The name and type of one thing that items may carry along. Keys of one name and type are the same key.
///
/// ```
/// use millstream_flow::ContextKey;
/// static TENANT: ContextKey<u32> = ContextKey::new("tenant");
/// ```
pub struct ContextKey<T> {
    name: &'static str,
    kind: PhantomData<fn() -> T>,
}

impl<T> ContextKey<T> {
    /// A key of this name.
    pub const fn new(name: &'static str) -> Self {
        ContextKey { name, kind: PhantomData }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

impl<T> fmt::Debug for ContextKey<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ContextKey").field(&self.name).finish()
    }
}

/// What one item carries: a chain, newest first, that copies of the item share. Empty, it is a null pointer.
#[derive(Clone, Default)]
struct Chain(Option<Arc<Link>>);

struct Link {
    name: &'static str,
    value: Arc<dyn Any + Send + Sync>,
    rest: Chain,
}

impl Chain {
    fn get<T: 'static>(&self, key: &ContextKey<T>) -> Option<&T> {
        let mut link = self.0.as_deref();
        while let Some(Link { name, value, rest }) = link {
            if *name == key.name
                && let Some(value) = value.downcast_ref()
            {
                return Some(value);
            }
            link = rest.0.as_deref();
        }
        None
    }

    fn add(&mut self, name: &'static str, value: Arc<dyn Any + Send + Sync>) {
        let rest = std::mem::take(self);
        self.0 = Some(Arc::new(Link { name, value, rest }));
    }

    /// Adds what another chain has, which counts as newer.
    fn add_all(&mut self, newer: &Chain) {
        if self.0.is_none() {
            *self = newer.clone();
        } else if let Some(Link { name, value, rest }) = newer.0.as_deref() {
            self.add_all(rest);
            self.add(name, value.clone());
        }
    }
}

/// Tokens that carry contexts: [`InContext`] of one item, [`InContexts`] of a batch or window.
pub trait Carry: Settle {
    /// The token without them.
    type Bare: Settle;
    /// What the item carries under `key`. Of many items, what the first has that has it.
    fn get<T: 'static>(&self, key: &ContextKey<T>) -> Option<&T>;
    /// Lets the item carry `value`; many items all do.
    fn set<T: Send + Sync + 'static>(&mut self, key: &ContextKey<T>, value: T);
    /// Leaves the contexts behind.
    fn bare(self) -> Self::Bare;
}

/// What an item carries, as [`Pipe::map_in_context`](crate::Pipe::map_in_context) shows it.
#[derive(Debug)]
pub struct ContextRef<'a, K>(pub(crate) &'a K);

impl<K: Carry> ContextRef<'_, K> {
    /// What the item carries under `key`. Of a batch or window, what the first of its items has that has it.
    pub fn get<T: 'static>(&self, key: &ContextKey<T>) -> Option<&T> {
        self.0.get(key)
    }
}

/// A token with what its item carries.
pub struct InContext<K> {
    token: K,
    chain: Chain,
}

impl<K> InContext<K> {
    pub(crate) fn new(token: K) -> Self {
        InContext { token, chain: Chain::default() }
    }
}

impl<K: Settle> Settle for InContext<K> {
    const TRACKED: bool = K::TRACKED;
    const CARRIES: bool = true;
    type Group = InContexts<K::Group>;

    #[inline]
    fn join(self, group: &mut Self::Group) {
        self.token.join(&mut group.tokens);
        if self.chain.0.is_some() {
            group.chains.push_back((group.next, self.chain));
        }
        group.next += 1;
    }

    #[inline]
    fn share(&self) -> Self {
        InContext { token: self.token.share(), chain: self.chain.clone() }
    }

    #[inline]
    fn settle(self, outcome: &Outcome) {
        self.token.settle(outcome);
    }
}

impl<K: Settle> Carry for InContext<K> {
    type Bare = K;
    fn get<T: 'static>(&self, key: &ContextKey<T>) -> Option<&T> {
        self.chain.get(key)
    }
    fn set<T: Send + Sync + 'static>(&mut self, key: &ContextKey<T>, value: T) {
        self.chain.add(key.name, Arc::new(value));
    }
    fn bare(self) -> K {
        self.token
    }
}

/// The tokens of many items with what each of them carries.
#[derive(Default)]
pub struct InContexts<G> {
    tokens: G,
    /// By the number of the item; those that carry nothing have no entry.
    chains: VecDeque<(u64, Chain)>,
    /// The number of the first item that is left, and of the next to come.
    first: u64,
    next: u64,
    /// What was set for all.
    all: Chain,
}

impl<G: Settle<Group = G> + Default> Settle for InContexts<G> {
    const TRACKED: bool = G::TRACKED;
    const CARRIES: bool = true;
    type Group = Self;

    fn join(self, group: &mut Self) {
        let InContexts { tokens, chains, first, next, all } = self;
        tokens.join(&mut group.tokens);
        let (moved, count) = (group.next, next - first);
        let mut chains = chains.into_iter().peekable();
        if all.0.is_none() {
            group.chains.extend(chains.map(|(item, chain)| (item - first + moved, chain)));
        } else {
            for item in first..next {
                let mut chain =
                    chains.next_if(|(at, _)| *at == item).map(|(_, chain)| chain).unwrap_or_default();
                chain.add_all(&all);
                group.chains.push_back((item - first + moved, chain));
            }
        }
        group.next += count;
    }

    fn split_first(&mut self, parts: usize) -> Self {
        let tokens = self.tokens.split_first(parts);
        if self.next - self.first != parts as u64 {
            // The parts are not the items: each has what all have.
            let InContexts { chains, first, next, all, .. } = self;
            return InContexts {
                tokens,
                chains: chains.clone(),
                first: *first,
                next: *next,
                all: all.clone(),
            };
        }
        let item = self.first;
        self.first += 1;
        let has_own = self.chains.front().is_some_and(|(at, _)| *at == item);
        let own = if has_own { self.chains.pop_front() } else { None };
        InContexts {
            tokens,
            chains: own.into_iter().collect(),
            first: item,
            next: item + 1,
            all: self.all.clone(),
        }
    }

    fn share(&self) -> Self {
        let InContexts { tokens, chains, first, next, all } = self;
        InContexts {
            tokens: tokens.share(),
            chains: chains.clone(),
            first: *first,
            next: *next,
            all: all.clone(),
        }
    }

    fn settle(self, outcome: &Outcome) {
        self.tokens.settle(outcome);
    }
}

impl<G: Settle<Group = G> + Default> Carry for InContexts<G> {
    type Bare = G;
    fn get<T: 'static>(&self, key: &ContextKey<T>) -> Option<&T> {
        self.all.get(key).or_else(|| self.chains.iter().find_map(|(_, chain)| chain.get(key)))
    }
    fn set<T: Send + Sync + 'static>(&mut self, key: &ContextKey<T>, value: T) {
        self.all.add(key.name, Arc::new(value));
    }
    fn bare(self) -> G {
        self.tokens
    }
}

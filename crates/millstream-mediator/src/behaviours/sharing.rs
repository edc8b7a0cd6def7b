//! Who shares a breaker, a bulkhead, a limiter: the calls of one handler, all calls, or the calls of one key.

use std::borrow::Cow;
use std::sync::Arc;

use millstream_resilience::{Idle, Keyed};

use crate::call::Call;
use crate::message::About;

type Make<T> = dyn Fn(&About) -> T + Send + Sync;
type KeyOf = dyn Fn(&Call<'_>) -> String + Send + Sync;

/// Who shares a state, whatever that is.
#[derive(Clone)]
pub(crate) enum Who {
    /// Nobody: each handler has its own.
    Each,
    /// All handlers.
    All,
    /// The calls of one key, for so many keys.
    Key(usize, Arc<KeyOf>),
}

impl Who {
    pub(crate) fn by_key(keys_max: usize, key: impl Fn(&Call<'_>) -> String + Send + Sync + 'static) -> Self {
        Who::Key(keys_max, Arc::new(key))
    }

    /// What they share, made by this.
    pub(crate) fn share<T: Clone + Idle>(&self, make: impl Fn() -> T + Send + Sync + 'static) -> Sharing<T> {
        match self {
            Who::Each => Sharing::each(move |_| make()),
            Who::All => Sharing::One(make()),
            Who::Key(keys_max, key) => {
                Sharing::ByKey(Keyed::new(*keys_max, move |_: &str| make()), key.clone())
            }
        }
    }
}

/// A state and who shares it.
pub(crate) enum Sharing<T> {
    /// Each handler has its own, and this makes it.
    Each(Arc<Make<T>>),
    /// All have this.
    One(T),
    /// Each key of a bounded number has its own.
    ByKey(Keyed<str, T>, Arc<KeyOf>),
}

impl<T: Clone + Idle> Sharing<T> {
    pub(crate) fn each(make: impl Fn(&About) -> T + Send + Sync + 'static) -> Self {
        Sharing::Each(Arc::new(make))
    }

    /// `make` is told the key, or nothing for the one that keys without a place share.
    pub(crate) fn by_key(
        keys_max: usize,
        make: impl Fn(Option<&str>) -> T + Send + Sync + 'static,
        key: impl Fn(&Call<'_>) -> String + Send + Sync + 'static,
    ) -> Self {
        Sharing::ByKey(Keyed::with_others(keys_max, make), Arc::new(key))
    }

    /// All there are now, for whoever shows them.
    pub(crate) fn list(&self) -> Vec<T> {
        match self {
            Sharing::One(state) => vec![state.clone()],
            Sharing::ByKey(keyed, _) => {
                keyed.list().into_iter().map(|(_, state)| state).chain(keyed.others()).collect()
            }
            Sharing::Each(_) => Vec::new(),
        }
    }

    /// The one for a handler.
    pub(crate) fn of(&self, about: &About) -> Self {
        match self {
            Sharing::Each(make) => Sharing::One(make(about)),
            Sharing::One(state) => Sharing::One(state.clone()),
            Sharing::ByKey(keyed, key) => Sharing::ByKey(keyed.clone(), key.clone()),
        }
    }

    /// The one for a call.
    #[inline]
    pub(crate) fn get(&self, call: &Call<'_>) -> Cow<'_, T> {
        match self {
            Sharing::One(state) => Cow::Borrowed(state),
            Sharing::ByKey(keyed, key) => Cow::Owned(keyed.of(&key(call))),
            Sharing::Each(make) => Cow::Owned(make(call.about())),
        }
    }

    /// Whether each handler has its own.
    pub(crate) fn is_each(&self) -> bool {
        matches!(self, Sharing::Each(_))
    }

    pub(crate) fn words(&self) -> &'static str {
        match self {
            Sharing::Each(_) => "",
            Sharing::One(_) => ", shared",
            Sharing::ByKey(..) => ", by key",
        }
    }
}

impl<T: Clone> Clone for Sharing<T> {
    fn clone(&self) -> Self {
        match self {
            Sharing::Each(make) => Sharing::Each(make.clone()),
            Sharing::One(state) => Sharing::One(state.clone()),
            Sharing::ByKey(keyed, key) => Sharing::ByKey(keyed.clone(), key.clone()),
        }
    }
}

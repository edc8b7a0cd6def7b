//! What travels with an item and is not part of it.

use super::Pipe;
use crate::context::{Carry, ContextKey, ContextRef};
use crate::flow::Flow;
use crate::op::contexts::{MapInContext, SetContext, WithContext, WithoutContext};

impl<F: Flow> Pipe<F> {
    /// Lets items carry a context from here on: values under typed keys that every operator passes along and none sees, for
    /// a correlation id, a tenant, the time at which an item came in.
    ///
    /// An item that is split gives its context to all parts. A batch or window has those of all its items, and gives each
    /// its own back when it is taken apart. One that is turned into an error keeps it. An item that carries
    /// nothing costs a null pointer, and each value two allocations.
    ///
    /// ```
    /// use millstream_flow::{Batch, ContextKey, Pipe};
    /// static TENANT: ContextKey<&str> = ContextKey::new("tenant");
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (lines, _) = Pipe::from_iter([("acme", 3), ("bell", 4)])
    ///     .with_context()
    ///     .set_context(&TENANT, |order| order.0)
    ///     .map(|(_, amount)| amount) // the tenant is no part of the item any more
    ///     .batch(Batch::count(10))
    ///     .unbatch()
    ///     .buffer(8)
    ///     .map_async(4, async |amount| amount * 100)
    ///     .map_in_context(|cents, context| format!("{}: {cents}", context.get(&TENANT).unwrap()))
    ///     .collect()
    ///     .await
    ///     .unwrap();
    /// assert_eq!(lines, ["acme: 300", "bell: 400"]);
    /// # }
    /// ```
    pub fn with_context(self) -> Pipe<WithContext<F>> {
        self.then("with_context", |upstream, _, _| WithContext { upstream })
    }

    /// Leaves the contexts behind: the flow is what it was before [`with_context`](Pipe::with_context).
    pub fn without_context(self) -> Pipe<WithoutContext<F>>
    where
        F::Token: Carry,
    {
        self.then("without_context", |upstream, _, _| WithoutContext { upstream })
    }

    /// Lets each item carry a value. One that it already carries under this key is hidden by it.
    pub fn set_context<T, M>(self, key: &'static ContextKey<T>, value: M) -> Pipe<SetContext<F, T, M>>
    where
        F::Token: Carry,
        T: Send + Sync + 'static,
        M: FnMut(&F::Item) -> T,
    {
        self.then("set_context", |upstream, _, _| SetContext { upstream, key, value })
    }

    /// As [`map`](Pipe::map), with a look at what the item carries.
    pub fn map_in_context<U, M>(self, map: M) -> Pipe<MapInContext<F, M>>
    where
        F::Token: Carry,
        M: FnMut(F::Item, ContextRef<'_, F::Token>) -> U,
    {
        self.then("map_in_context", |upstream, _, _| MapInContext { upstream, map })
    }
}

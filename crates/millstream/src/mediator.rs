//! Requests to their handlers, notifications to everyone concerned, streams on demand: through behaviours that are declared
//! once (feature `mediator`).
//!
//! All of [`millstream_mediator`], and what joins it to the rest: [`to_broker`] hands notifications to an exchange or a queue,
//! [`process_memory`] is a probe for [`Memory`]; with the feature `pipeline`, `Settings` reads what stands around requests from a file
//! and the environment, and `handlers` are steps of pipeline files. A handler is a step of a flow as it is:
//!
//! ```
//! use millstream::mediator::{Kind, Mediator, Request};
//! use millstream::prelude::*;
//!
//! #[derive(Clone)]
//! struct PriceOf(u32);
//! impl Request for PriceOf {
//!     type Response = u64;
//!     const KIND: Kind = Kind::Query;
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let mediator = Mediator::builder()
//!     .request(async |of: PriceOf| if of.0 == 13 { Err("no such article") } else { Ok(u64::from(of.0) * 10) })
//!     .build()?;
//! let price = mediator.handle::<PriceOf>()?;
//! let (prices, report) = Pipe::from_iter(10..15)
//!     .try_map_async(8, Retry::never(), async move |article: &u32| price.send(PriceOf(*article)).await)
//!     .reject()
//!     .collect()
//!     .await?;
//! assert_eq!((prices, report.ledger.dead), (vec![100, 110, 120, 140], 1));
//! # Ok(()) }
//! ```

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

pub use millstream_mediator::*;
use millstream_message::{Address, Broker, Codec, PublishOutcome, TraceContext};

mod memory;
#[cfg(feature = "pipeline")]
mod settings;
#[cfg(feature = "pipeline")]
mod steps;

pub use memory::{memory_limit, process_memory};
#[cfg(feature = "pipeline")]
pub use settings::{Settings, SettingsError};
#[cfg(feature = "pipeline")]
pub use steps::handlers;

use crate::flow::BoxError;

/// A handler of notifications that publishes each as `codec` writes it, and succeeds when the broker has stored it.
///
/// ```
/// use millstream::mediator::{Mediator, Notification, to_broker};
/// use millstream::prelude::*;
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct OrderPlaced { id: u32 }
/// impl Notification for OrderPlaced {}
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let broker = millstream::open("memory:").await?;
/// broker.declare_queue(Queue::durable("orders")).await?;
/// let mediator = Mediator::builder()
///     .notification_handler(to_broker::<OrderPlaced, _>(broker.clone(), Address::queue("orders"), Json)) // the one line
///     .build()?;
/// mediator.publish(OrderPlaced { id: 7 }).await.into_result()?;
/// assert_eq!(broker.stats("orders").await?.ready, 1);
/// # Ok(()) }
/// ```
///
/// A [`TraceContext`] in the call's [`Context`] is the message's trace, unless the codec has given it one:
/// `mediator.publish_in(&Context::new().with(trace), OrderPlaced { id: 7 })`.
///
/// # Errors
/// The handler fails with the broker's error, or with its reason if it stored nothing: nobody wants it, or it was refused. A
/// connection that was lost before the confirm is transient: with [`Retries`] around it the notification may be stored
/// twice.
pub fn to_broker<N, C>(broker: Arc<dyn Broker>, address: Address, codec: C) -> ToBroker<N, C>
where
    N: Notification,
    C: Codec<N> + Send + Sync + 'static,
{
    ToBroker { broker, address, codec, notification: PhantomData }
}

/// The handler that [`to_broker`] makes.
pub struct ToBroker<N, C> {
    broker: Arc<dyn Broker>,
    address: Address,
    codec: C,
    notification: PhantomData<fn(N)>,
}

impl<N, C> Handler<Notified<N>> for ToBroker<N, C>
where
    N: Notification,
    C: Codec<N> + Send + Sync + 'static,
{
    type Error = BoxError;

    async fn handle(&self, Notified(notification): Notified<N>, call: &Call<'_>) -> Result<(), BoxError> {
        let mut message = self.codec.encode(&notification)?;
        if let Some(trace) = call.context().get::<TraceContext>()
            && message.trace().is_none()
        {
            message = message.with_trace(trace);
        }
        let address = &self.address;
        match self.broker.publish(address, message).await? {
            PublishOutcome::Confirmed => Ok(()),
            PublishOutcome::Unroutable(returned) => {
                let reason = format!("{address}: {}", returned.reason);
                Err(crate::resilience::Classified::new(crate::resilience::Class::Permanent, reason).into())
            }
            PublishOutcome::Refused(refusal) => Err(format!("{address}: {refusal}").into()),
            PublishOutcome::Unconfirmed(error) => Err(error.into()),
        }
    }
}

impl<N, C> fmt::Debug for ToBroker<N, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToBroker").field("address", &self.address).finish_non_exhaustive()
    }
}

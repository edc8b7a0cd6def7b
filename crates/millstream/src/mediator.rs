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

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

pub use millstream_mediator::*;
use millstream_message::{Address, Broker, Codec, PublishOutcome};

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

/// What a handler of [`to_broker`] does with one notification.
pub type HandOver = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

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
///     .notification(to_broker::<OrderPlaced, _>(broker.clone(), Address::queue("orders"), Json)) // the one line
///     .build()?;
/// mediator.publish(OrderPlaced { id: 7 }).await.into_result()?;
/// assert_eq!(broker.stats("orders").await?.ready, 1);
/// # Ok(()) }
/// ```
///
/// # Errors
/// The handler fails with the broker's error, or with its reason if it stored nothing: nobody wants it, or it was refused. A
/// connection that was lost before the confirm is transient: with [`Retries`] around it the notification may be stored
/// twice.
pub fn to_broker<N, C>(
    broker: Arc<dyn Broker>,
    address: Address,
    codec: C,
) -> impl Fn(Arc<N>) -> HandOver + Send + Sync + 'static
where
    N: Notification,
    C: Codec<N> + Send + Sync + 'static,
{
    move |notification| {
        let (broker, address, message) = (broker.clone(), address.clone(), codec.encode(&notification));
        Box::pin(async move {
            let message = message?;
            match broker.publish(&address, message).await? {
                PublishOutcome::Confirmed => Ok(()),
                PublishOutcome::Unroutable(returned) => {
                    let reason = format!("{address}: {}", returned.reason);
                    Err(crate::resilience::Classified::new(crate::resilience::Class::Permanent, reason)
                        .into())
                }
                PublishOutcome::Refused(refusal) => Err(format!("{address}: {refusal}").into()),
                PublishOutcome::Unconfirmed(error) => Err(error.into()),
            }
        })
    }
}

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
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

pub use millstream_mediator::*;
use millstream_message::{Address, Broker, Codec, PublishOutcome};

#[cfg(feature = "pipeline")]
mod settings;
#[cfg(feature = "pipeline")]
mod steps;

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

/// How many bytes of memory this process uses, as Linux tells it: the larger of its resident set and, if its control group has a
/// limit, that group's working set: what is charged to it without the file cache that Linux gives back first (`inactive_file`),
/// as the kubelet counts it. `None` elsewhere. A probe for [`Memory::probe`]; it reads one small file, and three more where the
/// group has a limit.
pub fn process_memory() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    // Pages of 4 KiB wherever Linux does not say otherwise; where they are larger this is too low, never too high.
    let resident = statm.split_whitespace().nth(1)?.parse::<u64>().ok()? * 4096;
    // A group without a limit is the whole machine's, which says nothing of this process.
    let group = memory_limit().and_then(|_| working_set(Path::new("/sys/fs/cgroup")));
    Some(resident.max(group.unwrap_or(0)))
}

/// How many bytes of memory the control group of this process may have; `None` if that is not limited, or not known.
pub fn memory_limit() -> Option<u64> {
    let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    // The first version says "no limit" by a number near 2^63.
    files.iter().find_map(|file| number(Path::new(file))).filter(|limit| *limit < 1 << 60)
}

/// Of a control group of the second version, or of the first, which are mounted here.
fn working_set(root: &Path) -> Option<u64> {
    let versions = [
        ("memory.current", "memory.stat", "inactive_file "),
        ("memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file "),
    ];
    versions.iter().find_map(|(charged, stat, cache)| {
        let charged = number(&root.join(charged))?;
        let stat = std::fs::read_to_string(root.join(stat)).unwrap_or_default();
        let cache = stat.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse().ok());
        Some(charged.saturating_sub(cache.unwrap_or(0)))
    })
}

fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::working_set;

    #[test]
    fn a_groups_file_cache_is_not_what_its_processes_hold() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(root.path().join(file), text).unwrap();
        assert_eq!(working_set(root.path()), None);
        std::fs::create_dir(root.path().join("memory")).unwrap();
        write("memory/memory.usage_in_bytes", "900\n");
        write("memory/memory.stat", "inactive_file 1\ntotal_inactive_file 500\n");
        assert_eq!(working_set(root.path()), Some(400), "the first version, with its children");
        write("memory.current", "1000\n");
        write("memory.stat", "anon 300\nfile 700\nactive_file 100\ninactive_file 600\n");
        assert_eq!(working_set(root.path()), Some(400));
    }
}

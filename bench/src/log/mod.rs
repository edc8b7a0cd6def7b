//! The cases of `goals.md`, section *log*.

mod acks;
mod append;
mod disk;
mod events;
#[cfg(feature = "peers-log")]
mod peers;
mod producers;
mod queue;
#[cfg(feature = "peers-log")]
mod rabbitmq;
mod reopen;

use crate::case::{Absent, Case, Sample, Scale};

pub(crate) use disk::noise;
pub(crate) use reopen::populate;

pub(crate) fn cases() -> Vec<Case> {
    [append::cases(), producers::cases(), acks::cases(), queue::cases(), events::cases(), reopen::cases()]
        .into_iter()
        .flatten()
        .collect()
}

/// A contestant that needs the storage engines and the AMQP client of `--features peers-log`.
macro_rules! with_peers {
    ($case:expr, $name:expr, $run:expr) => {{
        #[cfg(feature = "peers-log")]
        let case = $case.peer($name, $run);
        #[cfg(not(feature = "peers-log"))]
        let case = $case.peer($name, $crate::log::without_peers);
        case
    }};
}
use with_peers;

#[cfg_attr(feature = "peers-log", expect(dead_code, reason = "every peer is here"))]
fn without_peers(_: Scale) -> Result<Sample, Absent> {
    Err("this build has no peers of the log; `cargo xtask bench log` has them".to_owned())
}

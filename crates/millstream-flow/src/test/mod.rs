//! For tests of flows: virtual time, scripted sources, sinks on demand, what became of each item, faults by seed. Feature
//! `test`.
//!
//! ```
//! use millstream_flow::test::{Script, End, virtual_time};
//! use millstream_flow::{Batch, Pipe};
//! use std::time::Duration;
//!
//! let minute = Duration::from_secs(60);
//! virtual_time(async {
//!     // Two orders, a minute of silence, and a third.
//!     let (orders, outcomes) = Script::new().items([1, 2]).wait(minute).item(3).tracked();
//!     let (batches, report) = orders
//!         .filter(|order| *order != 2).named("not two")
//!         .batch(Batch::count(10).age(Duration::from_secs(1)))
//!         .collect()
//!         .await
//!         .unwrap();
//!     assert_eq!(batches, [[1], [3]]);
//!     assert_eq!(report.elapsed(), minute);
//!     assert_eq!(outcomes.list(), [End::Completed, End::Dropped("not two".into()), End::Completed]);
//! });
//! ```

use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

mod faults;
mod outcomes;
mod probe;
mod script;

pub use faults::{Faults, Fitful, Injected};
pub use outcomes::{End, Outcomes};
pub use probe::{Probe, ProbeSink};
pub use script::{Script, ScriptStream};

/// Virtual time after which a test is considered to hang.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How often the tasks that are being dropped get their turn before they count as left behind.
const TURNS: usize = 1000;

/// Runs a test on a runtime of its own whose time is virtual: it passes only when everything waits, and then at once to the
/// next timer. A test that would take an hour takes a millisecond, and always the same.
///
/// # Panics
/// If the test does; if it waits for something that can never happen (a wake-up was lost); or if a task is left when it
/// is over.
pub fn virtual_time<F: Future>(test: F) -> F::Output {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime of one thread needs nothing that could be missing");
    runtime.block_on(async {
        let output =
            timeout(FOREVER, test).await.expect("nothing is left that could happen: a wake-up was lost");
        let tasks = || Handle::current().metrics().num_alive_tasks();
        for _ in 0..TURNS {
            if tasks() == 0 {
                break;
            }
            yield_now().await;
        }
        assert_eq!(tasks(), 0, "tasks that are left when the test is over");
        output
    })
}

/// Returns when everything that can happen without time passing has happened, one millisecond later: the step of tokio's
/// timers, to which time passes only when all tasks wait.
pub async fn quiescence() {
    sleep(Duration::from_millis(1)).await;
}

//! What several of these tests look at.

use std::sync::{Arc, Mutex, OnceLock};

use millstream_mediator::Mediator;
use tracing::Dispatch;
use tracing::subscriber::NoSubscriber;

/// A number of the metrics, which must be there.
pub(crate) fn number(mediator: &Mediator, name: &str, labels: &[(&str, &str)]) -> f64 {
    mediator
        .metrics()
        .snapshot()
        .number(name, labels)
        .unwrap_or_else(|| panic!("there is no {name} {labels:?}"))
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Two subscribers that see nothing and live as long as the process. While `tracing` knows of only one, a place that logs
/// for the first time asks the subscriber of its own thread, and remembers the answer for all threads: another test's
/// thread without one then silences the place here.
static OTHERS: OnceLock<[Dispatch; 2]> = OnceLock::new();

/// What is logged from the level on, while the guard lives.
pub(crate) fn logged(level: tracing::Level) -> (impl Fn() -> String, tracing::subscriber::DefaultGuard) {
    OTHERS.get_or_init(|| [(); 2].map(|()| Dispatch::new(NoSubscriber::new())));
    let lines = Lines::default();
    let write = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .without_time()
        .with_writer(move || write.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    (move || String::from_utf8(lines.0.lock().unwrap().clone()).unwrap(), guard)
}

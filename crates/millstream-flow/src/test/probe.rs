//! A sink that takes items when a test asks for them.

use std::sync::Arc;

use tokio::sync::{Notify, Semaphore, mpsc};

use crate::sink::{Sink, SinkError};

/// Items that were asked for and not taken yet.
const WAITING_MAX: usize = 1024;

/// The test's end of a sink that takes an item only when it is asked to: everything upstream feels it.
///
/// ```
/// use millstream_flow::test::{Probe, Script, quiescence, virtual_time};
/// virtual_time(async {
///     let (pipe, outcomes) = Script::new().items(0..100).tracked();
///     let (mut probe, sink) = Probe::new();
///     let run = pipe.into_sink(sink).start();
///     quiescence().await;
///     // One item is in the sink's hands, and nothing more was taken from the source.
///     assert_eq!((outcomes.issued(), outcomes.ends().len()), (1, 0));
///     assert_eq!(probe.next().await, Some(0));
///     quiescence().await;
///     assert_eq!((outcomes.issued(), outcomes.ends().len()), (2, 1));
///     drop(run);
/// });
/// ```
#[derive(Debug)]
pub struct Probe<T> {
    demand: Arc<Semaphore>,
    items: mpsc::Receiver<T>,
    refusal: Arc<Refusal>,
}

/// The flow's end of a [`Probe`].
#[derive(Debug)]
pub struct ProbeSink<T> {
    demand: Arc<Semaphore>,
    items: mpsc::Sender<T>,
    refusal: Arc<Refusal>,
}

#[derive(Debug, Default)]
struct Refusal {
    reason: std::sync::Mutex<Option<String>>,
    news: Notify,
}

impl<T: Send + 'static> Probe<T> {
    /// A probe, and the sink to end the flow in.
    pub fn new() -> (Self, ProbeSink<T>) {
        let (demand, refusal) = (Arc::new(Semaphore::new(0)), Arc::<Refusal>::default());
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let sink = ProbeSink { demand: demand.clone(), items: sender, refusal: refusal.clone() };
        (Probe { demand, items: receiver, refusal }, sink)
    }

    /// Asks for an item and waits for it. `None` when the flow has ended.
    pub async fn next(&mut self) -> Option<T> {
        self.demand.add_permits(1);
        self.items.recv().await
    }

    /// Asks for so many items and does not wait for them. At most 1,024 wait to be taken.
    pub fn request(&self, items: usize) {
        self.demand.add_permits(items);
    }

    /// An item that was asked for and has come.
    pub fn try_next(&mut self) -> Option<T> {
        self.items.try_recv().ok()
    }

    /// Lets the sink fail, now if it waits for demand, else at its next item.
    pub fn fail(&self, reason: &str) {
        *self.refusal.reason.lock().expect("nothing panics while a reason is held") = Some(reason.to_owned());
        self.refusal.news.notify_one();
    }
}

impl<T: Send + 'static> Sink for ProbeSink<T> {
    type Item = T;

    async fn write(&mut self, items: &mut Vec<T>) -> Result<(), SinkError> {
        for item in items.drain(..) {
            tokio::select! {
                biased;
                () = self.refusal.news.notified() => {
                    let reason = self.refusal.reason.lock().expect("nothing panics while a reason is held").take();
                    return Err(SinkError::Failed(reason.unwrap_or_default().into()));
                }
                permit = self.demand.acquire() => match permit {
                    Ok(permit) => permit.forget(),
                    Err(_) => unreachable!("nobody closes the semaphore"),
                },
            }
            // A probe that is gone takes everything that was asked for.
            let _ = self.items.send(item).await;
        }
        Ok(())
    }

    fn chunk(&self) -> usize {
        1
    }
}

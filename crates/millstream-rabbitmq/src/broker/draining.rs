//! Consumers that end when their queue is empty.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::consumer::ConsumerCore;
use crate::link::CallError;
use crate::proto::Method;
use crate::topology;

/// How long messages may be ready for the only consumer of a queue, none of which comes. A queue delivers at once; a stream that
/// was not told where to begin delivers what is yet to be published.
const UNMOVED: Duration = Duration::from_secs(5);

/// Ends a consumer when its queue is empty, if that is asked for.
pub(super) async fn watch_for_the_end(consumer: Arc<ConsumerCore>) {
    loop {
        consumer.drained.notified().await;
        let mut wait = Duration::from_millis(2);
        let mut unmoved: Option<Instant> = None;
        loop {
            if consumer.has_ended() {
                return;
            }
            let Some(delivered) = consumer.asks_for_the_end() else { break };
            match filled(&consumer).await {
                Ok(Filled::Empty) => consumer.ran_dry(delivered),
                Ok(Filled::ForUsAlone) if delivered == 0 && !consumer.is_paused() => {
                    if unmoved.get_or_insert_with(Instant::now).elapsed() >= UNMOVED {
                        consumer.is_a_stream();
                    }
                    sleep(wait).await;
                    wait = (2 * wait).min(Duration::from_millis(100));
                }
                Ok(_) | Err(_) => {
                    unmoved = None;
                    sleep(wait).await;
                    wait = (2 * wait).min(Duration::from_millis(100));
                }
            }
        }
    }
}

enum Filled {
    Empty,
    /// Messages are ready, and nobody else takes any.
    ForUsAlone,
    Otherwise,
}

/// Whether nothing is ready in a consumer's queue, nor on its way.
async fn filled(consumer: &Arc<ConsumerCore>) -> Result<Filled, CallError> {
    if consumer.delayed() > 0 {
        return Ok(Filled::Otherwise);
    }
    let channel = consumer.channel().ok_or(CallError::Lost)?;
    // Twice: deliveries that the queue has handed to the channel come before the second answer, not before the first.
    for _ in 0..2 {
        let answer = consumer.link().call(channel, &topology::check_queue(consumer.queue())).await?;
        match answer {
            Method::QueueDeclareOk { messages: 0, .. } => {}
            // Of a stream none is counted; of a queue this one is, unless it is paused.
            Method::QueueDeclareOk { consumers: 0 | 1, .. } => return Ok(Filled::ForUsAlone),
            _ => return Ok(Filled::Otherwise),
        }
    }
    Ok(Filled::Empty)
}

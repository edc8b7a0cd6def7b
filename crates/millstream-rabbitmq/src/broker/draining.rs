//! Consumers that end when their queue is empty.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::consumer::ConsumerCore;
use crate::link::CallError;
use crate::proto::Method;
use crate::topology;

/// Ends a consumer when its queue is empty, if that is asked for.
pub(super) async fn watch_for_the_end(consumer: Arc<ConsumerCore>) {
    loop {
        consumer.drained.notified().await;
        let mut wait = Duration::from_millis(2);
        loop {
            if consumer.has_ended() {
                return;
            }
            let Some(delivered) = consumer.asks_for_the_end() else { break };
            match empty(&consumer).await {
                Ok(true) => consumer.ran_dry(delivered),
                Ok(false) | Err(_) => {
                    sleep(wait).await;
                    wait = (2 * wait).min(Duration::from_millis(100));
                }
            }
        }
    }
}

/// Whether nothing is ready in a consumer's queue, nor on its way.
async fn empty(consumer: &Arc<ConsumerCore>) -> Result<bool, CallError> {
    if consumer.delayed() > 0 {
        return Ok(false);
    }
    let channel = consumer.channel().ok_or(CallError::Lost)?;
    // Twice: deliveries that the queue has handed to the channel come before the second answer, not before the first.
    for _ in 0..2 {
        let answer = consumer.link().call(channel, &topology::check_queue(consumer.queue())).await?;
        if !matches!(answer, Method::QueueDeclareOk { messages: 0, .. }) {
            return Ok(false);
        }
    }
    Ok(true)
}

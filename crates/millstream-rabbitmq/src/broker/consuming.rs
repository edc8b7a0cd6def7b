//! How consuming begins, and how a handle ends.

use std::time::Duration;

use millstream_message::{BrokerError, BrokerErrorKind, ConsumeOptions, Consumer};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Inner;
use super::draining::watch_for_the_end;
use super::positions::PositionJob;
use crate::consumer::ConsumerCore;
use crate::fields::cut;
use crate::link::{CLOSE_MAX, CallError, ConnectionState};
use crate::refusals::{failed, unsupported};
use crate::restore;
use crate::topology;

impl Inner {
    pub(super) async fn consume(
        &self,
        queue: &str,
        options: ConsumeOptions,
    ) -> Result<Consumer, BrokerError> {
        topology::check_name("queue", queue)?;
        if options.lease.is_some() {
            return Err(unsupported("leases: leave `lease` out, and set the broker's `consumer_timeout`"));
        }
        let is_stream = self.hub.is_stream(queue);
        let mistaken = match options.from {
            None if is_stream == Some(true) => "is a stream: say where to begin by `from`",
            Some(_) if is_stream == Some(false) => "is no stream: leave `from` out",
            _ => "",
        };
        if !mistaken.is_empty() {
            let text = format!("queue `{queue}` {mistaken}");
            return Err(BrokerError::new(BrokerErrorKind::Invalid, text));
        }
        let link = self.consuming().await?.clone();
        let what = || format!("queue `{queue}`");
        let until = Instant::now() + self.options.operation_timeout;
        let cancelling = timeout_at(until, self.hub.none_cancelling(queue)).await;
        if cancelling.is_err() {
            let text = format!("queue `{queue}`: another consumer of this handle is still being cancelled");
            return Err(BrokerError::new(BrokerErrorKind::Unavailable, text));
        }
        let number = self.hub.next_consumer();
        let name = match options.name.as_str() {
            "" => format!("millstream-{}-{number}", std::process::id()),
            // The name is the consumer's tag, which is unique on its channel; a number makes it so in lists, too.
            name => format!("{}-{number}", cut(name, 200)),
        };
        loop {
            link.up().await?;
            let core = ConsumerCore::new(
                queue.to_owned(),
                name.clone(),
                options.clone(),
                link.clone(),
                self.hub.clone(),
            );
            // Dropped while it waits, it gives the channel back.
            let consumer = core.consumer();
            match restore::open(&link, &core).await {
                Ok(()) => {
                    self.hub.add_consumer(&core);
                    // Lost since it was taken, and before anybody who restores consumers knew of it.
                    if !core.channel().is_some_and(|channel| link.is_current(channel)) {
                        link.mend(core.clone());
                    }
                    tokio::spawn(watch_for_the_end(core));
                    return Ok(consumer);
                }
                Err(CallError::Lost) if Instant::now() < until && !link.is_closing() => {}
                Err(error) => return Err(failed(&what(), error)),
            }
        }
    }

    pub(super) async fn close(&self) -> Result<(), BrokerError> {
        // Nothing more is taken in, which would have to be brought away again.
        for consumer in self.hub.consumers() {
            consumer.stop_for_good();
        }
        // Then publishing: what was accepted is confirmed before the connection goes, and what was settled as a dead letter is one.
        let drained = async {
            let waits = |jobs: &mpsc::Sender<PositionJob>| jobs.capacity() < jobs.max_capacity();
            while waits(&*self.positions.lock().await)
                || self.links().any(|link| link.state().outbox.in_flight() > 0)
                || self.hub.errands_open() > 0
            {
                if self.links().all(|link| link.is_closing()) {
                    return;
                }
                sleep(Duration::from_millis(1)).await;
            }
        };
        let drained = timeout(self.options.operation_timeout, drained).await;
        let left: u64 = self.links().map(|link| link.state().outbox.in_flight()).sum();
        let errands = self.hub.errands_open();
        self.links().for_each(|link| link.close());
        self.hub.any_errands.notify_one();
        for link in self.links() {
            let mut status = link.status();
            let ended = status.wait_for(|state| *state == ConnectionState::Closed);
            let _ = timeout(CLOSE_MAX + Duration::from_secs(1), ended).await;
        }
        for consumer in self.hub.consumers() {
            consumer.lost();
        }
        // What was settled since then is nobody's any more.
        drop(self.hub.take_errands());
        if drained.is_err() && errands > 0 {
            let within = self.options.operation_timeout;
            let text = format!(
                "closed with {errands} deliveries that could not be stored as dead letters, or to come again later, within {within:?}; \
                 they are still in their queue, and come again"
            );
            return Err(BrokerError::new(BrokerErrorKind::Unavailable, text));
        }
        if drained.is_err() && left > 0 {
            let within = self.options.operation_timeout;
            let text = format!("closed with {left} publishes that were not confirmed within {within:?}");
            return Err(BrokerError::new(BrokerErrorKind::Unavailable, text));
        }
        Ok(())
    }
}

//! What a declaration must be.

use std::fmt::Debug;

use millstream_message::{
    Binding, BrokerError, BrokerErrorKind, Exchange, ExchangeKind, Queue, QueueKind, differences,
};
use serde::Serialize;

pub(super) fn not_found(what: &str, name: &str) -> BrokerError {
    BrokerError::new(BrokerErrorKind::NotFound, format!("there is no {what} `{name}`; declare it first"))
}

pub(super) fn check_name(what: &str, name: &str) -> Result<(), BrokerError> {
    let wrong = match name.len() {
        0 => "is empty".to_owned(),
        1..=255 => return Ok(()),
        len => format!("has {len} bytes"),
    };
    Err(BrokerError::new(
        BrokerErrorKind::Invalid,
        format!("the name of a {what} {wrong}; use 1 to 255 bytes"),
    ))
}

/// Whether what is declared is what is there.
pub(super) fn same<T: Serialize + Debug>(
    has: &T,
    asked: &T,
    what: &str,
    name: &str,
) -> Result<(), BrokerError> {
    let Some(differences) = differences(has, asked) else { return Ok(()) };
    Err(BrokerError::new(
        BrokerErrorKind::Mismatch,
        format!(
            "{what} `{name}` exists and differs: {differences}; declare it as it is, or delete it once it is empty"
        ),
    ))
}

pub(super) fn check_queue(queue: &Queue) -> Result<(), BrokerError> {
    check_name("queue", &queue.name)?;
    let fail = |text: &str| {
        Err(BrokerError::new(BrokerErrorKind::Invalid, format!("queue `{}`: {text}", queue.name)))
    };
    if queue.durable && queue.exclusive {
        return fail("an exclusive queue vanishes with its connection, so it cannot be durable; choose one");
    }
    if queue.dead_letter_key.is_some() && queue.dead_letter_exchange.is_none() {
        return fail(
            "a dead-letter key without a dead-letter exchange has no effect; set `dead_letter_exchange` (\"\" is the default exchange)",
        );
    }
    if queue.kind == Some(QueueKind::Stream) || queue.expires.is_some() {
        let text = if queue.expires.is_some() {
            "queues do not go by themselves here: leave `expires` out, and delete it when it is no longer used"
        } else {
            "a stream is no queue here: `millstream stream declare`, or `declare_stream`, makes one"
        };
        return Err(BrokerError::new(
            BrokerErrorKind::Unsupported,
            format!("queue `{}`: {text}", queue.name),
        ));
    }
    if queue.ttl.is_some_and(|ttl| ttl.subsec_nanos() % 1_000_000 != 0) {
        return fail("the TTL is kept in whole milliseconds; round it");
    }
    Ok(())
}

pub(super) fn check_binding(exchange: &Exchange, binding: &Binding) -> Result<(), BrokerError> {
    let by_headers = exchange.kind == ExchangeKind::Headers;
    let text = match &binding.headers {
        Some(_) if !by_headers => "compares headers, which only a headers exchange does",
        None if by_headers => "gives no headers to compare; use `Binding::headers`",
        _ => return Ok(()),
    };
    Err(BrokerError::new(BrokerErrorKind::Invalid, format!("the {binding} {text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_is_declared_as_a_queue_is_told_what_makes_one() {
        let error = check_queue(&Queue::durable("q").kind(QueueKind::Stream)).expect_err("it is no queue");
        assert!(error.to_string().contains("`millstream stream declare`"), "{error}");
    }
}

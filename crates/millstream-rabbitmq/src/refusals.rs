//! The words of refusals: what the server's codes mean to whoever asked.

use millstream_message::{Address, BrokerError, BrokerErrorKind};

use crate::link::CallError;
use crate::proto::Closed;

pub(crate) fn unsupported(what: &str) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unsupported, format!("RabbitMQ by AMQP has no {what}"))
}

/// Why a message came back from there: the server's word for it is `NO_ROUTE`.
pub(crate) fn unroutable(to: &Address, word: &str) -> String {
    match (word, to.exchange()) {
        ("NO_ROUTE", "") => {
            format!("there is no queue `{}`, or its node is down; declare it first", to.key())
        }
        ("NO_ROUTE", exchange) => {
            format!("no queue is bound to exchange `{exchange}` for key `{}`", to.key())
        }
        (other, _) => other.to_owned(),
    }
}

pub(crate) fn no_streams() -> BrokerError {
    BrokerError::new(
        BrokerErrorKind::Unsupported,
        "streams are reached by RabbitMQ's stream protocol: open the broker as `rabbitmq-stream://…`",
    )
}

/// What a refused method means to whoever asked for it.
pub(crate) fn refused(what: &str, closed: &Closed) -> BrokerError {
    let text = &closed.text;
    match closed.code {
        _ if closed.is_down() => BrokerError::new(
            BrokerErrorKind::Unavailable,
            format!(
                "{what}: {text}; try again when the node is back, or have a quorum queue, which is on several"
            ),
        ),
        404 => BrokerError::new(BrokerErrorKind::NotFound, format!("{what}: {text}; declare it first")),
        405 => BrokerError::new(
            BrokerErrorKind::InUse,
            format!("{what}: {text}; it belongs to another connection until that one closes"),
        ),
        403 if text.contains("exclusive") => BrokerError::new(
            BrokerErrorKind::InUse,
            format!(
                "{what}: {text}; wait until the other consumer has ended, or consume without `exclusive`"
            ),
        ),
        403 => BrokerError::new(
            BrokerErrorKind::Invalid,
            format!("{what}: {text}; `rabbitmqctl set_permissions` gives the user the right to"),
        ),
        406 => mismatch(what, closed),
        code => BrokerError::new(BrokerErrorKind::Invalid, format!("{what}: {text} ({code})")),
    }
}

pub(crate) fn failed(what: &str, error: CallError) -> BrokerError {
    match error {
        CallError::Refused(closed) => refused(what, &closed),
        CallError::Lost => BrokerError::new(
            BrokerErrorKind::Unavailable,
            format!("{what}: the connection was lost; try again"),
        ),
        CallError::NoChannel(most) => BrokerError::new(
            BrokerErrorKind::Unavailable,
            format!(
                "{what}: all {most} channels of the connection are in use; raise `channel_max`, or set `connections`"
            ),
        ),
    }
}

/// The server's words about a declaration that differs from what is there, in ours: `PRECONDITION_FAILED - inequivalent arg
/// 'x-max-length' for queue 'q' in vhost '/': received the value '6' of type 'long' but current is the value '5' of type
/// 'long'`.
pub(crate) fn difference(closed: &Closed) -> String {
    let text = &closed.text;
    let quoted = |after: &str| {
        let (_, rest) = text.split_once(after)?;
        let rest = rest.trim_start();
        if rest.starts_with("none") {
            return Some("none");
        }
        rest.split_once('\'')?.1.split('\'').next()
    };
    let told = quoted("inequivalent arg ").map(|argument| {
        let asked = quoted("received ").map_or("?", shown);
        let has = quoted("but current is ").map_or("?", shown);
        format!("{}: has {has}, asked for {asked}", our_name(argument))
    });
    told.unwrap_or_else(|| text.clone())
}

/// The name of the default exchange is empty.
fn shown(value: &str) -> &str {
    if value.is_empty() { "''" } else { value }
}

fn mismatch(what: &str, closed: &Closed) -> BrokerError {
    let told = difference(closed);
    // What waits in it would be lost.
    let empty = if what.starts_with("queue") { " once it is empty" } else { "" };
    let message =
        format!("{what} is there, declared otherwise ({told}); declare it as it is, or delete it{empty}");
    BrokerError::new(BrokerErrorKind::Mismatch, message)
}

/// A field of our declaration by the name of its argument.
pub(crate) fn our_name(argument: &str) -> &str {
    match argument {
        "x-message-ttl" => "ttl in ms",
        "x-max-length" => "max_items",
        "x-max-length-bytes" => "max_bytes",
        "x-overflow" => "overflow",
        "x-dead-letter-exchange" => "dead_letter_exchange",
        "x-dead-letter-routing-key" => "dead_letter_key",
        "x-max-priority" => "max_priority",
        "x-delivery-limit" => "delivery_limit",
        "x-queue-type" => "kind",
        "x-single-active-consumer" => "single_active_consumer",
        "x-expires" => "expires in ms",
        "alternate-exchange" => "alternate",
        "type" => "kind",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        let closed = Closed { code: 406, text: text.to_owned(), cause: (50, 10) };
        mismatch("queue `q`", &closed).to_string()
    }

    #[test]
    fn the_servers_words_about_a_difference_become_ours() {
        let text = said(
            "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received the value '6' of type \
             'long' but current is the value '5' of type 'long'",
        );
        assert!(text.contains("max_items: has 5, asked for 6"), "{text}");
        let text = said(
            "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received none but current is the \
             value '5' of type 'signedint'",
        );
        assert!(text.contains("ttl in ms: has 5, asked for none"), "{text}");
        let text = said(
            "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'",
        );
        assert!(text.contains("durable: has false, asked for true"), "{text}");
        let text = said(
            "PRECONDITION_FAILED - inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': received none but current is \
             the value '' of type 'longstr'",
        );
        assert!(text.contains("dead_letter_exchange: has '', asked for none"), "{text}");
        assert!(text.ends_with("declare it as it is, or delete it once it is empty"), "{text}");
        assert!(
            said("PRECONDITION_FAILED - whatever").contains("whatever"),
            "unknown words are told as they are"
        );
    }
}

//! What is said of a connection that could not be made, or that ended.

use std::io;

use millstream_message::{BrokerError, BrokerErrorKind};

use super::Link;
use super::io::End;
use crate::proto::Closed;

pub(super) fn unreachable_host(place: &str, error: io::Error) -> BrokerError {
    let text = format!(
        "{place} cannot be reached: {error}; is RabbitMQ running there, and are host and port of the URL right?"
    );
    BrokerError::with_source(BrokerErrorKind::Unavailable, text, error)
}

/// The other side went away within the handshake, as those do that speak another protocol.
pub(super) fn closed_early(place: &str, error: io::Error) -> BrokerError {
    let text = format!(
        "{place} closed the connection within the handshake; is that AMQP's port, 5672 or 5671 with TLS? 5552 is for streams, \
         15672 for the management"
    );
    BrokerError::with_source(BrokerErrorKind::Unavailable, text, error)
}

impl Link {
    /// The error of a handshake, or of a life, that ended in this way.
    pub(super) fn refused(&self, place: &str, end: End) -> BrokerError {
        let user = self.options.login.user().unwrap_or("the certificate's");
        match end {
            End::Closed(Closed { code: 403, text, .. }) => BrokerError::new(
                BrokerErrorKind::Invalid,
                format!(
                    "{place} does not let `{user}` in: {text}; give the right name and password in the URL, or let the user in \
                     with `rabbitmqctl set_permissions`"
                ),
            ),
            End::Closed(Closed { code: 530, text, .. }) => BrokerError::new(
                BrokerErrorKind::Invalid,
                format!(
                    "{place}: vhost `{}`: {text}; the URL's path is the vhost (`/` is written `%2f`), `rabbitmqctl add_vhost` \
                     makes one",
                    self.options.vhost
                ),
            ),
            End::Closed(Closed { code, text, .. }) => BrokerError::new(
                BrokerErrorKind::Unavailable,
                format!("{place} closed the connection: {text} ({code})"),
            ),
            End::Protocol(error) => {
                let kind =
                    if error.code == 403 { BrokerErrorKind::Invalid } else { BrokerErrorKind::Unavailable };
                BrokerError::with_source(kind, format!("{place}: {error}"), error)
            }
            End::Io(error) => {
                let text = format!("{place}: the connection was lost: {error}");
                BrokerError::with_source(BrokerErrorKind::Unavailable, text, error)
            }
            End::Asked => self.closed_error(),
        }
    }
}

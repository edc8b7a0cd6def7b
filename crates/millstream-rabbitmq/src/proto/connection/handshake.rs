//! What is said about the connection itself: the handshake, blocked publishers, the end.

use std::time::Duration;

use millstream_message::{Headers, Value};

use super::words::{COMMAND_INVALID, Closed, Event, ProtocolError, SYNTAX_ERROR};
use super::{Connection, FRAME_MIN, FRAME_USUAL, Phase};
use crate::proto::method::Method;

impl Connection {
    /// Takes a method of channel 0.
    pub(super) fn connection_method(
        &mut self,
        method: Method,
        on: &mut impl FnMut(Event<'_>),
    ) -> Result<(), ProtocolError> {
        match (self.phase, method) {
            (
                Phase::Start,
                Method::ConnectionStart {
                    version_major, version_minor, server_properties, mechanisms, ..
                },
            ) => {
                if (version_major, version_minor) != (0, 9) {
                    let text = format!("the server speaks version {version_major}.{version_minor}, not 0.9");
                    return Err(ProtocolError::new(COMMAND_INVALID, text));
                }
                self.start(&server_properties, &String::from_utf8_lossy(&mechanisms))
            }
            // Mechanisms that go on do so here; ours have said all.
            (Phase::Tune, Method::ConnectionSecure { .. }) => {
                self.send(0, &Method::ConnectionSecureOk { response: Vec::new() });
                Ok(())
            }
            (Phase::Tune, Method::ConnectionTune { channel_max, frame_max, heartbeat }) => {
                self.tune(channel_max, frame_max, heartbeat)
            }
            (Phase::Open, Method::ConnectionOpenOk { .. }) => {
                self.phase = Phase::Ready;
                on(Event::Opened(self.server.clone()));
                Ok(())
            }
            (Phase::Ready | Phase::Closing, Method::ConnectionBlocked { reason }) => {
                on(Event::Blocked(reason));
                Ok(())
            }
            (Phase::Ready | Phase::Closing, Method::ConnectionUnblocked {}) => {
                on(Event::Unblocked);
                Ok(())
            }
            (_, Method::ConnectionClose { code, text, class, method }) => {
                self.send(0, &Method::ConnectionCloseOk {});
                self.phase = Phase::Over;
                on(Event::Closed(Closed { code, text, cause: (class, method) }));
                Ok(())
            }
            (Phase::Closing, Method::ConnectionCloseOk {}) => {
                self.phase = Phase::Over;
                on(Event::CloseOk);
                Ok(())
            }
            (phase, method) => {
                let text = format!("{} has no place on a connection in state {phase:?}", method.name());
                Err(ProtocolError::new(COMMAND_INVALID, text))
            }
        }
    }

    fn start(&mut self, server: &Headers, mechanisms: &str) -> Result<(), ProtocolError> {
        let text = |name: &str| server.get(name).and_then(Value::as_text).unwrap_or_default().to_owned();
        (self.server.product, self.server.version) = (text("product"), text("version"));
        let mechanism = self.settings.login.mechanism();
        if !mechanisms.split_ascii_whitespace().any(|offered| offered == mechanism) {
            let text = format!("the server offers {mechanisms} to log in, not {mechanism}");
            return Err(ProtocolError::new(403, text));
        }
        let capabilities = [
            "publisher_confirms",
            "exchange_exchange_bindings",
            "basic.nack",
            "consumer_cancel_notify",
            "connection.blocked",
            "authentication_failure_close",
        ];
        let capabilities: Headers = capabilities.map(|name| (name.to_owned(), Value::Bool(true))).into();
        let client_properties = Headers::from([
            ("product".to_owned(), "Millstream".into()),
            ("version".to_owned(), env!("CARGO_PKG_VERSION").into()),
            ("platform".to_owned(), "Rust".into()),
            ("connection_name".to_owned(), self.settings.name.as_str().into()),
            ("capabilities".to_owned(), Value::Map(capabilities)),
        ]);
        let start = Method::ConnectionStartOk {
            client_properties,
            mechanism: mechanism.to_owned(),
            response: self.settings.login.response(),
            locale: "en_US".to_owned(),
        };
        self.send(0, &start);
        self.phase = Phase::Tune;
        Ok(())
    }

    fn tune(&mut self, channel_max: u16, frame_max: u32, heartbeat: u16) -> Result<(), ProtocolError> {
        /// The smaller of two limits of which 0 is none.
        fn lower<N: Ord + Default + Copy>(a: N, b: N) -> N {
            if a == N::default() || b == N::default() { a.max(b) } else { a.min(b) }
        }
        let channel_max = lower(channel_max, self.settings.channel_max);
        let frame_max = lower(frame_max, self.settings.frame_max);
        let frame_max = if frame_max == 0 { FRAME_USUAL } else { frame_max };
        if (frame_max as usize) < FRAME_MIN {
            let text = format!("frames of {frame_max} bytes are below AMQP's least, {FRAME_MIN}");
            return Err(ProtocolError::new(SYNTAX_ERROR, text));
        }
        let ours = u16::try_from(self.settings.heartbeat.as_secs_f64().ceil() as u64).unwrap_or(u16::MAX);
        // Whoever wants none has none; RabbitMQ does as the client says.
        let heartbeat = if ours == 0 { 0 } else { lower(heartbeat, ours) };
        self.server.channel_max = channel_max;
        self.server.frame_max = frame_max;
        self.server.heartbeat = Duration::from_secs(heartbeat.into());
        self.send(0, &Method::ConnectionTuneOk { channel_max, frame_max, heartbeat });
        let vhost = self.settings.vhost.clone();
        let open = Method::ConnectionOpen { vhost, reserved_1: String::new(), reserved_2: [false] };
        self.send(0, &open);
        self.phase = Phase::Open;
        Ok(())
    }
}

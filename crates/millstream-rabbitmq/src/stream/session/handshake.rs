//! From the first word to the last of the handshake.

use std::time::Duration;

use millstream_message::{BrokerError, BrokerErrorKind};

use super::super::command::{self as key, Body, Command, Request, Response, Versions, code};
use super::super::wire::Pairs;
use super::{Event, Phase, Session, Settings, broken};

/// The first version with commands to tell which others there are.
const EXCHANGES_VERSIONS: (u32, u32) = (3, 11);

impl Session {
    pub(super) fn handshake(
        &mut self,
        response: Response,
        on: &mut impl FnMut(&mut Session, Event<'_>),
    ) -> Result<(), BrokerError> {
        let Settings { user, vhost, .. } = &self.settings;
        let refused = match (response.key, response.code) {
            (_, code::OK) => None,
            (key::SASL_AUTHENTICATE, code::AUTHENTICATION_FAILURE) => {
                Some(format!("the broker refuses user `{user}`: check the name and the password in the URL"))
            }
            (key::SASL_AUTHENTICATE, code::LOOPBACK_ONLY) => Some(format!(
                "user `{user}` may connect only from the broker's own machine: make another user for this one"
            )),
            (key::OPEN, code::NO_VHOST) => Some(format!(
                "the virtual host `{vhost}` does not exist, or user `{user}` may not use it: check the path of the URL \
                 (`/%2f`, or nothing, for the default one)"
            )),
            (_, other) => Some(format!("the broker refuses the connection: {}", code::words(other))),
        };
        if let Some(text) = refused {
            return Err(BrokerError::new(BrokerErrorKind::Invalid, text));
        }
        match (self.phase, response.body) {
            (Phase::Properties, Body::Properties(properties)) => {
                self.server.version = find(&properties, "version").unwrap_or_default();
                self.request(Request::SaslHandshake);
                self.phase = Phase::Mechanisms;
            }
            (Phase::Mechanisms, Body::Names(mechanisms)) => {
                let (wanted, data, remedy) = if self.settings.external {
                    let remedy =
                        "; it needs `rabbitmq_auth_mechanism_ssl`, and EXTERNAL among its `auth_mechanisms`";
                    ("EXTERNAL", Vec::new(), remedy)
                } else {
                    ("PLAIN", format!("\0{user}\0{}", self.settings.password).into_bytes(), "")
                };
                if !mechanisms.iter().any(|mechanism| mechanism == wanted) {
                    let text = format!("the broker offers {mechanisms:?} to log in, not {wanted}{remedy}");
                    return Err(BrokerError::new(BrokerErrorKind::Unsupported, text));
                }
                self.request(Request::SaslAuthenticate { mechanism: wanted.to_owned(), data: Some(data) });
                self.phase = Phase::Login;
            }
            (Phase::Login, Body::Challenge(_)) => self.phase = Phase::Tune,
            (Phase::Open, Body::Properties(_)) => {
                if version(&self.server.version) < EXCHANGES_VERSIONS {
                    self.phase = Phase::Ready;
                    on(self, Event::Opened);
                } else {
                    let commands = (key::DECLARE_PUBLISHER..=key::DELETE_SUPER_STREAM).map(|key| {
                        let most = if key == key::DELIVER { 2 } else { 1 };
                        Versions { key, least: 1, most }
                    });
                    self.request(Request::ExchangeVersions { commands: commands.collect() });
                    self.phase = Phase::Versions;
                }
            }
            (Phase::Versions, Body::Versions(commands)) => {
                self.server.commands = commands;
                self.phase = Phase::Ready;
                on(self, Event::Opened);
            }
            (phase, _) => {
                let text = format!("an answer to {:#06x} on a connection in state {phase:?}", response.key);
                return Err(broken(text));
            }
        }
        Ok(())
    }

    pub(super) fn tune(&mut self, frame_max: u32, heartbeat: u32) -> Result<(), BrokerError> {
        /// The smaller of two limits of which 0 is none.
        fn lower(a: u32, b: u32) -> u32 {
            if a == 0 || b == 0 { a.max(b) } else { a.min(b) }
        }
        if self.phase != Phase::Tune {
            return Err(broken(format!("Tune has no place on a connection in state {:?}", self.phase)));
        }
        let frame_max = match lower(frame_max, self.settings.frame_max) {
            0 => u32::MAX,
            frame_max if frame_max < 1024 => {
                return Err(broken(format!("frames of {frame_max} bytes are too small to work with")));
            }
            frame_max => frame_max,
        };
        let ours = u32::try_from(self.settings.heartbeat.as_secs_f64().ceil() as u64).unwrap_or(u32::MAX);
        let heartbeat = if ours == 0 { 0 } else { lower(heartbeat, ours) };
        self.server.frame_max = frame_max;
        self.server.heartbeat = Duration::from_secs(heartbeat.into());
        Command::Tune { frame_max, heartbeat }.put(&mut self.out);
        let vhost = self.settings.vhost.clone();
        self.request(Request::Open { vhost });
        self.phase = Phase::Open;
        Ok(())
    }
}

fn find(properties: &Pairs, name: &str) -> Option<String> {
    properties.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
}

/// The first two numbers of a version.
pub(super) fn version(text: &str) -> (u32, u32) {
    let mut parts = text.split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().unwrap_or(0)
    });
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

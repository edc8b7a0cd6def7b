//! `rabbitmq-stream://user:password@host:5552/vhost?heartbeat=60&…`, and `rabbitmq-stream+tls://…` by TLS.

use std::fmt;
use std::time::Duration;

use millstream_message::{BrokerError, BrokerErrorKind};

use crate::options::TlsFiles;

/// The port of the stream protocol.
const PORT: u16 = 5552;
/// The same, by TLS.
const PORT_TLS: u16 = 5551;

/// How to reach a cluster by the stream protocol, and how to behave there. Plain data; [`parse`](StreamSettings::parse)
/// makes it from a URL.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamSettings {
    /// Nodes to begin with, in the order in which they are tried; where streams are, the cluster tells. Default
    /// `localhost`, port 5552.
    pub hosts: Vec<(String, u16)>,
    /// Default `guest`.
    pub user: String,
    /// Default `guest`.
    pub password: String,
    /// The virtual host. Default `/`.
    pub vhost: String,
    /// TLS, and with which certificates. Default none: what is sent can be read on its way.
    pub tls: Option<TlsFiles>,
    /// Whether to log in by the client's certificate and not by password; the broker then needs its plugin
    /// `rabbitmq_auth_mechanism_ssl`. Default false.
    pub external: bool,
    /// Shown by the broker's management. Default `millstream`.
    pub name: String,
    /// How long a connection may be silent, about, in whole seconds; the broker's wish counts if it is shorter. Zero
    /// switches heartbeats off. Default 60 s: a dead peer is noticed after at most two minutes.
    pub heartbeat: Duration,
    /// The largest frame in bytes, and so about the largest message; the broker's limit counts if it is lower.
    /// Default 1 MiB.
    pub frame_bytes_max: u32,
    /// The largest chunk in bytes that a reader takes. The broker makes them as large as its publishers are fast: up
    /// to 8,192 entries. Default 256 MiB.
    pub chunk_bytes_max: u32,
    /// How long one answer of the broker is waited for. Default 15 s.
    pub timeout: Duration,
    /// How long an operation, or a message that was published, waits for a lost connection to come back before it
    /// fails. Readers wait for ever. Default 60 s.
    pub patience: Duration,
    /// Whether to connect only to `hosts`, whatever nodes say of where they can be reached: for a load balancer or a
    /// tunnel. Default false.
    pub hosts_only: bool,
}

impl Default for StreamSettings {
    fn default() -> StreamSettings {
        StreamSettings {
            hosts: vec![("localhost".to_owned(), PORT)],
            user: "guest".to_owned(),
            password: "guest".to_owned(),
            vhost: "/".to_owned(),
            tls: None,
            external: false,
            name: "millstream".to_owned(),
            heartbeat: Duration::from_secs(60),
            frame_bytes_max: 1 << 20,
            chunk_bytes_max: 256 << 20,
            timeout: Duration::from_secs(15),
            patience: Duration::from_secs(60),
            hosts_only: false,
        }
    }
}

impl fmt::Debug for StreamSettings {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSettings")
            .field("hosts", &self.hosts)
            .field("user", &self.user)
            .field("vhost", &self.vhost)
            .field("tls", &self.tls)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

const OPTIONS: &str = "`heartbeat` (seconds), `frame_max` (bytes), `chunk_max` (bytes), `timeout` (seconds), \
                       `patience` (seconds), `hosts_only` (true or false), `name`, `auth_mechanism` (plain or external), \
                       and by TLS `cacertfile`, `certfile`, `keyfile`, `server_name_indication`, `verify`";

impl StreamSettings {
    /// Reads `rabbitmq-stream://user:password@host:5552,other:5552/vhost?heartbeat=60&name=orders`. All but the scheme
    /// may be left out. User, password, virtual host, name and files are percent-decoded.
    ///
    /// `rabbitmq-stream+tls://` is the same by TLS, port 5551, with the options of `amqps://`: `cacertfile` (default
    /// the system's), `certfile` and `keyfile` (the client's), `server_name_indication` (default the host), `verify`.
    ///
    /// # Errors
    /// `Invalid`, naming what is wrong and what is known. Never the password.
    pub fn parse(url: &str) -> Result<StreamSettings, BrokerError> {
        let invalid = |text: String| BrokerError::new(BrokerErrorKind::Invalid, text);
        let mut settings = StreamSettings::default();
        let (rest, usual) = if let Some(rest) = url.strip_prefix("rabbitmq-stream+tls://") {
            settings.tls = Some(TlsFiles::default());
            (rest, PORT_TLS)
        } else if let Some(rest) = url.strip_prefix("rabbitmq-stream://") {
            (rest, PORT)
        } else {
            let text = "the address of a RabbitMQ stream begins with `rabbitmq-stream://` or `rabbitmq-stream+tls://`";
            return Err(invalid(text.to_owned()));
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        let decode = |what: &str, text: &str| {
            decode(text).ok_or_else(|| invalid(format!("the URL's {what} has a `%` that is not followed by two digits, or is not UTF-8; write `%25` for `%`")))
        };
        if let Some(login) = login {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            settings.user = decode("user", user)?;
            settings.password = decode("password", password)?;
        }
        if !path.is_empty() {
            settings.vhost = decode("virtual host", path)?;
        }
        let hosts = if hosts.is_empty() { "localhost" } else { hosts };
        let hosts = hosts.split(',').map(|text| host(text, usual));
        settings.hosts = hosts.collect::<Result<_, _>>().map_err(&invalid)?;
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let number = || {
                value
                    .parse::<u32>()
                    .map_err(|_| invalid(format!("`{name}={value}`: a whole number is expected")))
            };
            let seconds = || number().map(|seconds| Duration::from_secs(seconds.into()));
            match name {
                "heartbeat" => settings.heartbeat = seconds()?,
                "frame_max" => settings.frame_bytes_max = number()?,
                "chunk_max" => settings.chunk_bytes_max = number()?,
                "timeout" => settings.timeout = seconds()?,
                "patience" => settings.patience = seconds()?,
                "hosts_only" => {
                    settings.hosts_only = value
                        .parse()
                        .map_err(|_| invalid(format!("`{name}={value}`: `true` or `false` is expected")))?;
                }
                "name" => settings.name = decode("name", value)?,
                "auth_mechanism" => {
                    settings.external = match value {
                        "plain" => false,
                        "external" => true,
                        _ => {
                            let text = format!("`auth_mechanism={value}`: known are plain and external");
                            return Err(invalid(text));
                        }
                    };
                }
                "cacertfile" | "certfile" | "keyfile" | "server_name_indication" | "verify" => {
                    let Some(tls) = &mut settings.tls else {
                        let text = format!("`{name}` has an effect only with `rabbitmq-stream+tls://`");
                        return Err(invalid(text));
                    };
                    let value = decode(name, value)?;
                    match name {
                        "cacertfile" => tls.ca = Some(value.into()),
                        "certfile" => tls.certificate = Some(value.into()),
                        "keyfile" => tls.key = Some(value.into()),
                        "verify" if value == "verify_peer" => {}
                        "verify" => {
                            let text = "only `verify=verify_peer` is offered: give `cacertfile` for a certificate of \
                                        your own";
                            return Err(invalid(text.to_owned()));
                        }
                        _ => tls.server_name = Some(value),
                    }
                }
                _ => {
                    return Err(invalid(format!(
                        "`{name}` is no option of `rabbitmq-stream:`; known are {OPTIONS}"
                    )));
                }
            }
        }
        if settings.external && settings.tls.as_ref().is_none_or(|tls| tls.certificate.is_none()) {
            let text = "`auth_mechanism=external` needs `rabbitmq-stream+tls://` and a `certfile`";
            return Err(invalid(text.to_owned()));
        }
        Ok(settings)
    }
}

/// `host`, `host:port`, `[address]:port`.
fn host(text: &str, usual: u16) -> Result<(String, u16), String> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':')),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() {
        return Err(format!("`{text}` has no host; write `HOST:{usual}`"));
    }
    let port = port.map_or(Ok(usual), str::parse);
    let port = port.map_err(|_| format!("`{text}` has no port from 1 to 65535; write `HOST:{usual}`"))?;
    Ok((host.to_owned(), port))
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                (16 * high + low) as u8
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_all() {
        let url = "rabbitmq-stream://us%40er:p%3ass@a:1,b,[::1]:2/v%2fh?heartbeat=5&frame_max=70000&chunk_max=9&timeout=3&patience=4&name=x%20y&hosts_only=true";
        let settings = StreamSettings::parse(url).expect("parses");
        let hosts = [("a", 1), ("b", 5552), ("::1", 2)].map(|(host, port)| (host.to_owned(), port));
        assert_eq!(settings.hosts, hosts);
        assert_eq!((&*settings.user, &*settings.password, &*settings.vhost), ("us@er", "p:ss", "v/h"));
        assert_eq!((settings.heartbeat, settings.frame_bytes_max), (Duration::from_secs(5), 70_000));
        assert_eq!((settings.chunk_bytes_max, &*settings.name), (9, "x y"));
        assert!(settings.hosts_only);
        assert!(!format!("{settings:?}").contains("p:ss"), "a password is never shown");
        assert_eq!((settings.timeout, settings.patience), (Duration::from_secs(3), Duration::from_secs(4)));
        assert_eq!(StreamSettings::parse("rabbitmq-stream://").expect("parses"), StreamSettings::default());
    }

    #[test]
    fn a_url_says_how_tls_is_meant() {
        let url = "rabbitmq-stream+tls://h?cacertfile=a%20b.pem&certfile=c&keyfile=k&server_name_indication=n&verify=verify_peer&auth_mechanism=external";
        let settings = StreamSettings::parse(url).expect("parses");
        let files = TlsFiles {
            ca: Some("a b.pem".into()),
            certificate: Some("c".into()),
            key: Some("k".into()),
            server_name: Some("n".to_owned()),
        };
        assert_eq!((settings.tls, settings.external), (Some(files), true));
        assert_eq!(settings.hosts, [("h".to_owned(), 5551)]);
        let usual = StreamSettings::parse("rabbitmq-stream+tls://?auth_mechanism=plain").expect("parses");
        assert_eq!(
            (usual.hosts, usual.tls),
            (vec![("localhost".to_owned(), 5551)], Some(TlsFiles::default()))
        );
    }

    #[test]
    fn a_wrong_url_says_what_to_write() {
        for (url, part) in [
            ("amqp://h", "rabbitmq-stream://"),
            ("rabbitmq-stream://h:x", "write `HOST:5552`"),
            ("rabbitmq-stream://h,:1", "has no host"),
            ("rabbitmq-stream://u:%zz@h", "%25"),
            ("rabbitmq-stream://h?heartbeats=1", "known are `heartbeat`"),
            ("rabbitmq-stream://h?heartbeat=x", "whole number"),
            ("rabbitmq-stream://h?cacertfile=x", "rabbitmq-stream+tls://"),
            ("rabbitmq-stream+tls://h?verify=verify_none", "cacertfile"),
            ("rabbitmq-stream+tls://h?auth_mechanism=external", "certfile"),
            ("rabbitmq-stream://h?auth_mechanism=none", "plain and external"),
            ("rabbitmq-stream+tls://h:x", "write `HOST:5551`"),
        ] {
            let error = StreamSettings::parse(url).expect_err(url);
            assert_eq!(error.kind(), BrokerErrorKind::Invalid);
            assert!(error.to_string().contains(part), "{url}: {error}");
        }
    }
}

//! How to connect: the URL and what it may say.

use std::path::PathBuf;
use std::time::Duration;

use millstream_message::{BrokerError, BrokerErrorKind};

use crate::proto::Login;

/// What an AMQP URL says: `amqp://user:password@host:5672,other-host/vhost?heartbeat=10`.
/// The options are told in `options.md`, which the documentation of [`RabbitMq::connect`](crate::RabbitMq::connect) shows.
#[derive(Clone)]
pub(crate) struct Options {
    /// Tried one after the other, from a different one each time.
    pub(crate) hosts: Vec<(String, u16)>,
    pub(crate) login: Login,
    pub(crate) vhost: String,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) name: String,
    pub(crate) heartbeat: Duration,
    pub(crate) connection_timeout: Duration,
    pub(crate) channel_max: u16,
    pub(crate) frame_max: u32,
    pub(crate) connections: usize,
    pub(crate) publish_window: usize,
    pub(crate) publish_window_bytes: usize,
    pub(crate) confirm_timeout: Option<Duration>,
    pub(crate) reconnect_min: Duration,
    pub(crate) reconnect_max: Duration,
    pub(crate) operation_timeout: Duration,
    pub(crate) max_message_bytes: Option<u64>,
    pub(crate) nodelay: bool,
    pub(crate) keepalive: Option<Duration>,
    pub(crate) send_buffer: Option<usize>,
    pub(crate) receive_buffer: Option<usize>,
    /// Where the management is, if the URL says so.
    pub(crate) management: Option<Place>,
}

/// Where something is reached by HTTP.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) secure: bool,
    pub(crate) place: (String, u16),
}

/// What TLS needs besides the host. Files are PEM.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Who must have signed the broker's certificate. `None` is the system's.
    pub ca: Option<PathBuf>,
    /// The client's own certificate, with its key.
    pub certificate: Option<PathBuf>,
    /// The key of the client's certificate.
    pub key: Option<PathBuf>,
    /// The name that must be in the broker's certificate. `None` is the host.
    pub server_name: Option<String>,
}

const KNOWN: [&str; 24] = [
    "name",
    "heartbeat",
    "connection_timeout",
    "channel_max",
    "frame_max",
    "auth_mechanism",
    "cacertfile",
    "certfile",
    "keyfile",
    "server_name_indication",
    "verify",
    "connections",
    "publish_window",
    "publish_window_bytes",
    "confirm_timeout",
    "reconnect_min",
    "reconnect_max",
    "operation_timeout",
    "max_message_bytes",
    "nodelay",
    "keepalive",
    "send_buffer",
    "receive_buffer",
    "management",
];

fn invalid(message: impl Into<String>) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Invalid, message)
}

impl Options {
    /// Reads a URL. No password is in an error's text.
    pub(crate) fn parse(url: &str) -> Result<Options, BrokerError> {
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| invalid("an AMQP URL begins with `amqp://`"))?;
        let secure = match scheme {
            "amqp" => false,
            "amqps" => true,
            other => return Err(invalid(format!("`{other}://` is not AMQP: write `amqp://` or `amqps://`"))),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, authority),
        };
        let (user, password) = match credentials {
            None => ("guest".to_owned(), "guest".to_owned()),
            Some(text) => {
                let (user, password) = text.split_once(':').unwrap_or((text, ""));
                (decoded(user, "the user's name")?, decoded(password, "the password")?)
            }
        };
        let port = if secure { 5671 } else { 5672 };
        let hosts = hosts.split(',').map(|host| host_and_port(host, port)).collect::<Result<Vec<_>, _>>()?;
        let vhost = match decoded(path, "the vhost")? {
            // No broker has a vhost without a name; who writes a slash behind the host means the usual one.
            vhost if vhost.is_empty() => "/".to_owned(),
            vhost => vhost,
        };
        if vhost.len() > 255 {
            return Err(invalid(format!(
                "the vhost's name has {} bytes, at most 255 are allowed",
                vhost.len()
            )));
        }
        let mut options = Options {
            hosts,
            login: Login::Plain(user, password),
            vhost,
            tls: secure.then(TlsFiles::default),
            name: format!("millstream {}", std::process::id()),
            heartbeat: Duration::from_secs(30),
            connection_timeout: Duration::from_secs(10),
            channel_max: 0,
            frame_max: 0,
            connections: 1,
            publish_window: 8192,
            publish_window_bytes: 16 << 20,
            confirm_timeout: None,
            reconnect_min: Duration::from_millis(50),
            reconnect_max: Duration::from_secs(3),
            operation_timeout: Duration::from_secs(30),
            max_message_bytes: None,
            nodelay: true,
            keepalive: Some(Duration::from_secs(60)),
            send_buffer: None,
            receive_buffer: None,
            management: None,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            options.set(name, &decoded(value, name)?)?;
        }
        if options.reconnect_min > options.reconnect_max {
            return Err(invalid("`reconnect_min` is above `reconnect_max`"));
        }
        if options.login == Login::External
            && options.tls.as_ref().is_none_or(|tls| tls.certificate.is_none())
        {
            return Err(invalid("`auth_mechanism=external` needs `amqps://` and a `certfile`"));
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), BrokerError> {
        fn number<N: std::str::FromStr>(name: &str, value: &str, what: &str) -> Result<N, BrokerError> {
            value.parse().map_err(|_| invalid(format!("`{name}={value}`: {what}")))
        }
        let millis = |least: u64| -> Result<Duration, BrokerError> {
            let millis: u64 = number(name, value, "write whole milliseconds")?;
            if millis < least {
                return Err(invalid(format!("`{name}={value}`: at least {least} ms make sense")));
            }
            Ok(Duration::from_millis(millis))
        };
        let positive = || -> Result<usize, BrokerError> {
            let number: usize = number(name, value, "write a whole number")?;
            if number == 0 {
                Err(invalid(format!("`{name}=0` would let nothing through")))
            } else {
                Ok(number)
            }
        };
        match name {
            "name" => self.name = value.to_owned(),
            "heartbeat" => {
                let seconds: u16 = number(name, value, "write whole seconds, up to 65535")?;
                self.heartbeat = Duration::from_secs(seconds.into());
            }
            "connection_timeout" => self.connection_timeout = millis(1)?,
            "channel_max" => self.channel_max = number(name, value, "write a number up to 65535")?,
            "frame_max" => {
                self.frame_max = number(name, value, "write a number of bytes")?;
                if self.frame_max != 0 && self.frame_max < 4096 {
                    return Err(invalid(format!("`frame_max={value}`: AMQP's least is 4096 bytes")));
                }
            }
            "auth_mechanism" => {
                let (user, password) = match &self.login {
                    Login::Plain(user, password) | Login::Amqplain(user, password) => {
                        (user.clone(), password.clone())
                    }
                    Login::External => Default::default(),
                };
                self.login = match value.to_ascii_lowercase().as_str() {
                    "plain" => Login::Plain(user, password),
                    "amqplain" => Login::Amqplain(user, password),
                    "external" => Login::External,
                    _ => {
                        let text =
                            format!("`auth_mechanism={value}`: known are plain, amqplain and external");
                        return Err(invalid(text));
                    }
                };
            }
            "connections" => self.connections = positive()?,
            "publish_window" => self.publish_window = positive()?,
            "publish_window_bytes" => self.publish_window_bytes = positive()?,
            "confirm_timeout" => self.confirm_timeout = Some(millis(1)?),
            "reconnect_min" => self.reconnect_min = millis(1)?,
            "reconnect_max" => self.reconnect_max = millis(1)?,
            "operation_timeout" => self.operation_timeout = millis(1)?,
            "max_message_bytes" => self.max_message_bytes = Some(positive()? as u64),
            "nodelay" => self.nodelay = number(name, value, "write true or false")?,
            "keepalive" => {
                let seconds: u32 = number(name, value, "write whole seconds")?;
                self.keepalive = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
            }
            "send_buffer" => self.send_buffer = Some(positive()?),
            "management" => self.management = Some(place(value)?),
            "receive_buffer" => self.receive_buffer = Some(positive()?),
            "cacertfile" | "certfile" | "keyfile" | "server_name_indication" | "verify" => {
                let Some(tls) = &mut self.tls else {
                    return Err(invalid(format!("`{name}` has an effect only with `amqps://`")));
                };
                match name {
                    "cacertfile" => tls.ca = Some(value.into()),
                    "certfile" => tls.certificate = Some(value.into()),
                    "keyfile" => tls.key = Some(value.into()),
                    "verify" if value == "verify_peer" => {}
                    "verify" => {
                        return Err(invalid(
                            "only `verify=verify_peer` is offered: give `cacertfile` for a certificate of your own",
                        ));
                    }
                    _ => tls.server_name = Some(value.to_owned()),
                }
            }
            _ => {
                return Err(invalid(format!(
                    "`{name}` is no option of an AMQP URL; known are {}",
                    KNOWN.join(", ")
                )));
            }
        }
        Ok(())
    }
}

/// The place in `http://host:15672`.
fn place(url: &str) -> Result<Place, BrokerError> {
    let bad = |what: &str| invalid(format!("`management`: {what}, as in `management=http://host:15672`"));
    if cfg!(not(feature = "management")) {
        return Err(bad("this build has no feature `management`; it would be an HTTP address"));
    }
    let (secure, rest) = match url.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        _ => return Err(bad("write an HTTP address")),
    };
    if rest.contains('@') {
        return Err(bad("name and password are those of the broker, and stand before its host alone"));
    }
    let host = rest.strip_suffix('/').unwrap_or(rest);
    if host.contains(['/', '?']) {
        return Err(bad("write a host and a port, and no path"));
    }
    Ok(Place { secure, place: host_and_port(host, if secure { 15671 } else { 15672 })? })
}

fn host_and_port(text: &str, usual: u16) -> Result<(String, u16), BrokerError> {
    let bad = |what: &str| invalid(format!("`{text}`: {what}, as in `amqp://host:5672`"));
    // An IPv6 address has colons of its own and stands in brackets.
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or_else(|| bad("a bracket is missing"))?;
            (host, rest.strip_prefix(':'))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        None => usual,
        Some(port) => port.parse().map_err(|_| bad("a port is a number up to 65535"))?,
    };
    match decoded(host, "the host")? {
        host if host.is_empty() => Ok(("localhost".to_owned(), port)),
        host => Ok((host, port)),
    }
}

/// Undoes percent-encoding (RFC 3986, section 2.1).
fn decoded(text: &str, what: &str) -> Result<String, BrokerError> {
    let bad = || {
        invalid(format!(
            "{what}: after a `%` two hexadecimal digits of UTF-8 follow; write `%25` for `%` itself"
        ))
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>().ok_or_else(bad)?;
        let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(url: &str) -> String {
        Options::parse(url).err().unwrap_or_else(|| panic!("{url} is taken")).to_string()
    }

    #[test]
    fn a_url_says_where_who_and_which() {
        let options =
            Options::parse("amqp://ada:p%40ss@one:1,two,[::1]:3/my%2fhost?heartbeat=7&name=me%20too")
                .expect("good");
        assert_eq!(options.hosts, [("one".to_owned(), 1), ("two".to_owned(), 5672), ("::1".to_owned(), 3)]);
        assert!(options.login == Login::Plain("ada".to_owned(), "p@ss".to_owned()));
        assert_eq!((options.vhost.as_str(), options.heartbeat.as_secs()), ("my/host", 7));
        assert_eq!(options.name, "me too");

        let usual = Options::parse("amqps://host").expect("good");
        assert_eq!((usual.hosts, usual.vhost.as_str()), (vec![("host".to_owned(), 5671)], "/"));
        assert!(usual.tls.is_some() && usual.login == Login::Plain("guest".to_owned(), "guest".to_owned()));
        assert_eq!(Options::parse("amqp://host/").expect("good").vhost, "/");
    }

    #[test]
    fn a_wrong_url_says_what_to_write() {
        assert!(complaint("amqp://host:port").contains("a port is a number"));
        assert!(complaint("amqp://host/%zz").contains("the vhost: after a `%`"));
        assert!(complaint("amqp://host?hearbeat=1").contains("known are name, heartbeat"));
        assert!(complaint("amqp://host?heartbeat=soon").contains("whole seconds"));
        assert!(complaint("amqp://host?frame_max=100").contains("4096"));
        assert!(complaint("amqp://host?cacertfile=x").contains("amqps://"));
        assert!(complaint("amqps://host?verify=verify_none").contains("cacertfile"));
        assert!(complaint("amqp://host?verify=verify_peer").contains("amqps://"));
        assert!(complaint("amqp://host?auth_mechanism=external").contains("certfile"));
        assert!(complaint("amqp://host?publish_window=0").contains("nothing through"));
        assert!(complaint("amqp://host?reconnect_min=50&reconnect_max=5").contains("above"));
        assert!(complaint("amqp://host?management=host:1").contains("http://host:15672"));
        assert!(complaint("amqp://host?management=http://me:secret@host").contains("those of the broker"));
        assert!(!complaint("amqp://host?management=http://me:secret@host").contains("secret"));
        assert!(complaint("amqp://host?management=http://host/api").contains("no path"));
        assert!(!complaint("amqp://me:secret@host:x").contains("secret"));
    }

    #[test]
    fn the_documentation_names_every_option_and_no_other() {
        let rows = include_str!("options.md").lines().filter_map(|line| line.strip_prefix("| `"));
        let told = rows.flat_map(|row| {
            let names = row.split(" |").next().unwrap_or(row);
            names.split("`, `").map(|name| name.trim_matches('`'))
        });
        let (mut told, mut known) = (told.collect::<Vec<_>>(), KNOWN.to_vec());
        told.sort_unstable();
        known.sort_unstable();
        assert_eq!(told, known);
    }

    #[test]
    fn every_option_that_is_named_is_read() {
        for name in KNOWN {
            let tried = ["1", "5000", "true", "plain", "verify_peer", "http://host"].map(|value| {
                let url = format!("amqps://host?reconnect_max=60000&{name}={value}");
                Options::parse(&url)
            });
            assert!(tried.iter().any(Result::is_ok), "{name}");
        }
    }
}

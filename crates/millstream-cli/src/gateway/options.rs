//! Every setting of the gateway, once: its key, its variable, what it takes, and how it is shown. File, environment, flags,
//! `--print-config` and the test of `docs/gateway.md` read this.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use millstream_gateway::{
    CHUNK_MAX, CHUNK_MIN, Forwarded, HalfClose, Settings, UpstreamUrl, UpstreamUrlError,
};
use millstream_pipeline::{show_duration, show_size};

use super::route::RouteConfig;

/// What a gateway is told.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) upstream: Vec<UpstreamUrl>,
    pub(crate) certificates: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) authorities: Option<String>,
    pub(crate) log: Log,
    pub(crate) settings: Settings,
    pub(crate) routes: Vec<RouteConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            admin: None,
            upstream: Vec::new(),
            certificates: None,
            key: None,
            authorities: None,
            log: Log::default(),
            settings: Settings::default(),
            routes: Vec::new(),
        }
    }
}

/// Which exchanges are written to standard error, as a JSON object a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Log {
    Off,
    #[default]
    Failures,
    All,
}

type Set = fn(&mut Config, &str) -> Result<(), String>;

pub(crate) struct Setting {
    pub(crate) key: &'static str,
    /// Its variable, if that is not made of the key.
    variable: Option<&'static str>,
    pub(crate) set: Set,
    pub(crate) show: fn(&Config) -> String,
}

impl Setting {
    /// The environment variable of this setting.
    pub(crate) fn variable(&self) -> String {
        match self.variable {
            Some(name) => name.to_owned(),
            None => format!("MILLSTREAM_GATEWAY_{}", self.key.replace('.', "_").to_uppercase()),
        }
    }

    /// Whether it holds as long as the gateway runs, whatever a configuration says that comes later.
    pub(crate) fn is_fixed(&self) -> bool {
        matches!(self.key, "listen" | "admin") || self.key.starts_with("pool.")
    }
}

const fn setting(key: &'static str, set: Set, show: fn(&Config) -> String) -> Setting {
    Setting { key, variable: None, set, show }
}

const fn named(key: &'static str, variable: &'static str, set: Set, show: fn(&Config) -> String) -> Setting {
    Setting { key, variable: Some(variable), set, show }
}

pub(crate) static SETTINGS: &[Setting] = &[
    setting("listen", |c, v| put(&mut c.listen, address(v)), |c| c.listen.to_string()),
    setting("admin", |c, v| put(&mut c.admin, address(v).map(Some)), |c| shown(c.admin.as_ref())),
    setting("upstream", |c, v| put(&mut c.upstream, urls(v)), |c| texts(&c.upstream).join(", ")),
    setting("tls.certificates", |c, v| put(&mut c.certificates, text(v)), |c| shown(c.certificates.as_ref())),
    setting("tls.key", |c, v| put(&mut c.key, text(v)), |c| shown(c.key.as_ref())),
    setting(
        "upstream_tls.authorities",
        |c, v| put(&mut c.authorities, text(v)),
        |c| shown(c.authorities.as_ref()),
    ),
    setting("log", |c, v| put(&mut c.log, log(v)), |c| format!("{:?}", c.log).to_lowercase()),
    named(
        "request.chunk",
        "STREAM_REQUEST_CHUNK_SIZE",
        |c, v| put(&mut c.settings.request_chunk, chunk(v)),
        |c| show_size(c.settings.request_chunk as u64),
    ),
    named(
        "response.chunk",
        "STREAM_RESPONSE_CHUNK_SIZE",
        |c, v| put(&mut c.settings.response_chunk, chunk(v)),
        |c| show_size(c.settings.response_chunk as u64),
    ),
    named(
        "pool.enabled",
        "STREAM_BUFFER_POOL_ENABLED",
        |c, v| put(&mut c.settings.pool.enabled, switch(v)),
        |c| c.settings.pool.enabled.to_string(),
    ),
    setting(
        "pool.bytes",
        |c, v| put(&mut c.settings.pool.bytes_max, bytes(v, 1 << 20, 1 << 40)),
        |c| show_size(c.settings.pool.bytes_max),
    ),
    setting(
        "pool.scrub",
        |c, v| put(&mut c.settings.pool.scrub, switch(v)),
        |c| c.settings.pool.scrub.to_string(),
    ),
    setting(
        "pool.warm",
        |c, v| put(&mut c.settings.pool_warm, bytes(v, 0, 1 << 40)),
        |c| show_size(c.settings.pool_warm),
    ),
    setting(
        "pool.trim",
        |c, v| put(&mut c.settings.pool_trim, time(v)),
        |c| show_duration(c.settings.pool_trim),
    ),
    setting(
        "limits.header",
        |c, v| put(&mut c.settings.limits.header_bytes, bytes(v, 1 << 10, 1 << 20).map(|n| n as usize)),
        |c| show_size(c.settings.limits.header_bytes as u64),
    ),
    setting(
        "limits.target",
        |c, v| put(&mut c.settings.limits.target_bytes, bytes(v, 64, 60 << 10).map(|n| n as usize)),
        |c| show_size(c.settings.limits.target_bytes as u64),
    ),
    setting(
        "limits.request_body",
        |c, v| {
            put(
                &mut c.settings.limits.request_body_bytes,
                or_none(v, |v| bytes(v, 0, u64::MAX)).map(|n| n.unwrap_or(u64::MAX)),
            )
        },
        |c| match c.settings.limits.request_body_bytes {
            u64::MAX => "none".into(),
            bytes => show_size(bytes),
        },
    ),
    setting(
        "limits.connections",
        |c, v| put(&mut c.settings.limits.connections, count(v, 1, 1_000_000).map(|n| n as usize)),
        |c| c.settings.limits.connections.to_string(),
    ),
    setting(
        "limits.streams",
        |c, v| put(&mut c.settings.limits.streams, count(v, 1, 100_000)),
        |c| c.settings.limits.streams.to_string(),
    ),
    setting(
        "limits.client_rate",
        |c, v| put(&mut c.settings.limits.client_rate, or_none(v, |v| count(v, 1, 1_000_000))),
        |c| shown(c.settings.limits.client_rate.as_ref()),
    ),
    setting(
        "limits.client_burst",
        |c, v| put(&mut c.settings.limits.client_burst, count(v, 1, 1_000_000)),
        |c| c.settings.limits.client_burst.to_string(),
    ),
    setting(
        "timeouts.connect",
        |c, v| put(&mut c.settings.timeouts.connect, time(v)),
        |c| show_duration(c.settings.timeouts.connect),
    ),
    setting(
        "timeouts.header",
        |c, v| put(&mut c.settings.timeouts.header, time(v)),
        |c| show_duration(c.settings.timeouts.header),
    ),
    setting(
        "timeouts.keep_alive",
        |c, v| put(&mut c.settings.timeouts.keep_alive, time(v)),
        |c| show_duration(c.settings.timeouts.keep_alive),
    ),
    setting(
        "timeouts.response",
        |c, v| put(&mut c.settings.timeouts.response, time(v)),
        |c| show_duration(c.settings.timeouts.response),
    ),
    setting(
        "timeouts.idle",
        |c, v| put(&mut c.settings.timeouts.idle, time(v)),
        |c| show_duration(c.settings.timeouts.idle),
    ),
    setting(
        "timeouts.total",
        |c, v| put(&mut c.settings.timeouts.total, or_none(v, time)),
        |c| c.settings.timeouts.total.map_or("none".into(), show_duration),
    ),
    setting(
        "timeouts.tunnel",
        |c, v| put(&mut c.settings.timeouts.tunnel, time(v)),
        |c| show_duration(c.settings.timeouts.tunnel),
    ),
    setting(
        "half_close",
        |c, v| put(&mut c.settings.half_close, half_close(v)),
        |c| format!("{:?}", c.settings.half_close).to_lowercase(),
    ),
    setting(
        "forwarded",
        |c, v| put(&mut c.settings.forwarded, forwarded(v)),
        |c| format!("{:?}", c.settings.forwarded).to_lowercase(),
    ),
    setting(
        "upstream_idle_connections",
        |c, v| put(&mut c.settings.upstream_idle_connections, count(v, 0, 100_000).map(|n| n as usize)),
        |c| c.settings.upstream_idle_connections.to_string(),
    ),
];

pub(crate) fn put<T>(to: &mut T, value: Result<T, String>) -> Result<(), String> {
    *to = value?;
    Ok(())
}

fn shown<T: ToString>(value: Option<&T>) -> String {
    value.map_or("none".into(), ToString::to_string)
}

pub(crate) fn text(value: &str) -> Result<Option<String>, String> {
    if value.is_empty() { Err("write a text that is not empty".into()) } else { Ok(Some(value.to_owned())) }
}

pub(crate) fn list(value: &str) -> Vec<String> {
    value.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

/// The servers of a list.
pub(crate) fn urls(value: &str) -> Result<Vec<UpstreamUrl>, String> {
    let parse = |url: &String| url.parse().map_err(|error: UpstreamUrlError| error.to_string());
    let urls = list(value).iter().map(parse).collect::<Result<Vec<UpstreamUrl>, _>>()?;
    let names = texts(&urls);
    match names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        Some((_, twice)) => Err(format!("it leads to `{twice}` twice; name it once")),
        None => Ok(urls),
    }
}

pub(crate) fn texts(shown: &[impl ToString]) -> Vec<String> {
    shown.iter().map(ToString::to_string).collect()
}

fn address(value: &str) -> Result<SocketAddr, String> {
    value.parse().map_err(|_| "write an address and a port, as in `127.0.0.1:8080`".into())
}

fn chunk(value: &str) -> Result<usize, String> {
    bytes(value, CHUNK_MIN as u64, CHUNK_MAX as u64).map(|bytes| bytes as usize)
}

/// A size in a range; a plain number is a number of bytes.
pub(crate) fn bytes(value: &str, min: u64, max: u64) -> Result<u64, String> {
    let size = value.trim().parse().ok().or_else(|| millstream_pipeline::size(value));
    size.filter(|size| (min..=max).contains(size)).ok_or_else(|| {
        let range = match max {
            u64::MAX => String::new(),
            max => format!(", from {} to {}", show_size(min), show_size(max)),
        };
        format!("write a size, as in `32768` or `32KiB`{range}")
    })
}

pub(crate) fn time(value: &str) -> Result<Duration, String> {
    millstream_pipeline::duration(value)
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "write a time with its unit, as in `500ms` or `30s`".into())
}

fn count(value: &str, min: u32, max: u32) -> Result<u32, String> {
    let number = value.trim().parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| format!("write a whole number from {min} to {max}"))
}

pub(crate) fn switch(value: &str) -> Result<bool, String> {
    match value.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "on" | "yes" => Ok(true),
        "0" | "false" | "off" | "no" => Ok(false),
        _ => Err("write `true` or `false` (also `1`, `0`, `on`, `off`, `yes`, `no`)".into()),
    }
}

fn or_none<T>(value: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if value == "none" {
        Ok(None)
    } else {
        read(value).map(Some).map_err(|remedy| format!("{remedy}, or `none`"))
    }
}

fn half_close(value: &str) -> Result<HalfClose, String> {
    match value {
        "cancel" => Ok(HalfClose::Cancel),
        "allow" => Ok(HalfClose::Allow),
        _ => Err("write `cancel` or `allow`".into()),
    }
}

fn forwarded(value: &str) -> Result<Forwarded, String> {
    match value {
        "append" => Ok(Forwarded::Append),
        "replace" => Ok(Forwarded::Replace),
        "off" => Ok(Forwarded::Off),
        _ => Err("write `append`, `replace` or `off`".into()),
    }
}

fn log(value: &str) -> Result<Log, String> {
    match value {
        "off" => Ok(Log::Off),
        "failures" => Ok(Log::Failures),
        "all" => Ok(Log::All),
        _ => Err("write `off`, `failures` or `all`".into()),
    }
}

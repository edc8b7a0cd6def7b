//! Settings that are right one by one and have no effect together.

use std::net::{IpAddr, SocketAddr};

use millstream_gateway::UpstreamUrl;

use super::{Config, Read, find};
use crate::gateway::route::RouteConfig;

/// What is said of a certificate without its key, or a key without its certificate.
pub(in crate::gateway) const TLS_PAIR: &str =
    "`tls.certificates` and `tls.key` go together; set both or neither";

impl Read {
    /// What was given and has no effect, wherever it was given, each with the remedy.
    pub(super) fn contradictions(&self) -> Vec<String> {
        let (config, settings) = (&self.config, &self.config.settings);
        let default = Config::default();
        // Not what is as it would be anyway: `--print-config` writes everything down.
        let given =
            |key: &str| find(key).is_some_and(|setting| (setting.show)(config) != (setting.show)(&default));
        let mut found = Vec::new();
        let mut refuse = |what: String, remedy: &str| found.push(format!("{what}: {remedy}"));
        if given("limits.client_burst") && settings.limits.client_rate.is_none() {
            refuse(
                "`limits.client_burst` has no effect without `limits.client_rate`".into(),
                "set both, or neither",
            );
        }
        for key in ["pool.bytes", "pool.warm", "pool.trim", "pool.scrub"] {
            if given(key) && !settings.pool.enabled {
                refuse(
                    format!("`{key}` has no effect: `pool.enabled` is false"),
                    "leave it out, or switch the pool on",
                );
            }
        }
        if settings.pool.enabled && settings.pool_warm > settings.pool.bytes_max {
            refuse(
                "`pool.warm` is more than `pool.bytes`".into(),
                "the pool holds no more: lower the one, or raise the other",
            );
        }
        if let Some(total) = settings.timeouts.total
            && given("timeouts.response")
            && settings.timeouts.response >= total
        {
            refuse(
                "`timeouts.response` has no effect: `timeouts.total` ends it first".into(),
                "leave the one out, or raise the other",
            );
        }
        let upstreams =
            || config.upstream.iter().chain(config.routes.iter().flat_map(RouteConfig::upstreams));
        if config.authorities.is_some() && !upstreams().any(UpstreamUrl::is_tls) {
            refuse(
                "`upstream_tls.authorities` has no effect: no upstream is `https:`".into(),
                "leave it out, or write `https://` for an upstream",
            );
        }
        if let Some(url) = upstreams().find(|url| is_served_at(url, config.listen)) {
            refuse(
                format!("the upstream `{url}` is the gateway itself, at `listen`"),
                "every request would go round; name another server, by its address if it is another one of `localhost`",
            );
        }
        if let Some(at) = config
            .routes
            .iter()
            .position(|route| route.place().takes_all())
            .filter(|_| !config.upstream.is_empty())
        {
            refuse(
                format!("`upstream` is never reached: `routes.{at}` takes all"),
                "leave `upstream` out, or give the route a host, a path or methods",
            );
        }
        for (at, route) in config.routes.iter().enumerate() {
            if route.publish_max().is_some_and(|max| max > settings.limits.request_body_bytes) {
                refuse(
                    format!("`routes.{at}.publish.max` has no effect: `limits.request_body` is less"),
                    "raise the limit, or lower what is published",
                );
            }
        }
        if config.certificates.is_some() != config.key.is_some() {
            found.push(TLS_PAIR.into());
        }
        found
    }
}

/// Whether this server is the address that the gateway listens on, as far as it can be told without asking for names.
fn is_served_at(url: &UpstreamUrl, listen: SocketAddr) -> bool {
    let here = listen.ip();
    if url.port() != listen.port() {
        return false;
    }
    match url.host().parse::<IpAddr>() {
        // `[::]` takes what comes by IPv4, too, unless the system is told otherwise.
        Ok(ip) => {
            ip == here || (here.is_unspecified() && ip.is_loopback() && (ip.is_ipv4() || here.is_ipv6()))
        }
        Err(_) => {
            url.host().eq_ignore_ascii_case("localhost") && (here.is_loopback() || here.is_unspecified())
        }
    }
}

//! `millstream gateway`: read the configuration, listen, announce, wait, drain.

mod config;
mod options;
mod route;

use std::path::Path;
use std::time::Duration;

use millstream_gateway::{Drained, ExchangeReport, Gateway, Server, client_tls, server_tls};
use millstream_observe::BindError;
use millstream_pipeline::{nearest, show_duration};

use crate::args;
use crate::failure::Failure;
use crate::out::{Out, complain};
use crate::signals::Signals;
use config::Read;
use options::{Config, Log, SETTINGS, Setting};
use route::{Brokers, RouteConfig};

/// How long a view that is being shown may take once the gateway has ended.
const ADMIN_DRAIN: Duration = Duration::from_secs(1);

/// Where a gateway listens that is not told.
const LISTEN: &str = "127.0.0.1:8080";

pub(crate) async fn gateway(asked: args::Gateway) -> Result<(), Failure> {
    let read = read(&asked)?;
    if asked.print_config {
        let mut out = Out::new();
        out.line(read.print().trim_end())?;
        return out.flush();
    }
    let config = read.config;
    let mut signals = Signals::new()?;
    let mut brokers = Brokers::default();
    let server = listen(&config, &mut brokers).await?;
    complain(&format!(
        "gateway: http{}://{}/",
        if config.certificates.is_some() { "s" } else { "" },
        server.local_addr()
    ));
    let admin = match config.admin {
        None => None,
        Some(address) => {
            let admin = server.admin().listen(address).await;
            let admin =
                admin.map_err(|error| Failure::of("cannot show `admin`", &BindError::new(address, error)))?;
            complain(&format!("admin: http://{}/metrics", admin.local_addr()));
            Some(admin)
        }
    };

    let signal = signals.next().await;
    let drain = show_duration(asked.drain);
    complain(&format!("finishing what was accepted, for at most {drain}; a second signal stops at once"));
    let drained = tokio::select! {
        drained = server.shutdown(asked.drain) => Some(drained),
        _ = signals.next() => None,
    };
    if let Some(admin) = admin {
        admin.shutdown(ADMIN_DRAIN).await;
    }
    let closed = brokers.close().await.map_err(Failure::Failed);
    if let Some(Drained { broken_off, .. }) = drained.filter(|drained| drained.broken_off > 0) {
        complain(&format!("{broken_off} connections were broken off"));
    }
    closed?;
    Err(Failure::Signal(signal))
}

/// The configuration of the file, the environment and the flags.
fn read(asked: &args::Gateway) -> Result<Read, Failure> {
    let mut flags = Vec::new();
    let mut flag = |key: &str, name: &str, value: Option<String>| {
        flags.extend(value.map(|value| (key.to_owned(), value.clone(), format!("{name} {value}"))));
    };
    flag("listen", "--listen", asked.listen.map(|address| address.to_string()));
    flag("admin", "--admin", asked.admin.map(|address| address.to_string()));
    flag("upstream", "--upstream", (!asked.upstream.is_empty()).then(|| asked.upstream.join(",")));
    for argument in &asked.settings {
        let (key, value) = argument.split_once('=').ok_or_else(|| {
            Failure::Refused(format!(
                "--set {argument}: write a key and a value, as in `--set response.chunk=64KiB`"
            ))
        })?;
        flags.push((key.to_owned(), value.to_owned(), format!("--set {argument}")));
    }
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    misspelt(variables)?;
    config::read(asked.file.as_deref(), |name| std::env::var(name).ok(), &flags)
}

/// A variable that is meant for the gateway and sets nothing would be missed by nobody but its user.
fn misspelt(variables: impl IntoIterator<Item = String>) -> Result<(), Failure> {
    const PREFIX: &str = "MILLSTREAM_GATEWAY_";
    let known: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
    let endings: Vec<String> =
        known.iter().filter_map(|known| known.strip_prefix(PREFIX)).map(str::to_lowercase).collect();
    let unknown = variables.into_iter().find(|name| name.starts_with(PREFIX) && !known.contains(name));
    let Some(name) = unknown else { return Ok(()) };
    let near = nearest(&name[PREFIX.len()..], endings.iter().map(String::as_str));
    let hint = near.map_or(String::new(), |near| format!("; did you mean {PREFIX}{}?", near.to_uppercase()));
    Err(Failure::Refused(format!("environment variable {name} sets nothing{hint}")))
}

async fn listen(config: &Config, brokers: &mut Brokers) -> Result<Server, Failure> {
    let mut routes = config.routes.clone();
    if !config.upstream.is_empty() {
        routes.push(RouteConfig::all(config.upstream.clone()));
    }
    if routes.is_empty() {
        let text = "the gateway leads nowhere; give `--upstream http://host:port`, or a file with `upstream` or `routes`";
        return Err(Failure::Refused(text.into()));
    }
    let mut gateway = Gateway::new(config.settings.clone());
    for (at, route) in routes.iter().enumerate() {
        gateway = gateway.route(route.build(at, brokers).await.map_err(Failure::Refused)?);
    }
    if let Some(tls) = tls(config)? {
        gateway = gateway.tls(tls);
    }
    if let Some(authorities) = &config.authorities {
        let tls = client_tls(Some(Path::new(authorities)));
        gateway = gateway
            .upstream_tls(tls.map_err(|error| Failure::of("cannot use `upstream_tls.authorities`", &error))?);
    }
    if config.log != Log::Off {
        let failures_only = config.log == Log::Failures;
        gateway = gateway.observe(move |report| log(report, failures_only));
    }
    let address = config.listen.unwrap_or_else(|| LISTEN.parse().expect("a valid address"));
    gateway.listen(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidInput => Failure::Refused(error.to_string()),
        _ => Failure::of("cannot listen", &BindError::new(address, error)),
    })
}

fn tls(config: &Config) -> Result<Option<std::sync::Arc<millstream_gateway::ServerTls>>, Failure> {
    match (&config.certificates, &config.key) {
        (None, None) => Ok(None),
        (Some(certificates), Some(key)) => server_tls(Path::new(certificates), Path::new(key))
            .map(Some)
            .map_err(|error| Failure::of("cannot use `tls.certificates` and `tls.key`", &error)),
        _ => {
            Err(Failure::Refused("`tls.certificates` and `tls.key` go together; set both or neither".into()))
        }
    }
}

/// Writes an exchange as a JSON object on a line.
fn log(report: &ExchangeReport, failures_only: bool) {
    if failures_only && report.failure.is_none() {
        return;
    }
    match serde_json::to_string(report) {
        Ok(line) => complain(&line),
        Err(error) => complain(&format!("an exchange could not be written as JSON: {error}")),
    }
}

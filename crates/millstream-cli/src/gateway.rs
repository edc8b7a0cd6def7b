//! `millstream gateway`: read the configuration, listen, announce, wait, read it again where that is asked for, drain.

mod brokers;
mod config;
mod log;
mod options;
mod reload;
mod route;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};
use millstream_gateway::{Body, ExchangeReport, Gateway, Route, Server, client_tls, server_tls};
use millstream_observe::BindError;
use millstream_pipeline::{nearest, show_duration};
use serde::Serialize;

use crate::args;
use crate::failure::Failure;
use crate::out::{Out, complain};
use crate::signals::{Hangups, Signals};
use brokers::Brokers;
use config::Read;
use log::LogWriter;
use options::{Config, Log, SETTINGS, Setting};
use reload::{Reloading, Shown};
use route::RouteConfig;

/// What the variables of this command begin with.
const PREFIX: &str = "MILLSTREAM_GATEWAY_";

/// How long a view that is being shown may take once the gateway has ended.
const ADMIN_DRAIN: Duration = Duration::from_secs(1);

/// Answers who asks for nothing that is there, behind all other routes: with what is.
fn views() -> Route {
    Route::handler("views", |request: Request<Body>| {
        let views: Vec<&str> = Server::ADMIN_PATHS.iter().copied().chain([Shown::PATH]).collect();
        let there = views.contains(&request.uri().path());
        let (status, text) = match there {
            true => (StatusCode::METHOD_NOT_ALLOWED, "ask by GET or HEAD\n".to_owned()),
            false => (StatusCode::NOT_FOUND, format!("nothing is here; there are {}\n", views.join(", "))),
        };
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = status;
        if there {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        std::future::ready(response)
    })
}

pub(crate) async fn gateway(asked: args::Gateway) -> Result<(), Failure> {
    let read = read(&asked)?;
    if asked.print_config {
        let mut out = Out::new();
        out.line(read.print().trim_end())?;
        return out.flush();
    }
    let config = &read.config;
    let (mut signals, mut hangups) = (Signals::without_hangup()?, Hangups::new()?);
    let mut brokers = Brokers::default();
    let writer = LogWriter::start(std::io::stderr())
        .map_err(|error| Failure::of("cannot start the thread that writes the log", &error))?;
    let server = listen(config, &mut brokers, &writer).await?;
    let shown = Shown::new(read.print());
    complain(&format!(
        "gateway: http{}://{}/",
        if config.certificates.is_some() { "s" } else { "" },
        server.local_addr()
    ));
    let admin = match config.admin {
        None => None,
        Some(address) => {
            let admin = server.admin().route(shown.route()).route(views()).listen(address).await;
            let admin =
                admin.map_err(|error| Failure::of("cannot show `admin`", &BindError::new(address, error)))?;
            complain(&format!("admin: http://{}/metrics", admin.local_addr()));
            Some(admin)
        }
    };

    let drain_max = asked.drain;
    let mut reloading = Reloading { asked, read, brokers, writer: writer.clone(), shown };
    let signal = loop {
        tokio::select! {
            signal = signals.next() => break signal,
            () = hangups.next() => {}
        }
        // Who asks for the end does not wait for a broker.
        tokio::select! {
            signal = signals.next() => break signal,
            () = reloading.reload(&server) => {}
        }
    };
    let drain = show_duration(drain_max);
    writer.line(format!("finishing what was accepted, for at most {drain}; a second signal stops at once"));
    let drained = tokio::select! {
        drained = server.shutdown(drain_max) => Some(drained),
        _ = signals.next() => None,
    };
    if let Some(admin) = admin {
        admin.shutdown(ADMIN_DRAIN).await;
    }
    let closed = reloading.brokers.close().await.map_err(Failure::Failed);
    let broken_off = drained.map_or(0, |drained| drained.broken_off);
    writer.finish((broken_off > 0).then(|| format!("{broken_off} connections were broken off")));
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
    misspelt(std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        Some((name, value.to_string_lossy().into_owned()))
    }))?;
    // What is no text in UTF-8 is refused as a value, and not passed over.
    let variable = |name: &str| Some(std::env::var_os(name)?.to_string_lossy().into_owned());
    config::read(asked.file.as_deref(), variable, &flags)
}

/// A variable that is meant for the gateway and sets nothing would be missed by nobody but its user.
fn misspelt(variables: impl IntoIterator<Item = (String, String)>) -> Result<(), Failure> {
    let known: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
    let endings: Vec<String> =
        known.iter().filter_map(|known| known.strip_prefix(PREFIX)).map(str::to_lowercase).collect();
    let unknown = variables.into_iter().find(|(name, value)| {
        let ending = name.strip_prefix(PREFIX);
        ending.is_some_and(|ending| !known.contains(name) && !is_service_link(ending, value))
    });
    let Some((name, _)) = unknown else { return Ok(()) };
    let near = nearest(&name[PREFIX.len()..], endings.iter().map(String::as_str));
    let hint = near.map_or(String::new(), |near| format!("; did you mean {PREFIX}{}?", near.to_uppercase()));
    Err(Failure::Refused(format!("environment variable {name} sets nothing{hint}")))
}

/// Whether this is what Kubernetes tells each container of a Service called `millstream-gateway`, or of one whose name begins so:
/// `SERVICE_HOST`, `SERVICE_PORT`, `SERVICE_PORT_HTTP`, `PORT` with a URL, `PORT_8080_TCP`, `PORT_8080_TCP_ADDR` and the like.
fn is_service_link(ending: &str, value: &str) -> bool {
    let mut endings = std::iter::successors(Some(ending), |rest| Some(rest.split_once('_')?.1));
    endings.any(|form| match form {
        "SERVICE_HOST" | "SERVICE_PORT" => true,
        // Whoever wants to set a port writes a number.
        "PORT" => value.contains("://"),
        _ => {
            let number = form.strip_prefix("PORT_").unwrap_or_default();
            form.starts_with("SERVICE_PORT_") || number.starts_with(|first: char| first.is_ascii_digit())
        }
    })
}

async fn listen(config: &Config, brokers: &mut Brokers, writer: &LogWriter) -> Result<Server, Failure> {
    let gateway = build(config, brokers, writer).await?;
    gateway.listen(config.listen).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidInput => Failure::Refused(error.to_string()),
        _ => Failure::of("cannot listen", &BindError::new(config.listen, error)),
    })
}

/// What a configuration describes.
async fn build(config: &Config, brokers: &mut Brokers, writer: &LogWriter) -> Result<Gateway, Failure> {
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
        let writer = writer.clone();
        gateway = gateway.observe(move |report| tell(&writer, report, failures_only));
    }
    Ok(gateway)
}

fn tls(config: &Config) -> Result<Option<std::sync::Arc<millstream_gateway::ServerTls>>, Failure> {
    match (&config.certificates, &config.key) {
        (None, None) => Ok(None),
        (Some(certificates), Some(key)) => server_tls(Path::new(certificates), Path::new(key))
            .map(Some)
            .map_err(|error| Failure::of("cannot use `tls.certificates` and `tls.key`", &error)),
        _ => Err(Failure::Refused(config::TLS_PAIR.into())),
    }
}

/// A line of the log.
#[derive(Serialize)]
struct Told<'a> {
    /// When it ended, in seconds since 1970.
    timestamp: f64,
    #[serde(flatten)]
    report: &'a ExchangeReport,
}

/// Writes an exchange as a JSON object on a line.
fn tell(writer: &LogWriter, report: &ExchangeReport, failures_only: bool) {
    if failures_only && report.failure.is_none() {
        return;
    }
    #[expect(clippy::disallowed_methods, reason = "a log tells the time of day")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let line = serde_json::to_string(&Told { timestamp: now.as_secs_f64(), report });
    writer.line(line.unwrap_or_else(|error| format!("an exchange could not be written as JSON: {error}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str, value: &str) -> Option<String> {
        misspelt([(name.to_owned(), value.to_owned())]).err().map(|failure| match failure {
            Failure::Refused(text) => text,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn what_kubernetes_tells_of_a_service_is_no_misspelt_setting() {
        for (ending, value) in [
            ("SERVICE_HOST", "10.0.0.11"),
            ("SERVICE_PORT", "8080"),
            ("SERVICE_PORT_HTTP", "8080"),
            ("PORT", "tcp://10.0.0.11:8080"),
            ("PORT_8080_TCP", "tcp://10.0.0.11:8080"),
            ("PORT_8080_TCP_PROTO", "tcp"),
            ("PORT_8080_TCP_PORT", "8080"),
            ("PORT_8080_TCP_ADDR", "10.0.0.11"),
            ("ADMIN_SERVICE_HOST", "10.0.0.12"),
            ("ADMIN_SERVICE_PORT_METRICS", "9091"),
            ("ADMIN_PORT", "tcp://10.0.0.12:9091"),
            ("ADMIN_PORT_9091_TCP_ADDR", "10.0.0.12"),
        ] {
            assert_eq!(refusal(&format!("{PREFIX}{ending}"), value), None, "{ending}");
        }
    }

    #[test]
    fn every_other_variable_of_the_gateway_must_set_something() {
        for ending in
            ["PORT", "ADMIN_PORT", "SERVICE", "SERVICE_HOSTS", "PORTS", "PORT_", "HOST", "LISTN", ""]
        {
            let text =
                refusal(&format!("{PREFIX}{ending}"), "8080").unwrap_or_else(|| panic!("{ending} passes"));
            assert!(text.contains("sets nothing"), "{text}");
        }
        assert!(
            refusal("MILLSTREAM_GATEWAY_LISTN", "x")
                .is_some_and(|text| text.ends_with("mean MILLSTREAM_GATEWAY_LISTEN?"))
        );
        assert_eq!(refusal("MILLSTREAM_OTHER", "x"), None);
    }

    #[test]
    fn no_setting_has_a_variable_that_kubernetes_could_set() {
        for variable in SETTINGS.iter().map(Setting::variable) {
            assert!(!is_service_link(variable.trim_start_matches(PREFIX), "tcp://h:1"), "{variable}");
        }
    }
}

//! Reading the configuration again, and putting it in force.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, PoisonError};

use http::{Method, Request, Response};
use millstream_gateway::{Body, Route, Server};

use super::brokers::Brokers;
use super::config::Read;
use super::log::LogWriter;
use super::{build, read};
use crate::args;
use crate::failure::Failure;

/// What `--print-config` would print of what is in force.
#[derive(Clone)]
pub(crate) struct Shown(Arc<Mutex<String>>);

impl Shown {
    pub(crate) const PATH: &str = "/config";

    pub(crate) fn new(text: String) -> Shown {
        Shown(Arc::new(Mutex::new(text)))
    }

    fn text(&self) -> std::sync::MutexGuard<'_, String> {
        // A text is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the admin address shows it.
    pub(crate) fn route(&self) -> Route {
        let shown = self.clone();
        let show =
            move |_: Request<Body>| std::future::ready(Response::new(Body::from(shown.text().clone())));
        Route::handler(Shown::PATH, show).path(Shown::PATH).methods([Method::GET, Method::HEAD])
    }
}

/// All that another configuration needs, and what is in force until then.
pub(crate) struct Reloading {
    pub(crate) asked: args::Gateway,
    pub(crate) read: Read,
    pub(crate) brokers: Brokers,
    pub(crate) writer: LogWriter,
    pub(crate) shown: Shown,
}

impl Reloading {
    /// Reads file and environment again, puts what they say in force, or leaves all as it is, and says so.
    pub(crate) async fn reload(&mut self, server: &Server) {
        let said = match self.put_in_force(server).await {
            Ok(staying) if staying.is_empty() => "reloaded: the configuration is in force".into(),
            Ok(staying) => {
                let staying = staying.join(", ");
                format!(
                    "reloaded: the configuration is in force, but until the gateway is started anew {staying}"
                )
            }
            Err(failure) => format!("not reloaded, all stays as it was: {}", failure.text()),
        };
        self.writer.line(said);
    }

    /// What of it stays as it was until the process ends.
    async fn put_in_force(&mut self, server: &Server) -> Result<Vec<String>, Failure> {
        let before = self.brokers.urls();
        let made = match read(&self.asked) {
            Ok(mut read) => {
                let staying = read.stay(&self.read);
                build(&read.config, &mut self.brokers, &self.writer)
                    .await
                    .map(|gateway| (read, staying, gateway))
            }
            Err(failure) => Err(failure),
        };
        let refused = match made {
            Ok((read, staying, gateway)) => match server.reload(gateway) {
                Ok(_) => {
                    *self.shown.text() = read.print();
                    self.read = read;
                    return Ok(staying);
                }
                Err(error) if error.kind() == ErrorKind::InvalidInput => Failure::Refused(error.to_string()),
                Err(error) => Failure::of("cannot use the configuration", &error),
            },
            Err(failure) => {
                server.reload_refused();
                failure
            }
        };
        // Nothing leads to those that were opened for it.
        if let Err(text) = self.brokers.close_others(&before).await {
            self.writer.line(text);
        }
        Err(refused)
    }
}

//! What AMQP cannot tell, by RabbitMQ's management: which queues there are, how they were declared, what is bound to what.

mod told;

use std::io;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::header::{AUTHORIZATION, CONNECTION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use millstream_message::{BrokerError, BrokerErrorKind, Declaration, Queue, QueueKind, QueueStats, Standing};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use self::told::{Told, ToldBinding, ToldExchange, ToldVhost, queue_kind};
use crate::options::Options;
use crate::proto::Login;
use crate::socket::Socket;

/// The longest answer that is read: some hundred thousand queues.
const ANSWER_MAX: usize = 64 << 20;

/// A client of the management's HTTP interface. Each request has a connection of its own.
pub(crate) struct Management {
    /// Those of the broker, but for TLS.
    options: Options,
    places: Vec<(String, u16)>,
    authorization: String,
}

impl Management {
    /// Where the options say, or where it is by default.
    ///
    /// # Errors
    /// If the user has no password to give.
    pub(crate) fn new(options: &Arc<Options>) -> Result<Management, BrokerError> {
        let (Login::Plain(user, password) | Login::Amqplain(user, password)) = &options.login else {
            let text =
                "RabbitMQ's management asks for a name and a password, and the URL logs in by a certificate";
            return Err(BrokerError::new(BrokerErrorKind::Unsupported, text));
        };
        let mut own = Options::clone(options);
        let places = match &options.management {
            Some(management) => {
                own.tls = management.secure.then(|| own.tls.unwrap_or_default());
                vec![management.place.clone()]
            }
            None => {
                let port = if own.tls.is_some() { 15671 } else { 15672 };
                own.hosts.iter().map(|(host, _)| (host.clone(), port)).collect()
            }
        };
        let authorization = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
        Ok(Management { options: own, places, authorization })
    }

    /// The names of all queues of the vhost, in order.
    pub(crate) async fn queues(&self) -> Result<Vec<String>, BrokerError> {
        let told: Vec<Told> = self.all("queues", "?columns=name").await?;
        let mut names: Vec<String> = told.into_iter().map(|queue| queue.name).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// What all queues of the vhost hold, in the order of their names; as old as the management's figures, which it collects every
    /// five seconds.
    pub(crate) async fn figures(&self) -> Result<Vec<QueueStats>, BrokerError> {
        let columns = "?columns=name,messages_ready,message_bytes_ready,messages_unacknowledged,\
                       message_bytes_unacknowledged,consumers";
        let told: Vec<Told> = self.all("queues", columns).await?;
        let mut figures: Vec<QueueStats> = told.into_iter().map(Told::figures).collect();
        figures.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(figures)
    }

    /// How a queue was declared.
    pub(crate) async fn queue(&self, name: &str) -> Result<Option<Queue>, BrokerError> {
        let told: Option<Told> = self.one("queues", name).await?;
        Ok(told.map(Told::declared))
    }

    /// How what is to be declared stands there.
    pub(crate) async fn standing(&self, what: &Declaration) -> Result<Standing, BrokerError> {
        Ok(match what {
            Declaration::Queue(asked) => match self.one::<Told>("queues", &asked.name).await? {
                None => Standing::Missing,
                Some(told) => standing(told.differences(asked, self.default_kind().await?)),
            },
            Declaration::Exchange(asked) => match self.one::<ToldExchange>("exchanges", &asked.name).await? {
                None => Standing::Missing,
                Some(told) => standing(told.differences(asked)),
            },
            Declaration::Binding(binding) => {
                let exchange = encoded(&binding.exchange);
                let path = format!("/api/exchanges/{}/{exchange}/bindings/source", self.vhost());
                let told: Vec<ToldBinding> = self.get(&path).await?.unwrap_or_default();
                let is_there = told.into_iter().any(|told| told.declared() == *binding);
                if is_there { Standing::Same } else { Standing::Missing }
            }
        })
    }

    /// The kind of the vhost's queues that are declared without one, if it is not the classic one.
    async fn default_kind(&self) -> Result<Option<QueueKind>, BrokerError> {
        // All of them: of one, RabbitMQ tells administrators alone.
        let told: Option<Vec<ToldVhost>> = self.get("/api/vhosts?columns=name,default_queue_type").await?;
        let own = told.into_iter().flatten().find(|vhost| vhost.name == self.options.vhost);
        Ok(own.and_then(|vhost| queue_kind(&vhost.default_queue_type?)))
    }

    fn vhost(&self) -> String {
        encoded(&self.options.vhost)
    }

    async fn all<T: DeserializeOwned>(&self, what: &str, query: &str) -> Result<Vec<T>, BrokerError> {
        let all = self.get(&format!("/api/{what}/{}{query}", self.vhost())).await?;
        all.ok_or_else(|| self.failed("it knows no such vhost", None))
    }

    async fn one<T: DeserializeOwned>(&self, what: &str, name: &str) -> Result<Option<T>, BrokerError> {
        self.get(&format!("/api/{what}/{}/{}", self.vhost(), encoded(name))).await
    }

    /// Asks the first place that answers. `None` if there is nothing there.
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, BrokerError> {
        let mut last = None;
        for (host, port) in &self.places {
            let asked = timeout(self.options.connection_timeout, self.ask(host, *port, path));
            let (status, body) = match asked.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    last = Some(error.to_string());
                    continue;
                }
                Err(_) => {
                    last = Some("no answer within `connection_timeout`".to_owned());
                    continue;
                }
            };
            return match status {
                StatusCode::OK => serde_json::from_slice(&body).map(Some).map_err(|error| {
                    self.failed(&format!("its answer to {path} cannot be read: {error}"), None)
                }),
                StatusCode::NOT_FOUND => Ok(None),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.failed(
                    "it does not let the URL's user in; `rabbitmqctl set_user_tags USER management` does, \
                     or the option `management` names another place",
                    Some(BrokerErrorKind::Invalid),
                )),
                other => Err(self.failed(&format!("it answers {other} to {path}"), None)),
            };
        }
        let why = last.unwrap_or_else(|| "there is no host".to_owned());
        let remedy = "`rabbitmq-plugins enable rabbitmq_management` switches it on, and the option `management` of the URL \
                      says where it is";
        Err(self.failed(&format!("it cannot be reached: {why}; {remedy}"), None))
    }

    fn failed(&self, what: &str, kind: Option<BrokerErrorKind>) -> BrokerError {
        let scheme = if self.options.tls.is_some() { "https" } else { "http" };
        let (host, port) = &self.places[0];
        let text = format!(
            "AMQP cannot tell this, and RabbitMQ's management is asked at {scheme}://{host}:{port}: {what}"
        );
        BrokerError::new(kind.unwrap_or(BrokerErrorKind::Unavailable), text)
    }

    async fn ask(&self, host: &str, port: u16, path: &str) -> io::Result<(StatusCode, Bytes)> {
        let socket = Socket::connect(&self.options, host, port).await?;
        let (mut sender, connection) = handshake(TokioIo::new(socket)).await.map_err(io::Error::other)?;
        let request = Request::get(path)
            .header(HOST, format!("{host}:{port}"))
            .header(AUTHORIZATION, &self.authorization)
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let answer = async move {
            let answer = sender.send_request(request).await.map_err(io::Error::other)?;
            let status = answer.status();
            let body =
                Limited::new(answer.into_body(), ANSWER_MAX).collect().await.map_err(io::Error::other)?;
            Ok((status, body.to_bytes()))
        };
        // The connection ends when its sender has gone.
        let (answer, _) = futures_util::future::join(answer, connection).await;
        answer
    }
}

fn standing(differences: Vec<String>) -> Standing {
    if differences.is_empty() { Standing::Same } else { Standing::Different(differences.join("; ")) }
}

/// A name as a part of a path (RFC 3986, section 2.3).
fn encoded(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            other => out.push_str(&format!("%{other:02x}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_part_of_a_path() {
        assert_eq!(encoded("a/b c?ä"), "a%2fb%20c%3f%c3%a4");
    }
}

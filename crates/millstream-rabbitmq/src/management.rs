//! What AMQP cannot tell, by RabbitMQ's management: which queues there are, how they were declared, what is bound to what.

use std::collections::BTreeSet;
use std::fmt::Display;
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
use millstream_message::{
    Binding, BrokerError, BrokerErrorKind, Declaration, Exchange, HeaderMatch, Headers, Overflow, Queue,
    QueueKind, QueueStats, Standing, Target, Value,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::options::Options;
use crate::proto::Login;
use crate::refusals::our_name;
use crate::socket::Socket;
use crate::topology;

/// The longest answer that is read: some hundred thousand queues.
const ANSWER_MAX: usize = 64 << 20;

/// A client of the management's HTTP interface. Each request has a connection of its own.
pub(crate) struct Management {
    /// Those of the broker, but for TLS.
    options: Options,
    places: Vec<(String, u16)>,
    authorization: String,
}

/// A queue as the management tells it. Figures may be missing while it has none.
#[derive(Debug, Deserialize)]
struct Told {
    name: String,
    #[serde(default)]
    durable: bool,
    #[serde(default)]
    exclusive: bool,
    #[serde(default)]
    auto_delete: bool,
    #[serde(default)]
    arguments: Headers,
    #[serde(default)]
    messages_ready: u64,
    #[serde(default)]
    message_bytes_ready: u64,
    #[serde(default)]
    messages_unacknowledged: u64,
    #[serde(default)]
    message_bytes_unacknowledged: u64,
    #[serde(default)]
    consumers: u64,
}

#[derive(Deserialize)]
struct ToldVhost {
    name: String,
    #[serde(default)]
    default_queue_type: Option<String>,
}

#[derive(Deserialize)]
struct ToldExchange {
    #[serde(rename = "type")]
    kind: String,
    durable: bool,
    auto_delete: bool,
    internal: bool,
    #[serde(default)]
    arguments: Headers,
}

#[derive(Deserialize)]
struct ToldBinding {
    source: String,
    destination: String,
    destination_type: String,
    routing_key: String,
    #[serde(default)]
    arguments: Headers,
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

impl Told {
    fn figures(self) -> QueueStats {
        QueueStats {
            name: self.name,
            ready: self.messages_ready,
            ready_bytes: self.message_bytes_ready,
            unacked: self.messages_unacknowledged,
            unacked_bytes: self.message_bytes_unacknowledged,
            consumers: self.consumers,
            ..QueueStats::default()
        }
    }

    /// The declaration whose arguments these are. Arguments that a [`Queue`] has no word for are not told.
    fn declared(self) -> Queue {
        let mut queue =
            Queue { durable: self.durable, exclusive: self.exclusive, ..Queue::transient(self.name) };
        let number = |name: &str| {
            self.arguments.get(name).and_then(Value::as_int).and_then(|number| u64::try_from(number).ok())
        };
        let text = |name: &str| self.arguments.get(name).and_then(Value::as_text).map(str::to_owned);
        let millis = |name: &str| number(name).map(std::time::Duration::from_millis);
        queue.ttl = millis("x-message-ttl");
        queue.expires = millis("x-expires");
        queue.max_items = number("x-max-length").and_then(std::num::NonZeroU64::new);
        queue.max_bytes = number("x-max-length-bytes").and_then(std::num::NonZeroU64::new);
        // RabbitMQ drops the head unless it was told otherwise.
        let limited = queue.max_items.is_some() || queue.max_bytes.is_some();
        if limited && text("x-overflow").as_deref() != Some("reject-publish") {
            queue.overflow = Overflow::DropHead;
        }
        queue.dead_letter_exchange = text("x-dead-letter-exchange");
        queue.dead_letter_key = text("x-dead-letter-routing-key");
        queue.max_priority = number("x-max-priority").and_then(|priority| u8::try_from(priority).ok());
        let limit = number("x-delivery-limit").and_then(|limit| u32::try_from(limit).ok());
        queue.delivery_limit = limit.and_then(std::num::NonZeroU32::new);
        // A limit of deliveries says as much.
        queue.kind = match text("x-queue-type").as_deref().and_then(queue_kind) {
            Some(QueueKind::Quorum) if queue.delivery_limit.is_some() => None,
            kind => kind,
        };
        queue.single_active_consumer =
            matches!(self.arguments.get("x-single-active-consumer"), Some(Value::Bool(true)));
        queue
    }

    /// How it differs from what is asked for, in a vhost whose queues are of this kind by default.
    fn differences(self, asked: &Queue, default: Option<QueueKind>) -> Vec<String> {
        let mut found = Found::default();
        found.compare("durable", self.durable, asked.durable);
        found.compare("exclusive", self.exclusive, asked.exclusive);
        found.compare("auto_delete", self.auto_delete, false);
        // What is said in other words, or not said because it is so anyway, is the same.
        let kind = |arguments: &mut Headers, otherwise: Option<QueueKind>| {
            let told = arguments.remove(KIND);
            let told = told.as_ref().and_then(Value::as_text).and_then(queue_kind);
            topology::kind_name(told.or(otherwise).unwrap_or(QueueKind::Classic))
        };
        let (mut has, mut wanted) = (self.arguments, topology::arguments(asked));
        found.compare("kind", kind(&mut has, None), kind(&mut wanted, default));
        found.arguments(&has, &wanted);
        found.0
    }
}

const KIND: &str = "x-queue-type";

fn queue_kind(name: &str) -> Option<QueueKind> {
    [QueueKind::Classic, QueueKind::Quorum, QueueKind::Stream]
        .into_iter()
        .find(|kind| topology::kind_name(*kind) == name)
}

fn standing(differences: Vec<String>) -> Standing {
    if differences.is_empty() { Standing::Same } else { Standing::Different(differences.join("; ")) }
}

/// The differences between what is there and what is asked for, each in words.
#[derive(Default)]
struct Found(Vec<String>);

impl Found {
    fn compare<T: PartialEq + Display>(&mut self, name: &str, has: T, asked: T) {
        if has != asked {
            self.0.push(format!("{name}: has {has}, asked for {asked}"));
        }
    }

    /// Compares arguments, those that we have no word for among them: RabbitMQ compares them, too.
    fn arguments(&mut self, has: &Headers, asked: &Headers) {
        let names: BTreeSet<&String> = has.keys().chain(asked.keys()).collect();
        let shown = |value: Option<&Value>| match value {
            None => "none".to_owned(),
            Some(Value::Text(text)) => text.clone(),
            Some(other) => serde_json::to_string(other).unwrap_or_else(|_| format!("{other:?}")),
        };
        for name in names {
            self.compare(our_name(name), shown(has.get(name)), shown(asked.get(name)));
        }
    }
}

impl ToldExchange {
    fn differences(self, asked: &Exchange) -> Vec<String> {
        let mut found = Found::default();
        found.compare("kind", self.kind.as_str(), topology::kind(asked.kind));
        found.compare("durable", self.durable, asked.durable);
        found.compare("internal", self.internal, asked.internal);
        found.compare("auto_delete", self.auto_delete, false);
        found.arguments(&self.arguments, &topology::exchange_arguments(asked));
        found.0
    }
}

impl ToldBinding {
    fn declared(mut self) -> Binding {
        let matching = self.arguments.remove("x-match").and_then(|matching| {
            Some(if matching.as_text()? == "any" { HeaderMatch::Any } else { HeaderMatch::All })
        });
        Binding {
            exchange: self.source,
            target: self.destination,
            target_kind: if self.destination_type == "exchange" { Target::Exchange } else { Target::Queue },
            key: self.routing_key,
            headers: matching.map(|matching| (matching, self.arguments)),
        }
    }
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
    use crate::proto::Method;
    use crate::topology;
    use std::time::Duration;

    #[test]
    fn a_declaration_comes_back_from_its_arguments() {
        let one = Queue::durable("one").max_items(5).max_bytes(7).ttl(Duration::from_millis(1500));
        let queues = [
            Queue::transient("plain"),
            Queue::exclusive("own"),
            one.clone().dead_letter("", "dead").max_priority(3),
            one.overflow(Overflow::DropHead),
            Queue::durable("quorum").delivery_limit(5),
            Queue::durable("kind").kind(QueueKind::Quorum).single_active_consumer(),
            Queue::durable("classic").kind(QueueKind::Classic).expires(Duration::from_secs(9)),
            Queue::durable("stream").kind(QueueKind::Stream).max_bytes(1 << 30),
        ];
        for queue in queues {
            let Method::QueueDeclare { arguments, .. } = topology::declare_queue(&queue) else { panic!() };
            let told = serde_json::json!({
                "name": queue.name, "durable": queue.durable, "exclusive": queue.exclusive, "arguments": arguments,
                "something": "else",
            });
            let told: Told = serde_json::from_value(told).expect("it is read");
            let mut declared = told.declared();
            // Of a stream nothing is said: what is oldest goes.
            if queue.kind == Some(QueueKind::Stream) {
                declared.overflow = queue.overflow;
            }
            assert_eq!(declared, queue);
        }
    }

    #[test]
    fn a_name_is_one_part_of_a_path() {
        assert_eq!(encoded("a/b c?ä"), "a%2fb%20c%3f%c3%a4");
    }
}

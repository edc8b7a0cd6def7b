//! What became of an exchange, as a value.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, StatusCode, Uri};
use serde::Serialize;

use crate::meter::{StreamReport, seconds};

/// Why something was refused or given up; the label of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// A request head that is invalid, or could be understood in two ways.
    Head,
    /// A request body whose framing is.
    Framing,
    /// A head or target larger than allowed.
    HeadSize,
    /// A request body larger than allowed.
    BodySize,
    /// No route, or not by this method.
    Route,
    /// Too many requests from one address.
    Rate,
    /// Something took too long.
    Timeout,
    /// No upstream could be reached, or it closed without an answer, or it speaks no protocol that the request needs.
    Upstream,
    /// An upstream's answer was invalid.
    UpstreamHead,
    /// An answer broke off in the middle.
    BrokenAnswer,
    /// The client closed before its exchange was done.
    ClientGone,
    /// A client's TLS handshake failed, or took too long.
    Tls,
    /// A client broke the rules of HTTP/2, flooded its connection, or opened more streams than it may.
    Protocol,
}

impl Refusal {
    /// All of them, with the word that metrics use.
    pub const WORDS: [(Refusal, &'static str); 13] = [
        (Refusal::Head, "head"),
        (Refusal::Framing, "framing"),
        (Refusal::HeadSize, "head_size"),
        (Refusal::BodySize, "body_size"),
        (Refusal::Route, "route"),
        (Refusal::Rate, "rate"),
        (Refusal::Timeout, "timeout"),
        (Refusal::Upstream, "upstream"),
        (Refusal::UpstreamHead, "upstream_head"),
        (Refusal::BrokenAnswer, "broken_answer"),
        (Refusal::ClientGone, "client_gone"),
        (Refusal::Tls, "tls"),
        (Refusal::Protocol, "protocol"),
    ];
}

/// One request and its answer, or what came instead of a request. Of a connection that changed its protocol it is told when it ends.
#[derive(Clone, Debug, Serialize)]
pub struct ExchangeReport {
    /// Who asked.
    pub client: SocketAddr,
    /// The method, if a head came that could be understood.
    #[serde(serialize_with = "shown")]
    pub method: Option<Method>,
    /// The path, without the query, which may hold secrets; if there was such a head.
    pub path: Option<String>,
    /// The route that was taken.
    pub route: Option<String>,
    /// The server that was asked.
    pub upstream: Option<String>,
    /// What the client was answered.
    #[serde(serialize_with = "number")]
    pub status: Option<StatusCode>,
    /// The request's body, if it was moved to its end or failed; of a changed protocol, what came from the client.
    pub request: Option<StreamReport>,
    /// The answer's body; of a changed protocol, what went to the client.
    pub response: Option<StreamReport>,
    /// What went wrong.
    pub failure: Option<String>,
    /// Seconds from the request's head to the end of the answer.
    #[serde(rename = "duration_seconds", serialize_with = "seconds")]
    pub duration: Duration,
}

impl ExchangeReport {
    pub(crate) fn new(client: SocketAddr, method: &Method, target: &Uri) -> ExchangeReport {
        let (method, path) = (Some(method.clone()), Some(target.path().to_owned()));
        ExchangeReport { method, path, ..ExchangeReport::of(client) }
    }

    /// Of a client whose request was not understood.
    pub(crate) fn of(client: SocketAddr) -> ExchangeReport {
        ExchangeReport {
            client,
            method: None,
            path: None,
            route: None,
            upstream: None,
            status: None,
            request: None,
            response: None,
            failure: None,
            duration: Duration::ZERO,
        }
    }
}

#[expect(clippy::ref_option, reason = "serde hands a reference to the field")]
fn shown<S: serde::Serializer>(method: &Option<Method>, out: S) -> Result<S::Ok, S::Error> {
    match method {
        Some(method) => out.serialize_some(method.as_str()),
        None => out.serialize_none(),
    }
}

#[expect(clippy::ref_option, reason = "serde hands a reference to the field")]
fn number<S: serde::Serializer>(status: &Option<StatusCode>, out: S) -> Result<S::Ok, S::Error> {
    match status {
        Some(status) => out.serialize_some(&status.as_u16()),
        None => out.serialize_none(),
    }
}

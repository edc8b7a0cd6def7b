//! One request and its answer, bodies both ways at once.

use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri, Version};
use tokio::time::timeout;

use crate::account::{Account, Tale};
use crate::answer::Answer;
use crate::asking::size_of;
use crate::body::Body;
use crate::client::Client;
use crate::compress::Coding;
use crate::converse::How;
use crate::gateway::Shared;
use crate::head::Framing;
use crate::headers::Peer;
use crate::meter::{Meter, StreamOutcome};
use crate::pieces::{Pieces, To};
use crate::place::{Found, find};
use crate::pump::{Broken, Sink, Source, frames};
use crate::report::{ExchangeReport, Refusal};
use crate::route::{Handler, Target};
use crate::settings::Settings;
use crate::sse::Heartbeat;
use crate::under_way::Slot;
use crate::upgrade::Offer;
use crate::upstream::{Connected, InFlight};

/// A request as it came. It goes in a box through futures that would each have room for it, twice, as long as they live.
pub(crate) struct Asked<'a> {
    pub(crate) method: Method,
    pub(crate) target: Uri,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    pub(crate) framing: Framing,
    /// The connection, or the stream, may go on in another protocol.
    pub(crate) may_switch: bool,
    pub(crate) source: Source<'a>,
    pub(crate) peer: Peer,
}

/// What is to be done with the client's connection.
pub(crate) enum Ended {
    /// It may serve the next request.
    Keep,
    /// It is closed, in order.
    Close,
    /// It is broken off, so that the client sees that the answer is not whole.
    Reset,
    /// It goes on as a tunnel to this connection.
    Tunnel(Box<Connected>, InFlight),
    /// It goes on in the hands of a handler.
    Handed(Offer),
}

/// Why an exchange failed before its answer began.
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) refusal: Refusal,
    pub(crate) text: String,
    /// Why, for those who run the gateway and for nobody else.
    cause: Option<Box<str>>,
    /// A header that the answer needs.
    header: Option<(HeaderName, HeaderValue)>,
}

impl Failure {
    pub(crate) fn because(mut self, cause: String) -> Failure {
        self.cause = Some(cause.into_boxed_str());
        self
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Failure {
        self.header = Some((name, value));
        self
    }

    pub(crate) fn new(status: StatusCode, refusal: Refusal, text: impl Into<String>) -> Failure {
        Failure { status, refusal, text: text.into(), cause: None, header: None }
    }
}

/// Serves one request. Where the connection goes on in another protocol, there is more to tell when that ends.
pub(crate) async fn exchange(
    shared: &Arc<Shared>,
    slot: &Arc<Slot>,
    asked: Box<Asked<'_>>,
    client: &mut Client<'_>,
) -> (Ended, Option<Tale>) {
    let report = ExchangeReport::new(asked.peer.address, &asked.method, &asked.target);
    let mut account = Account::open(shared, slot, report);
    let has_body = asked.framing != Framing::None;
    let admitted = admit(shared, &asked);
    let route = admitted.as_ref().ok().map(|at| &*shared.routes[*at].name);
    slot.begin(account.started, (asked.version, &asked.method, &asked.target), route);
    let ended = match admitted {
        Err(failure) => refuse(shared, client, *failure, has_body, &mut account.report).await,
        Ok(at) => {
            let route = &shared.routes[at];
            account.route = Some(at);
            let report = &mut account.report;
            report.route = Some(route.name.clone());
            let head_only = asked.method == Method::HEAD;
            let expects = asked.headers.contains_key(header::EXPECT);
            let coding = if route.compress { Coding::accepted(&asked.headers) } else { None };
            let serving = Serving {
                coding,
                compresses: route.compress,
                shared,
                slot,
                at,
                report,
                answered: false,
                head_only,
                has_body,
                expects,
                accept: None,
                ending: None,
            };
            serving.total(asked, client).await
        }
    };
    account.ended = true;
    let goes_on = matches!(ended, Ended::Tunnel(..) | Ended::Handed(_));
    let tale = goes_on.then(|| account.continued());
    (ended, tale)
}

/// The route of a request that may be served.
fn admit(shared: &Shared, asked: &Asked<'_>) -> Result<usize, Box<Failure>> {
    let refused = |status, refusal, text: &str| Box::new(Failure::new(status, refusal, text));
    if let Framing::Length(length) = asked.framing
        && length > shared.settings.limits.request_body_bytes
    {
        return Err(Box::new(too_large(shared.settings.limits.request_body_bytes)));
    }
    if let Some(expected) = asked.headers.get(header::EXPECT)
        && !expected.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        let text = "only `100-continue` can be expected";
        return Err(refused(StatusCode::EXPECTATION_FAILED, Refusal::Head, text));
    }
    if let Some(rates) = &shared.rates
        && let Err(limited) = rates.of(&asked.peer.address.ip()).try_acquire(1)
    {
        let text = "this address makes too many requests";
        let failure = Failure::new(StatusCode::TOO_MANY_REQUESTS, Refusal::Rate, text);
        let wait = limited.retry_after.as_secs().max(1);
        return Err(Box::new(failure.with(header::RETRY_AFTER, wait.into())));
    }
    let host = asked.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    match find(shared.routes.iter().map(|route| &route.place), host, asked.target.path(), &asked.method) {
        Found::Place(at) => Ok(at),
        Found::Nothing => Err(refused(StatusCode::NOT_FOUND, Refusal::Route, "no route leads there")),
        Found::Ambiguous => {
            let text = "the path leads elsewhere when it is decoded, `\\` or `//` is taken for `/`, or what follows a `;` is left out; write it plainly";
            Err(refused(StatusCode::BAD_REQUEST, Refusal::Head, text))
        }
        Found::OtherMethods(methods) => {
            let allow = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
            let text = format!("what leads there takes {allow} only");
            let failure = Failure::new(StatusCode::METHOD_NOT_ALLOWED, Refusal::Route, text);
            let allow = HeaderValue::from_str(&allow).expect("methods are tokens");
            Err(Box::new(failure.with(header::ALLOW, allow)))
        }
    }
}

pub(crate) fn too_large(max: u64) -> Failure {
    let text = format!("a request body may have {max} bytes");
    Failure::new(StatusCode::PAYLOAD_TOO_LARGE, Refusal::BodySize, text)
}

async fn refuse(
    shared: &Shared,
    client: &mut Client<'_>,
    failure: Failure,
    has_body: bool,
    report: &mut ExchangeReport,
) -> Ended {
    shared.tally.refused(failure.refusal);
    report.status = Some(failure.status);
    report.failure = Some(match &failure.cause {
        None => failure.text.clone(),
        Some(cause) => format!("{}: {cause}", failure.text),
    });
    if has_body || shared.draining.is_cancelled() {
        client.close();
    }
    let text = format!("{}\n", failure.text);
    let headers = failure.header.into_iter().collect();
    client.answer(failure.status, headers, &text, shared.settings.timeouts.idle).await;
    if client.keeps_alive() { Ended::Keep } else { Ended::Close }
}

/// An admitted request being served.
pub(crate) struct Serving<'s> {
    pub(crate) shared: &'s Arc<Shared>,
    pub(crate) slot: &'s Arc<Slot>,
    pub(crate) at: usize,
    pub(crate) report: &'s mut ExchangeReport,
    /// The answer's head was given to the client.
    pub(crate) answered: bool,
    /// The client asked for no more than a head.
    pub(crate) head_only: bool,
    /// The request has a body.
    has_body: bool,
    /// The client waits to hear that its body is wanted.
    pub(crate) expects: bool,
    /// What an upstream must say that accepts a WebSocket which the gateway asks for in a client's name.
    pub(crate) accept: Option<HeaderValue>,
    /// The route compresses.
    pub(crate) compresses: bool,
    /// How the answer may be compressed, if it does and the client understands it.
    pub(crate) coding: Option<Coding>,
    /// An answer that was handed on, and that its client has yet to take.
    pub(crate) ending: Option<Box<(Pieces, Meter)>>,
}

/// A handler that was asked.
struct Given<'a> {
    answer: Answer<'static>,
    source: Source<'a>,
    sender: Pieces,
    offer: Offer,
}

impl Serving<'_> {
    pub(crate) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    async fn total(mut self, asked: Box<Asked<'_>>, client: &mut Client<'_>) -> Ended {
        let served = match self.settings().timeouts.total {
            None => self.serve(asked, client).await,
            Some(total) => match timeout(total, self.serve(asked, client)).await {
                Ok(served) => served,
                Err(_) if self.answered => {
                    self.report.failure = Some(format!("it was not done after {total:?}"));
                    self.shared.tally.refused(Refusal::Timeout);
                    Ok(Ended::Reset)
                }
                Err(_) => Err(Failure::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    Refusal::Timeout,
                    format!("it was not done after {total:?}"),
                )),
            },
        };
        match served {
            Ok(ended) => ended,
            Err(failure) => refuse(self.shared, client, failure, self.has_body, self.report).await,
        }
    }

    async fn serve(&mut self, asked: Box<Asked<'_>>, client: &mut Client<'_>) -> Result<Ended, Failure> {
        let ended = match &self.shared.routes[self.at].target {
            Target::Proxy(upstreams) => self.proxy(asked, client, upstreams).await,
            Target::Handler(handler) => self.handle(asked, client, handler.as_ref()).await,
        };
        // Not before: the client holds up no server that has done its part.
        if self.taken().await { ended } else { Ok(Ended::Reset) }
    }

    /// Waits until the client has taken its answer. False if it does not.
    async fn taken(&mut self) -> bool {
        let Some((pieces, meter)) = self.ending.as_deref_mut() else { return true };
        let taken = frames::taken(pieces, meter, self.shared.settings.timeouts.idle).await;
        let outcome = taken.as_ref().err().map_or(StreamOutcome::Complete, Broken::outcome);
        self.report.response = Some(meter.end(outcome));
        let Err(broken) = taken else { return true };
        self.report.failure = Some(format!("the answer broke off: {broken}"));
        self.shared.tally.refused(Refusal::ClientGone);
        false
    }

    /// Tells a client that waits for it that its body is wanted.
    pub(crate) async fn want_body(&mut self, framing: Framing, client: &mut Client<'_>) -> Result<(), How> {
        if std::mem::take(&mut self.expects) && framing != Framing::None {
            let idle = self.settings().timeouts.idle;
            let told = client.interim(StatusCode::CONTINUE, &HeaderMap::new(), idle).await;
            return told.map_err(|_| How::ClientGone);
        }
        Ok(())
    }

    async fn handle(
        &mut self,
        asked: Box<Asked<'_>>,
        client: &mut Client<'_>,
        handler: &dyn Handler,
    ) -> Result<Ended, Failure> {
        if let (true, Framing::Length(length), Some(max)) = (self.expects, asked.framing, handler.body_max())
            && length > max
        {
            return Err(too_large(max));
        }
        // A handler reads when it wants to; the client must not wait for it to say so.
        if let Err(how) = self.want_body(asked.framing, client).await {
            return self.concluded(how, client);
        }
        let switches = asked.may_switch;
        let Given { answer, source, sender, offer } = self.give(asked, handler);
        let conversed = self.converse(source, Sink::Frames(sender), answer, client, switches).await;
        match conversed.how {
            How::Switched => Ok(Ended::Handed(offer)),
            how => self.concluded(how, client),
        }
    }

    /// Gives a handler its request. Apart from what waits for the answer, whose future would have room for all of this.
    fn give<'a>(&self, asked: Box<Asked<'a>>, handler: &dyn Handler) -> Given<'a> {
        let Asked { method, target, version, headers, framing, may_switch, source, peer } = *asked;
        let (sender, body) = Body::channel(size_of(framing), To::Handler);
        let mut request = Request::new(if framing == Framing::None { Body::empty() } else { body });
        *request.method_mut() = method;
        *request.uri_mut() = target;
        *request.version_mut() = version;
        *request.headers_mut() = headers;
        request.extensions_mut().insert(peer.address);
        request.extensions_mut().insert(self.shared.pool.clone());
        let offer = Offer::new();
        if may_switch {
            request.extensions_mut().insert(offer.upgrade());
        }
        let answering = handler.handle(request);
        let idle = self.settings().timeouts.idle;
        let answer = Answer::Frames(Box::pin(async move {
            let response = answering.await;
            if let Some(heartbeat) = response.extensions().get::<Heartbeat>() {
                // Or its silence would be taken for the end of whoever answers.
                heartbeat.at_most(idle / 3);
            }
            Ok(response)
        }));
        Given { answer, source, sender, offer }
    }

    /// What becomes of the client's connection.
    pub(crate) fn concluded(&mut self, how: How, client: &Client<'_>) -> Result<Ended, Failure> {
        match how {
            How::Answered { whole: true, .. } if client.keeps_alive() => Ok(Ended::Keep),
            How::Answered { .. } => Ok(Ended::Close),
            How::Failed(failure) => Err(failure),
            How::Unswitched => Err(Failure::new(
                StatusCode::NOT_IMPLEMENTED,
                Refusal::Upstream,
                "the upstream does not change the protocol",
            )),
            How::Unanswered | How::Unsent => Err(Failure::new(
                StatusCode::BAD_GATEWAY,
                Refusal::Upstream,
                "the upstream closed the connection without an answer",
            )),
            How::ClientGone => {
                self.report.failure.get_or_insert_with(|| "the client is gone".into());
                self.shared.tally.refused(Refusal::ClientGone);
                Ok(Ended::Reset)
            }
            How::BrokenOff { .. } => Ok(Ended::Reset),
            How::Switched => unreachable!("only an exchange that may switch does"),
        }
    }
}

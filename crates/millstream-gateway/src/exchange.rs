//! One request and its answer, bodies both ways at once.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body as _, SizeHint};
use hyper::client::conn::http2::SendRequest;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::body::Body;
use crate::client::{AnswerHead, Client};
use crate::compress::{self, Coding};
use crate::gateway::Shared;
use crate::headers;
use crate::http1::decoder::Decoder;
use crate::http1::head::{self, Framing, write_headers, write_request_line};
use crate::http1::io::{Duplex, NoHead, ReadSide};
use crate::http2;
use crate::meter::{Direction, Meter};
use crate::pump::{Broken, Rules, Sink, Source, pump};
use crate::report::{ExchangeReport, Refusal};
use crate::route::{Found, Handler, Route, Target, find};
use crate::settings::{HalfClose, Settings};
use crate::upstream::{Connected, InFlight, UpstreamUrl, Upstreams, Way};

/// A request as it came.
pub(crate) struct Asked<'a> {
    pub(crate) method: Method,
    pub(crate) target: Uri,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    pub(crate) framing: Framing,
    pub(crate) source: Source<'a>,
    pub(crate) client: SocketAddr,
    pub(crate) scheme: &'static str,
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
    Handed(oneshot::Sender<Box<dyn Duplex>>),
}

/// The connection under a request that was answered with 101, for handlers: in the extensions of requests over HTTP/1.
#[derive(Clone)]
pub struct Upgrade {
    handed: Arc<Mutex<Option<Handed>>>,
    shared: Arc<Shared>,
}

/// Brings the connection, once it is not needed here any more.
type Handed = oneshot::Receiver<Box<dyn Duplex>>;

/// A connection that speaks another protocol than HTTP now.
pub struct Upgraded(Box<dyn Duplex>);

impl Upgrade {
    /// Runs `talk` with the connection, once the answer 101 was sent; if it never is, `talk` is dropped. The gateway waits for it
    /// when it drains, and drops it when it stops.
    pub fn spawn<F>(&self, talk: impl FnOnce(Upgraded) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(handed) = self.handed.lock().take() else { return };
        let stopped = self.shared.stopped.clone();
        self.shared.tasks.spawn(async move {
            let talking = async {
                if let Ok(connection) = handed.await {
                    talk(Upgraded(connection)).await;
                }
            };
            stopped.run_until_cancelled(talking).await;
        });
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Why an exchange failed before its answer began.
struct Failure {
    status: StatusCode,
    refusal: Refusal,
    text: String,
    /// A header that the answer needs.
    header: Option<(HeaderName, HeaderValue)>,
}

impl Failure {
    fn with(mut self, name: HeaderName, value: HeaderValue) -> Failure {
        self.header = Some((name, value));
        self
    }

    fn new(status: StatusCode, refusal: Refusal, text: impl Into<String>) -> Failure {
        Failure { status, refusal, text: text.into(), header: None }
    }
}

/// Serves one request.
pub(crate) async fn exchange(shared: &Arc<Shared>, asked: Asked<'_>, client: &mut Client<'_>) -> Ended {
    let mut report = ExchangeReport::new(asked.client, &asked.method, &asked.target);
    let started = Instant::now();
    let has_body = asked.framing != Framing::None;
    let ended = match admit(shared, &asked) {
        Err(failure) => refuse(shared, client, *failure, has_body, &mut report).await,
        Ok(at) => {
            let route = &shared.routes[at];
            report.route = Some(route.name.clone());
            let head_only = asked.method == Method::HEAD;
            let expects = asked.headers.contains_key(header::EXPECT);
            let coding = if route.compress { Coding::accepted(&asked.headers) } else { None };
            let serving =
                Serving { coding, shared, at, report: &mut report, answered: false, head_only, expects };
            serving.total(asked, client, route, has_body).await
        }
    };
    report.duration = started.elapsed();
    shared.ended(&report);
    ended
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
        && let Err(limited) = rates.of(&asked.client.ip()).try_acquire(1)
    {
        let text = "this address makes too many requests";
        let failure = Failure::new(StatusCode::TOO_MANY_REQUESTS, Refusal::Rate, text);
        let wait = limited.retry_after.as_secs().max(1);
        return Err(Box::new(failure.with(header::RETRY_AFTER, wait.into())));
    }
    let host = asked.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| asked.target.authority().map(|authority| authority.as_str())).unwrap_or("");
    match find(&shared.routes, host, asked.target.path(), &asked.method) {
        Found::Route(at) => Ok(at),
        Found::Nothing => Err(refused(StatusCode::NOT_FOUND, Refusal::Route, "no route leads there")),
        Found::OtherMethods(methods) => {
            let text = "the route does not take this method";
            let failure = Failure::new(StatusCode::METHOD_NOT_ALLOWED, Refusal::Route, text);
            let allow = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
            let allow = HeaderValue::from_str(&allow).expect("methods are tokens");
            Err(Box::new(failure.with(header::ALLOW, allow)))
        }
    }
}

fn too_large(max: u64) -> Failure {
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
    report.failure = Some(failure.text.clone());
    if has_body {
        client.close();
    }
    let text = format!("{}\n", failure.text);
    let headers = failure.header.into_iter().collect();
    client.answer(failure.status, headers, &text, shared.settings.timeouts.idle).await;
    if client.keeps_alive() { Ended::Keep } else { Ended::Close }
}

/// An admitted request being served.
struct Serving<'s> {
    shared: &'s Arc<Shared>,
    at: usize,
    report: &'s mut ExchangeReport,
    /// The answer's head was given to the client.
    answered: bool,
    /// The client asked for no more than a head.
    head_only: bool,
    /// The client waits to hear that its body is wanted.
    expects: bool,
    /// How the answer may be compressed, if the route compresses and the client understands it.
    coding: Option<Coding>,
}

/// Where an answer comes from.
enum Answer<'u> {
    Wire { read: &'u mut ReadSide, method: Method },
    Frames(Pin<Box<dyn Future<Output = Result<Response<Body>, String>> + Send + 'u>>),
}

/// How the two bodies ended.
struct Conversed<'a> {
    /// The request's source, if its body was moved to its end or failed.
    source: Option<Source<'a>>,
    how: How,
}

enum How {
    /// The answer is whole. `whole` says that the request body is, too.
    Answered {
        whole: bool,
        keep_alive: bool,
    },
    /// The upstream changes the protocol.
    Switched,
    /// The upstream closed before it answered anything.
    Unanswered,
    Failed(Failure),
    /// The client is gone.
    ClientGone,
    /// The answer had begun and broke off.
    BrokenOff,
}

impl Serving<'_> {
    fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    async fn total(
        mut self,
        asked: Asked<'_>,
        client: &mut Client<'_>,
        route: &Route,
        has_body: bool,
    ) -> Ended {
        let served = match self.settings().timeouts.total {
            None => self.serve(asked, client, route).await,
            Some(total) => match timeout(total, self.serve(asked, client, route)).await {
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
            Err(failure) => refuse(self.shared, client, failure, has_body, self.report).await,
        }
    }

    async fn serve(
        &mut self,
        asked: Asked<'_>,
        client: &mut Client<'_>,
        route: &Route,
    ) -> Result<Ended, Failure> {
        match &route.target {
            Target::Proxy(upstreams) => self.proxy(asked, client, upstreams).await,
            Target::Handler(handler) => self.handle(asked, client, handler.as_ref()).await,
        }
    }

    async fn proxy(
        &mut self,
        mut asked: Asked<'_>,
        client: &mut Client<'_>,
        upstreams: &Upstreams,
    ) -> Result<Ended, Failure> {
        let may_switch = matches!(client, Client::Wire { .. }) && asked.framing == Framing::None;
        let switching = headers::upgrade(&asked.headers).filter(|_| may_switch);
        let trailers = headers::takes_trailers(&asked.headers);
        headers::remove_hop_by_hop(&mut asked.headers);
        headers::forward(&mut asked.headers, self.settings().forwarded, asked.client, asked.scheme);
        if trailers {
            asked.headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        let idempotent = asked.method.is_idempotent() && asked.framing == Framing::None;
        let mut failed = Vec::new();
        let mut fresh = false;
        loop {
            let Some((at, mut in_flight)) = upstreams.choose(&failed) else {
                let text = "no server of this route is well";
                return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, Refusal::Upstream, text));
            };
            self.report.upstream = Some(in_flight.upstream.url.to_string());
            let mut up = match in_flight.upstream.way(self.shared, fresh).await {
                Ok(Way::Http1(up)) => up,
                Ok(Way::Http2(sender)) => {
                    let conversed = self.ask_http2(asked, client, sender, &in_flight.upstream.url).await;
                    self.judge(&mut in_flight, &conversed.how);
                    return self.concluded(conversed.how, client);
                }
                Err(error) => {
                    in_flight.answered(false);
                    // Nothing was sent, so that any request may try the next server.
                    failed.push(at);
                    if failed.len() < upstreams.servers.len() {
                        continue;
                    }
                    let late = error.kind() == std::io::ErrorKind::TimedOut;
                    let status = if late { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::BAD_GATEWAY };
                    return Err(Failure::new(status, Refusal::Upstream, "the upstream cannot be reached"));
                }
            };
            up.write.pending = request_head(&asked, &in_flight.upstream.url.base, switching.as_ref());
            let sink = Sink::Wire { write: &mut up.write, framing: asked.framing };
            let answer = Answer::Wire { read: &mut up.read, method: asked.method.clone() };
            let conversed = self.converse(asked.source, sink, answer, client, switching.is_some()).await;
            let stale = up.reused && idempotent && matches!(conversed.how, How::Unanswered);
            if let Some(source) = conversed.source.filter(|_| stale) {
                // The server closed the connection while the request was on its way, and has not seen it; if it has, seeing
                // it twice changes nothing.
                asked.source = source;
                fresh = true;
                continue;
            }
            self.judge(&mut in_flight, &conversed.how);
            return match conversed.how {
                How::Switched => Ok(Ended::Tunnel(Box::new(up), in_flight)),
                How::Answered { whole: true, keep_alive: true } => {
                    if up.read.has_carry() {
                        self.shared.tally.upstream_excess();
                    } else {
                        in_flight.upstream.keep(up, self.settings());
                    }
                    Ok(if client.keeps_alive() { Ended::Keep } else { Ended::Close })
                }
                how => self.concluded(how, client),
            };
        }
    }

    async fn ask_http2<'a>(
        &mut self,
        asked: Asked<'a>,
        client: &mut Client<'_>,
        mut sender: SendRequest<Body>,
        url: &UpstreamUrl,
    ) -> Conversed<'a> {
        let (frames, body) = Body::channel(size_of(asked.framing));
        let body = if asked.framing == Framing::None { Body::empty() } else { body };
        let path = format!("{}{}", url.base, path_of(&asked.target));
        let request = http2::request(&asked, url.tls, &url.authority, &path, body);
        let answer = Answer::Frames(Box::pin(async move {
            sender.ready().await.map_err(|error| error.to_string())?;
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            Ok(response.map(Body::new))
        }));
        self.converse(asked.source, Sink::Frames(frames), answer, client, false).await
    }

    /// Tells the server's breaker how it did, where it is the server's doing.
    fn judge(&self, in_flight: &mut InFlight, how: &How) {
        let server_errors =
            [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
        match how {
            How::Answered { .. } | How::Switched => {
                let well = self.report.status.is_none_or(|status| !server_errors.contains(&status));
                in_flight.answered(well);
            }
            How::Unanswered => in_flight.answered(false),
            How::Failed(failure) if server_errors.contains(&failure.status) => in_flight.answered(false),
            How::Failed(_) | How::ClientGone | How::BrokenOff => {}
        }
    }

    async fn handle(
        &mut self,
        asked: Asked<'_>,
        client: &mut Client<'_>,
        handler: &dyn Handler,
    ) -> Result<Ended, Failure> {
        let (sender, body) = Body::channel(size_of(asked.framing));
        let body = if asked.framing == Framing::None { Body::empty() } else { body };
        let mut request = Request::new(body);
        *request.method_mut() = asked.method;
        *request.uri_mut() = asked.target;
        *request.version_mut() = asked.version;
        *request.headers_mut() = asked.headers;
        request.extensions_mut().insert(asked.client);
        let (hand_over, handed) = oneshot::channel();
        let switches = matches!(client, Client::Wire { .. }) && asked.framing == Framing::None;
        if switches {
            let handed = Arc::new(Mutex::new(Some(handed)));
            request.extensions_mut().insert(Upgrade { handed, shared: self.shared.clone() });
        }
        if self.expects && asked.framing != Framing::None {
            // A handler reads when it wants to; the client must not wait for it to say so.
            let idle = self.settings().timeouts.idle;
            if client.interim(StatusCode::CONTINUE, &HeaderMap::new(), idle).await.is_err() {
                return Ok(Ended::Reset);
            }
            self.expects = false;
        }
        let answering = handler.handle(request);
        let answer = Answer::Frames(Box::pin(async move { Ok(answering.await) }));
        let conversed = self.converse(asked.source, Sink::Frames(sender), answer, client, switches).await;
        match conversed.how {
            How::Switched => Ok(Ended::Handed(hand_over)),
            how => self.concluded(how, client),
        }
    }

    /// What becomes of the client's connection.
    fn concluded(&mut self, how: How, client: &Client<'_>) -> Result<Ended, Failure> {
        match how {
            How::Answered { whole: true, .. } if client.keeps_alive() => Ok(Ended::Keep),
            How::Answered { .. } => Ok(Ended::Close),
            How::Failed(failure) => Err(failure),
            How::Unanswered => Err(Failure::new(
                StatusCode::BAD_GATEWAY,
                Refusal::Upstream,
                "the upstream closed the connection without an answer",
            )),
            How::ClientGone => {
                self.report.failure.get_or_insert_with(|| "the client is gone".into());
                self.shared.tally.refused(Refusal::ClientGone);
                Ok(Ended::Reset)
            }
            How::BrokenOff => Ok(Ended::Reset),
            How::Switched => unreachable!("only an exchange that may switch does"),
        }
    }

    /// Moves the request's body and, as soon as it begins, the answer's.
    async fn converse<'a>(
        &mut self,
        source: Source<'a>,
        mut sink: Sink<'_>,
        mut answer: Answer<'_>,
        client: &mut Client<'_>,
        may_switch: bool,
    ) -> Conversed<'a> {
        let sums = &self.shared.tally.routes[self.at];
        let settings = &self.shared.settings;
        let idle = settings.timeouts.idle;
        let mut meter = Meter::start(Direction::Request, &sums.request);
        let rules =
            Rules { chunk: settings.request_chunk, bytes_max: settings.limits.request_body_bytes, idle };
        let upload = async move {
            let mut source = source;
            let result = pump(&mut source, &mut sink, &mut meter, rules).await;
            (source, meter, result)
        };
        tokio::pin!(upload);
        let mut uploaded: Option<Uploaded<'a>> = None;

        // The head of the answer.
        let late = sleep(settings.timeouts.response);
        tokio::pin!(late);
        let head = loop {
            let running = uploaded.is_none();
            tokio::select! {
                biased;
                (source, meter, result) = &mut upload, if running => {
                    let ended = Uploaded::new(source, meter, result);
                    self.report.request = Some(ended.report.clone());
                    match &ended.broken {
                        Some(Broken::TooLarge(max)) => {
                            return Conversed { source: None, how: How::Failed(too_large(*max)) };
                        }
                        Some(Broken::Framing(error)) => {
                            let failure = Failure::new(StatusCode::BAD_REQUEST, Refusal::Framing, error.to_string());
                            return Conversed { source: None, how: How::Failed(failure) };
                        }
                        Some(Broken::SourceIdle(_)) => {
                            let text = "the request body made no progress";
                            let failure = Failure::new(StatusCode::REQUEST_TIMEOUT, Refusal::Timeout, text);
                            return Conversed { source: None, how: How::Failed(failure) };
                        }
                        Some(Broken::Source(_) | Broken::Short | Broken::Body(_) | Broken::Length) => {
                            return Conversed { source: None, how: How::ClientGone };
                        }
                        // An upstream that takes no more may still say why.
                        Some(Broken::Sink(_) | Broken::Gone | Broken::SinkIdle(_)) | None => {}
                    }
                    late.as_mut().reset(Instant::now() + settings.timeouts.response);
                    uploaded = Some(ended);
                }
                head = answer.head(settings.limits.header_bytes) => match head {
                    Err(NoAnswer::Closed) => {
                        return Conversed { source: uploaded.map(|ended| ended.source), how: How::Unanswered };
                    }
                    Err(NoAnswer::Invalid(text)) => {
                        let failure = Failure::new(StatusCode::BAD_GATEWAY, Refusal::UpstreamHead, text);
                        return Conversed { source: None, how: How::Failed(failure) };
                    }
                    Ok((head, _)) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                        if !may_switch {
                            let text = "the upstream changes a protocol that nobody asked to change";
                            let failure = Failure::new(StatusCode::BAD_GATEWAY, Refusal::UpstreamHead, text);
                            return Conversed { source: None, how: How::Failed(failure) };
                        }
                        self.report.status = Some(head.status);
                        self.answered = true;
                        let source = uploaded.map(|ended| ended.source);
                        let flushed = match client.start(head) {
                            Some(Sink::Wire { write, .. }) => write.flush(idle).await.is_ok(),
                            _ => false,
                        };
                        let how = if flushed { How::Switched } else { How::ClientGone };
                        return Conversed { source, how };
                    }
                    Ok((head, _)) if head.status.is_informational() => {
                        self.expects &= head.status != StatusCode::CONTINUE;
                        if client.interim(head.status, &head.headers, idle).await.is_err() {
                            return Conversed { source: None, how: How::ClientGone };
                        }
                        late.as_mut().reset(Instant::now() + settings.timeouts.response);
                    }
                    Ok(head) => break head,
                },
                () = client_gone(&mut uploaded, settings.half_close), if !running => {
                    return Conversed { source: None, how: How::ClientGone };
                }
                () = &mut late, if !running => {
                    let text = "the upstream does not answer in time";
                    let failure = Failure::new(StatusCode::GATEWAY_TIMEOUT, Refusal::Timeout, text);
                    return Conversed { source: None, how: How::Failed(failure) };
                }
            }
        };

        // The body of the answer.
        let (mut head, keep_alive) = head;
        if self.head_only {
            if let Framing::Length(length) = head.framing {
                head.headers.insert(header::CONTENT_LENGTH, length.into());
            }
            head.framing = Framing::None;
        }
        self.report.status = Some(head.status);
        self.answered = true;
        // A client that still waits for 100 may now send its body or not, and nobody could know which; the connection ends
        // with this answer.
        if uploaded.is_none() && self.expects {
            client.close();
        }
        let framing = head.framing;
        let coding = self.coding.filter(|_| compress::is_worth_it(&head));
        if let Some(coding) = coding {
            coding.announce(&mut head);
        }
        let Some(mut sink) = client.start(head) else {
            return Conversed { source: None, how: How::ClientGone };
        };
        let mut from = answer.body(framing);
        if let Some(coding) = coding {
            from = Source::Compressed(Box::new(from), coding.encoder());
        }
        let mut meter = Meter::start(Direction::Response, &sums.response);
        let rules = Rules { chunk: settings.response_chunk, bytes_max: u64::MAX, idle };
        let result = {
            let download = pump(&mut from, &mut sink, &mut meter, rules);
            tokio::pin!(download);
            loop {
                let running = uploaded.is_none();
                tokio::select! {
                    biased;
                    result = &mut download => break Some(result),
                    (source, meter, result) = &mut upload, if running => {
                        let ended = Uploaded::new(source, meter, result);
                        self.report.request = Some(ended.report.clone());
                        let upstream_took_enough =
                            matches!(ended.broken, None | Some(Broken::Sink(_) | Broken::Gone | Broken::SinkIdle(_)));
                        uploaded = Some(ended);
                        if !upstream_took_enough {
                            break None;
                        }
                    }
                    () = client_gone(&mut uploaded, settings.half_close), if !running => break None,
                }
            }
        };
        let how = match result {
            Some(Ok(())) => {
                self.report.response = Some(meter.end(crate::StreamOutcome::Complete));
                let whole = uploaded.as_ref().is_some_and(|ended| ended.broken.is_none());
                How::Answered { whole, keep_alive }
            }
            Some(Err(broken)) => {
                self.report.response = Some(meter.end(broken.outcome()));
                self.report.failure = Some(format!("the answer broke off: {broken}"));
                self.shared.tally.refused(match broken {
                    Broken::Sink(_) | Broken::Gone | Broken::SinkIdle(_) => Refusal::ClientGone,
                    _ => Refusal::BrokenAnswer,
                });
                // The client gets what was whole, if it takes it, and then sees that no more comes.
                if let Sink::Wire { write, .. } = &mut sink {
                    let _ = write.flush(idle).await;
                }
                How::BrokenOff
            }
            None => {
                self.report.response = Some(meter.end(crate::StreamOutcome::Cancelled));
                How::ClientGone
            }
        };
        Conversed { source: uploaded.map(|ended| ended.source), how }
    }
}

/// A request body whose moving has ended.
struct Uploaded<'a> {
    source: Source<'a>,
    broken: Option<Broken>,
    report: crate::StreamReport,
}

impl<'a> Uploaded<'a> {
    fn new(source: Source<'a>, mut meter: Meter, result: Result<(), Broken>) -> Uploaded<'a> {
        let outcome = result.as_ref().err().map_or(crate::StreamOutcome::Complete, Broken::outcome);
        Uploaded { source, report: meter.end(outcome), broken: result.err() }
    }
}

/// Resolves when the client has closed its connection while its request is served.
async fn client_gone(uploaded: &mut Option<Uploaded<'_>>, half_close: HalfClose) {
    match uploaded {
        Some(Uploaded { source: Source::Wire { read, decoder }, broken: None, .. })
            if decoder.is_done() && half_close == HalfClose::Cancel =>
        {
            read.gone().await;
        }
        _ => std::future::pending().await,
    }
}

enum NoAnswer {
    Closed,
    Invalid(String),
}

impl<'u> Answer<'u> {
    /// The next head, and whether the connection may be used again after its body.
    async fn head(&mut self, max: usize) -> Result<(AnswerHead, bool), NoAnswer> {
        match self {
            Answer::Wire { read, method } => {
                let bytes = read.head(max).await.map_err(|none| match none {
                    NoHead::Closed | NoHead::Broken => NoAnswer::Closed,
                    NoHead::Refused(error) => {
                        NoAnswer::Invalid(format!("the upstream's answer is invalid: {error}"))
                    }
                })?;
                let head = head::response(&bytes, method).map_err(|error| {
                    NoAnswer::Invalid(format!("the upstream's answer is invalid: {error}"))
                })?;
                let mut answered =
                    AnswerHead { status: head.status, headers: head.headers, framing: head.framing };
                if head.status == StatusCode::SWITCHING_PROTOCOLS {
                    let protocol = headers::upgrade(&answered.headers);
                    headers::remove_hop_by_hop(&mut answered.headers);
                    if let Some(protocol) = protocol {
                        answered.headers.insert(header::UPGRADE, protocol);
                        answered.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                    }
                } else {
                    headers::remove_hop_by_hop(&mut answered.headers);
                }
                Ok((answered, head.keep_alive))
            }
            Answer::Frames(future) => {
                let response = future.await.map_err(NoAnswer::Invalid)?;
                let (parts, body) = response.into_parts();
                if parts.status.is_informational() && parts.status != StatusCode::SWITCHING_PROTOCOLS {
                    return Err(NoAnswer::Invalid(format!("{} is no final answer", parts.status)));
                }
                let bodiless = matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
                    || parts.status.is_informational();
                let framing = match body.size_hint().exact() {
                    _ if bodiless || body.is_end_stream() => Framing::None,
                    Some(length) => Framing::Length(length),
                    None => Framing::Chunked,
                };
                let mut answered = AnswerHead { status: parts.status, headers: parts.headers, framing };
                if parts.status != StatusCode::SWITCHING_PROTOCOLS {
                    headers::remove_hop_by_hop(&mut answered.headers);
                }
                *self = Answer::Frames(Box::pin(async move { Ok(Response::new(body)) }));
                Ok((answered, true))
            }
        }
    }

    /// The body after the head.
    fn body(self, framing: Framing) -> Source<'u> {
        match self {
            Answer::Wire { read, .. } => Source::Wire { read, decoder: Decoder::new(framing) },
            Answer::Frames(future) if framing == Framing::None => {
                drop(future);
                Source::Frames(Body::empty())
            }
            Answer::Frames(mut future) => {
                let mut cx = Context::from_waker(std::task::Waker::noop());
                match future.as_mut().poll(&mut cx) {
                    Poll::Ready(Ok(response)) => Source::Frames(response.into_body()),
                    _ => unreachable!("the head has put a ready answer here"),
                }
            }
        }
    }
}

/// What the framing says of a body's length.
pub(crate) fn size_of(framing: Framing) -> SizeHint {
    match framing {
        Framing::None => SizeHint::with_exact(0),
        Framing::Length(length) => SizeHint::with_exact(length),
        Framing::Chunked | Framing::UntilClose => SizeHint::default(),
    }
}

/// Path and query, never empty.
fn path_of(target: &Uri) -> &str {
    target.path_and_query().map(PathAndQuery::as_str).filter(|path| !path.is_empty()).unwrap_or("/")
}

/// The bytes of a request's head for an upstream.
fn request_head(asked: &Asked<'_>, base: &str, switching: Option<&HeaderValue>) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    let path = path_of(&asked.target);
    if base.is_empty() || path == "*" {
        write_request_line(&mut out, &asked.method, path);
    } else {
        write_request_line(&mut out, &asked.method, &format!("{base}{path}"));
    }
    if !asked.headers.contains_key(header::HOST) {
        // HTTP/2 says it in the target, HTTP/1.0 need not say it.
        let host = asked.target.authority().map_or("", |authority| authority.as_str());
        out.extend_from_slice(format!("host: {host}\r\n").as_bytes());
    }
    write_headers(&mut out, &asked.headers);
    match asked.framing {
        Framing::Chunked | Framing::UntilClose => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(length) if !asked.headers.contains_key(header::CONTENT_LENGTH) => {
            out.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
        }
        Framing::Length(_) | Framing::None => {}
    }
    if asked.headers.contains_key(header::TE) && switching.is_none() {
        out.extend_from_slice(b"connection: te\r\n");
    }
    if let Some(protocol) = switching {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: ");
        out.extend_from_slice(protocol.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// How long a connection may linger so that its client can read the last answer.
pub(crate) const LINGER: Duration = Duration::from_secs(2);

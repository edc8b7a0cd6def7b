//! An exchange with an upstream: which one, over which connection, and what becomes of that.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, StatusCode};
use millstream_flow::chain;
use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::answer::{Answer, NoAnswer};
use crate::asking::{path_below, path_of, size_of, write_request_head};
use crate::body::Body;
use crate::client::Client;
use crate::converse::How;
use crate::exchange::{Asked, Ended, Failure, Serving};
use crate::head::Framing;
use crate::headers;
use crate::http1::io::Connection;
use crate::http2::{self, WEBSOCKET};
use crate::pieces::To;
use crate::pump::Sink;
use crate::report::Refusal;
use crate::upstream::{Connected, InFlight, UpstreamUrl, Upstreams, Way};

impl Serving<'_> {
    /// Serves a request by asking one of these servers.
    pub(crate) async fn proxy(
        &mut self,
        mut asked: Box<Asked<'_>>,
        client: &mut Client<'_>,
        upstreams: &Upstreams,
    ) -> Result<Ended, Failure> {
        let switching = headers::upgrade(&asked.headers).filter(|_| asked.may_switch);
        let accept = accepted_by(&asked.headers).filter(|_| switching.is_some());
        if matches!(client, Client::Frames { .. }) {
            self.accept.clone_from(&accept);
        }
        let trailers = headers::takes_trailers(&asked.headers);
        headers::remove_hop_by_hop(&mut asked.headers);
        headers::forward(&mut asked.headers, self.settings().forwarded, &asked.peer);
        if trailers {
            asked.headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        let idempotent = asked.method.is_idempotent() && asked.framing == Framing::None;
        let mut failed = Vec::new();
        let mut unreachable = None;
        // The server that closed on the request, and how many connections it had had.
        let mut stale: Option<(usize, u64)> = None;
        loop {
            let Some((at, mut in_flight)) = upstreams.choose(&failed) else {
                let text = "no server of this route is well";
                let ill = || Failure::new(StatusCode::SERVICE_UNAVAILABLE, Refusal::Upstream, text);
                return Err(unreachable.map_or_else(ill, |failure: Box<Failure>| *failure));
            };
            let url = &in_flight.upstream.url;
            self.report.upstream = Some(in_flight.upstream.name.clone());
            self.slot.asks(&in_flight.upstream.name);
            let closed = stale.map(|(server, number)| if server == at { number } else { 0 });
            let way = match accept {
                Some(_) => in_flight.upstream.way_for_websocket(self.shared, closed).await,
                None => in_flight.upstream.way(self.shared, closed).await,
            };
            let ((reused, number), up, conversed) = match way {
                Ok(Way::Http1(mut up)) => {
                    debug_assert!(up.write.pending.is_empty(), "what it sent before was sent whole");
                    write_request_head(&mut up.write.pending, &asked, &url.base, switching.as_ref());
                    let sink = Sink::Wire { write: &mut up.write, framing: asked.framing };
                    let answer = Answer::Wire { read: &mut up.read, method: asked.method.clone() };
                    let conversed =
                        self.converse(asked.source, sink, answer, client, switching.is_some()).await;
                    ((up.reused, 0), Some(up), conversed)
                }
                // Asked for as a plain page, it would look to the client as if the protocol were changed.
                Ok(Way::Http2 { .. }) if self.accept.is_some() => {
                    return self.concluded(How::Unswitched, client);
                }
                Ok(Way::Http2 { requests, reused, number }) => {
                    // Hyper does not tell of an upstream's 100.
                    if let Err(how) = self.want_body(asked.framing, client).await {
                        return self.concluded(how, client);
                    }
                    let (request, sink) = http2_request(&asked, url);
                    let (upstream, shared) = (in_flight.upstream.clone(), self.shared);
                    // As long as its stream lasts a connection counts it; the other one from when it is asked.
                    let (other, _other) = oneshot::channel();
                    let first = requests.try_ask(request);
                    let asking = async move {
                        match first.await {
                            // It takes no more requests, and has seen nothing of this one, whose body is where it was.
                            Err((NoAnswer::Unsent, Some(unsent))) => {
                                match upstream.way(shared, Some(number)).await {
                                    Ok(Way::Http2 { requests, .. }) => {
                                        let answer = requests.ask(*unsent);
                                        let _ = other.send(requests);
                                        answer.await
                                    }
                                    _ => Err(NoAnswer::Unsent),
                                }
                            }
                            answer => answer.map_err(|(why, _)| why),
                        }
                    };
                    let answer = Answer::Frames(Box::pin(asking));
                    let conversed = self.converse(asked.source, sink, answer, client, false).await;
                    ((reused, number), None, conversed)
                }
                Ok(Way::WebSocket(requests)) => {
                    let (request, sink) = http2_request(&asked, url);
                    let (switched, mut stream) = oneshot::channel();
                    let answer = requests.ask_for_websocket(request, accept.clone(), switched);
                    let answer = Answer::Frames(Box::pin(answer));
                    let conversed = self.converse(asked.source, sink, answer, client, true).await;
                    let up = stream.try_recv().ok().map(|stream| {
                        let (read, write) = Connection::Other(stream).split(&self.shared.pool);
                        Connected { read, write, reused: false }
                    });
                    ((false, 0), up, conversed)
                }
                Err(error) => {
                    in_flight.answered(false);
                    // Nothing was sent, so that any request may try the next server.
                    failed.push(at);
                    let late = error.kind() == std::io::ErrorKind::TimedOut;
                    let status = if late { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::BAD_GATEWAY };
                    let text = "the upstream cannot be reached";
                    let failure = Failure::new(status, Refusal::Upstream, text);
                    let cause = format!("{}: {}", in_flight.upstream.name, chain(&error));
                    // In a box: what waits for an answer has room for this, too.
                    unreachable = Some(Box::new(failure.because(cause)));
                    continue;
                }
            };
            let again = match conversed.how {
                How::Unanswered => reused && idempotent,
                How::Unsent => asked.framing == Framing::None,
                _ => false,
            };
            if let Some(source) = conversed.source.filter(|_| again && stale.is_none()) {
                // Nothing was sent; or the server closed the connection while the request was on its way, and has not seen it, and
                // if it has, seeing it twice changes nothing.
                asked.source = source;
                stale = Some((at, number));
                continue;
            }
            self.judge(&mut in_flight, &conversed.how);
            return match (conversed.how, up) {
                (How::Switched, Some(up)) => Ok(Ended::Tunnel(Box::new(up), in_flight)),
                (How::Answered { whole: true, keep_alive: true }, Some(up)) => {
                    if up.read.has_carry() {
                        self.shared.tally.upstream_excess();
                    } else {
                        in_flight.upstream.keep(up, self.settings());
                    }
                    Ok(if client.keeps_alive() { Ended::Keep } else { Ended::Close })
                }
                (how, _) => self.concluded(how, client),
            };
        }
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
            // That is its right, and nothing that a client may have it left alone for.
            How::Unswitched => in_flight.answered(true),
            How::Unanswered => in_flight.answered(false),
            How::Failed(failure) if server_errors.contains(&failure.status) => in_flight.answered(false),
            How::BrokenOff { by_upstream: true } => in_flight.answered(false),
            How::Failed(_) | How::Unsent | How::ClientGone | How::BrokenOff { by_upstream: false } => {}
        }
    }
}

/// What accepts the WebSocket that this head asks for, if it does.
fn accepted_by(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(header::UPGRADE).filter(|name| name.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes()))?;
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok()
}

/// A request for an upstream that speaks HTTP/2, and where its body goes.
fn http2_request(asked: &Asked<'_>, url: &UpstreamUrl) -> (Request<Body>, Sink<'static>) {
    let (frames, body) = Body::channel(size_of(asked.framing), To::Upstream);
    let body = if asked.framing == Framing::None { Body::empty() } else { body };
    let path = path_below(&url.base, path_of(&asked.target));
    let mut request = http2::request(asked, url.tls, &url.authority, &path, body);
    // The client was told already.
    request.headers_mut().remove(header::EXPECT);
    (request, Sink::Frames(frames))
}

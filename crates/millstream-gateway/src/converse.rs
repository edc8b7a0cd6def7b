//! Two bodies at once: the request's, and as soon as it begins the answer's.

use std::time::Duration;

use http::StatusCode;
use http::header;
use tokio::time::{Instant, sleep_until};

use crate::answer::{Answer, NoAnswer};
use crate::client::Client;
use crate::compress;
use crate::exchange::{Failure, Serving, too_large};
use crate::head::Framing;
use crate::meter::{Direction, Meter, StreamOutcome, StreamReport};
use crate::pump::{Broken, Rules, Sink, Source, pump};
use crate::report::Refusal;
use crate::settings::HalfClose;

/// A client that holds its answer for so long may be why it breaks off.
const HELD: Duration = Duration::from_secs(1);

/// How the two bodies ended.
pub(crate) struct Conversed<'a> {
    /// The request's source, if its body was moved to its end or failed.
    pub(crate) source: Option<Source<'a>>,
    pub(crate) how: How,
}

/// What came of the two bodies.
pub(crate) enum How {
    /// The answer is whole. `whole` says that the request body is, too.
    Answered {
        whole: bool,
        keep_alive: bool,
    },
    /// The upstream changes the protocol.
    Switched,
    /// The upstream answers, and does not change the protocol, which would look over HTTP/2 as if it did.
    Unswitched,
    /// The upstream closed before it answered anything.
    Unanswered,
    /// The upstream was not asked: its connection takes no more requests.
    Unsent,
    Failed(Failure),
    /// The client is gone.
    ClientGone,
    /// The answer had begun and broke off.
    BrokenOff {
        /// It is the doing of who gave it, and of nobody else.
        by_upstream: bool,
    },
}

impl Serving<'_> {
    /// Moves the request's body and, as soon as it begins, the answer's.
    pub(crate) async fn converse<'a>(
        &mut self,
        source: Source<'a>,
        mut sink: Sink<'_>,
        mut answer: Answer<'_>,
        client: &mut Client<'_>,
        may_switch: bool,
    ) -> Conversed<'a> {
        let sums = &self.shared.sums[self.at].streams;
        let settings = &self.shared.settings;
        let idle = settings.timeouts.idle;
        let mut meter = Meter::start(Direction::Request, &sums.request, Some(self.slot));
        let rules = Rules {
            chunk: settings.request_chunk,
            bytes_max: settings.limits.request_body_bytes,
            idle,
            client: Some(settings.half_close),
        };
        let late = sleep_until(meter.started() + settings.timeouts.response);
        tokio::pin!(late);
        let upload = async move {
            let mut source = source;
            let result = pump(&mut source, &mut sink, &mut meter, rules).await;
            (source, meter, result)
        };
        tokio::pin!(upload);
        let mut uploaded: Option<Uploaded<'a>> = None;

        // The head of the answer.
        let head = loop {
            let running = uploaded.is_none();
            tokio::select! {
                biased;
                (source, meter, result) = &mut upload, if running => {
                    let ended = Uploaded::new(source, meter, result);
                    self.report.request = Some(ended.report.clone());
                    let proxied = self.shared.routes[self.at].upstreams().is_some();
                    let unwanted = match ended.broken {
                        Some(Broken::SinkIdle(time)) if proxied => {
                            Some(format!("the upstream took nothing of the request body for {time:?}"))
                        }
                        // Its client waits to hear that the body is wanted.
                        Some(Broken::SourceIdle(_)) if self.expects => {
                            Some("the upstream does not say whether it wants the request body".to_owned())
                        }
                        _ => None,
                    };
                    if let Some(text) = unwanted {
                        let failure = Failure::new(StatusCode::GATEWAY_TIMEOUT, Refusal::Timeout, text);
                        return Conversed { source: None, how: How::Failed(failure) };
                    }
                    // One that takes no more may still say why.
                    if let Some(how) = ended.broken.as_ref().and_then(fault_of) {
                        return Conversed { source: None, how };
                    }
                    late.as_mut().reset(Instant::now() + settings.timeouts.response);
                    uploaded = Some(ended);
                }
                head = answer.head(settings.limits.header_bytes) => match head {
                    Err(NoAnswer::Closed) => {
                        return Conversed { source: uploaded.map(|ended| ended.source), how: How::Unanswered };
                    }
                    Err(NoAnswer::Unsent) => {
                        return Conversed { source: uploaded.map(|ended| ended.source), how: How::Unsent };
                    }
                    Err(NoAnswer::Invalid(text)) => {
                        let failure = Failure::new(StatusCode::BAD_GATEWAY, Refusal::UpstreamHead, text);
                        return Conversed { source: None, how: How::Failed(failure) };
                    }
                    Ok((head, _)) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                        let accepts = head.headers.get(header::SEC_WEBSOCKET_ACCEPT);
                        if !may_switch || (self.accept.is_some() && accepts != self.accept.as_ref()) {
                            let text = "the upstream changes a protocol that nobody asked to change";
                            let failure = Failure::new(StatusCode::BAD_GATEWAY, Refusal::UpstreamHead, text);
                            return Conversed { source: None, how: How::Failed(failure) };
                        }
                        self.report.status = Some(head.status);
                        self.answered = true;
                        let source = uploaded.map(|ended| ended.source);
                        let flushed = match client.start(head) {
                            Some(Sink::Wire { write, .. }) => write.flush(idle).await.is_ok(),
                            Some(Sink::Frames(_)) => true,
                            None => false,
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
                    Ok((head, _)) if may_switch && head.status.is_success() && matches!(client, Client::Frames { .. }) => {
                        return Conversed { source: None, how: How::Unswitched };
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
        // One that will not take another request says so, also if that was decided while this one was served.
        if self.shared.draining.is_cancelled() {
            client.close();
        }
        let framing = head.framing;
        let compressible = self.compresses && compress::is_worth_it(&head, self.head_only);
        if compressible {
            compress::vary(&mut head.headers);
        }
        if self.compresses && head.status == StatusCode::NOT_MODIFIED {
            // What it says of is what the client has, compressed or not.
            compress::vary(&mut head.headers);
            if self.coding.is_some() {
                compress::weaken(&mut head.headers);
            }
        }
        let coding = self.coding.filter(|_| compressible);
        if let Some(coding) = coding {
            coding.announce(&mut head);
        }
        let Some(mut sink) = client.start(head) else {
            return Conversed { source: None, how: How::ClientGone };
        };
        let mut from = answer.body(framing);
        if let Some(coding) = coding.filter(|_| framing != Framing::None) {
            from = Source::Compressed(Box::new(from), coding.encoder());
        }
        let mut meter = Meter::start(Direction::Response, &sums.response, Some(self.slot));
        let rules = Rules { chunk: settings.response_chunk, bytes_max: u64::MAX, idle, client: None };
        let mut fault = None;
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
                        fault = ended.broken.as_ref().and_then(fault_of);
                        uploaded = Some(ended);
                        if fault.is_some() {
                            break None;
                        }
                    }
                    () = client_gone(&mut uploaded, settings.half_close), if !running => break None,
                }
            }
        };
        let how = match result {
            Some(Ok(())) => {
                match sink {
                    Sink::Frames(pieces) if pieces.is_awaited() => {
                        self.ending = Some(Box::new((pieces, meter)));
                    }
                    _ => self.report.response = Some(meter.end(StreamOutcome::Complete)),
                }
                let whole = uploaded.as_ref().is_some_and(|ended| ended.broken.is_none());
                How::Answered { whole, keep_alive }
            }
            Some(Err(broken)) => {
                let report = meter.end(broken.outcome());
                // A client that sends or takes too little can have any server lose its patience.
                let blameless = report.backpressure_time < HELD
                    && uploaded.as_ref().is_some_and(|ended| ended.broken.is_none());
                self.report.response = Some(report);
                self.report.failure = Some(format!("the answer broke off: {broken}"));
                let by_upstream = !matches!(broken, Broken::Sink(_) | Broken::Gone | Broken::SinkIdle(_));
                self.shared.tally.refused(match by_upstream {
                    true => Refusal::BrokenAnswer,
                    false => Refusal::ClientGone,
                });
                // The client gets what was whole, if it takes it, and then sees that no more comes.
                if let Sink::Wire { write, .. } = &mut sink {
                    let _ = write.flush(idle).await;
                }
                How::BrokenOff { by_upstream: by_upstream && blameless }
            }
            None => {
                self.report.response = Some(meter.end(StreamOutcome::Cancelled));
                match fault {
                    Some(How::Failed(failure)) => {
                        self.shared.tally.refused(failure.refusal);
                        self.report.failure = Some(failure.text);
                        How::BrokenOff { by_upstream: false }
                    }
                    _ => How::ClientGone,
                }
            }
        };
        Conversed { source: uploaded.map(|ended| ended.source), how }
    }
}

/// A request body whose moving has ended.
struct Uploaded<'a> {
    source: Source<'a>,
    broken: Option<Broken>,
    report: StreamReport,
}

impl<'a> Uploaded<'a> {
    fn new(source: Source<'a>, mut meter: Meter, result: Result<(), Broken>) -> Uploaded<'a> {
        let outcome = result.as_ref().err().map_or(StreamOutcome::Complete, Broken::outcome);
        Uploaded { source, report: meter.end(outcome), broken: result.err() }
    }
}

/// How an exchange ends whose request body is broken, unless that is the doing of who takes it.
fn fault_of(broken: &Broken) -> Option<How> {
    let (status, refusal, text) = match broken {
        Broken::Sink(_) | Broken::Gone | Broken::SinkIdle(_) => return None,
        Broken::Source(_) | Broken::Short | Broken::ClientGone | Broken::Body(_) | Broken::Length => {
            return Some(How::ClientGone);
        }
        Broken::TooLarge(max) => return Some(How::Failed(too_large(*max))),
        Broken::Framing(error) => (StatusCode::BAD_REQUEST, Refusal::Framing, error.to_string()),
        Broken::SourceIdle(_) => {
            (StatusCode::REQUEST_TIMEOUT, Refusal::Timeout, "the request body made no progress".into())
        }
    };
    Some(How::Failed(Failure::new(status, refusal, text)))
}

/// Resolves when the client has closed its connection while its request is served.
async fn client_gone(uploaded: &mut Option<Uploaded<'_>>, half_close: HalfClose) {
    match uploaded {
        Some(Uploaded { source: Source::Wire { read, decoder }, broken: None, .. }) if decoder.is_done() => {
            read.gone(half_close).await;
        }
        // Nobody reads what is left of the request.
        Some(Uploaded { source: Source::Wire { read, .. }, .. }) => {
            Box::pin(read.watch(half_close).gone()).await;
        }
        _ => std::future::pending().await,
    }
}

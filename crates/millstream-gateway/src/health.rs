//! Asking servers whether they are well, before clients find out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Method;
use millstream_flow::chain;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::answer::NoAnswer;
use crate::body::Body;
use crate::current::Current;
use crate::gateway::Shared;
use crate::http1::head::response;
use crate::http1::io::NoHead;
use crate::upstream::{Upstream, Way};

/// How servers are asked whether they are well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked for, by GET. A server is well if it answers with a status below 400.
    pub path: String,
    /// How often.
    pub period: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// After so many bad answers in a row no more requests go there.
    pub failures: u32,
    /// After so many good answers in a row they do again.
    pub successes: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        HealthCheck {
            path: "/".into(),
            period: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            failures: 2,
            successes: 1,
        }
    }
}

impl HealthCheck {
    /// Asks one server for ever.
    pub(crate) async fn watch(self, current: Arc<Current>, server: Arc<Upstream>) {
        let mut ticks = interval(self.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // How many answers in a row say otherwise than what holds.
        let mut against = 0;
        loop {
            ticks.tick().await;
            let asking = async { self.ask(&current.get(), &server).await };
            let found = timeout(self.timeout, asking).await;
            let found = found.unwrap_or_else(|_| Err(format!("no answer after {:?}", self.timeout)));
            let well = found.is_ok();
            if well == server.lasting.healthy.load(Ordering::Relaxed) {
                against = 0;
                continue;
            }
            against += 1;
            if against >= if well { self.successes } else { self.failures } {
                against = 0;
                server.lasting.healthy.store(well, Ordering::Relaxed);
                match found {
                    Ok(()) => tracing::warn!(upstream = %server.url, "an upstream is well again"),
                    Err(reason) => tracing::warn!(upstream = %server.url, reason, "an upstream is not well"),
                }
            }
        }
    }

    /// Why the server is not well, if it is not.
    async fn ask(&self, shared: &Arc<Shared>, server: &Upstream) -> Result<(), String> {
        let path = format!("{}{}", server.url.base, self.path);
        let status = match server.probe(shared).await.map_err(|error| chain(&error))? {
            Way::Http1(mut up) => {
                let head = format!(
                    "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
                    server.url.authority
                );
                up.write.pending = head.into_bytes();
                up.write.flush(self.timeout).await.map_err(|error| chain(&error))?;
                loop {
                    let head = up.read.head(shared.settings.limits.header_bytes).await;
                    let head = head.map_err(|none| match none {
                        NoHead::Closed | NoHead::Broken => "it closes without an answer".to_owned(),
                        NoHead::Refused(error) => error.to_string(),
                    })?;
                    let status = response(&head, &Method::GET).map_err(|error| error.to_string())?.status;
                    // What may still become anything.
                    if !status.is_informational() {
                        break status;
                    }
                }
            }
            Way::Http2 { requests, .. } | Way::WebSocket(requests) => {
                let scheme = if server.url.tls { "https" } else { "http" };
                let uri = format!("{scheme}://{}{path}", server.url.authority);
                let request = http::Request::get(uri).body(Body::empty());
                let answer = requests.ask(request.map_err(|error| error.to_string())?).await;
                let answer = answer.map_err(|none| match none {
                    NoAnswer::Closed | NoAnswer::Unsent => "it closes without an answer".to_owned(),
                    NoAnswer::Invalid(text) => text,
                })?;
                answer.status()
            }
        };
        if status.as_u16() < 400 { Ok(()) } else { Err(format!("it answers {status}")) }
    }
}

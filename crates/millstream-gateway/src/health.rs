//! Asking servers whether they are well, before clients find out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Method;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::body::Body;
use crate::current::Current;
use crate::gateway::Shared;
use crate::http1::head::response;
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
            let well = matches!(timeout(self.timeout, asking).await, Ok(Some(())));
            if well == server.lasting.healthy.load(Ordering::Relaxed) {
                against = 0;
                continue;
            }
            against += 1;
            if against >= if well { self.successes } else { self.failures } {
                against = 0;
                server.lasting.healthy.store(well, Ordering::Relaxed);
                tracing::warn!(upstream = %server.url, well, "the health of an upstream has changed");
            }
        }
    }

    /// Something, if the server is well.
    async fn ask(&self, shared: &Arc<Shared>, server: &Upstream) -> Option<()> {
        let path = format!("{}{}", server.url.base, self.path);
        let status = match server.probe(shared).await.ok()? {
            Way::Http1(mut up) => {
                let head = format!(
                    "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
                    server.url.authority
                );
                up.write.pending = head.into_bytes();
                up.write.flush(self.timeout).await.ok()?;
                loop {
                    let head = up.read.head(shared.settings.limits.header_bytes).await.ok()?;
                    let status = response(&head, &Method::GET).ok()?.status;
                    // What may still become anything.
                    if !status.is_informational() {
                        break status;
                    }
                }
            }
            Way::Http2 { requests, .. } | Way::WebSocket(requests) => {
                let scheme = if server.url.tls { "https" } else { "http" };
                let uri = format!("{scheme}://{}{path}", server.url.authority);
                let request = http::Request::get(uri).body(Body::empty()).ok()?;
                requests.ask(request).await.ok()?.status()
            }
        };
        (status.as_u16() < 400).then_some(())
    }
}

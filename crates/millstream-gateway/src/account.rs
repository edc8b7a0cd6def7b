//! What becomes of an exchange, told when it ends.

use std::sync::Arc;

use tokio::time::Instant;

use crate::gateway::Shared;
use crate::meter::StreamReport;
use crate::report::{ExchangeReport, Refusal};
use crate::under_way::Slot;

/// What becomes of a connection that goes on in another protocol, told when that ends, however it does.
pub(crate) struct Tale {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    /// In a box, as it lives as long as the connection.
    report: Box<ExchangeReport>,
    started: Instant,
}

impl Tale {
    /// Where the connection is seen while it goes on: until its slot is left, since no other exchange follows.
    pub(crate) fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// What came from the client, and what went to it.
    pub(crate) fn streams(&mut self, request: StreamReport, response: StreamReport) {
        (self.report.request, self.report.response) = (Some(request), Some(response));
    }
}

impl Drop for Tale {
    fn drop(&mut self) {
        self.report.duration = self.started.elapsed();
        self.shared.tell(&self.report);
    }
}

/// What becomes of an exchange, told when it ends; an exchange that is dropped before its end is told, too.
pub(crate) struct Account<'s> {
    shared: &'s Arc<Shared>,
    slot: &'s Arc<Slot>,
    pub(crate) report: ExchangeReport,
    pub(crate) route: Option<usize>,
    pub(crate) started: Instant,
    pub(crate) ended: bool,
    /// It goes on, and is told by somebody else.
    goes_on: bool,
}

impl<'s> Account<'s> {
    pub(crate) fn open(shared: &'s Arc<Shared>, slot: &'s Arc<Slot>, report: ExchangeReport) -> Self {
        Account { shared, slot, report, route: None, started: Instant::now(), ended: false, goes_on: false }
    }

    /// The rest of the story, for who goes on with the connection.
    pub(crate) fn continued(&mut self) -> Tale {
        self.goes_on = true;
        self.slot.upgrades();
        let report = Box::new(self.report.clone());
        Tale { shared: self.shared.clone(), slot: self.slot.clone(), report, started: self.started }
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let stopped = self.shared.stopped.is_cancelled();
            if !stopped {
                self.shared.tally.refused(Refusal::ClientGone);
            }
            let why = if stopped { "the gateway has stopped" } else { "the client is gone" };
            self.report.failure.get_or_insert_with(|| why.into());
        }
        self.shared.answered(self.route, self.report.status);
        if !self.goes_on {
            self.slot.end();
            self.report.duration = self.started.elapsed();
            self.shared.tell(&self.report);
        }
    }
}

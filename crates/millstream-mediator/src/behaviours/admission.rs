//! No calls for which there is no memory.

use std::borrow::Cow;
use std::time::Duration;

use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::{Error, ErrorKind};
use crate::memory::Memory;
use crate::message::{About, Request};

/// Fails calls with [`ErrorKind::Shed`] while [`Memory`] is short, or has them wait first. Around the opening of streams it
/// opens none then.
#[derive(Debug, Clone)]
pub struct Admission {
    memory: Memory,
    wait_max: Duration,
}

impl Admission {
    /// Fails calls at once.
    pub fn new(memory: Memory) -> Self {
        Admission { memory, wait_max: Duration::ZERO }
    }

    /// Has them wait so long for memory before they fail.
    #[must_use]
    pub fn wait_max(mut self, wait: Duration) -> Self {
        self.wait_max = wait;
        self
    }
}

impl Behaviour for Admission {
    fn name(&self) -> Cow<'static, str> {
        let wait = if self.wait_max.is_zero() {
            String::new()
        } else {
            format!(", waiting up to {:?}", self.wait_max)
        };
        format!("admission within {} MiB{wait}", self.memory.limit() >> 20).into()
    }

    fn of(&self, about: &About) -> Self {
        self.memory.register(about);
        self.clone()
    }

    fn problem(&self) -> Option<String> {
        self.memory.problem()
    }

    #[inline]
    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        if self.memory.is_short() {
            let waited = tokio::time::timeout(self.wait_max, self.memory.until_enough()).await;
            waited.map_err(|_| Error::new(call.about(), ErrorKind::Shed))?;
        }
        next.call(call, request).await
    }
}

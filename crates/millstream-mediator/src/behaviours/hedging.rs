//! A second call when the first is slow.

use std::borrow::Cow;

use millstream_resilience::Hedge;

use crate::behaviour::{Behaviour, Next};
use crate::call::Call;
use crate::error::Error;
use crate::message::{About, Request};

/// Makes a slow call a second time and takes the answer that comes first, if its request
/// [may be repeated](Request::repeat): others pass as if it were not there. When and how often, says a [`Hedge`], and no more often than
/// the request may be.
#[derive(Debug, Clone)]
pub struct Hedging {
    hedge: Hedge,
}

impl Hedging {
    /// Hedges as `hedge` says. Handlers share its budget and what it knows of latencies: give one to each type by
    /// [`behaviour_for`](crate::Builder::behaviour_for) if they differ.
    pub fn new(hedge: Hedge) -> Self {
        Hedging { hedge }
    }
}

impl Behaviour for Hedging {
    fn name(&self) -> Cow<'static, str> {
        format!("hedge after {:?}", self.hedge.delay()).into()
    }

    fn of(&self, _: &About) -> Self {
        self.clone()
    }

    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        let Some(spare) = request.repeat() else { return next.call(call, request).await };
        let (mut first, mut spare) = (Some(request), Some(spare));
        let make = || {
            let request = first.take().or_else(|| {
                let request = spare.take()?;
                // Of what may not be repeated once more this is the last.
                spare = request.repeat();
                Some(request)
            });
            request.map(|request| next.call(call, request))
        };
        self.hedge.call_while(make).await.expect("there is a first call")
    }
}
